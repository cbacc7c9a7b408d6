"""How much of an evaluation is the network itself, and how long the figures take.

  python -m experiments.benchmarks.evaluation --config=configs/infection.py:laptop

Two questions. *The pass*: images a second of `predict_split`, which reads images, runs
the network and keeps levels, against the bare forward pass on a batch that lies on the
device already; both at the config's batch, in turns, on --images images of Val. *The
figures*: seconds that all measures of --figures drawn images take, at the config's
size, with boundaries, intervals and files.

The last line is a JSON object; "ratio" is the pass over the bare forward pass.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import jax
import ml_collections
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from covjax import parallel
from covjax.data.covidqu import CLASSES, Sample
from covjax.data.pipeline import make_eval_dataset, make_region
from covjax.data.source import find_samples
from covjax.data.split_masks import SplitMasks
from covjax.evaluation.results import (
    measure,
    summarize_evaluated,
    write_results,
)
from covjax.metrics.detection import presence_scores
from covjax.metrics.operating_point import OperatingPoint, calibrate
from covjax.models import make_model
from covjax.train.eval_pass import Outputs, predict_split
from covjax.train.train_state import inference_state
from covjax.train.train_step import scale_pixels
from experiments.benchmarks.spread import print_spread

SEARCH = "search of the operating point"  # over Val, once a checkpoint and region


def compare_pass(
    config: ml_collections.ConfigDict, samples: list[Sample], rounds: int
) -> dict[str, list[float]]:
    """Times the pass over some images and the bare forward pass, in turns.

    Returns:
      "pass" and "forward": images a second of every round.
    """
    side, batch = config.data.image_size, config.train.batch_size
    samples = samples[: len(samples) // batch * batch]
    model = make_model(config)
    init = parallel.compile_once(lambda key: model.init(key, image, train=False))
    channels = make_region(config.data).channels
    image = np.zeros((1, side, side, channels), np.float32)
    variables = init(jax.random.key(0))
    state = parallel.replicate(
        inference_state(
            model.apply, variables["params"], variables.get("batch_stats", {})
        )
    )
    forward = parallel.compile_eval_step(
        lambda s, b: s.apply_fn(s.variables(), scale_pixels(b), train=False).logits
    )
    first = next(iter(parallel.prefetch(make_eval_dataset(samples, config=config))))

    def time_forward() -> float:
        start = time.perf_counter()
        for _ in range(len(samples) // batch):
            # As long as the next is not asked for before this one is done, no more
            # work is queued than the pass would have.
            forward(state, first["image"]).block_until_ready()
        return len(samples) / (time.perf_counter() - start)

    def time_pass() -> float:
        start = time.perf_counter()
        predict_split(config, samples, state)
        return len(samples) / (time.perf_counter() - start)

    time_forward()  # compiles
    time_pass()
    rates: dict[str, list[float]] = {"pass": [], "forward": []}
    for _ in range(rounds):
        rates["forward"].append(time_forward())
        rates["pass"].append(time_pass())
    return rates


def time_figures(n: int, side: int, folder: Path) -> dict[str, float]:
    """Returns the seconds of each part of an evaluation's figures.

    The images are drawn: two lungs of random size, a lesion in half of the images, and
    an output that is the smoothed truth with noise, so that outlines are ragged.

    Args:
      n: images.
      side: of each, pixels.
      folder: for the files.
    """
    samples, outputs, masks = _draw(n, side)
    seconds = {}

    def timed(name, function, *args, **kwargs):
        start = time.perf_counter()
        result = function(*args, **kwargs)
        seconds[name] = time.perf_counter() - start
        return result

    point = OperatingPoint(0.5, 32, 0.3)
    timed(SEARCH, calibrate, outputs.levels, masks.truth)
    evaluated = timed(
        "rows", measure, samples, outputs, masks, point, task="infection", roi="truth"
    )
    summary = timed(
        "intervals", summarize_evaluated, evaluated, task="infection", threshold=0.5,
        untuned=0.5,
    )  # fmt: skip
    timed("files", write_results, folder, "test", evaluated, summary)
    return seconds


def _draw(n: int, side: int) -> tuple[list[Sample], Outputs, SplitMasks]:
    rng = np.random.default_rng(0)
    lung, truth, levels = (np.zeros((n, side, side), np.uint8) for _ in range(3))
    samples, nowhere = [], Path("image.png")
    for i in range(n):
        for x in (0.3, 0.7):
            axes = (side * rng.uniform((0.1, 0.24), (0.16, 0.36))).astype(int).tolist()
            cv2.ellipse(lung[i], (int(x * side), side // 2), axes, 0, 0, 360, 1, -1)
        if i % 2 == 0:
            radius = int(rng.uniform(0.03, 0.3) * side)
            centre = (rng.uniform(0.25, 0.75, 2) * side).astype(int).tolist()
            cv2.circle(truth[i], centre, radius, 1, -1)
            truth[i] &= lung[i]
        noise = rng.normal(0, 1, (side, side)).astype(np.float32)
        smooth = cv2.GaussianBlur(truth[i] + 0.8 * noise, (0, 0), side / 64)
        levels[i] = (255 * smooth).clip(0, 255)
        label = CLASSES[0] if i % 2 == 0 else CLASSES[1 + i // 2 % 2]
        samples.append(Sample(f"{i}.png", label, "Test", nowhere, nowhere, nowhere))
    outputs = Outputs(levels, np.zeros(n), presence_scores(levels))
    return samples, outputs, SplitMasks(truth, lung, None)


def _main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    config = _CONFIG.value
    if config is None:
        sys.exit(
            "--config is missing, for example --config=configs/infection.py:laptop"
        )
    if config.eval.tta_flip:
        sys.exit("config.eval.tta_flip asks each image twice, and the bare pass once")
    found: dict[str, Any] = {
        "devices": jax.device_count(),
        "backend": jax.default_backend(),
        "cores": os.cpu_count(),
        "image_size": config.data.image_size,
        "width": config.model.width,
        "batch": config.train.batch_size,
    }
    print(", ".join(f"{k} {v}" for k, v in found.items()))
    splits = find_samples(config)[1]
    samples = splits["Val"][: _SAMPLES.value]
    rates = compare_pass(config, samples, _ROUNDS.value)
    ratios = [p / f for p, f in zip(rates["pass"], rates["forward"], strict=True)]
    print(f"\n{len(samples)} images, {_ROUNDS.value} rounds")
    print_spread("images/s", rates)
    print_spread("pass over forward", {"ratio": ratios})
    found |= {"ratio": float(np.median(ratios)), "ratios": ratios}
    found |= {f"{name}_images_per_s": float(np.median(v)) for name, v in rates.items()}
    if _FIGURES.value:
        with tempfile.TemporaryDirectory() as folder:
            seconds = time_figures(_FIGURES.value, config.data.image_size, Path(folder))
        print(f"\nfigures of {_FIGURES.value:,} images, seconds")
        figures = sum(v for k, v in seconds.items() if k != SEARCH)
        for name, value in (*seconds.items(), (f"all but the {SEARCH}", figures)):
            print(f"  {name:30}{value:8.1f}")
        found |= {"figures_images": _FIGURES.value, "figures_s": seconds}
    print(json.dumps(found))


# Here, since names of flags are those of the whole process.
if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
    _SAMPLES = flags.DEFINE_integer("images", 256, "Images of the pass")
    _FIGURES = flags.DEFINE_integer("figures", 6788, "Images of the figures; 0: none")
    _ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each side")
    app.run(_main)
