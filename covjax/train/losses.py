"""Loss functions: pure, one value an image, no averaging inside."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from covjax.types import AXIS, LossFn, Objective, Prediction

_PIXELS = (1, 2, 3)  # the axes of one image in [B, H, W, 1]


def soft_dice_loss(
    logits: jax.Array,
    masks: jax.Array,
    *,
    smooth: float = 1.0,
    batch: bool = False,
    axis_name: str | None = None,
) -> jax.Array:
    """Soft Dice loss of every image, before any averaging.

    With p = sigmoid(logits) and t = masks, summed over the pixels of one image:

        loss = 1 - (2 * sum(p * t) + smooth) / (sum(p) + sum(t) + smooth)

    Sums run in float32, whatever the dtype of the logits.

    An image without foreground has a loss near 1 until almost every pixel is blank,
    and so hardly a gradient. Over the batch, the same three sums run over the pixels
    of all its images, and a false pixel costs as much in an empty image as elsewhere.

    Example:
      >>> logits = jnp.full((1, 2, 2, 1), 100.0)  # every pixel is foreground
      >>> masks = jnp.array([1.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> loss = soft_dice_loss(logits, masks)  # 1 - (2 * 2 + 1) / (4 + 2 + 1)
      >>> print(f"{loss[0]:.4f}")
      0.2857

    Args:
      logits: unnormalised scores, float, [B, H, W, 1].
      masks: targets in {0, 1}, or shares of foreground between, same shape.
      smooth: pixels (> 0) added to both sides; at 0 an empty pair would be 0 / 0.
      batch: whether the sums run over the whole batch instead of each image.
      axis_name: of the devices that share the batch (see `region_sums`); None: it lies
        on one.

    Returns:
      Losses in [0, 1], float32, [B]; over the batch, the same for every image. The
      caller weights and averages.

    Raises:
      ValueError: if the shapes differ or `smooth` is not positive.

    Reference:
      Milletari et al., V-Net, 2016 (without the squares in the denominator).
    """
    _check_smooth(smooth)
    overlap, output, truth = region_sums(
        logits, masks, batch=batch, axis_name=axis_name
    )
    return 1.0 - (2.0 * overlap + smooth) / (output + truth + smooth)


def tversky_loss(
    logits: jax.Array,
    masks: jax.Array,
    *,
    missed: float = 0.7,
    smooth: float = 1.0,
    batch: bool = False,
    axis_name: str | None = None,
) -> jax.Array:
    """Tversky loss of every image: a Dice loss that weighs misses and false alarms.

    With the sums TP of p * t, FN of (1 - p) * t and FP of p * (1 - t):

        loss = 1 - (2 * TP + smooth)
                   / (2 * (TP + missed * FN + (1 - missed) * FP) + smooth)

    Both sides are twice those of the paper, so that `smooth` counts as in
    `soft_dice_loss`, which is the case of missed = 0.5. As TP + FN = sum(t) and
    TP + FP = sum(p), the denominator is computed as
    2 * (missed * sum(t) + (1 - missed) * sum(p)) + smooth.

    Example:
      >>> logits = jnp.full((1, 2, 2, 1), 100.0)  # TP = FP = 2, FN = 0
      >>> masks = jnp.array([1.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> loss = tversky_loss(logits, masks, missed=0.75)  # 1 - (4 + 1) / (5 + 1)
      >>> print(f"{loss[0]:.4f}")
      0.1667

    Args:
      logits: unnormalised scores, float, [B, H, W, 1].
      masks: targets in {0, 1}, or shares of foreground between, same shape.
      missed: weight of missed pixels, from 0 to 1; false ones weigh 1 - missed.
      smooth: pixels (> 0) added to both sides; at 0 an empty pair would be 0 / 0.
      batch: whether the sums run over the whole batch instead of each image.
      axis_name: of the devices that share the batch (see `region_sums`); None: it lies
        on one.

    Returns:
      Losses in [0, 1], float32, [B]; over the batch, the same for every image.

    Raises:
      ValueError: if the shapes differ, `missed` is no share or `smooth` not positive.

    Reference:
      Salehi et al., Tversky loss function for image segmentation using 3D fully
      convolutional deep networks, 2017 (whose beta is `missed`).
    """
    _check_smooth(smooth)
    if not 0 <= missed <= 1:
        raise ValueError(f"missed must be from 0 to 1, not {missed}")
    overlap, output, truth = region_sums(
        logits, masks, batch=batch, axis_name=axis_name
    )
    size = 2.0 * (missed * truth + (1.0 - missed) * output)
    return 1.0 - (2.0 * overlap + smooth) / (size + smooth)


def region_sums(
    logits: jax.Array, masks: jax.Array, *, batch: bool, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums p * t, p and t, with p = sigmoid(logits) and t = masks, in float32.

    Over the batch, each image is given the sums of all images, of all devices if the
    batch is shared by a pmap. The gradient of a loss L of such sums, which every device
    computes, is right if the gradients of the devices are averaged, as the train step
    does. For the transpose of a psum is a psum: what device d differentiates is the sum
    of the losses of all D devices, by its own copy of the parameters. The mean of that
    over d is 1 / D times the gradient of D * L by the parameters that all share.
    (`jax.shard_map` that checks which values vary counts otherwise: it would be D times
    too large.)

    Args:
      logits: unnormalised scores, float, [B, H, W, 1].
      masks: targets from 0 to 1, same shape.
      batch: whether to sum over the whole batch instead of each image.
      axis_name: of the devices that share the batch; None: it lies on one.

    Returns:
      Overlap, output and truth, in pixels, each float32 [B].

    Raises:
      ValueError: if the shapes differ.
    """
    _check_shapes(logits, masks)
    p = jax.nn.sigmoid(logits.astype(jnp.float32))
    t = masks.astype(jnp.float32)
    overlap, output, truth = (jnp.sum(x, axis=_PIXELS) for x in (p * t, p, t))
    if not batch:
        return overlap, output, truth
    sums = jnp.stack([overlap, output, truth]).sum(axis=1)
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    of_all = jnp.broadcast_to(sums[:, None], (3, logits.shape[0]))
    return of_all[0], of_all[1], of_all[2]


def sigmoid_cross_entropy(logits: jax.Array, masks: jax.Array) -> jax.Array:
    """Binary cross entropy of every image, averaged over its pixels.

    With p = sigmoid(logits) and t = masks, in the form that does not overflow:

        loss = mean(-t * log(p) - (1 - t) * log(1 - p))

    Args:
      logits: unnormalised scores, float, [B, H, W, 1].
      masks: targets in {0, 1}, or shares of foreground between, same shape.

    Returns:
      Losses in nats, float32, [B].

    Raises:
      ValueError: if the shapes differ.
    """
    _check_shapes(logits, masks)
    losses = optax.sigmoid_binary_cross_entropy(
        logits.astype(jnp.float32), masks.astype(jnp.float32)
    )
    return jnp.mean(losses, axis=_PIXELS)


def focal_loss(logits: jax.Array, masks: jax.Array, *, gamma: float = 2.0) -> jax.Array:
    """Focal loss of every image: a cross entropy that makes little of easy pixels.

    With p = sigmoid(logits) and t = masks:

        loss = mean(-t * (1 - p)^gamma * log(p) - (1 - t) * p^gamma * log(1 - p))

    The powers are taken of logarithms, so that neither they nor their gradients
    overflow or become 0 * inf, whatever gamma.

    Example:
      >>> masks = jnp.ones((1, 2, 2, 1))
      >>> loss = focal_loss(jnp.zeros((1, 2, 2, 1)), masks)  # (1/2)^2 * log(2)
      >>> print(f"{loss[0]:.4f}")
      0.1733

    Args:
      logits: unnormalised scores, float, [B, H, W, 1].
      masks: targets in {0, 1}, or shares of foreground between, same shape.
      gamma: at least 0, which is the cross entropy.

    Returns:
      Losses in nats, float32, [B].

    Raises:
      ValueError: if the shapes differ or `gamma` is negative.

    Reference:
      Lin et al., Focal loss for dense object detection, ICCV 2017 (without alpha).
    """
    _check_shapes(logits, masks)
    if gamma < 0:
        raise ValueError(f"gamma must be at least 0, not {gamma}")
    x, t = logits.astype(jnp.float32), masks.astype(jnp.float32)
    log_p, log_not_p = jax.nn.log_sigmoid(x), jax.nn.log_sigmoid(-x)
    losses = -t * jnp.exp(gamma * log_not_p) * log_p
    losses -= (1.0 - t) * jnp.exp(gamma * log_p) * log_not_p
    return jnp.mean(losses, axis=_PIXELS)


def presence_loss(logits: jax.Array, masks: jax.Array) -> jax.Array:
    """Binary cross entropy of the claim that an image has any foreground.

    Args:
      logits: of the claim, float, [B].
      masks: targets, [B, H, W, 1]; the claim is true if any is above 0.

    Returns:
      Losses in nats, float32, [B].

    Raises:
      ValueError: if there is not one logit an image.
    """
    if logits.shape != masks.shape[:1]:
        raise ValueError(
            f"there must be one logit an image: {logits.shape}, {masks.shape}"
        )
    truth = jnp.any(masks > 0, axis=_PIXELS).astype(jnp.float32)
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), truth)


def make_loss(
    *,
    dice: float,
    bce: float,
    focal: float = 0.0,
    focal_gamma: float = 2.0,
    tversky: float = 0.0,
    tversky_beta: float = 0.7,
    batch_dice: bool = False,
) -> LossFn:
    """Returns the weighted sum of the pixel losses; each image's by default.

    A term of weight 0 is not computed. The study's lung loss is dice=1, bce=0; its
    hybrid infection loss is 0.5, 0.5.

    Args:
      dice: weight of the soft Dice loss, >= 0.
      bce: weight of the binary cross entropy, >= 0.
      focal: weight of the focal loss, >= 0.
      focal_gamma: its gamma.
      tversky: weight of the Tversky loss, >= 0.
      tversky_beta: its weight of missed pixels.
      batch_dice: whether Dice and Tversky sum over the batch of all devices of the axis
        `AXIS` instead of each image; such a loss can be computed there alone.

    Raises:
      ValueError: if a weight is negative or all are 0.
    """
    weights = {"dice": dice, "bce": bce, "focal": focal, "tversky": tversky}
    if min(weights.values()) < 0 or not any(weights.values()):
        raise ValueError(f"loss weights must be >= 0, one of them > 0: {weights}")
    axis_name = AXIS if batch_dice else None
    regions = {"batch": batch_dice, "axis_name": axis_name}
    losses: dict[str, LossFn] = {
        "dice": functools.partial(soft_dice_loss, **regions),
        "bce": sigmoid_cross_entropy,
        "focal": functools.partial(focal_loss, gamma=focal_gamma),
        "tversky": functools.partial(tversky_loss, missed=tversky_beta, **regions),
    }
    terms = [(weight, losses[name]) for name, weight in weights.items() if weight > 0]
    return functools.partial(_weighted_sum, terms=terms)


def make_objective(
    *,
    batch_dice: bool = False,
    presence: float = 0.0,
    empty_weight: float = 1.0,
    **terms: float,
) -> Objective:
    """Returns what training minimises, for every image of a batch.

    With L the loss of `make_loss`, and K coarser levels that have a head:

        objective = b * sum(w_k * L(logits_k, masks_k), k = 0 to K)
                    + presence * presence_loss

    with w_k proportional to 1, 1/2, 1/4, …, of sum 1 (without coarser levels, w is 1),
    and b = `empty_weight` for an image whose mask is empty, else 1.
    masks_k holds the share of foreground in each block of 2^k x 2^k pixels: no lesion
    is too small to count. All pixel losses are linear in it, or in its sums; so level
    k is judged as if its logits were spread over their blocks, against the mask in full
    (and `smooth` counts pixels of the level).

    Args:
      batch_dice: whether Dice and Tversky sum over the batch (see `make_loss`).
      presence: weight of the presence head's loss, >= 0.
      empty_weight: weight of images without foreground in the pixel losses, from 0 to
        1. With less than 1, the masks learn what to outline where there is something,
          and the
        presence head is left to tell where there is nothing.
      **terms: the other arguments of `make_loss`.

    Raises:
      ValueError: if a weight is negative, or those of `make_loss` are all 0; if
        `empty_weight` is no share, or below 1 with sums over the batch, which are of no
        one image; from the objective, if there is a weight for the presence head and no
        such head.

    Reference:
      Isensee et al., nnU-Net, Nature Methods 2021 (the weights of the levels).
    """
    if presence < 0:
        raise ValueError(f"loss weights must be >= 0: {presence=}")
    if not 0 <= empty_weight <= 1 or (empty_weight < 1 and batch_dice):
        raise ValueError(
            f"empty_weight must be from 0 to 1, and 1 with batch_dice: {empty_weight}"
        )
    loss_fn = make_loss(batch_dice=batch_dice, **terms)

    def objective(prediction: Prediction, masks: jax.Array) -> jax.Array:
        losses = loss_fn(prediction.logits, masks)
        if prediction.deeper:
            weights = _level_weights(1 + len(prediction.deeper))
            losses *= weights[0]
            for k, logits in enumerate(prediction.deeper, 1):
                losses += weights[k] * loss_fn(logits, shares(masks, 2**k))
        if empty_weight < 1:
            losses *= jnp.where(jnp.any(masks > 0, axis=_PIXELS), 1.0, empty_weight)
        if presence:
            if prediction.presence is None:
                raise ValueError(f"{presence=}, and the network has no presence head")
            losses += presence * presence_loss(prediction.presence, masks)
        return losses

    return objective


def pixel_terms(loss: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is for `make_loss` among the arguments of `make_objective`.

    Evaluation reports the pixel losses at full size, each image's by itself, however
    a network was trained.

    Example:
      >>> pixel_terms({"dice": 1.0, "presence": 0.1, "empty_weight": 0.0})
      {'dice': 1.0}
    """
    beyond = ("batch_dice", "presence", "empty_weight")
    return {name: loss[name] for name in loss if name not in beyond}


def shares(masks: jax.Array, side: int) -> jax.Array:
    """Returns the share of foreground in each block of `side` x `side` pixels.

    Args:
      masks: [B, H, W, 1]; H and W divisible by `side`.
      side: pixels.

    Returns:
      float32 [B, H / side, W / side, 1].
    """
    batch, height, width, _ = masks.shape
    blocks = masks.astype(jnp.float32).reshape(
        batch, height // side, side, width // side, side, 1
    )
    return jnp.mean(blocks, axis=(2, 4))


def _level_weights(levels: int) -> list[float]:
    """Returns 1, 1/2, 1/4, … divided by their sum."""
    weights = [0.5**k for k in range(levels)]
    return [weight / sum(weights) for weight in weights]


def _weighted_sum(
    logits: jax.Array, masks: jax.Array, *, terms: Sequence[tuple[float, LossFn]]
) -> jax.Array:
    return sum(
        (weight * loss(logits, masks) for weight, loss in terms),
        start=jnp.zeros(logits.shape[0], jnp.float32),
    )


def _check_shapes(logits: jax.Array, masks: jax.Array) -> None:
    if logits.shape != masks.shape or logits.ndim != 4:
        raise ValueError(
            f"logits and masks must be one [B, H, W, 1]: {logits.shape}, {masks.shape}"
        )


def _check_smooth(smooth: float) -> None:
    if smooth <= 0:
        raise ValueError(f"smooth must be positive, not {smooth}")
