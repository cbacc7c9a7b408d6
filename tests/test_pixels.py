"""Pooled precision, sensitivity and specificity, by hand and by drawing images."""

import numpy as np
import pytest

from covjax.metrics import pixels


def test_three_images_by_hand():
    counts = [(30, 10, 10, 50), (2, 0, 6, 92), (0, 20, 0, 80)]  # 32, 30, 16, 222
    assert pixels.summarize_pixels(np.array(counts), resamples=0) == {
        "precision": {"mean": pytest.approx(32 / 62)},
        "sensitivity": {"mean": pytest.approx(32 / 48)},
        "specificity": {"mean": pytest.approx(222 / 252)},
    }


@pytest.mark.parametrize(
    ("counts", "missing"),
    [
        ((0, 0, 5, 5), {"precision"}),  # nothing was found
        ((0, 5, 0, 5), {"sensitivity"}),  # nothing was there
        ((5, 0, 5, 0), {"specificity"}),  # all was there
        ((0, 0, 0, 9), {"precision", "sensitivity"}),
    ],
)
def test_what_has_nothing_to_divide_by_is_none(counts, missing):
    result = pixels.summarize_pixels(np.array([counts]), resamples=10)
    for name, figure in result.items():
        assert all((value is None) == (name in missing) for value in figure.values())


def test_intervals_are_those_of_images_drawn_one_by_one():
    counts = np.random.default_rng(6).integers(0, 99, (20, 4))
    result = pixels.summarize_pixels(counts, resamples=300, seed=2)
    rng = np.random.default_rng(2)
    sums = [counts[rng.integers(20, size=20)].sum(axis=0) for _ in range(300)]
    expected = {
        "precision": [tp / (tp + fp) for tp, fp, _, _ in sums],
        "sensitivity": [tp / (tp + fn) for tp, _, fn, _ in sums],
        "specificity": [tn / (tn + fp) for _, fp, _, tn in sums],
    }
    for name, values in expected.items():
        low, high = np.percentile(values, (2.5, 97.5))
        assert result[name]["low"] == pytest.approx(low, rel=1e-9), name
        assert result[name]["high"] == pytest.approx(high, rel=1e-9), name
