"""Several processes as one run, on tiny phantoms: equal to one, stopped, killed.

  python -m experiments.faults.hosts [--folder=DIR] [--only=WORDS]

Two processes of two virtual devices, which meet over loopback, against one process of
four: both stages, with lungs found by the first, training and evaluation; stage 1 also
on one device, two and eight, and begun on eight, then gone on with on two and one. Then
the two get a signal, one of them alone or both at different steps, and one of them is
killed in training or evaluation, or frozen, as a machine that is gone; the same command
goes on, and has to end in the bits of the run that nobody disturbed. Last, one of the
two stays alive and fails: its command is another, its disk does not answer, an image
cannot be read or takes for ever; and a process that loads images is killed or stopped.
All have to end with a line, and what is whole has to stay. `--only=alive` runs these
alone. The last line is a JSON object of counts; the exit status is 1 if anything
failed. About thirty minutes on two cores.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from covjax.runtime.distributed import LOST
from covjax.runtime.watchdog import VARIABLE
from covjax.train.checkpoint import FOLDER, best_of, read_variables
from covjax.train.metric_writer import METRICS, read_metrics

PROJECT = Path(__file__).parents[2]
SMALL = (
    "--config.data.phantom_images=(24, 8, 12)",
    "--config.data.image_size=32",
    "--config.model.width=4",
    "--config.model.depth=2",
    "--config.train.batch_size=8",
    "--config.train.log_every=1",
)
_STEPS_PER_EPOCH = 3
# Names → processes and devices of each, the first of which the others are compared to.
_TWO_AND_ONE = {"two": (2, 2), "one": (1, 4)}
_LAYOUTS = _TWO_AND_ONE | {f"alone-{n}": (1, n) for n in (1, 2, 8)}
_LIMIT = 300  # seconds that a process may take
# Rounding: sums are taken in another order. The loss hardly shows it; but a ReLU at 0
# is open or shut, and so is a part of one step's gradient (of its norm .047, in one of
# 72 steps on 2 and 8 devices against 1 and 4); Adam divides by the size of a gradient,
# so that of one that is all rounding a sign is left; and a pixel at the threshold falls
# to the one side or the other.
TOLERANCES = {"loss": 5e-4, "grad_norm": 0.1, "metrics": 5e-3}
TOLERANCES |= {"parameters": 2e-2, "pixels": 4e-3}


# What a program does before it is covjax.main; and how it becomes that.
_FIRST = """
import errno, os, sys, time
rank = next((int(a[13:]) for a in sys.argv if a.startswith("--process_id=")), 0)
"""
_THEN = """
import runpy
runpy.run_module("covjax.main", run_name="__main__", alter_sys=True)
"""
_STALE = """
import orbax.checkpoint as ocp
def fail(*_, **__):
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "d/1")
ocp.CheckpointManager.restore = fail
"""
_COUNTED = """
from covjax.data import pipeline
read, calls = pipeline.ReadAugmented.__call__, []
def counted(self, key):
    # The last of its images in epoch 3: the step before that batch ends no epoch.
    if key[0] == 3:
        calls.append(key)
    if len(calls) == 12 and key is calls[-1] and rank == victim:
        {}
    return read(self, key)
