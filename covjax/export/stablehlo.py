"""A network as StableHLO, for JAX, IREE or XLA, on a CPU, a GPU or a TPU.

A file is a ZIP archive, so that what belongs together stays together:

    network     what `jax.export` serializes: uint8 images to probabilities
                (inference.py), for any batch size
    about.json  what the numbers mean, as `weights.describe` tells it

Calling it needs jax and flatbuffers, and nothing of covjax.
"""

import contextlib
import io
import zipfile
from collections.abc import Iterator

import jax
import numpy as np
from jax import export

from covjax.data.pipeline import make_region
from covjax.export.inference import make_inference
from covjax.export.safetensors import Weights, describe

PLATFORMS = ("cpu", "cuda", "tpu")
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the same network gives the same bytes at any time


def make_stablehlo(weights: Weights) -> bytes:
    """Returns the content of a file.

    Raises:
      ImportError: if flatbuffers is not installed.
    """
    data = weights.trained.config.data
    shape = (data.image_size, data.image_size, make_region(data).channels)
    (batch,) = export.symbolic_shape("batch")
    # Of the two forms of one map this one is a product on every platform.
    infer = make_inference(weights.trained, upsample="depth_to_space")
    # GPUs and TPUs would round factors to fewer bits, each to its own number.
    with jax.default_matmul_precision("float32"), _without_places():
        exported = export.export(jax.jit(infer), platforms=PLATFORMS)(
            jax.ShapeDtypeStruct((batch, *shape), np.uint8)
        )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        network = bytes(exported.serialize())
        archive.writestr(zipfile.ZipInfo("network", _LONG_AGO), network)
        archive.writestr(zipfile.ZipInfo("about.json", _LONG_AGO), describe(weights))
    return file.getvalue()


@contextlib.contextmanager
def _without_places() -> Iterator[None]:
    """Has programs say nothing of the lines they come from, and of their folders."""
    before = jax.config.values["jax_traceback_in_locations_limit"]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def run_stablehlo(content: bytes, images: np.ndarray) -> dict[str, np.ndarray]:
    """Computes what a file says of images, on this machine."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        network = export.deserialize(bytearray(archive.read("network")))
    return jax.device_get(network.call(images))
