"""Several evaluated runs as one: the mean of their probabilities, tuned on Val.

  python -m covjax.ensemble RUN_A RUN_B [RUN ...] --workdir=OUT [--split=test]

Each RUN is the folder of a run that was evaluated on Val and on the split, say seeds of
one recipe. Levels and presence are averaged for every region of interest that all
runs have in common, the operating point is chosen anew on Val, and OUT gets
operating_points.json and results/, as a run's folder has them: `covjax.compare` reads
both. Nothing is trained or predicted again. Exit status: 0, or 2 if the runs do not go
together.
"""

import argparse
import csv
import dataclasses
import json
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covjax import parallel
from covjax.config import ROIS
from covjax.data.covidqu import Sample
from covjax.data.split_masks import SplitMasks
from covjax.errors import UsageError
from covjax.evaluation.lung_masks import same_lungs
from covjax.evaluation.results import (
    measure,
    read_results,
    remove_results,
    summarize_evaluated,
    write_results,
)
from covjax.metrics.operating_point import (
    OBJECTIVE,
    OperatingPoint,
    calibrate,
    read_points,
    write_points,
)
from covjax.report.tables import format_evaluation
from covjax.runtime.csv_text import unescape
from covjax.runtime.exit_messages import tell
from covjax.runtime.files import write_whole
from covjax.runtime.strict_json import read_json
from covjax.train import run_folder
from covjax.train.eval_pass import Outputs

