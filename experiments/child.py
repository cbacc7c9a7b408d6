"""One run, as a child process of its own: a crash costs that run alone.

Its log is locked while any process of it lives, also beyond the end of the one that
started it, so that no run is ever trained twice at the same moment.
"""

import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from covjax.runtime.files import write_whole
from covjax.train import run_folder
from covjax.train.metric_writer import read_metrics
from experiments.plan import Run

SPLIT = "val"


class Busy(Exception):
    """Another process is at work on the run."""


def is_finished(run: Run) -> bool:
    """Tells whether a run of this config was trained to its end and evaluated on Val.

    Raises:
      UsageError: if its folder holds something else.
    """
    run_folder.check(run.folder, run.config)
    # The page comes last: without it, some region of interest may still be missing.
    files = (f"results/{SPLIT}.json", "report.html")
    if not all((run.folder / file).exists() for file in files):
        return False
    # A run that was stopped may have been evaluated, too.
    epochs = [line for line in read_metrics(run.folder) if line["split"] == SPLIT]
    return len(epochs) >= run.config.train.epochs


class Child:
    """The process of a run; what it prints goes to the run's log."""

    def __init__(
        self,
        run: Run,
        *,
        environment: Mapping[str, str] | None = None,
        cores: Iterable[int] = (),
        at_once: int = 1,
    ):
        """Starts it.

        Args:
          run: which.
          environment: variables of its own, beside those of this process.
          cores: that it may use; none: all.
          at_once: how many runs share the machine; noted beside the minutes.

        Raises:
          Busy: if a process of this run is alive.
        """
        self.run, self._at_once = run, at_once
        run.log.parent.mkdir(parents=True, exist_ok=True)
        self._log = run.log.open("ab")
        try:
            fcntl.flock(self._log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._log.close()
            raise Busy from None
        self._since = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, *run.command],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=os.environ | dict(environment or {}),
            # Ctrl-C goes to a whole group: it would get that, and ours as a second one.
            start_new_session=True,
        )
        # Before it has threads, which get the cores of the one that starts them.
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self._process.pid, cores)

    def poll(self) -> int | None:
        """Returns the exit status; None while it runs."""
        status = self._process.poll()
        if status is not None:
            self._end()
        return status

    def wait(self) -> int:
        """Waits for the end, and returns the exit status."""
        self._process.wait()
        self._end()
        return self._process.returncode

    def send(self, number: int) -> None:
        """Passes a signal on; a first SIGINT or SIGTERM has it write a checkpoint."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def end(self) -> None:
        """Ends it at once, if it is alive."""
        self.send(signal.SIGKILL)
        self.wait()

    @property
    def minutes(self) -> float:
        """Wall-clock since the start."""
        return (time.monotonic() - self._since) / 60

    def _end(self) -> None:
        if self._log.closed:
            return
        self._log.close()
        told = read_record(self.run)
        minutes = told.get("minutes", 0.0) + self.minutes
        machines = dict.fromkeys([*told.get("machines", []), describe_machine()])
        at_once = max(self._at_once, told.get("at_once", 1))
        write_record(
            self.run, minutes=minutes, machines=list(machines), at_once=at_once
        )


def read_record(run: Run) -> dict[str, Any]:
    """Returns what the runner knows of a run.

    "minutes": wall-clock of its processes, those that were stopped included;
    "machines": where they ran; "at_once": the most runs that shared one; "job": the
    last one on a cluster; "parameters": of the network.
    """
    try:
        return json.loads(run.record.read_text())
    except (OSError, ValueError):
        return {}


def write_record(run: Run, **values: Any) -> None:
    """Changes some of what the runner knows of a run."""
    told = read_record(run) | values
    write_whole(run.record, json.dumps(told, indent=1) + "\n")


def last_words(log: Path) -> str:
    """Returns the last line of a log that is not empty."""
    try:
        lines = log.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def describe_machine() -> str:
    """Returns processor, cores and accelerators; JAX need not look for devices."""
    names = [
        line.partition(":")[2].strip()
        for line in _lines(Path("/proc/cpuinfo"))
        if line.startswith("model name")
    ]
    name = names[0] if names else platform.processor() or platform.machine()
    parts = [f"{name}, {os.cpu_count()} cores"]
    cards = Path("/proc/driver/nvidia/gpus").glob("*/information")
    models = [line for card in cards for line in _lines(card) if "Model" in line]
    parts += sorted({line.partition(":")[2].strip() for line in models})
    return "; ".join(parts)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
