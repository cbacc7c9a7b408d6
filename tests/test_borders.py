"""The frame around an image, on arrays whose frame is known."""

import numpy as np
import pytest

from covjax.data.phantom.drawing import make_phantom
from covjax.predict.dicom.borders import find_box

NOISE = np.random.default_rng(0).integers(0, 256, (60, 80), np.uint8)
WHOLE = (slice(0, 60), slice(0, 80))


def framed(top: int, bottom: int, left: int, right: int, level: int = 0) -> np.ndarray:
    """The noise with that many lines of a level drawn over each edge."""
    image = NOISE.copy()
    image[:top], image[60 - bottom :] = level, level
    image[:, :left], image[:, 80 - right :] = level, level
    return image


@pytest.mark.parametrize("level", [0, 128, 255])
def test_each_edge_is_measured_alone(level):
    assert find_box(framed(3, 5, 7, 11, level)) == (slice(3, 55), slice(7, 69))
    assert find_box(framed(0, 1, 0, 0, level)) == (slice(0, 59), slice(0, 80))


def test_edges_of_different_levels():
    # Rows are uniform only where the columns beside them are gone.
    image = NOISE.copy()
    image[:, :6], image[:, 70:] = 0, 255
    image[:4, 6:70] = 90
    assert find_box(image) == (slice(4, 60), slice(6, 70))


def test_frame_may_waver_by_four_levels():
    image = framed(10, 0, 0, 0, 100)
    image[2, 5] = 104
    assert find_box(image) == (slice(10, 60), slice(0, 80))
    image[2, 5] = 105
    assert find_box(image) == (slice(2, 60), slice(0, 80))


def test_frame_within_a_frame_goes_too():
    # A white frame, and within it the black one of the shutters.
    image = framed(10, 6, 9, 8, 0)
    image[:4], image[58:], image[:, :3], image[:, 77:] = 255, 255, 255, 255
    assert find_box(image) == (slice(10, 54), slice(9, 72))


def test_more_than_two_fifths_of_a_side_are_no_frame():
    assert find_box(framed(12, 12, 0, 0)) == (slice(12, 48), slice(0, 80))
    assert find_box(framed(13, 12, 4, 0)) == (slice(0, 60), slice(4, 80))


def test_image_without_frame_is_kept():
    assert find_box(NOISE) == WHOLE
    radiograph = make_phantom("Normal", np.random.default_rng(1), 96)["image"]
    assert find_box(radiograph) == (slice(0, 96), slice(0, 96))


def test_uniform_image_is_kept():
    assert find_box(np.full((60, 80), 7, np.uint8)) == WHOLE
