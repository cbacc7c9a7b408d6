"""The figures that the project publishes are those of the results beside them."""

import json
import re
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


def test_every_interval_of_the_laptop_page_is_of_its_files():
    """Of differences between two results there are no files: `compare` prints them."""
    page = (LAPTOP.parent / "laptop.md").read_text()
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
    assert len(shown) > 40
    assert [text for text in shown if text not in known] == []


def test_published_results_name_no_folder_of_any_machine():
    for path in LAPTOP.rglob("*.json"):
        assert not re.search(r'"[^"]*/[^"]*"', path.read_text()), path
