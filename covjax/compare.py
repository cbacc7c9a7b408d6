"""Tells whether one evaluated run is better than another on the same images.

  python -m covjax.compare RUN_A RUN_B [--split=test] [--roi=predicted] [--json FILE]

Each RUN is a run's folder, of which results/<split>.csv is read (with --roi, the file
of the pass in which the network was shown this of each image), or such a CSV file
itself. Prints every figure of both, their difference with a 95 % interval, and the
images whose Dice changed most. Exit status: 0 if the runs were compared, whatever came
out; 2 if they cannot be.
"""

import argparse
import csv
import dataclasses
import io
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from covjax.config import ROIS
from covjax.errors import UsageError, printable
from covjax.evaluation.lung_masks import same_lungs
from covjax.evaluation.results import COUNTED
from covjax.metrics.bootstrap import RESAMPLES, Figure, Sums, estimate
from covjax.metrics.counts import dice_per_image
from covjax.metrics.segmentation import FIGURES, terms
from covjax.runtime.csv_text import unescape
from covjax.runtime.files import write_whole
from covjax.runtime.strict_json import read_json

SAME = ("task", "split", "phantom")  # in both runs' JSON
SHOWN = ("image_size", "roi", "threshold", "checkpoint")
LISTED = 10  # images a list
_NONE = "–"

ImageKey = tuple[
    str, str
]  # class and file: a file's name alone may occur in two classes


@dataclasses.dataclass(frozen=True)
class Results:
    """One evaluated split.

    Attributes:
      path: of the CSV file.
      samples: in the order of the file, each once.
      counts: TP, FP, FN, TN of every image, int64 [n, 4].
      about: what the JSON file beside it holds; empty where there is none.
    """

    path: Path
    samples: list[ImageKey]
    counts: np.ndarray
    about: dict[str, Any]


def read_run(given: Path, split: str, roi: str | None = None) -> Results:
    """Reads results/<split>.csv of a run's folder, or a CSV file, and its JSON.

    Args:
      given: the folder or the file.
      split: "train", "val" or "test"; of no use for a file.
      roi: what the network was shown of each image; None: what it was trained on.

    Raises:
      UsageError: naming the file, if it is missing, torn, or says an image twice.
    """
    path = given
    if given.is_dir():
        path = given / "results" / f"{split}.csv"
        if roi and _read_about(path.with_suffix(".json")).get("roi") != roi:
            path = path.with_stem(f"{split}-{roi}")
        if not path.exists():
            raise UsageError(
                f"{path}: no results there; python -m covjax.main --mode=evaluate"
                f" --workdir={given} --split={split} writes them"
            )
    samples, counts = _read_csv(path)
    twice = [sample for sample, times in Counter(samples).items() if times > 1]
    if twice:
        raise UsageError(f"{path}: {_images(twice)} listed more than once")
    return Results(path, samples, counts, _read_about(path.with_suffix(".json")))


def _read_csv(path: Path) -> tuple[list[ImageKey], np.ndarray]:
    samples, counts = [], []
    for line, row in _read_rows(path):
        try:
            counts.append(_parse(row))
        except (ValueError, OverflowError):
            raise UsageError(
                f"{path}, line {line}: TP, FP, FN and TN have to be whole numbers from"
                " 0 up; loss, dice and iou numbers"
            ) from None
        samples.append((unescape(row[1]), unescape(row[0])))
    if not samples:
        raise UsageError(f"{path}: no image in it")
    return samples, np.stack(counts)


def _parse(row: list[str]) -> np.ndarray:
    """Returns the counts of a row; ValueError or OverflowError if it is damaged."""
    counts = np.array([int(cell) for cell in row[2:6]], np.int64)
    ratios = [float(cell) for cell in row[6 : len(COUNTED)]]  # read only to be checked
    if counts.min() < 0 or not np.isfinite(ratios).all():
        raise ValueError
    return counts


