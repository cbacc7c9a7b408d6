"""Losses against tables worked out by hand, and against plain float64 loops."""

import doctest
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from covjax.train import losses
from covjax.types import AXIS, Prediction

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


def random_pair(size: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (*size, 1)).astype(np.float32)
    return logits, (rng.random((*size, 1)) < 0.3).astype(np.float32)


def by_loops(logits: np.ndarray, masks: np.ndarray, smooth: float, name: str):
    """Any loss in float64, pixel by pixel."""
    values = []
    for image, mask in zip(logits.astype(float), masks.astype(float), strict=True):
        overlap = output = truth = missed = false = nats = focal = mild = 0.0
        for x, t in zip(image.ravel(), mask.ravel(), strict=True):
            p = 1 / (1 + np.exp(-x))
            overlap, output, truth = overlap + p * t, output + p, truth + t
            missed, false = missed + (1 - p) * t, false + p * (1 - t)
            for share, sure in ((t, p), (1 - t, 1 - p)):
                nats -= share * np.log(sure)
                focal -= share * (1 - sure) ** 2 * np.log(sure)
                mild -= share * np.sqrt(1 - sure) * np.log(sure)
        dice = 1 - (2 * overlap + smooth) / (output + truth + smooth)
        # Salehi's index, whose smooth is half of that of Dice.
        index = (overlap + smooth / 2) / (
            overlap + 0.7 * missed + 0.3 * false + smooth / 2
        )
        means = {"bce": nats, "focal": focal, "mild focal": mild}
        of_pixels = {key: value / image.size for key, value in means.items()}
        values.append((of_pixels | {"dice": dice, "tversky": 1 - index})[name])
    return np.array(values)


LOSSES = {
    "dice": losses.soft_dice_loss,
    "bce": losses.sigmoid_cross_entropy,
    "focal": losses.focal_loss,
    "mild focal": functools.partial(losses.focal_loss, gamma=0.5),
    "tversky": losses.tversky_loss,
}


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


# Logits and mask of four pixels, gamma, focal loss.
FOCAL = {
    "undecided": ([0] * 4, LEFT, 2.0, LN2 / 4),
    "undecided, gamma 0": ([0] * 4, LEFT, 0.0, LN2),
    "undecided, gamma 1/2": ([0] * 4, LEFT, 0.5, LN2 / np.sqrt(2)),
    # Every pixel has .75 for its truth, then .25.
    "nearly right": ([LN3, LN3, -LN3, -LN3], LEFT, 2.0, np.log(4 / 3) / 16),
    "nearly wrong": ([-LN3, -LN3, LN3, LN3], LEFT, 2.0, 2 * LN2 * 9 / 16),
    "one of four wrong": ([100, 100, -100, 100], LEFT, 2.0, 25),
}
# Logits and mask of four pixels, weight of missed ones, smooth, Tversky loss.
TVERSKY = {
    "exact": (ALL[:2] + NONE[:2], LEFT, 0.7, 1.0, 0),
    "two false": (ALL, LEFT, 0.7, 1.0, 1 - 5 / (2 * (2 + 0.3 * 2) + 1)),
    "two missed": (ALL[:2] + NONE[:2], [1] * 4, 0.7, 1.0, 1 - 5 / (2 * (2 + 1.4) + 1)),
    "only misses count": (ALL, LEFT, 1.0, 1.0, 0),
    "only false ones count": (NONE, LEFT, 0.0, 1.0, 0),
    "false alarm": (ALL, [0] * 4, 0.7, 4.0, 1 - 4 / (2 * 1.2 + 4)),
    "Dice": (ALL, LEFT, 0.5, 1.0, 1 - 5 / 7),
    "Dice, less smooth": ([0] * 4, LEFT, 0.5, 0.5, 1 - 2.5 / 4.5),
}


