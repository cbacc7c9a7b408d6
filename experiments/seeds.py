"""Figures of an arm over its seeds, with 95 % intervals, and paired differences.

A bootstrap of two levels. Of S seeds and n images, one draw takes n images and S seeds,
both with replacement. With F(arm, s, images) a figure of the run of seed s over some
images, each as often as it was drawn, the draw's value of an arm and of its difference
from the baseline is

    V = 1/S sum over drawn seeds s of F(arm, s, drawn images)
    D = 1/S sum over drawn seeds s of F(arm, s, drawn images) - F(base, s, drawn images)

and the interval is that of the 2.5th and 97.5th percentile of 10,000 draws. The images
of a draw are the same for all arms and seeds, and a seed of an arm is paired with that
of the baseline: what is hard for both does not widen the interval of D. With one seed
the images alone vary. Three seeds tell little about how far seeds lie apart: one draw
in nine is three times the same seed, and the variance of a mean of S values drawn from
S is (S - 1) / S of what it should be. Such an interval is rather too narrow.

Reference: Davison and Hinkley, Bootstrap methods and their application, 1997, 3.8.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from covjax.metrics import segmentation
from covjax.metrics.bootstrap import RESAMPLES, draws, interval
from covjax.metrics.detection import weighted_auroc

# Name → how a table calls it.
FIGURES = {
    "all dice": "Dice, all",
    "positive dice": "Dice, positive",
    "pooled dice": "Dice, pooled",
    "blank_rate": "blank rate",
    "auroc": "AUROC",
}

Key = TypeVar("Key", bound=Hashable)


class Scores(NamedTuple):
    """One run on the images, which stand in the same order for all runs.

    Attributes:
      counts: TP, FP, FN, TN of every image, int [n, 4].
      presence: how sure the run is of a finding in it, float [n]; NaN: not told.
    """

    counts: np.ndarray
    presence: np.ndarray


class Drawn(NamedTuple):
    """One figure of one run.

    Attributes:
      value: over all images; NaN where it is not defined.
      draws: over the images of each draw, [resamples].
    """

    value: float
    draws: np.ndarray


def draw_images(
    runs: Mapping[Key, Scores], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[Key, dict[str, Drawn]]:
    """Returns every figure of every run over the same draws of images.

    Args:
      runs: any keys → scores of the same n images.
      resamples: number of draws.
      seed: of the draws.

    Returns:
      The keys → names of `FIGURES` → figure.
    """
    n = len(next(iter(runs.values())).counts)
    of_runs = {key: _Figures(scores) for key, scores in runs.items()}
    parts: dict[Key, list[dict[str, np.ndarray]]] = {key: [] for key in runs}
    for times in draws(n, resamples, seed):
        for key, figures in of_runs.items():
            parts[key].append(figures(times))
    found: dict[Key, dict[str, Drawn]] = {}
    for key, figures in of_runs.items():
        plain = figures(np.ones((1, n)))
        found[key] = {
            name: Drawn(
                float(plain[name][0]), np.concatenate([p[name] for p in parts[key]])
            )
            for name in FIGURES
        }
    return found


class _Figures:
    """Every figure of one run, as a function of how often each image counts."""

    def __init__(self, scores: Scores):
        terms = segmentation.terms(scores.counts)
        self._names = list(terms)
        self._columns = np.stack([terms[k] for k in self._names], axis=1)
        self._positive, self._presence = terms["positive"] > 0, scores.presence

    def __call__(self, times: np.ndarray) -> dict[str, np.ndarray]:
        """Maps weights, float [rows, n], to values, [rows] each."""
        sums = dict(zip(self._names, (times @ self._columns).T, strict=True))
        found = {k: segmentation.FIGURES[k](sums) for k in FIGURES if k != "auroc"}
        if np.isnan(self._presence).any():
            return found | {"auroc": np.full(len(times), np.nan)}
        return found | {"auroc": weighted_auroc(self._presence, self._positive, times)}


def estimate_over_seeds(
    figures: Sequence[Drawn],
    baseline: Sequence[Drawn] | None = None,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the mean of a figure over seeds, or of its difference from a baseline.

    Args:
      figures: of the runs of an arm, a seed each, over the same draws of images.
      baseline: of the same seeds in the same order; None: no difference is taken.
      seed: of the draws of seeds.

    Returns:
      "mean", "low" and "high", None where not defined, and "of_seeds", the value (or
      the difference) of every seed.
    """
    values = np.array([figure.value for figure in figures])
    drawn = np.stack([figure.draws for figure in figures])  # [S, resamples]
    if baseline is not None:
        values = values - [figure.value for figure in baseline]
        drawn = drawn - np.stack([figure.draws for figure in baseline])
    count, resamples = drawn.shape
    rng = np.random.default_rng([seed, count])
    picked = rng.integers(count, size=(count, resamples))
    of_draws = np.take_along_axis(drawn, picked, axis=0).mean(axis=0)
    mean = float(values.mean())
    return {
        "mean": None if np.isnan(mean) else mean,
        **interval(of_draws),
        "of_seeds": [None if np.isnan(v) else float(v) for v in values],
    }
