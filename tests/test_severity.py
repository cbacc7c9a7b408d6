"""Severity: four images by hand, limits of agreement by NumPy."""

import json

import numpy as np
import pytest

from covjax.metrics import severity

UNKNOWN = {"mean": None, "low": None, "high": None}


def test_four_images_by_hand():
    # Found minus true: .1, -.1, .3, .1; mean .1, squares about it .08, SD (.08 / 3)^.5.
    true = np.array([0.2, 0.5, 0.0, 0.4, np.nan, 0.3])
    found = np.array([0.3, 0.4, 0.3, 0.5, 0.1, np.nan])
    result = severity.summarize_severity(true, found, resamples=0)
    assert result == {
        "n": 4,
        "n_without_lungs": 2,
        "mae": {"mean": pytest.approx(0.15)},
        "bias": {"mean": pytest.approx(0.1)},
        "limits": {
            "low": {"mean": pytest.approx(0.1 - 1.96 * 0.16329931618554521)},
            "high": {"mean": pytest.approx(0.1 + 1.96 * 0.16329931618554521)},
        },
    }


def test_the_same_error_everywhere_has_no_spread():
    # Rounding must not take the root of a number below 0.
    true = np.arange(7) / 10
    result = severity.summarize_severity(true, true + 0.1, resamples=200)
    for limit in result["limits"].values():
        for value in limit.values():
            assert value == pytest.approx(0.1, abs=1e-6)


def test_intervals_are_those_of_images_drawn_one_by_one():
    rng = np.random.default_rng(1)
    true = rng.random(25)
    found = np.clip(true + rng.normal(0.05, 0.1, 25), 0, 1)
    # An image without lungs is gone before the draws.
    result = severity.summarize_severity(
        np.append(true, np.nan), np.append(found, 0), resamples=400, seed=9
    )
    rng = np.random.default_rng(9)
    drawn = [(found - true)[rng.integers(25, size=25)] for _ in range(400)]
    expected = [
        (result["mae"], [np.abs(d).mean() for d in drawn]),
        (result["bias"], [d.mean() for d in drawn]),
        (
            result["limits"]["low"],
            [d.mean() - 1.96 * np.std(d, ddof=1) for d in drawn],
        ),
        (
            result["limits"]["high"],
            [d.mean() + 1.96 * np.std(d, ddof=1) for d in drawn],
        ),
    ]
    for interval, values in expected:
        low, high = np.percentile(values, (2.5, 97.5))
        assert interval["low"] == pytest.approx(low, rel=1e-9)
        assert interval["high"] == pytest.approx(high, rel=1e-9)


def test_one_image_has_an_error_and_no_limits():
    result = severity.summarize_severity(np.array([0.5]), np.array([0.25]), resamples=9)
    assert result["mae"] == {"mean": 0.25, "low": 0.25, "high": 0.25}
    assert result["bias"] == {"mean": -0.25, "low": -0.25, "high": -0.25}
    assert result["limits"] == {"low": UNKNOWN, "high": UNKNOWN}


@pytest.mark.parametrize("n", [0, 3])
def test_without_lungs_nothing_is_defined(n):
    nothing = np.full(n, np.nan)
    result = severity.summarize_severity(nothing, nothing, resamples=20)
    assert (result["n"], result["n_without_lungs"]) == (0, n)
    assert result["mae"] == result["bias"] == result["limits"]["low"] == UNKNOWN
    assert json.loads(json.dumps(result)) == result
