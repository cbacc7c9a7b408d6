"""SIGINT and SIGTERM: noted while a run trains, raised wherever else they come.

They come to every process of a terminal or a cluster's job, also to those that load
images. The one that trains still needs these until its checkpoint is written.
"""

import contextlib
import os
import signal
import sys
import threading
import types
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

NUMBERS = (signal.SIGINT, signal.SIGTERM)
_SOON = 0.05  # seconds, in which a callback ends
T = TypeVar("T")


class Interrupted(BaseException):
    """A run that ended because of a signal.

    No `Exception`: JAX takes every one of those that comes while it reads or writes a
    compiled program for a failure of that alone, and goes on.

    Attributes:
      exit_status: 128 + the signal's number.
    """

    def __init__(self, number: int, message: str):
        """Takes the signal's number and what is said."""
        super().__init__(message)
        self.exit_status = 128 + number


@contextlib.contextmanager
def raise_signals() -> Iterator[None]:
    """While entered, the first SIGINT or SIGTERM raises `Interrupted`.

    A second one ends the process as it always would.
    """
    before = {number: signal.getsignal(number) for number in NUMBERS}
    report = sys.unraisablehook

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, _: types.FrameType | None) -> None:
        restore()
        raise Interrupted(
            number,
            f"stopped by signal {number}; what is whole stays, and the same command"
            " goes on from there",
        )

    def watch() -> None:
        for number in NUMBERS:
            signal.signal(number, stop)

    def send_again(dropped: Any) -> None:
        # What is raised within a callback from C, as JAX's of the garbage collector
        # is, gets no further.
        error = dropped.exc_value
        if not isinstance(error, Interrupted):
            return report(dropped)
        watch()
        number = error.exit_status - 128
        threading.Timer(_SOON, os.kill, (os.getpid(), number)).start()

    try:
        sys.unraisablehook = send_again
        watch()
        yield
    finally:
        restore()
        sys.unraisablehook = report


class Interrupt:
    """While entered, the first SIGINT or SIGTERM is only noted in `number`.

    A second one ends the process as it would before.
    """

    def __init__(self) -> None:
        """Notes nothing yet."""
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        """Takes over both signals."""
        self._before = {number: signal.getsignal(number) for number in NUMBERS}
        for number in NUMBERS:
            if self.number is None:  # else one came in between, and ended it
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Gives both back, unless a signal has done so."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, _: types.FrameType | None) -> None:
        self.number = number
        self.__exit__()


def shield_workers(elements: Iterable[T]) -> Iterator[T]:
    """Yields what it is given; the processes that start with the first get no signals.

    This thread holds both back until the first element is there, and a new process
    inherits what is held back, from its first instruction to its last. (Another thread
    of this process may take one meanwhile; it is noted or raised as ever.)
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
    try:
        iterator = iter(elements)
        first = next(iterator)
    except StopIteration:
        return
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    yield first
    yield from iterator