@pytest.mark.parametrize("case", FOCAL)
def test_focal_loss_by_hand(case: str):
    logits, mask, gamma, expected = FOCAL[case]
    found = losses.focal_loss(images(logits), images(mask), gamma=gamma)
    np.testing.assert_allclose(found, [expected], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", TVERSKY)
def test_tversky_loss_by_hand(case: str):
    logits, mask, missed, smooth, expected = TVERSKY[case]
    found = losses.tversky_loss(
        images(logits), images(mask), missed=missed, smooth=smooth
    )
    np.testing.assert_allclose(found, [expected], rtol=1e-6, atol=1e-6)


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
@pytest.mark.parametrize("soft", [False, True])
def test_agrees_with_float64_loops(name: str, soft: bool):
    logits, masks = random_pair((3, 5, 7), seed=2)
    if soft:  # shares of foreground, as coarser levels have them
        masks = np.random.default_rng(0).random(masks.shape).astype(np.float32)
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


WEIGHTS: list[dict[str, Any]] = [
    {"dice": 0.5, "bce": 0.5},
    {"dice": 1, "bce": 0},
    {"dice": 0, "bce": 1},
    {"dice": 2, "bce": 0.25},
    {"dice": 0, "bce": 0, "focal": 3},
    {"dice": 0.5, "bce": 0.25, "focal": 2, "tversky": 0.125},
]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_make_loss_weighs_its_terms(weights: dict[str, Any]):
    logits, masks = random_pair((3, 5, 7), seed=5)
    values = losses.make_loss(**weights)(jnp.asarray(logits), jnp.asarray(masks))
    assert values.shape == (3,) and values.dtype == jnp.float32
    expected = sum(
        weight * by_loops(logits, masks, 1.0, name) for name, weight in weights.items()
    )
    np.testing.assert_allclose(values, expected, rtol=2e-6)


def test_make_loss_hands_on_gamma_and_the_weight_of_missed_pixels():
    logits, masks = images([LN3, LN3, -LN3, -LN3], ALL), images(LEFT, LEFT)
    mild = losses.make_loss(dice=0, bce=0, focal=1, focal_gamma=0.5)
    assert mild(logits, masks)[0] == pytest.approx(np.log(4 / 3) / 2, rel=1e-6)
    blind = losses.make_loss(dice=0, bce=0, tversky=1, tversky_beta=1.0)
    assert blind(logits, masks)[1] == pytest.approx(0, abs=1e-6)


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


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("tversky", {"missed": 1.1}, "missed must be from 0 to 1, not 1.1"),
        ("tversky", {"missed": -0.1}, "missed must be from 0 to 1"),
        ("tversky", {"smooth": 0.0}, "smooth must be positive"),
        ("focal", {"gamma": -1.0}, "gamma must be at least 0, not -1.0"),
    ],
)
def test_shares_and_powers_out_of_range_are_refused(name: str, value: Any, said: str):
    with pytest.raises(ValueError, match=said):
        LOSSES[name](images(ALL), images(LEFT), **value)


@pytest.mark.parametrize(
    "weights",
    [
        {"dice": 0, "bce": 0},
        {"dice": -1, "bce": 2},
        {"dice": 2, "bce": -1},
        {"dice": 1, "bce": 1, "focal": -1},
        {"dice": 1, "bce": 1, "tversky": -1},
    ],
)
def test_weights_that_make_no_loss_are_refused(weights: dict[str, Any]):
    with pytest.raises(ValueError, match="loss weights must be >= 0"):
        losses.make_loss(**weights)
    with pytest.raises(ValueError, match="loss weights must be >= 0"):
        losses.make_objective(**weights)


def test_over_the_batch_there_is_one_ratio_for_all():
    # Two found and two false, then a false alarm of four: 2 of 2, with 6 false.
    logits, masks = images(ALL, ALL), images(LEFT, [0] * 4)
    dice = losses.soft_dice_loss(logits, masks, batch=True)
    np.testing.assert_allclose(dice, [1 - 5 / 11] * 2, rtol=1e-6)
    tversky = losses.tversky_loss(logits, masks, batch=True, smooth=2.0)
    expected = 1 - (4 + 2) / (2 * (2 + 0.3 * 6) + 2)
    np.testing.assert_allclose(tversky, [expected] * 2, rtol=1e-6)


