"""A trained run on a split, shown the lungs in every way: figures, tables, page.

What is tuned is chosen on Val, and before the split is read: where a run has no
operating point yet for its checkpoint and a region of interest, Val is evaluated first,
in the same way.
"""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import ml_collections

from covjax import multihost, parallel
from covjax.config import ROIS, fill_in, loss_weights, read_config, validate_config
from covjax.data.audit.audit import audit_with_bar
from covjax.data.covidqu import is_from_table, is_phantom
from covjax.data.pipeline import Region
from covjax.data.source import Films, find_films, phantom_prefix
from covjax.errors import UsageError
from covjax.evaluation.lung_masks import (
    LungFinder,
    find_finder,
    find_lungs,
    read_finder,
    same_lungs,
)
from covjax.evaluation.results import (
    Evaluated,
    SplitMasks,
    measure,
    read_split_masks,
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
from covjax.report.page import write_report
from covjax.report.split_figures import draw_split
from covjax.report.tables import (
    ROI_NAMES,
    format_evaluation,
    headline_roi,
    read_results,
    roi_name,
)
from covjax.runtime.files import write_whole
from covjax.runtime.strict_json import read_json
from covjax.train import run_folder
from covjax.train.eval_pass import Outputs, predict_split
from covjax.train.restore import share_trained
from covjax.train.sample_manifest import choose_films


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
    stored = fill_in(
        multihost.on_main(lambda: read_config(workdir / run_folder.CONFIG).to_dict())
    )
    if config is not None:
        config.init_from = config.init_from or stored.init_from
        named = config.data.lung_run
        config.data.lung_run = named or stored.data.lung_run
        multihost.on_main(lambda: run_folder.check_same(workdir, config))
    else:
        config, named = stored, ""
    validate_config(config)
    if config.data.lung_run and not named and config.data.roi != "predicted":
        lung_run = config.data.lung_run
        config.data.lung_run = multihost.on_main(lambda: _if_there(lung_run))
    finder = find_finder(config)
    parallel.check_batch_size(config.train.batch_size)
    root, films = multihost.in_all(lambda: find_films(config))
    chosen = choose_films(config, workdir, films, ("Val", split), training=False)
    with contextlib.ExitStack() as held:
        multihost.in_all(lambda: held.enter_context(run_folder.hold(workdir)))
        multihost.on_main(lambda: chosen.write(workdir))
        evaluate_best(config, workdir, root, chosen.films, split, finder)


def _if_there(lung_run: str) -> str:
    """Returns a run that was named when training began, if it can still be used."""
    try:
        read_finder(lung_run)
    except UsageError:
        return ""
    return lung_run


def show_lungs(
    config: ml_collections.ConfigDict,
    workdir: Path,
    films: Films,
    finder: LungFinder | None,
) -> Films:
    """Returns the films with the lungs that training, and Val, are to be shown."""
    if config.data.roi != "predicted" or finder is None:
        return films
    shown = dict(films)
    for split in ("Train", "Val"):  # Test is read by the evaluation alone
        shown[split] = find_lungs(finder, films[split], spare=workdir)
    return shown


def evaluate_best(
    config: ml_collections.ConfigDict,
    workdir: Path,
    root: Path,
    films: Films,
    split: str,
    finder: LungFinder | None,
) -> None:
    """Scores the best checkpoint on a split, shown the lungs in every way.

    Writes results/, operating_points.json, figures/ and report.html, and prints the
    tables. Results of another checkpoint are removed.

    Args:
      config: the run's.
      workdir: the run's folder.
      root: of the data.
      films: of every split.
      split: "Train", "Val" or "Test".
      finder: of the lungs; None leaves found lungs out.

    Raises:
      UsageError: if there is no whole checkpoint.
    """
    evaluation = _Evaluation(config, workdir, root, films, finder)
    regions = evaluation.regions()
    if parallel.is_main():
        evaluation.remove_others()
        if config.init_from and "truth" in regions and finder is None:
            print(
                f"{config.init_from} is no run of lungs, or not there: nothing is"
                " evaluated with found lungs (config.data.lung_run names another run)"
            )
    for roi in regions:
        evaluation.choose(roi)
    for roi in regions:
        evaluation.score(split, roi)
    if not parallel.is_main():
        return
    found = read_results(workdir, split)
    print("\n" + format_evaluation(found, str(workdir)), flush=True)
    _audit(workdir, root)
    print(f"\nreport: {write_report(workdir)}")


def _audit(workdir: Path, root: Path) -> None:
    """Writes what the audit finds in the data, unless that is known already."""
    path = workdir / "results" / "audit.json"
    try:
        if read_json(path, finite=False)["root"] == str(root):
            return
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or not whole
    print(f"\nauditing the films of {root}", flush=True)
    write_whole(path, json.dumps(audit_with_bar(root), indent=1) + "\n")


def _holds(point: dict[str, Any], about: dict[str, Any]) -> bool:
    """Tells whether a stored point was chosen for this checkpoint and these lungs."""
    same = (point.get(k) == about[k] for k in ("checkpoint", "fingerprint"))
    return all(same) and same_lungs(point.get("lungs"), about["lungs"])


class _Evaluation:
    """One checkpoint and its data, for passes over several splits and regions."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        root: Path,
        films: Films,
        finder: LungFinder | None,
    ):
        self._trained = share_trained(str(workdir))
        self._state = parallel.replicate(self._trained.state)
        self._config, self._workdir, self._root = config, workdir, root
        # A run of the outside of the lungs is never shown found ones.
        self._finder = None if config.data.roi == "outside" else finder
        self._points = multihost.on_main(lambda: read_points(workdir))
        self._films, self._masks = dict(films), dict[str, SplitMasks]()
        self._of_val = dict[str, Outputs]()  # by region: Val may be asked for twice

    def regions(self) -> list[str]:
        """Returns what the network is to be shown, its own way first."""
        own = self._config.data.roi
        if self._config.data.task == "lung" or own == "outside":
            return [own]
        ways = [own, "truth", "predicted", "none", "outside"]
        if self._finder is None:
            ways.remove("predicted")
        if self._config.data.roi_as == "channel":
            ways.remove("none")  # lungs that are nowhere are nothing it was trained for
        return list(dict.fromkeys(ways))

    def remove_others(self) -> None:
        """Removes results of other checkpoints, which would pass for this one's."""
        for split in ("train", "val", "test"):
            for roi in (None, *ROIS):
                stem = split if roi is None else f"{split}-{roi}"
                remove_results(
                    self._workdir / "results", stem,
                    unless=(self._trained.step, self._trained.fingerprint),
                )  # fmt: skip

    def choose(self, roi: str) -> None:
        """Chooses a region's operating point on Val, where there is none yet.

        Val's results are written as well: arms of an experiment are chosen by them.
        """
        if self._is_probe(roi):
            return  # what the outside of the lungs gives away is not to be tuned
        about = self._about(roi)
        if _holds(self._points.get(roi, {}), about):
            return
        self._say("Val", roi, "to choose the operating point")
        outputs = self._of_val[roi] = self._predict("Val", roi)
        if not parallel.is_main():
            return
        truth = self._split_masks("Val").truth
        point, dice = calibrate(outputs.levels, truth, outputs.presence)
        for other in ("train", "val", "test"):  # at the point that was before
            remove_results(self._workdir / "results", self._stem(other, roi))
        self._points[roi] = dataclasses.asdict(point) | {
            "chosen_on": "val",
            "objective": OBJECTIVE,
            "reached": dice,
            "n": len(outputs.levels),
            **about,
        }
        self._measure("Val", roi, outputs)
        write_points(self._workdir, self._points)

    def score(self, split: str, roi: str) -> None:
        """Evaluates a split in one way; draws it, if it is the one that heads it."""
        self._say(split, roi)
        known = self._of_val if split == "Val" else {}
        outputs = known[roi] if roi in known else self._predict(split, roi)
        if not parallel.is_main():
            return
        evaluated, summary = self._measure(split, roi, outputs)
        if roi == self._headline(split):
            self._draw(split, roi, evaluated, summary)

    def _headline(self, split: str) -> str:
        """Returns the region that the page shows first."""
        found = self._workdir / "results" / f"{split.lower()}-predicted.json"
        ways = self.regions() + ["predicted"] * found.exists()
        return headline_roi(ways)

    def _measure(
        self, split: str, roi: str, outputs: Outputs
    ) -> tuple[Evaluated, dict[str, Any]]:
        """Measures a split, and writes its results."""
        data, untuned = self._config.data, self._config.eval.threshold
        told = None if self._is_probe(roi) else self._points[roi]
        point = as_point(told) if told else OperatingPoint(untuned)
        evaluated = measure(
            self._films[split], outputs, self._split_masks(split), point,
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
            "presence_from": "head" if self._config.model.presence else "pixels",
            "loss_weights": loss_weights(self._config.loss),
            "image_size": data.image_size,
            "phantom": is_phantom(self._root),
            "from_table": is_from_table(self._root),
            **self._about(roi),
            "operating_point": told,
        }
        stem = self._stem(split, roi)
        write_results(self._workdir / "results", stem, evaluated, summary)
        return evaluated, summary

    def _draw(
        self, split: str, roi: str, evaluated: Evaluated, summary: dict[str, Any]
    ) -> None:
        data = self._config.data
        draw_split(
            self._workdir / "figures", evaluated, summary,
            region=Region(roi, data.roi_dilate, data.roi_as),
            title=f"{phantom_prefix(self._root)}{data.task}, {split}; shown:"
            f" {roi_name(summary)}; run: {self._workdir.name}",
        )  # fmt: skip

    def _stem(self, split: str, roi: str) -> str:
        return split.lower() + ("" if roi == self._config.data.roi else f"-{roi}")

    def _about(self, roi: str) -> dict[str, Any]:
        """Returns what an operating point holds for."""
        finder = self._finder if roi == "predicted" else None
        return {
            "checkpoint": self._trained.step,
            "fingerprint": self._trained.fingerprint,
            "lungs": finder.told() if finder else None,
        }

    def _is_probe(self, roi: str) -> bool:
        return roi == "outside" and self._config.data.roi != "outside"

    def _predict(self, split: str, roi: str) -> Outputs:
        films = self._films[split]
        if self._finder and films[0].found_lung is None:
            films = find_lungs(self._finder, films, spare=self._workdir)
            self._films[split] = films
        config = ml_collections.ConfigDict(self._config.to_dict())
        config.data.roi = roi
        return predict_split(config, films, self._state)

    def _split_masks(self, split: str) -> SplitMasks:
        if split not in self._masks:
            data, films = self._config.data, self._films[split]
            self._masks[split] = read_split_masks(films, data.image_size, data.task)
        return self._masks[split]

    def _say(self, split: str, roi: str, why: str = "") -> None:
        if parallel.is_main():
            n = len(self._films[split])
            print(f"{split}, {n:,} films, {ROI_NAMES[roi]} {why}".strip(), flush=True)
