"""Losses against tables worked out by hand, and against plain float64 loops."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covjax import losses

LN2, LN3 = np.log(2.0), np.log(3.0)  # sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4
ALL, NONE = [100.0] * 4, [-100.0] * 4
LEFT, RIGHT = [1, 1, 0, 0], [0, 0, 1, 1]

# Logits and mask of four pixels, smooth, Dice loss, cross entropy.
TABLE = {
    "exact": ([100, 100, -100, -100], LEFT, 1.0, 0, 0),
    "everything found": (ALL, LEFT, 1.0, 1 - 5 / 7, 50),
    "half missed": ([100, -100, -100, -100], LEFT, 1.0, 1 - 3 / 4, 25),
    "wrong half": (ALL[:2] + NONE[:2], RIGHT, 1.0, 1 - 1 / 5, 100),
    "undecided": ([0] * 4, LEFT, 1.0, 1 - 3 / 5, LN2),
    "undecided, less smooth": ([0] * 4, LEFT, 0.5, 1 - 2.5 / 4.5, LN2),
    # Overlap .75 + .75, sum of the output 2; every pixel has .75 for its truth.
    "three quarters": ([LN3, LN3, -LN3, -LN3], LEFT, 1.0, 1 - 4 / 5, np.log(4 / 3)),
    "three quarters wrong": ([-LN3, -LN3, LN3, LN3], LEFT, 1.0, 1 - 2 / 5, 2 * LN2),
    "both empty": (NONE, [0] * 4, 1.0, 0, 0),
    "false alarm": (ALL, [0] * 4, 1.0, 1 - 1 / 5, 100),
    "false alarm, more smooth": (ALL, [0] * 4, 4.0, 1 - 4 / 8, 100),
    "all missed": (NONE, [1] * 4, 1.0, 1 - 1 / 5, 100),
    "both full": (ALL, [1] * 4, 1.0, 0, 0),
}


def images(*rows: list, dtype=jnp.float32) -> jax.Array:
    """Each row is one image of 2x2 pixels: [B, 2, 2, 1]."""
    return jnp.asarray(rows, dtype).reshape(-1, 2, 2, 1)


def random_pair(size: tuple[int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (*size, 1)).astype(np.float32)
    return logits, (rng.random((*size, 1)) < 0.3).astype(np.float32)


def by_loops(logits: np.ndarray, masks: np.ndarray, smooth: float, name: str):
    """Either loss in float64, pixel by pixel."""
    values = []
    for image, mask in zip(logits.astype(float), masks.astype(float), strict=True):
        overlap = output = truth = nats = 0.0
        for x, t in zip(image.ravel(), mask.ravel(), strict=True):
            p = 1 / (1 + np.exp(-x))
            overlap, output, truth = overlap + p * t, output + p, truth + t
            nats -= np.log(p if t else 1 - p)
        dice = 1 - (2 * overlap + smooth) / (output + truth + smooth)
        values.append({"dice": dice, "bce": nats / image.size}[name])
    return np.array(values)


LOSSES = {"dice": losses.soft_dice_loss, "bce": losses.sigmoid_cross_entropy}


@pytest.mark.parametrize("case", TABLE)
def test_four_pixels_by_hand(case: str):
    logits, mask, smooth, dice, bce = TABLE[case]
    pair = images(logits), images(mask)
    np.testing.assert_allclose(
        losses.soft_dice_loss(*pair, smooth=smooth), [dice], rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(
        losses.sigmoid_cross_entropy(*pair), [bce], rtol=1e-6, atol=1e-6
    )


def test_each_image_of_a_batch_has_the_loss_it_has_alone():
    rows = [row for row in TABLE.values() if row[2] == 1.0]
    logits, masks = images(*(r[0] for r in rows)), images(*(r[1] for r in rows))
    np.testing.assert_allclose(
        losses.soft_dice_loss(logits, masks), [r[3] for r in rows], atol=1e-6
    )
    np.testing.assert_allclose(
        losses.sigmoid_cross_entropy(logits, masks), [r[4] for r in rows], atol=1e-5
    )


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_crosses_from_one_image_to_another(name: str):
    logits, masks = map(jnp.asarray, random_pair((3, 2, 2), seed=1))
    slopes = jax.jacobian(LOSSES[name])(logits, masks)  # [3, 3, 2, 2, 1]
    touched = np.abs(slopes).sum(axis=(2, 3, 4)) > 0
    np.testing.assert_array_equal(touched, np.eye(3, dtype=bool))


@pytest.mark.parametrize("name", LOSSES)
def test_agrees_with_float64_loops(name: str):
    logits, masks = random_pair((3, 5, 7), seed=2)
    values = LOSSES[name](jnp.asarray(logits), jnp.asarray(masks))
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, by_loops(logits, masks, 1.0, name), rtol=2e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_agrees_with_finite_differences(name: str):
    logits, masks = random_pair((1, 3, 4), seed=3)
    found = jax.grad(lambda x: LOSSES[name](x, jnp.asarray(masks))[0])(
        jnp.asarray(logits)
    )
    step = 1e-5
    expected = np.zeros(logits.shape)
    for at in np.ndindex(logits.shape):
        up, down = logits.astype(np.float64), logits.astype(np.float64)
        up[at] += step
        down[at] -= step
        rise = by_loops(up, masks, 1.0, name) - by_loops(down, masks, 1.0, name)
        expected[at] = rise[0] / (2 * step)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_extreme_logits_give_finite_losses_and_gradients(name: str, size: float):
    # Right and wrong pixels, in an image with a mask and in one without.
    logits = images([size, -size, size, -size], [size, -size, 0, 0])
    masks = images(LEFT, [0] * 4)
    values = LOSSES[name](logits, masks)
    slopes = jax.grad(lambda x: LOSSES[name](x, masks).sum())(logits)
    assert np.isfinite(values).all() and np.isfinite(slopes).all()


def test_cross_entropy_still_pulls_where_the_logit_is_wrong_by_far():
    slopes = jax.grad(
        lambda x: losses.sigmoid_cross_entropy(x, images(LEFT)).sum(),
    )(images([-1e4, 1e4, 1e4, -1e4]))
    np.testing.assert_allclose(slopes, images([-1 / 4, 0, 1 / 4, 0]), atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_logits_are_summed_in_float32(name: str):
    logits, masks = random_pair((2, 64, 64), seed=4)
    rounded = jnp.asarray(logits, jnp.bfloat16)
    values = LOSSES[name](rounded, jnp.asarray(masks, jnp.bfloat16))
    assert values.dtype == jnp.float32
    # bfloat16 has 8 bits: a sum in it would be wrong in the third digit.
    expected = by_loops(np.asarray(rounded, np.float64), masks, 1.0, name)
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.parametrize(("dice", "bce"), [(0.5, 0.5), (1, 0), (0, 1), (2, 0.25)])
def test_make_loss_weighs_its_terms(dice: float, bce: float):
    logits, masks = random_pair((3, 5, 7), seed=5)
    values = losses.make_loss(dice=dice, bce=bce)(
        jnp.asarray(logits), jnp.asarray(masks)
    )
    assert values.shape == (3,) and values.dtype == jnp.float32
    expected = dice * by_loops(logits, masks, 1.0, "dice")
    expected += bce * by_loops(logits, masks, 1.0, "bce")
    np.testing.assert_allclose(values, expected, rtol=2e-6)


def test_a_term_of_weight_zero_cannot_spoil_the_loss():
    # The cross entropy of an infinite logit is 0 * inf, and 0 times that no number.
    logits, masks = images([np.inf, np.inf, -np.inf, -np.inf]), images(LEFT)
    assert np.isnan(losses.sigmoid_cross_entropy(logits, masks))
    np.testing.assert_allclose(losses.make_loss(dice=1, bce=0)(logits, masks), [0])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("logits", "masks"),
    [
        ((2, 4, 4, 1), (1, 4, 4, 1)),  # these would broadcast, without a word
        ((2, 4, 4, 1), (2, 4, 4)),
        ((2, 4, 4), (2, 4, 4)),
    ],
)
def test_shapes_that_differ_are_refused(name: str, logits: tuple, masks: tuple):
    with pytest.raises(ValueError, match=r"must be one \[B, H, W, 1\]: \(2, 4, 4"):
        LOSSES[name](jnp.zeros(logits), jnp.zeros(masks))


@pytest.mark.parametrize("smooth", [0.0, -1.0])
def test_smooth_must_be_positive(smooth: float):
    with pytest.raises(ValueError, match="smooth must be positive, not"):
        losses.soft_dice_loss(images(ALL), images(LEFT), smooth=smooth)


@pytest.mark.parametrize(("dice", "bce"), [(0, 0), (-1, 2), (2, -1)])
def test_weights_that_make_no_loss_are_refused(dice: float, bce: float):
    with pytest.raises(ValueError, match="loss weights must be >= 0"):
        losses.make_loss(dice=dice, bce=bce)


def test_the_examples_in_the_docstrings_are_true():
    result = doctest.testmod(losses)
    assert result.attempted and not result.failed
