"""The optimizer: AdamW with warm-up, cosine decay and clipped gradients."""

import jax
import ml_collections
import optax

from covjax.types import Params


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
    config: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Returns AdamW after clipping by the global norm.

    Args:
      config: the whole config; `optim` is read.
      schedule: step → learning rate.

    Reference:
      Loshchilov, Hutter: Decoupled weight decay regularization, ICLR 2019.
    """
    clip_norm = config.optim.clip_norm
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    decay = config.optim.weight_decay
    return optax.chain(clip, optax.adamw(schedule, weight_decay=decay, mask=decay_mask))


def decay_mask(params: Params) -> Params:
    """Marks the leaves that weight decay shrinks: kernels, not biases and norms.

    Args:
      params: tree of arrays.

    Returns:
      The same tree of bool: True for arrays of two axes or more.
    """
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
