"""Whole runs of the recipe, judged on Val, on a few tiny phantoms."""

import json
from pathlib import Path

import numpy as np
import pytest

from whole_runs import (
    BATCH,
    SAMPLES,
    SMALL,
    TWO_EPOCHS,
    finish,
    make_project,
    read_state,
    start,
    steps_on_disk,
)


def stopped_after(step: int) -> tuple[str, str]:
    """The command, which sends itself SIGTERM while the step after this one runs."""
    return (
        "-c",
        f"""
import os, runpy, signal
from covjax.train.metric_writer import RunLog
advance = RunLog.advance
def stop(log, step, loss):
    advance(log, step, loss)
    if step == {step}:
        os.kill(os.getpid(), signal.SIGTERM)
RunLog.advance = stop
runpy.run_module("covjax.main", run_name="__main__", alter_sys=True)
""",
    )


@pytest.fixture(scope="module")
def cwd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that stands for the project's."""
    return make_project(tmp_path_factory.mktemp("project"))


# What the recipe has that the study has not, in a network of two levels.
BEST = (*SMALL, "--config.model.deep_supervision=1", TWO_EPOCHS, "--split=val")


@pytest.fixture(scope="module")
def best_runs(cwd: Path) -> tuple[Path, Path, tuple[str, ...]]:
    """Both stages of the recipe, judged on Val alone; the flags of the second."""
    runs = [cwd / "runs" / f"best-{task}" for task in ("lung", "infection")]
    lung = ("--config=configs/lung_best.py:phantom", *BEST)
    finish(start(cwd, *lung, f"--workdir={runs[0]}"))
    config = "--config=configs/infection_best.py:phantom"
    infection = (config, *BEST, f"--init_from={runs[0]}")
    finish(start(cwd, *infection, f"--workdir={runs[1]}"))
    return runs[0], runs[1], infection


def test_a_run_of_the_recipe_that_is_judged_on_val_reads_no_test(best_runs):
    for run, stems in (
        (best_runs[0], {"val"}),
        # Lungs stand beside the image: it is never shown without any.
        (best_runs[1], {"val", "val-truth", "val-outside"}),
    ):
        found = {path.stem for path in (run / "results").iterdir()}
        assert found == stems | {"audit"}
        assert (run / "report.html").exists()
        assert {p.stem for p in (run / "figures").iterdir()} == {
            "curves", "qualitative-val",
        }  # fmt: skip
    results = json.loads((best_runs[1] / "results" / "val.json").read_text())
    assert (results["roi"], results["n"]) == ("predicted", SAMPLES["val"])


def test_the_recipe_keeps_the_averages_of_the_epoch_that_is_best_once_tuned(best_runs):
    run, per_epoch = best_runs[1], SAMPLES["train"] // BATCH
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    dice = [line["tuned_all_dice"] for line in lines if line["split"] == "val"]
    # Of equals the later: six steps may teach the head nothing between two epochs.
    best = per_epoch * max(k for k, value in enumerate(dice, 1) if value == max(dice))
    assert steps_on_disk(run) == sorted({best, 2 * per_epoch})
    results = json.loads((run / "results" / "val.json").read_text())
    assert results["checkpoint"] == best
    # What was judged is what is evaluated.
    assert results["all"]["dice"]["mean"] == pytest.approx(max(dice))
    state = read_state(run, best)
    averages = {k: v for k, v in state.items() if k.startswith("['averaged']")}
    weights = {k: state[k.removeprefix("['averaged']")] for k in averages}
    assert len(averages) > 60  # of params and of batch statistics
    assert all((averages[k] != weights[k]).any() for k in averages)


def test_the_recipe_goes_on_to_the_same_bits(cwd: Path, best_runs):
    _, calm, flags = best_runs
    run, per_epoch = cwd / "runs" / "best-stopped", SAMPLES["train"] // BATCH
    flags = (*flags, f"--workdir={run}")
    stopping = start(cwd, *flags, command=stopped_after(per_epoch + 1))
    _, err = finish(stopping, 143)
    assert f"after step {per_epoch + 2} of {2 * per_epoch}" in err
    out, _ = finish(start(cwd, *flags))
    assert f"resumed at step {per_epoch + 2}" in out
    a, b = (read_state(of, 2 * per_epoch) for of in (calm, run))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    for name in ("metrics.jsonl", "results/val.csv", "results/val-truth.csv"):
        assert (calm / name).read_bytes() == (run / name).read_bytes(), name
