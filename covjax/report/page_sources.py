"""Sections of the page on where figures come from, and how far they carry."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from covjax.config import flatten
from covjax.data.audit.checks import KINDS
from covjax.data.covidqu import TREES
from covjax.report.checklist import CLAIM, TRIPOD_AI, Item
from covjax.report.page_parts import (
    Code,
    Link,
    Part,
    Points,
    Section,
    Table,
    Text,
    at,
    count,
)
from covjax.report.run_files import RunFiles
from covjax.report.tables import NONE, roi_name

_TASKS = {
    "lung": "stage 1: a U-Net that outlines the lungs",
    "infection": "stage 2: a U-Net that outlines COVID-19 infection",
}


_OF_COVID_QU_EX = (
    "Images of one collection, split as published: another hospital, device or patient"
    " group may give other figures. There is no external test.",
    "No patient identifiers exist: images of one patient may stand in two splits, and"
    " no"
    " figure can be given by age, sex or origin.",
    "Classes come from different sources: letters, borders and exposure can give a"
    " class away without a look at the lungs.",
    "The reference masks are partly made by machine; two radiologists agreed with them"
    " at a mean Dice of .65 on 48 images. A higher Dice is agreement with this data"
    " set,"
    " not skill above theirs.",
)
_OF_ANOTHER_SET = (
    "Images of another set than COVID-QU-Ex, split by whoever laid it out, or by a"
    " hash:"
    " another hospital, device or patient group may give other figures.",
    "Nothing is known here of its patients: no figure can be given by age, sex or"
    " origin. Where its table named none, images of one may stand in two splits.",
    "Nor is it known who drew its masks, or whether its classes come from different"
    " sources, which can give a class away without a look at the lungs. Lungs that a"
    " model found are no reference: against them, stage 1 is compared with that model.",
)


def about(run: RunFiles) -> Section:
    """Returns what was trained on what, and with which software."""
    config, told = run.config, run.about
    data = config["data"]
    samples = "COVID-QU-Ex, chest X-rays"
    if run.from_table:
        samples = "another set than COVID-QU-Ex, laid out by a table of its images"
    if run.phantom:
        samples = "PHANTOMS: synthetic images, drawn by a program"
    rows = [
        ["model", _TASKS[run.task]],
        ["images", f"{samples}, {data.get('image_size', NONE)} px"],
        ["region of interest in training", roi_name(data) if "roi" in data else NONE],
        ["started from", config.get("init_from") or "random parameters"],
        ["lungs of the headline", _lungs(run)],
        ["seed", str(config.get("seed", NONE))],
        ["epochs, batch", _two(config, "epochs", "batch_size")],
        ["checkpoint scored (step)", str(run.main.get("checkpoint", NONE))],
        ["started", str(told.get("started", NONE))],
        ["commit", str(told.get("commit") or NONE)],
        ["Python", str(told.get("python", NONE))],
        *([name, str(v)] for name, v in (told.get("versions") or {}).items()),
    ]
    parts: list[Part] = [
        Table("What was trained, on what, with what", ["", "value"], rows, prose=True)
    ]
    if told.get("command"):
        parts += [Text("The command of the run:"), Code(told["command"])]
    return Section("run", "The run", parts)


def _lungs(run: RunFiles) -> str:
    found = run.main.get("lungs")
    if not found:
        return "the data set's" if run.main.get("roi") == "truth" else NONE
    return (
        f"found by {found['run']}, step {found['step']}, above a probability of"
        f" {found['threshold']:g}"
    )


def _two(config: dict[str, Any], *names: str) -> str:
    return ", ".join(str(at(config, "train", n) or NONE) for n in names)


def settings(run: RunFiles) -> Section:
    """Returns every field of the run's config."""
    rows = [[name, str(value)] for name, value in flatten(run.config).items()]
    table = Table("Every field of config.json", ["field", "value"], rows, prose=True)
    return Section("settings", "Settings", [table])


