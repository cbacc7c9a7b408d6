"""A folder in which one process alone is at work."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

import filelock

LOCK = ".lock"
# What a file system answers that knows no locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


class BusyError(Exception):
    """Another process is at work in the folder."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Keeps every other process out of a folder, which is made if missing.

    The system takes the lock away from a process that dies, however it does.

    Yields:
      Whether others are kept out: False where the file system knows no locks.

    Raises:
      BusyError: if another process has locked it.
      OSError: if it cannot be written.
    """
    # A marker in place of a lock would outlive a process that is killed.
    lock = filelock.FileLock(folder / LOCK, blocking=False, fallback_to_soft=False)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise BusyError from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield lock.is_locked
    finally:
        lock.release()
