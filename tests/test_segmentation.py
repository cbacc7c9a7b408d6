"""Metrics: counts and families worked out by hand, a bootstrap done the long way."""

import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from covjax.metrics import counts as pixel_counts
from covjax.metrics import segmentation

# TP, FP, FN, TN of 100 pixels each; every meeting of empty and not empty occurs.
HAND = [
    ("COVID-19", (30, 10, 10, 50)),  # Dice 60/80, IoU 30/50
    ("COVID-19", (2, 0, 6, 92)),  # Dice 4/10, IoU 2/8
    ("COVID-19", (0, 0, 20, 80)),  # an empty output: 0
    ("Normal", (0, 0, 0, 100)),  # left blank: 1
    ("Non-COVID", (0, 20, 0, 80)),  # a false alarm: 0
    ("Non-COVID", (0, 0, 0, 100)),  # left blank: 1
]
LABELS = [label for label, _ in HAND]
COUNTS = np.array([counts for _, counts in HAND])
FAMILIES = {"all", "positive", "pooled"}


def summarize(counts, labels=None, **kwargs):
    counts = np.asarray(counts)
    labels = ["COVID-19"] * len(counts) if labels is None else labels
    kwargs = {"threshold": 0.5, "resamples": 200} | kwargs
    return segmentation.summarize(counts, np.zeros(len(counts)), labels, **kwargs)