def test_shares_of_blocks_by_hand():
    mask = np.zeros((1, 4, 8, 1))
    mask[0, 0, 3] = mask[0, 2:, 4:6] = 1  # a lesion of one pixel, and a whole block
    np.testing.assert_array_equal(
        losses.shares(jnp.asarray(mask), 2)[0, ..., 0], [[0, 1 / 4, 0, 0], [0, 0, 1, 0]]
    )
    np.testing.assert_array_equal(
        losses.shares(jnp.asarray(mask), 4).ravel(), [1 / 16, 1 / 4]
    )


def test_each_level_weighs_half_of_the_one_before():
    # Cross entropies of 1 for logits of 0, ln 3 and -ln 3, of 1/4 at the coarsest.
    levels = [jnp.full((1, side, side, 1), x) for side, x in ((4, 0), (2, LN3))]
    coarsest = jnp.full((1, 1, 1, 1), -LN3)
    objective = losses.make_objective(dice=0, bce=1)
    found = objective(
        Prediction(levels[0], None, (levels[1], coarsest)), jnp.ones((1, 4, 4, 1))
    )
    expected = 4 / 7 * LN2 + 2 / 7 * np.log(4 / 3) + 1 / 7 * np.log(4)
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


def test_presence_is_that_of_any_pixel():
    masks = images([0, 0, 0, 1], [0] * 4, [1] * 4, [0] * 4)
    claims = jnp.array([LN3, LN3, -LN3, -LN3])
    prediction = Prediction(jnp.zeros((4, 2, 2, 1)), claims)
    expected = np.log([4 / 3, 4, 4, 4 / 3])
    np.testing.assert_allclose(losses.presence_loss(claims, masks), expected, rtol=1e-6)
    objective = losses.make_objective(dice=0, bce=1, presence=0.25)
    np.testing.assert_allclose(
        objective(prediction, masks), LN2 + expected / 4, rtol=1e-6
    )


def test_a_presence_head_is_left_out_without_a_weight_and_missed_with_one():
    spoilt = Prediction(images(ALL), jnp.array([jnp.nan]))
    found = losses.make_objective(dice=1, bce=0)(spoilt, images(LEFT))
    np.testing.assert_allclose(found, [1 - 5 / 7], rtol=1e-6)
    objective = losses.make_objective(dice=1, bce=0, presence=0.5)
    with pytest.raises(ValueError, match="presence=0.5.*no presence head"):
        objective(Prediction(images(ALL)), images(LEFT))
    with pytest.raises(ValueError, match="presence=-1"):
        losses.make_objective(dice=1, bce=0, presence=-1)
    with pytest.raises(ValueError, match=r"one logit an image: \(1, 1\)"):
        losses.presence_loss(jnp.zeros((1, 1)), images(LEFT))


def test_images_without_foreground_weigh_less_in_the_pixel_losses_alone():
    masks = images([0, 0, 0, 1], [0] * 4)
    coarse = (jnp.zeros((2, 1, 1, 1)),)  # cross entropies of ln 2, as at full size
    prediction = Prediction(jnp.zeros((2, 2, 2, 1)), jnp.zeros(2), coarse)
    found = losses.make_objective(dice=0, bce=1, presence=0.5, empty_weight=0.25)(
        prediction, masks
    )
    np.testing.assert_allclose(found, [1.5 * LN2, 0.75 * LN2], rtol=1e-6)
    objective = losses.make_objective(dice=1, bce=0, empty_weight=0.0)
    for prediction in (images(ALL, ALL), images(ALL, [0] * 4)):
        of_pixels = objective(Prediction(prediction), masks)
        np.testing.assert_allclose(of_pixels, [1 - 3 / 6, 0], rtol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"empty_weight": -0.1},
        {"empty_weight": 1.1},
        {"empty_weight": 0.5, "batch_dice": True},
    ],
)
def test_a_weight_of_blank_images_that_cannot_be_is_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match="empty_weight must be from 0 to 1"):
        losses.make_objective(dice=1, bce=0, **wrong)


