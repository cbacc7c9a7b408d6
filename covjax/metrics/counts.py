"""Levels of probability, pixels counted for every image, the ratios of one image.

A probability is kept as its nearest 8-bit level, p = level / 255, wherever it is
counted: on a device, or on the host from the levels that an evaluation saved. All
else is derived from the counts on the host, in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np

from covjax.metrics.levels import TOP_LEVEL


def to_levels(logits: jax.Array) -> jax.Array:
    """Returns the nearest 8-bit level of every probability, uint8, same shape.

    Half-way is rounded down, so that level / 255 is above .5 where p is above .5.

    Args:
      logits: unnormalised scores, float.
    """
    probability = jax.nn.sigmoid(logits.astype(jnp.float32))
    return jnp.ceil(TOP_LEVEL * probability - 0.5).astype(jnp.uint8)


def confusion_counts(
    logits: jax.Array, masks: jax.Array, *, threshold: float
) -> jax.Array:
    """Counts the pixels of every image: TP, FP, FN, TN.

    Args:
      logits: unnormalised scores, float [B, H, W, 1].
      masks: targets in {0, 1}, same shape.
      threshold: in (0, 1); a pixel is foreground if level / 255 is above it.

    Returns:
      int32 [B, 4].
    """
    found = to_levels(logits) > TOP_LEVEL * threshold
    truth = masks > 0
    cells = (found & truth, found & ~truth, ~found & truth, ~found & ~truth)
    return jnp.stack(
        [jnp.sum(c, axis=(1, 2, 3), dtype=jnp.int32) for c in cells], axis=-1
    )


def count_pixels(truths: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Counts the pixels of masks on the host: TP, FP, FN, TN, int64 [n, 4].

    Args:
      truths: masks, uint8 [n, H, W] in {0, 1}.
      outputs: masks, likewise.
    """
    tp, found, true = (
        np.count_nonzero(masks, axis=(1, 2))
        for masks in (truths & outputs, outputs, truths)
    )
    pixels = np.full_like(tp, truths[0].size if len(truths) else 0)
    return np.stack([tp, found - tp, true - tp, pixels - found - true + tp], axis=1)


def dice_per_image(counts: np.ndarray) -> np.ndarray:
    """Returns 2 TP / (2 TP + FP + FN), float64 [n]; 1 where truth and output are empty.

    Args:
      counts: TP, FP, FN, TN, int [n, 4].
    """
    tp, fp, fn, _ = np.asarray(counts, np.float64).T
    return _ratio_or_one(2 * tp, 2 * tp + fp + fn)


def iou_per_image(counts: np.ndarray) -> np.ndarray:
    """Returns TP / (TP + FP + FN), float64 [n]; 1 where truth and output are empty.

    Args:
      counts: TP, FP, FN, TN, int [n, 4].
    """
    tp, fp, fn, _ = np.asarray(counts, np.float64).T
    return _ratio_or_one(tp, tp + fp + fn)


def _ratio_or_one(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.ones_like(above), where=below > 0)
