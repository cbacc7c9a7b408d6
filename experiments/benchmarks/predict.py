"""How fast covjax finds lungs and infection on images of a user, on this machine.

  python -m experiments.benchmarks.predict [--lung=RUN] [--infection=RUN] [--images=64]

Three questions, each side in turns with the others, --rounds times. *The whole*: images
a second of `covjax.predict.predict`, from PNGs (phantoms, of the network's size or of
--size) to masks, overlays and the table, over those of its two networks alone, on
pictures that are ready, as many at once and as many batches in flight. *The network*:
that of the second stage as `Segmenter` compiles it, beside ONNX Runtime and PyTorch,
once their probabilities agree. *The start*: seconds from the start of `python -m
covjax.predict` on one image to its end, with an empty and with a filled cache of
compiled programs.

torch is no dependency of covjax: `pip install -e '.[bench]'`; or `--peer_python` names
the Python of another environment that has it; or `--peer=none`.

The last line is a JSON object; "share" is the whole over the networks alone, and
"ratio_onnx" and "ratio_torch" are covjax's images a second over theirs, null without.
"""

import argparse
import concurrent.futures
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves the peer room
import cv2
import jax
import numpy as np

from covjax import parallel
from covjax.data.covidqu import CLASSES
from covjax.data.phantom.drawing import MIN_SIZE, make_phantom
from covjax.data.pipeline import make_region
from covjax.errors import UsageError
from covjax.export.load_model import read_stages
from covjax.export.parity import draw_samples
from covjax.export.safetensors import Weights, pack_weights, read_weights
from covjax.predict import predict as predicting
from covjax.predict.inputs import Input
from covjax.predict.segmenter import Network, Segmenter
from covjax.runtime.cores import count_cores
from covjax.runtime.exit_messages import tell
from experiments.benchmarks.network_alone import of_batch, open_sides
from experiments.benchmarks.peer import PeerError
from experiments.benchmarks.spread import print_spread

_DRAWN = 24  # of different phantoms: a large one takes more than a second


def write_images(folder: Path, count: int, size: int) -> list[Input]:
    """Writes phantoms as PNGs; of many, the same few over and over.

    Args:
      folder: a new one.
      count: of images.
      size: side of each, pixels.
    """
    folder.mkdir()
    rng = np.random.default_rng(0)
    contents = [
        cv2.imencode(
            ".png", make_phantom(CLASSES[k % len(CLASSES)], rng, size)["image"]
        )[1].tobytes()
        for k in range(min(count, _DRAWN))
    ]
    inputs = []
    for k in range(count):
        path = folder / f"{k:05}.png"
        path.write_bytes(contents[k % len(contents)])
        inputs.append(Input(path, path.stem))
    return inputs


def time_start(sample: Path, networks: Sequence[str], cache: Path) -> float:
    """Returns the seconds from the start of a process to its end, masks written.

    Args:
      sample: that it is given.
      networks: flags that name them.
      cache: folder of compiled programs.

    Raises:
      UsageError: if the process fails.
    """
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "covjax.predict", str(sample), *networks]
        start = time.perf_counter()
        done = subprocess.run(
            [*command, f"--out={out}"], env=environment, capture_output=True, text=True
        )
        seconds = time.perf_counter() - start
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise UsageError(f"covjax.predict ended with {done.returncode}: {last}")
    return seconds


