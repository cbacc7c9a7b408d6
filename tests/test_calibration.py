"""Calibration: histograms by loops, the ECE of torchmetrics, bins by hand."""

import json

import numpy as np
import pytest

from covjax.metrics import calibration

I = np.arange(3 * 12 * 12)  # noqa: E741
LEVELS = (I * I * 31 + I * 7) % 255
TRUTHS = ((I * I * 13 + I) % 300 < LEVELS).reshape(3, 12, 12)
WHERE = (I % 7 > 1).reshape(3, 12, 12)
LEVELS = LEVELS.astype(np.uint8).reshape(3, 12, 12)


def one_image(pixels: list[tuple[int, int]]) -> np.ndarray:
    """The histogram of an image of (level, truth) pixels."""
    counts = np.zeros((1, 256, 2), int)
    for level, truth in pixels:
        counts[0, level, truth] += 1
    return counts


@pytest.mark.parametrize("high", [1, 255])
def test_histograms_count_pixel_by_pixel(high):
    expected = np.zeros((3, 256, 2), int)
    for image, y, x in np.argwhere(WHERE):
        expected[image, LEVELS[image, y, x], int(TRUTHS[image, y, x])] += 1
    truths, where = TRUTHS.astype(np.uint8) * high, WHERE.astype(np.uint8) * high
    found = calibration.histograms(LEVELS, truths, where)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


def test_the_highest_level_and_an_image_without_lungs_have_their_place():
    levels = np.array([[[255, 255, 0]], [[255, 128, 0]]], np.uint8)
    where = np.array([[[1, 1, 1]], [[0, 0, 0]]])
    found = calibration.histograms(levels, np.array([[[1, 0, 0]]] * 2), where)
    assert found[0, 255].tolist() == [1, 1]
    assert found[0, 0].tolist() == [1, 0]
    assert found[0].sum() == 3
    assert found[1].sum() == 0


@pytest.mark.parametrize(
    ("bins", "inside", "everywhere"),
    [
        # binary_calibration_error(p, truth, n_bins=bins, norm="l1") of torchmetrics
        # 1.9.0, float64, of the pixels WHERE and of all.
        (4, 0.053819709702062415, 0.048983297022512404),
        (10, 0.06334351922587221, 0.056735657225853386),
        (15, 0.06657754010695194, 0.06971677559912867),
    ],
)
def test_ece_is_that_of_torchmetrics(bins, inside, everywhere):
    for where, expected in ((WHERE, inside), (np.ones_like(WHERE), everywhere)):
        counts = calibration.histograms(LEVELS, TRUTHS, where)
        result = calibration.summarize_reliability(counts, bins=bins, resamples=0)
        assert result["ece"]["mean"] == pytest.approx(expected, rel=1e-6)


def test_bins_by_hand():
    # Of ten bins: 51 = .2 opens the third, 255 = 1 closes the last.
    pixels = [(50, 0), (51, 1), (51, 0), (76, 0), (255, 1), (255, 0), (230, 1)]
    result = calibration.summarize_reliability(one_image(pixels), resamples=0)
    bins = result["bins"]
    assert [b["pixels"] for b in bins] == [0, 1, 3, 0, 0, 0, 0, 0, 0, 3]
    assert (bins[2]["low"], bins[2]["high"]) == (0.2, 0.3)
    assert bins[1]["confidence"] == pytest.approx(50 / 255)
    assert bins[1]["frequency"] == 0
    assert bins[2]["confidence"] == pytest.approx((51 + 51 + 76) / 3 / 255)
    assert bins[2]["frequency"] == pytest.approx(1 / 3)
    assert bins[9]["confidence"] == pytest.approx((255 + 255 + 230) / 3 / 255)
    assert bins[9]["frequency"] == pytest.approx(2 / 3)
    assert bins[0]["confidence"] is bins[0]["frequency"] is None
    # Gaps: 50/255; 178/255 - 1 = -77/255; 740/255 - 2 = 230/255.
    assert result["ece"] == {"mean": pytest.approx((50 + 77 + 230) / 255 / 7)}


def test_too_sure_in_one_image_and_too_shy_in_another_cancel():
    # Pixels are pooled before the gap is taken: p = .6, of 5 pixels 3 are true.
    sure, shy = one_image([(153, 0)] * 2), one_image([(153, 1)] * 3)
    both = np.concatenate([sure, shy])
    result = calibration.summarize_reliability(both, resamples=0)
    assert result["ece"]["mean"] == pytest.approx(0, abs=1e-12)
    assert result["bins"][6]["pixels"] == 5


def test_interval_is_that_of_images_drawn_one_by_one():
    rng = np.random.default_rng(5)
    counts = rng.integers(0, 9, (12, 256, 2))
    result = calibration.summarize_reliability(counts, bins=5, resamples=200, seed=3)
    p = np.arange(256) / 255
    rng = np.random.default_rng(3)
    drawn = []
    for _ in range(200):
        pooled = counts[rng.integers(12, size=12)].sum(axis=0)
        gaps = [
            abs((pooled[k].sum(axis=1) * p[k]).sum() - pooled[k, 1].sum())
            for k in np.split(np.arange(256), [51, 102, 153, 204])
        ]
        drawn.append(sum(gaps) / pooled.sum())
    low, high = np.percentile(drawn, (2.5, 97.5))
    assert result["ece"]["low"] == pytest.approx(low, rel=1e-9)
    assert result["ece"]["high"] == pytest.approx(high, rel=1e-9)


def test_without_a_pixel_nothing_is_defined():
    nothing = np.zeros((2, 256, 2), int)
    result = calibration.summarize_reliability(nothing, bins=2, resamples=20)
    assert result["ece"] == {"mean": None, "low": None, "high": None}
    assert result["bins"][1] == {
        "low": 0.5,
        "high": 1,
        "pixels": 0,
        "confidence": None,
        "frequency": None,
    }
    assert json.loads(json.dumps(result)) == result
