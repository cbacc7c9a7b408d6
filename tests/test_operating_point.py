"""The operating point: its steps by hand, its search against trying everything."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy import ndimage

from covjax.errors import UsageError
from covjax.metrics.operating_point import (
    FILE,
    OperatingPoint,
    areas_to_try,
    as_point,
    calibrate,
    read_points,
    write_points,
)

CORNERS = np.ones((3, 3))  # pixels touch there, too


def test_a_pixel_is_foreground_strictly_above_the_threshold():
    levels = np.array([[[0, 50, 51, 52], [127, 128, 254, 255]]], np.uint8)
    # .2 and 1 are levels, 51 and 255; .5 lies between two.
    for threshold, expected in (
        (0.2, [[0, 0, 0, 1], [1, 1, 1, 1]]),
        (0.5, [[0, 0, 0, 0], [0, 1, 1, 1]]),
        (1.0, [[0, 0, 0, 0], [0, 0, 0, 0]]),
    ):
        found = OperatingPoint(threshold).masks(levels)
        assert found.dtype == np.uint8
        assert found.tolist() == [expected]


@pytest.mark.parametrize("twentieths", range(1, 20))
def test_every_level_is_compared_as_a_fraction_would_be(twentieths):
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    found = OperatingPoint(twentieths / 20).masks(levels)
    expected = [Fraction(k, 255) > Fraction(twentieths, 20) for k in range(256)]
    assert found.ravel().tolist() == expected


def test_areas_are_measured_above_the_threshold():
    levels = np.array(
        [
            [
                [200, 200, 0, 0, 90],
                [0, 140, 0, 0, 0],
                [0, 0, 200, 0, 200],
                [200, 0, 0, 0, 200],
            ]
        ],
        np.uint8,
    )
    # Above .5: 4 pixels that touch at corners, 2, and 1. Above .6 the first fall apart.
    found = OperatingPoint(0.5, min_area=2).masks(levels)
    whole = [[1, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 1], [0, 0, 0, 0, 1]]
    assert found.tolist() == [whole]
    found = OperatingPoint(0.6, min_area=2).masks(levels)
    parted = [[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]
    assert found.tolist() == [parted]
    found = OperatingPoint(0.6, min_area=3).masks(levels)
    assert not found.any()


def test_an_image_below_the_presence_threshold_is_blank_and_the_others_are_not():
    # The surest pixel of so small an image is its score: 1, .8 and .6.
    levels = np.full((3, 2, 2), 150, np.uint8)
    levels[:, 0, 0] = 255, 204, 153
    for presence, shown in ((0, 3), (0.6, 3), (0.61, 2), (0.8, 2), (0.9, 1), (1.1, 0)):
        found = OperatingPoint(0.5, presence=presence).masks(levels)
        assert found.sum(axis=(1, 2)).tolist() == [4] * shown + [0] * (3 - shown)


def test_presence_scores_may_be_those_of_other_levels():
    levels = np.full((2, 2, 2), 200, np.uint8)
    point = OperatingPoint(0.5, presence=0.7)
    assert point.masks(levels).all()
    found = point.masks(levels, np.array([0.69, 0.7]))
    assert found.sum(axis=(1, 2)).tolist() == [0, 4]


def test_areas_to_try_are_shares_of_the_picture():
    assert areas_to_try(256 * 256) == [0, 16, 32, 64, 128, 256, 512, 1024, 2048]
    assert areas_to_try(16 * 16) == [0, 1, 2, 4, 8]  # rounded down, each once


class Best(NamedTuple):
    """The highest mean Dice, and the point that reaches it."""

    dice: Fraction
    threshold: float
    area: int
    kept: list[bool]  # images that the gate leaves


def dice_of(
    levels: np.ndarray, truth: np.ndarray, twentieths: int, area: int
) -> Fraction:
    """Dice of one image that is shown."""
    found = levels * 20.0 > twentieths * 255
    labels: Any = ndimage.label(found, CORNERS)
    numbers, count = labels
    for number in range(1, count + 1):
        if (numbers == number).sum() < area:
            found[numbers == number] = False
    both = int(found.sum() + truth.sum())
    return Fraction(2 * int((found & (truth > 0)).sum()), both) if both else Fraction(1)


def try_everything(
    levels: np.ndarray, truths: np.ndarray, scores: list[Any] | None = None
) -> Best:
    """Tries every gate, area and threshold, one after the other.

    Images are gated by the scores, else by the sum of their surest levels.
    """
    pixels = levels[0].size
    points = [
        (area, twentieths)
        for area in sorted({0} | {pixels // 2**k for k in range(5, 13)})
        for twentieths in sorted(range(1, 20), key=lambda k: (abs(k - 10), k))
    ]
    shown = [
        {point: dice_of(sample, truth, point[1], point[0]) for point in points}
        for sample, truth in zip(levels, truths, strict=True)
    ]
    blank = [Fraction(not truth.any()) for truth in truths]
    if scores is None:
        surest = max(1, pixels // 256)
        scores = [int(np.sort(sample, axis=None)[-surest:].sum()) for sample in levels]
    best = None
    # A gate keeps the images from some score on: all of them first, none last.
    for gate in [*sorted(set(scores)), max(scores) + 1]:
        kept = [score >= gate for score in scores]
        for point in points:
            dice = [
                of_image[point] if keep else without
                for of_image, without, keep in zip(shown, blank, kept, strict=True)
            ]
            mean = sum(dice, Fraction(0)) / len(dice)
            if best is None or mean > best.dice:  # so the first of equals stays
                best = Best(mean, point[1] / 20, point[0], kept)
    assert best
    return best


def random_images(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of few levels, so that many points are equals; the surer, the truer."""
    rng = np.random.default_rng(seed)
    levels, truths = np.zeros((2, rng.integers(1, 6), 16, 32), np.uint8)
    for sample, truth in zip(levels, truths, strict=True):
        for _ in range(rng.integers(1, 6)):
            y, x, height, width = rng.integers((0, 0, 1, 1), (16, 32, 5, 9))
            box = np.s_[y : y + height, x : x + width]
            sample[box] = rng.choice([60, 110, 160, 210])
            truth[box] = rng.random() < sample[y, x] / 255
        truth *= rng.random() < 0.7
        sample[truth > 0] += 20
    return levels, truths


