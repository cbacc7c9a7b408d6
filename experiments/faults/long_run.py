"""A long run of a tiny model: memory, open files and pace have to stay as they are.

  python -m experiments.faults.long_run [--steps=20000]

Trains in a process of its own, with a pass over Val and a checkpoint each 50 steps, and
looks at that process from outside. Ends with a line of JSON; status 1 if its memory
grows by 2 % or more after the first tenth of the steps, if it never has so few files
open in the last tenth as in the second, or if that takes 10 % longer.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from experiments.faults.kills import make_project, start_command

STEPS_PER_EPOCH = 50
GROWTH, SLOWDOWN = 1.02, 1.10
TINY = (
    "--config=configs/lung.py:phantom",
    "--config.data.phantom_images=(100, 8, 8)",
    "--config.data.image_size=32",
    "--config.model.width=1",
    "--config.model.depth=1",
    "--config.train.batch_size=2",
    "--config.train.log_every=10",
)


def watch(process: subprocess.Popen[bytes], metrics: Path) -> list[dict[str, Any]]:
    """Looks at a process each second until it ends.

    Returns:
      For each look "seconds", the last logged "step", "bytes" of memory that it has to
      itself, and open "files".
    """
    looks, child = [], psutil.Process(process.pid)
    begun = time.monotonic()
    while process.poll() is None:
        time.sleep(1)
        try:
            memory, files = child.memory_full_info().uss, child.num_fds()
        except psutil.Error:
            break  # it has ended
        step = read_last_step(metrics)
        if step:
            seconds = time.monotonic() - begun
            looks.append(
                {"seconds": seconds, "step": step, "bytes": memory, "files": files}
            )
    return looks


def read_last_step(metrics: Path) -> int:
    """Returns the step of the last whole line of metrics.jsonl; 0 if there is none."""
    if not metrics.exists():
        return 0
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 2000))
        lines = file.read().split(b"\n")[:-1]
    return json.loads(lines[-1])["step"] if lines else 0


def judge(looks: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """Returns the figures of a run from what was seen of it."""

    def between(low: float, high: float) -> list[dict[str, Any]]:
        # At the last step it stands through the evaluation: that is no training.
        return [look for look in looks if low * steps <= look["step"] < high * steps]

    def pace(low: float, high: float) -> float:
        part = between(low, high)
        return (part[-1]["seconds"] - part[0]["seconds"]) / (
            part[-1]["step"] - part[0]["step"]
        )

    def median(part: list[dict[str, Any]], what: str) -> float:
        values = sorted(look[what] for look in part)
        return values[len(values) // 2]

    early, late = between(0.1, 0.2), between(0.9, 1.0)
    return {
        "steps": looks[-1]["step"],
        "memory_mb": [round(median(p, "bytes") / 1e6, 1) for p in (early, late)],
        "memory_growth": median(late, "bytes") / median(early, "bytes") - 1,
        # Half of the looks meet a checkpoint that is being written, or its check.
        "open_files": [min(look["files"] for look in p) for p in (early, late)],
        "ms_per_step": [1e3 * pace(0.1, 0.2), 1e3 * pace(0.9, 1.0)],
    }


def main(argv: list[str] | None = None) -> int:
    """Trains and looks; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.faults.long_run")
    parser.add_argument("--steps", type=int, default=20_000)
    steps = parser.parse_args(argv).steps
    with tempfile.TemporaryDirectory(prefix="covjax-long-") as folder:
        cwd = Path(folder) / "project"
        make_project(cwd)
        epochs = f"--config.train.epochs={-(-steps // STEPS_PER_EPOCH)}"
        process = start_command(cwd, "--workdir=run", *TINY, epochs)
        looks = watch(process, cwd / "run" / "metrics.jsonl")
        if process.wait():
            print((cwd / "log").read_text()[-2000:])
            return 1
    told = judge(looks, steps)
    early, late = told["ms_per_step"]
    fine = (
        told["memory_growth"] < GROWTH - 1
        and told["open_files"][1] <= told["open_files"][0]
        and late < SLOWDOWN * early
    )
    print(json.dumps({"long_run": told | {"fine": fine}}))
    return int(not fine)


if __name__ == "__main__":
    sys.exit(main())
