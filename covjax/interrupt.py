"""SIGINT and SIGTERM: noted while a run trains, raised wherever else they come."""

import contextlib
import signal
import types
from collections.abc import Iterator

from covjax.errors import Failure

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Failure):
    """A run that ended because of a signal; exit status 128 + its number."""

    def __init__(self, number: int, message: str):
        """Takes the signal's number and what is said."""
        super().__init__(message)
        self.exit_status = 128 + number


@contextlib.contextmanager
def raise_signals() -> Iterator[None]:
    """While entered, the first SIGINT or SIGTERM raises `Interrupted`.

    A second one ends the process as it always would.
    """

    def stop(number: int, _: types.FrameType | None) -> None:
        restore()
        raise Interrupted(
            number,
            f"stopped by signal {number}; what is whole stays, and the same command"
            " goes on from there",
        )

    before = {number: signal.signal(number, stop) for number in NUMBERS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield
    finally:
        restore()


class Interrupt:
    """While entered, the first SIGINT or SIGTERM is only noted in `number`.

    A second one ends the process as it would before.
    """

    def __init__(self) -> None:
        """Notes nothing yet."""
        self.number: int | None = None

    def __enter__(self) -> "Interrupt":
        """Takes over both signals."""
        self._before = {n: signal.signal(n, self._note) for n in NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        """Gives both back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: types.FrameType | None) -> None:
        self.number = number
        self.__exit__()
