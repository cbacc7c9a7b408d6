"""Sections of the page that hold a run's scores; each is None without its files."""

from typing import Any

import numpy as np

from covjax.compare import compare_figures
from covjax.metrics.segmentation import FAMILIES
from covjax.report.page_parts import Part, Section, Table, Text, at, count
from covjax.report.run_files import RunFiles
from covjax.report.tables import (
    NONE,
    ROI_NAMES,
    figure,
    has_study,
    number,
    roi_name,
    study_figures,
)

_REGIONS = ("truth", "predicted", "none")
_INTERVALS = "Brackets hold 95 % bootstrap intervals over images."
_FAMILY_NAMES = {
    "all": "all: mean over all images; empty truth and empty output count 1",
    "positive": "positive: mean over images whose truth is not empty",
    "pooled": "pooled: pixels summed over all images, then one ratio",
}


def headline(run: RunFiles) -> Section | None:
    """Returns the figure to remember, and the study's beside it."""
    main = run.main
    if not main:
        return None
    what = "synthetic Test images (phantoms)" if run.phantom else "Test images"
    parts: list[Part] = [
        Text(
            f"{count(main['n'])} {what}, region of interest: {roi_name(main)}. Mean"
            f" Dice of family “all”: {figure(at(main, 'all', 'dice'))}; IoU:"
            f" {figure(at(main, 'all', 'iou'))}. {_INTERVALS}"
        )
    ]
    if main.get("roi") == "predicted":
        parts.append(
            Text(
                "This is the way that a clinic could go: the lungs come from a model,"
                " not from the data set. The other regions stand below."
            )
        )
    rows = [
        row
        for stem in dict.fromkeys((run.headline, run.of_region("truth")))
        if stem
        for row in _headline_rows(run.results[stem])
    ]
    caption = "Test, family “all”"
    if not run.phantom and has_study(main):
        roi = "whole image" if run.task == "lung" else "true lungs"
        rows.append([f"the study, {roi}", *map(number, study_figures(main))])
        caption += ", beside the study that covjax reproduces"
        parts.append(
            Text(
                "The study worked at 256 px, this run at"
                f" {main.get('image_size', NONE)} px. No interval of the study's"
                " figures is known; they compare only with a row of the same region of"
                f" interest ({roi})."
            )
        )
    head = ["", "loss", "Dice [95 %]", "IoU [95 %]"]
    parts.insert(1, Table(caption, head, rows))
    return Section("headline", "Headline", parts)


def _headline_rows(results: dict[str, Any]) -> list[list[str]]:
    name = f"covjax, {roi_name(results)}"
    untuned = results.get("untuned")
    tuned = _tuned(results)
    rows = [
        [
            name + (", tuned" if tuned else f", threshold {results['threshold']:g}"),
            number(results["loss"]),
            *(figure(at(results, "all", k)) for k in ("dice", "iou")),
        ]
    ]
    if tuned and untuned:
        cells = (figure(at(untuned, "all", k)) for k in ("dice", "iou"))
        rows.append(
            [f"{name}, threshold {untuned['threshold']:g}, untuned", NONE, *cells]
        )
    return rows


def _tuned(results: dict[str, Any]) -> bool:
    return bool(at(results, "operating_point", "chosen_on"))


def families(run: RunFiles) -> Section | None:
    """Returns the four families, tuned beside untuned."""
    main = run.main
    if not main:
        return None
    untuned = main.get("untuned") if _tuned(main) else None
    names = [f"threshold {main['threshold']:g}"]
    columns = [main]
    if untuned:
        names = ["tuned", f"untuned, {untuned['threshold']:g}"]
        columns.append(untuned)
    head = [""] + [f"{m}, {name}" for name in names for m in ("Dice", "IoU")]
    rows = [
        [_FAMILY_NAMES[family]]
        + [figure(at(c, family, k)) for c in columns for k in ("dice", "iou")]
        for family in FAMILIES
    ]
    parts: list[Part] = [
        Text(_operating_point(main)),
        Table(f"Families, {_of(main)}", head, rows),
    ]
    if at(main, "blank_rate", "mean") is not None:
        kinds = {"all empty images": None, "Normal": "Normal", "Non-COVID": "Non-COVID"}
        blank = [
            [name, *(_blank(c["blank_rate"], kind) for c in columns)]
            for name, kind in kinds.items()
        ]
        caption = (
            f"Blank rate: of {count(main['n_empty'])} images with an empty truth, the"
            " share whose output is empty"
        )
        parts.append(Table(caption, ["", *names], blank))
        parts.append(
            Text(
                "Non-COVID images show real opacities of other pneumonias, which the"
                " truth leaves out: leaving them blank is the harder part."
            )
        )
    return Section("families", "Families of Dice and IoU", parts)


def _blank(rate: dict[str, Any], kind: str | None) -> str:
    return number(rate.get(kind)) if kind else figure(rate)


