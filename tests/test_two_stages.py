"""Whole runs of the command line, on a few tiny phantoms, as a user starts them."""

import json
import signal
import subprocess
import time
from pathlib import Path

import jax
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

LUNG, INFECTION = (
    (f"--config=configs/{task}.py:phantom", *SMALL) for task in ("lung", "infection")
)
# Long enough that a kill after the first checkpoint finds it at work.
MANY_EPOCHS = "--config.train.epochs=24"


@pytest.fixture(scope="module")
def cwd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that stands for the project's."""
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def lung_run(cwd: Path) -> tuple[Path, str]:
    run = cwd / "runs" / "lung"
    out, _ = finish(start(cwd, *LUNG, TWO_EPOCHS, f"--workdir={run}"))
    return run, out


@pytest.fixture(scope="module")
def infection_run(cwd: Path, lung_run: tuple[Path, str]) -> tuple[Path, str]:
    run = cwd / "runs" / "infection"
    init = f"--init_from={lung_run[0]}"
    out, _ = finish(start(cwd, *INFECTION, TWO_EPOCHS, init, f"--workdir={run}"))
    return run, out


def test_a_run_leaves_what_its_folder_promises(lung_run):
    run, out = lung_run
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert {
        "config.json",
        "metrics.jsonl",
        "report.html",
        "operating_points.json",
        "results/audit.json",
        *(f"results/{s}.{e}" for s in ("test", "val") for e in ("json", "csv", "npz")),
        *(f"figures/{k}.png" for k in ("curves", "qualitative", "worst")),
    } <= names
    assert any("tfevents" in name for name in names)
    hidden = [name for name in names if Path(name).name.startswith(".")]
    assert hidden == [".lock"]
    assert str(run / "report.html") in out


def test_results_are_of_every_test_image_and_say_that_they_are_phantoms(infection_run):
    run, out = infection_run
    results = json.loads((run / "results" / "test.json").read_text())
    assert results["split"] == "test"
    assert results["n"] == SAMPLES["test"]
    assert results["n_empty"] == SAMPLES["test"] // 2  # half of the set is COVID-19
    assert results["phantom"] is True
    assert "PHANTOM" in out and "PHANTOM" in (run / "report.html").read_text()
    rows = (run / "results" / "test.csv").read_text().splitlines()
    assert rows[0].startswith("file,class,TP,FP,FN,TN,loss,dice,iou,presence,")
    pixels = [sum(map(int, row.split(",")[2:6])) for row in rows[1:]]
    assert pixels == [32 * 32] * SAMPLES["test"]


def test_stage_two_is_scored_with_the_lungs_that_stage_one_finds(
    infection_run, lung_run
):
    run, out = infection_run
    ways = {"": "truth", "-predicted": "predicted", "-none": "none"}
    for suffix, roi in (ways | {"-outside": "outside"}).items():
        results = json.loads((run / "results" / f"test{suffix}.json").read_text())
        assert (results["roi"], results["n"]) == (roi, SAMPLES["test"])
    masks = list((lung_run[0] / "lungs").rglob("*.png"))
    assert len(masks) == SAMPLES["val"] + SAMPLES["test"]
    assert "region of interest: lungs found by stage 1" in out
    assert "whole image" in out


def test_training_on_found_lungs_goes_through(cwd: Path, lung_run):
    run = cwd / "runs" / "on-found-lungs"
    flags = ("--config.data.roi=predicted", "--config.data.roi_dilate=1")
    init = f"--init_from={lung_run[0]}"
    finish(start(cwd, *INFECTION, TWO_EPOCHS, init, *flags, f"--workdir={run}"))
    results = json.loads((run / "results" / "test.json").read_text())
    assert (results["roi"], results["roi_dilate"]) == ("predicted", 1)
    assert (run / "results" / "test-truth.json").exists()
    everything = sum(SAMPLES.values())
    assert len(list((lung_run[0] / "lungs").rglob("*.png"))) == everything


def test_config_json_tells_the_whole_truth(infection_run, lung_run):
    stored = json.loads((infection_run[0] / "config.json").read_text())
    assert stored["init_from"] == str(lung_run[0])
    assert stored["model"]["width"] == 4
    assert stored["about"]["versions"]["jax"] == jax.__version__
    assert {"commit", "command", "started"} <= stored["about"].keys()


def test_metrics_have_every_step_and_every_epoch_once(lung_run):
    lines = [
        json.loads(line)
        for line in (lung_run[0] / "metrics.jsonl").read_text().splitlines()
    ]
    per_epoch = SAMPLES["train"] // BATCH
    steps = {
        split: [line["step"] for line in lines if line["split"] == split]
        for split in ("train", "val")
    }
    assert steps["train"] == list(range(1, 2 * per_epoch + 1))
    assert steps["val"] == [per_epoch, 2 * per_epoch]


