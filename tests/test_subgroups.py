"""Classes and sizes of lesions: a split by hand, and draws within a group."""

import json

import numpy as np
import pytest

from covjax.metrics import subgroups

# TP, FP, FN, TN; the infected share of the lungs.
SPLIT = [
    ("Normal", (0, 0, 0, 100), 0),
    ("COVID-19", (30, 10, 10, 50), 0.5),  # Dice 60/80, IoU 30/50
    ("Non-COVID", (0, 20, 0, 80), 0),
    ("COVID-19", (2, 0, 6, 92), 0.1),  # Dice 4/10, IoU 2/8
    ("COVID-19", (0, 7, 3, 90), 0.09),  # Dice 0, IoU 0
    ("Non-COVID", (0, 0, 0, 100), np.nan),
    ("COVID-19", (6, 2, 2, 90), np.nan),  # Dice 12/16; its lungs are not known
    ("Non-COVID", (0, 4, 0, 96), 0),
    ("COVID-19", (0, 50, 0, 50), 0),  # an empty truth in a class of infection
]
LABELS = [label for label, _, _ in SPLIT]
COUNTS = np.array([counts for _, counts, _ in SPLIT])
SHARES = np.array([share for _, _, share in SPLIT])
UNKNOWN = {"mean": None, "low": None, "high": None}


def test_classes_by_hand():
    result = subgroups.by_class(COUNTS, LABELS, resamples=0)
    assert list(result) == ["COVID-19", "Non-COVID", "Normal"]
    assert result["COVID-19"] == {
        "n": 5,
        "n_empty": 1,
        "dice": {"mean": pytest.approx((0.75 + 0.4 + 0 + 0.75 + 0) / 5)},
        "positive_dice": {"mean": pytest.approx((0.75 + 0.4 + 0 + 0.75) / 4)},
        "blank_rate": {"mean": 0},
        "false_pixels": {"mean": 50},  # of the empty image alone
    }
    assert result["Non-COVID"] == {
        "n": 3,
        "n_empty": 3,
        "dice": {"mean": pytest.approx(1 / 3)},
        "positive_dice": {"mean": None},
        "blank_rate": {"mean": pytest.approx(1 / 3)},
        "false_pixels": {"mean": 8},
    }
    assert result["Normal"]["dice"] == result["Normal"]["blank_rate"] == {"mean": 1}


def test_sizes_by_hand():
    # .1 and .5 both belong to the middle; no lesion is above .5; an empty truth is of
    # no size, and nor is a lesion in lungs that are not known.
    small, middle, large = subgroups.by_lesion_size(COUNTS, SHARES, resamples=20)
    zero = {"mean": 0, "low": 0, "high": 0}
    assert small == {
        "low": 0,
        "high": 0.1,
        "n": 1,
        "dice": zero,
        "iou": zero,
        "sensitivity": zero,
    }
    assert (middle["low"], middle["high"], middle["n"]) == (0.1, 0.5, 2)
    assert middle["dice"]["mean"] == pytest.approx((0.75 + 0.4) / 2)
    assert middle["iou"]["mean"] == pytest.approx((0.6 + 0.25) / 2)
    assert middle["sensitivity"]["mean"] == pytest.approx(32 / 48)
    assert (large["low"], large["high"], large["n"]) == (0.5, 1, 0)
    assert large["dice"] == large["iou"] == large["sensitivity"] == UNKNOWN
    assert json.loads(json.dumps(large)) == large


def test_a_large_lesion_is_above_a_half():
    counts = np.array([(5, 0, 5, 0), (10, 0, 0, 0)])
    result = subgroups.by_lesion_size(counts, np.array([0.501, 1]), resamples=0)
    assert [group["n"] for group in result] == [0, 0, 2]
    assert result[2]["sensitivity"] == {"mean": 0.75}


def test_draws_are_of_the_images_of_a_group():
    rng = np.random.default_rng(4)
    counts = rng.integers(1, 99, (40, 4))
    labels = rng.choice(["COVID-19", "Normal"], 40)
    counts[labels == "Normal", 0] = counts[labels == "Normal", 2] = 0
    shares = np.where(labels == "Normal", 0, 0.3)

    def drawn(of_group: np.ndarray) -> list[np.ndarray]:
        rng = np.random.default_rng(8)
        n = len(of_group)
        return [of_group[rng.integers(n, size=n)] for _ in range(300)]

    def check(found: dict, values: list) -> None:
        low, high = np.percentile(values, (2.5, 97.5))
        assert found["low"] == pytest.approx(low, rel=1e-9)
        assert found["high"] == pytest.approx(high, rel=1e-9)

    classes = subgroups.by_class(counts, labels.tolist(), resamples=300, seed=8)
    normal = drawn(counts[labels == "Normal"])
    check(classes["Normal"]["false_pixels"], [c[:, 1].mean() for c in normal])
    sizes = subgroups.by_lesion_size(counts, shares, resamples=300, seed=8)
    ill = drawn(counts[labels == "COVID-19"])
    sensitivity = [c[:, 0].sum() / (c[:, 0] + c[:, 2]).sum() for c in ill]
    check(sizes[1]["sensitivity"], sensitivity)
    tp, fp, fn = (np.stack(ill)[:, :, k] for k in range(3))
    dice = (2 * tp / (2 * tp + fp + fn)).mean(axis=1)
    check(sizes[1]["dice"], list(dice))
    check(classes["COVID-19"]["positive_dice"], list(dice))
