"""Warnings of a library kept from the terminal, in whichever thread it runs."""

import contextlib
import threading
import warnings
from collections.abc import Iterator

_lock = threading.Lock()
_inside = 0
_outer = contextlib.ExitStack()


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """While any thread is in here, no warning is shown, raised or recorded.

    `warnings.catch_warnings` is of one thread: of two, the one that leaves first would
    bring back what the other has silenced, and the second leave all silenced for good.
    """
    global _inside
    with _lock:
        if not _inside:
            _outer.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _outer.close()
