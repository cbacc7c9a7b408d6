"""The three steps, as pure functions of one device's share of a batch.

They meet the other devices through the axis `AXIS` (`parallel.py` compiles them).
"""

import jax
import jax.numpy as jnp
import optax

from covjax.metrics.counts import confusion_counts, to_levels
from covjax.train.ema import Rate, average
from covjax.train.train_state import TrainState
from covjax.types import AXIS, Batch, LossFn, Metrics, Objective, Prediction


def train_step(
    state: TrainState,
    batch: Batch,
    rng: jax.Array,
    *,
    objective: Objective,
    averaging: Rate | None = None,
    skip: bool = False,
) -> tuple[TrainState, Metrics]:
    """Takes one optimizer step on the mean objective of the batch of all devices.

    Args:
      state: the state before, the same on every device.
      batch: this device's share; a training batch has no padding.
      rng: the run's dropout key; the step and the device are folded in.
      objective: (prediction, masks) → what is lowered, [B].
      averaging: number of steps taken → how far the averages move to the newest
        weights; None: the state holds no averages.
      skip: whether an update that is not finite is dropped: only the step is counted.

    Returns:
      The state after, and the means over all devices: `loss`, and `grad_norm` before
      clipping; `finite` is 1 if these two and the new weights and statistics are, 0 if
      one of them is not.
    """
    key = jax.random.fold_in(rng, state.step)
    key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))

    def mean_loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        prediction, updates = state.apply_fn(
            variables,
            scale_pixels(batch["image"]),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        losses = objective(prediction, batch["mask"].astype(jnp.float32))
        return jnp.mean(losses), updates.get("batch_stats", {})

    (loss, batch_stats), grads = jax.value_and_grad(mean_loss, has_aux=True)(
        state.params
    )
    # Every device has as many images, so the mean of means is the mean.
    grads, loss = jax.lax.pmean((grads, loss), AXIS)
    norm = optax.tree.norm(grads)
    new = state.apply_gradients(grads=grads, batch_stats=batch_stats)
    if averaging is not None:
        rate = averaging(jnp.asarray(new.step))
        new = new.replace(averaged=average(new.averaged, new.variables(), rate))
    sums = jnp.stack([loss, norm, optax.tree.norm(new.variables())])
    finite = jnp.isfinite(sums).all()
    if skip:
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        new = kept.replace(step=new.step)
    metrics = {"loss": loss, "grad_norm": norm, "finite": finite.astype(jnp.float32)}
    return new, metrics


def eval_step(
    state: TrainState,
    batch: Batch,
    *,
    loss_fn: LossFn,
    threshold: float,
    flip: bool = False,
) -> dict[str, jax.Array]:
    """Scores every image of the batch, padding included; averages nothing.

    Args:
      state: the variables that are evaluated are read.
      batch: this device's share.
      loss_fn: (logits, masks) → losses [B].
      threshold: a pixel is foreground if level / 255 is above it.
      flip: whether the mirror image is asked as well.

    Returns:
      `loss` float32 [B], `counts` int32 [B, 4] (TP, FP, FN, TN), and the batch's
      `index` and `weight`.
    """
    logits = predict(state, batch["image"], flip=flip).logits
    return {
        "loss": loss_fn(logits, batch["mask"].astype(jnp.float32)),
        "counts": confusion_counts(logits, batch["mask"], threshold=threshold),
        "index": batch["index"],
        "weight": batch["weight"],
    }


def predict_step(
    state: TrainState, batch: Batch, *, loss_fn: LossFn, flip: bool = False
) -> dict[str, jax.Array]:
    """Returns what an evaluation keeps of every image, padding included.

    Args:
      state: the variables that are evaluated are read.
      batch: this device's share.
      loss_fn: (logits, masks) → losses [B].
      flip: whether the mirror image is asked as well.

    Returns:
      `levels` uint8 [B, H, W], probabilities times 255, rounded; `loss` float32 [B];
      with a presence head `presence`, its probability, float32 [B]; and the batch's
      `index` and `weight`.
    """
    prediction = predict(state, batch["image"], flip=flip)
    kept = {
        "levels": to_levels(prediction.logits)[..., 0],
        "loss": loss_fn(prediction.logits, batch["mask"].astype(jnp.float32)),
        "index": batch["index"],
        "weight": batch["weight"],
    }
    if prediction.presence is not None:
        kept["presence"] = jax.nn.sigmoid(prediction.presence)
    return kept


def scale_pixels(images: jax.Array) -> jax.Array:
    """Maps uint8 0 to 255 to float32 0 to 1; the black outside of a region stays 0."""
    return images.astype(jnp.float32) / 255.0


def predict(state: TrainState, images: jax.Array, *, flip: bool) -> Prediction:
    """Returns what a network says of images; it is not training.

    Args:
      state: the variables that are evaluated are read.
      images: what the network is shown, uint8 [B, H, W, C].
      flip: whether the mirror image is asked as well: what is returned is the mean.
    """
    pixels = scale_pixels(images)
    seen = state.apply_fn(state.evaluated(), pixels, train=False)
    if not flip:
        return seen
    mirrored = state.apply_fn(state.evaluated(), pixels[:, :, ::-1], train=False)
    mirrored = mirrored._replace(logits=mirrored.logits[:, :, ::-1])
    return jax.tree.map(lambda a, b: (a + b) / 2, seen, mirrored)