def test_stage_two_says_what_it_took_and_keeps_batch_statistics(infection_run):
    _, out = infection_run
    assert "start anew" in out
    # width 4, depth 2: five blocks of 2 x (kernel, scale, bias) and 2 x (mean, var),
    # two upsamplings of 2 leaves; the head's 2 leaves are new.
    assert "54 leaves" in out and "2 start anew" in out
    assert "batch_stats/bottleneck" in out


@pytest.fixture(scope="module")
def calm_run(cwd: Path) -> Path:
    run = cwd / "runs" / "calm"
    finish(start(cwd, *LUNG, MANY_EPOCHS, f"--workdir={run}"))
    return run


def wait_for_a_checkpoint(run: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while not steps_on_disk(run):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)],
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    cwd: Path, calm_run: Path, number: int, status: int
):
    calm, killed = calm_run, cwd / "runs" / f"stopped-{number}"
    process = start(cwd, *LUNG, MANY_EPOCHS, f"--workdir={killed}")
    wait_for_a_checkpoint(killed, process)
    process.send_signal(number)
    out, err = finish(process, status)
    assert "Traceback" not in err
    total = 24 * SAMPLES["train"] // BATCH
    reached = steps_on_disk(killed)[-1]
    assert reached < total, "stopped too late to prove anything"
    if number != signal.SIGKILL:
        assert f"after step {reached} of {total}" in err

    out, _ = finish(start(cwd, *LUNG, MANY_EPOCHS, f"--workdir={killed}"))
    assert f"resumed at step {reached}" in out
    a, b = read_state(calm, total), read_state(killed, total)
    assert a.keys() == b.keys() and len(a) > 100
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    text = [(run / "metrics.jsonl").read_text() for run in (calm, killed)]
    assert text[0] == text[1]
    tables = [(run / "results" / "test.csv").read_bytes() for run in (calm, killed)]
    assert tables[0] == tables[1]


def test_a_finished_run_needs_no_source_to_go_on(cwd: Path, infection_run, lung_run):
    run, _ = infection_run
    hidden = lung_run[0].rename(cwd / "runs" / "hidden")
    try:
        init = f"--init_from={lung_run[0]}"
        again = start(cwd, *INFECTION, TWO_EPOCHS, init, f"--workdir={run}")
        out, _ = finish(again)
    finally:
        hidden.rename(lung_run[0])
    assert f"resumed at step {2 * SAMPLES['train'] // BATCH}" in out


def test_evaluating_again_gives_the_same_and_any_split(cwd: Path, lung_run):
    run, _ = lung_run
    before = (run / "results" / "test.json").read_bytes()
    (run / "results" / "test.json").unlink()
    again = start(cwd, "--mode=evaluate", f"--workdir={run}")
    finish(again)
    assert (run / "results" / "test.json").read_bytes() == before
    finish(start(cwd, "--mode=evaluate", f"--workdir={run}", "--split=val"))
    val = json.loads((run / "results" / "val.json").read_text())
    assert (val["split"], val["n"]) == ("val", SAMPLES["val"])


def test_bad_use_is_one_or_two_lines_and_status_2(cwd: Path, lung_run):
    run, _ = lung_run
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    fresh = f"--workdir={cwd / 'runs' / 'refused'}"
    study = "--config=configs/lung.py"
    cases = {
        "no data": ((study, fresh), ["data/COVID-QU-Ex", "download", ":phantom"]),
        "field": (
            (*LUNG, "--config.model.widht=8", fresh),
            ["no such config field", "widht", "width"],
        ),
        "value": ((*LUNG, "--config.model.norm=layer", fresh), ["model.norm", "group"]),
        "no config": ((fresh,), ["--config"]),
        "no file": (("--config=configs/nope.py", fresh), ["configs/nope.py"]),
        "variant": (("--config=configs/lung.py:big", fresh), ["big", "laptop"]),
        "width": (
            (*INFECTION, f"--init_from={run}", "--config.model.width=8", fresh),
            ["batch_stats/bottleneck/norm_0/mean", "(16,)", "(32,)", "model"],
        ),
        "init": ((*INFECTION, "--init_from=nowhere", fresh), ["nowhere"]),
        "other run": (
            (*LUNG, "--config.train.epochs=3", f"--workdir={run}"),
            ["train.epochs", "2", "3"],
        ),
        "no run": (("--mode=evaluate", fresh), ["refused"]),
    }
    processes = {name: start(cwd, *flags) for name, (flags, _) in cases.items()}
    for name, process in processes.items():
        out, err = finish(process, status=2)
        assert "Traceback" not in out + err, name
        said = [line for line in err.splitlines() if line]
        assert 1 <= len(said) <= 3, (name, err)
        for word in cases[name][1]:
            assert word in err, (name, err)
    assert not (cwd / "runs" / "refused").exists()
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
