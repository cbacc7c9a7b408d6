"""Ends a run that is stuck, with a line that names the process at fault.

A process that hangs (a decoder, a disk that never answers) still sends JAX's signs of
life, which come from a thread, and on a GPU the others wait for it without end. Here
every process counts its progress, tells it to the others by JAX's coordination service,
and ends when neither it nor the one that is furthest behind has moved for too long.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from jax._src import distributed  # the key-value store has no public name

from covjax.errors import UsageError
from covjax.runtime import distributed as hosts

VARIABLE = "COVJAX_STALL_MINUTES"
_MINUTES = 20.0  # longer than any program compiles, or Val is judged
_PROGRESS, _STUCK = "covjax/progress/", "covjax/stuck"


@dataclasses.dataclass
class _Seen:
    """What was last heard of a process.

    Attributes:
      name: what to call it.
      count: of its beats.
      watched: whether it is at work on something that has to go on.
      patience: seconds that it may stand still.
      doing: what it is at.
      still: seconds for which the count has not changed.
    """

    name: str
    count: int = 0
    watched: bool = False
    patience: float = 0.0
    doing: str = ""
    still: float = 0.0

    def is_stuck(self) -> bool:
        return self.watched and self.still >= self.patience


class _Watchdog:
    """A thread that looks at the progress of all processes."""

    def __init__(self, minutes: float):
        self._interval = min(5.0, 6 * minutes)
        self._client: Any = distributed.global_state.client
        self._rank = distributed.global_state.process_id or 0
        name = f"process {self._rank} ({socket.gethostname()})"
        self._own = _Seen(name, patience=60 * minutes)
        self._others = dict[str, _Seen]()
        self._depth = 0
        threading.Thread(target=self._run, daemon=True).start()

    def enter(self, change: int) -> None:
        self._depth += change
        self.beat("starting")
        self._own.watched = self._depth > 0

    def beat(self, doing: str) -> None:
        self._own.doing, self._own.still = doing, 0.0
        self._own.count += 1

    def _run(self) -> None:
        last = time.monotonic()
        while True:
            time.sleep(self._interval)
            now = time.monotonic()
            # A process that was suspended did not stand still for all that time.
            passed, last = min(now - last, 2 * self._interval), now
            self._own.still += passed
            verdict = self._talk(passed)
            if verdict is None and self._own.is_stuck():
                verdict = self._judge()
            if verdict is not None:
                self._end(verdict)

    def _talk(self, passed: float) -> str | None:
        """Tells the others of this process; returns what one of them has found."""
        if self._client is None:
            return None
        told = dataclasses.asdict(self._own)
        key = f"{_PROGRESS}{self._rank}"
        try:
            self._client.key_value_set(key, json.dumps(told), allow_overwrite=True)
            entries = dict(self._client.key_value_dir_get("covjax"))
        except Exception:  # the service is gone: JAX itself ends this process
            return None
        for name, text in entries.items():
            if name.startswith(_PROGRESS) and name != key:
                new, old = _Seen(**json.loads(text)), self._others.get(name)
                moved = old is None or old.count != new.count
                new.still = 0.0 if moved or old is None else old.still + passed
                self._others[name] = new
        return entries.get(_STUCK)

    def _judge(self) -> str | None:
        """Returns what is wrong, if those that are furthest behind do not move."""
        everybody = [self._own, *self._others.values()]
        least = min(one.count for one in everybody)
        behind = [one for one in everybody if one.count == least]
        if not all(one.is_stuck() for one in behind):
            return None
        culprits = " and ".join(f"{one.name}, while {one.doing}" for one in behind)
        return (
            f"stuck for {self._own.still / 60:.3g} minutes: {culprits}. What is whole"
            " stays: the same command goes on from the newest checkpoint"
            f" ({VARIABLE}=N waits N minutes, 0 for ever)"
        )

    def _end(self, verdict: str) -> None:
        with contextlib.suppress(Exception):  # another one was faster
            if self._client is not None:
                self._client.key_value_set(_STUCK, verdict)
        hosts.be_silent()
        print(f"covjax: {verdict}", file=sys.stderr, flush=True)
        if self._client is not None:  # until the others have read it, from process 0
            time.sleep((3 if self._rank == 0 else 2) * self._interval)
        for child in multiprocessing.active_children():
            child.kill()  # one that is stopped would not end with this process
        hosts.abandon(1)


_watchdog: _Watchdog | None = None


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """While entered, this process has to `beat`, or it is ended after some minutes.

    20, or those that the environment variable `VARIABLE` names; 0 turns this off.

    Raises:
      UsageError: if the variable is no number.
    """
    global _watchdog
    minutes = _minutes()
    if not minutes:
        yield
        return
    if _watchdog is None:
        _watchdog = _Watchdog(minutes)
    _watchdog.enter(1)
    try:
        yield
    finally:
        _watchdog.enter(-1)


def beat(doing: str) -> None:
    """Says that this process has come further, and what it is doing now.

    All processes of a run beat at the same places: counts tell who is behind.

    Args:
      doing: "loading images", for the line of one that is stuck there.
    """
    if _watchdog is not None:
        _watchdog.beat(doing)


def _minutes() -> float:
    text = os.environ.get(VARIABLE, "") or str(_MINUTES)
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1
    if not 0 <= minutes < float("inf"):
        raise UsageError(f"{VARIABLE}={text}: must be a number of minutes, 0 or more")
    return minutes