def audit(run: RunFiles) -> Section:
    """Returns what the audit of the data found, or how to make one."""
    title = "Audit of the data"
    found = run.audit
    if found is None:
        parts: list[Part] = [
            Text(
                "No audit lies in this run's folder: nothing is said here of damaged"
                " files, or of images that stand in two splits. To make one:"
            ),
            Code("python -m covjax.data.audit DATA --json RUN/results/audit.json"),
        ]
        return Section("no-audit", title, parts)
    parts = [_images(found)]
    wrong = [
        [fault, count(len(found["files"].get(kind, ())))]
        for kind, fault in KINDS.items()
    ]
    parts.append(Table("Files and masks at fault", ["fault", "files"], wrong))
    parts += _twins(found)
    return Section("audit", title, parts)


def _images(found: dict[str, Any]) -> Table:
    rows = [
        [f"{TREES[task]}, {split}"]
        + [
            count(n) + (f" / {told[split][label]:,}" if told else "")
            for label, n in labels.items()
        ]
        for task, tree in found["trees"].items()
        for told in [tree["published"]]
        for split, labels in tree["images"].items()
    ]
    trees = [*found["trees"].values()]
    title = "Images found" + (" / published" if trees[0]["published"] else "")
    return Table(title, ["split", *trees[0]["images"]["Train"]], rows)


def _twins(found: dict[str, Any]) -> list[Part]:
    rows = []
    for kind, name in (("identical", "identical"), ("near", "nearly identical")):
        for pair in found[kind]["pairs"]:
            leak = "yes" if pair["leak"] else "no"
            rows.append([name, " – ".join(pair["parts"]), count(pair["pairs"]), leak])
    if not rows:
        return [Text("No image stands twice.")]
    head = ["alike", "where", "pairs", "seen before it is scored"]
    parts: list[Part] = [Table("Images that stand twice", head, rows)]
    seen = [
        [part, count(kinds["identical"]), count(kinds["near"])]
        for part, kinds in found["seen_before"].items()
    ]
    if seen:
        caption = "Images with a twin in an earlier split, or in stage 1's images"
        parts.append(Table(caption, ["part", "identical", "nearly identical"], seen))
    return parts


def limits(run: RunFiles) -> Section:
    """Returns what no figure of this page can tell."""
    points = [
        "Research software, not a medical device: nothing here may decide about a"
        " patient.",
    ]
    if run.phantom:
        points.append(
            "Every figure is from PHANTOMS. It shows that the software works, and"
            " forecasts nothing about patients."
        )
    points += _OF_ANOTHER_SET if run.from_table else _OF_COVID_QU_EX
    points += [
        "Intervals tell how far other images of the same kind would move a figure; they"
        " say nothing about another seed. One run against one run is an anecdote.",
    ]
    if run.task == "infection" and run.headline == "test":
        if run.main.get("roi") == "truth":
            points.append(
                "The network was shown the true lungs, which no clinic has: these"
                " figures flatter it."
            )
    return Section("limits", "Limits", [Points(points)])


def checklists(titles: Mapping[str, str]) -> Section:
    """Returns CLAIM and TRIPOD+AI, item by item.

    Args:
      titles: of the sections that the page has, by anchor.
    """
    names = {
        "CLAIM, update of 2024": CLAIM,
        "TRIPOD+AI, 2024": TRIPOD_AI,
    }
    parts: list[Part] = [
        Text(
            "Topics are paraphrased and only point at the items of the published"
            " checklists. The answers are the project's own judgement; what they say of"
            " the data is said of COVID-QU-Ex."
        )
    ]
    for name, items in names.items():
        shown = [item.on(titles) for item in items]
        states = Counter(item.state for item in shown)
        told = ", ".join(f"{n} {state}" for state, n in states.items())
        head = ["item", "topic", "state", "where", "section"]
        rows = [_item_row(item, titles) for item in shown]
        parts.append(Table(f"{name}: {told}", head, rows, prose=True))
    return Section("checklists", "Checklists", parts)


def _item_row(item: Item, titles: Mapping[str, str]) -> list[str | Link]:
    link = Link(titles[item.section], item.section) if item.section else NONE
    return [item.number, item.topic, item.state, item.where or NONE, link]