def _read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Returns the rows below the head, each with the number of its line."""
    try:
        text = path.read_text(encoding="utf-8")
        reader = csv.reader(io.StringIO(text))
        rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise UsageError(f"{path}: no results there ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: not a CSV file ({error})") from None
    head = rows[0][1] if rows else []
    if tuple(head[: len(COUNTED)]) != COUNTED:
        raise UsageError(f"{path}: its columns do not begin with {','.join(COUNTED)}")
    for line, row in rows[1:]:
        if len(row) != len(head):
            raise UsageError(
                f"{path}, line {line}: {len(row)} values in {len(head)} columns"
            )
    if not text.endswith("\n"):  # its last number may have lost digits
        raise UsageError(f"{path}: torn, its last line has no end")
    return rows[1:]


def _read_about(path: Path) -> dict[str, Any]:
    try:
        about = read_json(path, finite=False)
    except FileNotFoundError:
        return {}  # counts can be compared without
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UsageError(f"{path}: torn, or not JSON ({error})") from None
    if not isinstance(about, dict):
        raise UsageError(f"{path}: not the results of a split")
    return about


def pair(a: Results, b: Results) -> np.ndarray:
    """Returns the counts of B in the order of A's images, int64 [n, 4].

    Raises:
      UsageError: if the two are not of the same images and masks.
    """
    for key in SAME:
        of_a, of_b = a.about.get(key), b.about.get(key)
        if None not in (of_a, of_b) and of_a != of_b:
            raise UsageError(
                f"{a.path} and {b.path} cannot be compared: {key} {of_a} and {of_b}"
            )
    place = {sample: i for i, sample in enumerate(b.samples)}
    for x, y in ((a, b), (b, a)):
        alone = sorted(set(x.samples) - set(y.samples))
        if alone:
            raise UsageError(f"{_images(alone)} in {x.path} and not in {y.path}")
    counts = b.counts[[place[sample] for sample in a.samples]]
    # Among as many pixels, the same mask has as many of them.
    other = ~_other_size(a.counts, counts) & (_truth(a.counts) != _truth(counts))
    if other.any():
        i = int(np.argmax(other))
        raise UsageError(
            f"{_images([a.samples[k] for k in np.flatnonzero(other)])} scored against"
            f" different masks ({_truth(a.counts)[i]} pixels in {a.path},\n"
            f"{_truth(counts)[i]} in {b.path}): not the same truth"
        )
    return counts


def _images(samples: list[ImageKey]) -> str:
    """Names the first of some images and says how many they are."""
    first = f"{samples[0][0]} {samples[0][1]}"
    return (
        f"{first} is"
        if len(samples) == 1
        else f"{first} and {len(samples) - 1:,} more are"
    )


def _truth(counts: np.ndarray) -> np.ndarray:
    return counts[:, 0] + counts[:, 2]


def _other_size(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a.sum(axis=1) != b.sum(axis=1)


def compare_figures(
    a: np.ndarray, b: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Returns every figure of both runs, and B - A with a paired interval.

    Each draw of images is taken for both runs, so that an image that is hard for both
    does not widen the interval of the difference.

    Args:
      a: TP, FP, FN, TN of every image in run A, int [n, 4].
      b: of the same images in run B, in the same order.
      resamples: number of draws.
      seed: of the draws.

    Returns:
      Names of `FIGURES` → {"a", "b", "difference": {"mean", "low", "high"} each,
      "verdict": "A better", "B better", "not told apart", or None where the
      difference is not defined}.
    """
    joint = {f"{side} {k}": v for side, c in (("a", a), ("b", b))
             for k, v in terms(c).items()}  # fmt: skip
    figures: dict[str, Figure] = {}
    for name, figure in FIGURES.items():
        figures[f"a {name}"] = _of_side(figure, "a")
        figures[f"b {name}"] = _of_side(figure, "b")
        figures[f"difference {name}"] = _difference(figure)
    found = estimate(joint, figures, resamples=resamples, seed=seed)
    return {
        name: {side: found[f"{side} {name}"] for side in ("a", "b", "difference")}
        | {"verdict": _verdict(found[f"difference {name}"])}
        for name in FIGURES
    }


