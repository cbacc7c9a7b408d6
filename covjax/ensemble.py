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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covjax.calibrate import OBJECTIVE, OperatingPoint, calibrate, write_points
from covjax.config import ROIS
from covjax.data.covidqu import Film
from covjax.errors import UsageError
from covjax.files import write_whole
from covjax.outputs import Outputs
from covjax.report.tables import format_evaluation, read_results
from covjax.results import (
    SplitMasks,
    measure,
    summarize_evaluated,
    write_results,
)

FILE = "ensemble.json"  # who its members are
SAME = ("task", "phantom", "image_size", "roi", "roi_dilate", "split")


@dataclasses.dataclass(frozen=True)
class Member:
    """What one run gave for a split, shown the lungs in one way.

    Attributes:
      path: of its JSON file.
      about: what that holds.
      films: of the split, with names and classes alone.
      outputs: of the run.
      masks: that it was measured against.
    """

    path: Path
    about: dict[str, Any]
    films: list[Film]
    outputs: Outputs
    masks: SplitMasks


def read_member(run: Path, stem: str) -> Member:
    """Reads results/<stem>.json, .csv and .npz of a run.

    Raises:
      UsageError: naming the file that is missing or not whole.
    """
    path = run / "results" / f"{stem}.json"
    try:
        about = json.loads(path.read_text())
        split = about["split"].capitalize()
        with path.with_suffix(".csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        with np.load(path.with_suffix(".npz")) as arrays:
            levels, truth, lung, seen = (
                arrays[name] for name in ("levels", "truth", "lung", "seen_lung")
            )
        films = [_named(row["file"], row["class"], split) for row in rows]
        losses, presence = (
            np.array([float(row[name]) for row in rows])
            for name in ("loss", "presence")
        )
        if not len(rows) == len(levels) == len(truth) == about["n"]:
            raise ValueError(f"{len(rows)} rows, {len(levels)} films, n {about['n']}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path.with_suffix('')}: no whole results of an evaluation ({error});"
            f" python -m covjax.main --mode=evaluate --workdir={run}"
            f" --split={stem.partition('-')[0]} writes them"
        ) from None
    found = seen if about["roi"] == "predicted" else None
    return Member(
        path,
        about,
        films,
        Outputs(levels, losses, presence),
        SplitMasks(truth, lung, found),
    )


def _named(name: str, label: str, split: str) -> Film:
    return Film(name, label, split, Path(name), Path(name), None)


def merge(members: Sequence[Member]) -> Member:
    """Returns the mean of the members' probabilities, as if one run had given them.

    Levels and presence are means over the members; levels are rounded. The loss is the
    mean of the members' losses: no logits are kept of which that of the mean could be
    computed. Lungs that most members found are found.

    Args:
      members: at least two, of the same films and masks.

    Raises:
      UsageError: naming the first member that does not go with the first one.
    """
    first = members[0]
    for other in members[1:]:
        for key in SAME:
            a, b = first.about.get(key), other.about.get(key)
            if a != b:
                raise UsageError(f"{other.path}: {key} {b}, and {a} in {first.path}")
        if [(f.label, f.name) for f in first.films] != [
            (f.label, f.name) for f in other.films
        ] or not np.array_equal(first.masks.truth, other.masks.truth):
            raise UsageError(
                f"{other.path}: not of the films and masks of {first.path}"
            )
    found = None
    if first.masks.found_lung is not None:
        votes = np.sum([m.masks.found_lung for m in members], axis=0)
        found = (2 * votes > len(members)).astype(np.uint8)
    levels = np.mean([m.outputs.levels for m in members], axis=0)
    return dataclasses.replace(
        first,
        outputs=Outputs(
            np.rint(levels).astype(np.uint8),
            np.mean([m.outputs.losses for m in members], axis=0),
            np.mean([m.outputs.presence for m in members], axis=0),
        ),
        masks=dataclasses.replace(first.masks, found_lung=found),
    )


def evaluate_ensemble(runs: Sequence[Path], workdir: Path, split: str) -> None:
    """Tunes an ensemble on Val and scores it on a split, for every region in common.

    Args:
      runs: folders of evaluated runs, at least two.
      workdir: of the ensemble: new, or that of an ensemble of the same runs.
      split: "train", "val" or "test".

    Raises:
      UsageError: if the runs do not go together, or `workdir` holds something else;
        nothing is changed then.
    """
    own = [stem for stem in _stems("val") if _all_have(runs, stem)]
    pairs = [(stem, stem.replace("val", split, 1)) for stem in own]
    pairs = [pair for pair in pairs if _all_have(runs, pair[1])]
    if not pairs or pairs[0][1] != split:
        raise UsageError(
            f"no results of Val and {split.capitalize()} that {len(runs)} runs have in"
            f" common; python -m covjax.main --mode=evaluate --workdir=RUN"
            f" --split={split} writes them"
        )
    merged = {
        stems: [merge([read_member(run, stem) for run in runs]) for stem in stems]
        for stems in pairs
    }
    _claim(workdir, runs)
    points = {}
    for (val_stem, stem), (val, scored) in merged.items():
        about = _about(runs, val_stem)
        point, dice = calibrate(
            val.outputs.levels, val.masks.truth, val.outputs.presence
        )
        told = dataclasses.asdict(point) | {
            "chosen_on": "val",
            "objective": OBJECTIVE,
            "reached": dice,
            "n": len(val.films),
            **about,
        }
        points[val.about["roi"]] = told
        for name, member in {val_stem: val, stem: scored}.items():
            _write(workdir, name, member, point, told)
    write_points(workdir, points)
    print(format_evaluation(read_results(workdir, split), str(workdir)))


def _stems(split: str) -> list[str]:
    return [split, *(f"{split}-{roi}" for roi in ROIS)]


def _all_have(runs: Sequence[Path], stem: str) -> bool:
    """Tells whether all runs have tuned results of a stem; a probe is not tuned."""
    for run in runs:
        try:
            about = json.loads((run / "results" / f"{stem}.json").read_text())
            if not about["operating_point"]:
                return False
        except (OSError, ValueError, KeyError, TypeError):
            return False
    return True


def _about(runs: Sequence[Path], stem: str) -> dict[str, Any]:
    """Returns what the operating point holds for."""
    members = [json.loads((r / "results" / f"{stem}.json").read_text()) for r in runs]
    keys = ("checkpoint", "fingerprint", "lungs")
    return {
        "checkpoint": None,
        "fingerprint": None,
        "lungs": None,
        "members": [
            {"run": run.name} | {key: member.get(key) for key in keys}
            for run, member in zip(runs, members, strict=True)
        ],
    }


def _claim(workdir: Path, runs: Sequence[Path]) -> None:
    content = json.dumps({"runs": [str(run) for run in runs]}, indent=2) + "\n"
    path = workdir / FILE
    same = path.is_file() and path.read_text() == content
    if (
        not same
        and workdir.exists()
        and (not workdir.is_dir() or any(workdir.iterdir()))
    ):
        raise UsageError(f"--workdir={workdir} holds something else: give another")
    write_whole(path, content)


def _write(
    workdir: Path,
    stem: str,
    member: Member,
    point: OperatingPoint,
    told: dict[str, Any],
) -> None:
    about = member.about
    evaluated = measure(
        member.films, member.outputs, member.masks, point,
        task=about["task"], roi=about["roi"],
    )  # fmt: skip
    untuned = (about.get("untuned") or about)["threshold"]
    summary = {"split": about["split"]} | summarize_evaluated(
        evaluated, task=about["task"], threshold=point.threshold, untuned=untuned
    )
    summary |= {key: about[key] for key in SAME}
    summary |= {key: told[key] for key in ("checkpoint", "fingerprint", "lungs")}
    summary |= {"members": told["members"], "operating_point": told}
    write_results(workdir / "results", stem, evaluated, summary)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m covjax.ensemble", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--workdir", required=True, type=Path, help="of the ensemble")
    parser.add_argument("--split", default="test", choices=["train", "val", "test"])
    given = parser.parse_args(arguments)
    try:
        if len({run.resolve() for run in given.runs}) < 2:
            raise UsageError("an ensemble needs two different runs or more")
        evaluate_ensemble(given.runs, given.workdir, given.split)
    except UsageError as error:
        print(f"covjax: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
