"""What a training step turns into the next: parameters and all that goes with them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.training import train_state

from covjax import parallel
from covjax.models.unet import UNet
from covjax.types import Params


class TrainState(train_state.TrainState):
    """Step, parameters, optimizer state (flax's), and batch statistics.

    Attributes:
      batch_stats: running means and variances of the batch norms; empty without them.
      averaged: averages of both over the steps, as `variables` returns them; None where
        none are taken.
    """

    batch_stats: Params
    averaged: dict[str, Params] | None = None

    def variables(self) -> dict[str, Params]:
        """Returns what `apply_fn` takes: parameters and batch statistics."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    def evaluated(self) -> dict[str, Params]:
        """Returns the variables by which the run is judged: the averages, if any."""
        return self.variables() if self.averaged is None else self.averaged


def create_train_state(
    model: UNet,
    tx: optax.GradientTransformation,
    rng: jax.Array,
    *,
    image_size: int,
    channels: int = 1,
) -> TrainState:
    """Returns the state before the first step, on one device; it averages nothing.

    Args:
      model: maps float [B, image_size, image_size, channels] to logits.
      tx: the optimizer.
      rng: key of the initial parameters.
      image_size: side of an image, pixels.
      channels: of what the model is shown.
    """
    image = jnp.zeros((1, image_size, image_size, channels))
    init = parallel.compile_once(lambda key: model.init(key, image, train=False))
    variables = init(rng)
    return start_state(
        model.apply, tx, variables["params"], variables.get("batch_stats", {})
    )


def inference_state(
    apply_fn: Callable[..., Any], params: Any, batch_stats: Any
) -> TrainState:
    """Returns a state that computes outputs and has no optimizer to train it."""
    return start_state(apply_fn, optax.identity(), params, batch_stats)


def start_state(
    apply_fn: Callable[..., Any],
    tx: optax.GradientTransformation,
    params: Any,
    batch_stats: Any,
) -> TrainState:
    """Returns the state of step 0 with the given parameters and statistics."""
    return TrainState.create(
        apply_fn=apply_fn,
        tx=tx,
        params=params,
        batch_stats=batch_stats,
    )
