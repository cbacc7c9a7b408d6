"""What an experiment comes to: its table, as Markdown, CSV and a plot."""

import csv
import dataclasses
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from covjax.compare import Results, pair, read_run
from covjax.evaluation.results import headline_roi, roi_name
from covjax.report.tables import NONE
from covjax.runtime.csv_text import escape, unescape
from covjax.runtime.files import write_whole
from covjax.train import run_folder
from covjax.train.checkpoint import best_of, read_variables
from experiments.child import SPLIT, is_finished, read_record, write_record
from experiments.plan import Plan, Run
from experiments.plot import draw_differences
from experiments.seeds import (
    FIGURES,
    Drawn,
    Scores,
    draw_images,
    estimate_over_seeds,
)

TABLE = "table"  # .md, .csv, .png


@dataclasses.dataclass(frozen=True)
class Row:
    """An arm in the table.

    Attributes:
      arm: its name.
      seeds: of the runs that are finished.
      shown: what the network was shown of each image.
      figures: names of `FIGURES` → what `estimate_over_seeds` returns.
      differences: the same of the difference from the baseline, over the seeds that
        both have; empty for the baseline and where they have none in common.
      minutes: wall-clock of one run, start and evaluation included, the mean over
        seeds; None where nobody measured it.
      parameters: of the network.
    """

    arm: str
    seeds: tuple[int, ...]
    shown: str
    figures: dict[str, dict[str, Any]]
    differences: dict[str, dict[str, Any]]
    minutes: float | None
    parameters: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """The table of an experiment, and what has to be said of it.

    Attributes:
      rows: an arm each, the baseline first; arms without a finished run are not there.
      baseline: its name.
      phantom: whether the images are synthetic.
      samples: how many of Val, and how many of them show the finding.
      size: side of an image, pixels.
      missing: names of runs that are not finished.
    """

    rows: list[Row]
    baseline: str
    phantom: bool
    samples: tuple[int, int]
    size: int
    missing: list[str]


def summarize(plan: Plan, baseline: str) -> Summary | None:
    """Returns the table of what is finished; None where no run of any arm is.

    Raises:
      UsageError: if results are missing or torn, or not of the same images.
    """
    arms = [baseline, *(arm for arm in plan.of_arm if arm != baseline)]
    finished: dict[str, dict[int, Run]] = {
        arm: {s: run for s, run in plan.of_arm[arm].items() if is_finished(run)}
        for arm in arms
    }
    missing = [
        f"{arm}, seed {seed}"
        for arm in arms
        for seed in plan.of_arm[arm]
        if seed not in finished[arm]
    ]
    results = {
        (arm, seed): read_headline(run)
        for arm in arms
        for seed, run in finished[arm].items()
    }
    if not results:
        return None
    first = next(iter(results.values()))
    drawn = draw_images({key: _scores(first, found) for key, found in results.items()})
    rows = [
        _make_row(arm, finished, results, drawn, baseline)
        for arm in arms
        if finished[arm]
    ]
    positive = int((first.counts[:, [0, 2]].sum(axis=1) > 0).sum())
    return Summary(
        rows=rows,
        baseline=baseline,
        phantom=any(found.about.get("phantom", False) for found in results.values()),
        samples=(len(first.samples), positive),
        size=first.about["image_size"],
        missing=missing,
    )


def read_headline(run: Run) -> Results:
    """Returns a run's results in the way that a clinic could have them.

    A network that was trained on lungs is shown those that stage 1 finds; one that was
    trained on the whole image, or on what lies outside the lungs, is shown that.
    """
    own = run.config.data.roi
    tried = [own] if own == "outside" else [own, "predicted"]
    return read_run(run.folder, SPLIT, headline_roi(tried))


def _scores(first: Results, found: Results) -> Scores:
    """Returns the scores of a run with the images in the order of another."""
    counts = pair(first, found)
    with found.path.open(newline="", encoding="utf-8") as file:
        told = {
            (unescape(r["class"]), unescape(r["file"])): r["presence"]
            for r in csv.DictReader(file)
        }
    presence = [float(told[sample] or "nan") for sample in first.samples]
    return Scores(counts, np.array(presence))


