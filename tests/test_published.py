"""The figures that the project publishes are those of the results beside them."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[1]
RESULTS = PROJECT / "experiments" / "results"
FOLDERS = [RESULTS / "laptop", RESULTS / "gpu"]
# The first cells of a row of the README, and the file and the family.
RECIPE = "[the recipe](docs/recipe.md)"
ROWS = [
    ("| covjax, the study's settings (128 px) | found lungs | `all` |",
     "laptop/infection/test-predicted", "all"),
    ("| | | `positive` |", "laptop/infection/test-predicted", "positive"),
    (f"| covjax, {RECIPE} (128 px), ensemble of two seeds | image, found lungs"
     " | `all` |",
     "laptop/infection_best/test", "all"),
    ("| | | `positive` |", "laptop/infection_best/test", "positive"),
    ("| **covjax, the recipe at 256 px** | image, found lungs | `all` |",
     "gpu/infection_best/test", "all"),
    ("| | | `positive` |", "gpu/infection_best/test", "positive"),
    ("| | | `pooled` |", "gpu/infection_best/test", "pooled"),
    ("| covjax, the study's settings (128 px; 3,728; 1,166) | `all` |",
     "laptop/lung/test", "all"),
    ("| covjax, the recipe (128 px; 3,728; 1,166) | `all` |",
     "laptop/lung_best/test", "all"),
    ("| **covjax, the recipe at 256 px** (3,728; 1,166) | `all` |",
     "gpu/lung_best/test", "all"),
]  # fmt: skip


def read(stem: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{stem}.json").read_text())


def cell(figure: dict[str, float], digits: int = 4) -> str:
    mean, low, high = (
        f"{figure[k]:.{digits}f}".removeprefix("0") for k in ("mean", "low", "high")
    )
    return f"{mean} [{low}, {high}]"


@pytest.mark.parametrize(("start", "stem", "family"), ROWS)
def test_readme_shows_the_figures_of_the_runs(start, stem, family):
    figures = read(stem)[family]
    row = f"{start} {cell(figures['dice'])} | {cell(figures['iou'])} |"
    text = (PROJECT / "README.md").read_text()
    assert row in text.replace("**.", ".").replace("]**", "]")


def test_readme_shows_the_blank_rate_of_the_headline():
    rate = read("gpu/infection_best/test")["blank_rate"]
    normal, other = (
        f"{rate[k]:.3f}".removeprefix("0") for k in ("Normal", "Non-COVID")
    )
    text = " ".join((PROJECT / "README.md").read_text().split())
    assert f"at 256 px: {cell(rate, 3)}; Normal {normal}, Non-COVID {other}." in text


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("experiments/results/laptop.md", 40),
        ("experiments/results/recipe.md", 40),
        ("experiments/results/gpu.md", 25),
        ("covjax/pretrained/README.md", 4),
    ],
)
def test_every_interval_of_the_pages_is_of_a_file(name, least):
    """Of differences between two results there are no files: `compare` prints them."""
    page = " ".join((PROJECT / name).read_text().split())
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

    for path in (path for folder in FOLDERS for path in folder.rglob("*.json")):
        walk(json.loads(path.read_text()))
    number = r"((?:[1-9]\d*)?\.\d+)"  # tables of experiments have a 0 there
    pattern = rf"(?<![−+\d.]){number}\*{{0,2}} \[{number}, {number}\]"
    shown = [f"{m} [{low}, {high}]" for m, low, high in re.findall(pattern, page)]
    assert len(shown) > least
    assert [text for text in shown if text not in known] == []


STUDY = ("roi", "transfer", "loss")  # experiments on the page study.md


@pytest.mark.parametrize(
    ("name", "experiments", "intervals", "of_them_bold"),
    [("study.md", STUDY, 28, 17), ("recipe.md", ("recipe_changed",), 21, 5)],
)
def test_every_interval_of_an_experiment_stands_in_its_table(
    name, experiments, intervals, of_them_bold
):
    page = (RESULTS / name).read_text()
    interval = r"[+-]?\d\.\d{4} \[[+-]?\d\.\d{4}, [+-]?\d\.\d{4}\]"
    tables = "".join((RESULTS / f"{e}/table.md").read_text() for e in experiments)
    shown = re.findall(interval, page)
    assert len(shown) == intervals
    assert [text for text in shown if text not in tables] == []
    bold = re.findall(rf"\*\*{interval}\*\*", page)
    assert len(bold) == of_them_bold
    assert [text for text in bold if text not in tables] == []


@pytest.mark.parametrize("name", [*STUDY, "recipe_changed", "recipe_chosen"])
def test_tables_of_experiments_name_no_folder_of_any_machine(name):
    text = (RESULTS / name / "table.md").read_text()
    assert not re.search(r"(?<![\w./])/(tmp|home|root|work)\b", text)
    assert "PHANTOM" not in text


def test_published_results_name_no_folder_of_any_machine():
    for path in (path for folder in FOLDERS for path in folder.rglob("*.json")):
        assert not re.search(r'"[^"]*/[^"]*"', path.read_text()), path


BENCHMARKS = RESULTS / "benchmarks"
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
    "predict.md": [
        ("predict-256", "shares", 3),
        ("predict-256", "ratios_onnx", 3),
        ("predict-256", "ratios_torch", 3),
        ("predict-2500", "shares", 3),
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
        ("predict-256", "share", 3),
        ("predict-256", "ratio_onnx", 3),
        ("predict-256", "ratio_torch", 3),
    ):
        shown = f"{benchmark(stem)[name]:.{digits}f}".removeprefix("0")
        assert f" | {shown} |\n" in text, stem
