"""Digests of the files of a folder: whether they still are what was written."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from covjax.errors import STORAGE, StorageError, UsageError, reason
from covjax.runtime.files import write_whole
from covjax.runtime.strict_json import read_json

NAME = "digests.json"


def write_digests(folder: Path, *, unless: Sequence[str] = ()) -> None:
    """Writes down length and digest of every file below a folder, in `NAME`.

    Args:
      folder: of which nothing changes any more.
      unless: names of files that still may.

    Raises:
      OSError: if a file cannot be read, or `NAME` not be written.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    told = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, _digest(path)]
        for path in files
        if path.name not in (NAME, *unless)
    }
    write_whole(folder / NAME, json.dumps(told, indent=1) + "\n")


def check_digests(folder: Path) -> None:
    """Refuses a folder of which a file is no longer what it was.

    Files that came later are not looked at; a folder without `NAME` is not either.

    Raises:
      UsageError: naming the first file that is gone, cut or changed.
      StorageError: if the disk does not answer: that says nothing of the files.
    """
    path = folder / NAME
    try:
        if not path.exists():
            return
        told = dict(read_json(path))
        for name, (size, digest) in told.items():
            file = folder / name
            if not file.is_file():
                raise UsageError(f"{folder}: not whole: {name} is gone")
            found = file.stat().st_size
            if found != size:
                raise UsageError(
                    f"{folder}: not whole: {name} has {found} of its {size} bytes"
                )
            if _digest(file) != digest:
                raise UsageError(f"{folder}: not whole: {name} has changed")
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, OSError) and error.errno in STORAGE:
            raise unreadable(folder, error) from None
        raise UsageError(f"{folder}: not whole: {error}") from None


def is_as_written(folder: Path) -> bool:
    """Tells whether every file is what `write_digests` found; False without `NAME`.

    Raises:
      StorageError: if the disk does not answer.
    """
    try:
        check_digests(folder)
    except UsageError:
        return False
    return (folder / NAME).exists()


def unreadable(folder: Path, error: Exception) -> StorageError:
    """Returns the error for a folder whose disk does not answer."""
    return StorageError(
        f"{folder}: cannot be read ({reason(error)}), which says nothing of its files:"
        " it stays where it is. Mend the disk or the mount, and the same command goes"
        " on; if it stays unreadable, move that folder away"
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
