"""An epoch's verdict on Val: its numbers anew by NumPy, untuned and tuned."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from covjax import parallel
from covjax.data.covidqu import Sample, list_samples, read_sample
from covjax.metrics.operating_point import calibrate
from covjax.train.train_state import TrainState, start_state
from covjax.train.validation import make_judge
from covjax.types import Prediction
from evaluated_run import SIDE, make_config, write_images

THRESHOLD = 0.4
SLOPE = 15.0
FAMILIES = [f"{family}_{name}" for family in ("all", "positive", "pooled")
            for name in ("dice", "iou")]  # fmt: skip


class Epoch(NamedTuple):
    """A network of three numbers, as it is after some epoch.

    Attributes:
      cut: level, as a share, from which a pixel is foreground at .5.
      rows: how many rows of an image it looks at.
      claim: weight of the image's mean level in the presence logit.
    """

    cut: float = 0.62
    rows: int = SIDE
    claim: float = 40.0


def network(variables, images, *, train):
    assert not train
    p = variables["params"]
    seen = jnp.arange(SIDE)[:, None, None] < p["rows"]
    logits = jnp.where(seen, SLOPE * (images - p["cut"]), -9.0)
    return Prediction(logits, p["claim"] * (images.mean(axis=(1, 2, 3)) - 0.2))


def state_of(epoch: Epoch) -> TrainState:
    params = {name: jnp.float32(value) for name, value in epoch._asdict().items()}
    return parallel.replicate(start_state(network, optax.identity(), params, {}))


class Expected(NamedTuple):
    """What NumPy finds of the images, in float64."""

    levels: np.ndarray
    presence: np.ndarray
    truths: np.ndarray
    losses: list[float]


def expected_of(epoch: Epoch, samples: list[Sample]) -> Expected:
    levels, presence, truths, losses = [], [], [], []
    for sample in samples:
        record = read_sample(sample, SIDE)
        x, truth = record["image"] * record["lung"] / 255, record["infection"]
        p = 1 / (1 + np.exp(-SLOPE * (x - epoch.cut)))
        p[epoch.rows :] = 1 / (1 + np.exp(9))
        levels.append(np.ceil(255 * p - 0.5).astype(np.uint8))
        presence.append(1 / (1 + np.exp(-epoch.claim * (x.mean() - 0.2))))
        truths.append(truth)
        dice = 1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1)
        losses.append((dice - np.log(np.where(truth > 0, p, 1 - p)).mean()) / 2)
    return Expected(np.array(levels), np.array(presence), np.array(truths), losses)


def recount(masks: np.ndarray, truths: np.ndarray) -> dict[str, Any]:
    """The families and the blank rate, an image at a time."""
    rows = []
    for mask, truth in zip(masks, truths, strict=True):
        tp, fp = int((mask & truth).sum()), int((mask & (1 - truth)).sum())
        fn = int(((1 - mask) & truth).sum())
        pixels = tp + fp + fn
        dice, iou = (2 * tp / (pixels + tp), tp / pixels) if pixels else (1.0, 1.0)
        rows.append((tp, fp, fn, dice, iou, tp + fn > 0, tp + fp == 0))
    tp, fp, fn, dice, iou, positive, blank = map(np.array, zip(*rows, strict=True))
    sums = tp.sum(), fp.sum() + fn.sum()
    return {
        "all_dice": dice.mean(),
        "all_iou": iou.mean(),
        "positive_dice": dice[positive].mean(),
        "positive_iou": iou[positive].mean(),
        "pooled_dice": 2 * sums[0] / (2 * sums[0] + sums[1]),
        "pooled_iou": sums[0] / (sums[0] + sums[1]),
        "blank_rate": blank[~positive].mean(),
    }


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[Sample]:
    """13 images of Val, so that the second batch of 8 is padded."""
    root = tmp_path_factory.mktemp("data") / "images"
    write_images(root)
    return list_samples(root, "infection", "Val")[3:]


def config_of(choose: str, samples: list[Sample]) -> ml_collections.ConfigDict:
    config = make_config("infection", samples[0].image.parents[4])
    config.eval.choose, config.eval.threshold = choose, THRESHOLD
    config.model.presence_head, config.loss.presence = True, 0.5
    return config


def check(numbers: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: numbers[name] for name in expected} == pytest.approx(
        expected, rel=1e-9
    )


@pytest.mark.parametrize("choose", ["untuned", "tuned"])
def test_numbers_at_the_bare_threshold_are_found_again(devices, samples, choose):
    found = expected_of(Epoch(), samples)
    expected = recount((found.levels / 255 > THRESHOLD).astype(np.uint8), found.truths)
    assert 0 < expected["blank_rate"] < 1 and expected["positive_dice"] < 0.9
    verdict = make_judge(config_of(choose, samples), samples)(state_of(Epoch()))
    check(verdict.numbers, expected)
    assert verdict.numbers["loss"] == pytest.approx(np.mean(found.losses), rel=1e-5)
    if choose == "tuned":
        return
    assert set(verdict.numbers) == {"loss", "blank_rate", *FAMILIES}
    assert verdict.dice == pytest.approx(expected["all_dice"], rel=1e-9)
    assert verdict.text == (
        f"loss {np.mean(found.losses):.4f}  Dice {expected['all_dice']:.4f}"
        f"  IoU {expected['all_iou']:.4f}  (all)"
    )


def test_tuned_numbers_are_those_at_the_point_that_these_outputs_give(devices, samples):
    found = expected_of(Epoch(), samples)
    point, reached = calibrate(found.levels, found.truths, found.presence)
    assert calibrate(found.levels, found.truths) != (point, reached)  # the head's gate
    expected = recount(point.masks(found.levels, found.presence), found.truths)
    assert expected["all_dice"] == pytest.approx(reached)
    verdict = make_judge(config_of("tuned", samples), samples)(state_of(Epoch()))
    check(verdict.numbers, {f"tuned_{name}": v for name, v in expected.items()})
    names = ["blank_rate", *FAMILIES]
    assert set(verdict.numbers) == {"loss", *names, *(f"tuned_{k}" for k in names)}
    assert verdict.dice == pytest.approx(reached, rel=1e-9)
    assert verdict.dice > verdict.numbers["all_dice"] + 0.01
    assert f"Dice {reached:.4f}" in verdict.text and "(all, tuned)" in verdict.text


def test_an_epoch_may_be_the_better_one_untuned_and_the_worse_one_tuned(
    devices, samples
):
    # The first sees a part of each image; the other all of it, but finds whole lungs
    # unless the threshold is high.
    partial, shifted = Epoch(rows=12), Epoch(cut=0.3)
    for choose, better in (("untuned", partial), ("tuned", shifted)):
        judge = make_judge(config_of(choose, samples), samples)
        dice = {epoch: judge(state_of(epoch)).dice for epoch in (partial, shifted)}
        assert max(dice, key=lambda epoch: dice[epoch]) == better
        assert abs(dice[partial] - dice[shifted]) > 0.05