pipeline.ReadAugmented.__call__ = counted
"""
_UNREADABLE = _COUNTED.format(
    'raise OSError(errno.EIO, os.strerror(errno.EIO), "x.png")'
)
_ENDLESS = _COUNTED.format("time.sleep(10_000)")


class Group:
    """Processes of one run, which are ended with the `with` that holds them."""

    def __init__(
        self,
        cwd: Path,
        flags: Sequence[str],
        *,
        processes: int = 2,
        devices: int = 2,
        program: Sequence[str] = ("-m", "covjax.main"),
    ):
        """Starts them.

        Args:
          cwd: a folder that stands for the project's.
          flags: of the command line, the same for all.
          processes: 1 or more.
          devices: virtual CPU devices of each.
          program: what Python is to run.
        """
        others = os.environ.get("XLA_FLAGS", "").split()
        others = [flag for flag in others if "host_platform_device_count" not in flag]
        count = f"--xla_force_host_platform_device_count={devices}"
        env = {"JAX_COMPILATION_CACHE_DIR": str(cwd / "xla")} | os.environ
        env |= {"PYTHONPATH": str(PROJECT), "JAX_PLATFORMS": "cpu"}
        env |= {"XLA_FLAGS": " ".join([*others, count])}
        env.pop("COVJAX_DATA", None)
        self._outputs, self.processes = [], list[subprocess.Popen[bytes]]()
        self._held = hold_port()
        port = self._held.getsockname()[1]
        for rank in range(processes):
            by_hand = (
                f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}",
                f"--process_id={rank}",
            ) if processes > 1 else ()  # fmt: skip
            # A file takes all that is said, while nobody reads it.
            self._outputs.append(tempfile.TemporaryFile())
            process = subprocess.Popen(
                [sys.executable, *program, *flags, *by_hand],
                cwd=cwd,
                env=env,
                stdout=self._outputs[-1],
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.processes.append(process)

    def __enter__(self) -> "Group":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kills what is left of them, and of what they started."""
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        for output in self._outputs:
            output.close()
        self._held.close()

    def said(self, rank: int) -> str:
        """Returns what a process has printed so far."""
        output = self._outputs[rank].fileno()
        # Without moving the place where the process writes on.
        return os.pread(output, os.fstat(output).st_size, 0).decode(errors="replace")

    def wait(self) -> list[int]:
        """Returns the exit statuses, once all have ended.

        Raises:
          subprocess.TimeoutExpired: if one does not.
        """
        return [process.wait(_LIMIT) for process in self.processes]

    def finish(self, *statuses: int) -> None:
        """Waits for the end.

        Raises:
          AssertionError: with what was said, if the statuses are others.
        """
        found = self.wait()
        # The cause stands at the start: what follows is each process's last words.
        told = "\n".join(_shorten(self.said(rank)) for rank in range(len(found)))
        assert found == list(statuses), f"{found}, not {list(statuses)}:\n{told}"

    def wait_for_words(self, rank: int, words: str) -> None:
        """Waits for what the companion of an ended process says, which outlives it.

        Raises:
          AssertionError: if it does not say so in a minute.
        """
        deadline = time.monotonic() + 60
        while words not in self.said(rank):
            assert time.monotonic() < deadline, self.said(rank)[-3000:]
            time.sleep(0.05)

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Returns once something holds, while all processes run.

        Raises:
          AssertionError: if one ends before, or it takes too long.
        """
        deadline = time.monotonic() + _LIMIT
        while not holds():
            ended = [p.poll() for p in self.processes]
            assert set(ended) == {None}, f"{ended}: {self.said(0)}\n{self.said(-1)}"
            assert time.monotonic() < deadline, "it never came"
            time.sleep(0.02)


def _shorten(text: str) -> str:
    """Returns the start and the end of what was printed."""
    return text if len(text) < 6000 else f"{text[:3000]}\n...\n{text[-3000:]}"


def hold_port() -> socket.socket:
    """Returns a socket with a free port, which stays free until that is closed.

    Nobody who asks for any port is given this one. Who is told its number may listen
    there, as this socket does not, and lets others have the same address.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def make_project(folder: Path) -> Path:
    """Makes a folder stand for the project's: configs in it, data made in it."""
    (folder / "configs").symlink_to(PROJECT / "configs")
    return folder


def newest(run: Path) -> int:
    """Returns the step of a run's newest whole checkpoint, 0 if there is none."""
    names = [path.name for path in (run / FOLDER).glob("*")]
    return max([int(name) for name in names if name.isdecimal()], default=0)


