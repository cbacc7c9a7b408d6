"""Makes a run's folder of a file of weights: the way back from `covjax.export`.

  python -m covjax.unpack FILE --workdir=RUN [--lung_run=RUN_OF_LUNGS]

RUN can be evaluated, find the lungs for stage 2 and be started from (--init_from), as
the run that was exported could. It cannot be trained on: the file has no optimizer.
Stopped half-way, the same command goes on. Exit status: 0; 2 if FILE cannot be read,
RUN holds something else or RUN_OF_LUNGS finds no lungs; 1 anything else (a full disk).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covjax import parallel
from covjax.config import read_about, save_config
from covjax.errors import UsageError
from covjax.evaluation.lung_masks import LungFinder, read_finder, same_lungs
from covjax.export.safetensors import read_weights
from covjax.metrics.operating_point import FILE as POINTS
from covjax.metrics.operating_point import write_points
from covjax.runtime.exit_messages import tell
from covjax.train import run_folder
from covjax.train.checkpoint import FOLDER, Checkpoints, fingerprint
from covjax.train.restore import run_of


def unpack(file: Path, workdir: Path, lung_run: str = "") -> None:
    """Writes config, checkpoint and operating points of a file of weights.

    The points are those of the file, as points of the new checkpoint. One that was
    chosen for lungs that a run found holds where `lung_run` was unpacked from the
    weights of that run; else the next evaluation chooses it anew.

    Args:
      file: as `covjax.export` writes it.
      workdir: a new folder, or an empty one.
      lung_run: run that finds the lungs for it; "": none is named.

    Raises:
      UsageError: if the file cannot be read, the folder holds something, or `lung_run`
        finds no lungs.
      StorageError: if the folder cannot be written.
    """
    weights = read_weights(file)
    trained = weights.trained
    begun = (
        read_about(workdir / run_folder.CONFIG).get("fingerprint")
        == trained.fingerprint
        and not (workdir / POINTS).exists()  # which come last
    )
    if not begun and not run_folder.is_free(workdir, run_folder.CONFIG):
        raise UsageError(f"--workdir={workdir} holds something: give a new folder")
    finder = read_finder(lung_run) if lung_run else None
    trained.config.data.lung_run = lung_run
    about = {
        "weights": file.name,
        "fingerprint": trained.fingerprint,
        "commit": weights.commit,
        "phantom": weights.phantom,
    }
    reached = [float(told.get("reached", 0.0)) for told in weights.points.values()]
    with run_folder.hold(workdir):
        save_config(trained.config, workdir / run_folder.CONFIG, about)
        with Checkpoints(workdir) as checkpoints:
            checkpoints.save(trained.state, dice=max(reached, default=0.0))
        own = fingerprint(workdir / FOLDER / str(trained.step))
        points = {
            roi: _with_lungs(told, finder) | {"fingerprint": own}
            for roi, told in weights.points.items()
        }
        write_points(workdir, points)


def _with_lungs(told: dict[str, Any], finder: LungFinder | None) -> dict[str, Any]:
    """Returns a point as one of the lungs that are found now, if they are the same."""
    lungs = told.get("lungs")
    if not lungs or finder is None:
        return told
    packed = read_about(run_of(finder.checkpoint) / run_folder.CONFIG).get(
        "fingerprint"
    )
    now = finder.told()
    if not same_lungs(lungs, now | {"fingerprint": packed}):
        return told
    return told | {"lungs": now}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m covjax.unpack", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--workdir", required=True, type=Path, help="the run's folder")
    parser.add_argument("--lung_run", default="", help="finds the lungs for stage 2")
    given = parser.parse_args(arguments)
    parallel.keep_to_the_host()  # a training may have the accelerators
    try:
        unpack(given.file, given.workdir, given.lung_run)
    except (Exception, KeyboardInterrupt) as error:
        return tell(error)
    print(f"{given.workdir}: the network of {given.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
