"""A small network of random numbers, of any settings: nothing was trained."""

from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from configs import infection
from covjax.data.pipeline import make_region
from covjax.export.parity import draw_samples
from covjax.export.safetensors import Weights
from covjax.models import make_model
from covjax.train.restore import Trained
from covjax.train.train_state import inference_state

SIDE = 16
POINT = {"threshold": 0.3, "min_area": 4, "presence": 0.25}


def make_config(**settings: Any) -> ml_collections.ConfigDict:
    config = infection.get_config("phantom")
    config.data.image_size, config.model.width, config.model.depth = SIDE, 4, 2
    config.model.norm = settings.get("norm", "batch")
    config.model.residual = settings.get("residual", False)
    config.model.intensity = settings.get("intensity", "unit")
    config.model.presence_head = settings.get("presence", False)
    config.model.upsample = settings.get("upsample", "transpose")
    config.model.deep_supervision = settings.get("deep", 0)
    config.eval.tta_flip = settings.get("flip", False)
    config.data.roi = "predicted"
    config.data.roi_as = "channel" if settings.get("channel") else "cut"
    return config


def make_weights(config: ml_collections.ConfigDict, seed: int = 0) -> Weights:
    """A network of random numbers whose probabilities are spread over 0 to 1."""
    rng = np.random.default_rng(seed)
    model = make_model(config)
    image = np.zeros((1, SIDE, SIDE, make_region(config.data).channels), np.float32)
    shapes = jax.eval_shape(
        lambda key: model.init(key, image, train=False), jax.random.key(0)
    )

    def draw(path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
        if path[-1] in ("var", "scale"):
            return rng.uniform(0.5, 2, shape).astype(np.float32)
        spread = (2 / np.prod(shape[:-1])) ** 0.5 if path[-1] == "kernel" else 0.3
        return rng.normal(0, spread, shape).astype(np.float32)

    flat: dict[tuple[str, ...], Any] = flatten_dict(shapes)
    leaves = {path: draw(path, leaf.shape) for path, leaf in flat.items()}
    variables = {"batch_stats": {}} | unflatten_dict(leaves)
    state = inference_state(model.apply, **variables)
    trained = Trained(Path("runs/infection"), config, 3, "0a", state)
    return Weights(trained, {"predicted": POINT}, phantom=True)


def samples_of(config: ml_collections.ConfigDict) -> np.ndarray:
    return draw_samples(make_region(config.data), SIDE)
