"""A trained network on a split: its operating point is tuned, its results are written.

The operating point is tuned on Val, and before the split is read: where a run has none
yet for its checkpoint and a region of interest, Val is evaluated first, in the same
way. Nothing here draws or prints tables; `covjax.run` does.
"""

import dataclasses
from pathlib import Path
from typing import Any

import ml_collections

from covjax import multihost, parallel
from covjax.config import ROIS, loss_weights
from covjax.data.covidqu import is_from_table, is_phantom
from covjax.data.source import Samples
from covjax.data.split_masks import SplitMasks, read_split_masks
from covjax.evaluation.lung_masks import LungFinder, find_lungs, same_lungs
from covjax.evaluation.results import (
    Evaluated,
    measure,
    remove_results,
    summarize_evaluated,
    write_results,
)
from covjax.metrics.operating_point import (
    OBJECTIVE,
    OperatingPoint,
    as_point,
    calibrate,
    read_points,
    write_points,
)
from covjax.train.eval_pass import Outputs, predict_split
from covjax.train.restore import Trained, share_trained

SPLITS = ("train", "val", "test")


@dataclasses.dataclass
class Subject:
    """A run that is evaluated: its best checkpoint and its data.

    Attributes:
      config: the run's.
      workdir: the run's folder.
      root: of the data.
      trained: the checkpoint.
      state: of the checkpoint, replicated.
      finder: finds the lungs; None: results with predicted lungs are left out.
      points: operating points, by region of interest.
      samples: of every split; predicted lungs are added when they are first needed.
      masks: by split, read when they are first needed.
    """

    config: ml_collections.ConfigDict
    workdir: Path
    root: Path
    trained: Trained
    state: Any
    finder: LungFinder | None
    points: dict[str, dict[str, Any]]
    samples: Samples
    masks: dict[str, SplitMasks] = dataclasses.field(default_factory=dict)

    def about(self, roi: str) -> dict[str, Any]:
        """Returns what an operating point or a result holds for."""
        finder = self.finder if roi == "predicted" else None
        return {
            "checkpoint": self.trained.step,
            "fingerprint": self.trained.fingerprint,
            "lungs": finder.told() if finder else None,
        }

    def stem(self, split: str, roi: str) -> str:
        """Returns the name of the files of results, without suffix."""
        return split.lower() + ("" if roi == self.config.data.roi else f"-{roi}")

    def split_masks(self, split: str) -> SplitMasks:
        """Returns the masks of a split."""
        if split not in self.masks:
            data, samples = self.config.data, self.samples[split]
            self.masks[split] = read_split_masks(samples, data.image_size, data.task)
        return self.masks[split]


def load_subject(
    config: ml_collections.ConfigDict,
    workdir: Path,
    root: Path,
    samples: Samples,
    finder: LungFinder | None,
) -> Subject:
    """Reads the best checkpoint of a run and its operating points.

    Args:
      config: the run's.
      workdir: the run's folder.
      root: of the data.
      samples: of every split.
      finder: of the lungs; None: results with predicted lungs are left out.

    Raises:
      UsageError: if there is no whole checkpoint.
    """
    trained = share_trained(str(workdir))
    # A run trained on the outside of the lungs is never evaluated on predicted ones.
    finder = None if config.data.roi == "outside" else finder
    return Subject(
        config, workdir, root, trained, parallel.replicate(trained.state), finder,
        points=multihost.on_main(lambda: read_points(workdir)), samples=dict(samples),
    )  # fmt: skip


def list_rois(config: ml_collections.ConfigDict, *, predicted: bool) -> list[str]:
    """Returns the regions of interest to evaluate, the one of training first.

    Args:
      config: the run's.
      predicted: whether predicted lungs can be had.
    """
    own = config.data.roi
    if config.data.task == "lung" or own == "outside":
        return [own]
    rois = [own, "truth", "predicted", "none", "outside"]
    if not predicted:
        rois.remove("predicted")
    if config.data.roi_as == "channel":
        rois.remove("none")  # it was not trained without lungs
    return list(dict.fromkeys(rois))


