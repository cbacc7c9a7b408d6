"""A folder that a table owns: what is written, stopped anywhere, and never touched."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from covjax.data.from_table import link_tree
from covjax.data.from_table.link_tree import Item, copy, drawn, lay_out, link
from covjax.errors import DataError

LUNG, INFECTION = "Lung Segmentation Data", "Infection Segmentation Data"
TABLE = Path("images.csv")


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_bytes(name.encode())
    return folder


def first(source: Path) -> dict[str, Item]:
    return {
        f"{LUNG}/Train/Normal/images/a.png": link(source / "a"),
        f"{LUNG}/Val/Normal/images/b.png": copy(source / "b"),
        f"{INFECTION}/Train/Normal/images/a.png": drawn(b"mask"),
    }


def second(source: Path) -> dict[str, Item]:
    """One stays, one is another, one goes with its tree, one comes."""
    return {
        f"{LUNG}/Train/Normal/images/a.png": link(source / "a"),
        f"{LUNG}/Val/Normal/images/b.png": link(source / "c"),
        f"{LUNG}/Test/Normal/images/c.png": drawn(b"new"),
    }


def contents(root: Path) -> dict[str, str | bytes]:
    """Where links lead and what files hold, by path; folders without files count."""
    found: dict[str, str | bytes] = {}
    for folder, folders, files in os.walk(root):
        for name in files:
            path = Path(folder, name)
            is_link = path.is_symlink()
            found[str(path.relative_to(root))] = (
                os.readlink(path) if is_link else path.read_bytes()
            )
        if not folders and not files:
            found[str(Path(folder).relative_to(root))] = "an empty folder"
    for name in ("FROM_TABLE.json", ".lock"):
        found.pop(name, None)
    return found


def expected(source: Path, of: str) -> dict[str, str | bytes]:
    if of == "first":
        return {
            f"{LUNG}/Train/Normal/images/a.png": str(source / "a"),
            f"{LUNG}/Val/Normal/images/b.png": b"b",
            f"{INFECTION}/Train/Normal/images/a.png": b"mask",
        }
    return {
        f"{LUNG}/Train/Normal/images/a.png": str(source / "a"),
        f"{LUNG}/Val/Normal/images/b.png": str(source / "c"),
        f"{LUNG}/Test/Normal/images/c.png": b"new",
    }


def test_writes_links_copies_and_what_is_drawn(tmp_path, source):
    root = tmp_path / "new" / "root"
    assert lay_out(root, TABLE, first(source)) == 3
    assert contents(root) == expected(source, "first")
    told = json.loads((root / "FROM_TABLE.json").read_text())
    assert told["table"] == str(Path.cwd() / TABLE) and told["whole"]
    b = hashlib.sha256(b"b").hexdigest()
    states = told["files"][f"{LUNG}/Val/Normal/images/b.png"]
    assert states == [f"copy {b} {source / 'b'}"]


def last_write(path: Path) -> tuple[int, int, int]:
    """Which file it is, and when it was written or moved: not when it was read."""
    told = os.lstat(path)
    return told.st_ino, told.st_mtime_ns, told.st_ctime_ns


def test_again_writes_nothing_and_a_change_writes_what_changed(tmp_path, source):
    root = tmp_path / "root"
    root.mkdir()  # an empty one is as good as a new one
    lay_out(root, TABLE, first(source))
    kept = root / f"{LUNG}/Train/Normal/images/a.png"
    before, marker = last_write(kept), last_write(root / "FROM_TABLE.json")
    assert lay_out(root, TABLE, first(source)) == 0
    # The trees were not taken away meanwhile, from a run that reads them.
    assert last_write(root / "FROM_TABLE.json") == marker
    assert lay_out(root, TABLE, second(source)) == 2
    assert contents(root) == expected(source, "second")
    assert last_write(kept) == before
    assert lay_out(root, TABLE, first(source)) == 2
    assert contents(root) == expected(source, "first")


def test_links_become_copies_and_links_again(tmp_path, source):
    root, name = tmp_path / "root", f"{LUNG}/Train/Normal/images/a.png"
    for make, is_link in ((link, True), (copy, False), (link, True)):
        assert lay_out(root, TABLE, {name: make(source / "a")}) == 1
        assert (root / name).is_symlink() == is_link
        assert (root / name).read_bytes() == b"a"
    assert lay_out(root, TABLE, {name: link(source / "b")}) == 1
    assert os.readlink(root / name) == str(source / "b")
    (root / name).unlink()
    (root / name).symlink_to(source / "c")  # somebody's own
    with pytest.raises(DataError, match="a.png: not written by this command, or"):
        lay_out(root, TABLE, {name: link(source / "b")})
    assert os.readlink(root / name) == str(source / "c")


class Stop(BaseException):
    """Stands for a kill."""


def stop_at(monkeypatch, when: int) -> list[str]:
    """Lets the `when`-th step of a writing end the process; counts the steps."""
    steps: list[str] = []

    def counted(name, do):
        def step(*given, **named):
            steps.append(name)
            if len(steps) > when:
                raise Stop
            return do(*given, **named)

        return step

    for where, name in (
        (link_tree.os, "rename"),
        (link_tree.Path, "symlink_to"),
        (link_tree.Path, "unlink"),
        (link_tree.Path, "mkdir"),
        (link_tree.Path, "rmdir"),
        (link_tree, "write_whole"),
    ):
        monkeypatch.setattr(where, name, counted(name, getattr(where, name)))
    return steps


@pytest.mark.parametrize("from_first", [False, True], ids=["new", "changed"])
def test_stopped_anywhere_the_same_command_goes_on(
    tmp_path, source, monkeypatch, from_first
):
    old = tmp_path / "old"
    if from_first:
        lay_out(old, TABLE, first(source))
    wanted, name = (second, "second") if from_first else (first, "first")
    trees = {
        tree: {k: v for k, v in expected(source, name).items() if k.startswith(tree)}
        for tree in (LUNG, INFECTION)
    }
    before = contents(old)
    when = 0
    for when in range(100):
        root = tmp_path / f"root-{when}"
        if from_first:
            shutil.copytree(old, root, symlinks=True)
        with monkeypatch.context() as patch:
            stop_at(patch, when)
            try:
                lay_out(root, TABLE, wanted(source))
                break
            except Stop:
                pass
        # A tree that can be found is a whole one, old or new.
        left = contents(root)
        for tree, whole in trees.items():
            now = {k: v for k, v in left.items() if k.startswith(tree)}
            was = {k: v for k, v in before.items() if k.startswith(tree)}
            assert now in ({}, whole, was), when
        lay_out(root, TABLE, wanted(source))
        assert contents(root) == expected(source, name), when
    assert when > 8  # it was stopped, and not once


@pytest.mark.parametrize("whole", [True, False])
def test_a_half_written_marker_of_a_killed_process_is_removed(tmp_path, source, whole):
    root = tmp_path / "root"
    items = {f"{LUNG}/Val/Normal/images/a.png": link(source / "a")}
    if whole:
        lay_out(root, TABLE, items)
    root.mkdir(exist_ok=True)
    (root / ".FROM_TABLE.json.x1.half").write_text("{")
    lay_out(root, TABLE, items)
    assert not list(root.glob(".FROM*"))


def test_a_half_written_file_of_a_killed_process_is_removed(tmp_path, source):
    root = tmp_path / "root"
    lay_out(root, TABLE, first(source))
    (root / ".part").mkdir()
    os.rename(root / LUNG, root / ".part" / LUNG)
    half = root / ".part" / LUNG / "Val" / "Normal" / "images" / ".b.png.x1.half"
    half.write_bytes(b"ha")
    lay_out(root, TABLE, second(source))
    assert contents(root) == expected(source, "second")


def test_what_is_not_its_own_is_neither_replaced_nor_removed(tmp_path, source):
    root = tmp_path / "root"
    lay_out(root, TABLE, first(source))
    (root / "notes.txt").write_text("mine")
    samples = {
        "more": f"{LUNG}/Train/Normal/images/z.png",
        "changed": f"{LUNG}/Val/Normal/images/b.png",
        "a file for a link": f"{LUNG}/Train/Normal/images/a.png",
        "in the way": f"{LUNG}/Test/Normal/images/c.png",
        "half-made": ".part/thesis.txt",
    }
    for name, sample in samples.items():
        path = root / sample
        backup = os.readlink(path) if path.is_symlink() else None
        bytes_before = path.read_bytes() if path.exists() and not backup else None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(b"mine")
        before = contents(root)
        for items in (first(source), second(source)):
            with pytest.raises(DataError) as caught:
                lay_out(root, TABLE, items)
            assert str(caught.value).startswith(f"{path}: not written by"), name
            assert contents(root) == before, name
        path.unlink()
        if backup:
            path.symlink_to(backup)
        elif bytes_before is not None:
            path.write_bytes(bytes_before)
        elif name == "half-made":
            path.parent.rmdir()
    lay_out(root, TABLE, second(source))
    assert contents(root) == expected(source, "second") | {"notes.txt": b"mine"}


def test_a_tree_that_is_a_link_is_not_followed(tmp_path, source):
    root, other = tmp_path / "root", tmp_path / "other"
    lay_out(root, TABLE, first(source))
    os.rename(root / LUNG, other)
    (root / LUNG).symlink_to(other)
    before = contents(other)
    with pytest.raises(DataError, match="not written by this command"):
        lay_out(root, TABLE, second(source))
    assert contents(other) == before


def test_two_processes_do_not_write_at_once(tmp_path, source):
    root = tmp_path / "root"
    with link_tree._alone(root):
        with pytest.raises(DataError, match="root: another process is at work there"):
            lay_out(root, TABLE, first(source))
        assert [path.name for path in root.iterdir()] == [".lock"]
    lay_out(root, TABLE, first(source))


@pytest.mark.parametrize("kind", ["files", "an image", "another table", "no marker"])
def test_a_folder_of_something_else_is_refused(tmp_path, source, kind):
    root = tmp_path / "root"
    root.mkdir()
    said = "neither empty nor laid out by a table"
    if kind == "files":
        (root / "thesis.tex").write_text("")
    elif kind == "an image":
        root.rmdir()
        root.write_text("")
        said = "Not a directory"
    elif kind == "another table":
        lay_out(root, Path("other.csv"), first(source))
        said = f"laid out by another table ({Path.cwd() / 'other.csv'})"
    else:
        (root / "FROM_TABLE.json").write_text("[]")
        said = "cannot be understood"
    before = contents(root)
    with pytest.raises(DataError) as caught:
        lay_out(root, TABLE, second(source))
    assert said in str(caught.value) and "name another folder" in str(caught.value)
    assert contents(root) == before


def test_a_disk_that_fails_or_has_no_links_is_told_in_a_line(
    tmp_path, source, monkeypatch
):
    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    root = tmp_path / "root"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "symlink_to", refuse)
        with pytest.raises(DataError, match="Operation not permitted; --copy makes"):
            lay_out(root, TABLE, first(source))
    lay_out(root, TABLE, first(source))
    assert contents(root) == expected(source, "first")


def test_a_file_that_changes_while_it_is_copied_is_refused(tmp_path, source):
    items = first(source)
    (source / "b").write_bytes(b"B")
    with pytest.raises(DataError, match="b: changed while it was copied"):
        lay_out(tmp_path / "root", TABLE, items)
    lay_out(tmp_path / "root", TABLE, first(source))
    copied = tmp_path / "root" / f"{LUNG}/Val/Normal/images/b.png"
    assert copied.read_bytes() == b"B"
