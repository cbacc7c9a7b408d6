"""A run that was exported, made a run's folder of again."""

import errno
import json
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest

from configs import infection, lung
from covjax import unpack
from covjax.config import read_about, save_config
from covjax.errors import UsageError
from covjax.evaluation.lung_masks import read_finder
from covjax.export import export
from covjax.export.safetensors import read_weights
from covjax.metrics.operating_point import FILE, read_points
from covjax.train import run_folder
from covjax.train.restore import read_trained
from covjax.train.run_folder import CONFIG
from saved_run import write_run

POINT = {"threshold": 0.3, "min_area": 4, "presence": 0.25, "checkpoint": 3}


def export_tiny(
    config: ml_collections.ConfigDict, folder: Path, roi: str, point: dict[str, Any]
) -> Path:
    """Weights of a run that has an operating point for its best checkpoint."""
    run = write_run(folder, config)
    save_config(run.config, folder / CONFIG, {"commit": "1f3a", "phantom": True})
    own = read_trained(str(folder)).fingerprint
    (folder / FILE).write_text(json.dumps({roi: point | {"fingerprint": own}}))
    return export.export_run(str(folder))[0]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "infection"
    return export_tiny(infection.get_config("phantom"), folder, "predicted", POINT)


def leaves(file: Path) -> dict[str, np.ndarray]:
    variables = read_weights(file).trained.state.variables()
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }


def test_a_file_that_was_unpacked_is_exported_as_it_was(file, tmp_path, capsys):
    run = tmp_path / "again"
    assert unpack.main([str(file), f"--workdir={run}"]) == 0
    assert capsys.readouterr().out == f"{run}: the network of {file}\n"
    again, _ = export.export_run(str(run))
    before, after = leaves(file), leaves(again)
    assert before.keys() == after.keys()
    for name, leaf in before.items():
        np.testing.assert_array_equal(leaf, after[name])
    old, new = read_weights(file), read_weights(again)
    assert (new.trained.step, new.phantom, new.commit) == (3, True, "1f3a")
    assert new.trained.config.to_dict() == old.trained.config.to_dict()
    own = read_trained(str(run)).fingerprint
    assert own != old.trained.fingerprint
    assert new.points == {"predicted": POINT | {"fingerprint": own}}


@pytest.fixture
def lung_file(tmp_path: Path) -> Path:
    return export_tiny(lung.get_config("phantom"), tmp_path / "lung", "none", POINT)


@pytest.mark.parametrize("presence", [0.25, 0.5])
def test_a_point_holds_for_the_lungs_of_the_same_weights(lung_file, tmp_path, presence):
    run, other = tmp_path / "unpacked", tmp_path / "other"
    unpack.unpack(lung_file, run)
    told = read_finder(str(tmp_path / "lung")).told() | {"presence": presence}
    file = export_tiny(
        infection.get_config("phantom"), other, "predicted", POINT | {"lungs": told}
    )
    again = tmp_path / "again"
    assert unpack.main([str(file), f"--workdir={again}", f"--lung_run={run}"]) == 0
    assert read_trained(str(again)).config.data.lung_run == str(run)
    assert read_about(again / CONFIG)["weights"] == file.name
    found = read_points(again)["predicted"]["lungs"]
    now = read_finder(str(run)).told()
    assert now["fingerprint"] != told["fingerprint"]
    assert found == (now if presence == POINT["presence"] else told)


def test_what_finds_no_lungs_is_named_and_leaves_no_folder(file, tmp_path, capsys):
    flags = [f"--workdir={tmp_path / 'out'}", "--lung_run=runs/lung"]
    assert unpack.main([str(file), *flags]) == 2
    assert "runs/lung: neither a run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["a run", "a note"])
def test_a_folder_that_holds_something_is_not_touched(file, tmp_path, capsys, what):
    if what == "a run":
        unpack.unpack(file, tmp_path / "out")
    else:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "note").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert unpack.main([str(file), f"--workdir={tmp_path / 'out'}"]) == 2
    assert "holds something: give a new folder" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_holds_no_weights_is_named_and_leaves_no_folder(tmp_path, capsys):
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"\0" * 64)
    assert unpack.main([str(wrong), f"--workdir={tmp_path / 'out'}"]) == 2
    assert f"{wrong}: not weights of covjax" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_it_is_no_run_to_go_on_with(file, tmp_path):
    """A file has no optimizer, and a run without one would be another run."""
    run = tmp_path / "again"
    unpack.unpack(file, run)
    with pytest.raises(UsageError, match=f"unpacked from {file.name}.*--init_from"):
        run_folder.check(run, read_trained(str(run)).config)


@pytest.mark.parametrize("last", ["save_config", "Checkpoints", "write_points"])
def test_stopped_half_way_the_same_command_goes_on(file, tmp_path, capsys, last):
    run, full = tmp_path / "again", OSError(errno.ENOSPC, "No space left on device")

    def fail(*_):
        raise full

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unpack, last, fail)
        assert unpack.main([str(file), f"--workdir={run}"]) == 1
    assert "No space left on device. What is whole stays" in capsys.readouterr().err
    assert unpack.main([str(file), f"--workdir={run}"]) == 0
    assert read_points(run).keys() == {"predicted"}
    assert read_trained(str(run)).step == 3
