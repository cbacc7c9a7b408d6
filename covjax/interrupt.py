"""SIGINT and SIGTERM, noted, so that a run can end at the next step."""

import signal
import types

from covjax.errors import Failure


class Interrupted(Failure):
    """A run that ended because of a signal; exit status 128 + its number."""

    def __init__(self, number: int, message: str):
        """Takes the signal's number and what is said."""
        super().__init__(message)
        self.exit_status = 128 + number


class Interrupt:
    """While entered, the first SIGINT or SIGTERM is only noted in `number`.

    A second one ends the process as it always would.
    """

    def __init__(self) -> None:
        """Notes nothing yet."""
        self.number: int | None = None

    def __enter__(self) -> "Interrupt":
        """Takes over both signals."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {n: signal.signal(n, self._note) for n in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        """Gives both back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: types.FrameType | None) -> None:
        self.number = number
        self.__exit__()
