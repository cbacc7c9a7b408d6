"""U-Nets that hand every pixel on, so that NumPy knows their outputs.

The logit of a pixel is slope * (pixel / 255 - 1 / 2) of the first channel, the image.
"""

from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from configs import infection, lung
from covjax.config import save_config
from covjax.data.pipeline import make_region
from covjax.export.safetensors import Weights, pack_weights
from covjax.metrics.operating_point import write_points
from covjax.models import make_model
from covjax.train.checkpoint import Checkpoints, fingerprint
from covjax.train.restore import Trained
from covjax.train.run_folder import CONFIG
from covjax.train.train_state import TrainState, inference_state

SIDE = 16
STEP = 3
# Lungs are dark, and infection is bright, where it is found.
SLOPES = {"lung": -8.0, "infection": 8.0}
POINTS = {
    "lung": {"threshold": 0.4, "min_area": 0, "presence": 0.0, "lungs": None},
    "infection": {"threshold": 0.7, "min_area": 3, "presence": 0.1, "lungs": None},
}


def make_config(task: str, **data: Any) -> ml_collections.ConfigDict:
    """A config of a network of 16 x 16 pixels, with other `config.data` perhaps."""
    config = (lung if task == "lung" else infection).get_config("phantom")
    config.data.image_size, config.train.batch_size = SIDE, 8
    config.model.width, config.model.depth = 2, 1
    if task == "infection":
        config.data.roi = "predicted"
    config.data.update(data)
    return config


def make_state(
    config: ml_collections.ConfigDict, slope: float | None = None, step: int = STEP
) -> TrainState:
    """The first channel of the first level is the image; all else is 0."""
    model, slope = make_model(config), slope or SLOPES[config.data.task]
    side = config.data.image_size
    image = np.zeros((1, side, side, make_region(config.data).channels), np.float32)
    shapes = jax.eval_shape(
        lambda key: model.init(key, image, train=False), jax.random.key(0)
    )
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    params: dict[str, Any] = zeros["params"]
    for block in ("encoder_0", "decoder_0"):
        for i in range(2):
            params[block][f"conv_{i}"]["kernel"][1, 1, 0, 0] = 1
            params[block][f"norm_{i}"]["scale"][:] = np.sqrt(1 + 1e-5)
    params["head"]["kernel"][0, 0, 0, 0] = slope
    params["head"]["bias"][:] = -slope / 2
    stats = jax.tree.map_with_path(
        lambda path, leaf: leaf + (path[-1].key == "var"), zeros["batch_stats"]
    )
    state = inference_state(model.apply, params, stats)
    return state.replace(step=np.int32(step))


def make_weights(task: str, config: ml_collections.ConfigDict | None = None) -> Weights:
    """Weights of such a network, with its operating point."""
    config = config or make_config(task)
    whole = task == "lung" or config.data.roi == "none"
    roi = "none" if whole else "predicted"
    trained = Trained(
        Path(f"runs/{task}"), config, STEP, f"{task}-1", make_state(config)
    )
    return Weights(trained, {roi: POINTS[task]}, phantom=True, commit="1f3a")


def write_files(folder: Path) -> tuple[Path, Path]:
    """Writes files of weights of both stages."""
    files = folder / "lung.safetensors", folder / "infection.safetensors"
    for path, task in zip(files, ("lung", "infection"), strict=True):
        path.write_bytes(pack_weights(make_weights(task)))
    return files


def write_run(folder: Path, task: str, **data: Any) -> Path:
    """Writes a run's folder with a checkpoint and its operating point."""
    config = make_config(task, **data)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(make_state(config), dice=0.9)
    about = {"checkpoint": STEP, "fingerprint": _fingerprint(folder)}
    roi = "none" if task == "lung" else "predicted"
    write_points(folder, {roi: POINTS[task] | about})
    save_config(config, folder / CONFIG, {"commit": "1f3a", "phantom": True})
    return folder


def _fingerprint(folder: Path) -> str:
    return fingerprint(folder / "checkpoints" / str(STEP))


def probabilities(sample: np.ndarray, task: str) -> np.ndarray:
    """What the network gives for an image of its size, float64 [SIDE, SIDE]."""
    return 1 / (1 + np.exp(-SLOPES[task] * (sample / 255 - 0.5)))


def draw_image() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image of two dark lungs, of which the picture's left has a bright spot.

    Returns:
      The image, uint8 [16, 16]; its lungs and the spot, uint8 [16, 16] in {0, 1}.
    """
    rows, columns = np.indices((SIDE, SIDE))
    sample = (180 + 8 * ((rows + columns) % 2)).astype(np.uint8)  # or it were a frame
    lungs, spot = np.zeros_like(sample), np.zeros_like(sample)
    lungs[3:13, 2:7] = lungs[4:12, 9:14] = 1
    sample[lungs > 0] = 60
    spot[5:8, 3:6] = 1
    sample[spot > 0] = 240
    return sample, lungs, spot