def time_starts(
    sample: Path, networks: Sequence[str], rounds: int
) -> dict[str, list[float]]:
    """Returns the seconds of every round with an "empty" and a "filled" cache."""
    seconds: dict[str, list[float]] = {"empty": [], "filled": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for times in seconds.values():
                times.append(time_start(sample, networks, Path(cache)))
    return seconds


def compare_whole(
    segmenter: Segmenter, inputs: Sequence[Input], shown: Sequence[np.ndarray],
    rounds: int,
) -> dict[str, list[float]]:  # fmt: skip
    """Times the whole and the networks alone, in turns.

    Args:
      segmenter: of two stages.
      inputs: images, whole batches of them.
      shown: what each network is shown of a batch, uint8 [B, S, S, C].
      rounds: turns of each.

    Returns:
      "predict" and "forward": images a second of every round.
    """
    batches = len(inputs) // len(shown[0])
    networks = [n for n in (segmenter.lung, segmenter.infection) if n is not None]

    def forward(_: int) -> None:
        for network, pictures in zip(networks, shown, strict=True):
            network(pictures)

    def time_forward() -> float:
        start = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(predicting.IN_FLIGHT) as threads:
            list(threads.map(forward, range(batches)))
        return len(inputs) / (time.perf_counter() - start)

    def time_predict() -> float:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            start = time.perf_counter()
            _, failed = predicting.predict(inputs, out, segmenter, {})
            seconds = time.perf_counter() - start
        if failed:
            raise UsageError(f"{failed} of {len(inputs)} images failed")
        return len(inputs) / seconds

    forward(0)  # compiles
    time_predict()
    rates: dict[str, list[float]] = {"predict": [], "forward": []}
    for _ in range(rounds):
        rates["forward"].append(time_forward())
        rates["predict"].append(time_predict())
    return rates


def compare_network(
    weights: Weights, network: Network, *, batch: int, batches: int, rounds: int,
    python: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Times one network beside what else this machine has, in turns.

    Args:
      weights: of the network.
      network: covjax's own, compiled.
      batch: images of a batch.
      batches: of a turn.
      rounds: turns of each.
      python: path of a Python with torch; None: no peer is wanted.

    Returns:
      For the last line.

    Raises:
      UsageError: if a side computes something else.
    """
    found: dict[str, Any] = {"ratio_onnx": None, "ratio_torch": None}
    with (
        tempfile.TemporaryDirectory() as folder,
        open_sides(weights, network, batch, python, Path(folder)) as sides,
    ):
        print("\nthe second network alone")
        for name, side in sides.items():
            about = ", ".join(f"{k} {v}" for k, v in side.about.items())
            print(f"  {name}: {about}; {side.distance:.1e} away at most")
            found |= {f"{name}_about": side.about, f"{name}_distance": side.distance}
            side.seconds(1)  # allocates
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                rates[name].append(batch * batches / side.seconds(batches))
    print_spread("images/s", rates)
    ratios = {
        name: _ratios(rates["covjax"], of_side)
        for name, of_side in rates.items()
        if name != "covjax"
    }
    if ratios:
        print_spread("covjax over", ratios)
    for name, of_rounds in ratios.items():
        found[f"ratio_{name}"] = float(np.median(of_rounds))
        found[f"ratios_{name}"] = of_rounds
    return found | {f"{k}_images_per_s": float(np.median(v)) for k, v in rates.items()}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Measures all three, prints them, and returns their figures.

    Raises:
      UsageError: if a flag has a value that cannot be measured with.
    """
    networks = [
        f"--{task}={run}"
        for task, run in (("lung", given.lung), ("infection", given.infection))
        if run
    ]
    found_stages = read_stages(given.lung, given.infection)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        stages = [_as_packed(stage, folder) for stage in found_stages]
        segmenter = Segmenter(*stages)
        size = given.batch or predicting.batch_size(given.images)
        _check(given, size)
        sides = [stage.trained.config.data.image_size for stage in stages]
        found: dict[str, Any] = {
            "backend": jax.default_backend(),
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "cores": count_cores(),
            "jax": jax.__version__,
            "image_size": sides[0],
            "source_size": given.size or sides[0],
            "images": given.images,
            "batch": size,
            "in_flight": predicting.IN_FLIGHT,
        }
        print(", ".join(f"{k} {v}" for k, v in found.items()))
        inputs = write_images(folder / "images", given.images, found["source_size"])
        shown = [
            of_batch(draw_samples(make_region(data), data.image_size), size)
            for data in (stage.trained.config.data for stage in stages)
        ]
        with (
            mock.patch.object(predicting, "batch_size", lambda _: size),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            rates = compare_whole(segmenter, inputs, shown, given.rounds)
        shares = _ratios(rates["predict"], rates["forward"])
        print()
        print_spread("images/s", rates)
        print_spread("predict over forward", {"share": shares})
        found |= {"share": float(np.median(shares)), "shares": shares}
        found |= {f"{k}_images_per_s": float(np.median(v)) for k, v in rates.items()}
        assert segmenter.infection is not None
        found |= compare_network(
            stages[1],
            segmenter.infection,
            batch=size,
            batches=given.images // size,
            rounds=given.rounds,
            python=None if given.peer == "none" else given.peer_python,
        )
        if given.start:
            starts = time_starts(inputs[0].path, networks, given.rounds)
            print()
            print_spread(
                "seconds of one image", {f"{k} cache": v for k, v in starts.items()}
            )
            found |= {f"start_{k}_s": float(np.median(v)) for k, v in starts.items()}
    return found


def _as_packed(stage: Weights, folder: Path) -> Weights:
    """Returns a network as a file of weights has it, which rounds a run's once."""
    path = folder / f"{stage.trained.config.data.task}.safetensors"
    path.write_bytes(pack_weights(stage))
    return read_weights(path)


def _ratios(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [of_a / of_b for of_a, of_b in zip(a, b, strict=True)]


def _check(given: argparse.Namespace, size: int) -> None:
    devices = parallel.local_devices()
    if size % devices:
        raise UsageError(f"--batch={size}: must be divisible by {devices} devices")
    if given.size and given.size < MIN_SIZE:
        raise UsageError(f"--size={given.size}: phantoms have {MIN_SIZE} px or more")
    if given.images % size:
        raise UsageError(f"--images={given.images}: must be whole batches of {size}")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> Any:
        raise UsageError(message)


def _count(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{word}: at least 1")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m experiments.benchmarks.predict",
        description=(__doc__ or "").partition("\n")[0],
    )
    add = parser.add_argument
    add("--lung", default="", metavar="RUN", help="finds the lungs")
    add("--infection", default="", metavar="RUN", help="finds infection")
    add("--images", type=_count, default=64, help="of a turn (%(default)s)")
    add("--size", type=_count, help="of the images, pixels (the first network's)")
    add("--batch", type=_count, help="images at once (as covjax.predict has it)")
    add("--rounds", type=_count, default=5, help="turns of each side (%(default)s)")
    add("--peer", choices=("torch", "none"), default="torch", help="whom to compare")
    add("--peer_python", default=sys.executable, help="Python with torch")
    add("--start", action=argparse.BooleanOptionalAction, default=True,
        help="measure the start of a process")  # fmt: skip
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    try:
        found = measure(_parser().parse_args(arguments))
    except PeerError as error:
        return tell(UsageError(f"the peer failed: {error}"))
    except Exception as error:
        return tell(error)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
