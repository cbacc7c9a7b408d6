"""How far two outlines lie apart: HD95 and surface Dice, in pixels.

An edge pixel is a pixel of a mask with a neighbour (above, below, left or right)
outside of it; what lies beyond the picture is outside. The definitions are those of
MONAI (`compute_hausdorff_distance`, `compute_surface_dice`).
"""

import concurrent.futures
from typing import Any

import numpy as np
from scipy.spatial import KDTree

from covjax.metrics.bootstrap import RESAMPLES, Figure, estimate, ratio
from covjax.runtime.cores import count_cores

# Of the sums of `terms`.
FIGURES: dict[str, Figure] = {
    "hd95": lambda s: ratio(s["hd95"], s["hd95 n"]),
    "surface_dice": lambda s: ratio(s["surface_dice"], s["surface_dice n"]),
}


def hd95(truth: np.ndarray, output: np.ndarray) -> float:
    """Returns the 95 % Hausdorff distance of two outlines, in pixels.

    Of every edge pixel of one mask, the distance to the nearest edge pixel of the
    other; the 95th percentile of these, linear between two values; the larger one of
    the two directions.

    Args:
      truth: mask, bool or integer, [H, W].
      output: mask, likewise.

    Returns:
      Pixels, >= 0; NaN where either mask is empty.
    """
    return _hd95(*_edge_distances(truth, output))


def surface_dice(truth: np.ndarray, output: np.ndarray, tolerance: float) -> float:
    """Returns the share of the edge pixels that lie near the other outline.

    Edge pixels of both masks at most `tolerance` from the other's edge, divided by all
    edge pixels of both (Nikolov et al., 2018, with pixels counted instead of lengths).

    Args:
      truth: mask, bool or integer, [H, W].
      output: mask, likewise.
      tolerance: pixels, >= 0.

    Returns:
      A share in [0, 1]: 0 where only the output is empty, NaN where the truth is.
    """
    return _surface_dice(*_edge_distances(truth, output), tolerance)


def boundary_rows(
    truths: np.ndarray, outputs: np.ndarray, *, tolerance: float = 2.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `hd95` and `surface_dice` of every image, float64 [n] each.

    Args:
      truths: masks, bool or integer, [n, H, W].
      outputs: masks, likewise.
      tolerance: of `surface_dice`, pixels.
    """

    def row(truth: np.ndarray, output: np.ndarray) -> tuple[float, float]:
        distances = _edge_distances(truth, output)
        return _hd95(*distances), _surface_dice(*distances, tolerance)

    with concurrent.futures.ThreadPoolExecutor(count_cores()) as threads:
        rows = np.array(list(threads.map(row, truths, outputs))).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


def terms(hd95: np.ndarray, surface_dice: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what the means sum up, of every image, float64 [n] each.

    Args:
      hd95: of every image, [n]; NaN where it is not defined.
      surface_dice: likewise.
    """
    rows = {"hd95": np.asarray(hd95), "surface_dice": np.asarray(surface_dice)}
    told = {f"{name} n": 1.0 - np.isnan(values) for name, values in rows.items()}
    return {name: np.nan_to_num(values) for name, values in rows.items()} | told


def summarize_boundaries(
    hd95: np.ndarray,
    surface_dice: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Returns the mean of each measure over the images where it is defined.

    The two means are of different images: a lesion that was missed altogether has a
    surface Dice, 0, and no HD95.

    Args:
      hd95: of every image, [n]; NaN where it is not defined.
      surface_dice: likewise.
      resamples: number of bootstrap resamples; 0 leaves the intervals out.
      seed: of the resamples.

    Returns:
      "hd95" and "surface_dice", each {"n", "mean", "low", "high"}, where n is the
      number of images behind the mean; None where there is none.
    """
    of_image = terms(hd95, surface_dice)
    found = estimate(of_image, FIGURES, resamples=resamples, seed=seed)
    return {k: {"n": int(of_image[f"{k} n"].sum())} | v for k, v in found.items()}


def _edge_distances(
    truth: np.ndarray, output: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distances truth to output, [edge pixels of truth], and back.

    Where one mask is empty, the other's edge pixels are infinitely far from it.
    """
    ours, theirs = _edge_pixels(truth), _edge_pixels(output)
    return _distances(ours, theirs), _distances(theirs, ours)


def _edge_pixels(mask: np.ndarray) -> np.ndarray:
    """Returns the rows and columns of the edge, int [edge pixels, 2]."""
    mask = np.asarray(mask) > 0
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.argwhere(mask & ~inner)


def _distances(pixels: np.ndarray, others: np.ndarray) -> np.ndarray:
    # A tree over an outline's few hundred pixels is quicker than a distance transform
    # of the whole picture, and as exact.
    if not len(pixels) or not len(others):
        return np.full(len(pixels), np.inf)
    return KDTree(others).query(pixels)[0]


def _hd95(there: np.ndarray, back: np.ndarray) -> float:
    if not there.size or not back.size:
        return np.nan
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def _surface_dice(there: np.ndarray, back: np.ndarray, tolerance: float) -> float:
    if not there.size:
        return np.nan
    near = np.sum(there <= tolerance) + np.sum(back <= tolerance)
    return float(near / (there.size + back.size))
