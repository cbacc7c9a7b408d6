"""The images of the pages that are open."""

import threading
import time

from covjax.app.images import ViewedImage
from covjax.errors import UsageError

PAGES = 16  # whose images are kept at a time
PAGES_EACH = 4  # of these, of one browser
IDLE = 900.0  # seconds after which a page that nobody uses gives way to another


class Sessions:
    """The images of every page that is open, by its session; nothing else keeps them.

    A session begins with the name of its browser and a dot. If there is no room for
    another page, the one of the same browser that was not used for longest gives way if
    the browser has `PAGES_EACH`, else the one that nobody has used for `IDLE` seconds.
    So nobody can push out images that somebody else is looking at.
    """

    def __init__(self) -> None:
        """Keeps nothing yet."""
        self._images: dict[str, list[ViewedImage]] = {}
        self._used: dict[str, float] = {}  # in the order of use
        self._lock = threading.Lock()

    def start(self, session: str) -> None:
        """Drops what a page showed, and makes room for what it is going to.

        Raises:
          UsageError: if there is no room.
        """
        with self._lock:
            self._drop(session)
            browser = session.partition(".")[0]
            own = [one for one in self._used if one.partition(".")[0] == browser]
            if len(own) >= PAGES_EACH:
                self._drop(own[0])
            elif len(self._used) >= PAGES:
                self._drop_idle()
            self._images[session] = []
            self._touch(session)

    def keep(self, session: str, radiographs: list[ViewedImage]) -> None:
        """Keeps images, unless the page was closed since `start`."""
        with self._lock:
            if session in self._images:
                self._images[session] = radiographs
                self._touch(session)

    def radiographs(self, session: str) -> list[ViewedImage]:
        """Returns the images of a page; none, if they were dropped."""
        with self._lock:
            if session in self._images:
                self._touch(session)
            return self._images.get(session, [])

    def drop(self, session: str) -> None:
        """Drops the images of a page that was closed."""
        with self._lock:
            self._drop(session)

    def _drop_idle(self) -> None:
        oldest, used = next(iter(self._used.items()))
        if time.monotonic() - used < IDLE:
            raise UsageError(
                f"{PAGES} pages show images already: try again when one is closed, or"
                f" was not used for {IDLE / 60:.0f} minutes"
            )
        self._drop(oldest)

    def _touch(self, session: str) -> None:
        self._used.pop(session, None)
        self._used[session] = time.monotonic()

    def _drop(self, session: str) -> None:
        self._images.pop(session, None)
        self._used.pop(session, None)
