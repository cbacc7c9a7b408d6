"""Tables of finished runs for a terminal; `python -m covjax.report.tables RUN …`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covjax.errors import UsageError, expecting, printable
from covjax.evaluation.results import ROI_NAMES, headline_roi, read_results, roi_name

# The study's Test figures, family `all`: mean loss, Dice, IoU.
STUDY = {"lung": (0.0372, 0.9690, 0.9411), "infection": (0.3656, 0.6167, 0.5642)}
NONE = "–"
# What those losses are of.
STUDY_LOSS = {"lung": {"dice": 1.0}, "infection": {"dice": 0.5, "bce": 0.5}}


def format_evaluation(found: Sequence[dict[str, Any]], title: str) -> str:
    """Returns the tables of a split: the headline's, and the regions side by side.

    Args:
      found: what the JSON files hold, the run's own region of interest first.
      title: printed first, for example the run's folder.

    Raises:
      UsageError: if a file holds something else.
    """
    with expecting(f"{title}: not results as --mode=evaluate writes them"):
        rois = [results["roi"] for results in found]
        headline = found[rois.index(headline_roi(rois))]
        tables = [format_results(headline, title)]
        if len(found) > 1:
            tables.append(format_regions(found))
    return printable("\n\n".join(tables))


def format_results(results: dict[str, Any], title: str) -> str:
    """Returns the study's table (loss, Dice, IoU) and, below it, the families.

    Args:
      results: what results/<split>.json holds.
      title: printed first, for example the run's folder.
    """
    samples = "PHANTOM images" if results["phantom"] else "images"
    lines = [
        f"{title}: {results['task']}, {results['split']}, {results['n']} {samples}"
        f" ({results['n_empty']} with an empty truth)",
        f"region of interest: {format_roi(results)}; {format_point(results)}",
        "",
        f"  {'':20}{'loss':>8}{'Dice':>9}{'IoU':>9}",
    ]
    rows: list[tuple[str, tuple[float | None, ...]]] = [
        ("covjax, all", (results["loss"], *_all(results)))
    ]
    untuned = results.get("untuned")
    if untuned:
        name = f"  at {untuned['threshold']:g}, untuned"
        rows.append((name, (None, *_all(untuned))))
    # The study saw these images alone, and gives figures of Test alone.
    if has_study(results) and results["split"] == "test":
        shown = "whole image" if results["task"] == "lung" else "true lungs"
        rows.append((f"the study, {shown}", study_figures(results)))
    for name, values in rows:
        cells = "".join(f"{number(v):>9}" for v in values)
        lines.append(f"  {name:20}{cells[1:]}")
    lines += ["", f"  {'family':14}{'Dice [95 %]':>24}{'IoU [95 %]':>24}"]
    for family in ("all", "positive", "pooled"):
        cells = "".join(f"{figure(results[family][k]):>24}" for k in ("dice", "iou"))
        lines.append(f"  {family:14}{cells}")
    blank = results["blank_rate"]
    if blank["mean"] is not None:
        lines.append(
            f"  {'blank rate':14}{figure(blank):>24}   Normal"
            f" {number(blank['Normal'])}, Non-COVID {number(blank['Non-COVID'])}"
        )
    return "\n".join(lines)


def has_study(results: dict[str, Any]) -> bool:
    """Tells whether the study saw such images: neither phantoms nor another set's."""
    return not results["phantom"] and not results.get("from_table")


def study_figures(results: dict[str, Any]) -> tuple[float | None, ...]:
    """Returns the study's loss, Dice and IoU; no loss where the run's is another."""
    loss, *others = STUDY[results["task"]]
    own = STUDY_LOSS[results["task"]]
    same = results.get("loss_weights", own) == own
    return (loss if same else None, *others)


def _all(results: dict[str, Any]) -> list[float]:
    return [results["all"][k]["mean"] for k in ("dice", "iou")]


def format_roi(results: dict[str, Any]) -> str:
    """Returns what the network was shown, and which run found the lungs, if one did."""
    name, lungs = roi_name(results), results.get("lungs")
    return f"{name} ({lungs['run']}, step {lungs['step']})" if lungs else name


def format_point(results: dict[str, Any]) -> str:
    """Returns what made masks of the probabilities, in words."""
    point = results.get("operating_point")
    if not point:
        return f"threshold {results['threshold']:g}, untuned"
    split = point["chosen_on"].capitalize()
    return (
        f"threshold {point['threshold']:g}, smallest area {point['min_area']} px,"
        f" presence {point['presence']:.3f}, chosen on {split} for"
        f" “{point['objective']}”"
    )


def format_regions(found: Sequence[dict[str, Any]]) -> str:
    """Returns a table of a split by what the network was shown of each image.

    Args:
      found: what the JSON files of the regions hold.
    """
    head = ("Dice, all", "positive", "pooled", "blank rate", "AUROC")
    lines = [
        "Shown of each image (Dice; below each, at the untuned threshold; intervals:"
        " see"
        " the report):",
        f"  {'':34}" + "".join(f"{name:>12}" for name in head),
    ]
    for results in found:
        name, tuned = ROI_NAMES[results["roi"]], results.get("operating_point")
        auroc = (results.get("detection") or {}).get("auroc", {}).get("mean")
        # The probe is not tuned, and asks for nothing but its AUROC.
        probe = results["roi"] == "outside" and not tuned
        cells = f"{NONE:>12}" * 4 if probe else _region(results)
        lines.append(f"  {name:34}{cells}{number(auroc):>12}")
        if results.get("untuned"):
            lines.append(f"  {'':34}{_region(results['untuned'])}")
    return "\n".join(lines)


def _region(results: dict[str, Any]) -> str:
    values = [results[family]["dice"] for family in ("all", "positive", "pooled")]
    values.append(results["blank_rate"])
    return "".join(f"{number(value['mean']):>12}" for value in values)


def number(value: float | None, digits: int = 4) -> str:
    """Returns a number with so many decimals, or a dash for None."""
    return NONE if value is None else f"{value:.{digits}f}"


def figure(value: dict[str, float | None] | None, digits: int = 4) -> str:
    """Returns a mean with its interval, if it has one; a dash for nothing."""
    if value is None:
        return NONE
    mean, low, high = (number(value[k], digits) for k in ("mean", "low", "high"))
    return mean if NONE in (mean, low, high) else f"{mean} [{low}, {high}]"


def main(runs: list[str]) -> int:
    """Prints the Test tables of some runs, and where their reports are."""
    if not runs:
        print("usage: python -m covjax.report.tables RUN [RUN ...]", file=sys.stderr)
        return 2
    try:
        for run in runs:
            print(format_evaluation(read_results(Path(run), "test"), run), end="\n\n")
    except UsageError as error:
        print(printable(str(error)), file=sys.stderr)
        return 2
    for run in runs:
        print(f"report: {Path(run) / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