@pytest.mark.parametrize("seed", range(20))
def test_search_finds_what_trying_everything_finds(seed):
    levels, truths = random_images(seed)
    before = levels.copy(), truths.copy()
    expected = try_everything(levels, truths)
    point, reached = calibrate(levels, truths)
    np.testing.assert_array_equal((levels, truths), before)
    assert reached == pytest.approx(float(expected.dice), rel=1e-12)
    assert (point.threshold, point.min_area) == (expected.threshold, expected.area)
    # The point itself, used on the same images, keeps these and reaches that.
    surest = np.sort(levels.reshape(len(levels), -1))[:, -2:].mean(axis=1) / 255
    assert (surest >= point.presence).tolist() == expected.kept
    assert (point.presence == 0) == all(expected.kept)
    found = point.masks(levels)
    dice = [
        2 * (a & b).sum() / (a.sum() + b.sum()) if (a | b).any() else 1
        for a, b in zip(found, truths, strict=True)
    ]
    assert np.mean(dice) == pytest.approx(reached, rel=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_search_goes_by_the_presence_that_is_given(seed):
    levels, truths = random_images(seed)
    # Few values, so that some images cannot be parted; the levels know nothing of them.
    presence = np.random.default_rng((seed, 1)).choice([0.1, 0.4, 0.9], len(levels))
    expected = try_everything(levels, truths, presence.tolist())
    point, reached = calibrate(levels, truths, presence)
    assert reached == pytest.approx(float(expected.dice), rel=1e-12)
    assert (point.threshold, point.min_area) == (expected.threshold, expected.area)
    assert (presence >= point.presence).tolist() == expected.kept
    found = point.masks(levels, presence)
    dice = [
        2 * (a & b).sum() / (a.sum() + b.sum()) if (a | b).any() else 1
        for a, b in zip(found, truths, strict=True)
    ]
    assert np.mean(dice) == pytest.approx(reached, rel=1e-12)


def test_of_two_thresholds_as_near_to_one_half_the_lower_is_taken():
    levels, truths = np.zeros((2, 2, 16, 16), np.uint8)
    # .30 finds half of the first image's two pixels, Dice 2/3; .35 finds none, .25 a
    # false one as well.
    truths[0, 0, :2] = 1
    levels[0, 0, 0], levels[0, 9, 9] = 80, 70
    # Up to .65 the other's one pixel hangs together with four false ones, Dice 1/3;
    # .70 finds it alone; .75 does not.
    truths[1, 5, 5] = 1
    levels[1, 5, 5:10] = 185, 170, 170, 170, 170
    assert calibrate(levels, truths) == (OperatingPoint(0.3), pytest.approx(1 / 2))


def test_equals_stay_equals_though_their_sums_differ_in_the_last_bit():
    # Dice .3, .2, .1 above .5 and .1, .2, .3 above .45: in floats, .1 + .2 + .3 is more
    # than .3 + .2 + .1. Above .55 there is nothing, above .40 too much.
    levels, truths = np.zeros((2, 3, 256), np.uint8)
    for sample, truth, found, hits in (
        (levels[0], truths[0], 50, [0, 1, 2]),
        (levels[1], truths[1], 10, [0, 1]),
        (levels[2], truths[2], 30, [0, 20, 21, 22, 23, 24]),
    ):
        sample[:200], sample[:found], sample[:10] = 110, 120, 130
        truth[hits], truth[246 + len(hits) :] = 1, 1  # ten pixels
    point, dice = calibrate(levels.reshape(3, 16, 16), truths.reshape(3, 16, 16))
    assert point == OperatingPoint(0.5)
    assert dice == pytest.approx(0.2)


def squares(*samples: list[tuple[int, int]]) -> np.ndarray:
    """Images of 16x16 pixels; of each (side, level) a square, from left to right."""
    levels = np.zeros((len(samples), 16, 16), np.uint8)
    for sample, parts in zip(levels, samples, strict=True):
        left = 0
        for side, level in parts:
            sample[:side, left : left + side] = level
            left += side + 1
    return levels


def test_a_gate_pays_where_an_empty_image_is_told_by_its_score_alone():
    # The false area is larger and surer than the lesion, but for one pixel.
    levels = squares([(4, 150)], [(8, 180)])
    levels[0, 0, 0] = 250
    truths = (squares([(4, 1)], []) > 0).astype(np.uint8)
    point, dice = calibrate(levels, truths)
    assert (point.threshold, point.min_area, dice) == (0.5, 0, 1)
    assert 180 / 255 < point.presence <= 250 / 255


def test_a_gate_pays_where_the_given_presence_tells_the_empty_image():
    # By its levels alone the empty image is the surer one, and no gate would pay.
    levels = squares([(4, 150)], [(8, 180)])
    levels[1, 0, 0] = 250
    truths = (squares([(4, 1)], []) > 0).astype(np.uint8)
    point, dice = calibrate(levels, truths, np.array([0.3, 0.1]))
    assert (point, dice) == (OperatingPoint(0.5, presence=0.2), 1)
    assert point.masks(levels, np.array([0.3, 0.1]))[0].any()
    assert not point.masks(levels, np.array([0.3, 0.1]))[1].any()


def test_a_gate_does_not_pay_where_the_empty_image_scores_higher():
    levels = squares([(4, 150)], [(8, 180)])
    levels[1, 0, 0] = 250
    truths = (squares([(4, 1)], []) > 0).astype(np.uint8)
    # Both shown: Dice 1 and 0; both blank: 0 and 1. Then no gate.
    assert calibrate(levels, truths) == (OperatingPoint(0.5), 0.5)


def test_images_of_one_score_are_not_parted():
    levels = squares([(4, 200)], [(8, 200)], [(4, 220)])
    truths = (squares([(4, 1)], [], [(4, 1)]) > 0).astype(np.uint8)
    # Between the first two there is no gate, or the mean would be 1.
    assert calibrate(levels, truths) == (OperatingPoint(0.5), pytest.approx(2 / 3))


@pytest.mark.parametrize("seed", range(20))
def test_no_image_is_gated_where_all_have_the_finding(seed):
    levels, truths = random_images(seed)
    truths[:, -1, -1] = 1
    assert calibrate(levels, truths)[0].presence == 0


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (squares([(8, 100)], [(8, 127)]), OperatingPoint(0.5)),
        (squares([(8, 100)], [(8, 140)]), OperatingPoint(0.55)),
        # Too sure for any threshold: three pixels go by their number.
        (squares([(1, 255), (1, 255), (1, 255)], []), OperatingPoint(0.5, 2)),
        (squares([(2, 255), (1, 255)], []), OperatingPoint(0.5, 8)),
    ],
)
def test_without_any_truth_the_least_that_leaves_all_blank_is_taken(levels, expected):
    assert calibrate(levels, np.zeros_like(levels)) == (expected, 1)