def _make_row(
    arm: str,
    finished: Mapping[str, Mapping[int, Run]],
    results: Mapping[tuple[str, int], Results],
    drawn: Mapping[tuple[str, int], Mapping[str, Drawn]],
    baseline: str,
) -> Row:
    runs = finished[arm]

    def of(arm: str, name: str, seeds: Sequence[int]) -> list[Drawn]:
        return [drawn[arm, seed][name] for seed in seeds]

    common = [seed for seed in runs if seed in finished[baseline]]
    minutes = [read_record(run).get("minutes") for run in runs.values()]
    known = [m for m in minutes if m is not None]
    return Row(
        arm=arm,
        seeds=tuple(runs),
        shown=roi_name(results[arm, next(iter(runs))].about),
        figures={
            name: estimate_over_seeds(of(arm, name, list(runs))) for name in FIGURES
        },
        differences={
            name: estimate_over_seeds(of(arm, name, common), of(baseline, name, common))
            for name in FIGURES
        }
        if common and arm != baseline
        else {},
        minutes=sum(known) / len(known) if known else None,
        parameters=_count_parameters(next(iter(runs.values()))),
    )


def _count_parameters(run: Run) -> int:
    count = read_record(run).get("parameters")
    if count is None:
        # An accelerator is for the runs: this process never takes one.
        jax.config.update("jax_platforms", "cpu")
        params = read_variables(best_of(str(run.folder)))["params"]
        count = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
        write_record(run, parameters=count)
    return count


def write_summary(
    summary: Summary,
    plan: Plan,
    folder: Path,
    *,
    name: str,
    question: str,
    about: Mapping[str, str],
) -> None:
    """Writes table.csv, table.png and table.md.

    Args:
      summary: from `summarize`.
      plan: whose runs it is of.
      folder: where to.
      name: of the experiment.
      question: that it asks.
      about: further lines above the table, title → text.
    """
    write_whole(folder / f"{TABLE}.csv", _format_csv(summary))
    kind = "PHANTOM images: " if summary.phantom else ""
    draw_differences(
        folder / f"{TABLE}.png",
        {row.arm: row.differences for row in summary.rows},
        baseline=summary.baseline,
        of_baseline=next(
            (row.figures for row in summary.rows if row.arm == summary.baseline), {}
        ),
        title=f"{kind}{name}: difference from “{summary.baseline}” on Val",
    )
    text = format_summary(summary, plan, name=name, question=question, about=about)
    write_whole(folder / f"{TABLE}.md", text)


def format_table(summary: Summary) -> str:
    """Returns the two tables as Markdown: every arm's figures, and the differences."""
    titles = list(FIGURES.values())
    rows = [["arm", "shown", *titles, "minutes", "parameters", "seeds"]]
    for row in summary.rows:
        cells = [_cell(row.figures[name]) for name in FIGURES]
        minutes = NONE if row.minutes is None else f"{row.minutes:.1f}"
        seeds = " ".join(map(str, row.seeds))
        rows.append(
            [
                _title(row.arm, summary),
                row.shown,
                *cells,
                minutes,
                f"{row.parameters:,}",
            ]
            + [seeds]
        )
    others = [["difference", *titles, "seeds"]]
    for row in summary.rows:
        if row.differences:
            cells = [_cell(row.differences[name], "+") for name in FIGURES]
            both = str(len(row.differences["all dice"]["of_seeds"]))
            others.append([row.arm, *cells, both])
    return "\n\n".join(_markdown(table) for table in (rows, others) if len(table) > 1)


def _title(arm: str, summary: Summary) -> str:
    return f"{arm} (baseline)" if arm == summary.baseline else arm


