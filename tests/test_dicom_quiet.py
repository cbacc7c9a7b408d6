"""Warnings are silent while one thread asks for it, and as before afterwards."""

import threading
import warnings

import pytest

from covjax.predict.dicom.quiet import without_warnings


def test_silence_ends_with_the_last_thread_that_asked_for_it():
    entered, may_leave = threading.Event(), threading.Event()

    def first() -> None:
        with without_warnings():
            entered.set()
            may_leave.wait()

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    with without_warnings():
        may_leave.set()
        thread.join()  # the first has left
        warnings.warn("a patient's name", UserWarning, stacklevel=1)
    with pytest.raises(UserWarning, match="heard"):  # pytest makes them errors
        warnings.warn("heard", UserWarning, stacklevel=1)


def test_silence_ends_with_an_error():
    with pytest.raises(ZeroDivisionError), without_warnings():
        _ = 1 / 0
    with pytest.raises(UserWarning):
        warnings.warn("heard", UserWarning, stacklevel=1)
