"""A run's folder belongs to one config, and says how to repeat the run."""

import errno
import fcntl
import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs import infection, lung
from covjax.config import differences, read_about, read_config
from covjax.errors import UsageError
from covjax.runtime.folder_lock import LOCK
from covjax.runtime.folder_owner import OWNER
from covjax.train import run_folder


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file below a folder."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def refusal(workdir: Path, config) -> str:
    before = snapshot(workdir.parent)
    with pytest.raises(UsageError) as caught:
        run_folder.claim(workdir, config, phantom=True)
    assert snapshot(workdir.parent) == before  # nothing is changed after a refusal
    return str(caught.value)


@pytest.mark.parametrize("exists", [False, True], ids=["new", "empty"])
def test_free_folder_gets_the_config(tmp_path, exists):
    workdir = tmp_path / "runs" / "lung"
    if exists:
        workdir.mkdir(parents=True)
    config = lung.get_config("phantom")
    config.seed = 5
    run_folder.claim(workdir, config, phantom=True)
    assert [path.name for path in workdir.iterdir()] == ["config.json"]
    assert differences(read_config(workdir / "config.json"), config) == {}


@pytest.mark.parametrize("phantom", [True, False])
def test_a_run_says_whether_its_images_are_synthetic(tmp_path, phantom):
    run_folder.claim(tmp_path / "run", lung.get_config("phantom"), phantom=phantom)
    assert read_about(tmp_path / "run" / "config.json")["phantom"] is phantom


def test_same_config_goes_on_and_changes_nothing(tmp_path):
    run_folder.claim(tmp_path / "run", lung.get_config("phantom"), phantom=True)
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    before = snapshot(tmp_path)
    run_folder.claim(tmp_path / "run", lung.get_config("phantom"), phantom=True)
    assert snapshot(tmp_path) == before


def test_moved_data_and_other_threads_are_the_same_run(tmp_path):
    run_folder.claim(tmp_path / "run", lung.get_config("phantom"), phantom=True)
    config = lung.get_config("phantom")
    config.data.root, config.data.threads, config.train.log_every = "elsewhere", 9, 3
    run_folder.claim(tmp_path / "run", config, phantom=True)


def test_other_config_is_refused_with_both_values_of_each_field(tmp_path):
    run_folder.claim(tmp_path / "run", lung.get_config("phantom"), phantom=True)
    config = lung.get_config("phantom")
    config.model.width, config.data.phantom_images = 16, (8, 4, 4)
    said = refusal(tmp_path / "run", config)
    assert str(tmp_path / "run") in said
    assert "config.model.width (8 there, 16 here)" in said
    assert "config.data.phantom_images ([320, 64, 128] there, [8, 4, 4] here)" in said
    assert said.count(" there, ") == 2


def test_stage_that_starts_elsewhere_is_another_run(tmp_path):
    config = infection.get_config("phantom")
    config.init_from = "runs/lung"
    run_folder.claim(tmp_path / "run", config, phantom=True)
    said = refusal(tmp_path / "run", infection.get_config("phantom"))
    assert "config.init_from ('runs/lung' there, '' here)" in said


def test_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    said = refusal(tmp_path / "thesis", lung.get_config())
    assert f"--workdir={tmp_path / 'thesis'} holds files that are no run" in said


def test_folder_of_a_run_that_was_killed_as_it_began_is_free(tmp_path, monkeypatch):
    def die(source, target):
        os.rename(source, f"{source}-left")  # what is not renamed is removed
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, OSError)):
        patch.setattr(os, "replace", die)
        run_folder.claim(tmp_path, lung.get_config("phantom"), phantom=True)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".config.json.")
    run_folder.claim(tmp_path, lung.get_config("phantom"), phantom=True)
    assert (tmp_path / "config.json").exists()
    # Of another file that is half there, nobody knows whose it is.
    (tmp_path / "config.json").unlink()
    (tmp_path / ".metrics.jsonl.x").touch()
    with pytest.raises(UsageError, match="files that are no run"):
        run_folder.claim(tmp_path, lung.get_config("phantom"), phantom=True)


