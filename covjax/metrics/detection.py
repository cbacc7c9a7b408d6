"""Whether an image shows the finding at all: presence scores, and what they tell."""

from typing import Any

import numpy as np

from covjax.metrics.bootstrap import RESAMPLES, Figure, draws, estimate, interval, ratio

# Of sums over images.
FIGURES: dict[str, Figure] = {
    "sensitivity": lambda s: ratio(s["hit"], s["positive"]),
    "specificity": lambda s: ratio(s["blank"], s["empty"]),
}


def presence_scores(levels: np.ndarray) -> np.ndarray:
    """Returns how sure a model is that an image shows the finding at all.

    It is the mean probability of the image's surest pixels, one in 256 of them: a few
    stray pixels do not make a finding, a small lesion does.

    Args:
      levels: probabilities times 255, uint8 [n, H, W].

    Returns:
      Scores in [0, 1], float64 [n].
    """
    count = max(1, levels[0].size // 256) if len(levels) else 1
    scores = np.empty(len(levels))
    for i, image in enumerate(levels):
        # From the histogram, as a sort of every pixel would take long.
        of_level = np.bincount(image.ravel(), minlength=256)[::-1]
        taken = np.minimum(np.cumsum(of_level), count)
        taken = np.diff(taken, prepend=0)
        scores[i] = (taken * np.arange(255, -1, -1)).sum() / (255 * count)
    return scores


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Returns the area under the ROC curve.

    It is the share of the pairs of a positive and an empty image in which the positive
    one has the higher score; a tie counts half (Hanley and McNeil, 1982).

    Args:
      scores: of every image, float [n].
      positive: whether its truth has a pixel, bool [n].

    Returns:
      A share in [0, 1]; NaN where no image, or every image, is positive.
    """
    return float(weighted_auroc(scores, positive, np.ones((1, len(scores))))[0])


def summarize_detection(
    scores: np.ndarray,
    positive: np.ndarray,
    found: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns how well the positive images are told from the empty ones.

    Args:
      scores: of every image, float [n]; higher for a surer finding.
      positive: whether its truth has a pixel, bool [n].
      found: whether its output has a pixel, bool [n].
      resamples: number of bootstrap resamples; 0 leaves the intervals out.
      seed: of the resamples.

    Returns:
      "auroc", "sensitivity" and "specificity", each {"mean", "low", "high"}, None where
      not defined; "n_positive" and "n".
    """
    positive, found = np.asarray(positive, bool), np.asarray(found, bool)
    of_image = {
        "positive": positive,
        "hit": positive & found,
        "empty": ~positive,
        "blank": ~positive & ~found,
    }
    area = auroc(scores, positive)
    summary: dict[str, Any] = {"auroc": {"mean": None if np.isnan(area) else area}}
    if resamples:
        areas = [
            weighted_auroc(scores, positive, times)
            for times in draws(len(positive), resamples, seed)
        ]
        summary["auroc"] |= interval(np.concatenate(areas))
    summary |= estimate(of_image, FIGURES, resamples=resamples, seed=seed)
    return summary | {"n_positive": int(positive.sum()), "n": len(positive)}


def weighted_auroc(
    scores: np.ndarray, positive: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Returns the area for every row of weights, as if images stood there so often.

    Args:
      scores: float [n].
      positive: bool [n].
      weights: [rows, n].

    Returns:
      float64 [rows]; NaN where one of the two kinds has no weight.
    """
    scores, positive = np.asarray(scores), np.asarray(positive, bool)
    empty = np.flatnonzero(~positive)
    empty = empty[np.argsort(scores[empty], kind="stable")]
    weights = np.ascontiguousarray(weights.T)  # [n, rows], quicker to pick images from
    # Weight of the empty images below a score: a sum up to the score's place in order.
    below = np.zeros((len(empty) + 1, weights.shape[1]))
    np.cumsum(weights[empty], axis=0, out=below[1:])
    lowest = np.searchsorted(scores[empty], scores[positive], side="left")
    highest = np.searchsorted(scores[empty], scores[positive], side="right")
    beaten = (below[lowest] + below[highest]) / 2  # a tie counts half
    ours = weights[positive]
    return ratio((ours * beaten).sum(axis=0), ours.sum(axis=0) * below[-1])
