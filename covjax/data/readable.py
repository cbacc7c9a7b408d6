"""Films read in threads; those that cannot be read are collected, not met one a run."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from covjax.data.covidqu import Film
from covjax.data.progress import Progress
from covjax.errors import DataError

_AT_ONCE = 256  # films whose pixels are held
_NAMED = 3  # in a message

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class BadFilm:
    """A film that cannot be used.

    Attributes:
      film: it, or its masks.
      reason: one line that names the file.
    """

    film: Film
    reason: str


class BadFilms(DataError):
    """Films that cannot be used; the message names the first of them.

    Attributes:
      bad: all of them, in their order.
    """

    def __init__(self, bad: Sequence[BadFilm]):
        """Says it in one line."""
        self.bad = list(bad)
        said = "; ".join(one.reason for one in self.bad[:_NAMED])
        if len(self.bad) > 1:
            said = f"{len(self.bad):,} films cannot be used: {said}"
        super().__init__(said + ("; …" if len(self.bad) > _NAMED else ""))


def read_all(
    films: Sequence[Film], read: Callable[[Film], T], progress: Progress | None = None
) -> Iterator[list[T]]:
    """Reads films side by side.

    Args:
      films: in the order in which they are yielded.
      read: raises DataError where it cannot.
      progress: told how far the reading is.

    Yields:
      What came of the next films, some at once; without those that cannot be read.

    Raises:
      BadFilms: once all were read, if some of them cannot be.
    """

    def attempt(film: Film) -> T | BadFilm:
        try:
            return read(film)
        except DataError as error:
            return BadFilm(film, str(error))

    bad: list[BadFilm] = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        for start in range(0, len(films), _AT_ONCE):
            some = films[start : start + _AT_ONCE]
            whole = []
            for outcome in threads.map(attempt, some):
                if isinstance(outcome, BadFilm):
                    bad.append(outcome)
                else:
                    whole.append(outcome)
            if whole:
                yield whole
            if progress:
                progress(start + len(some), len(films))
    if bad:
        raise BadFilms(bad)
