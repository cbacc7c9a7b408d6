"""Kills a run again and again, at any moment: it has to end in the same bits.

  python -m experiments.faults.kills [--kills=50] [--seed=0] [--folder=DIR]

JAX_PLATFORMS=cuda before it puts the runs on a GPU, where only
XLA_FLAGS=--xla_gpu_deterministic_ops=true promises the same bits.

Both stages are run undisturbed on a few phantoms. Then the same two are run in a new
folder, and killed (kill -9) while the data is made, in start-up, in the transfer, in
steps, while a checkpoint is written, in the evaluation; each time the same command goes
on. When both have ended, all that they left is compared with the undisturbed ones, and
every file is read. So on with new folders, until as many kills are done as were asked.
Ends with a line of JSON; status 1 if anything differs or is torn.
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
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from experiments.faults.same_run import compare_runs, find_torn

PROJECT = Path(__file__).parents[2]
SMALL = (
    "--config.data.phantom_images=(24, 8, 8)",
    "--config.data.image_size=32",
    "--config.model.width=4",
    "--config.model.depth=2",
    "--config.train.batch_size=8",
    "--config.train.log_every=1",
    "--config.train.epochs=6",
    "--config.train.checkpoint_every=2",
)
STAGES = {
    "runs/lung": ("--config=configs/lung.py:phantom",),
    "runs/infection": (
        "--config=configs/infection.py:phantom",
        "--init_from=runs/lung",
        "--config.data.roi=predicted",
    ),
}
PATIENCE = 300  # seconds that a process may take


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a run is killed.

    Attributes:
      begins: tells from the run's folder and from what was printed that it has come.
      within: seconds; the kill comes at random within so many.
    """

    begins: Callable[[Path, str], bool]
    within: float


MOMENTS = {
    "at the start": Moment(lambda run, said: True, 4.0),
    "first files": Moment(lambda run, said: (run / ".lock").exists(), 1.0),
    "transfer": Moment(
        lambda run, said: "leaves from" in said or "finding the lungs" in said, 0.5
    ),
    "steps": Moment(lambda run, said: "images are augmented" in said, 3.0),
    "a checkpoint": Moment(
        lambda run, said: any((run / "checkpoints").glob("*.orbax-checkpoint-tmp*")),
        0.05,
    ),
    "evaluation": Moment(lambda run, said: "Val, " in said, 3.0),
}


def start(cwd: Path, stage: str) -> subprocess.Popen[bytes]:
    """Starts a stage as a user would, in a folder that stands for the project's."""
    return start_command(cwd, f"--workdir={stage}", *STAGES[stage], *SMALL)


def start_command(cwd: Path, *flags: str) -> subprocess.Popen[bytes]:
    """Starts covjax.main; what it prints is added to `cwd`/log.

    It runs on one CPU device, or on what `JAX_PLATFORMS` names, with `XLA_FLAGS`.
    """
    paths = (str(PROJECT), os.environ.get("PYTHONPATH"))
    environment = (
        {"JAX_PLATFORMS": "cpu"}
        | os.environ
        | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "COVJAX_CACHE": str(cwd / "cache"),
            "JAX_COMPILATION_CACHE_DIR": str(cwd.parent / "xla"),
        }
    )
    if environment["JAX_PLATFORMS"] == "cpu":
        environment.pop("XLA_FLAGS", None)
    with (cwd / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "covjax.main", *flags],
            cwd=cwd, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def finish(process: subprocess.Popen[bytes], patience: float = PATIENCE) -> int:
    """Returns the exit status of a process; one that hangs is killed, and has -9."""
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def run_undisturbed(cwd: Path, stages: Iterable[str] = tuple(STAGES)) -> None:
    """Runs stages to their ends, in a new folder.

    Raises:
      RuntimeError: if one fails.
    """
    make_project(cwd)
    for stage in stages:
        if finish(start(cwd, stage)):
            raise RuntimeError(f"{stage} failed: {(cwd / 'log').read_text()[-2000:]}")


def make_project(cwd: Path) -> None:
    """Makes a folder stand for the project's."""
    cwd.mkdir(parents=True)
    (cwd / "configs").symlink_to(PROJECT / "configs")


def run_killed(
    cwd: Path, stage: str, name: str, rng: np.random.Generator
) -> int | None:
    """Starts a stage and kills it at a moment.

    Returns:
      None if it was killed; its exit status if it ended before.
    """
    offset = (cwd / "log").stat().st_size if (cwd / "log").exists() else 0
    process = start(cwd, stage)
    moment, run = MOMENTS[name], cwd / stage
    until, deadline = None, time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        now = time.monotonic()
        said = (cwd / "log").read_bytes()[offset:].decode(errors="replace")
        if until is None and moment.begins(run, said):
            until = now + rng.uniform(0, moment.within)
        if until is not None and now >= until:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None
        time.sleep(0.002 if until is not None else 0.01)
    return finish(process, 1)


def run_until_done(
    cwd: Path, wanted: int, rng: np.random.Generator
) -> tuple[collections.Counter[str], list[str]]:
    """Runs both stages, killed at random moments until `wanted` kills are done.

    Returns:
      Kills by moment; and the exit statuses that were not 0.
    """
    make_project(cwd)
    kills, failures = collections.Counter[str](), []
    for stage in STAGES:
        # Half of what is left goes to the first stage; a stage that ends, ends.
        share = wanted // 2 if stage == "runs/lung" else wanted - kills.total()
        before = kills.total()
        while True:
            if kills.total() - before < share:
                name = str(rng.choice(list(MOMENTS)))
                status = run_killed(cwd, stage, name, rng)
            else:
                name, status = "", finish(start(cwd, stage))
            if status is None:
                kills[name] += 1
                continue
            if status:
                told = (cwd / "log").read_text(errors="replace")[-1500:]
                failures.append(f"{stage}: exit status {status}\n{told}")
            break
    return kills, failures


def main(argv: list[str] | None = None) -> int:
    """Runs it all; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.faults.kills")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="new, and kept (a temporary one)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="covjax-kills-") as temporary:
        folder = (arguments.folder or Path(temporary) / "kills").absolute()
        return _kill(folder, arguments.kills, np.random.default_rng(arguments.seed))


def _kill(folder: Path, wanted: int, rng: np.random.Generator) -> int:
    calm = folder / "calm"
    run_undisturbed(calm)
    kills, faults, rounds = collections.Counter[str](), list[str](), 0
    while kills.total() < wanted and not faults:
        cwd = folder / f"round-{rounds}"
        new, failures = run_until_done(cwd, min(12, wanted - kills.total()), rng)
        kills += new
        faults += failures
        rounds += 1
        for stage in STAGES:
            faults += compare_runs(calm / stage, cwd / stage)
            faults += find_torn(cwd / stage)
        print(f"{kills.total()} of {wanted} kills, {len(faults)} faults", flush=True)
    for fault in faults:
        print(fault)
    counts = {
        "survived": kills.total(),
        "at": dict(kills),
        "runs": len(STAGES) * rounds,
        "faults": len(faults),
    }
    print(json.dumps({"kills": counts}))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
