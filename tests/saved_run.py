"""A run's folder with checkpoints of random weights: nothing was trained."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import optax

from covjax.config import save_config
from covjax.models import make_model
from covjax.train.checkpoint import Checkpoints
from covjax.train.run_folder import CONFIG
from covjax.train.train_state import TrainState, start_state

SIDE = 16
DICE = {3: 0.9, 5: 0.4}  # of Val, after these steps: both are kept
IMAGES = np.random.default_rng(0).random((2, SIDE, SIDE, 1), np.float32)


class Run(NamedTuple):
    """A run's folder, and what was written into it."""

    folder: Path
    config: ml_collections.ConfigDict
    states: dict[int, TrainState]


def make_state(config: ml_collections.ConfigDict, step: int) -> TrainState:
    """A state in the midst of training, every leaf of it random."""
    rng = np.random.default_rng(step)
    model = make_model(config)
    shapes = jax.eval_shape(
        lambda key: model.init(key, IMAGES, train=False), jax.random.key(0)
    )
    variables = jax.tree.map(
        lambda leaf: rng.uniform(0.1, 1, leaf.shape).astype(np.float32), shapes
    )
    state = start_state(
        model.apply,
        optax.adam(1e-3),
        variables["params"],
        variables.get("batch_stats", {}),
    )
    if config.optim.average != "none":
        averaged = jax.tree.map(lambda leaf: 0.5 * leaf, state.variables())
        state = state.replace(averaged=averaged)
    return state.replace(step=np.int32(step))


def write_run(folder: Path, config: ml_collections.ConfigDict) -> Run:
    config.data.image_size = SIDE
    config.model.width, config.model.depth = 2, 1
    states = {step: make_state(config, step) for step in DICE}
    with Checkpoints(folder) as checkpoints:
        for step, state in states.items():
            checkpoints.save(state, dice=DICE[step])
    save_config(config, folder / CONFIG, {"commit": "1f3a"})
    return Run(folder, config, states)


@functools.partial(jax.jit, static_argnums=0)
def apply(apply_fn: Callable[..., Any], variables: dict[str, Any]) -> jax.Array:
    return apply_fn(variables, IMAGES, train=False).logits


def outputs(state: TrainState) -> np.ndarray:
    return np.asarray(apply(state.apply_fn, state.variables()))
