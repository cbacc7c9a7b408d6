"""Masks: areas told apart, small ones dropped, holes filled, edges moved out.

The expected masks are drawn, `#` for foreground, or found pixel by pixel.
"""

from collections.abc import Callable

import numpy as np
import pytest

from covjax.data import mask_ops


def drawn(text: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in text.split()], np.uint8)


def noise(seed: int, height: int, width: int, share: float) -> np.ndarray:
    values = np.random.default_rng(seed).random((height, width))
    return (values < share).astype(np.uint8)


# Areas of 3, 1, 6, 2 (over a corner) and 4 pixels, from above.
FIVE = drawn("""
    ##.....#
    #.......
    ....###.
    ....###.
    ........
    #.....##
    .#....##
""")
EMPTY = np.zeros((6, 9), np.uint8)
FULL = np.ones((5, 6), np.uint8)
ANY = {
    "five": FIVE,
    "empty": EMPTY,
    "full": FULL,
    "dots": noise(3, 17, 17, 0.1),
    "noise": noise(1, 20, 31, 0.25),
    "maze": noise(2, 33, 8, 0.4),
}
any_mask = pytest.mark.parametrize("mask", list(ANY.values()), ids=list(ANY))


def walked_areas(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """The areas, each walked through from pixel to pixel over sides and corners."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    found = []
    while left:
        area, edge = set(), {min(left)}
        while edge:
            area |= edge
            left -= edge
            edge = left & {
                (y + dy, x + dx)
                for y, x in edge
                for dy in (-1, 0, 1)
                for dx in (-1, 0, 1)
            }
        found.append(area)
    return found


def areas_from(mask: np.ndarray, smallest: int) -> np.ndarray:
    """The areas of at least so many pixels."""
    expected = np.zeros_like(mask)
    for area in walked_areas(mask):
        for pixel in area:
            expected[pixel] = len(area) >= smallest
    return expected


@any_mask
def test_areas_touch_at_sides_and_corners(mask):
    labels, sizes = mask_ops.areas(mask)
    assert (labels.dtype, sizes.dtype) == (np.int32, np.int64)
    np.testing.assert_array_equal(labels > 0, mask > 0)
    expected = walked_areas(mask)
    assert len(sizes) == len(expected)
    for area in expected:
        (number,) = {int(labels[pixel]) for pixel in area}
        assert sizes[number - 1] == len(area)


def test_a_diagonal_is_one_area_and_a_gap_parts_two():
    assert mask_ops.areas(drawn("#.. .#. ..#"))[1].tolist() == [3]
    assert mask_ops.areas(drawn("#.# #.# #.#"))[1].tolist() == [3, 3]


@pytest.mark.parametrize(
    ("min_area", "left"),
    # Of 16 pixels; an area of exactly the smallest size stays.
    [(0, 16), (1, 16), (2, 15), (3, 13), (4, 10), (5, 6), (6, 6), (7, 0)],
)
def test_areas_below_the_smallest_are_dropped(min_area, left):
    assert mask_ops.drop_small(FIVE, min_area).sum() == left


@any_mask
@pytest.mark.parametrize("min_area", [0, 1, 2, 4, 5, 30, 31])
def test_areas_are_dropped_and_left_whole(mask, min_area):
    np.testing.assert_array_equal(
        mask_ops.drop_small(mask, min_area), areas_from(mask, min_area)
    )


@pytest.mark.parametrize(
    ("count", "smallest"),
    # Of more than there are, all.
    [(0, 7), (1, 6), (2, 4), (3, 3), (4, 2), (5, 1), (6, 1), (99, 1)],
)
def test_the_largest_areas_stay_wherever_they_lie(count, smallest):
    np.testing.assert_array_equal(
        mask_ops.keep_largest(FIVE, count), areas_from(FIVE, smallest)
    )


@pytest.mark.parametrize("step", [1, -1], ids=["as drawn", "mirrored"])
def test_of_two_equals_the_upper_one_stays(step):
    mask = drawn("""
        ##.....
        ##.....
        .......
        ....###
        ....###
        .......
        .###...
        .###...
    """)[:, ::step].copy()
    expected = mask.copy()
    expected[:3] = expected[5:] = 0
    np.testing.assert_array_equal(mask_ops.keep_largest(mask, 1), expected)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("##### #...# #.#.# #...# #####", "##### ##### ##### ##### #####"),
        # The foreground touches at corners, so the background does not.
        ("..#.. .#.#. #...# .#.#. ..#..", "..#.. .###. ##### .###. ..#.."),
        (".#### #...# #...# #####", ".#### ##### ##### #####"),
        # A gap is a way out; the border is no foreground.
        ("##.## #...# #...# #####", "##.## #...# #...# #####"),
        ("#.... #...# #...# #####", "#.... #...# #...# #####"),
        ("..... .###. .#.#. .#.#.", "..... .###. .#.#. .#.#."),
        # Each hole by itself.
        ("####### #.#.#.# #####.#", "####### #####.# #####.#"),
        ("####... #.#.### ####.## ...####", "####... ####### ####### ...####"),
    ],
)
def test_what_the_foreground_encloses_is_filled(mask, expected):
    np.testing.assert_array_equal(mask_ops.fill_holes(drawn(mask)), drawn(expected))


@any_mask
@pytest.mark.parametrize("radius", [0, 1, 2, 3])
def test_dilation_adds_what_is_no_farther_than_the_radius(mask, radius):
    expected = np.zeros_like(mask)
    for y, x in np.ndindex(mask.shape):
        distances = np.linalg.norm(np.argwhere(mask) - (y, x), axis=1)
        expected[y, x] = distances.min(initial=np.inf) <= radius
    np.testing.assert_array_equal(mask_ops.dilate(mask, radius), expected)


def test_dilation_ends_at_the_border_of_the_picture():
    mask = drawn("#..... ...... ...... .....# ......")
    one = drawn("##.... #..... .....# ....## .....#")
    two = drawn("###... ##...# #...## ...### ....##")
    np.testing.assert_array_equal(mask_ops.dilate(mask, 1), one)
    np.testing.assert_array_equal(mask_ops.dilate(mask, 2), two)


@any_mask
@pytest.mark.parametrize(
    "change",
    [
        lambda mask: mask_ops.drop_small(mask, 3),
        lambda mask: mask_ops.keep_largest(mask, 1),
        mask_ops.fill_holes,
        lambda mask: mask_ops.dilate(mask, 2),
    ],
    ids=["drop_small", "keep_largest", "fill_holes", "dilate"],
)
def test_a_mask_of_the_same_kind_is_made_and_the_given_one_left(
    mask: np.ndarray, change: Callable[[np.ndarray], np.ndarray]
):
    before = mask.copy()
    result = change(mask)
    assert (result.dtype, result.shape) == (np.uint8, mask.shape)
    assert set(np.unique(result)) <= {0, 1}
    np.testing.assert_array_equal(mask, before)
