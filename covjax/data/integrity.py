"""Images read side by side; those that cannot be read are collected for one message.

Small grey PNGs, as COVID-QU-Ex is published, are decoded in threads of this process.
Every other file goes to a worker process with limits, so that no file can exhaust the
memory of the run or hang it. Workers start with the first such file: a set without one
pays nothing for them.
"""

import concurrent.futures
import dataclasses
import itertools
import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from covjax.data.covidqu import Sample
from covjax.data.decode_limits import IMAGE_LIMITS, count_readers
from covjax.data.image_io import NeedsWorker, quick_only, shown
from covjax.errors import DataError
from covjax.runtime.cores import count_cores
from covjax.runtime.progress import Progress
from covjax.runtime.worker_process import Worker, WorkerDied

_TOGETHER = 16  # images of one request to a worker process: requests have a cost
_AT_ONCE = 256  # images whose pixels are held
_NAMED = 3  # in a message

S = TypeVar("S")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class BadSample:
    """An image that cannot be used.

    Attributes:
      sample: it, or its masks.
      reason: one line that names the file.
    """

    sample: Sample
    reason: str


class BadSamples(DataError):
    """Images that cannot be used; the message names the first of them.

    Attributes:
      bad: all of them, in their order.
    """

    def __init__(self, bad: Sequence[BadSample]):
        """Says it in one line."""
        self.bad = list(bad)
        said = "; ".join(one.reason for one in self.bad[:_NAMED])
        if len(self.bad) > 1:
            said = f"{len(self.bad):,} images cannot be used: {said}"
        super().__init__(said + ("; …" if len(self.bad) > _NAMED else ""))


def read_all(
    samples: Sequence[Sample],
    read: Callable[[Sample], T],
    progress: Progress | None = None,
) -> Iterator[list[T]]:
    """Reads images side by side.

    Args:
      samples: in the order in which they are yielded.
      read: raises DataError where it cannot; see `Readers.map`.
      progress: told how far the reading is.

    Yields:
      What came of the next images, some at once; without those that cannot be read.

    Raises:
      BadSamples: once all were read, if some of them cannot be.
    """
    bad: list[BadSample] = []
    with Readers() as readers:
        for start in range(0, len(samples), _AT_ONCE):
            some = samples[start : start + _AT_ONCE]
            whole = []
            for sample, outcome in zip(some, readers.map(read, some), strict=True):
                if isinstance(outcome, DataError):
                    bad.append(BadSample(sample, str(outcome)))
                else:
                    whole.append(outcome)
            if whole:
                yield whole
            if progress:
                progress(start + len(some), len(samples))
    if bad:
        raise BadSamples(bad)


class Readers:
    """Threads that read files, and worker processes for what may be costly.

    To be used in a `with`, which ends them.
    """

    def __init__(self) -> None:
        """Starts nothing yet."""
        self._threads = concurrent.futures.ThreadPoolExecutor(count_cores())
        self._all = [Worker(IMAGE_LIMITS) for _ in range(count_readers())]
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        for worker in self._all:
            self._idle.put(worker)

    def map(
        self, read: Callable[[S], T], items: Iterable[S]
    ) -> Iterator[T | DataError]:
        """Yields what `read` returns of each item, in their order, or what it raises.

        Args:
          read: at the top of a module, or a partial of such a function; it and the
            items can be pickled. Called again in a worker, if a file needs one.
          items: of which each names the files of one image.

        Yields:
          Results; a DataError in place of one, also where a file exceeds the limits.
        """
        groups = _in_groups(items, _TOGETHER)
        for outcomes in self._threads.map(
            lambda group: self._read(read, group), groups
        ):
            yield from outcomes

    def _read(self, read: Callable[[S], T], items: Sequence[S]) -> list[T | DataError]:
        """Reads some items here, and those that may be costly in a worker process."""
        outcomes: dict[int, T | DataError] = {}
        costly = []
        for k, item in enumerate(items):
            try:
                with quick_only():
                    outcomes[k] = read(item)
            except NeedsWorker:
                costly.append(k)
            except DataError as error:
                outcomes[k] = error
        if costly:
            found = self._read_in_worker(read, [items[k] for k in costly])
            outcomes |= zip(costly, found, strict=True)
        return [outcomes[k] for k in range(len(items))]

    def _read_in_worker(
        self, read: Callable[[S], T], items: Sequence[S]
    ) -> list[T | DataError]:
        """Reads items by one request; each by its own, if that exceeds the limits."""
        worker = self._idle.get()
        try:
            return worker.submit(_read_each, read, items).result()
        except (WorkerDied, MemoryError) as error:
            if len(items) == 1:
                why = "too large for the memory that there is"
                if isinstance(error, WorkerDied):
                    why = f"the process that read it {error}"
                return [DataError(f"{_name(items[0])}: {why}")]
        finally:
            self._idle.put(worker)
        alone = [self._read_in_worker(read, [item]) for item in items]
        return [outcome for (outcome,) in alone]

    def __enter__(self) -> "Readers":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Begins nothing more, and ends the threads and processes."""
        self._threads.shutdown(cancel_futures=True)
        for worker in self._all:
            worker.cancel()
        for worker in self._all:
            worker.close()


def _read_each(read: Callable[[S], T], items: Sequence[S]) -> list[T | DataError]:
    """Returns what `read` returns of each item, or raises."""

    def attempt(item: S) -> T | DataError:
        try:
            return read(item)
        except DataError as error:
            return error

    return [attempt(item) for item in items]


def _in_groups(items: Iterable[S], size: int) -> Iterator[Sequence[S]]:
    items = iter(items)
    while group := list(itertools.islice(items, size)):
        yield group


def _name(item: object) -> str:
    """Returns the path of an image, or of the image of which an item has masks too."""
    return shown(getattr(item, "image", None) or str(item))