def _of_side(figure: Figure, side: str) -> Figure:
    def of_side(sums: Sums) -> np.ndarray:
        start = f"{side} "
        return figure(
            {k.removeprefix(start): v for k, v in sums.items() if k.startswith(start)}
        )

    return of_side


def _difference(figure: Figure) -> Figure:
    of_a, of_b = _of_side(figure, "a"), _of_side(figure, "b")
    # Sums of the same numbers may differ in their last bits, and 0 must be 0 here: the
    # verdict asks for its sign. (+ 0.0 makes -0.0 a 0.)
    return lambda sums: np.round(of_b(sums) - of_a(sums), 12) + 0.0


def _verdict(difference: dict[str, float | None]) -> str | None:
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return None
    return "B better" if low > 0 else "A better" if high < 0 else "not told apart"


def compare(a: Results, b: Results) -> dict[str, Any]:
    """Compares two results of the same images, paired by class and file.

    Returns:
      What `--json` writes: "a" and "b" (the CSV and what is known of it), "task",
      "split", "phantom" (None where neither run says), "n", "resamples", "notes",
      "figures" (from `compare_figures`), "dice" (in how many images B's is "higher",
      "lower", the "same"), and "worsened" and "improved" (up to 10 images each, the
      most changed first).

    Raises:
      UsageError: if the two are not of the same images and masks.
    """
    counts = pair(a, b)
    dice = dice_per_image(a.counts), dice_per_image(counts)
    change = dice[1] - dice[0]
    rows = [
        {"file": file, "class": label, "a": float(x), "b": float(y), "difference": d}
        for (label, file), x, y, d in zip(
            a.samples, *dice, change.tolist(), strict=True
        )
    ]
    # Sorts are stable: images that changed as much keep the order of A.
    worst = sorted(rows, key=lambda row: row["difference"])
    best = sorted(rows, key=lambda row: -row["difference"])
    return {
        "a": _describe(a),
        "b": _describe(b),
        **{key: a.about.get(key, b.about.get(key)) for key in SAME},
        "n": len(a.samples),
        "resamples": RESAMPLES,
        "notes": _notes(a, b, counts),
        "figures": compare_figures(a.counts, counts),
        "dice": {
            "higher": int((change > 0).sum()),
            "lower": int((change < 0).sum()),
            "same": int((change == 0).sum()),
        },
        "worsened": [row for row in worst if row["difference"] < 0][:LISTED],
        "improved": [row for row in best if row["difference"] > 0][:LISTED],
    }


def _describe(results: Results) -> dict[str, Any]:
    known = {key: results.about[key] for key in SHOWN if key in results.about}
    return {"csv": str(results.path), **known}


def _notes(a: Results, b: Results, counts_of_b: np.ndarray) -> list[str]:
    """Returns what else differs between two results than the network."""
    notes = []
    other = _other_size(a.counts, counts_of_b)
    if other.any():
        i = int(np.argmax(other))
        sizes = [f"{counts[i].sum():,}" for counts in (a.counts, counts_of_b)]
        notes.append(
            f"The images were scored at two sizes ({sizes[0]} pixels in A, {sizes[1]}"
            " in"
            " B) against masks of that size: the truth is not quite the same."
        )
    if not a.about or not b.about:
        return notes
    shown = [side.about.get("roi") for side in (a, b)]
    if shown[0] != shown[1]:
        notes.append(
            f"The networks were shown two things of each image ({shown[0]} in A,"
            f" {shown[1]} in B): --roi compares them on one."
        )
    if shown[0] == shown[1]:
        if (a.about.get("roi_dilate") or 0) != (b.about.get("roi_dilate") or 0):
            notes.append("The lungs that both were shown were widened in two ways.")
        if a.about.get("roi_as", "cut") != b.about.get("roi_as", "cut"):
            notes.append(
                "One network saw images cut to the lungs, one lungs beside them."
            )
        if not same_lungs(a.about.get("lungs"), b.about.get("lungs")):
            notes.append("The lungs that both were shown were found in two ways.")
    tuned = ["tuned" if s.about.get("operating_point") else "untuned" for s in (a, b)]
    if tuned[0] != tuned[1]:
        notes.append(f"A is {tuned[0]} and B is {tuned[1]}: part of it may be that.")
    return notes


