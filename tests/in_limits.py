"""What tests ask of worker processes with limits; quick to import."""

import os
import resource
import signal
import time

_kept: list[bytearray] = []


def own_number() -> int:
    return os.getpid()


def spin() -> None:
    while True:
        pass


def use_cpu(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def wait() -> None:
    time.sleep(3600)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def die_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def allocate(size: int) -> int:
    return len(bytearray(size))  # zeros, which are written to


def keep(size: int) -> int:
    _kept.append(bytearray(size))
    return sum(map(len, _kept))


def print_lines() -> str:
    for file in (1, 2):
        os.write(file, b"a line\n" * 100)
    return "done"


def core_limit() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_CORE)
