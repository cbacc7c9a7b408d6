"""What the networks saw of an image, as masks of its size."""

import numpy as np

from covjax.predict.postprocess import enlarge


def test_what_the_point_dropped_does_not_come_back_when_a_mask_is_enlarged():
    levels = np.zeros((8, 8), np.uint8)
    levels[1:4, 1:4] = 255
    levels[6, 6] = 255
    kept = np.zeros_like(levels)
    kept[1:4, 1:4] = 1
    big = enlarge(levels, kept, (64, 64), 0.5)
    assert big[40:, 40:].sum() == 0
    # Half-way between two pixels' centres the probability is a half: the square is of
    # 3 * 8 pixels still, but for its corners, where a product of two slopes is cut.
    assert big.sum(axis=1).max() == 24 and big.sum(axis=0).max() == 24
    assert 0.9 * 24 * 24 < big.sum() < 24 * 24
    assert np.argwhere(big).min() == 8 and np.argwhere(big).max() == 31


def test_a_low_threshold_moves_edges_outward():
    levels = np.zeros((8, 8), np.uint8)
    levels[1:4, 1:4] = 255
    big = enlarge(levels, levels // 255, (64, 64), 0.25)
    # A quarter is reached a quarter of a pixel further out than a half: 2 of 8.
    assert big.sum(axis=1).max() == big.sum(axis=0).max() == 24 + 2 * 2


def test_nothing_is_enlarged_to_nothing_and_the_same_size_is_left_as_it_is():
    levels = np.full((8, 8), 255, np.uint8)
    none = np.zeros_like(levels)
    assert enlarge(levels, none, (16, 20), 0.5).shape == (16, 20)
    assert not enlarge(levels, none, (16, 20), 0.5).any()
    assert enlarge(levels, none, (8, 8), 0.5) is none
