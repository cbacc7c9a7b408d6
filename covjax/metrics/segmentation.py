"""Dice and IoU in the families `all`, `positive`, `pooled`, and the blank rate."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from covjax.metrics.bootstrap import RESAMPLES, Figure, estimate, ratio
from covjax.metrics.counts import dice_per_image, iou_per_image

CLASSES_WITHOUT_INFECTION = ("Normal", "Non-COVID")
FAMILIES = ("all", "positive", "pooled")
# Of the sums of `terms`.
FIGURES: dict[str, Figure] = {
    "all dice": lambda s: ratio(s["dice"], s["n"]),
    "all iou": lambda s: ratio(s["iou"], s["n"]),
    "positive dice": lambda s: ratio(s["positive dice"], s["positive"]),
    "positive iou": lambda s: ratio(s["positive iou"], s["positive"]),
    "pooled dice": lambda s: ratio(2 * s["tp"], 2 * s["tp"] + s["fp"] + s["fn"]),
    "pooled iou": lambda s: ratio(s["tp"], s["tp"] + s["fp"] + s["fn"]),
    "blank_rate": lambda s: ratio(s["blank"], s["empty"]),
}


def terms(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what the families sum up, of every image, float64 [n] each.

    Args:
      counts: TP, FP, FN, TN of every image, int [n, 4].
    """
    tp, fp, fn, tn = np.asarray(counts, np.float64).T
    dice, iou = dice_per_image(counts), iou_per_image(counts)
    positive = (tp + fn > 0).astype(np.float64)
    return {
        "n": np.ones(len(tp)),
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": tn,
        "dice": dice,
        "iou": iou,
        "positive": positive,
        "positive dice": dice * positive,
        "positive iou": iou * positive,
        "empty": 1 - positive,
        "blank": (1 - positive) * (tp + fp == 0),
    }


def summarize(
    counts: np.ndarray,
    losses: np.ndarray,
    labels: Sequence[str],
    *,
    threshold: float,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the four families over a split, each with a 95 % interval.

    A figure that no image can tell (the blank rate of a split without empty truths) is
    None.

    Args:
      counts: TP, FP, FN, TN of every image, int [n, 4].
      losses: float [n].
      labels: class of every image, [n].
      threshold: at which the counts were taken; it is only passed on.
      resamples: number of bootstrap resamples; 0 leaves the intervals out.
      seed: of the resamples.

    Returns:
      The first part of results/<split>.json: n, n_empty, threshold, loss, and the
      families.
    """
    of_image = terms(counts)
    found = estimate(of_image, FIGURES, resamples=resamples, seed=seed)
    summary: dict[str, Any] = {
        "n": len(labels),
        "n_empty": int(of_image["empty"].sum()),
        "threshold": threshold,
        "loss": float(np.mean(np.asarray(losses, np.float64))),
    }
    for family in FAMILIES:
        measures = {name: found[f"{family} {name}"] for name in ("dice", "iou")}
        summary[family] = measures
    summary["blank_rate"] = dict(found["blank_rate"])
    for label in CLASSES_WITHOUT_INFECTION:
        of_class = {k: v[np.asarray(labels) == label] for k, v in of_image.items()}
        rate = estimate(of_class, FIGURES, resamples=0)["blank_rate"]["mean"]
        summary["blank_rate"][label] = rate
    return summary
