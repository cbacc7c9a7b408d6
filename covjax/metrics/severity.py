"""Severity, the infected share of the lungs, against that of the truth."""

from typing import Any

import numpy as np

from covjax.metrics.bootstrap import RESAMPLES, Figure, Sums, estimate, ratio


def _deviation(s: Sums) -> np.ndarray:
    """Returns the standard deviation of the differences, NaN with fewer than two."""
    squares = s["squared"] - ratio(s["difference"] ** 2, s["n"])
    # Rounding may leave a sum of squares below 0, where all differences are equal.
    return np.sqrt(ratio(np.maximum(squares, 0), np.maximum(s["n"] - 1, 0)))


# Of the sums of `terms`. The limits are those of Bland and Altman, Lancet 1986.
FIGURES: dict[str, Figure] = {
    "mae": lambda s: ratio(s["absolute"], s["n"]),
    "bias": lambda s: ratio(s["difference"], s["n"]),
    "limit low": lambda s: ratio(s["difference"], s["n"]) - 1.96 * _deviation(s),
    "limit high": lambda s: ratio(s["difference"], s["n"]) + 1.96 * _deviation(s),
}


def terms(true_share: np.ndarray, found_share: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what the figures sum up, of every image, float64 [n] each.

    Args:
      true_share: infected share of the lungs by the masks, in [0, 1], [n].
      found_share: the same by the outputs.
    """
    true_share = np.asarray(true_share, np.float64)
    difference = np.asarray(found_share, np.float64) - true_share
    return {
        "n": np.ones(len(difference)),
        "difference": difference,
        "absolute": np.abs(difference),
        "squared": difference**2,
    }


def summarize_severity(
    true_share: np.ndarray,
    found_share: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the error of the severity, with 95 % intervals.

    An image of which either share is NaN, because no lung was seen, is left out.

    Args:
      true_share: infected share of the lungs by the masks, in [0, 1], [n].
      found_share: the same by the outputs.
      resamples: number of bootstrap resamples; 0 leaves the intervals out.
      seed: of the resamples.

    Returns:
      "n", the images that count; "n_without_lungs", those left out; "mae", the mean
      absolute difference; "bias", the mean of found minus true; "limits" of agreement,
      {"low", "high"}: bias -/+ 1.96 standard deviations (with n - 1) of the
      differences. Each figure is {"mean", "low", "high"}, None where not defined.
    """
    of_image = terms(true_share, found_share)
    seen = ~np.isnan(of_image["difference"])
    of_image = {name: values[seen] for name, values in of_image.items()}
    found = estimate(of_image, FIGURES, resamples=resamples, seed=seed)
    return {
        "n": int(seen.sum()),
        "n_without_lungs": int((~seen).sum()),
        "mae": found["mae"],
        "bias": found["bias"],
        "limits": {"low": found["limit low"], "high": found["limit high"]},
    }
