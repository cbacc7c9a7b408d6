"""The weights that are evaluated: an average over training, kept as it runs.

Both averages follow one rule, after every update of the weights:

    averaged ← averaged + α(step) * (weights - averaged)

Batch statistics belong to the weights that saw the batches: they are averaged likewise.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import ml_collections

# Number of updates done, the newest included, int32 [] → α, float32 [] from 0 to 1.
Rate = Callable[[jax.Array], jax.Array]
Tree = TypeVar("Tree", bound=Any)


def make_averaging(
    config: ml_collections.ConfigDict, steps_per_epoch: int
) -> Rate | None:
    """Returns the α of every step; None where nothing is averaged.

    Args:
      config: the whole config; `optim.average`, `optim.ema_decay`,
        `optim.average_epochs` and `train.epochs` are read.
      steps_per_epoch: optimizer steps in one epoch.
    """
    optim = config.optim
    if optim.average == "ema":
        return lambda step: ema_rate(step, decay=optim.ema_decay)
    if optim.average == "epochs":
        first = config.train.epochs - optim.average_epochs + 1
        return lambda step: tail_rate(
            step, first=first, steps_per_epoch=steps_per_epoch
        )
    return None


def ema_rate(step: jax.Array, *, decay: float) -> jax.Array:
    """Returns the α of an exponential moving average.

        α = 1 - min(decay, (1 + step) / (10 + step))

    It forgets faster at first: under a decay of 0.998 alone, the weights that training
    began with would still make up 0.998^1000 = 14 % of the average after 1000 steps.

    Args:
      step: number of updates done, the newest included.
      decay: from 0 to 1, reached after about 9 / (1 - decay) steps.

    Reference:
      tf.train.ExponentialMovingAverage of TensorFlow, with its `num_updates`.
    """
    return 1.0 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def tail_rate(step: jax.Array, *, first: int, steps_per_epoch: int) -> jax.Array:
    """Returns the α of the mean of the weights at the ends of the last epochs.

    α is 1 up to the end of epoch `first`, so that the average is the weights
    themselves; then 1 / j at the end of the j-th epoch from there, and 0 within an
    epoch.

    Args:
      step: number of updates done, the newest included.
      first: the first epoch whose end counts; epochs are counted from 1.
      steps_per_epoch: optimizer steps in one epoch.

    Reference:
      Izmailov et al., Averaging weights leads to wider optima and better
      generalization, 2018 (with the learning rate of the run as it is).
    """
    ended = step // steps_per_epoch - first + 1  # of the epochs that count
    at_end = step % steps_per_epoch == 0
    inside = jnp.where(at_end, 1.0 / jnp.maximum(ended, 1), 0.0)
    return jnp.where(step <= first * steps_per_epoch, 1.0, inside)


def average(averaged: Tree, newest: Tree, alpha: jax.Array) -> Tree:
    """Returns `averaged + alpha * (newest - averaged)`, leaf by leaf.

    An alpha of 1 gives the bits of `newest` and one of 0 those of `averaged`, which
    the sum, rounded, would not.

    Args:
      averaged: tree of arrays; their dtypes are kept.
      newest: the same tree.
      alpha: from 0 to 1, float32 [].
    """

    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        between = (old + alpha * (new - old)).astype(old.dtype)
        return jnp.where(alpha >= 1, new, jnp.where(alpha <= 0, old, between))

    return jax.tree.map(move, averaged, newest)