@pytest.mark.parametrize("n", [1, 3])
def test_without_any_truth_a_gate_may_leave_all_blank(n):
    levels = np.full((n, 16, 16), 255, np.uint8)
    point, dice = calibrate(levels, np.zeros_like(levels))
    assert (point.threshold, point.min_area, dice) == (0.5, 0, 1)
    assert not point.masks(levels).any()


def test_points_are_read_as_they_were_written(tmp_path):
    point = OperatingPoint(0.35, 12, 0.7123456789012345)
    told = {"threshold": 0.35, "min_area": 12, "presence": 0.7123456789012345}
    points = {
        "truth": told | {"checkpoint": 932, "lungs": None},
        "none": {"threshold": 0.5, "min_area": 0, "presence": 0.0},
    }
    write_points(tmp_path / "new" / "run", points)
    assert read_points(tmp_path / "new" / "run") == points
    assert as_point(points["truth"]) == point
    assert as_point(points["none"]) == OperatingPoint(0.5)
    assert json.loads((tmp_path / "new" / "run" / FILE).read_text()) == points
    write_points(tmp_path / "new" / "run", {})
    assert read_points(tmp_path / "new" / "run") == {}


def test_a_run_without_the_file_has_no_points(tmp_path):
    assert read_points(tmp_path) == {}
    assert read_points(tmp_path / "nothing") == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"none": {"threshold": 0.5, "min_ar',
        b"\xff\xfe",
        b"null",
        b"[1, 2]",
        b'"none"',
        b'{"none": null}',
        b'{"none": [0.5, 0, 0.0]}',
        b'{"none": {"threshold": 0.5, "min_area": 0}}',
    ],
)
def test_a_file_that_holds_no_points_is_named(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    assert_refused(tmp_path)


def test_a_folder_in_place_of_the_file_is_named(tmp_path):
    (tmp_path / FILE).mkdir()
    assert_refused(tmp_path)


def assert_refused(workdir: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_points(workdir)
    said = str(caught.value)
    assert said.startswith(f"{workdir / FILE}: ") and "chosen anew" in said
    assert said.count("\n") <= 1


@pytest.mark.parametrize(
    "wrong",
    [{"threshold": "high"}, {"threshold": None}, {"threshold": 7},
     {"threshold": float("nan")}, {"min_area": -1}, {"presence": "sure"},
     {"threshold": "0.5"}, {"min_area": 2.5}, {"min_area": 2**31}, {"min_area": True},
     {"presence": 1e300}, {"presence": float("inf")}, {"threshold": 10**18}],
)  # fmt: skip
def test_a_point_of_wrong_values_is_refused(tmp_path, wrong):
    told = {"threshold": 0.5, "min_area": 0, "presence": 0.0}
    write_points(tmp_path, {"none": told | wrong})
    assert_refused(tmp_path)
