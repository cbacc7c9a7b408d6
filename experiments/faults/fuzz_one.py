"""The process that libFuzzer drives: one input after another through the reader.

  python -m experiments.faults.fuzz_one SEEDS [flags of libFuzzer] [FILE]

With a FILE alone, that input is tried once. `fuzz.py` starts it.
"""

import sys
import tempfile
from pathlib import Path

import atheris

# Not covidqu.py: atheris keeps what a comparison of instrumented code gives, and there
# it is arrays of the size of the picture.
with atheris.instrument_imports(
    include=["covjax.data.decode", "covjax.data.png", "PIL"]
):
    from PIL import MpoImagePlugin  # noqa: F401, which another loads when it is late

    from covjax.data import decode, png

import numpy as np

from covjax.data import covidqu
from covjax.errors import DataError

# Smaller pictures than a run may read, so that many are tried.
decode.MAX_PIXELS = png.MAX_PIXELS = 2**18
_FILE = Path(tempfile.mkdtemp()) / "m.png"


def try_one(content: bytes) -> None:
    """Reads bytes in every way in which a run reads a file.

    Raises:
      AssertionError: if what comes of it is neither right in shape nor a refusal.
    """
    try:
        pixels = decode.decode_content(content)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1, f"said {error!s}"
        return
    assert pixels.dtype in (np.uint8, np.uint16), pixels.dtype
    height, width = pixels.shape
    assert min(height, width) >= decode.MIN_SIDE
    assert height * width <= decode.MAX_PIXELS
    np.testing.assert_array_equal(decode.decode_content(content), pixels)
    _FILE.write_bytes(content)
    film = decode.read_grey(_FILE)
    assert (film.dtype, film.shape) == (np.uint8, pixels.shape)
    try:
        mask = covidqu.read_mask(_FILE)
    except DataError as error:
        said = str(error)
        assert said.startswith(f"{_FILE}: ") and len(said.splitlines()) == 1, said
        return
    assert (mask.dtype, mask.shape) == (np.uint8, pixels.shape) and mask.max() <= 1


if __name__ == "__main__":
    atheris.Setup(sys.argv, try_one)
    atheris.Fuzz()
