"""Kills a command at random moments and gives it again, until it is done.

What it leaves must be what an undisturbed command leaves: the same files with the same
content, and no other. The parts kill_*.py say which commands.
"""

import argparse
import collections
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

PROJECT = Path(__file__).parents[2]
PATIENCE = 300  # seconds that a process may take
OUT = "out"  # folder of the outputs, below the working folder
_A_ROUND = 6  # kills of one folder, at most


@dataclasses.dataclass(frozen=True)
class Command:
    """A command whose outputs must not depend on how often it was killed.

    Attributes:
      name: in the counts.
      words: what stands behind `python -m`. Its outputs go to the folder `OUT`.
      prepare: makes the inputs in a new working folder.
      read: returns the content of an output, without what differs between two runs.
      status: with which it ends.
    """

    name: str
    words: tuple[str, ...]
    prepare: Callable[[Path], None]
    read: Callable[[Path], bytes] = Path.read_bytes
    status: int = 0


@dataclasses.dataclass(frozen=True)
class Calm:
    """What an undisturbed command did: outputs by path, and seconds."""

    outputs: Mapping[str, bytes]
    seconds: float
    writing: float


def main(name: str, commands: Sequence[Command], kills: int) -> int:
    """Runs the campaigns of one part; returns the exit status.

    Args:
      name: of the part.
      commands: to be killed in turns.
      kills: default of --kills, of all commands together.
    """
    parser = argparse.ArgumentParser(prog=f"python -m experiments.faults.{name}")
    parser.add_argument("--kills", type=int, default=kills, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    counts, faults, began = collections.Counter[str](), list[str](), time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"covjax-{name}-") as folder:
        for k, command in enumerate(commands):
            wanted = (given.kills + k) // len(commands)
            cwd = Path(folder) / command.name
            done, found = run_campaign(command, cwd, wanted, rng)
            counts += done
            faults += found
            print(
                f"{command.name}: {len(found)} faults",
                done.total(),
                "kills",
                flush=True,
            )
    for fault in faults:
        print(fault)
    told = {"survived": counts.total(), "at": dict(counts), "faults": len(faults)}
    told["seconds"] = round(time.monotonic() - began)
    print(json.dumps({name: told}))
    return int(bool(faults))


def run_campaign(
    command: Command, folder: Path, wanted: int, rng: np.random.Generator
) -> tuple[collections.Counter[str], list[str]]:
    """Kills a command so often, and compares what it leaves when it has ended.

    Returns:
      Kills by moment; and what is wrong, a line each.
    """
    calm = run_calm(command, folder / "calm")
    kills, rounds = collections.Counter[str](), 0
    while kills.total() < wanted:
        cwd = folder / f"round-{rounds}"
        rounds += 1
        cwd.mkdir()
        command.prepare(cwd)
        for _ in range(min(_A_ROUND, wanted - kills.total())):
            moment = str(rng.choice(["at any time", "while it writes"], p=[0.3, 0.7]))
            if not run_killed(command, cwd, calm, moment, rng):
                break
            kills[f"{command.name} {moment}"] += 1
        status, said = run(command, cwd)
        if status != command.status:
            return kills, [f"{cwd}: status {status}: {said[-1500:]}"]
        if faults := differences(calm.outputs, read_outputs(command, cwd)):
            return kills, [f"{cwd}: {fault}" for fault in faults]
        if rounds > 2 * wanted:
            return kills, [f"{command.name}: ends before it can be killed"]
    return kills, []


def run_calm(command: Command, cwd: Path) -> Calm:
    """Runs a command undisturbed, in a new folder.

    Raises:
      RuntimeError: if it does not end as it should.
    """
    for warm in (True, False):  # the first one fills caches of compiled programs
        where = cwd / str(warm)
        where.mkdir(parents=True)
        command.prepare(where)
        began, process = time.monotonic(), start(command, where)
        before = wrote = None
        while process.poll() is None and time.monotonic() < began + PATIENCE:
            before, now = before or listing(where), listing(where)
            if wrote is None and now != before:
                wrote = time.monotonic()
            time.sleep(0.002)
        ended, status = time.monotonic(), finish(process, 1)
        if status != command.status:
            raise RuntimeError(f"{command.name}: {_said(where)[-2000:]}")
    outputs = read_outputs(command, where)
    return Calm(outputs, ended - began, ended - (wrote or began))


def run_killed(
    command: Command, cwd: Path, calm: Calm, moment: str, rng: np.random.Generator
) -> bool:
    """Starts a command and kills it at a moment; returns False if it ended before.

    Half of the times its workers are killed with it; else they have to end themselves.
    """
    writing, alone = moment == "while it writes", rng.random() < 0.5
    wait = rng.uniform(0, calm.writing if writing else calm.seconds)
    before, process = listing(cwd), start(command, cwd)
    began = None if writing else time.monotonic()
    while process.poll() is None:
        if began is None and listing(cwd) != before:
            began = time.monotonic()
        if began is not None and time.monotonic() >= began + wait:
            (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
            return process.wait() == -signal.SIGKILL
        time.sleep(0.001)
    return False


def run(command: Command, cwd: Path) -> tuple[int, str]:
    """Runs a command to its end; returns its status and what it printed."""
    (cwd / "log").unlink(missing_ok=True)
    return finish(start(command, cwd)), _said(cwd)


def start(command: Command, cwd: Path) -> subprocess.Popen[bytes]:
    """Starts a command on the CPU; what it prints is added to `cwd`/log."""
    with (cwd / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *command.words],
            cwd=cwd, env=environment(cwd.parents[1]), stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def environment(caches: Path) -> dict[str, str]:
    """Returns the variables of a command on the CPU, with its caches in a folder."""
    paths = (str(PROJECT), os.environ.get("PYTHONPATH"))
    told = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(caches / "xla"),
        "COVJAX_CACHE": str(caches / "cache"),
    }
    told.pop("XLA_FLAGS", None)
    return told


def finish(process: subprocess.Popen[bytes], patience: float = PATIENCE) -> int:
    """Returns the exit status of a process; one that hangs is killed, and has -9."""
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def listing(cwd: Path) -> set[tuple[str, int]]:
    """Returns names and inodes of all outputs, which a replacement changes."""
    found, folders = set(), [cwd / OUT]
    while folders:
        try:
            for entry in os.scandir(folders.pop()):
                found.add((entry.path, entry.inode()))
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
        except FileNotFoundError:  # not yet there, or moved meanwhile
            continue
    return found


def read_outputs(command: Command, cwd: Path) -> dict[str, bytes]:
    """Returns the content of all files below `OUT`, hidden ones too, and of links."""
    outputs = {}
    for path in sorted((cwd / OUT).rglob("*")):
        if path.is_symlink():
            content = os.fsencode(os.readlink(path))
        elif path.is_file():
            content = command.read(path)
        else:
            continue
        name = path.relative_to(cwd).as_posix()
        outputs[name] = content.replace(os.fsencode(cwd), b"")
    return outputs


def differences(wanted: Mapping[str, bytes], found: Mapping[str, bytes]) -> list[str]:
    """Returns how outputs differ from those of an undisturbed command, a line each."""
    return (
        [f"{name} is missing" for name in wanted if name not in found]
        + [f"{name} was left over" for name in found if name not in wanted]
        + [
            f"{name} differs"
            for name in wanted
            if name in found and wanted[name] != found[name]
        ]
    )


def _said(cwd: Path) -> str:
    return (cwd / "log").read_text(errors="replace")