def _cell(figure: Mapping[str, Any], sign: str = "") -> str:
    mean, low, high = (figure[k] for k in ("mean", "low", "high"))
    if mean is None:
        return NONE
    text = f"{mean:{sign}.4f}"
    if low is None:
        return text
    text += f" [{low:{sign}.4f}, {high:{sign}.4f}]"
    apart = sign and (low > 0 or high < 0)
    return f"**{text}**" if apart else text


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def format_summary(
    summary: Summary, plan: Plan, *, name: str, question: str, about: Mapping[str, str]
) -> str:
    """Returns table.md; arguments as of `write_summary`."""
    n, positive = summary.samples
    kind = "PHANTOM " if summary.phantom else ""
    lines = {
        **about,
        **_tell_origin(plan),
        "date": time.strftime("%Y-%m-%d"),
        "images": f"{n:,} {kind}images of Val, {positive:,} with the finding,"
        f" {summary.size} px",
    }
    notes = [
        "Epoch, operating point and these figures are all chosen and measured on Val;"
        " no figure of Test is computed. Each figure is at the run's operating point,"
        " a mean over seeds with its 95 % interval: a bootstrap over images and seeds,"
        " paired by both for the differences (docs/experiments.md). Bold: the interval"
        " leaves out 0. Of twenty such differences that are none, one is bold by"
        " chance.",
    ]
    if any(len(row.seeds) == 1 for row in summary.rows):
        notes.append(
            "With one seed, an interval is over images alone: what another seed would"
            " give is not in it."
        )
    if len({row.shown for row in summary.rows}) > 1:
        notes.append(
            "The arms were shown different things of each image: the column “shown”."
        )
    if summary.phantom:
        notes.append(
            "The images are PHANTOM images: synthetic. They show that the code works,"
            " and nothing about patients."
        )
    if summary.missing:
        notes.append(f"**Missing**, not finished: {'; '.join(summary.missing)}.")
    title = f"# {name}" + (" (PHANTOM images)" if summary.phantom else "")
    return (
        "\n\n".join(
            [
                title,
                question,
                "\n".join(f"- {key}: {text}" for key, text in lines.items() if text),
                *notes,
                format_table(summary),
                f"![Differences from the baseline]({TABLE}.png)",
                "## Runs",
                _markdown([["run", "minutes", "folder"], *_run_rows(plan)]),
            ]
        )
        + "\n"
    )


def _tell_origin(plan: Plan) -> dict[str, str]:
    """Returns by which code and on which machines the finished runs came about."""
    commits, machines, at_once = set[str](), set[str](), set[int]()
    for run in filter(is_finished, plan.runs):
        config = json.loads((run.folder / run_folder.CONFIG).read_text())
        commits.add(str(config.get("about", {}).get("commit")))
        record = read_record(run)
        machines.update(record.get("machines", ["not known"]))
        at_once.add(record.get("at_once", 1))
    return {
        "commit": ", ".join(sorted(commits)),
        "machine": ", ".join(sorted(machines)),
        "runs at once": " or ".join(map(str, sorted(at_once))),
    }


def _run_rows(plan: Plan) -> Iterator[list[str]]:
    uses = dict[Path, list[str]]()
    for arm, of_seeds in plan.of_arm.items():
        for seed, run in of_seeds.items():
            uses.setdefault(run.folder, []).append(f"{arm}, seed {seed}")
    for run in plan.runs:
        minutes = read_record(run).get("minutes")
        told = NONE if minutes is None else f"{minutes:.1f}"
        label = "; ".join(uses.get(run.folder, [run.label]))
        yield [label, told, f"`{run.folder}`"]


def _format_csv(summary: Summary) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    sides = ("mean", "low", "high", "of_seeds")
    writer.writerow(
        ["arm", "baseline", "shown", "figure", *sides]
        + [f"difference_{side}" for side in sides]
        + ["seeds", "minutes", "parameters", "phantom"]
    )
    for row in summary.rows:
        for name in FIGURES:
            difference = row.differences.get(name, {})
            writer.writerow(
                [escape(row.arm), row.arm == summary.baseline, escape(row.shown), name]
                + [_value(row.figures[name][side]) for side in sides]
                + [_value(difference.get(side)) for side in sides]
                + [_value(row.seeds), _value(row.minutes), row.parameters]
                + [summary.phantom]
            )
    return out.getvalue()


def _value(value: Any) -> str:
    """Returns every digit; several values are parted by spaces, and None is empty."""
    if isinstance(value, list | tuple):
        return " ".join(map(_value, value))
    return "" if value is None else repr(value)
