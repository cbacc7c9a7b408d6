"""Outlines: distances as MONAI measures them, and what an empty mask counts.

The expected values are those of MONAI 1.6.1, for masks as below, of [1, 1, 40, 48]:

    compute_hausdorff_distance(t, o, include_background=True, percentile=95)
    compute_surface_dice(t, o, [tolerance], include_background=True)
"""

import json

import numpy as np
import pytest

from covjax.metrics import surface

Y, X = np.mgrid[:40, :48]
DISC = (Y - 18) ** 2 + (X - 20) ** 2 <= 100
MASKS = {
    "disc": DISC,
    "ellipse": (Y - 20) ** 2 + 3 * (X - 23) ** 2 <= 150,
    "disc and crumb": DISC | ((Y > 33) & (X > 38) & (X < 42)),
    "corner": (Y + X < 20) | (Y - X > 30),  # cut off by the picture's border
    "waves": (7 * Y * Y + 5 * X * Y + 3 * X) % 64 < 24,
    "dot": (Y == 5) & (X == 40),
    "empty": np.zeros((40, 48), bool),
}
MONAI = [
    # HD95; surface Dice at 0, 1, 2, 5 pixels.
    ("disc", "disc", 0, (1, 1, 1, 1)),
    ("disc", "ellipse", 5.8732138, (0.17857143, 0.45535713, 0.53571429, 0.89285713)),
    ("disc", "disc and crumb", 18.3847771, (0.8888889,) * 4),
    (
        "disc and crumb",
        "ellipse",
        15.4630556,
        (0.15873016, 0.40476191, 0.47619048, 0.79365081),
    ),
    ("corner", "disc", 22.6274167, (0, 0, 0, 0.12408759)),
    ("waves", "disc", 17.8885441, (0.06130268, 0.15836527, 0.21711366, 0.3856957)),
    ("waves", "corner", 33.712963, (0.06930693, 0.16089109, 0.20544554, 0.32673267)),
    ("disc", "dot", 33.4663124, (0, 0, 0, 0)),
]


@pytest.mark.parametrize(("truth", "output", "hd95", "dice"), MONAI)
def test_both_measures_are_those_of_monai(truth, output, hd95, dice):
    # Both are the same from either side.
    for one, other in ((MASKS[truth], MASKS[output]), (MASKS[output], MASKS[truth])):
        assert surface.hd95(one, other) == pytest.approx(hd95, rel=1e-6)
        found = [surface.surface_dice(one, other, t) for t in (0, 1, 2, 5)]
        assert found == pytest.approx(dice, rel=1e-6)


def test_two_bars_by_hand():
    # Rows 2 to 4 of columns 0 to 9, all but the middle row's inside being edge:
    # 10 + 2 + 10 pixels. The output lies 3 rows lower.
    truth, output = np.zeros((2, 12, 10), np.uint8)
    truth[2:5], output[5:8] = 255, 1
    # Truth rows 2, 3 (its ends), 4 are 3, 2, 1 rows from the output's row 5.
    assert surface.hd95(truth, output) == 3
    assert surface.surface_dice(truth, output, 1) == 20 / 44
    assert surface.surface_dice(truth, output, 2) == 24 / 44
    assert surface.surface_dice(truth, output, 3) == 1


@pytest.mark.parametrize(
    ("truth", "output", "hd95", "dice"),
    [
        ("empty", "empty", np.nan, np.nan),
        ("empty", "disc", np.nan, np.nan),
        ("disc", "empty", np.nan, 0),
    ],
)
def test_an_empty_mask(truth, output, hd95, dice):
    truth, output = MASKS[truth], MASKS[output]
    np.testing.assert_equal(surface.hd95(truth, output), hd95)
    np.testing.assert_equal(surface.surface_dice(truth, output, 2), dice)


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_rows_are_those_of_each_image(dtype):
    pairs = [("disc", "ellipse"), ("empty", "disc"), ("disc", "empty")]
    pairs += [("empty", "empty"), ("waves", "disc")]
    truths = np.stack([MASKS[truth] for truth, _ in pairs]).astype(dtype)
    outputs = np.stack([MASKS[output] for _, output in pairs]).astype(dtype)
    hd95, dice = surface.boundary_rows(truths, outputs)
    assert hd95.dtype == dice.dtype == np.float64
    np.testing.assert_allclose(
        hd95, [5.8732138, np.nan, np.nan, np.nan, 17.8885441], rtol=1e-6
    )
    np.testing.assert_allclose(
        dice, [0.53571429, np.nan, 0, np.nan, 0.21711366], rtol=1e-6
    )
    _, strict = surface.boundary_rows(truths, outputs, tolerance=1)
    np.testing.assert_allclose(
        strict, [0.45535713, np.nan, 0, np.nan, 0.15836527], rtol=1e-6
    )


def test_a_missed_lesion_counts_in_surface_dice_alone():
    hd95 = np.array([2, np.nan, 7, np.nan])
    dice = np.array([1, 0, 0.5, np.nan])
    result = surface.summarize_boundaries(hd95, dice, resamples=0)
    assert result == {
        "hd95": {"n": 2, "mean": 4.5},
        "surface_dice": {"n": 3, "mean": 0.5},
    }


def test_intervals_are_of_the_means_over_what_is_defined():
    rng = np.random.default_rng(2)
    hd95, dice = rng.gamma(2, 3, 30), rng.random(30)
    hd95[:12], dice[:6] = np.nan, np.nan
    result = surface.summarize_boundaries(hd95, dice, resamples=300, seed=4)
    rng = np.random.default_rng(4)
    chosen = [rng.integers(30, size=30) for _ in range(300)]
    for name, values in (("hd95", hd95), ("surface_dice", dice)):
        means = [np.nanmean(values[i]) for i in chosen]
        low, high = np.percentile(means, (2.5, 97.5))
        assert result[name]["low"] == pytest.approx(low, rel=1e-9)
        assert result[name]["high"] == pytest.approx(high, rel=1e-9)


def test_without_a_positive_image_nothing_is_defined():
    nothing = np.full(3, np.nan)
    result = surface.summarize_boundaries(nothing, nothing, resamples=20)
    told = {"n": 0, "mean": None, "low": None, "high": None}
    assert result == {"hd95": told, "surface_dice": told}
    assert json.loads(json.dumps(result)) == result
