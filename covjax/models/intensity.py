"""What the levels of an image become before a network sees them.

Images come from hospitals whose machines expose and store them unlike. Pixels at 0 are
left out of all that is measured here, and stay 0: they are the black outside of what is
shown, of a region of interest or beyond the edge of an image that was moved.
"""

from typing import Literal

import jax
import jax.numpy as jnp

Intensity = Literal["unit", "standard", "equal"]

_IMAGE = (1, 2, 3)  # the axes of one image in [B, H, W, 1]


def normalize_intensity(images: jax.Array, how: Intensity) -> jax.Array:
    """Maps the levels of every image, each by itself.

    Args:
      images: levels / 255, float32 [B, H, W, 1].
      how: "unit", as they are; "standard" or "equal", as the functions below do.

    Returns:
      float32 [B, H, W, 1].
    """
    if how == "standard":
        return standardize(images)
    if how == "equal":
        return equalize(images)
    return images


def standardize(images: jax.Array) -> jax.Array:
    """Gives what is shown of every image mean 0 and variance 1.

    With m and s, the mean and the standard deviation of the pixels that are not 0:

        (x - m) / max(s, 1 / 255)

    where x is not 0, else 0. The bound, one level, keeps an image of nearly one level
    from becoming all noise; one of exactly one level becomes 0, as a black one does.

    Args:
      images: levels / 255, float32 [B, H, W, 1].

    Returns:
      float32 [B, H, W, 1].
    """
    levels = _levels(images)
    shown = levels > 0
    pixels = jnp.maximum(jnp.sum(shown, axis=_IMAGE, keepdims=True), 1)
    # Of whole numbers: a sum of fractions would be rounded at each of 65,536 pixels.
    mean = jnp.sum(levels, axis=_IMAGE, keepdims=True) / pixels  # 0 adds nothing
    centred = jnp.where(shown, levels - mean, 0.0)
    variance = jnp.sum(centred**2, axis=_IMAGE, keepdims=True) / pixels
    return centred / jnp.maximum(jnp.sqrt(variance), 1.0)


def equalize(images: jax.Array) -> jax.Array:
    """Replaces every level of an image by its rank among the pixels that are not 0.

    With n such pixels, b of them darker than level x and c at it:

        (b + c / 2) / n

    The mean over them is 1/2 in every image, and their values are as evenly spread over
    0 to 1 as its levels allow. Pixels at 0 stay 0.

    Args:
      images: levels / 255, float32 [B, H, W, 1].

    Returns:
      float32 [B, H, W, 1] in [0, 1).
    """
    return jax.vmap(_equalize_image)(_levels(images))


def _levels(images: jax.Array) -> jax.Array:
    """Returns what an image was before it was divided by 255, int32."""
    return jnp.round(images * 255).astype(jnp.int32)


def _equalize_image(levels: jax.Array) -> jax.Array:
    # Counts of pixels stay below 2^24: float32 holds them exactly.
    counts = jnp.zeros(256, jnp.float32).at[levels.ravel()].add(1.0).at[0].set(0.0)
    ranks = (jnp.cumsum(counts) - counts / 2) / jnp.maximum(jnp.sum(counts), 1.0)
    return ranks[levels]
