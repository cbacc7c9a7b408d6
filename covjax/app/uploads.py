"""Uploads that wait to be read: known by random names, bounded in number and bytes.

What a client calls its files is never part of a path. An upload is a temporary file
without a name of its own, so that the system removes it however this process ends.
"""

import asyncio
import contextlib
import errno
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from covjax.app.access import BROWSER
from covjax.predict.dicom.reader import DICOM_SUFFIXES

MOST_BYTES = 2**26  # of a file
MOST_OF_REQUEST = 2**29  # bytes
MOST_OF_SERVER = 2**31  # bytes of all that arrive or wait
MOST_FILES = 100  # of a request
MOST_WAITING = 200  # files
MOST_ARRIVING = 8  # requests at a time
UNREAD = 600.0  # seconds that an upload that no page asks about is kept
_ARRIVING = 600.0  # seconds that a request may take
_PAUSE = 30.0  # seconds without a byte
_IN_MEMORY = 2**16  # bytes of a file; more go to the disk
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_ROOM = "no room for more uploads at the moment: try later"
DISK_FULL = "the disk of the server is full: nothing was kept, try again later"


class Upload(NamedTuple):
    """A file that has arrived.

    Attributes:
      name: as the client calls it; for display alone.
      file: its content.
      size: bytes.
      browser: who sent it.
      arrived: when, by a clock that nobody sets, seconds.
      session: the page that asked for it to be read; empty before that.
    """

    name: str
    file: BinaryIO
    size: int
    browser: str
    arrived: float
    session: str = ""


class _TooMuch(MultiPartException):
    """More bytes than are taken."""


class Uploads:
    """All uploads of a server that are still to be read."""

    def __init__(self, folder: Path):
        """Takes the folder in which an upload is for as long as it is decoded."""
        self._folder = folder
        self._waiting: dict[str, Upload] = {}
        self._arriving: dict[object, int] = {}  # bytes of each request under way
        self._lock = threading.Lock()

    async def receive(self, request: Request) -> Response:
        """Keeps the files of a request; the answer lists their names here."""
        if len(self._arriving) >= MOST_ARRIVING:
            return PlainTextResponse("too many uploads at a time: try again", 503)
        key = object()
        self._arriving[key] = 0
        try:
            async with asyncio.timeout(_ARRIVING):
                parser = _Parser(
                    request.headers, self._count(request, key),
                    max_files=MOST_FILES, max_fields=0,
                )  # fmt: skip
                form = await parser.parse()
            files = [
                (one.filename or "", one.file, one.size or 0)
                for _, one in form.multi_items()
                if isinstance(one, UploadFile)
            ]
            return JSONResponse(self.add(files, request.scope[BROWSER]))
        except (MultiPartException, KeyError, ValueError) as error:
            return _refusal(error)
        except TimeoutError:
            return PlainTextResponse("the upload took too long", 408)
        except ClientDisconnect:
            return PlainTextResponse("", 400)
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            return PlainTextResponse(DISK_FULL, 507)
        finally:
            del self._arriving[key]

    async def _count(
        self, request: Request, key: object
    ) -> AsyncGenerator[bytes, None]:
        """Yields the body as it comes; no more of it than there is room for."""
        stream = request.stream()
        with contextlib.suppress(StopAsyncIteration):
            while True:
                chunk = await asyncio.wait_for(anext(stream), _PAUSE)
                self._arriving[key] += len(chunk)
                if self._arriving[key] > MOST_OF_REQUEST:
                    raise _TooMuch(f"more than {MOST_OF_REQUEST >> 20} MiB at a time")
                waiting = sum(one.size for one in list(self._waiting.values()))
                if waiting + sum(self._arriving.values()) > MOST_OF_SERVER:
                    raise _TooMuch(_NO_ROOM)
                yield chunk

    def add(
        self, files: Sequence[tuple[str, BinaryIO, int]], browser: str
    ) -> list[str]:
        """Keeps files; returns their names here.

        Args:
          files: how the client calls each, its content, and its size in bytes.
          browser: who sent them.

        Raises:
          MultiPartException: if there is no room for them; they are closed then.
        """
        with self._lock:
            if len(self._waiting) + len(files) > MOST_WAITING:
                for _, file, _ in files:
                    file.close()
                raise _TooMuch(_NO_ROOM)
            names = [secrets.token_hex(16) for _ in files]
            now = time.monotonic()
            for name, file in zip(names, files, strict=True):
                self._waiting[name] = Upload(*file, browser, now)
        return names

    def claim(self, names: list[str], browser: str, session: str) -> None:
        """Notes that a page asks for uploads of its own browser to be read.

        From then on they are kept until they are taken, or the page is closed.
        """
        with self._lock:
            for name in names:
                upload = self._waiting.get(name)
                if upload is not None and upload.browser == browser:
                    self._waiting[name] = upload._replace(session=session)

    def take(self, name: str, session: str) -> Upload | None:
        """Returns an upload that a page has claimed, and forgets it.

        Whoever takes it closes its file. None if the page has not claimed it.
        """
        with self._lock:
            upload = self._waiting.get(name)
            if upload is None or upload.session != session:
                return None
            return self._waiting.pop(name)

    @contextlib.contextmanager
    def as_file(self, upload: Upload) -> Iterator[Path]:
        """While entered, an upload is a file; it is gone afterwards.

        Raises:
          OSError: if there is no room for it.
        """
        suffix = Path(upload.name).suffix.lower()
        known = suffix if suffix in DICOM_SUFFIXES else ""
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=known) as copy:
            with upload.file:
                shutil.copyfileobj(upload.file, copy)
            copy.flush()
            yield Path(copy.name)

    def forget(self, session: str) -> None:
        """Deletes what a page has claimed and nobody has taken."""
        self._delete(lambda upload: upload.session == session)

    def sweep(self) -> None:
        """Deletes what no page has claimed for too long."""
        before = time.monotonic() - UNREAD
        self._delete(lambda upload: not upload.session and upload.arrived < before)

    def _delete(self, which: Any) -> None:
        with self._lock:
            gone = [name for name, upload in self._waiting.items() if which(upload)]
            for name in gone:
                self._waiting.pop(name).file.close()


class _Parser(MultiPartParser):
    """Starlette's, with a bound for every file."""

    spool_max_size = _IN_MEMORY

    def on_part_begin(self) -> None:
        super().on_part_begin()
        self._size = 0

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._size > MOST_BYTES:
            raise _TooMuch(f"a file of more than {MOST_BYTES >> 20} MiB")
        super().on_part_data(data, start, end)


def _refusal(error: Exception) -> Response:
    if isinstance(error, _TooMuch):
        return PlainTextResponse(error.message, 413)
    if isinstance(error, MultiPartException) and "Too many files" in error.message:
        return PlainTextResponse(f"more than {MOST_FILES} files at a time", 413)
    return PlainTextResponse("not an upload of the page", 400)
