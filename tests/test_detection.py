"""Image-level detection: presence by hand, scikit-learn's AUROC, pairs one by one."""

import json

import numpy as np
import pytest

from covjax.metrics import detection

I = np.arange(40)  # noqa: E741
SCORES = (7 * I * I + 3 * I) % 11 / 10  # six values: most pairs of images are near ties
POSITIVE = I * I % 5 < 2  # 24 of 40


def sample(side: int, *surest: int, rest: int = 0) -> np.ndarray:
    """Levels of a square image: a few pixels, scattered, and the rest of it."""
    levels = np.full(side * side, rest, np.uint8)
    places = np.random.default_rng(side).permutation(side * side)
    levels[places[: len(surest)]] = surest
    return levels.reshape(side, side)


def test_presence_is_the_mean_of_one_pixel_in_256_by_hand():
    # Of 32x32 pixels, the four surest.
    levels = [
        sample(32, 102, 255, 51, 204, rest=51),  # (255 + 204 + 102 + 51) / 4 = 153
        sample(32, 255, rest=0),  # one stray pixel: a quarter of sure
        sample(32, 200, 100, 100, 100, 100, 100),  # of equals, as many as there is room
        sample(32, *range(60, 80)),  # (79 + 78 + 77 + 76) / 4 = 77.5
        sample(32, rest=0),
        sample(32, rest=255),
        sample(32, 7, rest=9),  # the least sure pixel is not looked at
    ]
    scores = detection.presence_scores(np.stack(levels))
    assert scores.dtype == np.float64
    expected = np.array([153, 63.75, 125, 77.5, 0, 255, 9]) / 255
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("side", "taken"), [(1, 1), (4, 1), (16, 1), (22, 1), (23, 2), (64, 16)]
)
def test_presence_looks_at_one_pixel_at_least(side, taken):
    # 22x22 are 484 pixels, fewer than twice 256; 23x23 are 529.
    levels = np.random.default_rng(side).integers(0, 256, (3, side, side), np.uint8)
    expected = [
        sum(sorted(image.ravel().tolist())[-taken:]) / taken / 255 for image in levels
    ]
    np.testing.assert_allclose(detection.presence_scores(levels), expected, rtol=1e-12)


def test_presence_of_no_image_is_no_score():
    assert detection.presence_scores(np.zeros((0, 8, 8), np.uint8)).shape == (0,)


def share_of_pairs(scores: np.ndarray, positive: np.ndarray) -> float:
    """The AUROC by its meaning, pair by pair."""
    pairs = [
        (a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]
    ]
    return float(np.mean(pairs)) if pairs else np.nan


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # roc_auc_score(POSITIVE, scores) of scikit-learn 1.9.1.
        (SCORES, 0.4921875),
        (SCORES + POSITIVE * 0.25, 0.6822916666666666),
        (-SCORES, 0.5078125),
    ],
)
def test_auroc_is_that_of_scikit_learn(scores, expected):
    assert detection.auroc(scores, POSITIVE) == pytest.approx(expected, rel=1e-12)


def test_auroc_by_hand():
    # Positive .9 beats both; .5 beats one and ties with the other: 3.5 of 4 pairs.
    scores = np.array([0.5, 0.2, 0.9, 0.5])
    positive = np.array([False, False, True, True])
    assert detection.auroc(scores, positive) == 0.875


@pytest.mark.parametrize("positive", [[True, True], [False, False]])
def test_auroc_of_one_kind_of_image_is_not_defined(positive):
    positive = np.array(positive)
    assert np.isnan(detection.auroc(np.array([0.2, 0.7]), positive))
    result = detection.summarize_detection(
        np.array([0.2, 0.7]), positive, np.array([False, True]), resamples=20
    )
    unknown = {"mean": None, "low": None, "high": None}
    assert result["auroc"] == unknown
    missing = "specificity" if positive[0] else "sensitivity"
    assert result[missing] == unknown
    assert json.loads(json.dumps(result)) == result


def test_a_split_by_hand():
    # Three positive images, one found; four empty ones, three left blank.
    positive = np.array([1, 1, 1, 0, 0, 0, 0])
    found = np.array([1, 0, 0, 1, 0, 0, 0])
    scores = np.array([0.9, 0.4, 0.1, 0.8, 0.3, 0.2, 0.1])
    # The positive ones beat 4, 3 and 0 of four, and .1 ties once.
    assert detection.summarize_detection(scores, positive, found, resamples=0) == {
        "auroc": {"mean": pytest.approx(7.5 / 12)},
        "sensitivity": {"mean": pytest.approx(1 / 3)},
        "specificity": {"mean": pytest.approx(3 / 4)},
        "n_positive": 3,
        "n": 7,
    }


def test_intervals_are_those_of_images_drawn_one_by_one():
    scores = SCORES + POSITIVE * 0.25
    found = scores > 0.5
    result = detection.summarize_detection(
        scores, POSITIVE, found, resamples=520, seed=7
    )
    rng = np.random.default_rng(7)
    chosen = [rng.integers(40, size=40) for _ in range(520)]  # more than one chunk
    expected = {
        "auroc": [share_of_pairs(scores[i], POSITIVE[i]) for i in chosen],
        "sensitivity": [np.mean(found[i][POSITIVE[i]]) for i in chosen],
        "specificity": [np.mean(~found[i][~POSITIVE[i]]) for i in chosen],
    }
    for name, values in expected.items():
        low, high = np.percentile(values, (2.5, 97.5))
        assert result[name]["low"] == pytest.approx(low, rel=1e-9), name
        assert result[name]["high"] == pytest.approx(high, rel=1e-9), name


def test_draws_with_one_kind_of_image_are_left_out():
    # One positive image of three: 8 of 27 draws have none, 1 of 27 nothing else.
    result = detection.summarize_detection(
        np.array([0.9, 0.1, 0.2]), np.array([1, 0, 0]), np.ones(3), resamples=300
    )
    assert result["auroc"] == {"mean": 1, "low": 1, "high": 1}