def _of(results: dict[str, Any]) -> str:
    return f"{results['split'].capitalize()}, region of interest: {roi_name(results)}"


def _operating_point(results: dict[str, Any]) -> str:
    point = results.get("operating_point") or {"threshold": results["threshold"]}
    text = f"A pixel is foreground above a probability of {point['threshold']:g}"
    size = results.get("image_size", NONE)
    if point.get("min_area"):
        text += f"; areas below {point['min_area']} pixels (at {size} px) are dropped"
    if point.get("presence"):
        text += (
            "; an image stays blank where its presence score"
            f" ({_presence(results)}) is below {point['presence']:.3f}"
        )
    if point.get("chosen_on"):
        return (
            f"{text}. All of it was chosen on {point['chosen_on'].capitalize()} alone,"
            f" for the highest “{point.get('objective') or 'score'}”."
        )
    return f"{text}. Nothing of it was tuned."


def _presence(results: dict[str, Any]) -> str:
    if results.get("presence_from") == "head":
        return "the probability that the network's presence head gives"
    return "the mean probability of its surest pixels, one in 256"


def regions(run: RunFiles) -> Section | None:
    """Returns what the region of interest changes: true, found, or no lungs."""
    data = run.config["data"]
    stems = {roi: run.of_region(roi) for roi in _REGIONS}
    found = {roi: run.results[stem] for roi, stem in stems.items() if stem}
    if len(found) < 2:
        return None
    rows = []
    for r in found.values():
        row = _region_row(r)
        rows.append([roi_name(r), *row, figure(at(r, "detection", "auroc"))])
        if r.get("untuned"):
            name = f"{roi_name(r)}, threshold {r['untuned']['threshold']:g}, untuned"
            rows.append([name, *_region_row(r["untuned"]), NONE])
    head = ["region of interest", *(f"Dice, {f}" for f in FAMILIES)]
    head += ["blank rate", "AUROC"]
    parts: list[Part] = [
        Table("Test by what the network is shown of an image", head, rows)
    ]
    counts = [run.counts.get(stems[roi] or "") for roi in ("truth", "predicted")]
    if counts[0] and counts[1] and counts[0][0] == counts[1][0]:
        change = compare_figures(counts[0][1], counts[1][1])["all dice"]["difference"]
        parts.append(
            Text(
                "With found instead of true lungs, each at its own operating point,"
                f" Dice (all) changes by {change['mean']:+.4f} [{change['low']:+.4f},"
                f" {change['high']:+.4f}], image by image. True lungs are"
                " an upper hand that no clinic has."
            )
        )
    own = data.get("roi") in ROI_NAMES and roi_name(data)
    if own:
        parts.append(
            Text(
                f"The network was trained on this: {own}. Whatever else it is shown is"
                " new to it, and what that costs is part of the figures."
            )
        )
    return Section("regions", "Region of interest", parts)


def _region_row(results: dict[str, Any]) -> list[str]:
    dice = (figure(at(results, family, "dice")) for family in FAMILIES)
    return [*dice, figure(results.get("blank_rate"))]


def probe(run: RunFiles) -> Section | None:
    """Returns what is still detected with the lungs blacked out."""
    stem = run.of_region("outside")
    auroc = at(run.results, stem, "detection", "auroc") if stem else None
    if not auroc or auroc["mean"] is None:
        return None
    text = (
        "With everything inside the lungs blacked out, COVID-19 images are told from"
        " the"
        f" others with an AUROC of {figure(auroc)}. {_verdict(auroc)}"
    )
    data = run.config["data"]
    if data.get("roi_as") == "channel":
        text += (
            " In training, this network saw all of each image, and the lungs beside it;"
            " in this pass it is still told where they are."
        )
    elif data.get("roi") in ("truth", "predicted"):
        text += (
            " This network has learned the inside of lungs alone; one that is trained"
            " on the outside (config.data.roi = “outside”) may find more there."
        )
    whole = at(run.main, "detection", "auroc")
    rows = [["outside the lungs alone", figure(auroc)]]
    if whole and stem != run.headline:
        rows.append([roi_name(run.main), figure(whole)])
    return Section(
        "probe",
        "Shortcut probe",
        [
            Text(text, note=True),
            Table("Detection of COVID-19 images, Test", ["shown", "AUROC"], rows),
        ],
    )


def _verdict(auroc: dict[str, float | None]) -> str:
    """Says what an AUROC means that owes nothing to the lungs."""
    if auroc["low"] is not None and auroc["low"] > 0.5:
        return (
            "That is more than chance (.5): letters, borders, exposure or the outline"
            " of the lungs give the class away, and part of what is detected, where the"
            " network sees any of these, may rest on such shortcuts and not on disease."
        )
    if auroc["high"] is not None and auroc["high"] < 0.5:
        return (
            "That is less than chance (.5): the network finds more in the images"
            " without"
            " infection. What lies outside the lungs does differ between the classes,"
            " though not in the direction of the disease."
        )
    return (
        "The interval does not tell that from chance (.5): this probe shows no use of"
        " shortcuts such as letters, borders or exposure, and does not rule them out."
    )


