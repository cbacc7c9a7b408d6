"""The three steps, as pure functions of one device's share of a batch.

They meet the other devices through the axis `AXIS` (`parallel.py` compiles them).
"""

import jax
import jax.numpy as jnp
import optax

from covjax.metrics.counts import confusion_counts, to_levels
from covjax.train_state import TrainState
from covjax.types import AXIS, Batch, LossFn, Metrics


def train_step(
    state: TrainState, batch: Batch, rng: jax.Array, *, loss_fn: LossFn
) -> tuple[TrainState, Metrics]:
    """Takes one optimizer step on the mean loss of the batch of all devices.

    Args:
      state: the state before, the same on every device.
      batch: this device's share; a training batch has no padding.
      rng: the run's dropout key; the step and the device are folded in.
      loss_fn: (logits, masks) → losses [B].

    Returns:
      The state after, and the means over all devices: `loss`, and `grad_norm` before
      clipping.
    """
    key = jax.random.fold_in(rng, state.step)
    key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))

    def mean_loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updates = state.apply_fn(
            variables,
            scale_pixels(batch["image"]),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        losses = loss_fn(logits, batch["mask"].astype(jnp.float32))
        return jnp.mean(losses), updates.get("batch_stats", {})

    (loss, batch_stats), grads = jax.value_and_grad(mean_loss, has_aux=True)(
        state.params
    )
    # Every device has as many images, so the mean of means is the mean.
    grads, loss = jax.lax.pmean((grads, loss), AXIS)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
    return state.apply_gradients(grads=grads, batch_stats=batch_stats), metrics


def eval_step(
    state: TrainState, batch: Batch, *, loss_fn: LossFn, threshold: float
) -> dict[str, jax.Array]:
    """Scores every image of the batch, padding included; averages nothing.

    Args:
      state: parameters and batch statistics are read.
      batch: this device's share.
      loss_fn: (logits, masks) → losses [B].
      threshold: a pixel is foreground if level / 255 is above it.

    Returns:
      `loss` float32 [B], `counts` int32 [B, 4] (TP, FP, FN, TN), and the batch's
      `index` and `weight`.
    """
    logits = _logits(state, batch)
    return {
        "loss": loss_fn(logits, batch["mask"].astype(jnp.float32)),
        "counts": confusion_counts(logits, batch["mask"], threshold=threshold),
        "index": batch["index"],
        "weight": batch["weight"],
    }


def predict_step(
    state: TrainState, batch: Batch, *, loss_fn: LossFn
) -> dict[str, jax.Array]:
    """Returns what an evaluation keeps of every image, padding included.

    Args:
      state: parameters and batch statistics are read.
      batch: this device's share.
      loss_fn: (logits, masks) → losses [B].

    Returns:
      `levels` uint8 [B, H, W], probabilities times 255, rounded; `loss` float32 [B];
      and the batch's `index` and `weight`.
    """
    logits = _logits(state, batch)
    return {
        "levels": to_levels(logits)[..., 0],
        "loss": loss_fn(logits, batch["mask"].astype(jnp.float32)),
        "index": batch["index"],
        "weight": batch["weight"],
    }


def scale_pixels(images: jax.Array) -> jax.Array:
    """Maps uint8 0 to 255 to float32 0 to 1; the black outside of a region stays 0."""
    return images.astype(jnp.float32) / 255.0


def _logits(state: TrainState, batch: Batch) -> jax.Array:
    return state.apply_fn(state.variables(), scale_pixels(batch["image"]), train=False)
