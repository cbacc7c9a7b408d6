"""Links, or copies, in the published layout, which one table owns and nothing else.

    <root>/FROM_TABLE.json     whose they are, and each of them
    <root>/.part/              the two trees while they are made or changed
    <root>/.lock               held meanwhile

A tree comes to its place, where training looks for it, once it is whole. Stopped at any
moment, the same command goes on. What it did not write, or what was changed since, is
neither replaced nor removed.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from covjax.data.covidqu import TABLE_MARKER, TREES
from covjax.data.image_io import shown
from covjax.errors import DataError, reason
from covjax.runtime.files import HALF, write_whole
from covjax.runtime.folder_lock import LOCK, BusyError, locked
from covjax.runtime.strict_json import parse_json

_PART = ".part"
_WAY_ON = "name another folder, or remove this one"


@dataclasses.dataclass(frozen=True)
class Item:
    """A file to be: a link to `source`, a copy of it, or `content`.

    Attributes:
      state: how it is known again: "link <source>", "copy <SHA-256> <source>" or
        "drawn <SHA-256>".
      source: an absolute path, or None.
      content: bytes, or None.
    """

    state: str
    source: Path | None = None
    content: bytes | None = None


def link(source: Path) -> Item:
    """Returns a symbolic link to a file."""
    return Item(f"link {source}", source)


def copy(source: Path) -> Item:
    """Returns a copy of a file as it is now.

    Raises:
      DataError: if it cannot be read.
    """
    return Item(f"copy {_digest(_read(source))} {source}", source)


def drawn(content: bytes) -> Item:
    """Returns a file of that content."""
    return Item(f"drawn {_digest(content)}", content=content)


def lay_out(root: Path, table: Path, items: Mapping[str, Item]) -> int:
    """Makes the trees of a folder what they have to be.

    Args:
      root: new or empty, or laid out by the same table before.
      table: who owns it.
      items: by path below `root`, "Lung Segmentation Data/Train/…"; all in the trees.

    Returns:
      How many files were written; those that were right before are left.

    Raises:
      DataError: if `root` belongs to something else, or holds in its trees what was not
        written here; then nothing is changed. If it cannot be written, or another
        process is at it.
    """
    check_root(root, table)  # no lock is put into a folder of something else
    with _alone(root):
        return _lay_out(root, table, items)


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keeps other processes out of a folder, which is made if missing.

    A marker that a killed process had half-written is removed.
    """
    with contextlib.ExitStack() as stack:
        try:
            if stack.enter_context(locked(root)):
                for half in root.glob(f".{TABLE_MARKER}.*{HALF}"):
                    half.unlink()
        except BusyError:
            raise DataError(
                f"{shown(root)}: another process is at work there: wait for it"
            ) from None
        except OSError as error:
            said = f"cannot be written ({reason(error)}); name another folder"
            raise DataError(f"{shown(root)}: {said}") from None
        yield


def _lay_out(root: Path, table: Path, items: Mapping[str, Item]) -> int:
    marker = check_root(root, table)
    before: dict[str, list[str]] = marker.get("files", {})
    there = _check_ours(root, before)
    wanted = {name: [item.state] for name, item in items.items()}
    if marker.get("whole") and before == wanted and there == wanted.keys():
        return 0
    either = {
        name: before.get(name, []) + wanted.get(name, [])
        for name in {**before, **wanted}
    }
    part = root / _PART
    try:
        _write_marker(root, table, either, whole=False)
        part.mkdir(exist_ok=True)
        for tree in TREES.values():
            if (root / tree).exists():
                os.rename(root / tree, part / tree)
        _remove_others(part, items)
        written = sum(_make(part / name, item) for name, item in items.items())
        for tree in TREES.values():
            if (part / tree).exists():
                os.rename(part / tree, root / tree)
        part.rmdir()
        _write_marker(root, table, wanted, whole=True)
    except OSError as error:
        raise DataError(
            f"{shown(root)}: cannot be written ({reason(error)}); with that mended, the"
            " same command goes on"
        ) from None
    return written


