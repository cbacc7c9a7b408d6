"""Warnings for images that are not frontal chest X-rays, and for bad lungs."""

import numpy as np
import pytest

from covjax.predict.quality_checks import doubt


def lungs(*boxes: tuple[int, int, int, int], lean: int = 0) -> np.ndarray:
    """Boxes, whose lower ends are moved to the right by some pixels."""
    mask = np.zeros((200, 200), np.uint8)
    for top, bottom, left, right in boxes:
        for row in range(top, bottom):
            moved = round(lean * (row + 0.5 - top) / (bottom - top) - lean / 2)
            mask[row, left + moved : right + moved] = 1
    return mask


def sample_of(mask: np.ndarray) -> np.ndarray:
    return np.where(mask > 0, 60, 160).astype(np.uint8)


# The long axis of a box of height h and width w leans, moved by s, by half the angle
# whose tangent is 2 s h / (h * h - w * w - s * s): of these two by 15.6 degrees.
LEFT, RIGHT = (40, 160, 40, 80), (40, 160, 120, 160)
PAIR = lungs(LEFT, lean=-30) + lungs(RIGHT, lean=30)
IMAGE = sample_of(PAIR)


def test_a_chest_image_raises_no_doubts():
    assert doubt(IMAGE, PAIR) == []
    wide = lungs(LEFT, lean=-36) + lungs(RIGHT, lean=36)  # by 18.5 degrees each
    assert doubt(sample_of(wide), wide) == []


def test_levels_that_are_inverted_are_doubted():
    (told,) = doubt(255 - IMAGE, PAIR)
    assert told.startswith("lungs no darker than what lies between")
    # Of a range of 255 levels, 3 % are 7.65.
    radiograph = IMAGE.copy()
    radiograph[:5], radiograph[-5:] = 0, 255
    assert doubt(np.where(PAIR > 0, 150, radiograph), PAIR) == []
    (told,) = doubt(np.where(PAIR > 0, 155, radiograph), PAIR)
    assert told.startswith("lungs no darker")


def test_lungs_that_are_upside_down_are_doubted():
    (told,) = doubt(IMAGE[::-1], PAIR[::-1])
    assert told == "lungs no farther apart below than above: not a frontal chest X-ray?"
    assert doubt(IMAGE[:, ::-1], PAIR[:, ::-1]) == []  # a mirror image is none


def test_lungs_that_lie_across_are_doubted():
    # Axes of 78.3 degrees each: h = 40, w = 70, s = 20 as above.
    mask = lungs((80, 120, 10, 80), lean=-20) + lungs((80, 120, 120, 190), lean=20)
    (told,) = doubt(sample_of(mask), mask)
    assert told == "lungs that lie across: not a frontal chest X-ray?"


@pytest.mark.parametrize("lean", [70, -70])
def test_lungs_that_are_turned_are_doubted_by_how_much(lean):
    # (32.4 + 0) / 2 = 16.2 degrees, over the limit; the axes are 32.4 apart, which
    # is within theirs.
    upright, leaning = (LEFT, RIGHT) if lean > 0 else (RIGHT, LEFT)
    mask = lungs(upright) + lungs(leaning, lean=lean)
    for pair in (mask, mask.repeat(3, axis=0).repeat(2, axis=1)):  # as of a square
        (told,) = doubt(sample_of(pair), pair)
        assert told == "lungs turned by 16 degrees: not a frontal chest X-ray?"
    mask = lungs(upright) + lungs(leaning, lean=lean * 5 // 7)  # 25 degrees
    assert doubt(sample_of(mask), mask) == []


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (lungs(), "no lungs found: not a frontal chest X-ray?"),
        (lungs((40, 160, 30, 80)), "one area in place of two lungs: not a frontal"),
        (lungs((40, 60, 30, 50), (40, 60, 110, 130)), "lungs of 2% of the image"),
        (lungs((0, 190, 0, 95), (0, 190, 100, 195)), "lungs of 90% of the image"),
        (lungs((40, 160, 30, 80), (50, 60, 110, 150)), "one lung of 7% of the other"),
    ],
)
def test_lungs_that_are_none_are_doubted(mask, said):
    (told,) = doubt(IMAGE, mask)
    assert told.startswith(said) and told.endswith("not a frontal chest X-ray?")


def test_images_that_are_none_are_doubted():
    (told,) = doubt(IMAGE // 3 + 100, PAIR)
    assert told.startswith("little contrast")
    thin = PAIR.repeat(2, axis=0)
    (told,) = doubt(sample_of(thin), thin)
    assert told.startswith("200 x 400 pixels")
    (told,) = doubt(IMAGE[::4, ::4], PAIR[::4, ::4])
    assert told.startswith("50 x 50 pixels")
