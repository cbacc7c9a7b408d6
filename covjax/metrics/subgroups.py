"""The figures of parts of a split: by class, and by the size of the lesion."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from covjax.metrics import pixels, segmentation
from covjax.metrics.bootstrap import RESAMPLES, Figure, estimate, ratio

# Of the sums of `families.terms` and of "false", the FP of the empty images.
CLASS_FIGURES: dict[str, Figure] = {
    "dice": segmentation.FIGURES["all dice"],
    "positive_dice": segmentation.FIGURES["positive dice"],
    "blank_rate": segmentation.FIGURES["blank_rate"],
    "false_pixels": lambda s: ratio(s["false"], s["empty"]),
}
SIZE_FIGURES: dict[str, Figure] = {
    "dice": segmentation.FIGURES["positive dice"],
    "iou": segmentation.FIGURES["positive iou"],
    "sensitivity": pixels.FIGURES["sensitivity"],
}
SMALL, LARGE = 0.1, 0.5  # infected share of the lungs


def by_class(
    counts: np.ndarray,
    labels: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Returns the figures of every class, resampled within it.

    Args:
      counts: TP, FP, FN, TN of every image, int [n, 4].
      labels: class of every image, [n].
      resamples: number of bootstrap resamples; 0 leaves the intervals out.
      seed: of the resamples.

    Returns:
      Labels, sorted → "n"; "n_empty"; "dice", of family `all`; "positive_dice";
      "blank_rate"; "false_pixels", the mean FP of an empty image. Each figure is
      {"mean", "low", "high"}, None where not defined.
    """
    of_image = segmentation.terms(counts)
    of_image["false"] = of_image["fp"] * of_image["empty"]
    summary = {}
    for label in sorted(set(labels)):
        of_class = _select(of_image, np.asarray(labels) == label)
        summary[label] = {
            "n": len(of_class["n"]),
            "n_empty": int(of_class["empty"].sum()),
        } | estimate(of_class, CLASS_FIGURES, resamples=resamples, seed=seed)
    return summary


def by_lesion_size(
    counts: np.ndarray,
    true_share: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Returns the figures of small, middling and large lesions.

    Only positive images are looked at, and of these only the ones whose share is known.

    Args:
      counts: TP, FP, FN, TN of every image, int [n, 4].
      true_share: infected share of the lungs by the masks, in [0, 1], [n]; NaN where
        there is no lung.
      resamples: number of bootstrap resamples, within each group; 0 leaves the
        intervals out.
      seed: of the resamples.

    Returns:
      Of the shares below .1, from .1 to .5, and above .5: "low" and "high", the
      bounds; "n"; "dice" and "iou", means over the images; "sensitivity", pooled over
      their pixels. Each figure is {"mean", "low", "high"}, None where not defined.
    """
    of_image = segmentation.terms(counts)
    share = np.where(of_image["positive"] > 0, true_share, np.nan)
    groups = [
        (0.0, SMALL, share < SMALL),
        (SMALL, LARGE, (share >= SMALL) & (share <= LARGE)),
        (LARGE, 1.0, share > LARGE),
    ]
    return [
        {"low": low, "high": high, "n": int(chosen.sum())}
        | estimate(
            _select(of_image, chosen), SIZE_FIGURES, resamples=resamples, seed=seed
        )
        for low, high, chosen in groups
    ]


def _select(
    of_image: dict[str, np.ndarray], chosen: np.ndarray
) -> dict[str, np.ndarray]:
    return {name: values[chosen] for name, values in of_image.items()}
