"""Settings at random: each is refused in a line that names the field, or can be traced.

  python -m experiments.faults.refusals [--combinations=400] [--seed=0]

First every field gets every odd value by itself; then fields are drawn together. What
is accepted is traced as a training step would be (nothing is compiled): whatever is
wrong with it has to be said before that. Ends with a line of JSON; status 1 if any
setting is neither refused nor traced.
"""

import argparse
import functools
import json
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs import infection_best, lung
from covjax.config import flatten, validate_config
from covjax.data.pipeline import make_region
from covjax.errors import UsageError
from covjax.models import make_model
from covjax.train.ema import make_averaging
from covjax.train.losses import make_objective
from covjax.train.optimizer import make_optimizer, make_schedule
from covjax.train.train_state import start_state
from covjax.train.train_step import train_step
from covjax.types import AXIS

ODD = (
    None, True, False, "", "3", "no such", "\n", b"x", 0, -1, 1, 2, 7, 2.5, -0.5, 1e308,
    10**30, math.nan, math.inf, -math.inf, (), (1,), (0.5, 0.5), ("a", 1), ("[",), [],
    {}, set(), 1j, object(),
)  # fmt: skip

# What is drawn together: legal by itself, small enough to trace.
DRAWN: dict[str, tuple[Any, ...]] = {
    "init_from": ("", "runs/lung"),
    "data.task": ("lung", "infection"),
    "data.roi": ("none", "truth", "predicted", "outside"),
    "data.roi_as": ("cut", "channel"),
    "data.roi_dilate": (0, 2),
    "data.lung_run": ("", "runs/lung"),
    "data.image_size": (8, 12, 15, 16, 24, 32),
    "data.positive_share": ((), (0.8, 0.4)),
    "model.width": (1, 3, 4),
    "model.depth": (1, 2, 3, 4),
    "model.norm": ("batch", "group"),
    "model.upsample": ("transpose", "depth_to_space"),
    "model.dropout": (0.0, 0.1),
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": (False, True),
    "model.intensity": ("unit", "standard", "equal"),
    "model.residual": (False, True),
    "model.presence_head": (False, True),
    "model.deep_supervision": (0, 1, 2, 3),
    "loss.dice": (0.0, 0.5),
    "loss.bce": (0.0, 0.5),
    "loss.focal": (0.0, 0.5),
    "loss.tversky": (0.0, 0.5),
    "loss.batch_dice": (False, True),
    "loss.presence": (0.0, 0.5),
    "loss.empty_weight": (0.0, 0.5, 1.0),
    "optim.average": ("none", "ema", "epochs"),
    "optim.average_epochs": (1, 3),
    "optim.warmup_epochs": (0.0, 1.0, 2.0),
    "optim.clip_norm": (0.0, 1.0),
    "train.epochs": (1, 2, 4),
    "train.batch_size": (1, 2),
    "train.on_nan": ("stop", "skip"),
    "transfer.frozen": ((), ("^params/encoder_0",)),
    "transfer.frozen_epochs": (0, 1),
}
STEPS_PER_EPOCH = 3


def is_refused(config: ml_collections.ConfigDict) -> bool:
    """Tells whether a config is refused; if so, it has to be in lines of a field.

    Raises:
      AssertionError: if what is said names no field, or is longer than two lines.
      Exception: whatever else the checks raise, which they must not.
    """
    try:
        validate_config(config)
    except UsageError as error:
        said = str(error)
        assert "config." in said and said.count("\n") < 2, said
        return True
    return False


def trace(config: ml_collections.ConfigDict) -> None:
    """Traces a training step of a config; raises what tracing raises."""
    schedule = make_schedule(config, STEPS_PER_EPOCH)
    averaging = make_averaging(config, STEPS_PER_EPOCH)
    side, channels = config.data.image_size, make_region(config.data).channels
    batch = {
        "image": jnp.zeros((config.train.batch_size, side, side, channels), jnp.uint8),
        "mask": jnp.zeros((config.train.batch_size, side, side, 1), jnp.uint8),
    }
    step = functools.partial(
        train_step,
        objective=make_objective(**config.loss),
        averaging=averaging,
        skip=config.train.on_nan == "skip",
    )

    model = make_model(config)
    optimizer = make_optimizer(config, schedule, STEPS_PER_EPOCH)

    def start_and_step(key, batch):
        variables = model.init(key, batch["image"][:1] / 255, train=False)
        statistics = variables.get("batch_stats", {})
        state = start_state(model.apply, optimizer, variables["params"], statistics)
        if averaging is not None:
            state = state.replace(averaged=state.variables())
        # The axis of the devices, of one device.
        one = jax.tree.map(lambda a: a[None], batch)
        return jax.vmap(step, in_axes=(None, 0, None), axis_name=AXIS)(state, one, key)

    jax.eval_shape(start_and_step, jax.random.key(0), batch)


def check_fields() -> tuple[int, list[str]]:
    """Gives every field every odd value.

    Returns:
      How many were refused; and the settings that were met by anything else than a
      line, or acceptance.
    """
    refused, faults = 0, []
    for name in flatten(lung.get_config("phantom")):
        for value in ODD:
            config = lung.get_config("phantom")
            with config.ignore_type():
                config.update_from_flattened_dict({name: value})
            try:
                refused += is_refused(config)
            except Exception as error:
                faults.append(f"{name} = {value!r}: {error!r}")
    return refused, faults


def check_combinations(number: int, seed: int) -> tuple[int, int, list[str]]:
    """Draws fields together.

    Returns:
      How many combinations were refused, how many traced; and those that were neither.
    """
    rng = np.random.default_rng(seed)
    refused, traced, faults = 0, 0, []
    for k in range(number):
        stage = (lung, infection_best)[k % 2]
        config = stage.get_config("phantom")
        config.model.width, config.data.image_size = 2, 16
        config.init_from = "runs/lung" if k % 2 else ""
        # A few fields at a time: of all drawn at once nearly every one is refused.
        names = rng.choice(sorted(DRAWN), size=rng.integers(1, 7), replace=False)
        drawn = {str(n): DRAWN[n][rng.integers(len(DRAWN[n]))] for n in names}
        with config.ignore_type():
            config.update_from_flattened_dict(drawn)
        try:
            if is_refused(config):
                refused += 1
            else:
                trace(config)
                traced += 1
        except Exception as error:
            faults.append(f"{config.data.task}: {drawn}: {error!r}"[:500])
    return refused, traced, faults


def main(argv: list[str] | None = None) -> int:
    """Runs both; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.faults.refusals")
    parser.add_argument("--combinations", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    single, faults = check_fields()
    refused, traced, more = check_combinations(arguments.combinations, arguments.seed)
    for fault in faults + more:
        print(fault)
    counts = {
        "fields_refused": single,
        "combinations_refused": refused,
        "combinations_traced": traced,
        "faults": len(faults + more),
    }
    print(json.dumps({"refusals": counts}))
    return int(bool(faults or more))


if __name__ == "__main__":
    sys.exit(main())
