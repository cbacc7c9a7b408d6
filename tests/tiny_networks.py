"""Files of weights of two tiny networks: random, but for a head set to an image."""

from pathlib import Path

import ml_collections
import numpy as np

from configs import infection, lung
from covjax.data.covidqu import resize_image
from covjax.data.phantom.drawing import make_phantom
from covjax.export.safetensors import Weights, pack_weights
from covjax.train.restore import Trained
from saved_run import make_state

SIDE = 32
THRESHOLD = 0.35


def make_image(seed: int = 5, size: int = 128) -> np.ndarray:
    return make_phantom("COVID-19", np.random.default_rng(seed), size)["image"]


def write_networks(folder: Path, *, presence: float = 0.0) -> tuple[Path, Path]:
    """Writes lung.safetensors and infection.safetensors.

    With all parameters positive, logits follow how bright an image is; on one image
    they are of mean 0 and standard deviation 1.5. "Lungs" are its bright parts.
    """
    written = []
    for config, roi, point in (
        (lung.get_config("phantom"), "none", {"threshold": 0.4}),
        (
            infection.get_config("phantom"),
            "predicted",
            {"threshold": THRESHOLD, "presence": presence},
        ),
    ):
        point = {"min_area": 0, "presence": 0.0} | point
        trained = _make(config, folder / config.data.task)
        path = folder / f"{config.data.task}.safetensors"
        path.write_bytes(pack_weights(Weights(trained, {roi: point}, phantom=True)))
        written.append(path)
    return written[0], written[1]


def _make(config: ml_collections.ConfigDict, run: Path) -> Trained:
    config.data.image_size = SIDE
    config.model.width, config.model.depth, config.model.norm = 2, 1, "group"
    state = make_state(config, 3)
    radiograph = (
        resize_image(make_image(), SIDE)[None, ..., None].astype(np.float32) / 255
    )
    logits = np.asarray(
        state.apply_fn(state.variables(), radiograph, train=False).logits
    )
    scale = 1.5 / float(logits.std())
    params: dict = dict(state.params)
    head = params["head"]
    head = {
        "kernel": scale * head["kernel"],
        "bias": scale * (head["bias"] - logits.mean()),
    }
    state = state.replace(params=params | {"head": head})
    return Trained(run, config, 3, "0123abcd", state)
