"""All figures of an evaluated split."""

from pathlib import Path
from typing import Any

import numpy as np

from covjax.data.covidqu import read_sample
from covjax.data.pipeline import Region
from covjax.evaluation.results import Evaluated
from covjax.metrics.counts import dice_per_image
from covjax.report.figures import Panel, choose_samples, draw_qualitative
from covjax.report.reliability import draw_reliability
from covjax.report.severity import draw_severity
from covjax.report.sheets import Thumbnail, choose_sheets, draw_sheet

FIGURES = ("qualitative", "best", "median", "worst", "reliability", "severity")


def draw_split(
    folder: Path,
    evaluated: Evaluated,
    results: dict[str, Any],
    *,
    region: Region,
    title: str,
) -> None:
    """Draws what the report shows of a split.

    For Test: qualitative, best, median, worst, reliability and, of infection,
    severity; for another split, qualitative alone, with the split in its name.

    Args:
      folder: the run's `figures`.
      evaluated: the split.
      results: what its JSON file holds.
      region: what the network was shown.
      title: above each figure; says "PHANTOM" where the images are.
    """
    test = results["split"] == "test"
    if test:  # a figure that cannot be drawn is not to be an older one
        for name in FIGURES:
            (folder / f"{name}.png").unlink(missing_ok=True)
    suffix = "" if test else f"-{results['split']}"
    panels = _panels(evaluated, results, region)
    if panels:
        draw_qualitative(folder / f"qualitative{suffix}.png", panels, title)
    if not test:
        return
    for name, chosen in choose_sheets(evaluated.counts).items():
        if chosen:
            samples = [_thumbnail(evaluated, i) for i in chosen]
            draw_sheet(folder / f"{name}.png", samples, f"{title}; the {name}")
    _draw_reliability(folder / "reliability.png", results, title)
    if results["severity"]:
        _draw_severity(folder / "severity.png", evaluated, results, title)


def _panels(
    evaluated: Evaluated, results: dict[str, Any], region: Region
) -> list[Panel]:
    counts, samples = evaluated.counts, evaluated.samples
    labels = [sample.label for sample in samples]
    panels = []
    for name, i in choose_samples(labels, counts, results["task"] == "lung"):
        record = read_sample(samples[i], results["image_size"])
        true, found = counts[i, 0] + counts[i, 2], counts[i, 0] + counts[i, 1]
        dice = dice_per_image(counts[i : i + 1])[0]
        panels.append(
            Panel(
                title=f"{name}: {samples[i].name}\nDice {dice:.3f}; {true} px true,"
                f" {found} found",
                sample=record["image"],
                seen=region.show(record)[..., 0],
                truth=evaluated.truth[i],
                output=evaluated.output[i],
            )
        )
    return panels


def _thumbnail(evaluated: Evaluated, i: int) -> Thumbnail:
    sample = evaluated.samples[i]
    return Thumbnail(
        name=sample.name,
        label=sample.label,
        dice=float(dice_per_image(evaluated.counts[i : i + 1])[0]),
        sample=read_sample(sample, evaluated.truth.shape[1])["image"],
        truth=evaluated.truth[i],
        output=evaluated.output[i],
    )


def _draw_reliability(path: Path, results: dict[str, Any], title: str) -> None:
    bins = results["reliability"]["bins"]

    def column(name: str) -> np.ndarray:
        return np.array([np.nan if b[name] is None else b[name] for b in bins])

    draw_reliability(
        path,
        edges=np.array([bins[0]["low"], *(b["high"] for b in bins)]),
        confidence=column("confidence"),
        frequency=column("frequency"),
        pixels=column("pixels"),
        title=title,
    )


def _draw_severity(
    path: Path, evaluated: Evaluated, results: dict[str, Any], title: str
) -> None:
    found = results["severity"]
    limits = found["limits"]["low"]["mean"], found["limits"]["high"]["mean"]
    if None in limits:  # fewer than two images with lungs
        return
    draw_severity(
        path,
        true_share=evaluated.rows["true_share"],
        found_share=evaluated.rows["found_share"],
        labels=[sample.label for sample in evaluated.samples],
        bias=found["bias"]["mean"],
        limits=limits,
        title=title,
    )