def format_comparison(found: dict[str, Any]) -> str:
    """Returns what `compare` found as text of some 40 lines."""
    samples = "PHANTOM images" if found["phantom"] else "images"
    known = [str(found[key]) for key in ("task", "split") if found[key]]
    lines = [", ".join([*known, f"{found['n']:,} {samples}, paired"])]
    for side in ("a", "b"):
        about = [f"{k} {v}" for k, v in found[side].items() if k != "csv"]
        lines.append("  ".join([f"  {side.upper()}", found[side]["csv"], *about]))
    lines += [*found["notes"], ""]
    lines.append(f"  {'':14}{'A':>8}{'B':>9}{'B - A':>10}  95 % interval of B - A")
    for name, row in found["figures"].items():
        mean, low, high = (row["difference"][k] for k in ("mean", "low", "high"))
        span = _NONE if low is None else f"[{_number(low, '+')}, {_number(high, '+')}]"
        lines.append(
            f"  {_title(name):14}{_number(row['a']['mean']):>8}"
            f"{_number(row['b']['mean']):>9}{_number(mean, '+'):>10}  {span:22}"
            f"{row['verdict'] or _NONE}"
        )
    dice = found["dice"]
    lines += [
        "",
        f"Dice of single images: B's is higher in {dice['higher']:,}, lower in"
        f" {dice['lower']:,}, the same in {dice['same']:,}.",
    ]
    for which in ("worsened", "improved"):
        lines += ["", *_format_images(which, found[which])]
    return "\n".join(lines)


def _format_images(which: str, rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return [f"  no image {which}"]
    width = max(len(row["file"]) for row in rows) + 2
    lines = [f"  {f'most {which}':{width + 12}}{'Dice A':>8}{'Dice B':>9}{'B - A':>10}"]
    for row in rows:
        lines.append(
            f"  {row['file']:{width}}{row['class']:12}{_number(row['a']):>8}"
            f"{_number(row['b']):>9}{_number(row['difference'], '+'):>10}"
        )
    return lines


def _title(name: str) -> str:
    return name.replace("_", " ").replace("dice", "Dice").replace("iou", "IoU")


def _number(value: float | None, sign: str = "") -> str:
    return _NONE if value is None else f"{value:{sign}.4f}"


def main(argv: list[str] | None = None) -> int:
    """Runs the comparison as a command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m covjax.compare",
        description="Tells whether one evaluated run is better than another.",
    )
    parser.add_argument(
        "a", type=Path, metavar="RUN_A", help="run's folder, or its CSV"
    )
    parser.add_argument("b", type=Path, metavar="RUN_B", help="the same of the other")
    parser.add_argument(
        "--split", choices=("train", "val", "test"), default="test", help="of folders"
    )
    parser.add_argument(
        "--roi", choices=ROIS, help="of folders: what the network was shown"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it all")
    arguments = parser.parse_args(argv)
    try:
        a, b = (
            read_run(given, arguments.split, arguments.roi)
            for given in (arguments.a, arguments.b)
        )
        found = compare(a, b)
        print(printable(format_comparison(found)))
        if arguments.json:
            _write_json(arguments.json, found)
    except UsageError as error:
        print(printable(str(error)), file=sys.stderr)
        return 2
    return 0


def _write_json(path: Path, found: dict[str, Any]) -> None:
    try:
        write_whole(path, json.dumps(found, indent=1) + "\n")
    except OSError as error:
        raise UsageError(f"--json: {path}: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
