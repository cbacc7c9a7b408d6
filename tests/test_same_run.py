"""The comparison of two runs sees what differs, and what is torn."""

import json
import shutil
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from covjax.runtime.checksums import write_digests
from experiments.faults.same_run import compare_runs, find_torn


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """What a run leaves, by hand, in small."""
    run = tmp_path_factory.mktemp("runs") / "calm"
    for name in ("results", "figures", "checkpoints"):
        (run / name).mkdir(parents=True)
    lines = [{"step": k, "split": "train", "loss": 1 / k} for k in (1, 2)]
    lines.append({"step": 2, "split": "val", "loss": 0.25})
    (run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    told = {"n": 3, "fingerprint": "abc", "lungs": {"fingerprint": "d", "step": 2}}
    (run / "results" / "test.json").write_text(json.dumps(told))
    (run / "results" / "test.csv").write_text("file,dice\na.png,0.5\n")
    np.savez(run / "results" / "test.npz", levels=np.arange(4, dtype=np.uint8))
    (run / "operating_points.json").write_text(json.dumps({"truth": {"n": 3}}))
    (run / "report.html").write_text("<html></html>\n")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(run / "figures" / "a.png")
    with ocp.PyTreeCheckpointer() as checkpointer:
        state = {"step": np.int32(2), "params": {"w": np.ones(5, np.float32)}}
        checkpointer.save(run / "checkpoints" / "2" / "state", state)
    write_digests(run / "checkpoints" / "2")
    return run


@pytest.fixture
def run(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "other"))


def test_equal_runs_are_the_same_and_whole(written, run):
    told = {"n": 3, "fingerprint": "x", "lungs": {"fingerprint": "y", "step": 2}}
    (run / "results" / "test.json").write_text(json.dumps(told))  # of the moment
    assert compare_runs(written, run) == []
    assert find_torn(run) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", '{"step": 1, "split": "train", "loss": 1.0}\n'),
        ("results/test.json", '{"n": 4, "lungs": {"step": 2}}'),
        ("results/test.csv", "file,dice\na.png,0.6\n"),
        ("operating_points.json", '{"truth": {"n": 4}}'),
        ("results/more.json", "{}"),
    ],
)
def test_a_difference_is_named(written, run, name, content):
    (run / name).write_text(content)
    (fault,) = compare_runs(written, run)
    assert name.split("/")[-1] in fault


@pytest.mark.parametrize("leaf", ["step", "w"])
def test_another_bit_of_a_checkpoint_is_named(written, run, leaf):
    ones = np.ones(5, np.float32)
    state = {"step": np.int32(2), "params": {"w": ones}}
    if leaf == "step":
        state["step"] = np.int32(3)
    else:
        ones[3] = np.nextafter(np.float32(1), np.float32(2))
    shutil.rmtree(run / "checkpoints" / "2" / "state")
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(run / "checkpoints" / "2" / "state", state)
    (fault,) = compare_runs(written, run)
    assert f"checkpoint 2: ['{leaf}']" in fault.replace("['params']", "")


def test_another_checkpoint_is_named(written, run):
    (run / "checkpoints" / "2").rename(run / "checkpoints" / "3")
    assert "checkpoints ['3'] instead of ['2']" in compare_runs(written, run)[0]


@pytest.mark.parametrize(
    "name",
    ["results/test.json", "results/test.npz", "figures/a.png", "report.html"],
)
def test_a_file_that_is_cut_is_torn(run, name):
    path = run / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (fault,) = find_torn(run)
    assert fault.startswith(f"{path}: torn")


def test_what_is_left_over_or_written_twice_is_named(run):
    (run / "results" / ".test.json.abc.half").touch()
    (run / "checkpoints" / "2" / "digests.json").unlink()
    path = run / "metrics.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
    faults = find_torn(run)
    assert len(faults) == 3
    assert any("left over" in fault for fault in faults)
    assert any("no digests" in fault for fault in faults)
    assert any("(1, 'train') stands 2 times" in fault for fault in faults)