def gaps(a: Path, b: Path) -> dict[str, float]:
    """Returns by how much two runs differ at most, over all that they came to.

    Returns:
      "loss", "grad_norm": in metrics.jsonl; "metrics": of the other numbers there;
      "parameters": of parameters and batch statistics, of the newest checkpoint and of
      the best; "pixels": of the counts of an image in any table of results, as a share
      of its pixels.

    Raises:
      AssertionError: if they do not have the same checkpoints, steps and images.
    """
    assert newest(a) == newest(b), f"at step {newest(a)} and {newest(b)}"
    found = dict.fromkeys(TOLERANCES, 0.0)
    for run, other in (
        [run / FOLDER / str(newest(a)) for run in (a, b)],
        [best_of(str(run)) for run in (a, b)],
    ):
        one, two = read_variables(run), read_variables(other)
        assert jax.tree.structure(one) == jax.tree.structure(two)
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
            found["parameters"] = max(found["parameters"], float(np.abs(x - y).max()))
    for x, y in zip(read_metrics(a), read_metrics(b), strict=True):
        assert (x.keys(), x["step"]) == (y.keys(), y["step"]), f"{x}, {y}"
        for name in x.keys() - {"split"}:
            kind = name if name in TOLERANCES else "metrics"
            if x[name] is not None or y[name] is not None:
                found[kind] = max(found[kind], abs(x[name] - y[name]))
    tables = [sorted((run / "results").glob("*.csv")) for run in (a, b)]
    assert [t.name for t in tables[0]] == [t.name for t in tables[1]] != []
    for paths in zip(*tables, strict=True):
        for x, y in zip(*map(_counts, paths), strict=True):
            assert x[0] == y[0], f"{x[0]} and {y[0]} in {paths[0].name}"
            apart = max(abs(m - n) for m, n in zip(x[1], y[1], strict=True))
            found["pixels"] = max(found["pixels"], apart / sum(x[1]))
    return found


def _counts(table: Path) -> list[tuple[str, list[int]]]:
    rows = [row.split(",") for row in table.read_text().splitlines()[1:]]
    return [(row[0], [int(count) for count in row[2:6]]) for row in rows]


def check_equal(a: Path, b: Path) -> dict[str, float]:
    """Returns the `gaps` of two runs.

    Raises:
      AssertionError: if they differ by more than rounding does.
    """
    found = gaps(a, b)
    assert all(found[kind] < most for kind, most in TOLERANCES.items()), found
    return found


