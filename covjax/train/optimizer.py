"""The optimizer: AdamW with warm-up, cosine decay and clipped gradients.

After a transfer, some parameters can be held for the first epochs.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from covjax.config import compile_patterns
from covjax.errors import UsageError
from covjax.types import Params


class HoldState(NamedTuple):
    """What `hold` has to remember.

    Attributes:
      made: number of updates that were made, int32 [].
    """

    made: jax.Array


def make_schedule(
    config: ml_collections.ConfigDict, steps_per_epoch: int
) -> optax.Schedule:
    """Returns step → learning rate: linear from 0 to `lr`, then a cosine to 0.

    Args:
      config: the whole config; `optim` and `train.epochs` are read.
      steps_per_epoch: optimizer steps in one epoch.
    """
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.optim.lr,
        warmup_steps=round(config.optim.warmup_epochs * steps_per_epoch),
        decay_steps=config.train.epochs * steps_per_epoch,
    )


def make_optimizer(
    config: ml_collections.ConfigDict, schedule: optax.Schedule, steps_per_epoch: int
) -> optax.GradientTransformation:
    """Returns AdamW after clipping by the global norm, and holds what is frozen.

    Args:
      config: the whole config; `optim` and `transfer` are read.
      schedule: step → learning rate.
      steps_per_epoch: optimizer steps in one epoch.

    Returns:
      The optimizer. Its `init` raises UsageError if `transfer.frozen` matches no
      parameter, or one that starts anew.

    Raises:
      UsageError: if a pattern that is needed is no regular expression.

    Reference:
      Loshchilov, Hutter: Decoupled weight decay regularization, ICLR 2019.
    """
    clip_norm = config.optim.clip_norm
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    decay = config.optim.weight_decay
    adamw = optax.adamw(schedule, weight_decay=decay, mask=decay_mask)
    epochs = config.transfer.frozen_epochs
    if not epochs:
        return optax.chain(clip, adamw)
    frozen, fresh = config.transfer.frozen, config.transfer.fresh
    return optax.chain(
        clip, adamw, hold(frozen, steps=epochs * steps_per_epoch, fresh=fresh)
    )


def decay_mask(params: Params) -> Params:
    """Marks the leaves that weight decay shrinks: kernels, not biases and norms.

    Args:
      params: tree of arrays.

    Returns:
      The same tree of bool: True for arrays of two axes or more.
    """
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def hold(
    patterns: Sequence[str], *, steps: int, fresh: Sequence[str] = ()
) -> optax.GradientTransformation:
    """Makes the first updates of some parameters 0.

    It comes last, after weight decay. What comes before sees every gradient: the norm
    that is clipped is that of all parameters, as it is logged, and Adam knows the
    moments of the held ones when they are let go. Were their gradients 0 until then,
    Adam, which by then corrects less for moments that began at 0, would make first
    updates of up to 0.1 / sqrt(0.001) = 3.2 times the learning rate.

    Args:
      patterns: of the parameters to hold; regular expressions, searched in names like
        "params/encoder_0/conv_0/kernel".
      steps: number of updates that are 0.
      fresh: such patterns of the parameters that start anew, which are not to be held.

    Raises:
      UsageError: if a pattern is no regular expression; from `init`, if one of
        `patterns` matches no parameter, or one that starts anew.
    """
    held_by = compile_patterns(patterns, "transfer.frozen")
    anew_by = compile_patterns(fresh, "transfer.fresh")

    def init(params: Any) -> HoldState:
        names = [_name(path) for path, _ in jax.tree.leaves_with_path(params)]
        for pattern in held_by:
            held = [name for name in names if pattern.search(name)]
            if not held:
                raise UsageError(
                    f"config.transfer.frozen: {pattern.pattern!r} matches no parameter;"
                    f" they are named like {min(names)}"
                )
            anew = [name for name in held if _matches(name, anew_by)]
            if anew:
                raise UsageError(
                    f"config.transfer.frozen: {pattern.pattern!r} would hold {anew[0]},"
                    " which starts anew (config.transfer.fresh)"
                )
        return HoldState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, HoldState]:
        del params
        free = state.made >= steps
        updates = jax.tree.map_with_path(
            lambda path, leaf: (
                jnp.where(free, leaf, jnp.zeros_like(leaf))
                if _matches(_name(path), held_by)
                else leaf
            ),
            updates,
        )
        return updates, HoldState(state.made + 1)

    return optax.GradientTransformation(init, update)


def _name(path: tuple) -> str:
    """Returns the name of a parameter, as a transfer calls it."""
    return "params/" + jax.tree_util.keystr(path, simple=True, separator="/")


def _matches(name: str, patterns: Iterable[re.Pattern[str]]) -> bool:
    return any(pattern.search(name) for pattern in patterns)
