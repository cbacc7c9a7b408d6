"""Writes the weights of an evaluated run into one small file.

  python -m covjax.export RUN [--out=FILE]

The best checkpoint of RUN, with its config and operating points, becomes FILE, RUN's
name with .safetensors beside RUN unless another is given: parameters in float16, half
the size. Exit status: 0, or 2 if there is nothing to write or nowhere to write it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from covjax.calibrate import FILE, read_points
from covjax.errors import UsageError
from covjax.report.tables import read_results
from covjax.trained import read_trained
from covjax.weights import SUFFIX, Weights, write_weights


def export_run(run: Path, out: Path) -> None:
    """Writes the weights of a run; see above.

    Raises:
      UsageError: if `run` is no run that was evaluated on Val, or `out` cannot be
        written.
    """
    trained = read_trained(str(run))
    points = {
        roi: told
        for roi, told in read_points(run).items()
        if told.get("fingerprint") == trained.fingerprint
    }
    if not points:
        raise UsageError(
            f"{run / FILE}: no operating point of the best checkpoint; --mode=evaluate"
            " chooses one"
        )
    phantom = bool(read_results(run, "val")[0]["phantom"])
    write_weights(out, Weights(trained, points, phantom))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m covjax.export", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"*{SUFFIX}")
    given = parser.parse_args(arguments)
    out = given.out or given.run.resolve().with_name(given.run.resolve().name + SUFFIX)
    try:
        if out.suffix != SUFFIX:
            raise UsageError(f"--out: {out}: must end in {SUFFIX}")
        export_run(given.run, out)
    except UsageError as error:
        print(f"covjax: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
