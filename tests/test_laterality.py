"""Which lung is which, and how much of each is infected."""

import numpy as np
import pytest

from covjax.predict.laterality import Side, measure_sides, split_sides


def mask(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Areas of (first row, end, first column, end), uint8 [20, 40]."""
    drawn = np.zeros((20, 40), np.uint8)
    for top, bottom, left, right in boxes:
        drawn[top:bottom, left:right] = 1
    return drawn


LEFT, RIGHT = (2, 18, 3, 15), (3, 19, 22, 34)


def test_the_lungs_are_named_by_the_patients_sides():
    infection = mask((2, 6, 3, 15), (0, 20, 16, 21))  # a quarter of the first; outside
    found = measure_sides(mask(LEFT, RIGHT), infection, patient_left_on_right=True)
    assert found["right"] == Side(16 * 12, 4 * 12)
    assert found["left"] == Side(16 * 12, 0)
    assert found["both"] == Side(192 + 192, 48)
    assert found["right"].share == 0.25 and found["left"].share == 0.0
    turned = measure_sides(mask(LEFT, RIGHT), infection, patient_left_on_right=False)
    assert turned["left"] == found["right"] and turned["right"] == found["left"]


@pytest.mark.parametrize("box", [LEFT, RIGHT])
def test_one_lung_is_on_its_side_of_the_picture(box):
    left, right = split_sides(mask(box))
    own, other = (left, right) if box == LEFT else (right, left)
    assert np.array_equal(own, mask(box)) and not other.any()
    assert measure_sides(other, other, patient_left_on_right=True)["both"].share is None


def test_lungs_that_touch_are_parted_where_they_are_thinnest():
    joined = mask(LEFT, RIGHT, (9, 11, 15, 22))
    left, right = split_sides(joined)
    assert np.array_equal(left + right, joined)
    assert (left & mask(LEFT)).sum() == 192 and (right & mask(RIGHT)).sum() == 192
    assert not (left & mask(RIGHT)).any() and not (right & mask(LEFT)).any()


def test_a_lung_in_pieces_is_one_lung():
    left, right = split_sides(mask((2, 8, 3, 15), (10, 18, 5, 14), RIGHT))
    assert left.sum() == 6 * 12 + 8 * 9 and np.array_equal(right, mask(RIGHT))


def test_no_lungs_have_no_sides():
    found = measure_sides(mask(), mask(LEFT), patient_left_on_right=True)
    assert found == dict.fromkeys(("right", "left", "both"), Side(0, 0))
