"""Whether a probability of .8 is right in 80 % of the pixels.

Probabilities are 8-bit levels, p = level / 255, so that a histogram of 256 levels keeps
all that the calibration of an image depends on.
"""

from typing import Any

import numpy as np

from covjax.metrics.bootstrap import RESAMPLES, Figure, estimate, ratio

LEVELS = 256


def histograms(levels: np.ndarray, truths: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Counts the pixels of every image by level and truth.

    Args:
      levels: probabilities times 255, uint8 [n, H, W].
      truths: masks, bool or integer, [n, H, W].
      where: the pixels that count, bool or integer, [n, H, W].

    Returns:
      Pixels, int64 [n, 256, 2]; the last axis is truth 0, truth 1.
    """
    counts = np.zeros((len(levels), LEVELS * 2), np.int64)
    for row, level, truth, counted in zip(counts, levels, truths, where, strict=True):
        inside = counted > 0
        cell = 2 * level[inside].astype(np.intp) + (truth[inside] > 0)
        row[:] = np.bincount(cell, minlength=2 * LEVELS)
    return counts.reshape(-1, LEVELS, 2)


def summarize_reliability(
    histograms: np.ndarray,
    *,
    bins: int = 10,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the expected calibration error and the bins of a reliability diagram.

    Pixels are pooled over the images and put into bins of equal width by their p. With
    the truth y in {0, 1} and N pixels,

        ECE = sum over bins of |sum p - sum y| / N

    Bin k holds k / bins <= p < (k + 1) / bins, the last one also p = 1.

    Args:
      histograms: of every image, int [n, 256, 2], from `histograms`.
      bins: number of bins, 1 to 255.
      resamples: number of bootstrap resamples; 0 leaves the intervals out.
      seed: of the resamples.

    Returns:
      "ece", {"mean", "low", "high"}, None without a pixel; "bins", a list of {"low",
      "high", "pixels", "confidence", "frequency"}: the mean p and the share of truth 1,
      None in a bin without a pixel.

    Reference:
      Naeini et al., Obtaining well calibrated probabilities using Bayesian binning,
      2015; Guo et al., On calibration of modern neural networks, 2017.
    """
    histograms = np.asarray(histograms, np.float64)
    level = np.arange(LEVELS)
    # In integers: level / 255 * bins would put a level on a boundary to either side.
    bin_of = np.minimum(level * bins // (LEVELS - 1), bins - 1)
    member = (bin_of[:, None] == np.arange(bins)).astype(np.float64)  # [256, bins]
    pixels = histograms.sum(axis=2) @ member
    probability = (histograms.sum(axis=2) * (level / (LEVELS - 1))) @ member
    truth = histograms[:, :, 1] @ member

    of_image = {"pixels": pixels.sum(axis=1)}
    for k in range(bins):
        of_image[f"gap {k}"] = probability[:, k] - truth[:, k]
    figures: dict[str, Figure] = {
        "ece": lambda s: ratio(
            np.sum([np.abs(s[f"gap {k}"]) for k in range(bins)], axis=0), s["pixels"]
        )
    }
    found = estimate(of_image, figures, resamples=resamples, seed=seed)
    rows = []
    for k in range(bins):
        n = pixels[:, k].sum()
        rows.append(
            {
                "low": k / bins,
                "high": (k + 1) / bins,
                "pixels": int(n),
                "confidence": float(probability[:, k].sum() / n) if n else None,
                "frequency": float(truth[:, k].sum() / n) if n else None,
            }
        )
    return {"ece": found["ece"], "bins": rows}
