"""What stands behind the controls: which films a page shows, and in what way."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from covjax.app.films import Film, draw_phantoms, look_at
from covjax.app.markup import figures_html, picture_html, told
from covjax.calibrate import OperatingPoint
from covjax.data.decode import shown
from covjax.data.radiograph import read_radiograph
from covjax.errors import UsageError
from covjax.films.segmenter import Segmenter

MOST_FILMS = 20  # of a drop
BESIDE, ALONE = "Film beside overlay", "Overlay alone"
PAGES = 8  # whose films are kept at a time

EMPTY = '<p class="empty">No film yet: drop one or several, or look at phantoms.</p>'
_GONE = (
    '<div role="alert"><p class="problem">The films of this page are no longer kept:'
    " drop them again.</p></div>"
)


class Viewer:
    """Reads the films of the pages that are open, and shows them.

    Attributes:
      segmenter: of two stages.
      point: its operating point.
      sessions: the films of every page.
    """

    def __init__(self, segmenter: Segmenter):
        """Takes a segmenter of two stages.

        Raises:
          ValueError: if it has one.
        """
        if segmenter.points.infection is None:
            raise ValueError("a segmenter of lungs alone finds no infection")
        self.segmenter, self.point = segmenter, segmenter.points.infection
        self.sessions = Sessions()
        self._phantoms = draw_phantoms()

    def read(
        self,
        paths: Sequence[str],
        session: str,
        progress: Callable[[int, int], None],
    ) -> str:
        """Reads the films of a drop; their files are gone when it returns.

        Args:
          paths: of the uploads.
          session: of the page.
          progress: is told how many are done, of how many.

        Returns:
          What is to be said of it, as HTML.
        """
        self.sessions.start(session)
        films: list[Film] = []
        problems: list[tuple[str, str]] = []
        for k, path in enumerate(map(Path, paths)):
            name = short_name(path)
            try:
                if k >= MOST_FILMS:
                    raise UsageError(f"more than {MOST_FILMS} films at a time")
                progress(k, min(len(paths), MOST_FILMS))
                film = read_radiograph(path)
            except UsageError as error:
                # The folder of the uploads is nothing to the user.
                why = str(error).replace(f"{shown(path)}: ", "")
                problems.append((name, why))
            else:
                films.append(look_at(self.segmenter, film, name))
            finally:
                _delete(path)
        self.sessions.keep(session, films)
        return told(problems, len(films))

    def show_phantoms(self, session: str) -> str:
        """Shows the synthetic films; returns what is to be said, as HTML."""
        self.sessions.start(session)
        films = [
            look_at(self.segmenter, film, name, phantom=True)
            for name, film in self._phantoms
        ]
        self.sessions.keep(session, films)
        return told([], len(films))

    def choices(self, session: str) -> list[tuple[str, int]]:
        """Returns what a user chooses the film by, and its number."""
        films = self.sessions.films(session)
        return [(f"{k + 1}: {film.name}", k) for k, film in enumerate(films)]

    def show(
        self,
        session: str,
        number: int | None,
        threshold: float,
        opacity: float,
        view: str,
    ) -> tuple[str, str]:
        """Returns the picture of a film and its figures, as HTML.

        Args:
          session: of the page.
          number: of the film.
          threshold: in (0, 1).
          opacity: of the infection's colour, in [0, 1].
          view: `BESIDE` or `ALONE`.
        """
        films = self.sessions.films(session)
        if number is None or number >= len(films):
            return (EMPTY if number is None else _GONE), ""
        film, point = films[number], self._point(threshold)
        infection = film.infection(self.segmenter, point)
        picture = picture_html(
            film, self.segmenter, infection, opacity=opacity, beside=view == BESIDE
        )
        return picture, figures_html(film, self.segmenter, infection, point)

    @property
    def own_threshold(self) -> float:
        """The run's threshold, in the two digits that a slider has."""
        return min(max(round(self.point.threshold, 2), 0.01), 0.99)

    def _point(self, threshold: float) -> OperatingPoint:
        if threshold == self.own_threshold:
            return self.point  # which may have more digits
        return dataclasses.replace(self.point, threshold=threshold)


class Sessions:
    """The films of every page that is open, by its session; nothing else keeps them.

    Of at most `PAGES` pages: the one that was filled longest ago gives way.
    """

    def __init__(self) -> None:
        """Keeps nothing yet."""
        self._films: dict[str, list[Film]] = {}
        self._lock = threading.Lock()

    def start(self, session: str) -> None:
        """Drops what a page showed, and makes room for what it is going to."""
        with self._lock:
            self._films.pop(session, None)
            self._films[session] = []
            while len(self._films) > PAGES:
                del self._films[next(iter(self._films))]

    def keep(self, session: str, films: list[Film]) -> None:
        """Keeps films, unless the page was closed since `start`."""
        with self._lock:
            if session in self._films:
                self._films[session] = films

    def films(self, session: str) -> list[Film]:
        """Returns the films of a page; none, if they were dropped."""
        with self._lock:
            return self._films.get(session, [])

    def drop(self, session: str) -> None:
        """Drops the films of a page that was closed."""
        with self._lock:
            self._films.pop(session, None)


def short_name(path: str | Path, most: int = 40) -> str:
    """Returns a file's name in one printable line; a long one without its middle."""
    name = "".join(c if c.isprintable() else "?" for c in Path(path).name)
    if len(name) <= most:
        return name
    half = (most - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def _delete(upload: Path) -> None:
    upload.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # its own folder, named by its content
        upload.parent.rmdir()