def remove_outdated(subject: Subject) -> None:
    """Removes results of other checkpoints, which would pass for this one's."""
    identity = subject.trained.step, subject.trained.fingerprint
    for split in SPLITS:
        for roi in (None, *ROIS):
            stem = split if roi is None else f"{split}-{roi}"
            remove_results(subject.workdir / "results", stem, unless=identity)


def needs_tuning(subject: Subject, roi: str) -> bool:
    """Tells whether a region of interest lacks an operating point of this checkpoint.

    The outside of the lungs is a probe for shortcuts and never tuned, except in a run
    that was trained on it.
    """
    if _is_probe(subject, roi):
        return False
    point, about = subject.points.get(roi, {}), subject.about(roi)
    same = all(point.get(key) == about[key] for key in ("checkpoint", "fingerprint"))
    return not same or not same_lungs(point.get("lungs"), about["lungs"])


def tune_operating_point(subject: Subject, roi: str) -> Outputs:
    """Tunes the operating point of a region of interest on Val, and writes it.

    Val's results are written as well: arms of an experiment are chosen by them.

    Args:
      subject: to evaluate; the point is added to it in the main process.
      roi: region of interest.

    Returns:
      The network's outputs on Val.
    """
    outputs = predict(subject, "Val", roi)
    if not parallel.is_main():
        return outputs
    truth = subject.split_masks("Val").truth
    point, dice = calibrate(outputs.levels, truth, outputs.presence)
    for split in SPLITS:  # measured at the previous point
        remove_results(subject.workdir / "results", subject.stem(split, roi))
    subject.points[roi] = dataclasses.asdict(point) | {
        "chosen_on": "val",
        "objective": OBJECTIVE,
        "reached": dice,
        "n": len(outputs.levels),
        **subject.about(roi),
    }
    score_split(subject, "Val", roi, outputs)
    write_points(subject.workdir, subject.points)
    return outputs


def predict(subject: Subject, split: str, roi: str) -> Outputs:
    """Returns the network's outputs on a split; all processes take part.

    Args:
      subject: to evaluate; predicted lungs are added to its images.
      split: "Train", "Val" or "Test".
      roi: region of interest.
    """
    samples = subject.samples[split]
    if subject.finder and samples[0].found_lung is None:
        samples = find_lungs(subject.finder, samples, spare=subject.workdir)
        subject.samples[split] = samples
    return predict_split(subject.config, samples, subject.state, roi=roi)


def score_split(
    subject: Subject, split: str, roi: str, outputs: Outputs
) -> tuple[Evaluated, dict[str, Any]]:
    """Measures a split at its operating point, and writes its results.

    Args:
      subject: to evaluate.
      split: "Train", "Val" or "Test".
      roi: region of interest.
      outputs: from `predict`.

    Returns:
      The split image by image, and what results/<stem>.json holds.
    """
    data, untuned = subject.config.data, subject.config.eval.threshold
    told = None if _is_probe(subject, roi) else subject.points[roi]
    point = as_point(told) if told else OperatingPoint(untuned)
    evaluated = measure(
        subject.samples[split], outputs, subject.split_masks(split), point,
        task=data.task, roi=roi,
    )  # fmt: skip
    summary = {"split": split.lower()} | summarize_evaluated(
        evaluated,
        task=data.task,
        threshold=point.threshold,
        untuned=untuned if told else None,
    )
    summary |= {
        "task": data.task,
        "roi": roi,
        "roi_dilate": data.roi_dilate if roi != "none" else 0,
        "roi_as": data.roi_as if roi != "none" else "cut",
        "presence_from": "head" if subject.config.model.presence_head else "pixels",
        "loss_weights": loss_weights(subject.config.loss),
        "image_size": data.image_size,
        "phantom": is_phantom(subject.root),
        "from_table": is_from_table(subject.root),
        **subject.about(roi),
        "operating_point": told,
    }
    folder = subject.workdir / "results"
    write_results(folder, subject.stem(split, roi), evaluated, summary)
    return evaluated, summary


def _is_probe(subject: Subject, roi: str) -> bool:
    return roi == "outside" and subject.config.data.roi != "outside"
