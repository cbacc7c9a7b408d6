"""How much of training is the step itself.

  python -m experiments.benchmarks.loop --config=configs/lung.py:laptop

Images a second of `train_and_evaluate`, as a user starts it, on the config's images:
reading, augmentation, transfer, the progress bar and the log, over --steps steps after
the first --skip (which compile, and fill the queues), within one epoch; against the
same step on a batch that lies on the device. Both sides take turns, --rounds times;
--config.augment.where says where images are augmented. The passes over Val and the
checkpoints, at an epoch's end, are no part of it.

The last line is a JSON object; "ratio" is the loop over the bare step.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import ml_collections
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from covjax.data.source import find_samples
from covjax.errors import Failure
from covjax.run import train_and_evaluate
from covjax.train.metric_writer import RunLog
from experiments.benchmarks.bare_steps import BareSteps
from experiments.benchmarks.spread import print_spread


class _Enough(Exception):
    """The loop has taken the steps that are measured."""


class _Clock(RunLog):
    """The run's log, which also notes when steps were done."""

    seconds: float

    def advance(self, step: int, loss: float) -> None:
        """Moves the bar, starts and stops the clock."""
        super().advance(step, loss)
        if step == _SKIP.value:
            _Clock.seconds = -time.perf_counter()
        if step == _SKIP.value + _STEPS.value:
            _Clock.seconds += time.perf_counter()
            raise _Enough


def loop_rate(config: ml_collections.ConfigDict) -> float:
    """Returns the images a second of training, started anew.

    Raises:
      UsageError: if the config cannot be trained.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("covjax.train.train.RunLog", _Clock),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.suppress(_Enough),
    ):
        train_and_evaluate(config, Path(folder) / "run")
        sys.exit(f"the run ended before step {_SKIP.value + _STEPS.value}")
    return config.train.batch_size * _STEPS.value / _Clock.seconds


def _main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    config = _CONFIG.value
    if config is None:
        sys.exit("--config is missing, for example --config=configs/lung.py:laptop")
    found: dict[str, Any] = {
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "image_size": config.data.image_size,
        "width": config.model.width,
        "batch": config.train.batch_size,
        "where": config.augment.where,
        "cache": bool(config.data.cache),
    }
    print(", ".join(f"{k} {v}" for k, v in found.items()))
    steps = len(find_samples(config)[1]["Train"]) // config.train.batch_size
    if _SKIP.value + _STEPS.value > steps:
        sys.exit(f"--skip and --steps go beyond the {steps} steps of an epoch")
    with tempfile.TemporaryDirectory() as cache:
        # Else every turn of the loop would compile its step anew.
        jax.config.update("jax_compilation_cache_dir", cache)
        bare = BareSteps(config)
        bare.run("train", _SKIP.value)
        rates: dict[str, list[float]] = {"step": [], "loop": []}
        for _round in range(_ROUNDS.value):
            try:
                rates["loop"].append(loop_rate(config))
            except Failure as error:
                sys.exit(f"{error}")
            rates["step"].append(bare.run("train", _STEPS.value))
    ratios = [a / b for a, b in zip(rates["loop"], rates["step"], strict=True)]
    print()
    print_spread("images/s", rates)
    print_spread("loop over step", {"ratio": ratios})
    found |= {"ratio": float(np.median(ratios)), "ratios": ratios}
    found |= {f"{k}_images_per_s": float(np.median(v)) for k, v in rates.items()}
    print(json.dumps(found))


# Here, since names of flags are those of the whole process.
if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
    _STEPS = flags.DEFINE_integer("steps", 40, "Steps of a turn")
    _SKIP = flags.DEFINE_integer(
        "skip", 10, "Steps of the loop before the clock starts"
    )
    _ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each side")
    app.run(_main)
