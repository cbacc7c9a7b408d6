"""What tests ask of worker processes, which find it here by its name."""

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from covjax.predict import dicom_seg as seg
from covjax.predict import worker_tasks
from covjax.predict.postprocess import squeeze
from covjax.predict.writer import write_outputs


def own_number() -> int:
    print("no answer")
    return os.getpid()


def fail(path: str) -> None:
    raise FileNotFoundError(2, "gone", path)


class TwoWords(Exception):
    """Can be pickled, and not be read again."""

    def __init__(self, first: str, second: str):
        """Takes both."""
        super().__init__(f"{first} {second}")


def fail_in_two_words() -> None:
    raise TwoWords("some", "thing")


def give_a_lambda() -> Any:
    return lambda: None


def leave(status: int) -> None:
    os._exit(status)


def touch_once(told: Path, path: Path) -> None:
    while not told.exists():
        time.sleep(0.01)
    path.touch()


def read_or_die(asked: Any, sides: tuple[int, ...]) -> Any:
    if asked.name == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    return worker_tasks.read_sample(asked, sides)


def read_or_run_out(asked: Any, sides: tuple[int, ...]) -> Any:
    if asked.name == "dies":
        worker_tasks.squeeze = _too_much
    try:
        return worker_tasks.read_sample(asked, sides)
    finally:
        worker_tasks.squeeze = squeeze


def _too_much(*_: Any) -> Any:
    raise MemoryError


def finish_or_run_out(asked: Any, *told: Any) -> Any:
    if asked.name == "dies":
        worker_tasks.write_outputs = _too_much_for_opencv
    try:
        return worker_tasks.finish_image(asked, *told)
    finally:
        worker_tasks.write_outputs = write_outputs


def _too_much_for_opencv(*_: Any) -> Any:
    cv2.resize(np.zeros((1, 1), np.uint8), (2**31 - 1, 2**31 - 1))


def finish_or_die(asked: Any, *told: Any) -> Any:
    if asked.name == "dies":
        os._exit(7)
    return worker_tasks.finish_image(asked, *told)


def finish_until_seg_has_no_room(*told: Any) -> Any:
    seg.write_whole = _full
    return worker_tasks.finish_image(*told)


def _full(path: Path, _: bytes) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
