"""What tests ask of worker processes, which find it here by its name."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from covjax import film_work


def own_number() -> int:
    print("no answer")
    return os.getpid()


def fail(path: str) -> None:
    raise FileNotFoundError(2, "gone", path)


def leave(status: int) -> None:
    os._exit(status)


def touch_later(path: Path, seconds: float) -> None:
    time.sleep(seconds)
    path.touch()


def read_or_die(asked: Any, sides: tuple[int, ...]) -> Any:
    if asked.name == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    return film_work.read_film(asked, sides)


def finish_or_die(asked: Any, *told: Any) -> Any:
    if asked.name == "dies":
        os._exit(7)
    return film_work.finish_film(asked, *told)
