"""Kills `covjax.export` at random moments; see killed.py.

  python -m experiments.faults.kill_export [--kills=9] [--seed=0]

All three formats, in turns; safetensors out of a run of `covjax.unpack`. The
commands replace a file that is there already.
"""

import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from experiments.faults.killed import OUT, PATIENCE, Command, environment, main
from experiments.faults.small_weights import write_weights


def prepare(cwd: Path, form: str = "") -> None:
    """Writes weights, and a file that is to be replaced."""
    write_weights(cwd)
    (cwd / OUT).mkdir()
    if form:
        (cwd / OUT / f"it.{form}").write_bytes(b"of before")


def prepare_run(cwd: Path) -> None:
    """Copies one run's folder: another would have another fingerprint."""
    prepare(cwd, "safetensors")
    shutil.copytree(Path(_make_run().name, "run"), cwd / "run")


@functools.cache
def _make_run() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="covjax-kill_export-run-")
    prepare(Path(folder.name))
    unpack = ("covjax.unpack", "infection.safetensors", "--workdir=run")
    subprocess.run(
        [sys.executable, "-m", *unpack], cwd=folder.name, check=True,
        capture_output=True, timeout=PATIENCE, env=environment(Path(folder.name)),
    )  # fmt: skip
    return folder


def _export(source: str, form: str) -> tuple[str, ...]:
    return "covjax.export", source, f"--format={form}", f"--out={OUT}/it.{form}"


COMMANDS = [
    Command("safetensors", _export("run", "safetensors"), prepare_run),
    *(
        Command(
            form,
            _export("infection.safetensors", form),
            functools.partial(prepare, form=form),
        )
        for form in ("stablehlo", "onnx")
    ),
]

if __name__ == "__main__":
    sys.exit(main("kill_export", COMMANDS, 9))
