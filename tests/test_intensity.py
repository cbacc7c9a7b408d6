"""Levels of images as a network sees them, against loops over pixels in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covjax.models.intensity import Intensity, normalize_intensity

SIDES = (6, 8)
jitted = jax.jit(normalize_intensity, static_argnames="how")


def make_images() -> np.ndarray:
    """Levels, uint8 [B, H, W, 1]; each kind of image that could go wrong."""
    rng = np.random.default_rng(0)
    samples = np.zeros((7, *SIDES), np.uint8)
    samples[0] = rng.integers(0, 256, SIDES)
    samples[1] = rng.integers(90, 110, SIDES) * (rng.random(SIDES) < 0.4)  # a region
    samples[2, 2:4, 1:7] = rng.integers(250, 256, (2, 6))  # bright, among much black
    samples[3] = 120  # of one level
    samples[4, 0, 0] = 7  # one pixel is shown
    samples[5] = rng.choice([0, 1, 254, 255], SIDES)
    return samples[..., None]  # the last is black


@functools.cache
def normalized(how: Intensity) -> np.ndarray:
    images = np.float32(make_images()) / np.float32(255)
    found = jitted(images, how=how)
    assert found.shape == images.shape and found.dtype == jnp.float32
    return np.asarray(found)


def standard_by_loops(sample: np.ndarray) -> np.ndarray:
    shown = [level / 255 for level in sample.ravel().tolist() if level]
    mean = sum(shown) / max(len(shown), 1)
    spread = (sum((x - mean) ** 2 for x in shown) / max(len(shown), 1)) ** 0.5
    return np.array(
        [(x / 255 - mean) / max(spread, 1 / 255) if x else 0 for x in sample.ravel()]
    ).reshape(sample.shape)


def equal_by_loops(sample: np.ndarray) -> np.ndarray:
    shown = [level for level in sample.ravel().tolist() if level]

    def rank(level: int) -> float:
        darker = sum(other < level for other in shown)
        alike = sum(other == level for other in shown)
        return (darker + alike / 2) / len(shown)

    return np.array([rank(x) if x else 0 for x in sample.ravel().tolist()]).reshape(
        sample.shape
    )


BY_LOOPS = {"standard": standard_by_loops, "equal": equal_by_loops}


def test_unit_leaves_every_bit():
    np.testing.assert_array_equal(
        normalized("unit"), np.float32(make_images()) / np.float32(255)
    )


@pytest.mark.parametrize("how", BY_LOOPS)
def test_agrees_with_loops_image_by_image(how: Intensity):
    expected = [BY_LOOPS[how](sample) for sample in make_images()]
    np.testing.assert_allclose(normalized(how), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("how", BY_LOOPS)
def test_what_is_not_shown_stays_0(how: Intensity):
    assert not normalized(how)[make_images() == 0].any()


def test_standard_has_mean_0_and_variance_1_over_what_is_shown():
    for place in (0, 1, 2, 5):
        values = np.asarray(normalized("standard")[place], np.float64)
        values = values[make_images()[place] > 0]
        assert values.mean() == pytest.approx(0, abs=1e-5)
        assert values.var() == pytest.approx(1, rel=1e-4)


def test_standard_does_not_blow_up_an_image_of_one_level():
    # 1/255 apart at the most, so at most 1 apart here.
    sample = np.full((1, *SIDES, 1), 120, np.uint8)
    sample[0, 0, 0] = 121
    found = np.asarray(jitted(np.float32(sample) / np.float32(255), how="standard"))
    assert found[0, 0, 0, 0] == pytest.approx(1 - 1 / sample.size, rel=1e-3)
    assert not normalized("standard")[[3, 4, 6]].any()


def test_equal_by_hand():
    # Of five pixels that are shown, one is darkest and two are alike in the middle.
    sample = np.array([0, 10, 20, 20, 30, 255, 0, 0], np.uint8).reshape(1, 2, 4, 1)
    found = jitted(np.float32(sample) / np.float32(255), how="equal")
    expected = np.array([0, 0.5, 2, 2, 3.5, 4.5, 0, 0]) / 5
    np.testing.assert_allclose(np.ravel(found), expected, rtol=1e-6)


def test_equal_undoes_any_change_of_exposure():
    rng = np.random.default_rng(1)
    sample = rng.integers(0, 200, (1, *SIDES, 1))
    # Brighter and steeper, with levels as far apart as they were, or farther.
    other = np.where(sample > 0, sample + sample**2 // 1000 + 15, 0)
    assert other.max() <= 255 and len(np.unique(sample)) == len(np.unique(other))
    before, after = (
        jitted(np.float32(x) / np.float32(255), how="equal") for x in (sample, other)
    )
    np.testing.assert_array_equal(before, after)


def test_an_image_does_not_depend_on_those_beside_it():
    for how in BY_LOOPS:
        images = np.float32(make_images()) / np.float32(255)
        turned = np.asarray(jitted(np.flip(images, 0), how=how))
        np.testing.assert_array_equal(turned[::-1], normalized(how))
