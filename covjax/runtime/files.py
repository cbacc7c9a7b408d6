"""Where files are kept between runs; files that are written whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

# What `open` would give a new file; mkstemp lets nobody else read.
_UMASK = os.umask(0)
os.umask(_UMASK)
MODE = 0o666 & ~_UMASK
# Ends the name of what is being written; a process that is killed leaves it behind.
HALF = ".half"
_ROOM = 200  # bytes, of the 255 of a name


def cache_folder(setting: str = "auto") -> Path:
    """Returns the folder of what can be made again.

    Args:
      setting: a folder; or "auto": `$COVJAX_CACHE`, else `~/.cache/covjax`.

    Raises:
      RuntimeError: if it lies in a home that there is not; the text names it.
    """
    if setting == "auto":
        setting = os.environ.get("COVJAX_CACHE", "") or "~/.cache/covjax"
    try:
        return Path(setting).expanduser()
    except RuntimeError:
        raise RuntimeError(f"{setting}: there is no such home") from None


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file under a temporary name beside it, then renames it.

    Whoever reads `path` finds what was there before or all of what is new, even if
    this process is killed or the power fails. Missing folders are made.

    Raises:
      OSError: if the folder cannot be written; what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    # A name that is as long as names may be would have no room for more.
    prefix = os.fsencode(f".{path.name}.")[:_ROOM].decode(errors="ignore")
    descriptor, temporary = tempfile.mkstemp(
        prefix=prefix, suffix=HALF, dir=path.parent
    )
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, MODE)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):  # a signal came when it was done
            os.unlink(temporary)
        if isinstance(error, OSError):  # which would name the other file, or none
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_set(files: Mapping[Path, str | bytes]) -> None:
    """Writes files that belong together; the last says that the others are there.

    All are written under other names first: where the disk is full, the ones of before
    stay. Then the last one of before goes, the others are replaced, and the new last
    one comes: if this process is killed, there is no mixture that counts as a set.

    Args:
      files: of one folder.

    Raises:
      OSError: if one cannot be written; it has the name of that file.
    """
    drafts = {path: path.with_name(f".{path.name}.new{HALF}") for path in files}
    try:
        for path, content in files.items():
            try:
                write_whole(drafts[path], content)
            except OSError as error:
                error.filename = str(path)
                raise
        last = list(files)[-1]
        last.unlink(missing_ok=True)
        for path, draft in drafts.items():
            os.replace(draft, path)
        sync_folder(last.parent)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk, so that a rename outlives a crash.

    Does nothing where the file system cannot.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
