"""What an epoch is worth on Val: numbers for the log, and the one that chooses."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
import numpy as np

from covjax import parallel
from covjax.data.covidqu import Sample
from covjax.data.pipeline import make_eval_dataset
from covjax.data.split_masks import read_split_masks
from covjax.metrics.counts import count_pixels
from covjax.metrics.operating_point import OperatingPoint, calibrate
from covjax.metrics.segmentation import FAMILIES, summarize
from covjax.train import eval_pass


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What an epoch came to on Val.

    Attributes:
      numbers: names → numbers, for the log.
      dice: by which the best epoch is chosen: mean Dice, family `all`.
      text: both in a line.
    """

    numbers: dict[str, Any]
    dice: float
    text: str


def make_judge(
    config: ml_collections.ConfigDict, samples: Sequence[Sample]
) -> Callable[[Any], Verdict]:
    """Returns what passes over Val with a replicated state, after an epoch.

    With `config.eval.choose` "untuned" the epoch is judged at `config.eval.threshold`.
    With "tuned" it is judged at the operating point that its own outputs give
    (metrics/operating_point.py): the run is evaluated at such a point, and an epoch
    that is good at .5 need not be good there.

    Args:
      config: the whole config.
      samples: the Val split.
    """
    labels = [sample.label for sample in samples]
    threshold = config.eval.threshold
    if config.eval.choose == "tuned":
        data = config.data
        truths = read_split_masks(samples, data.image_size, data.task).truth

        def judge_tuned(state: Any) -> Verdict:
            found = eval_pass.predict_split(config, samples, state)
            plain = OperatingPoint(threshold).masks(found.levels, found.presence)
            numbers = _numbers(
                count_pixels(truths, plain), found.losses, labels, threshold
            )
            point, dice = calibrate(found.levels, truths, found.presence)
            masks = point.masks(found.levels, found.presence)
            tuned = _numbers(
                count_pixels(truths, masks), found.losses, labels, point.threshold
            )
            told = {f"tuned_{k}": v for k, v in tuned.items() if k != "loss"}
            return Verdict(numbers | told, dice, _text(tuned, "all, tuned"))

        return judge_tuned

    rank, world = parallel.process()
    batches = make_eval_dataset(samples, config=config, rank=rank, world=world)
    eval_fn = eval_pass.compile_eval_step(config)

    def judge(state: Any) -> Verdict:
        scores = eval_pass.score(eval_fn, state, batches, len(samples))
        numbers = _numbers(scores.counts, scores.losses, labels, threshold)
        return Verdict(numbers, numbers["all_dice"], _text(numbers, "all"))

    return judge


def _numbers(
    counts: np.ndarray, losses: np.ndarray, labels: list[str], threshold: float
) -> dict[str, Any]:
    summary = summarize(counts, losses, labels, threshold=threshold, resamples=0)
    numbers = {
        f"{family}_{name}": summary[family][name]["mean"]
        for family in FAMILIES
        for name in ("dice", "iou")
    }
    blank = summary["blank_rate"]["mean"]
    return {"loss": summary["loss"], **numbers, "blank_rate": blank}


def _text(numbers: dict[str, Any], family: str) -> str:
    return (
        f"loss {numbers['loss']:.4f}  Dice {numbers['all_dice']:.4f}"
        f"  IoU {numbers['all_iou']:.4f}  ({family})"
    )
