"""Precision, sensitivity and specificity of the pixels of a split, pooled."""

import numpy as np

from covjax.metrics.bootstrap import RESAMPLES, Figure, estimate, ratio

# Of the sums of the counts.
FIGURES: dict[str, Figure] = {
    "precision": lambda s: ratio(s["tp"], s["tp"] + s["fp"]),
    "sensitivity": lambda s: ratio(s["tp"], s["tp"] + s["fn"]),
    "specificity": lambda s: ratio(s["tn"], s["tn"] + s["fp"]),
}


def summarize_pixels(
    counts: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """Returns ratios of the counts summed over all images.

    Args:
      counts: TP, FP, FN, TN of every image, int [n, 4].
      resamples: number of bootstrap resamples; 0 leaves the intervals out.
      seed: of the resamples.

    Returns:
      "precision", TP / (TP + FP); "sensitivity", TP / (TP + FN); "specificity",
      TN / (TN + FP): each {"mean", "low", "high"}, None where not defined.
    """
    tp, fp, fn, tn = np.asarray(counts, np.float64).T
    of_image = {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
    return estimate(of_image, FIGURES, resamples=resamples, seed=seed)
