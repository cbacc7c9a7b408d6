"""Decodes uploads in processes of their own, some at a time."""

import contextlib
import queue
from collections.abc import Iterator
from pathlib import Path

from covjax.app.uploads import DISK_FULL, Upload, Uploads
from covjax.data.decode_limits import IMAGE_LIMITS
from covjax.data.image_io import shown
from covjax.errors import STORAGE, UsageError
from covjax.predict.radiograph import Radiograph, read_radiograph
from covjax.runtime.worker_process import Worker, WorkerDied

PROCESSES = 3  # so that one slow image does not keep all others waiting
_NOT_THERE = "the upload is no longer kept: drop the file again"


class Decoder:
    """Decodes uploads; an image that ends its process ends nothing else."""

    def __init__(self, uploads: Uploads):
        """Takes the uploads; starts a process when there is something to decode."""
        self._uploads, self._ended = uploads, False
        self._workers = [Worker(IMAGE_LIMITS) for _ in range(PROCESSES)]
        self._free: queue.LifoQueue[Worker] = queue.LifoQueue()  # a started one first
        for worker in self._workers:
            self._free.put(worker)

    def decode(self, upload: Upload | None) -> Radiograph:
        """Returns an image; its upload is gone then.

        Raises:
          UsageError: if it is not there, is not an image, takes too long or too much
            memory, or the disk is full.
        """
        if upload is None:
            raise UsageError(_NOT_THERE)
        try:
            with self._uploads.as_file(upload) as path, self._worker() as worker:
                return _read(worker, path)
        except WorkerDied as error:
            raise UsageError(f"cannot be decoded: its process {error}") from None
        except MemoryError:
            raise UsageError("cannot be decoded: it needs too much memory") from None
        except OSError as error:
            if error.errno not in STORAGE:
                raise
            raise UsageError(DISK_FULL) from None

    def close(self) -> None:
        """Ends the processes at once; what they decode fails."""
        self._ended = True
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.close()

    @contextlib.contextmanager
    def _worker(self) -> Iterator[Worker]:
        worker = self._free.get()
        try:
            if self._ended:
                raise UsageError("the server is shutting down")
            yield worker
        finally:
            self._free.put(worker)


def _read(worker: Worker, path: Path) -> Radiograph:
    try:
        return worker.submit(read_radiograph, path).result()
    except UsageError as error:
        # The name of the file, here a random one, is nothing to the user.
        raise UsageError(str(error).replace(f"{shown(path)}: ", "")) from None
