"""A trained network is the best checkpoint of its run, or the one that is named."""

import json
import shutil
from pathlib import Path

import numpy as np
import optax
import pytest

from configs import infection, lung
from covjax.config import flatten
from covjax.errors import UsageError
from covjax.train import checkpoint, restore
from covjax.train.restore import read_trained, run_of
from covjax.train.run_folder import CONFIG
from covjax.train.train_state import start_state
from saved_run import DICE, SIDE, Run, outputs, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return write_run(
        tmp_path_factory.mktemp("runs") / "lung", lung.get_config("phantom")
    )


@pytest.mark.parametrize(
    ("field", "value"), [("image_size", 20000), ("image_size", 24.0), ("roi_as", "all")]
)
def test_a_config_that_cannot_be_is_refused_before_anything_is_read(
    run, tmp_path, monkeypatch, field, value
):
    copied = Path(shutil.copytree(run.folder, tmp_path / "lung"))
    config = json.loads((copied / CONFIG).read_text())
    config["data"][field] = value
    (copied / CONFIG).write_text(json.dumps(config))
    monkeypatch.setattr(restore, "read_variables", None)
    with pytest.raises(UsageError, match=f"config.data.{field} = {value!r}") as caught:
        read_trained(str(copied))
    assert str(caught.value).startswith(f"{copied / CONFIG}: ")


def test_a_checkpoint_of_too_many_numbers_is_refused(run, monkeypatch):
    monkeypatch.setattr(checkpoint, "MOST_NUMBERS", 100)
    monkeypatch.setattr(checkpoint.ocp.PyTreeCheckpointHandler, "restore", None)
    with pytest.raises(UsageError, match="numbers, more than 100"):
        read_trained(str(run.folder))


def test_a_run_gives_its_best_checkpoint(run):
    restore = read_trained(str(run.folder))
    assert restore.run == run.folder
    assert restore.step == int(restore.state.step) == 3


@pytest.mark.parametrize("step", DICE)
def test_a_checkpoint_that_is_named_gives_itself(run, step):
    restore = read_trained(str(run.folder / "checkpoints" / str(step)))
    assert restore.run == run.folder
    assert restore.step == int(restore.state.step) == step


@pytest.mark.parametrize("path", [".", "lung", "checkpoints/5", "lung/checkpoints/5"])
def test_a_path_may_be_relative(run, monkeypatch, path):
    inside = not path.startswith("lung")
    monkeypatch.chdir(run.folder if inside else run.folder.parent)
    restore = read_trained(path)
    assert restore.run == run.folder
    assert restore.step == (5 if path.endswith("5") else 3)


def test_config_is_that_of_the_run(run):
    config = read_trained(str(run.folder)).config
    expected = {  # JSON knows no tuples
        name: list(value) if isinstance(value, tuple) else value
        for name, value in flatten(run.config).items()
    }
    assert flatten(config) == expected


@pytest.mark.parametrize("step", DICE)
def test_outputs_are_those_of_the_state_that_was_saved(run, step):
    restore = read_trained(str(run.folder / "checkpoints" / str(step)))
    expected = outputs(run.states[step])
    assert expected.shape == (2, SIDE, SIDE, 1) and expected.std() > 0
    np.testing.assert_array_equal(outputs(restore.state), expected)


def test_outputs_of_the_two_checkpoints_differ(run):
    """Or the test above would say little: in parameters and in statistics alike."""
    three, five = run.states[3], run.states[5]
    other = three.replace(batch_stats=five.batch_stats)
    assert not np.allclose(outputs(three), outputs(five))
    assert not np.allclose(outputs(three), outputs(other))


def test_a_network_without_statistics_is_read_by_its_own_config(tmp_path):
    config = infection.get_config("phantom")
    config.model.norm, config.model.upsample = "group", "transpose"
    run = write_run(tmp_path / "infection", config)
    restore = read_trained(str(run.folder))
    assert restore.config.data.task == "infection"
    assert restore.state.batch_stats == {}
    np.testing.assert_array_equal(outputs(restore.state), outputs(run.states[3]))


def test_a_run_that_averages_its_weights_is_read_as_their_averages(tmp_path):
    config = infection.get_config("phantom")
    config.optim.average = "ema"
    config.model.presence_head, config.model.residual = True, True
    run = write_run(tmp_path / "infection", config)
    found, saved = read_trained(str(run.folder)).state, run.states[3]
    assert found.averaged is None and found.evaluated() == found.variables()
    halves = start_state(saved.apply_fn, optax.identity(), **saved.evaluated())
    np.testing.assert_array_equal(outputs(found), outputs(halves))
    assert not np.allclose(outputs(found), outputs(saved))


def test_a_run_without_its_config_is_named(run, tmp_path):
    folder = Path(shutil.copytree(run.folder, tmp_path / "lung"))
    (folder / CONFIG).unlink()
    for path in (folder, folder / "checkpoints" / "5"):
        with pytest.raises(UsageError, match="no config.json") as caught:
            read_trained(str(path))
        assert str(caught.value).startswith(str(folder))


@pytest.mark.parametrize("name", ["nothing", "checkpoints", "checkpoints/4"])
def test_what_is_neither_a_run_nor_a_checkpoint_is_named(run, name):
    with pytest.raises(UsageError, match="neither a run") as caught:
        read_trained(str(run.folder / name))
    assert str(caught.value).startswith(f"{run.folder / name}: ")


def test_run_of_a_checkpoint_is_two_folders_up(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "lung"
    assert run_of(folder / "checkpoints" / "932") == folder
    assert run_of(Path("runs/lung/checkpoints/932")) == folder
