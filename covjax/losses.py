"""Loss functions: pure, one value an image, no averaging inside."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from covjax.types import LossFn

_PIXELS = (1, 2, 3)  # the axes of one image in [B, H, W, 1]


def soft_dice_loss(
    logits: jax.Array, masks: jax.Array, *, smooth: float = 1.0
) -> jax.Array:
    """Soft Dice loss of every image, before any averaging.

    With p = sigmoid(logits) and t = masks, summed over the pixels of one image:

        loss = 1 - (2 * sum(p * t) + smooth) / (sum(p) + sum(t) + smooth)

    Sums run in float32, whatever the dtype of the logits.

    Example:
      >>> logits = jnp.full((1, 2, 2, 1), 100.0)  # every pixel is foreground
      >>> masks = jnp.array([1.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> loss = soft_dice_loss(logits, masks)  # 1 - (2 * 2 + 1) / (4 + 2 + 1)
      >>> print(f"{loss[0]:.4f}")
      0.2857

    Args:
      logits: unnormalised scores, float, [B, H, W, 1].
      masks: targets in {0, 1}, same shape.
      smooth: pixels (> 0) added to both sides; at 0 an empty pair would be 0 / 0.

    Returns:
      Losses in [0, 1], float32, [B]. The caller weights and averages.

    Raises:
      ValueError: if the shapes differ or `smooth` is not positive.

    Reference:
      Milletari et al., V-Net, 2016 (without the squares in the denominator).
    """
    _check_shapes(logits, masks)
    if smooth <= 0:
        raise ValueError(f"smooth must be positive, not {smooth}")
    p = jax.nn.sigmoid(logits.astype(jnp.float32))
    t = masks.astype(jnp.float32)
    overlap = jnp.sum(p * t, axis=_PIXELS)
    total = jnp.sum(p, axis=_PIXELS) + jnp.sum(t, axis=_PIXELS)
    return 1.0 - (2.0 * overlap + smooth) / (total + smooth)


def sigmoid_cross_entropy(logits: jax.Array, masks: jax.Array) -> jax.Array:
    """Binary cross entropy of every image, averaged over its pixels.

    With p = sigmoid(logits) and t = masks, in the form that does not overflow:

        loss = mean(-t * log(p) - (1 - t) * log(1 - p))

    Args:
      logits: unnormalised scores, float, [B, H, W, 1].
      masks: targets in {0, 1}, same shape.

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


def make_loss(*, dice: float, bce: float) -> LossFn:
    """Returns `dice * soft_dice_loss + bce * sigmoid_cross_entropy`, per image.

    A term of weight 0 is not computed. The study's lung loss is (1, 0); its hybrid
    infection loss is (0.5, 0.5).

    Args:
      dice: weight of the soft Dice loss, >= 0.
      bce: weight of the binary cross entropy, >= 0.

    Raises:
      ValueError: if a weight is negative or both are 0.
    """
    if min(dice, bce) < 0 or dice + bce == 0:
        raise ValueError(f"loss weights must be >= 0, one of them > 0: {dice=}, {bce=}")
    terms: list[tuple[float, Callable[..., jax.Array]]] = [
        (dice, soft_dice_loss),
        (bce, sigmoid_cross_entropy),
    ]
    return functools.partial(_weighted_sum, terms=[t for t in terms if t[0] > 0])


def _weighted_sum(
    logits: jax.Array,
    masks: jax.Array,
    *,
    terms: list[tuple[float, Callable[..., jax.Array]]],
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
