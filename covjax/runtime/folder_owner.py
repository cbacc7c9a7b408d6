"""Who is at work in a folder, where a lock does not reach the other hosts.

On a network share that is mounted with `nolock` or `local_lock`, a lock keeps out the
processes of its own host alone. So whoever is at work leaves a file with its name, and
touches it again and again. No clocks are compared: the next one watches whether the
file changes.
"""

import contextlib
import dataclasses
import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from covjax.errors import StorageError
from covjax.runtime.files import write_whole
from covjax.runtime.folder_lock import BusyError

OWNER = ".owner"
_BEAT = 10.0  # seconds between two touches
_DEAD = 40.0  # seconds without one after which a process counts as gone
_FULL = (errno.ENOSPC, errno.EDQUOT)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclasses.dataclass(frozen=True)
class _Owner:
    """What the file says.

    Attributes:
      host: name of the machine.
      pid: of the process there.
      boot: tells the machine, since it was started, from every other.
      nonce: tells the process from every other.
    """

    host: str
    pid: int
    boot: str
    nonce: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextlib.contextmanager
def owned(folder: Path, *, locked: bool) -> Iterator[Callable[[], None]]:
    """Keeps processes of other hosts out of a folder, as long as they do the same.

    Args:
      folder: which exists.
      locked: whether those of this host are kept out by a lock: one that is noted there
        and had this host is dead then.

    Yields:
      A function to call before what is there is changed. It raises a StorageError if
      another process has taken the folder over, as it may if this one was suspended.

    Raises:
      BusyError: if another process is at work there; the text names it.
      OSError: if the folder cannot be read or written; but a full disk is no error.
    """
    path = folder / OWNER
    own = _Owner(socket.gethostname(), os.getpid(), _boot(), uuid.uuid4().hex)
    old, touched = _read(path)
    if old is not None and not (locked and old.boot == own.boot):
        print(
            f"{folder}: {old} was at work here; waiting {_DEAD:.0f} s to see whether it"
            " still is",
            flush=True,
        )
        if _changes(path, touched):
            raise BusyError(str(old))
    try:
        write_whole(path, json.dumps(dataclasses.asdict(own)) + "\n")
    except OSError as error:
        if error.errno not in _FULL:
            raise

    def check() -> None:
        now, _ = _read(path)
        if now is not None and now != own:
            raise StorageError(
                f"{folder}: {now} has taken it over; this process stops, and has"
                " changed nothing there since its last checkpoint"
            )

    ended = threading.Event()
    threading.Thread(
        target=_keep_touching, args=(path, own, ended), daemon=True
    ).start()
    try:
        yield check
    finally:
        ended.set()
        with contextlib.suppress(OSError):
            if _read(path)[0] == own:
                path.unlink()


def _keep_touching(path: Path, own: _Owner, ended: threading.Event) -> None:
    while not ended.wait(_BEAT):
        with contextlib.suppress(OSError):  # the next touch may succeed again
            if _read(path)[0] == own and not ended.is_set():
                os.utime(path)


def _changes(path: Path, touched: int) -> bool:
    """Tells whether a file changes within the time after which its owner is dead."""
    end = time.monotonic() + _DEAD
    while time.monotonic() < end:
        time.sleep(min(1.0, _DEAD / 10))
        found, now = _read(path)
        if found is None:
            return False
        if now != touched:
            return True
    return False


def _read(path: Path) -> tuple[_Owner | None, int]:
    """Returns what the file says, None without one, and when it was touched, ns.

    To open a file has a network share ask its server, which `stat` may not do.
    """
    try:
        with path.open() as file:
            touched = os.fstat(file.fileno()).st_mtime_ns
            return _Owner(**json.loads(file.read())), touched
    except FileNotFoundError:
        return None, 0
    except (ValueError, TypeError):  # no file of ours
        return None, 0


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:  # not Linux
        return socket.gethostname()
