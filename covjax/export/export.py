"""Writes an evaluated run into one file that other programs can use.

  python -m covjax.export RUN [--format=safetensors|stablehlo|onnx] [--out=FILE]

RUN is a run's folder (its best checkpoint), one of its checkpoints, or a *.safetensors
file of before. FILE is by default RUN with the ending of the format, beside RUN:

  safetensors  the weights, rounded to float16, for covjax (export/safetensors.py)
  stablehlo    the network, for JAX on a CPU, a GPU or a TPU (export/stablehlo.py)
  onnx         the network, for ONNX Runtime and others (export/onnx.py)

Each holds the config, the operating points and the attribution. It is compared with the
run on sample images before it is written, and refused where it says something else.
Exit status: 0; 2 if there is nothing to write or nowhere to write it; 130 Ctrl-C. Then
a file that was there before stays as it was.
"""

import argparse
import dataclasses
import glob
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from covjax import parallel
from covjax.data.pipeline import make_region
from covjax.errors import UsageError
from covjax.export import safetensors
from covjax.export.inference import make_inference
from covjax.export.load_model import read_network
from covjax.export.parity import SAMPLES, draw_samples, find_distance
from covjax.export.safetensors import Weights
from covjax.runtime.exit_messages import tell
from covjax.runtime.files import HALF, write_whole
from covjax.train.restore import Trained
from covjax.train.train_state import inference_state

FORMATS = ("safetensors", "stablehlo", "onnx")
# Probabilities may be so far from the run's: by the order of float32 sums; and by
# float16, which moved those of trained networks by .055 at most (docs/runbook.md).
LIMIT, LIMIT_OF_HALVES = 1e-4, 0.2
# flatbuffers and protobuf count a file's bytes in 31 bits; the graph needs some.
_MOST = 2**31 - 2**24

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def export_run(
    path: str, form: str = "safetensors", out: Path | None = None
) -> tuple[Path, float]:
    """Writes a trained network into a file.

    Args:
      path: of a run, a checkpoint or a file, as above.
      form: one of `FORMATS`.
      out: the file; None: as above.

    Returns:
      The file, and how far its probabilities are from those of the run, at most.

    Raises:
      UsageError: if there is no such run, its checkpoint has no operating point, the
        format cannot hold it, a package is missing, the file says something else than
        the run, or it cannot be written.
    """
    packed = Path(path).suffix == safetensors.SUFFIX and not Path(path).is_dir()
    if packed and form == "safetensors":
        raise UsageError(f"{path}: is such a file; --format= names another form")
    found = read_network(path)
    source = found.trained.run
    out = out or source.with_name((source.stem if packed else source.name) + f".{form}")
    if out.suffix != f".{form}":
        raise UsageError(f"--out={out}: must end in .{form}")
    content, run = _make(found, form)
    distance = _distance(found.trained, run)
    limit = LIMIT_OF_HALVES if form == "safetensors" else LIMIT
    if not distance <= limit:  # which NaN is not
        raise UsageError(
            f"{out}: not written: on {SAMPLES} sample images it is up to {distance:.1e}"
            f" away from {source}, and {limit:.0e} is the most that rounding explains"
        )
    try:
        _remove_half_written(out)
        write_whole(out, content)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror})") from None
    return out, distance


def _remove_half_written(out: Path) -> None:
    """Removes what earlier exports to this file left that were killed."""
    for half in out.parent.glob(f".{glob.escape(out.name)}.*{HALF}"):
        half.unlink(missing_ok=True)


def _make(found: Weights, form: str) -> tuple[bytes, Run]:
    """Returns the content of a file, and what it says of images.

    Raises:
      UsageError: if the format cannot hold the network, or a package is missing.
    """
    if form == "safetensors":
        content = safetensors.pack_weights(found)
        return content, lambda samples: _run_packed(found.trained, content, samples)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(found.trained.state.variables()))
    if size > _MOST:
        raise UsageError(
            f"{found.trained.run}: {size / 1e9:.1f} GB of parameters; a file of"
            f" --format={form} holds 2.1 GB"
        )
    try:
        if form == "stablehlo":
            from covjax.export.stablehlo import make_stablehlo, run_stablehlo

            content = make_stablehlo(found)
            return content, lambda samples: run_stablehlo(content, samples)
        from covjax.export.onnx import make_onnx, run_onnx

        content = make_onnx(found)
        return content, lambda samples: run_onnx(content, samples)
    except ImportError as error:
        raise UsageError(
            f"--format={form} needs packages ({error}): pip install 'covjax[export]'"
        ) from None


def _run_packed(
    trained: Trained, content: bytes, samples: np.ndarray
) -> dict[str, np.ndarray]:
    variables = safetensors.unpack_variables(content)
    state = inference_state(trained.state.apply_fn, **variables)
    return _run(dataclasses.replace(trained, state=state), samples)


def _run(trained: Trained, samples: np.ndarray) -> dict[str, np.ndarray]:
    return jax.device_get(jax.jit(make_inference(trained))(samples))


def _distance(trained: Trained, run: Run) -> float:
    data = trained.config.data
    samples = draw_samples(make_region(data), data.image_size)
    return find_distance(_run(trained, samples), run(samples))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m covjax.export", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="ends as the format")
    given = parser.parse_args(arguments)
    parallel.keep_to_the_host()  # a training may have the accelerators
    try:
        out, distance = export_run(given.run, given.format, given.out)
    except (Exception, KeyboardInterrupt) as error:
        return tell(error)
    print(
        f"{out}: {out.stat().st_size / 1e6:.1f} MB; on {SAMPLES} sample images at most"
        f" {distance:.1e} away from the run"
    )
    return 0