def pixels(run: RunFiles) -> Section | None:
    """Returns pixelwise and surface measures."""
    main = run.main
    rows = [
        [name.capitalize(), figure(value)]
        for name, value in (main.get("pixels") or {}).items()
    ]
    surface = main.get("surface")
    if surface:
        dice = f"Surface Dice at {surface['tolerance']:g} px"
        rows += [
            [
                f"{dice} ({count(surface['n_surface_dice'])} images)",
                figure(surface["surface_dice"]),
            ],
            [
                f"95th percentile of surface distance, px ({count(surface['n_hd95'])}"
                " images with both outlines)",
                figure(surface["hd95"], digits=1),
            ],
        ]
    if not rows:
        return None
    caption = f"Pixels and outlines, {_of(main)}"
    table = Table(caption, ["", "mean [95 %]"], rows)
    return Section("pixels", "Pixels and outlines", [table])


def detection(run: RunFiles) -> Section | None:
    """Returns how well images with infection are told from those without."""
    found = run.main.get("detection")
    if not found:
        return None
    names = {"auroc": "AUROC"}
    names |= {"sensitivity": "Sensitivity", "specificity": "Specificity"}
    caption = (
        f"Images with infection ({count(found['n_positive'])} of {count(found['n'])})"
        f" told from those without, {_of(run.main)}"
    )
    rows = [[names[k], figure(found[k])] for k in names]
    note = Text(
        "Sensitivity and specificity hold at the operating point above, AUROC over all."
        " The share of infected images is the data set's, not a clinic's: predictive"
        " values cannot be taken from here."
    )
    table = Table(caption, ["", "mean [95 %]"], rows)
    return Section("detection", "Detection of images", [table, note])


def lesions(run: RunFiles) -> Section | None:
    """Returns the scores by size of the infection."""
    bins = run.main.get("lesions")
    if not bins:
        return None
    rows = [
        [
            f"{100 * b['low']:g} to {100 * b['high']:g} %",
            count(b["n"]),
            *(figure(b[k]) for k in ("dice", "iou", "sensitivity")),
        ]
        for b in bins
    ]
    head = ["infected share of the lungs", "images", "Dice, positive", "IoU, positive"]
    head.append("sensitivity of pixels")
    table = Table(f"By extent of the infection, {_of(run.main)}", head, rows)
    return Section("lesions", "By extent of the infection", [table])


def classes(run: RunFiles) -> Section | None:
    """Returns the scores by class, and the images that went wrong altogether."""
    found = run.main.get("classes") or {}
    parts: list[Part] = []
    if found:
        rows = [
            [
                label,
                count(of_class["n"]),
                count(of_class["n_empty"]),
                *(figure(of_class.get(k)) for k in ("dice", "positive_dice")),
                figure(of_class.get("blank_rate")),
                figure(of_class.get("false_pixels"), digits=1),
            ]
            for label, of_class in found.items()
        ]
        head = ["class", "images", "empty truth", "Dice, all", "Dice, positive"]
        head += ["blank rate", "false pixels an image"]
        parts.append(Table(f"By class, {_of(run.main)}", head, rows))
    if run.headline in run.counts:
        parts.append(_failures(*run.counts[run.headline]))
    return Section("classes", "By class", parts) if parts else None


def _failures(labels: list[str], counts: np.ndarray) -> Table:
    """Counts, by class, what a reader would call a wrong image."""
    tp, fp, fn, _ = counts.T
    positive = tp + fn > 0
    missed, false = positive & (tp == 0), ~positive & (fp > 0)
    rows = []
    for label in dict.fromkeys(labels):
        of_class = np.asarray(labels) == label
        row = [label]
        for failed, asked in ((missed, positive), (false, ~positive)):
            row.append(f"{(of_class & failed).sum():,} of {(of_class & asked).sum():,}")
        rows.append(row)
    head = ["class", "truth missed altogether", "empty truth, output not empty"]
    return Table("Images that failed, by class", head, rows)


def splits(run: RunFiles) -> Section | None:
    """Returns the run's own region of interest on every split that was scored."""
    found = {s: run.results[s] for s in ("train", "val", "test") if s in run.results}
    if not found:
        return None
    rows = [
        [stem.capitalize(), count(r["n"]), number(r["loss"])]
        + [figure(at(r, family, "dice")) for family in FAMILIES]
        + [figure(r.get("blank_rate"))]
        for stem, r in found.items()
    ]
    head = ["split", "images", "loss", *(f"Dice, {f}" for f in FAMILIES), "blank rate"]
    roi = roi_name(next(iter(found.values())))
    note = Text(
        "Train was learned from and Val chose the epoch (and what was tuned): only Test"
        " tells how the model does on other images of this data set."
    )
    table = Table(f"Splits, region of interest: {roi}", head, rows)
    return Section("splits", "Train, Val, Test", [table, note])