def check_root(root: Path, table: Path) -> dict[str, Any]:
    """Returns what the folder's marker says; nothing of a new or empty folder.

    Raises:
      DataError: if it belongs to another table, or to something else.
    """
    path = root / TABLE_MARKER
    try:
        marker = parse_json(path.read_bytes())
        owner, files = marker["table"], marker["files"]
        _ = [state.split() for states in files.values() for state in states]
    except FileNotFoundError:
        try:
            inside = os.listdir(root)
        except FileNotFoundError:
            inside = []
        except OSError as error:
            raise DataError(f"{shown(root)}: {reason(error)}; {_WAY_ON}") from None
        # A first marker may have been half-written.
        half = [n for n in inside if n.startswith(f".{TABLE_MARKER}.") and _is_half(n)]
        if {*inside} <= {LOCK, *half}:
            return {}
        raise DataError(
            f"{shown(root)}: neither empty nor laid out by a table; {_WAY_ON}"
        ) from None
    except OSError as error:
        raise DataError(f"{shown(path)}: {reason(error)}; {_WAY_ON}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{shown(path)}: cannot be understood; {_WAY_ON}") from None
    if owner != os.path.abspath(table):
        raise DataError(
            f"{shown(root)}: laid out by another table ({shown(owner)}); {_WAY_ON}"
        )
    return marker


def _check_ours(root: Path, before: Mapping[str, list[str]]) -> set[str]:
    """Returns what lies in the trees, at their places or not.

    Raises:
      DataError: if one of them is not as it was written here.
    """
    there = set()
    tops = [(root, root / tree) for tree in TREES.values()]
    for base, top in [*tops, (root / _PART, root / _PART)]:
        for path in _walk(top):
            name = path.relative_to(base).as_posix()
            if base != root and _is_half(path.name):
                continue
            if not any(_is(path, state) for state in before.get(name, [])):
                raise DataError(
                    f"{shown(path)}: not written by this command, or changed since:"
                    " move it out of the folder, or name another folder"
                )
            there.add(name)
    return there


def _walk(path: Path) -> Iterator[Path]:
    """Yields all below a path that is no folder; a link to a folder is none."""
    if path.is_symlink() or path.is_file():
        yield path
    elif path.is_dir():
        try:
            names = sorted(os.listdir(path))
        except OSError as error:
            raise DataError(f"{shown(path)}: {reason(error)}") from None
        for name in names:
            yield from _walk(path / name)
    elif path.exists():  # a pipe, a device
        yield path


def _is(path: Path, state: str) -> bool:
    """Tells whether a file is what a state says."""
    how, _, of = state.partition(" ")
    if how == "link":
        return path.is_symlink() and os.readlink(path) == of
    if path.is_symlink() or not path.is_file():
        return False
    return _digest(_read(path)) == of.partition(" ")[0]


def _is_half(name: str) -> bool:
    return name.startswith(".") and name.endswith(HALF)


def _remove_others(part: Path, items: Mapping[str, Item]) -> None:
    for tree in TREES.values():
        for path in list(_walk(part / tree)):
            if path.relative_to(part).as_posix() not in items:
                path.unlink()
        for folder, _, _ in os.walk(part / tree, topdown=False):
            with contextlib.suppress(OSError):  # not empty
                os.rmdir(folder)


def _make(path: Path, item: Item) -> bool:
    """Writes a file, unless it is right already; tells whether it did."""
    if os.path.lexists(path):
        if _is(path, item.state):
            return False
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    if item.state.startswith("link "):
        try:
            path.symlink_to(item.state.removeprefix("link "))
        except OSError as error:
            said = f"no links: {reason(error)}; --copy makes copies"
            raise OSError(error.errno, said) from None
        return True
    content = item.content
    if content is None:
        assert item.source is not None
        content = _read(item.source)
        if _digest(content) != item.state.split(" ")[1]:
            raise DataError(f"{shown(item.source)}: changed while it was copied")
    write_whole(path, content)
    return True


def _write_marker(
    root: Path, table: Path, files: Mapping[str, list[str]], *, whole: bool
) -> None:
    told = {"table": os.path.abspath(table), "whole": whole, "files": files}
    write_whole(root / TABLE_MARKER, json.dumps(told, indent=1) + "\n")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{shown(path)}: {reason(error)}") from None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
