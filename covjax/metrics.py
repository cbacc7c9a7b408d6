"""Metrics from per-image counts, and their intervals.

Devices count pixels (`confusion_counts`, integers). All else is derived from these
counts on the host in float64, as ratios of sums over images, so that the bootstrap
only has to resample sums. `docs/metrics.md` has the definitions and their sources.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CLASSES_WITHOUT_INFECTION = ("Normal", "Non-COVID")
FAMILIES = ("all", "positive", "pooled")
# Numerator and denominator, columns of `_sums`, of every figure.
_RATIOS = {
    ("all", "dice"): ("dice", "n"),
    ("all", "iou"): ("iou", "n"),
    ("positive", "dice"): ("positive_dice", "positive"),
    ("positive", "iou"): ("positive_iou", "positive"),
    ("pooled", "dice"): ("2tp", "2tp+fp+fn"),
    ("pooled", "iou"): ("tp", "tp+fp+fn"),
    ("blank_rate",): ("blank", "empty"),
}


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


def summarize(
    counts: np.ndarray,
    losses: np.ndarray,
    labels: Sequence[str],
    *,
    threshold: float,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the four families over a split, each with a 95 % interval.

    The intervals are percentiles of a bootstrap over images (Efron, 1979). A figure
    that no image can tell (the blank rate of a split without empty truths) is None.

    Args:
      counts: TP, FP, FN, TN of every image, int [n, 4].
      losses: float [n].
      labels: class of every image, [n].
      threshold: at which the counts were taken; it is only passed on.
      resamples: number of bootstrap resamples; 0 leaves the intervals out.
      seed: of the resamples.

    Returns:
      What results/<split>.json holds: n, n_empty, threshold, loss, and the families.
    """
    counts = np.asarray(counts, np.int64)
    table = _sums(counts)
    names = list(table)
    columns = np.stack([table[name] for name in names], axis=1)
    totals = dict(zip(names, columns.sum(axis=0), strict=True))
    draws = _bootstrap_sums(columns, resamples, seed)
    resampled = dict(zip(names, draws.T, strict=True))

    summary: dict[str, Any] = {
        "n": len(counts),
        "n_empty": int(totals["empty"]),
        "threshold": threshold,
        "loss": float(np.mean(np.asarray(losses, np.float64))),
    }
    for path, (above, below) in _RATIOS.items():
        figure = _figure(totals[above], totals[below])
        if resamples:
            figure |= _interval(resampled[above], resampled[below])
        if len(path) == 2:
            summary.setdefault(path[0], {})[path[1]] = figure
        else:
            summary[path[0]] = figure
    for label in CLASSES_WITHOUT_INFECTION:
        of_class = np.asarray(labels) == label
        rate = _figure(table["blank"][of_class].sum(), table["empty"][of_class].sum())
        summary["blank_rate"][label] = rate["mean"]
    return summary


def _sums(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Returns per-image terms, float64 [n] each, whose sums give every figure."""
    tp, fp, fn, _ = counts.T.astype(np.float64)
    dice, iou = dice_per_image(counts), iou_per_image(counts)
    positive = (tp + fn > 0).astype(np.float64)
    return {
        "n": np.ones(len(counts)),
        "dice": dice,
        "iou": iou,
        "positive": positive,
        "positive_dice": dice * positive,
        "positive_iou": iou * positive,
        "tp": tp,
        "2tp": 2 * tp,
        "tp+fp+fn": tp + fp + fn,
        "2tp+fp+fn": 2 * tp + fp + fn,
        "empty": 1 - positive,
        "blank": (1 - positive) * (tp + fp == 0),
    }


def _bootstrap_sums(columns: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums the columns [n, k] over images drawn with replacement: [resamples, k]."""
    n = len(columns)
    rng = np.random.default_rng(seed)
    sums = np.empty((resamples, columns.shape[1]))
    for r in range(resamples):
        times_drawn = np.bincount(rng.integers(n, size=n), minlength=n)
        sums[r] = times_drawn @ columns
    return sums


def _figure(above: float, below: float) -> dict[str, float | None]:
    return {"mean": float(above / below) if below else None}


def _interval(above: np.ndarray, below: np.ndarray) -> dict[str, float | None]:
    told = below > 0  # a resample may hold no image that tells
    if not told.any():
        return {"low": None, "high": None}
    low, high = np.percentile(above[told] / below[told], (2.5, 97.5))
    return {"low": float(low), "high": float(high)}


def _ratio_or_one(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.ones_like(above), where=below > 0)
