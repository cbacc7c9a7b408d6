"""A lung run and an infection run on drawn images, for tests of the evaluation.

Nothing is trained. The parameters are set by hand so that the network computes

    logit = SLOPE * (mean of 3x3 pixels - cut)

of the image; lungs that it is shown beside it change nothing.

On an image the outside of the body is dark, lungs are grey and infection is bright.
Some images have a bright speck that is none, or a faint lesion, and those of COVID-19 a
mark outside the lungs, so that every figure has something to tell.
"""

from pathlib import Path

import jax
import ml_collections
import numpy as np
import optax
from PIL import Image

from configs import infection, lung
from covjax.data.covidqu import (
    CLASSES,
    IMAGES,
    INFECTION_MASKS,
    LUNG_MASKS,
    PHANTOM_MARKER,
    TREES,
)
from covjax.data.pipeline import make_region
from covjax.models import make_model
from covjax.train import run_folder
from covjax.train.checkpoint import Checkpoints
from covjax.train.train_state import create_train_state

SIDE = 32
SAMPLES = {"Train": (4, 2, 2), "Val": (8, 4, 4), "Test": (12, 7, 5)}  # of `CLASSES`
STEP = 7
SLOPE = 25.0
CUTS = {"lung": 0.3, "infection": 0.6}


def write_images(root: Path) -> None:
    """Writes both trees in the published layout."""
    root.mkdir(parents=True)
    (root / PHANTOM_MARKER).write_text("{}")
    rng = np.random.default_rng(0)
    for split, counts in SAMPLES.items():
        for label, count in zip(CLASSES, counts, strict=True):
            for k in range(count):
                radiograph, lung_mask, sick = _draw(rng, label, k)
                masks = {LUNG_MASKS: 255 * lung_mask, INFECTION_MASKS: 255 * sick}
                for tree, names in (
                    ("lung", (LUNG_MASKS,)),
                    ("infection", (LUNG_MASKS, INFECTION_MASKS)),
                ):
                    folder = root / TREES[tree] / split / label
                    for name in (IMAGES, *names):
                        (folder / name).mkdir(parents=True, exist_ok=True)
                        picture = radiograph if name == IMAGES else masks[name]
                        path = folder / name / f"{label.lower()}_{k}.png"
                        Image.fromarray(picture).save(path)


def _draw(rng: np.random.Generator, label: str, k: int) -> tuple[np.ndarray, ...]:
    """Returns an image and the masks of its lungs and its infection, uint8 [H, W]."""
    lung_mask, sick = np.zeros((2, SIDE, SIDE), np.uint8)
    top, bottom = rng.integers(3, 7), rng.integers(24, 30)
    lung_mask[top:bottom, 4:14] = lung_mask[top:bottom, 18:28] = 1
    radiograph = 20 + 95.0 * lung_mask
    if label == "COVID-19":
        height, width = rng.integers(2, 22), rng.integers(3, 10)
        sick[top : top + height, 4 : 4 + width] = 1
        sick *= lung_mask
        radiograph += sick * (25 if k % 5 == 4 else 90)  # every fifth is too faint
        radiograph[:3, 28:] = 230  # a mark
    if k % 3 == 1:
        radiograph[bottom - 4 : bottom - 1, 20:23] = 220  # a speck that is no infection
    radiograph += rng.normal(0, 12, radiograph.shape)
    return radiograph.clip(0, 255).astype(np.uint8), lung_mask, sick


def make_config(task: str, root: Path) -> ml_collections.ConfigDict:
    config = (lung if task == "lung" else infection).get_config("phantom")
    config.data.phantom_images, config.data.root = (), str(root)
    config.data.image_size = SIDE
    config.model.width, config.model.depth = 2, 1
    config.train.batch_size = 8
    return config


def write_run(workdir: Path, config: ml_collections.ConfigDict) -> Path:
    """Writes config and checkpoint of a run; returns its folder."""
    run_folder.claim(workdir, config, phantom=True)
    state = create_train_state(
        make_model(config),
        optax.identity(),
        jax.random.key(0),
        image_size=SIDE,
        channels=make_region(config.data).channels,
    )
    params = jax.tree.map(np.zeros_like, jax.device_get(state.params))
    for block in ("encoder_0", "decoder_0"):
        for k in range(2):
            # Divided by the norm's sqrt(1 + epsilon) again below.
            params[block][f"conv_{k}"]["kernel"][1, 1, 0, 0] = np.sqrt(1 + 1e-5)
            params[block][f"norm_{k}"]["scale"][:] = 1
    params["decoder_0"]["conv_0"]["kernel"][:, :, 0, 0] = np.sqrt(1 + 1e-5) / 9
    params["head"]["kernel"][0, 0, 0, 0] = SLOPE
    params["head"]["bias"][:] = -SLOPE * CUTS[config.data.task]
    with Checkpoints(workdir) as checkpoints:
        host = jax.device_get(state).replace(params=params, step=STEP)
        checkpoints.save(host, dice=0.5)
    return workdir


def write_two_runs(folder: Path) -> tuple[Path, Path]:
    """Writes images, a run of lungs, one of infection from it; returns both runs."""
    root = folder / "images"
    write_images(root)
    of_lungs = write_run(folder / "lung", make_config("lung", root))
    config = make_config("infection", root)
    config.init_from = str(of_lungs)
    return of_lungs, write_run(folder / "infection", config)


def expected_levels(seen: np.ndarray, task: str) -> np.ndarray:
    """Returns what the network gives, uint8 [H, W], computed by NumPy in float64."""
    x = np.pad(seen.astype(np.float64) / 255, 1)
    mean = sum(x[i : i + SIDE, j : j + SIDE] for i in range(3) for j in range(3)) / 9
    p = 1 / (1 + np.exp(-SLOPE * (mean - CUTS[task])))
    return np.ceil(255 * p - 0.5).astype(np.uint8)
