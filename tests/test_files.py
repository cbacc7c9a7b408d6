"""Files appear whole or not at all."""

import errno
import os
import stat
from pathlib import Path

import pytest

from covjax.runtime import files
from covjax.runtime.files import write_set, write_whole


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_text_and_bytes_are_written_as_they_are(tmp_path):
    write_whole(tmp_path / "text", "Größe\n")
    write_whole(tmp_path / "bytes", b"\x00\xff\r\n")
    assert listing(tmp_path) == {
        "text": "Größe\n".encode(),
        "bytes": b"\x00\xff\r\n",
    }


def test_missing_folders_are_made(tmp_path):
    write_whole(tmp_path / "a" / "b" / "file", "new")
    assert listing(tmp_path / "a" / "b") == {"file": b"new"}


def test_old_content_is_replaced_whole(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "a long old content")
    write_whole(path, "new")
    assert listing(tmp_path) == {"file": b"new"}


@pytest.mark.parametrize("name", ["a" * 255, "ü" * 127, "胸" * 85])
def test_a_name_may_be_as_long_as_the_disk_lets_it(tmp_path, name):
    write_whole(tmp_path / name, "new")
    assert listing(tmp_path) == {name: b"new"}


def test_others_can_read_it_as_any_new_file(tmp_path):
    write_whole(tmp_path / "file", "new")
    (tmp_path / "opened").touch()  # 0o644, where the umask is the usual one
    modes = [path.stat().st_mode for path in sorted(tmp_path.iterdir())]
    assert modes[0] == modes[1]


def test_new_content_is_complete_before_it_takes_the_name(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, "old")
    replace, seen = os.replace, []

    def look(source, target):
        seen.append((Path(source).read_text(), Path(target).read_text()))
        assert Path(source).parent == tmp_path  # of one file system
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    write_whole(path, "new")
    assert seen == [("new", "old")]


def test_file_and_then_its_name_are_brought_to_the_disk(tmp_path, monkeypatch):
    done = []

    def record(module, name):
        call = getattr(module, name)

        def recorded(*args):
            is_folder = name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode)
            done.append("fsync folder" if is_folder else name)
            return call(*args)

        monkeypatch.setattr(module, name, recorded)

    record(os, "fsync")
    record(os, "replace")
    write_whole(tmp_path / "file", "new")
    assert done == ["fsync", "replace", "fsync folder"]


def test_a_file_system_that_cannot_sync_folders_is_no_failure(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    write_whole(tmp_path / "file", "new")
    assert listing(tmp_path) == {"file": b"new"}


FAILURES = [OSError(errno.ENOSPC, "no space left"), KeyboardInterrupt()]


@pytest.mark.parametrize("failure", FAILURES, ids=["full disk", "interrupt"])
@pytest.mark.parametrize("where", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("old", [{}, {"file": b"old"}], ids=["new", "there"])
def test_failure_midway_leaves_what_was_there(
    tmp_path, monkeypatch, old, where, failure
):
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)

    def fail(*_):
        raise failure

    monkeypatch.setattr(os, where, fail)
    with pytest.raises(type(failure)):
        write_whole(tmp_path / "file", "new")
    monkeypatch.undo()
    assert listing(tmp_path) == old


def test_a_signal_when_all_is_done_is_what_is_raised(tmp_path, monkeypatch):
    replace = os.replace

    def interrupted(source, target):
        replace(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", "new")
    assert listing(tmp_path) == {"file": b"new"}


def test_file_in_place_of_the_folder_is_an_os_error(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(OSError):
        write_whole(tmp_path / "taken" / "file", "new")
    assert listing(tmp_path) == {"taken": b"mine"}


def test_a_set_that_cannot_be_written_leaves_the_one_of_before(tmp_path, monkeypatch):
    names = ("a.npz", "a.csv", "a.json")
    write_set({tmp_path / name: f"old {name}" for name in names})
    before = listing(tmp_path)
    assert before == {name: f"old {name}".encode() for name in names}
    written = []

    def write_two(path: Path, content: str) -> None:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        write_whole(path, content)

    monkeypatch.setattr(files, "write_whole", write_two)
    with pytest.raises(OSError, match="No space left") as caught:
        write_set({tmp_path / name: "new" for name in names})
    assert caught.value.filename == str(tmp_path / "a.json")
    assert listing(tmp_path) == before


def test_a_set_of_which_not_all_is_in_place_has_no_last_file(tmp_path, monkeypatch):
    names = ("a.npz", "a.csv", "a.json")
    write_set({tmp_path / name: "old" for name in names})
    replace, moved = os.replace, []

    def move_one(source: Path, target: Path) -> None:
        if Path(target).name in names:
            if moved:
                raise KeyboardInterrupt  # a kill, as far as the files go
            moved.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", move_one)
    with pytest.raises(KeyboardInterrupt):
        write_set({tmp_path / name: "new" for name in names})
    assert listing(tmp_path) == {"a.npz": b"new", "a.csv": b"old"}
