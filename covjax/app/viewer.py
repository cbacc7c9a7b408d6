"""What stands behind the controls: which images a page shows, and in what way."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from covjax.app.decoding import Decoder
from covjax.app.images import ViewedImage, draw_phantoms, look_at
from covjax.app.markup import figures_html, picture_html, told
from covjax.app.sessions import Sessions
from covjax.app.uploads import Uploads
from covjax.errors import UsageError
from covjax.metrics.operating_point import OperatingPoint
from covjax.predict.radiograph import Radiograph
from covjax.predict.segmenter import Segmenter

MOST_IMAGES = 20  # of a drop
BESIDE, ALONE = "Image beside overlay", "Overlay alone"

EMPTY = '<p class="empty">No image yet: drop one or several, or look at phantoms.</p>'
_GONE = (
    '<div role="alert"><p class="problem">The images of this page are no longer kept:'
    " drop them again.</p></div>"
)


class Viewer:
    """Reads the images of the pages that are open, and shows them.

    Attributes:
      segmenter: of two stages.
      point: its operating point.
      sessions: the images of every page.
      uploads: that are still to be read.
    """

    def __init__(self, segmenter: Segmenter, uploads: Uploads, decoder: Decoder):
        """Takes a segmenter of two stages, the uploads and what decodes them.

        Raises:
          ValueError: if the segmenter has one stage.
        """
        if segmenter.points.infection is None:
            raise ValueError("a segmenter of lungs alone finds no infection")
        self.segmenter, self.point = segmenter, segmenter.points.infection
        self.uploads, self._decoder = uploads, decoder
        self.sessions = Sessions()
        self._network = threading.Lock()
        self._phantoms = draw_phantoms()

    def read(
        self,
        names: Sequence[str],
        session: str,
        progress: Callable[[int, int], None],
    ) -> str:
        """Reads the images of a drop; the uploads are gone when it returns.

        Args:
          names: of the uploads that the page has claimed.
          session: of the page.
          progress: is told how many are done, of how many.

        Returns:
          What is to be said of it, as HTML.
        """
        uploads = [self.uploads.take(name, session) for name in names]
        radiographs: list[ViewedImage] = []
        problems: list[tuple[str, str]] = []
        try:
            self.sessions.start(session)
            for k, upload in enumerate(uploads):
                name = short_name(upload.name) if upload else "a file"
                try:
                    if k >= MOST_IMAGES:
                        raise UsageError(f"more than {MOST_IMAGES} images at a time")
                    progress(k, min(len(names), MOST_IMAGES))
                    radiographs.append(self._look(self._decoder.decode(upload), name))
                except UsageError as error:
                    problems.append((name, str(error)))
            self.sessions.keep(session, radiographs)
        except UsageError as error:  # no room for another page
            problems.append((f"{len(names)} files", str(error)))
        finally:
            for upload in uploads:
                if upload is not None:
                    upload.file.close()
        return told(problems, len(radiographs))

    def close(self, session: str) -> None:
        """Drops all that was kept for a page."""
        self.sessions.drop(session)
        self.uploads.forget(session)

    def _look(
        self, image: Radiograph, name: str, *, phantom: bool = False
    ) -> ViewedImage:
        with self._network:  # one image at a time, whoever asks
            return look_at(self.segmenter, image, name, phantom=phantom)

    def show_phantoms(self, session: str) -> str:
        """Shows the synthetic images; returns what is to be said, as HTML."""
        try:
            self.sessions.start(session)
        except UsageError as error:
            return told([("phantoms", str(error))], 0)
        radiographs = [
            self._look(image, name, phantom=True) for name, image in self._phantoms
        ]
        self.sessions.keep(session, radiographs)
        return told([], len(radiographs))

    def choices(self, session: str) -> list[tuple[str, int]]:
        """Returns what a user chooses the image by, and its number."""
        radiographs = self.sessions.radiographs(session)
        return [
            (f"{k + 1}: {radiograph.name}", k)
            for k, radiograph in enumerate(radiographs)
        ]

    def show(
        self,
        session: str,
        number: int | None,
        threshold: float,
        opacity: float,
        view: str,
    ) -> tuple[str, str]:
        """Returns the picture of an image and its figures, as HTML.

        Args:
          session: of the page.
          number: of the image.
          threshold: in (0, 1).
          opacity: of the infection's colour, in [0, 1].
          view: `BESIDE` or `ALONE`.
        """
        radiographs = self.sessions.radiographs(session)
        if number is None or number >= len(radiographs):
            return (EMPTY if number is None else _GONE), ""
        radiograph, point = radiographs[number], self._point(threshold)
        infection = radiograph.infection(self.segmenter, point)
        picture = picture_html(
            radiograph,
            self.segmenter,
            infection,
            opacity=opacity,
            beside=view == BESIDE,
        )
        return picture, figures_html(radiograph, self.segmenter, infection, point)

    @property
    def own_threshold(self) -> float:
        """The run's threshold, in the two digits that a slider has."""
        return min(max(round(self.point.threshold, 2), 0.01), 0.99)

    def _point(self, threshold: float) -> OperatingPoint:
        if threshold == self.own_threshold:
            return self.point  # which may have more digits
        return dataclasses.replace(self.point, threshold=threshold)


def short_name(path: str | Path, most: int = 40) -> str:
    """Returns a file's name in one printable line; a long one without its middle."""
    name = "".join(c if c.isprintable() else "?" for c in Path(path).name)
    if len(name) <= most:
        return name
    half = (most - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