HOLD = """
import os, sys, time
from pathlib import Path
from covjax.train import run_folder
with run_folder.hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds a folder."""
    env = os.environ | {"PYTHONPATH": str(Path(run_folder.__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        env=env, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_that_another_process_holds_is_refused_until_it_dies(holder, tmp_path):
    (tmp_path / "run" / ".results.json.x.half").touch()
    with pytest.raises(UsageError, match="another process is at work there") as error:
        with run_folder.hold(tmp_path / "run"):
            pytest.fail("held by two")
    assert str(tmp_path / "run") in str(error.value)
    assert (tmp_path / "run" / ".results.json.x.half").exists()  # it may be writing it
    holder.kill()
    holder.wait()
    with run_folder.hold(tmp_path / "run"):
        run_folder.claim(tmp_path / "run", lung.get_config("phantom"), phantom=True)


def test_what_was_half_written_is_removed_and_nothing_else(tmp_path):
    halves = [".config.json.x.half", "results/.test.json.y.half", "figures/.a.png.half"]
    halves += ["checkpoints/9.orbax-checkpoint-tmp/state/d/1"]
    whole = ["config.json", "results/test.json", "checkpoints/9/state/d/1", ".hidden"]
    whole += ["lungs/3/.a.png.z.half"]  # of another run, which may be at work
    for name in halves + whole:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    with run_folder.hold(tmp_path):
        left = {path for path, _ in snapshot(tmp_path).items()}
    assert left == {*whole, LOCK, OWNER}


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_told_and_used(
    tmp_path, monkeypatch, capsys, number
):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    half = tmp_path / ".config.json.x.half"
    half.touch()
    with run_folder.hold(tmp_path):
        assert half.exists()  # who knows that nobody is writing it
    assert f"{tmp_path}: cannot be locked" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_a_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written .*another folder"):
        with run_folder.hold(tmp_path / "file" / "run"):
            pytest.fail("held nothing")


def test_a_folder_that_is_held_but_new_is_free(tmp_path):
    config = lung.get_config("phantom")
    with run_folder.hold(tmp_path / "run"):
        run_folder.claim(tmp_path / "run", config, phantom=True)
    assert differences(read_config(tmp_path / "run" / "config.json"), config) == {}


def test_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "thesis").write_text("years of work")
    assert "no run of covjax" in refusal(tmp_path / "thesis", lung.get_config())


def test_config_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"seed": 0')
    assert "not a run's config" in refusal(tmp_path / "run", lung.get_config())


def test_versions_and_python_are_written_down(tmp_path):
    run_folder.claim(tmp_path, lung.get_config(), phantom=True)
    about = json.loads((tmp_path / "config.json").read_text())["about"]
    assert about["python"] == "{}.{}.{}".format(*sys.version_info)
    assert {"jax", "flax", "optax", "orbax-checkpoint", "grain"} <= set(
        about["versions"]
    )
    for name, version in about["versions"].items():
        assert version == importlib.metadata.version(name)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config=configs/lung.py", "--workdir=runs/lung"],
        ["--config=configs/lung.py", "--config.transfer.fresh=('^params/head/',)"],
        ["--workdir=runs/a run"],
    ],
)
def test_command_can_be_given_to_a_shell_again(tmp_path, monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["/somewhere/covjax/main.py", *arguments])
    run_folder.claim(tmp_path, lung.get_config(), phantom=True)
    about = json.loads((tmp_path / "config.json").read_text())["about"]
    command = shlex.split(about["command"])
    assert command == ["python", "-m", "covjax.main", *arguments]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [("", "1f3a"), (" M covjax/train/train.py\n", "1f3a+changes"), (None, None)],
    ids=["clean", "changed", "no checkout"],
)
def test_commit_of_the_code_is_written_down(tmp_path, monkeypatch, changes, expected):
    def git(command, **_):
        assert command[:3] == ["git", "-C", str(Path(run_folder.__file__).parent)]
        if changes is None:
            raise subprocess.CalledProcessError(128, command)
        answer = {"rev-parse": "1f3a\n", "status": changes}[command[3]]
        return subprocess.CompletedProcess(command, 0, answer, "")

    monkeypatch.setattr(subprocess, "run", git)
    run_folder.claim(tmp_path, lung.get_config(), phantom=True)
    about = json.loads((tmp_path / "config.json").read_text())["about"]
    assert about["commit"] == expected


def test_machine_without_git_writes_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert run_folder.about(["main.py"])["commit"] is None


def test_a_new_folder_names_stage_and_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for stage in (lung, infection):
        config = stage.get_config()
        with run_folder.new_folder(config) as folder:
            name = folder.as_posix()
            assert re.fullmatch(rf"runs/{config.data.task}-\d{{8}}-\d{{6}}", name)
            assert folder.is_dir()


def test_runs_that_are_started_in_one_second_get_folders_of_their_own(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20261123-134501")
    config = lung.get_config()
    with (
        run_folder.new_folder(config) as first,
        run_folder.new_folder(config) as second,
    ):
        (second / "config.json").touch()
        with run_folder.new_folder(config) as third:
            names = [folder.name for folder in (first, second, third)]
    assert names == [f"lung-20261123-134501{end}" for end in ("", "-2", "-3")]
    assert list((tmp_path / "runs").iterdir()) == [tmp_path / second]


def test_a_new_folder_that_cannot_be_made_is_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").touch()
    with pytest.raises(UsageError, match="cannot be made .Not a directory"):
        with run_folder.new_folder(lung.get_config()):
            pytest.fail("made")
