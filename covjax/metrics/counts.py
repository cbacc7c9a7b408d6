"""Pixels counted for every image, and the ratios of one image.

Devices count (`confusion_counts`, integers). All else is derived from these counts on
the host, in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np


def confusion_counts(
    logits: jax.Array, masks: jax.Array, *, threshold: float
) -> jax.Array:
    """Counts the pixels of every image: TP, FP, FN, TN.

    Args:
      logits: unnormalised scores, float [B, H, W, 1].
      masks: targets in {0, 1}, same shape.
      threshold: probability in (0, 1) above which a pixel is foreground.

    Returns:
      int32 [B, 4].
    """
    found = jax.nn.sigmoid(logits.astype(jnp.float32)) > threshold
    truth = masks > 0
    cells = (found & truth, found & ~truth, ~found & truth, ~found & ~truth)
    return jnp.stack(
        [jnp.sum(c, axis=(1, 2, 3), dtype=jnp.int32) for c in cells], axis=-1
    )


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
