"""The table of an experiment: two levels of draws, pairs, and what is said of it."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covjax.config import save_config
from covjax.evaluation.results import COUNTED, MEASURED
from covjax.metrics.bootstrap import draws
from experiments.ablations import EXPERIMENTS
from experiments.child import write_record
from experiments.plan import Plan, Run, make_plan
from experiments.seeds import (
    FIGURES,
    Drawn,
    Scores,
    draw_images,
    estimate_over_seeds,
)
from experiments.summary import format_table, summarize, write_summary


def make_scores(seed: int, n: int = 9) -> Scores:
    rng = np.random.default_rng(seed)
    tp, fp, fn = rng.integers(0, 6, (3, n))
    truth = rng.random(n) < 0.6
    counts = np.stack([tp * truth, fp, fn * truth, 30 - tp - fp - fn], axis=1)
    counts[0], counts[1] = (4, 1, 2, 23), (0, 0, 0, 30)
    return Scores(counts, rng.integers(0, 4, n) / 4)  # few values: many ties


def by_loops(scores: Scores, samples: list[int]) -> dict[str, float]:
    """Every figure of a list of images, in which one may stand several times."""
    dice, positive, blank, tp2, below = [], [], [], 0, 0
    ours, theirs = [], []
    for sample in samples:
        tp, fp, fn, _ = map(int, scores.counts[sample])
        value = 1.0 if tp + fp + fn == 0 else 2 * tp / (2 * tp + fp + fn)
        dice.append(value)
        tp2, below = tp2 + 2 * tp, below + 2 * tp + fp + fn
        if tp + fn:
            positive.append(value)
            ours.append(scores.presence[sample])
        else:
            blank.append(tp + fp == 0)
            theirs.append(scores.presence[sample])
    won = [(a > b) + (a == b) / 2 for a in ours for b in theirs]
    return {
        "all dice": float(np.mean(dice)),
        "positive dice": float(np.mean(positive)) if positive else np.nan,
        "pooled dice": tp2 / below if below else np.nan,
        "blank_rate": float(np.mean(blank)) if blank else np.nan,
        "auroc": float(np.mean(won)) if won else np.nan,
    }


def test_figures_of_a_draw_are_those_of_the_images_drawn():
    scores = {"a": make_scores(0), "b": make_scores(1)}
    found = draw_images(scores, resamples=40, seed=7)
    times = np.concatenate(list(draws(9, 40, 7))).astype(int)
    for key, of_run in scores.items():
        whole = by_loops(of_run, list(range(9)))
        for name in FIGURES:
            assert found[key][name].value == pytest.approx(whole[name])
        for k, row in enumerate(times):
            expected = by_loops(of_run, [i for i in range(9) for _ in range(row[i])])
            for name in FIGURES:
                drawn = found[key][name].draws[k]
                assert drawn == pytest.approx(expected[name], nan_ok=True), name


def test_an_area_needs_scores_of_both_kinds():
    scores = make_scores(0)
    told = scores._replace(presence=np.full(9, np.nan))
    assert np.isnan(draw_images({0: told}, resamples=3)[0]["auroc"].value)
    sick = Scores(np.array([[1, 0, 0, 1]] * 4), np.arange(4.0))
    found = draw_images({0: sick}, resamples=3)[0]
    assert np.isnan(found["auroc"].value) and np.isnan(found["blank_rate"].value)
    assert found["all dice"].value == 1


def test_seeds_are_drawn_with_replacement_within_every_draw():
    # Two seeds whose images never vary, 0 and 1: a draw of both is 0, 1/2 or 1, with
    # odds 1 : 2 : 1.
    flat = [Drawn(float(v), np.full(4000, float(v))) for v in (0, 1)]
    found = estimate_over_seeds(flat)
    assert found["of_seeds"] == [0, 1]
    assert (found["mean"], found["low"], found["high"]) == (0.5, 0, 1)
    # Of four seeds, one of them 1: the 97.5th percentile of Binomial(4, 1/4) / 4.
    four = [Drawn(float(v), np.full(4000, float(v))) for v in (0, 0, 0, 1)]
    found = estimate_over_seeds(four)
    assert (found["mean"], found["low"], found["high"]) == (0.25, 0, 0.75)


def test_with_one_seed_the_images_alone_vary():
    values = np.arange(1001.0)
    found = estimate_over_seeds([Drawn(500.0, values)])
    assert found == {"mean": 500, "low": 25, "high": 975, "of_seeds": [500]}


def test_differences_are_paired_by_draw_and_by_seed():
    rng = np.random.default_rng(0)
    base = [Drawn(float(s), s + rng.normal(size=500)) for s in range(3)]
    better = [Drawn(b.value + 0.25, b.draws + 0.25) for b in base]
    found = estimate_over_seeds(better, base)
    # What the images and seeds do to both cancels: nothing is left but the constant.
    assert found["low"] == pytest.approx(0.25) and found["high"] == pytest.approx(0.25)
    assert found["of_seeds"] == pytest.approx([0.25] * 3)
    # With the seeds in another order it does not, though the mean is the same.
    mixed = estimate_over_seeds([better[k] for k in (1, 2, 0)], base)
    assert mixed["mean"] == pytest.approx(0.25)
    assert mixed["low"] < -1 and mixed["high"] > 1


def test_a_draw_without_a_figure_is_left_out():
    values = np.array([np.nan, 1.0, 1.0, 3.0])
    found = estimate_over_seeds([Drawn(np.nan, values)])
    assert found["mean"] is None and found["of_seeds"] == [None]
    assert (found["low"], found["high"]) == (1.0, pytest.approx(2.9))


# Of four images, the first two positive, and the last two of another class: TP, FP, FN,
# TN of each, and how sure the run was.
GOOD = {
    "a.png": (3, 0, 0, 5, 0.9),
    "b.png": (2, 0, 2, 4, 0.5),
    "c.png": (0, 0, 0, 8, 0.1),
    "d.png": (0, 1, 0, 7, 0.6),
}
BAD = GOOD | {"a.png": (1, 0, 2, 5, 0.9), "c.png": (0, 2, 0, 6, 0.7)}


def write_run(run: Run, rows: dict, *, roi: str, stem: str = "val") -> None:
    """Writes what a finished run leaves, as far as the table reads it."""
    results = run.folder / "results"
    results.mkdir(parents=True, exist_ok=True)
    save_config(run.config, run.folder / "config.json", {"commit": "abc123"})
    (run.folder / "report.html").touch()
    epochs = range(1, run.config.train.epochs + 1)
    lines = [json.dumps({"step": epoch, "split": "val"}) for epoch in epochs]
    (run.folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with (results / f"{stem}.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*COUNTED, *MEASURED))
        for name, (*counts, presence) in rows.items():
            label = "COVID-19" if name < "c" else "Normal"
            tail = [presence, *[""] * (len(MEASURED) - 1)]
            writer.writerow([name, label, *counts, 0.5, 0.5, 0.5, *tail])
    about = {"task": "infection", "split": "val", "phantom": True, "roi": roi}
    about["image_size"] = run.config.data.image_size
    (results / f"{stem}.json").write_text(json.dumps(about))


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    experiment = EXPERIMENTS["smoke"]
    return make_plan(
        experiment, arms=list(experiment.arms), seeds=2, variant="phantom",
        settings={}, out=tmp_path / "out",
    )  # fmt: skip


def finish(plan: Plan, arm: str, seed: int, rows: dict) -> None:
    run = plan.of_arm[arm][seed]
    # Its own region would give the arms another order: it must not be looked at.
    write_run(run, BAD if rows == GOOD else GOOD, roi="truth")
    write_run(run, rows, roi="predicted", stem="val-predicted")
    write_record(run, minutes=1.5 + seed, machines=["a machine"], parameters=1234)


def test_the_table_is_of_all_that_is_finished(plan, tmp_path):
    assert summarize(plan, "hybrid .5") is None
    for seed in (0, 1):
        finish(plan, "hybrid .5", seed, BAD)
    # The images may stand in any order.
    finish(plan, "BCE", 1, dict(reversed(GOOD.items())))
    summary = summarize(plan, "hybrid .5")
    assert summary is not None
    assert summary.missing == ["BCE, seed 0"]
    assert (summary.phantom, summary.samples, summary.size) == (True, (4, 2), 32)
    base, bce = summary.rows
    assert (base.arm, base.seeds, base.minutes) == ("hybrid .5", (0, 1), 2.0)
    assert (bce.arm, bce.seeds, bce.minutes) == ("BCE", (1,), 2.5)
    assert bce.parameters == 1234 and base.shown == "lungs found by stage 1"

    def means(figures):
        return {name: figures[name]["mean"] for name in FIGURES}

    # Dice of the images: 1/2, 2/3, 0, 0 and 1, 2/3, 1, 0.
    assert means(base.figures) == pytest.approx(
        {
            "all dice": (1 / 2 + 2 / 3) / 4,
            "positive dice": (1 / 2 + 2 / 3) / 2,
            "pooled dice": 6 / (6 + 3 + 4),
            "blank_rate": 0,
            "auroc": 2 / 4,
        }
    )
    assert base.differences == {}
    assert means(bce.differences) == pytest.approx(
        {
            "all dice": (1 + 2 / 3 + 1) / 4 - (1 / 2 + 2 / 3) / 4,
            "positive dice": 1 / 4,
            "pooled dice": 10 / (10 + 1 + 2) - 6 / 13,
            "blank_rate": 1 / 2,
            "auroc": 3 / 4 - 2 / 4,
        }
    )
    assert bce.differences["all dice"]["of_seeds"] == [pytest.approx(3 / 8)]


def test_what_is_written_says_what_it_is(plan, tmp_path):
    for seed in (0, 1):
        finish(plan, "hybrid .5", seed, BAD)
    finish(plan, "BCE", 0, GOOD)
    summary = summarize(plan, "hybrid .5")
    assert summary is not None
    write_summary(
        summary, plan, tmp_path, name="smoke", question="Why?", about={"seeds": "0, 1"}
    )
    text = (tmp_path / "table.md").read_text()
    for said in (
        "# smoke (PHANTOM images)", "Why?", "- seeds: 0, 1", "- commit: abc123",
        "- machine: a machine", "4 PHANTOM images of Val, 2 with the finding, 32 px",
        "measured on Val", "Missing**, not finished: BCE, seed 1.", "With one seed",
        "| hybrid .5 (baseline) |", "lungs found by stage 1", "1,234",
        "`" + str(plan.of_arm["BCE"][0].folder) + "`",
    ):  # fmt: skip
        assert said in text
    # The blank rate is 0 and 1/2: no draw of images makes BCE worse, some the same.
    assert "+0.5000 [+0.0000, +1.0000]" in text
    assert "**+0.5000" not in text
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = {(r["arm"], r["figure"]): r for r in csv.DictReader(file)}
    assert len(rows) == 2 * len(FIGURES)
    row = rows["BCE", "positive dice"]
    assert float(row["mean"]) == pytest.approx(5 / 6)
    assert float(row["difference_mean"]) == pytest.approx(1 / 4)
    assert (row["seeds"], row["phantom"]) == ("0", "True")
    assert rows["hybrid .5", "positive dice"]["difference_mean"] == ""
    with Image.open(tmp_path / "table.png") as picture:
        assert picture.width > picture.height > 100


def test_a_difference_that_leaves_out_0_is_bold(plan):
    worse = {name: (0, 0, r[0] + r[2], r[3] + r[1], 0.0) for name, r in GOOD.items()}
    all_found = {
        name: (r[0] + r[2], 0, 0, r[3] + r[1], 1.0 if r[0] else 0.0)
        for name, r in GOOD.items()
    }
    for seed in (0, 1):
        finish(plan, "hybrid .5", seed, worse)
        finish(plan, "BCE", seed, all_found)
    summary = summarize(plan, "hybrid .5")
    assert summary is not None
    table = format_table(summary)
    assert "**+1.0000 [+1.0000, +1.0000]**" in table  # Dice, positive
    assert "| +0.0000 [+0.0000, +0.0000] |" in table  # blank rate


def test_a_network_of_whole_images_is_judged_by_whole_images(tmp_path):
    experiment = EXPERIMENTS["roi"]
    plan = make_plan(
        experiment, arms=["truth", "none"], seeds=1, variant="phantom", settings={},
        out=tmp_path,
    )  # fmt: skip
    for arm, roi in (("truth", "truth"), ("none", "none")):
        run = plan.of_arm[arm][0]
        write_run(run, GOOD if arm == "none" else BAD, roi=roi)
        write_run(run, BAD, roi="predicted", stem="val-predicted")
        write_record(run, parameters=1)
    summary = summarize(plan, "truth")
    assert summary is not None
    assert [row.shown for row in summary.rows] == [
        "lungs found by stage 1",
        "whole image",
    ]
    assert summary.rows[1].differences["positive dice"]["mean"] == pytest.approx(1 / 4)


def test_a_network_of_the_outside_is_judged_there_alone(tmp_path):
    plan = make_plan(
        EXPERIMENTS["background"], arms=["lungs", "outside"], seeds=1,
        variant="phantom", settings={}, out=tmp_path,
    )  # fmt: skip
    outside, lungs = (plan.of_arm[arm][0] for arm in ("outside", "lungs"))
    write_run(outside, GOOD, roi="outside")  # and nothing else is ever written
    write_run(lungs, BAD, roi="truth")
    write_run(lungs, BAD, roi="predicted", stem="val-predicted")
    for run in (outside, lungs):
        write_record(run, parameters=1)
    summary = summarize(plan, "lungs")
    assert summary is not None
    assert [row.shown for row in summary.rows] == [
        "lungs found by stage 1",
        "only what lies outside the lungs",
    ]


def test_runs_of_other_images_are_not_put_side_by_side(plan):
    finish(plan, "hybrid .5", 0, BAD)
    finish(plan, "BCE", 0, {k: v for k, v in GOOD.items() if k != "d.png"})
    with pytest.raises(Exception, match="Normal d.png"):
        summarize(plan, "hybrid .5")


def test_rows_of_the_summary_are_the_arms_asked_for(plan):
    for arm in plan.of_arm:
        finish(plan, arm, 0, GOOD)
    alone = dataclasses.replace(plan, of_arm={"hybrid .5": plan.of_arm["hybrid .5"]})
    summary = summarize(alone, "hybrid .5")
    assert summary is not None
    assert [row.arm for row in summary.rows] == ["hybrid .5"]