def random_counts(n: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """A split like the infection set: half is empty, and half of that is blank."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 400, (n, 4))
    counts[: n // 2, [0, 2]] = 0
    counts[: n // 4, 1] = 0
    labels = rng.choice(["Normal", "Non-COVID"], n // 2).tolist()
    return counts, labels + ["COVID-19"] * (n - n // 2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        # Probabilities .9 .6 .5 .2 on the mask, .9 .6 .5 .1 beside it.
        (0.5, [(2, 2, 2, 2), (1, 1, 0, 6)]),  # .5 is not above .5
        (0.45, [(3, 3, 1, 1), (1, 1, 0, 6)]),
        (0.7, [(1, 1, 3, 3), (1, 1, 0, 6)]),
        (0.15, [(4, 3, 0, 1), (1, 2, 0, 5)]),
        (0.95, [(0, 0, 4, 4), (0, 0, 1, 7)]),
    ],
)
def test_counts_of_two_images_by_hand(threshold, expected, dtype):
    p = np.array(
        [
            [0.9, 0.6, 0.5, 0.2, 0.9, 0.6, 0.5, 0.1],
            [0.94, 0.94, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1],
        ]
    )
    logits = jnp.asarray(np.log(p / (1 - p)).reshape(2, 2, 4, 1), dtype)
    masks = np.zeros((2, 8), np.uint8)
    masks[0, :4] = masks[1, 0] = 1
    counts = pixel_counts.confusion_counts(
        logits, jnp.asarray(masks.reshape(2, 2, 4, 1)), threshold=threshold
    )
    assert counts.dtype == jnp.int32
    np.testing.assert_array_equal(counts, expected)


def test_counts_of_a_whole_image_are_exact():
    # 65,535 is beyond what float16, bfloat16 or int16 can count.
    logits = jnp.ones((1, 256, 256, 1)).at[0, 0, 0, 0].set(-1)
    counts = pixel_counts.confusion_counts(logits, jnp.ones_like(logits), threshold=0.5)
    np.testing.assert_array_equal(counts, [[65535, 0, 1, 0]])


@pytest.mark.parametrize(
    ("odds", "level"),
    [
        # p = odds / (1 + odds); level 255 p, to the nearest.
        (1, 127),  # 127.5: half-way goes down, so that p = .5 is not above .5
        (1.004, 128),  # 127.75
        (0.996, 127),  # 127.24
        (3, 191),  # 191.25
        (1 / 3, 64),  # 63.75: cut off, it would be 63
        (4, 204),  # p = .8, a level itself
        (0.25, 51),  # p = .2, likewise
        (509.5, 255),  # 254.5005
        (508.5, 254),  # 254.4995
        (1 / 508.5, 1),  # .5005
        (1 / 509.5, 0),  # .4995
        (np.exp(60), 255),  # as sure as float32 can be
        (np.exp(-120), 0),
    ],
)
def test_level_of_a_probability_by_hand(odds, level):
    found = pixel_counts.to_levels(jnp.full((1, 2, 3, 1), np.log(odds), jnp.float32))
    assert (found.shape, found.dtype) == ((1, 2, 3, 1), jnp.uint8)
    np.testing.assert_array_equal(found, level)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_level_is_the_nearest_one_whatever_the_type_of_the_logits(dtype):
    # Eighths are exact in bfloat16, their sigmoids are not.
    logits = np.arange(-60, 61) / 8
    exact = 255 / (1 + np.exp(-logits))
    nearest = [min(range(256), key=lambda n: (abs(n - x), n)) for x in exact]
    found = pixel_counts.to_levels(jnp.asarray(logits, dtype))
    np.testing.assert_array_equal(found, nearest)


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.6, 0.95])
def test_pixels_counted_on_a_device_and_on_the_host_are_the_same(threshold):
    # .6 is level 153 itself, which is not above it: the logits hold it.
    rng = np.random.default_rng(3)
    levels = rng.integers(0, 256, (3, 8, 8)).clip(1, 254)
    levels[:, 0] = 153
    logits = np.log(levels / (255 - levels))
    truths = rng.integers(0, 2, levels.shape, np.uint8)
    expected = np.zeros((3, 4), int)
    for i, y, x in np.ndindex(*levels.shape):
        is_found = 100 * levels[i, y, x] > 255 * round(100 * threshold)
        cell = (0 if truths[i, y, x] else 1) if is_found else 3 - truths[i, y, x]
        expected[i, cell] += 1
    on_device = pixel_counts.confusion_counts(
        jnp.asarray(logits[..., None], jnp.float32),
        jnp.asarray(truths[..., None]),
        threshold=threshold,
    )
    np.testing.assert_array_equal(on_device, expected)
    kept = np.asarray(pixel_counts.to_levels(jnp.asarray(logits, jnp.float32)))
    outputs = (kept > pixel_counts.TOP_LEVEL * threshold).astype(np.uint8)
    on_host = pixel_counts.count_pixels(truths, outputs)
    np.testing.assert_array_equal(on_host, expected)


def test_pixels_of_masks_by_hand():
    truths = [
        [[1, 1, 1, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0]],  # a false alarm
        [[1, 1, 1, 1], [1, 1, 1, 1]],  # missed altogether
        [[0, 0, 0, 0], [0, 0, 0, 0]],  # left blank
    ]
    outputs = [
        [[0, 1, 1, 1], [1, 1, 0, 0]],
        [[1, 0, 0, 0], [0, 0, 1, 1]],
        [[0, 0, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0]],
    ]
    counts = pixel_counts.count_pixels(
        np.array(truths, np.uint8), np.array(outputs, np.uint8)
    )
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(
        counts, [(2, 3, 1, 2), (0, 3, 0, 5), (0, 0, 8, 0), (0, 0, 0, 8)]
    )


def test_pixels_of_no_mask_are_no_rows():
    none = np.zeros((0, 4, 4), np.uint8)
    assert pixel_counts.count_pixels(none, none).shape == (0, 4)


def test_dice_and_iou_of_each_image_by_hand():
    dice, iou = pixel_counts.dice_per_image(COUNTS), pixel_counts.iou_per_image(COUNTS)
    assert dice.dtype == iou.dtype == np.float64
    np.testing.assert_array_equal(dice, [0.75, 0.4, 0, 1, 0, 1])
    np.testing.assert_array_equal(iou, [0.6, 0.25, 0, 1, 0, 1])


def test_an_output_beside_the_mask_scores_zero():
    beside = np.array([[0, 5, 5, 90]])
    assert (
        pixel_counts.dice_per_image(beside) == pixel_counts.iou_per_image(beside) == 0
    )


def test_four_families_by_hand():
    losses = np.array([0.25, 0.5, 1, 0, 1, 0.25], np.float32)
    result = segmentation.summarize(COUNTS, losses, LABELS, threshold=0.3, resamples=0)
    assert result == {
        "n": 6,
        "n_empty": 3,
        "threshold": 0.3,
        "loss": 0.5,
        "all": {
            "dice": {"mean": pytest.approx(3.15 / 6)},
            "iou": {"mean": pytest.approx(2.85 / 6)},
        },
        "positive": {
            "dice": {"mean": pytest.approx(1.15 / 3)},
            "iou": {"mean": pytest.approx(0.85 / 3)},
        },
        # Sums: TP 32, FP 30, FN 36.
        "pooled": {
            "dice": {"mean": pytest.approx(64 / 130)},
            "iou": {"mean": pytest.approx(32 / 98)},
        },
        "blank_rate": {"mean": pytest.approx(2 / 3), "Normal": 1.0, "Non-COVID": 0.5},
    }


def test_the_result_has_the_keys_of_the_contract_and_is_json():
    result = summarize(COUNTS, LABELS)
    figure = {"mean", "low", "high"}
    assert set(result) == {"n", "n_empty", "threshold", "loss", "blank_rate"} | FAMILIES
    for family in FAMILIES:
        assert set(result[family]) == {"dice", "iou"}
        assert set(result[family]["dice"]) == set(result[family]["iou"]) == figure
    assert set(result["blank_rate"]) == figure | {"Normal", "Non-COVID"}
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.parametrize("seed", range(3))
def test_all_is_positive_and_blank_rate_weighed_by_their_images(seed: int):
    counts, labels = random_counts(41, seed)
    result = summarize(counts, labels, resamples=0)
    n, empty = result["n"], result["n_empty"]
    assert (n, empty) == (41, 20)
    blank = result["blank_rate"]["mean"]
    for name in ("dice", "iou"):
        positive = result["positive"][name]["mean"]
        assert result["all"][name]["mean"] == pytest.approx(
            (positive * (n - empty) + blank * empty) / n, rel=1e-12
        )


def test_pooled_iou_follows_from_pooled_dice():
    counts, labels = random_counts(41, seed=4)
    result = summarize(counts, labels, resamples=0)["pooled"]
    dice = result["dice"]["mean"]
    assert result["iou"]["mean"] == pytest.approx(dice / (2 - dice), rel=1e-12)


def test_without_an_empty_mask_all_is_positive_and_the_blank_rate_is_none():
    result = summarize(COUNTS[:3])
    assert result["all"] == result["positive"]
    assert result["blank_rate"] == dict.fromkeys(
        ("mean", "low", "high", "Normal", "Non-COVID")
    )


def test_with_empty_masks_only_positive_is_none():
    none = {"mean": None, "low": None, "high": None}
    result = summarize(COUNTS[3:5], LABELS[3:5])  # one blank, one false alarm
    assert result["positive"] == {"dice": none, "iou": none}
    assert result["pooled"]["dice"]["mean"] == 0  # there were pixels to find right
    assert result["all"]["dice"]["mean"] == result["blank_rate"]["mean"] == 0.5


def test_without_a_pixel_in_mask_or_output_pooled_is_none():
    none = {"mean": None, "low": None, "high": None}
    result = summarize(COUNTS[[3, 5]], ["Normal", "Normal"])
    assert result["pooled"] == {"dice": none, "iou": none}
    assert result["blank_rate"]["Normal"] == 1
    assert result["blank_rate"]["Non-COVID"] is None
    assert result["all"]["dice"] == {"mean": 1, "low": 1, "high": 1}


def test_blank_rate_of_a_class_counts_its_empty_masks_only():
    # A Normal image with a mask is no chance to leave an image blank.
    counts = [(5, 0, 0, 95), (0, 0, 0, 100), (0, 1, 0, 99), (0, 0, 0, 100)]
    result = summarize(counts, ["Normal"] * 3 + ["COVID-19"])
    assert result["blank_rate"]["Normal"] == 0.5
    assert result["blank_rate"]["mean"] == pytest.approx(2 / 3)


def test_one_seed_gives_one_interval():
    counts, labels = random_counts(40, seed=5)
    first = summarize(counts, labels, seed=7)
    assert summarize(counts, labels, seed=7) == first
    assert summarize(counts, labels, seed=8) != first


def figures_by_hand(counts: np.ndarray) -> dict[str, Any]:
    """The figures of one resample from its images alone, as docs/metrics.md has it."""
    dice, iou, positive, blank = [], [], [], []
    for tp, fp, fn, _ in counts.tolist():
        if tp + fn == 0:
            blank.append(fp == 0)
            dice.append(float(fp == 0))
            iou.append(float(fp == 0))
        else:
            dice.append(2 * tp / (2 * tp + fp + fn))
            iou.append(tp / (tp + fp + fn))
            positive.append((dice[-1], iou[-1]))
    tp, fp, fn, _ = counts.sum(axis=0).tolist()
    return {
        "all dice": np.mean(dice),
        "all iou": np.mean(iou),
        "positive dice": np.mean([d for d, _ in positive]),
        "positive iou": np.mean([i for _, i in positive]),
        "pooled dice": 2 * tp / (2 * tp + fp + fn),
        "pooled iou": tp / (tp + fp + fn),
        "blank_rate": np.mean(blank),
    }


def test_intervals_are_those_of_figures_computed_anew_from_every_resample():
    counts, labels = random_counts(30, seed=6)
    result = summarize(counts, labels, resamples=500, seed=11)
    # The same draws: one generator of this seed, n images a time.
    rng = np.random.default_rng(11)
    draws = [figures_by_hand(counts[rng.integers(30, size=30)]) for _ in range(500)]
    for name in draws[0]:
        family, _, measure = name.partition(" ")
        found = result[family][measure] if measure else result[family]
        low, high = np.percentile([draw[name] for draw in draws], (2.5, 97.5))
        assert found["low"] == pytest.approx(low, rel=1e-9), name
        assert found["high"] == pytest.approx(high, rel=1e-9), name
        assert found["low"] < found["mean"] < found["high"], name


def test_resamples_without_a_positive_image_are_left_out():
    # One positive image of three: 8 of 27 resamples have none, the others its Dice.
    result = summarize([(3, 1, 1, 5), (0, 0, 0, 10), (0, 1, 0, 9)])
    assert result["positive"]["dice"] == {"mean": 0.75, "low": 0.75, "high": 0.75}


def test_an_interval_of_a_mean_has_the_width_of_the_normal_approximation():
    rng = np.random.default_rng(8)
    tp = rng.integers(1, 99, 400)
    counts = np.stack([tp, 99 - tp, np.ones(400), np.zeros(400)], axis=1)
    figure = summarize(counts, resamples=4000)["positive"]["dice"]
    dice = 2 * tp / (tp + 100)
    half = 1.96 * dice.std() / 20
    assert figure["mean"] == pytest.approx(dice.mean())
    assert figure["low"] == pytest.approx(dice.mean() - half, abs=half / 10)
    assert figure["high"] == pytest.approx(dice.mean() + half, abs=half / 10)
