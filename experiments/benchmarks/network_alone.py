"""One trained network beside ONNX Runtime and PyTorch, on images in the host's memory.

What is timed goes from images, uint8, to what is known of them in the host's memory
again: levels (as `Segmenter` computes them) or probabilities.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from covjax import parallel
from covjax.data.pipeline import make_region
from covjax.errors import UsageError
from covjax.export.export import LIMIT, LIMIT_OF_HALVES
from covjax.export.inference import make_inference
from covjax.export.parity import draw_samples, find_distance
from covjax.export.safetensors import Weights, pack_weights
from covjax.predict.segmenter import Network
from covjax.runtime.cores import count_cores
from covjax.train.restore import Trained
from experiments.benchmarks.peer import Peer, PeerError

PEER_SCRIPT = Path(__file__).with_name("torch_network.py")
# What torch_network.py has built in.
PEER_KNOWS = {"norm": "batch", "intensity": "unit"}
_HALF_A_LEVEL = 0.5 / 255

A = TypeVar("A")
Said = dict[str, np.ndarray]  # as in covjax.export.inference


@dataclasses.dataclass(frozen=True)
class Side:
    """One way to compute the network.

    Attributes:
      about: what computes it.
      seconds: number of batches → the seconds that they take.
      distance: how far its probabilities are from those of `make_inference`, at most,
        on the images of `draw_samples`.
    """

    about: dict[str, Any]
    seconds: Callable[[int], float]
    distance: float


@contextlib.contextmanager
def open_sides(
    weights: Weights, network: Network, batch: int, python: str | None, folder: Path
) -> Iterator[dict[str, Side]]:
    """Makes the sides that this machine has; says in a line which it has not.

    Args:
      weights: of the network.
      network: covjax's own, compiled.
      batch: images of a batch.
      python: path of a Python with torch; None: no peer is wanted.
      folder: for files between the processes.

    Yields:
      "covjax", "onnx" and "torch", whose probabilities agree.

    Raises:
      UsageError: if those of one side are of another network, or it cannot hold it.
    """
    trained = weights.trained
    data = trained.config.data
    samples = draw_samples(make_region(data), data.image_size)
    expected = jax.device_get(jax.jit(make_inference(trained))(samples))
    # The probabilities may differ by the order of sums; on a chip, whose matrix units
    # round and where bfloat16 is used, by as much as those of halves.
    limit = LIMIT_OF_HALVES if parallel.is_accelerated() else LIMIT
    sides, limits = {}, {"covjax": limit + _HALF_A_LEVEL}
    sides["covjax"] = _own_side(network, samples, batch, expected)
    with contextlib.ExitStack() as stack:
        if side := _onnx_side(weights, samples, batch, expected):
            sides["onnx"] = side
        if python is not None:
            peer = _start_peer(weights, samples, batch, python, folder)
            if peer:
                stack.callback(peer.close)
                said = _read_said(folder / "said", expected)
                distance = find_distance(expected, said)
                sides["torch"] = Side(peer.about, _asking(peer), distance)
        for name, side in sides.items():
            if not side.distance <= limits.get(name, limit):  # which NaN is not
                raise UsageError(
                    f"{name} is up to {side.distance:.1e} away from {trained.run}:"
                    " another network"
                )
        yield sides


def of_batch(samples: np.ndarray, batch: int) -> np.ndarray:
    """Returns as many images as a batch has, over and over the same if need be."""
    return samples[np.arange(batch) % len(samples)]


def _own_side(
    network: Network, samples: np.ndarray, batch: int, expected: Said
) -> Side:
    def told(answer: tuple[np.ndarray, np.ndarray]) -> Said:
        levels, presence = answer
        said = {"probability": levels[..., None] / 255, "presence": presence}
        return {name: said[name] for name in expected}

    return _side({"jax": jax.__version__}, network, told, samples, batch, expected)


def _onnx_side(
    weights: Weights, samples: np.ndarray, batch: int, expected: Said
) -> Side | None:
    try:
        import onnxruntime

        from covjax.export.onnx import make_onnx
    except ImportError as error:
        print(f"no ONNX Runtime ({error}): pip install -e '.[export]'")
        return None
    provider = "CPUExecutionProvider"
    if parallel.is_accelerated():
        provider = "CUDAExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            print(f"no ONNX Runtime ({provider} is not there): onnxruntime-gpu has it")
            return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count_cores()  # as XLA has them
    session = onnxruntime.InferenceSession(
        make_onnx(weights), options, providers=[provider]
    )
    names = list(expected)

    def ask(images: np.ndarray) -> list[np.ndarray]:
        return [np.asarray(array) for array in session.run(names, {"image": images})]

    def told(answer: list[np.ndarray]) -> Said:
        return dict(zip(names, answer, strict=True))

    about = {
        "onnxruntime": onnxruntime.__version__,
        "threads": options.intra_op_num_threads,
        "provider": session.get_providers()[0],
    }
    return _side(about, ask, told, samples, batch, expected)


def _side(
    about: dict[str, Any],
    ask: Callable[[np.ndarray], A],
    told: Callable[[A], Said],
    samples: np.ndarray,
    batch: int,
    expected: Said,
) -> Side:
    images = of_batch(samples, batch)

    def seconds(batches: int) -> float:
        start = time.perf_counter()
        for _ in range(batches):
            ask(images)
        return time.perf_counter() - start

    said = _in_batches(lambda images: told(ask(images)), samples, batch)
    return Side(about, seconds, find_distance(expected, said))


def _in_batches(
    say: Callable[[np.ndarray], Said], samples: np.ndarray, batch: int
) -> Said:
    """Returns what is said of all images, a batch at a time, as it is compiled."""
    starts = range(0, len(samples), batch)
    parts = [say(of_batch(np.roll(samples, -start, 0), batch)) for start in starts]
    return {
        name: np.concatenate([part[name] for part in parts])[: len(samples)]
        for name in parts[0]
    }


def _start_peer(
    weights: Weights, samples: np.ndarray, batch: int, python: str, folder: Path
) -> Peer | None:
    _check_peer_knows(weights.trained)
    (folder / "weights").write_bytes(pack_weights(weights))
    (folder / "images").write_bytes(samples.tobytes())
    try:
        return Peer(
            python,
            PEER_SCRIPT,
            weights=str(folder / "weights"),
            images=str(folder / "images"),
            shape=samples.shape,
            said=str(folder / "said"),
            batch=batch,
            threads=count_cores(),
        )
    except PeerError as error:
        print(f"no peer ({error}): pip install -e '.[bench]', or see --peer_python")
        return None


def _check_peer_knows(trained: Trained) -> None:
    for name, known in PEER_KNOWS.items():
        if trained.config.model[name] != known:
            raise UsageError(
                f"{trained.run}: the peer knows config.model.{name} = {known!r} alone;"
                " or --peer=none"
            )
    if jax.device_count() > 1:
        raise UsageError(
            f"the peer has one device, covjax {jax.device_count()}; or --peer=none"
        )


def _asking(peer: Peer) -> Callable[[int], float]:
    def seconds(batches: int) -> float:
        return peer.ask(batches=batches)["seconds"]

    return seconds


def _read_said(path: Path, expected: Said) -> Said:
    """Reads what the peer wrote: float32, presence after the probabilities."""
    flat = np.fromfile(path, np.float32)
    if flat.size != sum(array.size for array in expected.values()):
        raise UsageError("the peer tells of something else than the network does")
    shape = expected["probability"].shape
    pixels, presence = np.split(flat, [expected["probability"].size])
    told = {"probability": pixels.reshape(shape), "presence": presence}
    return {name: told[name] for name in expected}