def test_evaluation_takes_the_pixel_losses_of_each_image_from_the_same_settings():
    config = base.get_config()
    config.loss.batch_dice, config.loss.presence = True, 0.5
    config.loss.tversky, config.loss.empty_weight = 2.0, 0.5
    loss_fn = losses.make_loss(**losses.pixel_terms(config.loss))
    logits, masks = random_pair((2, 4, 4), seed=6)
    expected = sum(
        weight * by_loops(logits, masks, 1.0, name)
        for name, weight in (("dice", 1), ("tversky", 2))
    )
    found = loss_fn(jnp.asarray(logits), jnp.asarray(masks))
    np.testing.assert_allclose(found, expected, rtol=2e-6)


SETTINGS = {"dice": 0.5, "bce": 0.25, "focal": 2.0, "tversky": 1.5, "presence": 0.3}


def objective_in_numpy(slope: float, bias: float, samples: Any, masks: Any) -> float:
    """The objective over a batch of 16, of a network of two parameters, in float64.

    A coarser level is judged by spreading its logits over their blocks: each of its
    pixels, those that are smooth as well, then counts as four.
    """
    samples, masks = np.float64(samples), np.float64(masks)
    blocks = samples.reshape(16, 2, 2, 2, 2).mean(axis=(2, 4))
    coarse = slope * blocks.repeat(2, axis=1).repeat(2, axis=2)[..., None] - bias
    total = 0.0
    levels = [(slope * samples + bias, 2 / 3, 1.0), (coarse, 1 / 3, 4.0)]
    for logits, weight, smooth in levels:
        for name in ("dice", "tversky", "bce", "focal"):
            # One picture of all pixels of the batch has the sums of the batch.
            whole, truth = (x.reshape(1, -1, 1, 1) for x in (logits, masks))
            [value] = by_loops(whole, truth, smooth, name)
            total += weight * SETTINGS[name] * value
    claims = slope * samples.mean(axis=(1, 2, 3)) + bias
    present = masks.any(axis=(1, 2, 3))
    p = 1 / (1 + np.exp(-claims))
    nats = -np.log(np.where(present, p, 1 - p)).mean()
    return total + SETTINGS["presence"] * nats


def objective_of_share(params: jax.Array, samples: jax.Array, masks: jax.Array):
    """The mean objective of one device's share and its gradient, as a step has them."""
    objective = losses.make_objective(batch_dice=True, **SETTINGS)

    def mean_objective(params: jax.Array) -> jax.Array:
        slope, bias = params
        prediction = Prediction(
            slope * samples + bias,
            slope * samples.mean(axis=(1, 2, 3)) + bias,
            (slope * losses.shares(samples, 2) - bias,),
        )
        return objective(prediction, masks).mean()

    found = jax.value_and_grad(mean_objective)(params)
    return jax.lax.pmean(found, AXIS)


@pytest.mark.parametrize("shares", [1, 8])
def test_over_the_batch_devices_have_the_gradient_of_all(devices, shares: int):
    samples = np.random.default_rng(7).normal(0, 1, (16, 4, 4, 1)).astype(np.float32)
    # From no foreground to much, so that no device's share is like another's.
    chance = np.linspace(-0.3, 0.9, 16).reshape(-1, 1, 1, 1)
    masks = np.random.default_rng(8).random((16, 4, 4, 1)) < chance
    masks = masks.astype(np.float32)
    step = jax.pmap(
        objective_of_share, AXIS, in_axes=(None, 0, 0), devices=devices[:shares]
    )
    split = (x.reshape(shares, -1, 4, 4, 1) for x in (samples, masks))
    values, slopes = step(jnp.array([1.5, -0.5]), *split)
    expected = objective_in_numpy(1.5, -0.5, samples, masks)
    np.testing.assert_allclose(values, np.full(shares, expected), rtol=1e-5)
    by = 1e-5
    rises = [
        objective_in_numpy(1.5 + by, -0.5, samples, masks)
        - objective_in_numpy(1.5 - by, -0.5, samples, masks),
        objective_in_numpy(1.5, -0.5 + by, samples, masks)
        - objective_in_numpy(1.5, -0.5 - by, samples, masks),
    ]
    expected = np.tile(np.array(rises) / (2 * by), (shares, 1))
    np.testing.assert_allclose(slopes, expected, rtol=1e-4)


def test_the_examples_in_the_docstrings_are_true():
    result = doctest.testmod(losses)
    assert result.attempted and not result.failed