def check_same_bits(a: Path, b: Path) -> None:
    """Compares two runs that had the same processes and devices.

    Raises:
      AssertionError: if they did not come to the same bits.
    """
    assert not any(gaps(a, b).values()), gaps(a, b)
    for name in (METRICS, "results/test.csv"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


class _Faults:
    """The checks, and their counts."""

    def __init__(self, cwd: Path):
        self._cwd, self._runs = cwd, cwd / "runs"
        self.counts: dict[str, Any] = {"equal": 0, "stopped": 0, "killed": 0}
        self.counts |= {"refused": 0, "failing": 0}
        self.counts |= {"largest_gaps": dict.fromkeys(TOLERANCES, 0.0)}
        self.counts |= {"slowest_stop_s": 0.0, "failed": []}

    def check(self, name: str, kind: str, passes: Callable[[], None]) -> None:
        began = time.monotonic()
        try:
            passes()
        except Exception as error:  # whatever it is, the others are still to be tried
            self.counts["failed"].append(name)
            told = f"FAILED: {error}"
        else:
            self.counts[kind] += 1
            told = "passed"
        print(f"{name}: {told} ({time.monotonic() - began:.0f} s)", flush=True)

    def equal(self, stage: str, epochs: int) -> None:
        """Trains and evaluates on 2 x 2 and, each alone, on 1, 2, 4 and 8."""
        for name, layout in (_LAYOUTS if stage == "lung" else _TWO_AND_ONE).items():
            with self._start(f"{stage}-{name}", epochs, layout) as group:
                group.finish(*[0] * layout[0])
            self._compare(self._runs / f"{stage}-two", self._runs / f"{stage}-{name}")
        if stage == "infection":
            told = [
                sorted(
                    (path.name, path.read_bytes())
                    for path in (self._runs / f"lung-{name}" / "lungs").rglob("*.png")
                )
                for name in ("two", "one")
            ]
            assert len(told[0]) == 24 + 8 + 12 and told[0] == told[1], "other lungs"

    def _compare(self, a: Path, b: Path) -> None:
        largest = self.counts["largest_gaps"]
        for kind, found in check_equal(a, b).items():
            largest[kind] = max(largest[kind], found)

    def on_fewer(self) -> None:
        """Begins on 8 devices and goes on on 2, and again on 1."""
        for count in (2, 1):
            run = self._runs / f"fewer-{count}"
            with self._start(run.name, 24, (1, 8)) as group:
                group.wait_until(lambda run=run: newest(run) > 0)
                group.processes[0].send_signal(signal.SIGTERM)
                group.finish(128 + signal.SIGTERM)
            assert newest(run) < 24 * _STEPS_PER_EPOCH, "stopped too late"
            with self._start(run.name, 24, (1, count)) as group:
                group.finish(0)
                assert "resumed at step" in group.said(0)
            self._compare(self._runs / "calm", run)

    def evaluated_again(self) -> None:
        """Evaluates on 2 x 2 what was trained on 1 x 4."""
        run, results = self._runs / "lung-one", self._runs / "lung-one" / "results"
        copy = self._runs / "copy"
        shutil.copytree(run, copy)
        shutil.rmtree(copy / "results")
        flags = ("--mode=evaluate", f"--workdir={copy}")
        for split in ("test", "val"):
            with Group(self._cwd, [*flags, f"--split={split}"]) as group:
                group.finish(0, 0)
        assert {p.name for p in results.iterdir()} == {
            p.name for p in (copy / "results").iterdir()
        }
        self._compare(run, copy)

    def calm(self) -> None:
        """Trains on 2 x 2 without a fault, for the others to compare with."""
        with self._start("calm") as group:
            group.finish(0, 0)

    def stopped(self, number: int, victims: tuple[int, ...]) -> None:
        """Sends a signal to some, and goes on."""
        name = f"stopped-{number}-{len(victims)}"
        run = self._runs / name
        with self._start(name) as group:
            group.wait_until(lambda: newest(run) > 0)
            for k, victim in enumerate(victims):
                time.sleep(0.3 * k)  # not at the same step
                group.processes[victim].send_signal(number)
            statuses = group.wait()
            said = [line for line in group.said(0).splitlines() if "stopped by" in line]
        # A process that got none ends as after SIGTERM.
        allowed = {128 + number, 128 + signal.SIGTERM}
        assert set(statuses) <= allowed, statuses
        assert said and f"after step {newest(run)} of" in said[0], said
        self._goes_on(name)

    def killed(self, victim: int, when: str) -> None:
        """Takes one of the two, sees the other stop with a line, and goes on."""
        name = f"killed-{victim}-{when.replace(' ', '-')}"
        run = self._runs / name
        with self._start(name) as group:
            if when == "in evaluation":
                group.wait_until(lambda: "Test, 12 images" in group.said(0))
            else:
                group.wait_until(lambda: newest(run) > 0)
            # A frozen process is as a machine that is gone: no connection is closed.
            number = signal.SIGSTOP if when == "frozen" else signal.SIGKILL
            group.processes[victim].send_signal(number)
            began = time.monotonic()
            status = group.processes[1 - victim].wait(60)
            took = time.monotonic() - began
            group.processes[victim].kill()
            group.processes[victim].wait()
            group.wait_for_words(1 - victim, LOST)
            said = group.said(1 - victim)
        self.counts["slowest_stop_s"] = max(self.counts["slowest_stop_s"], took)
        assert status not in (0, None), status
        assert "Traceback" not in said, said[-3000:]
        self._goes_on(name)

    def refused(self, flag: str) -> None:
        """Starts two of which the second has another flag."""
        code = f"if rank: sys.argv.append({flag!r})"
        with self._start("refused", program=code) as group:
            group.finish(2, 2)
            name = flag.partition("=")[0]
            for rank in (0, 1):
                assert f"the processes differ in {name[2:]} (" in group.said(rank)
        assert not (self._runs / "refused").exists()

    def disk_fails(self, victim: int, code: str) -> None:
        """Goes on with a run whose checkpoints one of the two cannot read."""
        name = f"disk-{victim}"
        shutil.copytree(self._half(), self._runs / name)
        code = f"if rank == {victim}:\n" + textwrap.indent(code, "    ")
        with self._start(name, program=code) as group:
            if victim:  # the main process alone reads them
                group.finish(0, 0)
                assert "resumed at step" in group.said(0)
            else:
                group.finish(1, 1)
                for rank in (0, 1):
                    assert "Stale file handle), which says nothing" in group.said(rank)
        assert not (self._runs / name / "damaged").exists()
        if not victim:
            self._goes_on(name)

    def images_fail(self, victim: int) -> None:
        """Has one of the two fail to read an image, and goes on."""
        name = f"images-{victim}"
        with self._start(name, program=f"victim = {victim}\n{_UNREADABLE}") as group:
            group.finish(1, 1)
            for rank in (0, 1):
                assert "x.png: Input/output error." in group.said(rank)
            assert f"process {victim} (" in group.said(1 - victim)
        step = newest(self._runs / name)
        assert step % _STEPS_PER_EPOCH, f"no checkpoint within an epoch, but {step}"
        self._goes_on(name)

    def stuck(self, victim: int) -> None:
        """Has one of the two wait for an image for ever, and goes on."""
        name = f"stuck-{victim}"
        code = f"victim = {victim}\n{_ENDLESS}"
        with self._start(name, program=code, minutes=2) as group:
            group.finish(1, 1)
            for rank in (0, 1):
                said = group.said(rank)
                assert f"minutes: process {victim} (" in said, said[-3000:]
                assert "while loading images. What is" in said
        self._goes_on(name)

    def worker(self, number: int) -> None:
        """Kills or stops a process that loads images, and goes on."""
        name = f"worker-{number}"
        run, more = self._runs / name, ("--config.data.workers=2",)
        with self._start(name, 2000, (1, 4), minutes=2, flags=more) as group:
            group.wait_until(lambda: newest(run) > 0)
            parent = group.processes[0].pid
            os.kill(_loading(parent)[0], number)
            group.finish(1)
            said = group.said(0)
        stopped = "while loading images. What is whole stays"
        killed = "a process that loads images was ended from outside (signal 9)"
        assert (stopped if number == signal.SIGSTOP else killed) in said, said[-3000:]
        assert "Traceback" not in said, said[-3000:]
        deadline = time.monotonic() + 20
        while left := _in_session(parent):
            assert time.monotonic() < deadline, f"processes {left} are left"
            time.sleep(0.1)
        before = newest(run)
        with self._start(name, 2000, (1, 4), flags=more) as group:
            group.wait_until(lambda: newest(run) > before)
            group.processes[0].send_signal(signal.SIGTERM)
            group.finish(128 + signal.SIGTERM)

    def _half(self) -> Path:
        """Returns a run of 2 x 2 that was stopped; made once."""
        run = self._runs / "half"
        if not run.exists():
            with self._start("half") as group:
                group.wait_until(lambda: newest(run) > 0)
                group.processes[0].send_signal(signal.SIGTERM)
                group.finish(128 + signal.SIGTERM, 128 + signal.SIGTERM)
        return run

    def _start(
        self,
        name: str,
        epochs: int = 24,
        layout: tuple[int, int] = (2, 2),
        *,
        program: str = "",
        minutes: float = 20,
        flags: Sequence[str] = (),
    ) -> Group:
        more = flags
        flags = [f"--config=configs/{_task(name)}.py:phantom", *SMALL]
        flags += [f"--config.train.epochs={epochs}", f"--workdir=runs/{name}"]
        if _task(name) == "infection":
            flags += [f"--init_from=runs/{name.replace('infection', 'lung')}"]
            flags += ["--config.data.roi=predicted"]
        command = ("-c", _FIRST + program + _THEN) if program else ("-m", "covjax.main")
        os.environ[VARIABLE] = str(minutes)
        return Group(
            self._cwd, [*flags, *more], processes=layout[0], devices=layout[1],
            program=command,
        )  # fmt: skip

    def _goes_on(self, name: str) -> None:
        if not (self._runs / "calm").exists():
            self.calm()
        with self._start(name) as group:
            group.finish(0, 0)
            assert "resumed at step" in group.said(0)
        run, calm = self._runs / name, self._runs / "calm"
        assert newest(run) == 24 * _STEPS_PER_EPOCH
        steps = [line["step"] for line in read_metrics(run) if line["split"] == "train"]
        assert steps == list(range(1, newest(run) + 1)), "not each step once"
        check_same_bits(run, calm)


def _loading(parent: int) -> list[int]:
    """Returns the processes that load training images for another."""
    folders = Path(f"/proc/{parent}/task").glob("*/children")
    children = sorted(int(pid) for path in folders for pid in path.read_text().split())
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in children}
    return [pid for pid in children if "spawn_main" in commands[pid]]


