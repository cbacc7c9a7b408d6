"""Runs on this machine, several at once, each on its share of it.

The rule: with one job, a run sees the whole machine. With more, each sees one
accelerator, where there are some; else the cores are dealt out among the jobs.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from covjax.errors import UsageError
from covjax.runtime.signals import Interrupt, Interrupted
from experiments.child import Busy, Child, is_finished, last_words
from experiments.plan import Run

_PAUSE = 0.2  # seconds between two looks at the children


@dataclasses.dataclass(frozen=True)
class Share:
    """What one job sees of the machine.

    Attributes:
      environment: variables that say so to JAX.
      cores: that it may use; none: all.
    """

    environment: dict[str, str]
    cores: frozenset[int] = frozenset()


def share_machine(jobs: int) -> list[Share]:
    """Deals the machine out among jobs, [jobs].

    Raises:
      UsageError: if there are accelerators, but fewer than jobs.
    """
    if jobs == 1:
        return [Share({})]
    gpus, chips = _numbers("/dev/nvidia"), _numbers("/dev/accel")
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        gpus = chips = []
    elif "CUDA_VISIBLE_DEVICES" in os.environ:
        gpus = [n for n in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if n]
    found = gpus or chips
    if found and jobs > len(found):
        raise UsageError(
            f"--jobs={jobs}: this machine has {len(found)} accelerator(s), and each"
            " run needs its own (JAX_PLATFORMS=cpu leaves them out)"
        )
    if gpus:
        return [Share({"CUDA_VISIBLE_DEVICES": n}) for n in gpus[:jobs]]
    if chips:
        one = {
            "TPU_PROCESS_BOUNDS": "1,1,1",
            "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
        }
        return [Share({"TPU_VISIBLE_CHIPS": n} | one) for n in chips[:jobs]]
    cores = _cores()
    return [Share({}, frozenset(cores[k::jobs] or cores)) for k in range(jobs)]


def _numbers(device: str) -> list[str]:
    path = Path(device)
    names = (p.name.removeprefix(path.name) for p in path.parent.glob(f"{path.name}*"))
    return sorted((n for n in names if n.isdigit()), key=int)


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def run_here(
    runs: Sequence[Run], *, jobs: int, say: Callable[[str], None] = print
) -> list[Run]:
    """Runs what is not finished, in the order given, `jobs` at once.

    Args:
      runs: a run of stage 1 before those that need it.
      jobs: how many at once.
      say: what is told a line a run.

    Returns:
      The runs that failed, or were not started because their stage 1 failed.

    Raises:
      Interrupted: after SIGINT or SIGTERM, once the children have ended.
      UsageError: if `jobs` are more than the machine's accelerators.
    """
    queue = _Queue(runs, share_machine(jobs), say)
    with Interrupt() as interrupt:
        try:
            while queue.is_open() and not interrupt.number:
                queue.advance()
                time.sleep(_PAUSE)
            if interrupt.number:
                left = queue.stop(interrupt.number)
                raise Interrupted(
                    interrupt.number,
                    f"stopped by signal {interrupt.number}, {left} of {len(runs)} runs"
                    " are left; the same command goes on from there",
                )
        finally:  # a second signal, or an error of ours: no child is left behind
            queue.end()
    return queue.failed


class _Queue:
    """Runs that wait, those at work, and what is said of them."""

    def __init__(
        self, runs: Sequence[Run], shares: list[Share], say: Callable[[str], None]
    ):
        self.failed: list[Run] = []
        self._total, self._shares, self._say = len(runs), shares, say
        self._finished = {run.folder for run in runs if is_finished(run)}
        self._waiting = [run for run in runs if run.folder not in self._finished]
        self._children: dict[int, Child] = {}  # by the number of their share
        self._busy: set[Path] = set()  # folders at which another process was seen
        self._minutes: list[float] = []  # of each run that was finished here
        if self._finished:
            say(f"{len(self._finished)} of {self._total} runs were finished before")

    def is_open(self) -> bool:
        return bool(self._waiting or self._children)

    def advance(self) -> None:
        """Takes note of children that have ended, and starts what can be."""
        for slot, child in list(self._children.items()):
            status = child.poll()
            if status is not None:
                del self._children[slot]
                self._note_end(child, status)
        for run in list(self._waiting):
            free = [k for k in range(len(self._shares)) if k not in self._children]
            if free:
                self._try_to_start(run, free[0])

    def stop(self, number: int) -> int:
        """Passes a signal on and waits; returns how many runs are left."""
        if self._children:
            self._say(f"signal {number}: runs at work write a checkpoint, then end")
        for child in self._children.values():
            child.send(number)
        left = len(self._waiting)
        for child in self._children.values():
            child.wait()
            left += not is_finished(child.run)
        return left

    def end(self) -> None:
        for child in self._children.values():
            child.end()

    def _try_to_start(self, run: Run, slot: int) -> None:
        if run.lung and run.lung.folder not in self._finished:
            if any(run.lung.folder == failed.folder for failed in self.failed):
                self._waiting.remove(run)
                self.failed.append(run)
                self._tell("FAILED", run, "not started, as its run of stage 1 failed")
            return
        if run.folder in self._busy and is_finished(run):
            self._waiting.remove(run)
            self._finished.add(run.folder)
            self._tell("finished", run, "by another process")
            return
        share = self._shares[slot]
        try:
            child = Child(
                run,
                environment=share.environment,
                cores=share.cores,
                at_once=len(self._shares),
            )
        except Busy:
            if run.folder not in self._busy:
                self._busy.add(run.folder)
                self._tell("waits", run, "another process is at work on it")
            return
        self._waiting.remove(run)
        self._children[slot] = child
        self._tell("started", run, str(run.log))

    def _note_end(self, child: Child, status: int) -> None:
        run = child.run
        if status == 0 and is_finished(run):
            self._finished.add(run.folder)
            self._minutes.append(child.minutes)
            self._tell("finished", run, f"{child.minutes:.1f} min{self._rest()}")
        else:
            self.failed.append(run)
            why = last_words(run.log)
            self._tell("FAILED", run, f"exit status {status}, see {run.log}: {why}")

    def _rest(self) -> str:
        left = len(self._waiting) + len(self._children)
        if not left:
            return ""
        each = sum(self._minutes) / len(self._minutes)
        return f"; {left} left, about {left * each / len(self._shares):.0f} min"

    def _tell(self, what: str, run: Run, more: str) -> None:
        ended = self._total - len(self._waiting) - len(self._children)
        self._say(f"[{ended}/{self._total}] {what:8}  {run.label}: {more}")
