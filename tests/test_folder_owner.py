"""One process alone is at work in a folder, also where locks end at the host."""

import contextlib
import dataclasses
import errno
import json
import os
import threading
from pathlib import Path

import pytest

from covjax.errors import StorageError, UsageError
from covjax.runtime import folder_owner
from covjax.runtime.folder_lock import BusyError
from covjax.runtime.folder_owner import OWNER, owned
from covjax.train import run_folder
from covjax.train.checkpoint import Checkpoints

THERE = {"host": "host-b", "pid": 17, "boot": "another", "nonce": "b"}


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(folder_owner, "_BEAT", 0.02)
    monkeypatch.setattr(folder_owner, "_DEAD", 0.5)


@contextlib.contextmanager
def at_work(folder: Path):
    """A process of another host that touches its file."""
    path, ended = folder / OWNER, threading.Event()
    path.write_text(json.dumps(THERE))

    def touch() -> None:
        while not ended.wait(0.02):
            os.utime(path)

    thread = threading.Thread(target=touch)
    thread.start()
    yield
    ended.set()
    thread.join()


def test_a_process_of_another_host_keeps_this_one_out(tmp_path, capsys):
    with at_work(tmp_path):
        with pytest.raises(UsageError, match=r"at work there \(process 17 on host-b\)"):
            with run_folder.hold(tmp_path):
                pytest.fail("held by two")
        assert json.loads((tmp_path / OWNER).read_text()) == THERE
    assert "process 17 on host-b was at work here" in capsys.readouterr().out


def test_a_process_of_another_host_that_died_does_not(tmp_path):
    (tmp_path / OWNER).write_text(json.dumps(THERE))
    with run_folder.hold(tmp_path):
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
    assert not (tmp_path / OWNER).exists()


def test_one_of_this_host_is_known_by_the_lock_to_be_dead(tmp_path, monkeypatch):
    left = THERE | {"boot": folder_owner._boot()}
    (tmp_path / OWNER).write_text(json.dumps(left))
    monkeypatch.setattr(folder_owner, "_changes", lambda *_: True)
    with owned(tmp_path, locked=True):
        pass
    (tmp_path / OWNER).write_text(json.dumps(left))
    with pytest.raises(BusyError), owned(tmp_path, locked=False):
        pytest.fail("nothing is known without a lock")


def test_a_run_whose_folder_was_taken_over_writes_no_checkpoint(tmp_path):
    with (
        run_folder.hold(tmp_path) as check,
        Checkpoints(tmp_path, check) as checkpoints,
    ):
        check()
        (tmp_path / OWNER).write_text(json.dumps(THERE))
        with pytest.raises(StorageError, match="on host-b has taken it over"):
            checkpoints.save(None, dice=None)  # pyright: ignore[reportArgumentType]
    assert json.loads((tmp_path / OWNER).read_text()) == THERE  # and its note stays


def test_a_holder_touches_its_file(tmp_path):
    with run_folder.hold(tmp_path):
        _, first = folder_owner._read(tmp_path / OWNER)
        assert folder_owner._changes(tmp_path / OWNER, first)


def test_a_full_disk_is_left_to_those_who_write_more(tmp_path, monkeypatch):
    def fail(path, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(folder_owner, "write_whole", fail)
    with owned(tmp_path, locked=True) as check:
        check()
    assert not list(tmp_path.iterdir())


def test_a_file_of_somebody_else_is_no_owner(tmp_path):
    (tmp_path / OWNER).write_text("me")
    with owned(tmp_path, locked=True):
        told = json.loads((tmp_path / OWNER).read_text())
        assert {f.name for f in dataclasses.fields(folder_owner._Owner)} == set(told)
