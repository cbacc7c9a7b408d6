"""A folder for uploads, private to one process, and removed also if that is killed."""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from covjax.runtime.folder_lock import LOCK, BusyError, locked

_PREFIX = "covjax-app-"


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """While entered, there is a folder that only this user can open.

    It is removed at the end. If this process is killed, the next one of this user
    removes it: a lock in the folder is held for as long as the process lives.

    Raises:
      OSError: if there is no room for it.
    """
    _remove_abandoned(Path(tempfile.gettempdir()))
    with contextlib.ExitStack() as stack:
        folder = _make_locked(stack)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _make_locked(stack: contextlib.ExitStack) -> Path:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Another process that starts now may take a folder for abandoned for as long
        # as its lock is not held.
        with contextlib.suppress(BusyError):
            stack.enter_context(locked(folder))
            if (folder / LOCK).exists():
                return folder


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, BusyError):
            if _is_ours(folder) and (folder / LOCK).exists():
                with locked(folder) as alone:
                    if alone:  # else the file system cannot tell
                        shutil.rmtree(folder, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    """Tells whether this is a folder, not a link to one, that this user alone opens."""
    found = folder.lstat()
    private = not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and private
