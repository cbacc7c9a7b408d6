"""The figures that the project publishes are those of the results beside them."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[1]
LAPTOP = PROJECT / "experiments" / "results" / "laptop"
# The first cells of a row of the README, and the file, the threshold and the family.
ROWS = {
    "| lungs, covjax `:laptop` (128 px, 3,728 films) | `all` |": ("lung/test", "all"),
    "| infection, covjax `:laptop` (128 px, true lungs), untuned | `all` |": (
        "infection/test", "untuned all",
    ),
    "| the same, tuned | `all` |": ("infection/test", "all"),
    "| infection, covjax `:laptop`, lungs found by stage 1, untuned | `all` |": (
        "infection/test-predicted", "untuned all",
    ),
    "| **the same, tuned** | `all` |": ("infection/test-predicted", "all"),
    "| | `positive` |": ("infection/test-predicted", "positive"),
    "| | `pooled` |": ("infection/test-predicted", "pooled"),
}  # fmt: skip


def read(stem: str) -> dict[str, Any]:
    return json.loads((LAPTOP / f"{stem}.json").read_text())


def cell(figure: dict[str, float], digits: int = 4) -> str:
    mean, low, high = (
        f"{figure[k]:.{digits}f}".removeprefix("0") for k in ("mean", "low", "high")
    )
    return f"{mean} [{low}, {high}]"


@pytest.mark.parametrize(("start", "where"), ROWS.items(), ids=lambda x: str(x)[:40])
def test_readme_shows_the_figures_of_the_laptop_runs(start, where):
    stem, family = where
    results = read(stem)
    for key in family.split():
        results = results[key]
    row = f"{start} {cell(results['dice'])} | {cell(results['iou'])} |"
    assert row in (PROJECT / "README.md").read_text()


def test_readme_shows_the_blank_rate_of_the_headline():
    rate = read("infection/test-predicted")["blank_rate"]
    normal, other = (f"{rate[k]:.3f}"[1:] for k in ("Normal", "Non-COVID"))
    text = f"tuned: {cell(rate, 3)}; Normal {normal}, Non-COVID {other}."
    assert text in (PROJECT / "README.md").read_text()


@pytest.mark.parametrize(("name", "least"), [("laptop.md", 40), ("recipe.md", 20)])
def test_every_interval_of_the_laptop_pages_is_of_a_file(name, least):
    """Of differences between two results there are no files: `compare` prints them."""
    page = " ".join((LAPTOP.parent / name).read_text().split())
    known = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if {"mean", "low", "high"} <= value.keys() and value["mean"] is not None:
                known.update(cell(value, digits) for digits in (1, 4))
            for part in value.values():
                walk(part)
        elif isinstance(value, list):
            for part in value:
                walk(part)

    for path in LAPTOP.rglob("*.json"):
        walk(json.loads(path.read_text()))
    number = r"(\d*\.\d+)"
    pattern = rf"(?<![−+\d.]){number}\*{{0,2}} \[{number}, {number}\]"
    shown = [f"{m} [{low}, {high}]" for m, low, high in re.findall(pattern, page)]
    assert len(shown) > least
    assert [text for text in shown if text not in known] == []


def test_published_results_name_no_folder_of_any_machine():
    for path in LAPTOP.rglob("*.json"):
        assert not re.search(r'"[^"]*/[^"]*"', path.read_text()), path


BENCHMARKS = PROJECT / "experiments" / "results" / "benchmarks"
RATIOS = {  # page → file, list of ratios and digits of what it shows of them
    "step.md": [
        ("step-py312", "ratios_train", 3),
        ("step-py312", "ratios_infer", 3),
        ("step-py312-derived", "ratios_train", 3),
        ("step-py311", "ratios_train", 3),
        ("step-py311", "ratios_infer", 3),
        ("step-py311-derived", "ratios_train", 3),
        ("loop-host", "ratios", 3),
        ("loop-device", "ratios", 3),
    ],
    "pipeline.md": [
        ("pipeline-py312", "ratios_png", 2),
        ("pipeline-py312", "ratios_packed", 2),
        ("pipeline-py311", "ratios_png", 2),
        ("pipeline-py311", "ratios_packed", 2),
    ],
}


def benchmark(stem: str) -> dict[str, Any]:
    return json.loads((BENCHMARKS / f"{stem}.json").read_text())


@pytest.mark.parametrize(
    ("page", "stem", "name", "digits"),
    [(page, *row) for page, rows in RATIOS.items() for row in rows],
)
def test_ratios_of_the_benchmarks_are_those_of_their_files(page, stem, name, digits):
    ratios = benchmark(stem)[name]
    low, middle, high = (
        f"{value:.{digits}f}".removeprefix("0")
        for value in (min(ratios), statistics.median(ratios), max(ratios))
    )
    text = (BENCHMARKS.parent / page).read_text().replace("**", "")
    assert f"{middle} [{low}, {high}]" in text


def test_readme_shows_the_ratios_of_the_benchmarks():
    text = (PROJECT / "README.md").read_text()
    for stem, name, digits in (
        ("step-py312", "ratio", 3),
        ("loop-host", "ratio", 3),
        ("pipeline-py312", "ratio_png", 2),
        ("pipeline-py312", "ratio_packed", 2),
    ):
        shown = f"{benchmark(stem)[name]:.{digits}f}".removeprefix("0")
        assert f" | {shown} |\n" in text, stem