FILE = "ensemble.json"  # who its members are
SPLITS = ("train", "val", "test")
# What the stems of results have behind the split. A run's own region has nothing
# there, and what the outside of the lungs gives away is not to be tuned.
WAYS = ("", *(f"-{roi}" for roi in ROIS if roi != "outside"))
SAME = (
    "task", "phantom", "from_table", "image_size", "split", "roi", "roi_dilate",
    "roi_as", "presence_from", "loss_weights",
)  # fmt: skip
# Of results from before these were told.
EARLIER = {
    "from_table": False, "roi_as": "cut", "presence_from": "pixels",
    "loss_weights": None,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Member:
    """What one run, or several as one, gave for a split, shown the lungs in one way.

    Attributes:
      path: of the JSON file.
      about: what that holds.
      samples: of the split; names and classes alone are known.
      outputs: of the run.
      masks: that it was measured against.
    """

    path: Path
    about: dict[str, Any]
    samples: list[Sample]
    outputs: Outputs
    masks: SplitMasks


def read_member(run: Path, stem: str) -> Member:
    """Reads results/<stem>.json, .csv and .npz of a run.

    Raises:
      UsageError: naming the files, if one is missing or not whole.
    """
    path = run / "results" / f"{stem}.json"
    try:
        about = EARLIER | read_json(path, finite=False)
        for name in (*SAME, "threshold"):
            about[name]
        with path.with_suffix(".csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        with path.with_suffix(".npz").open("rb") as file, np.load(file) as arrays:
            levels, truth, lung, seen = (
                arrays[name] for name in ("levels", "truth", "lung", "seen_lung")
            )
        samples = [
            _named(unescape(row["file"]), unescape(row["class"]), about["split"])
            for row in rows
        ]
        losses, presence = (
            np.array([float(row[name]) for row in rows])
            for name in ("loss", "presence")
        )
        shapes = {levels.shape, truth.shape, lung.shape, seen.shape}
        whole = sum(None not in row.values() for row in rows)
        if len(shapes) > 1 or not len(levels) == len(rows) == whole == about["n"]:
            raise ValueError(f"n {about['n']}, {whole} rows, arrays {shapes}")
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, EOFError,
        zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise UsageError(
            f"{path.with_suffix('')}: no whole results of an evaluation"
            f" ({repr(error)[:200]});"
            f" python -m covjax.main --mode=evaluate --workdir={run}"
            f" --split={stem.partition('-')[0]} writes them"
        ) from None
    found = seen if about["roi"] == "predicted" else None
    outputs = Outputs(levels, losses, presence)
    return Member(path, about, samples, outputs, SplitMasks(truth, lung, found))


def _named(name: str, label: str, split: str) -> Sample:
    """Returns an image whose files are not asked for: its masks are in the results."""
    return Sample(name, label, split.capitalize(), Path(name), Path(name), None)


def merge(members: Sequence[Member]) -> Member:
    """Returns the mean of the members' probabilities, as if one run had given them.

    Levels and presence are means over the members; a level half-way is rounded down,
    as one run's are (metrics/counts.py). The loss is the mean of the members' losses:
    no logits are kept of which that of the mean could be computed. Lungs that most
    members found are found.

    Args:
      members: at least two, of the same images and masks.

    Returns:
      A member with the first one's path and images. Of `about`, it has `SAME`, the
      untuned "threshold", "lungs", where all were shown the same, and "members".

    Raises:
      UsageError: naming the first member that does not go with the first one.
    """
    first = members[0]
    for other in members[1:]:
        _check_same(first, other)
    lungs = [m.masks.found_lung for m in members if m.masks.found_lung is not None]
    found = (2 * np.sum(lungs, axis=0) > len(members)).astype(np.uint8)
    outputs = [member.outputs for member in members]
    levels = np.mean([of_member.levels for of_member in outputs], axis=0)
    return dataclasses.replace(
        first,
        about=_about(members),
        outputs=Outputs(
            np.ceil(levels - 0.5).astype(np.uint8),
            np.mean([of_member.losses for of_member in outputs], axis=0),
            np.mean([of_member.presence for of_member in outputs], axis=0),
        ),
        masks=dataclasses.replace(first.masks, found_lung=found if lungs else None),
    )


def _check_same(first: Member, other: Member) -> None:
    for key in SAME:
        a, b = first.about[key], other.about[key]
        if a != b:
            raise UsageError(f"{other.path}: {key} {b}, and {a} in {first.path}")
    names = [[(f.label, f.name) for f in member.samples] for member in (first, other)]
    if names[0] != names[1]:
        raise UsageError(f"{other.path}: not of the images of {first.path}")
    for kind in ("truth", "lung"):
        a, b = getattr(first.masks, kind), getattr(other.masks, kind)
        if not np.array_equal(a, b):
            raise UsageError(f"{other.path}: not of the {kind} masks of {first.path}")


def _about(members: Sequence[Member]) -> dict[str, Any]:
    first = members[0].about
    told = [
        {"run": member.path.parents[1].name}
        | {k: member.about.get(k) for k in ("checkpoint", "fingerprint", "lungs")}
        for member in members
    ]
    lungs = told[0]["lungs"]
    alike = all(same_lungs(lungs, of_member["lungs"]) for of_member in told)
    return {key: first[key] for key in SAME} | {
        "threshold": (first.get("untuned") or first)["threshold"],
        "lungs": lungs if alike else None,
        "members": told,
    }


def evaluate_ensemble(runs: Sequence[Path], workdir: Path, split: str) -> None:
    """Tunes an ensemble on Val and scores it on a split, for every region in common.

    Args:
      runs: folders of evaluated runs, at least two.
      workdir: of the ensemble: new, or that of an ensemble of the same runs.
      split: "train", "val" or "test".

    Raises:
      UsageError: if the runs do not go together, `workdir` holds something else, or
        another process is at work there; nothing is changed then.
    """
    splits = tuple(dict.fromkeys(("val", split)))
    merged = {
        way: {s: merge([read_member(run, s + way) for run in runs]) for s in splits}
        for way in WAYS
        if not way or all(_has(run, s + way) for run in runs for s in splits)
    }
    content = json.dumps({"runs": [str(run) for run in runs]}, indent=2) + "\n"
    _check_folder(workdir, content)
    with run_folder.hold(workdir):
        write_whole(workdir / FILE, content)
        before, points = read_points(workdir), {}
        for way in WAYS:
            of_split = merged.get(way)
            if of_split is None:  # a member may have lost it
                _remove(workdir, way)
                continue
            val = of_split["val"]
            point, told = _tune(val)
            if before.get(val.about["roi"]) != told:  # a member may be trained on
                _remove(workdir, way)
            points[val.about["roi"]] = told
            for s, member in of_split.items():
                _write(workdir, s + way, member, point, told)
        write_points(workdir, points)
        print(format_evaluation(read_results(workdir, split), str(workdir)))


def _remove(workdir: Path, way: str) -> None:
    for split in SPLITS:
        remove_results(workdir / "results", split + way)


def _has(run: Path, stem: str) -> bool:
    return (run / "results" / f"{stem}.json").exists()


def _check_folder(workdir: Path, content: str) -> None:
    """Refuses a folder that holds something else than this ensemble."""
    path = workdir / FILE
    if path.is_file() and path.read_text() == content:
        return
    if not run_folder.is_free(workdir, FILE):
        raise UsageError(
            f"--workdir={workdir} holds something else than the ensemble of these runs,"
            " in this order: give another folder"
        )


def _tune(val: Member) -> tuple[OperatingPoint, dict[str, Any]]:
    """Returns the operating point, and what is told of it."""
    outputs = val.outputs
    point, dice = calibrate(outputs.levels, val.masks.truth, outputs.presence)
    return point, dataclasses.asdict(point) | {
        "chosen_on": "val",
        "objective": OBJECTIVE,
        "reached": dice,
        "n": len(val.samples),
        "lungs": val.about["lungs"],
        "members": val.about["members"],
    }


def _write(
    workdir: Path,
    stem: str,
    member: Member,
    point: OperatingPoint,
    told: dict[str, Any],
) -> None:
    about = member.about
    evaluated = measure(
        member.samples, member.outputs, member.masks, point,
        task=about["task"], roi=about["roi"],
    )  # fmt: skip
    summary = {"split": about["split"]} | summarize_evaluated(
        evaluated,
        task=about["task"],
        threshold=point.threshold,
        untuned=about["threshold"],
    )
    summary |= {key: about[key] for key in (*SAME, "lungs", "members")}
    summary |= {"operating_point": told}
    write_results(workdir / "results", stem, evaluated, summary)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m covjax.ensemble", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--workdir", required=True, type=Path, help="of the ensemble")
    parser.add_argument("--split", default="test", choices=SPLITS)
    given = parser.parse_args(arguments)
    parallel.keep_to_the_host()  # a training may have the accelerators
    try:
        if len({run.resolve() for run in given.runs}) < max(2, len(given.runs)):
            raise UsageError("an ensemble needs two runs or more, each of them once")
        evaluate_ensemble(given.runs, given.workdir, given.split)
    except (Exception, KeyboardInterrupt) as error:
        return tell(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
