"""The command line as a user starts it, on a few tiny phantoms, and what it leaves."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

PROJECT = Path(__file__).parents[1]
SAMPLES = {"train": 24, "val": 8, "test": 12}
BATCH = 8
SMALL = (
    f"--config.data.phantom_images=({SAMPLES['train']}, {SAMPLES['val']},"
    f" {SAMPLES['test']})",
    "--config.data.image_size=32",
    "--config.model.width=4",
    "--config.model.depth=2",
    f"--config.train.batch_size={BATCH}",
    "--config.train.log_every=1",
)
TWO_EPOCHS = "--config.train.epochs=2"

COMMAND = ("-m", "covjax.main")


def environment() -> dict[str, str]:
    """What a process sees: this covjax, one device, no data but the phantoms."""
    env = os.environ | {"PYTHONPATH": str(PROJECT), "JAX_PLATFORMS": "cpu"}
    for name in ("XLA_FLAGS", "COVJAX_DATA"):
        env.pop(name, None)
    return env


def start(
    cwd: Path, *flags: str, command: tuple[str, str] = COMMAND, **more: str
) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *command, *flags],
        cwd=cwd,
        env=environment() | more,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen, status: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, (process.returncode, out, err)
    return out, err


def read_state(run: Path, step: int) -> dict[str, np.ndarray]:
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(run / "checkpoints" / str(step) / "state")
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def steps_on_disk(run: Path) -> list[int]:
    names = [p.name for p in (run / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdigit())


def make_project(folder: Path) -> Path:
    """Makes a folder stand for the project's: configs in it, data made in it."""
    (folder / "configs").symlink_to(PROJECT / "configs")
    return folder
