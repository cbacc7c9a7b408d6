"""Sample images that tell networks apart, and how far two of them are."""

import math

import numpy as np
import pytest

from covjax.data.pipeline import Region
from covjax.export.parity import SAMPLES, draw_samples, find_distance


@pytest.mark.parametrize("size", [16, 32, 48])
def test_samples_are_of_the_size_of_the_network_and_no_two_alike(size):
    samples = draw_samples(Region(), size)
    assert (samples.shape, samples.dtype) == ((SAMPLES, size, size, 1), np.uint8)
    assert len({sample.tobytes() for sample in samples}) == SAMPLES
    assert (
        samples.reshape(SAMPLES, -1).std(axis=1) > 0.5
    ).all()  # none is of one level
    np.testing.assert_array_equal(samples, draw_samples(Region(), size))
    assert not np.array_equal(samples, draw_samples(Region(), size, seed=1))


def test_samples_are_as_bright_as_images_and_as_dark():
    samples = draw_samples(Region(), 32)
    assert samples.max() > 250 and samples[-1].max() < 4


@pytest.mark.parametrize("roi", ["truth", "predicted", "outside"])
def test_a_cut_image_is_black_outside_of_what_is_shown(roi):
    whole, cut = draw_samples(Region(), 48), draw_samples(Region(roi), 48)
    shown = cut > 0
    np.testing.assert_array_equal(cut[shown], whole[shown])
    for k in range(SAMPLES):
        assert 0.02 < shown[k].mean() < 0.98


def test_lungs_stand_beside_the_image_where_the_network_is_shown_them():
    samples = draw_samples(Region("predicted", 0, "channel"), 48)
    assert samples.shape == (SAMPLES, 48, 48, 2)
    np.testing.assert_array_equal(samples[..., :1], draw_samples(Region(), 48))
    for lungs in samples[..., 1]:
        assert set(np.unique(lungs)) == {0, 255}


def told(*values: float, presence: float | None = None) -> dict[str, np.ndarray]:
    out = {"probability": np.array(values, np.float32).reshape(1, 1, -1, 1)}
    return out if presence is None else out | {"presence": np.array([presence])}


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        (told(0.25, 0.5), told(0.25, 0.5), 0),
        (told(0.25, 0.5, 0.75), told(0.25, 0.375, 0.8125), 0.125),
        (told(0.375), told(0.25), 0.125),  # either may be above
        (told(0.25), told(0.375), 0.125),
        (told(0.25, presence=0.5), told(0.375, presence=0.75), 0.25),
        (told(0.25, presence=0.5), told(0.25), math.inf),
        (told(0.25), told(0.25, presence=0.5), math.inf),
        (told(0.25, 0.25), told(0.25), math.inf),  # which NumPy would broadcast
    ],
)
def test_distance_is_the_largest_of_all_that_is_told(a, b, distance):
    assert find_distance(a, b) == distance


def test_a_number_that_is_none_is_no_distance():
    assert math.isnan(find_distance(told(0.5, np.nan, 0.5), told(0.5, 0.5, 0.5)))
    assert math.isnan(
        find_distance(told(np.nan, presence=0.5), told(0.5, presence=0.5))
    )