def _in_session(leader: int) -> list[int]:
    """Returns the processes of a session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                found.append(int(path.parent.name))
    return found


def _task(name: str) -> str:
    return "infection" if name.startswith("infection") else "lung"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the checks; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.faults.hosts")
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one")
    parser.add_argument("--only", default="", help="checks whose names hold this")
    flags = parser.parse_args(argv)
    folder = flags.folder
    with tempfile.TemporaryDirectory(prefix="covjax-hosts-") as temporary:
        cwd = folder or Path(temporary)
        cwd.mkdir(parents=True, exist_ok=True)
        faults = _Faults(make_project(cwd.absolute()))

        def check(name: str, kind: str, passes: Callable[[], None]) -> None:
            if flags.only in name:
                faults.check(name, kind, passes)

        check("stage 1 on any devices", "equal", lambda: faults.equal("lung", 7))
        check("stage 2, 2 x 2 and 1 x 4", "equal", lambda: faults.equal("infection", 3))
        check("evaluated on 2 x 2", "equal", faults.evaluated_again)
        check("undisturbed on 2 x 2", "equal", faults.calm)
        check("begun on 8, gone on on 2 and on 1", "equal", faults.on_fewer)
        for number, victims in (
            (signal.SIGTERM, (1,)), (signal.SIGINT, (0,)), (signal.SIGTERM, (0, 1)),
        ):  # fmt: skip
            check(
                f"{signal.Signals(number).name} to {victims}", "stopped",
                lambda n=number, v=victims: faults.stopped(n, v),
            )  # fmt: skip
        for victim, when in (
            (1, "in training"), (0, "in training"), (1, "in evaluation"), (1, "frozen"),
        ):  # fmt: skip
            check(
                f"process {victim} killed, {when}", "killed",
                lambda v=victim, w=when: faults.killed(v, w),
            )  # fmt: skip
        for flag in ("--config.seed=5", "--config.train.batch_size=4"):
            check(f"alive: {flag} for one", "refused", lambda f=flag: faults.refused(f))
        for victim in (0, 1):
            check(
                f"alive: checkpoints that process {victim} cannot read", "failing",
                lambda v=victim: faults.disk_fails(v, _STALE),
            )  # fmt: skip
            check(
                f"alive: an image that process {victim} cannot read", "failing",
                lambda v=victim: faults.images_fail(v),
            )  # fmt: skip
        check("alive: process 1 is stuck", "failing", lambda: faults.stuck(1))
        for number in (signal.SIGKILL, signal.SIGSTOP):
            check(
                f"alive: {signal.Signals(number).name} to a loading process", "failing",
                lambda n=number: faults.worker(n),
            )  # fmt: skip
    print(json.dumps(faults.counts))
    return 1 if faults.counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
