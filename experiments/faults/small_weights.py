"""Files of weights of two small networks of random numbers."""

from pathlib import Path

import jax
import ml_collections
import optax

from configs import infection, lung
from covjax.data.pipeline import make_region
from covjax.export.safetensors import Weights, pack_weights
from covjax.models import make_model
from covjax.train.restore import Trained
from covjax.train.train_state import create_train_state, inference_state

SIDE = 32
POINT = {"threshold": 0.5, "min_area": 0, "presence": 0.0, "lungs": None}


def write_weights(folder: Path) -> tuple[Path, Path]:
    """Writes a file for each stage; returns their paths."""
    paths = folder / "lung.safetensors", folder / "infection.safetensors"
    for path, config in zip(
        paths,
        (lung.get_config("phantom"), infection.get_config("phantom")),
        strict=True,
    ):
        config.data.image_size, config.train.batch_size = SIDE, 8
        config.model.width, config.model.depth = 4, 2
        if config.data.task == "infection":
            config.data.roi = "predicted"
        path.write_bytes(pack_weights(_draw(config)))
    return paths


def _draw(config: ml_collections.ConfigDict) -> Weights:
    model, task = make_model(config), config.data.task
    state = create_train_state(
        model, optax.identity(), jax.random.key(0), image_size=SIDE,
        channels=make_region(config.data).channels,
    )  # fmt: skip
    leaves = jax.device_get(state.variables())
    state = inference_state(model.apply, **leaves).replace(step=1)
    trained = Trained(Path(f"runs/{task}"), config, 1, f"{task}-1", state)
    roi = "none" if task == "lung" else "predicted"
    return Weights(trained, {roi: POINT}, phantom=True)
