"""Writes the weights of an evaluated run into one small file.

  python -m covjax.export RUN [--out=FILE]

The best checkpoint of RUN, with its config and operating points, becomes FILE, by
default RUN.safetensors beside the run's folder: parameters in float16, half the size.
Exit status: 0, or 2 if there is nothing to write or nowhere to write it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from covjax import parallel
from covjax.calibrate import FILE, read_points
from covjax.config import read_about
from covjax.errors import UsageError
from covjax.last_words import tell
from covjax.report.tables import read_results
from covjax.run_dir import CONFIG
from covjax.trained import read_trained
from covjax.weights import SUFFIX, Weights, write_weights


def export_run(path: str, out: Path | None = None) -> Path:
    """Writes the weights of a run, or of one of its checkpoints, into a file.

    Args:
      path: as `trained.read_trained` takes it.
      out: the file; None: as above.

    Returns:
      The file.

    Raises:
      UsageError: if there is no such run, its checkpoint has no operating point, or the
        file cannot be written.
    """
    trained = read_trained(path)
    run = trained.run
    points = {
        roi: told
        for roi, told in read_points(run).items()
        if told.get("fingerprint") == trained.fingerprint
    }
    if not points:
        raise UsageError(
            f"{run / FILE}: no operating point of checkpoint {trained.step};"
            " --mode=evaluate --split=val chooses one for the best"
        )
    about = read_about(run / CONFIG)
    # Runs of before it was written down are what they were last evaluated on.
    phantom = about["phantom"] if "phantom" in about else _of_results(run)
    out = out or run.with_name(run.name + SUFFIX)
    if out.suffix != SUFFIX:
        raise UsageError(f"--out={out}: must end in {SUFFIX}")
    write_weights(out, Weights(trained, points, phantom, about.get("commit")))
    return out


def _of_results(run: Path) -> bool:
    return bool(read_results(run, "val")[0]["phantom"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m covjax.export", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"*{SUFFIX}")
    given = parser.parse_args(arguments)
    parallel.keep_to_the_host()  # a training may have the accelerators
    try:
        out = export_run(given.run, given.out)
    except Exception as error:
        return tell(error)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
