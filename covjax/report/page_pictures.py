"""Sections of the page around pictures; each is None without its files."""

from typing import Any

from covjax.metrics.counts import dice_per_image
from covjax.report.page_parts import Part, Picture, Section, Table, Text, at, count
from covjax.report.run_files import RunFiles
from covjax.report.sheets import choose_sheets
from covjax.report.tables import figure, number


def training(run: RunFiles) -> Section | None:
    """Returns the curves of the training."""
    if "curves" not in run.figures:
        return None
    caption = "Loss on Train and Val, and Dice on Val, over the steps"
    picture = Picture(run.figures["curves"], _curves_alt(run.lines), caption)
    return Section("training", "Training", [picture])


def _curves_alt(lines: list[dict]) -> str:
    losses = [x["loss"] for x in lines if x["split"] == "train"]
    val = [x for x in lines if x["split"] == "val"]
    dice = [x.get("tuned_all_dice", x.get("all_dice")) for x in val]
    told = [x for x in dice if x is not None]
    text = "Two panels of lines over the steps."
    if losses:
        text += f" Loss on Train goes from {losses[0]:.4f} to {losses[-1]:.4f}."
    if told:
        text += (
            f" Dice on Val (all) is {told[0]:.4f} after the first epoch, at best"
            f" {max(told):.4f}, and {told[-1]:.4f} at the end."
        )
    return text


def samples(run: RunFiles) -> Section | None:
    """Returns Figure 1: images chosen by their truth."""
    if "qualitative" not in run.figures:
        return None
    which = (
        "the middle image of each class"
        if run.task == "lung"
        else "a severe case (90th percentile of infected pixels), a mild one (10th) and"
        " a Normal image"
    )
    caption = (
        f"Figure 1. Test: {which}, chosen by the truth alone, never by the output. From"
        " left to right: the image as the network sees it, truth, output, and both"
        " outlines over the image (truth blue and solid, output orange and dashed)."
    )
    alt = (
        f"A row for each image ({which}), with its Dice and its true and found pixels"
        " at"
        f" the left. Mean Dice (all) over all Test images: {_dice(run)}."
    )
    picture = Picture(run.figures["qualitative"], alt, caption)
    return Section("figure-1", "Three images", [picture])


def _dice(run: RunFiles) -> str:
    return figure(at(run.main, "all", "dice"))


_SHEETS = {
    "best": "The ten best: highest Dice among images with a truth",
    "median": "The ten middling: around the median Dice of images with a truth",
    "worst": "The ten worst of all images: lowest Dice, most wrong pixels first",
}


def sheets(run: RunFiles) -> Section | None:
    """Returns the contact sheets of best, median and worst images."""
    pictures: list[Part] = [
        Picture(run.figures[name], f"{caption}. {_range(run, name)}", caption + ".")
        for name, caption in _SHEETS.items()
        if name in run.figures
    ]
    if not pictures:
        return None
    first = Text(
        "Outlines over the image: truth blue and solid, output orange and dashed; above"
        " each, file, class and Dice."
    )
    return Section("sheets", "Best, median and worst images", [first, *pictures])


def _range(run: RunFiles, name: str) -> str:
    if run.headline not in run.counts:
        return "The Dice of each stands above it."
    counts = run.counts[run.headline][1]
    dice = dice_per_image(counts)[choose_sheets(counts)[name]]
    return f"Their Dice goes from {dice.min():.4f} to {dice.max():.4f}."


def reliability(run: RunFiles) -> Section | None:
    """Returns whether a pixel's probability means what it says."""
    found: dict[str, Any] = run.main.get("reliability") or {}
    parts: list[Part] = []
    if found:
        parts.append(
            Text(
                f"Expected calibration error over {_counted(run)}:"
                f" {figure(found['ece'])}. It is the mean distance between probability"
                " and frequency, weighted by pixels."
            )
        )
    if "reliability" in run.figures:
        alt = (
            "Share of pixels in the truth against their mean probability, bin by bin,"
            " beside the diagonal of a calibrated model; at the right the pixels in"
            f" each bin. Expected calibration error: {figure(found.get('ece'))}."
        )
        parts.append(Picture(run.figures["reliability"], alt, "Reliability of pixels."))
    if found:
        rows = [
            [
                f"{b['low']:g} to {b['high']:g}",
                count(b["pixels"]),
                number(b["confidence"]),
                number(b["frequency"]),
            ]
            for b in found["bins"]
        ]
        head = ["probability", "pixels", "mean probability", "share in the truth"]
        parts.append(Table("Reliability, bin by bin", head, rows))
    title = "Reliability of the probabilities"
    return Section("reliability", title, parts) if parts else None


def _counted(run: RunFiles) -> str:
    if run.task == "lung":
        return "all pixels, most of which are plain background"
    return "the pixels inside the true lungs"


def severity(run: RunFiles) -> Section | None:
    """Returns how well the infected share of the lungs is told."""
    found: dict[str, Any] = run.main.get("severity") or {}
    parts: list[Part] = []
    if found:
        rows = [
            ["mean absolute error", figure(found["mae"])],
            ["bias (found − true)", figure(found["bias"])],
            ["lower limit of agreement", figure(found["limits"]["low"])],
            ["upper limit of agreement", figure(found["limits"]["high"])],
        ]
        caption = (
            f"Infected share of the lungs (0 to 1), {count(found['n'])} images;"
            f" {count(found['n_without_lungs'])} without lungs left out"
        )
        parts.append(Table(caption, ["", "share [95 %]"], rows))
    if "severity" in run.figures:
        alt = (
            "Left: found against true share by class. Right: their difference against"
            f" their mean. Mean absolute error {figure(found.get('mae'))}, bias"
            f" {figure(found.get('bias'))}."
        )
        caption = "Found against true share, and their differences (Bland–Altman)."
        parts.append(Picture(run.figures["severity"], alt, caption))
    title = "Severity: infected share of the lungs"
    return Section("severity", title, parts) if parts else None
