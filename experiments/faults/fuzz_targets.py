"""What is asked of the readers of untrusted files, whatever their bytes are."""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from covjax.data import covidqu, image_io
from covjax.errors import DataError
from covjax.predict.dicom import codecs, reader
from experiments.faults.dicom_seeds import SIDE, SYNTAXES

SECONDS = 2.0  # of CPU time, for an input of at most 64 KiB
MEMORY = 192  # MiB by which an input may raise the largest memory of the process
_UNIT = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss in a MiB
_FOLDER = Path(tempfile.mkdtemp(prefix="covjax-fuzz-"))
_SECRET = "Doe"  # name of the patient in every seed


class Costs:
    """What inputs cost, and the bounds that they keep to.

    Attributes:
      seconds: the most CPU time of an input.
      memory: the most MiB by which an input raised the largest memory of the process.
    """

    def __init__(self, seconds: float = SECONDS, memory: float = MEMORY) -> None:
        """Takes the bounds of an input: CPU time in seconds, memory in MiB."""
        self._bounds = seconds, memory
        self.seconds = self.memory = 0.0

    def check(self, target: Callable[[bytes], None], content: bytes) -> None:
        """Tries an input.

        Raises:
          AssertionError: if the target refuses what came of it, or it took too much.
        """
        before, start = _largest(), time.process_time()
        target(content)
        seconds, memory = time.process_time() - start, _largest() - before
        if seconds > 1.1 * self.seconds or memory > 1.1 * self.memory:
            self.seconds = max(self.seconds, seconds)
            self.memory = max(self.memory, memory)
            print(self.describe(), file=sys.stderr, flush=True)  # it may be killed
        assert seconds <= self._bounds[0], f"took {seconds:.1f} s of CPU time"
        assert memory <= self._bounds[1], f"took {memory:.0f} MiB more"

    def describe(self) -> str:
        """Returns the largest costs as a line of JSON."""
        return json.dumps(
            {"most_seconds": round(self.seconds, 2), "most_mib": round(self.memory)}
        )


def _largest() -> float:
    """Returns the largest memory that this process ever held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _UNIT


def try_picture(content: bytes) -> None:
    """Reads bytes in every way in which a run reads an image file.

    Raises:
      AssertionError: if what comes of it is neither right in shape nor a refusal.
    """
    try:
        pixels = image_io.decode_content(content)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1, f"said {error!s}"
        return
    assert pixels.dtype in (np.uint8, np.uint16), pixels.dtype
    height, width = pixels.shape
    assert min(height, width) >= image_io.MIN_SIDE
    assert height * width <= image_io.MAX_PIXELS
    np.testing.assert_array_equal(image_io.decode_content(content), pixels)
    path = _FOLDER / "m.png"
    path.write_bytes(content)
    image = image_io.read_grey(path)
    assert (image.dtype, image.shape) == (np.uint8, pixels.shape)
    try:
        mask = covidqu.read_mask(path)
    except DataError as error:
        _check_refusal(error, path)
        return
    assert (mask.dtype, mask.shape) == (np.uint8, pixels.shape) and mask.max() <= 1


def try_dicom(content: bytes) -> None:
    """Reads bytes as a DICOM file, its pixels and its header.

    Raises:
      AssertionError: as `try_picture` does, or if what is said quotes the file.
    """
    path = _FOLDER / "m.dcm"
    path.write_bytes(content)
    try:
        radiograph = reader.read_dicom(path)
    except DataError as error:
        _check_refusal(error, path)
    else:
        assert radiograph.image.dtype == np.uint8 and radiograph.image.ndim == 2
        assert radiograph.image.size <= image_io.MAX_PIXELS
        assert not any(_SECRET in remark for remark in radiograph.remarks), (
            radiograph.remarks
        )
    try:
        reader.read_header(path)
    except DataError as error:
        _check_refusal(error, path)


def try_stream(content: bytes) -> None:
    """Decodes bytes as compressed pixels; the first byte says of which kind.

    Raises:
      AssertionError: as `try_picture` does.
    """
    if not content:
        return
    kind, samples = content[0] % len(SYNTAXES), 3 if content[0] >= 128 else 1
    shape, syntax = (SIDE, SIDE, samples), SYNTAXES[kind]
    try:
        pixels = codecs.decode_stream(content[1:], syntax, shape, 8)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1, f"said {error!s}"
        return
    assert pixels.shape == shape and pixels.dtype.itemsize <= 2
    codecs.says_rgb(content[1:], syntax)


def _check_refusal(error: DataError, path: Path) -> None:
    said = str(error)
    assert said.startswith(f"{path}: ") and len(said.splitlines()) == 1, said
    assert _SECRET not in said, said


TARGETS = {"pictures": try_picture, "dicom": try_dicom, "codestreams": try_stream}
