"""Where a network comes from: a run, a checkpoint, a file, or covjax itself."""

import json
import shutil

import pytest

from covjax.errors import UsageError
from covjax.export.load_model import lungs_for, read_network, shipped_network
from plain_network import POINTS, STEP, write_files, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "lung", "lung")
    write_run(folder / "infection", "infection", lung_run=str(folder / "lung"))
    return folder


def test_a_run_and_its_checkpoint_and_its_file_are_one_network(runs, tmp_path):
    run, checkpoint = runs / "lung", runs / "lung" / "checkpoints" / str(STEP)
    for path in (run, checkpoint):
        found = read_network(str(path))
        assert found.phantom and found.commit == "1f3a"
        assert found.trained.config.data.task == "lung"
        point = found.points["none"]
        assert {name: point[name] for name in POINTS["lung"]} == POINTS["lung"]
    file, _ = write_files(tmp_path)
    assert read_network(str(file)).points == {"none": POINTS["lung"]}


def test_a_point_of_another_checkpoint_is_none(runs, tmp_path):
    run = tmp_path / "lung"
    shutil.copytree(runs / "lung", run)
    path = run / "operating_points.json"
    told = json.loads(path.read_text())
    told["none"]["fingerprint"] = "of another"
    path.write_text(json.dumps(told))
    with pytest.raises(UsageError, match="no operating point of checkpoint 3"):
        read_network(str(run))


def test_lungs_are_those_of_the_run_of_stage_2_or_the_shipped(runs):
    second = read_network(str(runs / "infection"))
    assert lungs_for(second).trained.run == runs / "lung"
    second.trained.config.data.lung_run = str(runs / "gone")
    shipped = lungs_for(second)
    assert shipped.trained.fingerprint == shipped_network("lung").trained.fingerprint


@pytest.mark.parametrize("task", ["lung", "infection"])
def test_weights_come_with_covjax(task):
    found = shipped_network(task)
    assert found.trained.config.data.task == task and not found.phantom


@pytest.mark.parametrize("path", ["nowhere", "nowhere.safetensors"])
def test_what_is_not_there_is_named(path):
    with pytest.raises(UsageError, match=path):
        read_network(path)
