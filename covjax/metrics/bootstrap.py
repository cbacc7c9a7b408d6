"""Figures with 95 % intervals: functions of sums over images, resampled.

Every figure that covjax reports of a split is a function of sums over its images: a
mean is a sum divided by a count, `pooled` Dice a ratio of sums of pixels. So a
resample of the images is but another set of sums.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

RESAMPLES = 10_000
_CHUNK = 500  # resamples at a time, to bound the memory

Terms = Mapping[str, np.ndarray]  # names → one value an image, [n]
Sums = Mapping[str, np.ndarray]  # names → sums over images, [] or [resamples]
# Sums → value; NaN where there is nothing to divide by.
Figure = Callable[[Sums], np.ndarray]


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Returns above / below, NaN where below is 0."""
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    return np.divide(above, below, out=np.full_like(below, np.nan), where=below != 0)


def estimate(
    terms: Terms,
    figures: Mapping[str, Figure],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, float | None]]:
    """Returns each figure of all images, with its 95 % interval.

    The interval is that of a percentile bootstrap over images (Efron, 1979): n images
    are drawn with replacement, and the figure is computed anew. Draws in which a
    figure is not defined are left out of its interval. The same seed and n give the
    same draws, whatever the terms.

    Args:
      terms: of every image, [n] each.
      figures: names → functions of the sums of the terms.
      resamples: number of draws; 0 leaves the intervals out.
      seed: of the draws.

    Returns:
      Names → {"mean", "low", "high"}; None where a figure is not defined.
    """
    names = list(terms)
    columns = np.stack([np.asarray(terms[k], np.float64) for k in names], axis=1)
    totals = dict(zip(names, columns.sum(axis=0), strict=True))
    found: dict[str, dict[str, Any]] = {
        name: {"mean": _number(figure(totals))} for name, figure in figures.items()
    }
    if resamples:
        drawn = [times @ columns for times in draws(len(columns), resamples, seed)]
        sums = dict(zip(names, np.concatenate(drawn).T, strict=True))
        for name, figure in figures.items():
            found[name] |= interval(figure(sums))
    return found


def draws(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Draws n of n images with replacement, again and again.

    Yields:
      How many times every image was drawn, float64 [up to 500, n].
    """
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        # Row k counts in cells of its own, k * n to (k + 1) * n.
        cells = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        times = np.bincount(cells.ravel(), minlength=rows * n)
        yield times.reshape(rows, n).astype(np.float64)


def interval(values: np.ndarray) -> dict[str, float | None]:
    """Returns the 2.5th and 97.5th percentile of the values that are not NaN."""
    told = values[~np.isnan(values)]
    if not told.size:
        return {"low": None, "high": None}
    low, high = np.percentile(told, (2.5, 97.5))
    return {"low": float(low), "high": float(high)}


def _number(value: np.ndarray) -> float | None:
    return None if np.isnan(value) else float(value)
