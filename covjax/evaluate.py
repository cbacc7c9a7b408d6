"""A trained run on a split, shown the lungs in every way: figures, tables, page.

What is tuned is chosen on Val: where a run has no operating point yet for its
checkpoint and a region of interest, Val is evaluated first, in the same way.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import ml_collections

from covjax import parallel, run_dir
from covjax.calibrate import (
    OBJECTIVE,
    OperatingPoint,
    as_point,
    calibrate,
    read_points,
    write_points,
)
from covjax.config import read_config, validate_config
from covjax.data.audit import audit_with_bar
from covjax.data.covidqu import Film, is_phantom
from covjax.data.pipeline import Region
from covjax.data.source import Films, find_films, phantom_prefix
from covjax.errors import UsageError
from covjax.files import write_whole
from covjax.lungs import check_lung_run, find_lungs, lung_run
from covjax.metrics.counts import count_pixels, dice_per_image
from covjax.outputs import Outputs, predict_split
from covjax.report.page import write_report
from covjax.report.split_figures import draw_split
from covjax.report.tables import ROIS, format_evaluation
from covjax.results import (
    SplitMasks,
    measure,
    read_split_masks,
    summarize_evaluated,
    write_results,
)
from covjax.trained import read_trained


def evaluate_run(
    workdir: Path, split: str, config: ml_collections.ConfigDict | None = None
) -> None:
    """Evaluates the best checkpoint of a run on any split.

    Args:
      workdir: the run's folder.
      split: "Train", "Val" or "Test".
      config: None, or the run's config, with another `data.root` or `data.lung_run`
        perhaps.

    Raises:
      UsageError: if there is no such run, or `config` is not its own.
    """
    stored = read_config(workdir / run_dir.CONFIG)
    if config is not None:
        config.init_from = config.init_from or stored.init_from
        run_dir.check_same(workdir, config)
    config = config or stored
    validate_config(config)
    check_lungs(config)
    parallel.check_batch_size(config.train.batch_size)
    root, films = find_films(config)
    evaluate_best(config, workdir, root, films, split)


def check_lungs(config: ml_collections.ConfigDict) -> None:
    """Refuses a run that cannot find the lungs it is asked for.

    Raises:
      UsageError: if `data.lung_run` is no run of lungs, or `data.roi` is "predicted"
        and there is no such run.
    """
    run = lung_run(config)
    if config.data.lung_run:
        check_lung_run(config.data.lung_run)
    elif config.data.roi == "predicted" and run is None:
        raise UsageError(
            f"config.data.roi = 'predicted': {config.init_from} is no run that finds"
            " the lungs; name one in config.data.lung_run"
        )


def show_lungs(config: ml_collections.ConfigDict, workdir: Path, films: Films) -> Films:
    """Returns the films of all splits with the lungs that training is to be shown."""
    run = lung_run(config)
    if config.data.roi != "predicted" or run is None:
        return films
    return {
        split: find_lungs(run, of_split, spare=workdir)
        for split, of_split in films.items()
    }


def evaluate_best(
    config: ml_collections.ConfigDict,
    workdir: Path,
    root: Path,
    films: Films,
    split: str,
) -> None:
    """Scores the best checkpoint on a split, shown the lungs in every way.

    Writes results/, operating_points.json, figures/ and report.html, and prints the
    tables.

    Raises:
      UsageError: if there is no whole checkpoint.
    """
    evaluation = _Evaluation(config, workdir, root, films)
    regions = evaluation.regions()
    headline = "predicted" if "predicted" in regions else config.data.roi
    found = [evaluation.evaluate(split, roi, draw=roi == headline) for roi in regions]
    if not parallel.is_main():
        return
    audited = workdir / "results" / "audit.json"
    if not audited.exists():
        print(f"auditing the films of {root}", flush=True)
        write_whole(audited, json.dumps(audit_with_bar(root), indent=1) + "\n")
    print("\n" + format_evaluation(found, str(workdir)))
    print(f"\nreport: {write_report(workdir)}")


class _Evaluation:
    """One checkpoint and its data, for passes over several splits and regions."""

    def __init__(
        self, config: ml_collections.ConfigDict, workdir: Path, root: Path, films: Films
    ):
        trained = read_trained(str(workdir))
        self._config, self._workdir, self._root = config, workdir, root
        self._step, self._state = trained.step, parallel.replicate(trained.state)
        self._films, self._masks = dict(films), dict[str, SplitMasks]()
        self._points = read_points(workdir)
        self._lung_run = None
        if config.data.task == "infection" and (run := lung_run(config)):
            self._lung_run = run
            self._lungs = str(check_lung_run(run))

    def regions(self) -> list[str]:
        """Returns what the network is to be shown, its own way first."""
        own = self._config.data.roi
        if self._config.data.task == "lung" or own == "outside":
            return [own]
        ways = [own, "truth", "predicted", "none", "outside"]
        if not self._lung_run:
            ways.remove("predicted")
        return list(dict.fromkeys(ways))

    def evaluate(self, split: str, roi: str, *, draw: bool) -> dict[str, Any]:
        """Evaluates a split in one way; returns what its JSON file holds."""
        # What the outside of the lungs gives away is not to be tuned.
        probe = roi == "outside" and self._config.data.roi != "outside"
        told = None if probe else self._operating_point(roi, split)
        self._say(split, roi)
        outputs = self._predict(split, roi)
        return self._write(split, roi, outputs, told, draw=draw)

    def _operating_point(self, roi: str, split: str) -> dict[str, Any]:
        """Returns the point of a region, chosen on Val where there is none yet."""
        about = {"checkpoint": self._step, "lungs": self._found_by(roi)}
        told = self._points.get(roi, {})
        if {name: told.get(name) for name in about} == about:
            return told
        self._say("Val", roi, "to choose the operating point")
        outputs = self._predict("Val", roi)
        if not parallel.is_main():
            return {}
        truth = self._split_masks("Val").truth
        point, dice = calibrate(outputs.levels, truth)
        plain = OperatingPoint(self._config.eval.threshold).masks(outputs.levels)
        untuned = dice_per_image(count_pixels(truth, plain)).mean()
        told = dataclasses.asdict(point) | {
            "chosen_on": "val",
            "objective": OBJECTIVE,
            "reached": dice,
            "untuned": float(untuned),
            "n": len(truth),
            **about,
        }
        self._points[roi] = told
        write_points(self._workdir, self._points)
        if split != "Val":  # what an arm of an experiment may be chosen by
            self._write("Val", roi, outputs, told, draw=False)
        return told

    def _write(
        self,
        split: str,
        roi: str,
        outputs: Outputs,
        told: dict[str, Any] | None,
        *,
        draw: bool,
    ) -> dict[str, Any]:
        if not parallel.is_main():
            return {}
        data, films = self._config.data, self._films[split]
        untuned = self._config.eval.threshold
        point = as_point(told) if told else OperatingPoint(untuned)
        evaluated = measure(
            films, outputs, self._split_masks(split), point, task=data.task, roi=roi
        )
        about = {
            "task": data.task,
            "roi": roi,
            "roi_dilate": data.roi_dilate if roi != "none" else 0,
            "image_size": data.image_size,
            "checkpoint": self._step,
            "phantom": is_phantom(self._root),
            "lungs": self._found_by(roi),
            "operating_point": told,
        }
        summary = {"split": split.lower()} | summarize_evaluated(
            evaluated,
            task=data.task,
            threshold=point.threshold,
            untuned=untuned if told else None,
        )
        summary |= about
        stem = split.lower() + ("" if roi == data.roi else f"-{roi}")
        write_results(self._workdir / "results", stem, evaluated, summary)
        if draw:
            kind = phantom_prefix(self._root)
            draw_split(
                self._workdir / "figures", evaluated, summary,
                region=Region(roi, data.roi_dilate),
                title=f"{kind}{data.task}, {split}; shown: {ROIS[roi]}; run:"
                f" {self._workdir.name}",
            )  # fmt: skip
        return summary

    def _predict(self, split: str, roi: str) -> Outputs:
        config = ml_collections.ConfigDict(self._config.to_dict())
        config.data.roi = roi
        return predict_split(config, self._with_lungs(split), self._state)

    def _with_lungs(self, split: str) -> list[Film]:
        """Returns the films of a split with the lungs that a run finds, if one is."""
        films = self._films[split]
        if self._lung_run and films[0].found_lung is None:
            films = find_lungs(self._lung_run, films, spare=self._workdir)
            self._films[split] = films
        return films

    def _split_masks(self, split: str) -> SplitMasks:
        if split not in self._masks:
            data = self._config.data
            self._masks[split] = read_split_masks(
                self._with_lungs(split), data.image_size, data.task
            )
        return self._masks[split]

    def _found_by(self, roi: str) -> str | None:
        return self._lungs if roi == "predicted" else None

    def _say(self, split: str, roi: str, why: str = "") -> None:
        if parallel.is_main():
            n = len(self._films[split])
            print(f"{split}, {n:,} films, {ROIS[roi]} {why}".strip(), flush=True)
