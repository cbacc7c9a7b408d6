"""What one image takes beside the networks, in a worker process that has no jax."""

import errno
import re
from pathlib import Path

import cv2
import numpy as np

from covjax.data.image_io import shown
from covjax.errors import DataError
from covjax.predict.inputs import Input
from covjax.predict.postprocess import Origin, Points, Seen, squeeze
from covjax.predict.radiograph import CHANGED, Radiograph, read_radiograph
from covjax.predict.table import Row
from covjax.predict.writer import make_row, write_outputs

# What a disk answers to a name that it cannot give: one that is too long; of a folder
# where an image's mask has it, or the other way round ("b.png/a.png" beside "b.jpg").
_NO_NAME = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)

# OpenCV raises its own error where memory runs out; that of std::bad_alloc has no code.
_NO_MEMORY = re.compile(r"Insufficient memory|bad_alloc")

_read: dict[str, Radiograph] = {}  # and not finished yet; by the names of the images


def read_sample(
    asked: Input, sides: tuple[int, ...]
) -> tuple[tuple[np.ndarray, ...], str] | str:
    """Reads an image, and keeps it until it is finished.

    Args:
      asked: which image.
      sides: of what each network is shown, pixels.

    Returns:
      The image at these sizes, uint8 [S, S] each, and the SHA-256 of its file; or in
      one line why it cannot be read.

    Raises:
      UsageError: if it is DICOM and what reads that is not installed.
    """
    cv2.setNumThreads(1)  # there is a worker for each core
    try:
        radiograph = read_radiograph(asked.path)
        squares = squeeze(radiograph.image[radiograph.box], sides)
    except DataError as error:
        return str(error)
    except (MemoryError, cv2.error) as error:
        return _too_large(asked, error)
    _read[asked.name] = radiograph
    return squares, radiograph.sha256


def finish_image(
    asked: Input, seen: Seen, out: Path, points: Points, origin: Origin, sha256: str
) -> Row:
    """Writes the outputs of an image; returns its row, with the error if there is one.

    Args:
      asked: which image. If this worker has not read it, another had, and died.
      seen: what the networks made of it.
      out: folder of all outputs.
      points: what makes masks of that.
      origin: the networks.
      sha256: of the file that they saw, which may have been replaced since.

    Raises:
      OSError: if a file cannot be written for another reason than its name.
    """
    cv2.setNumThreads(1)
    try:
        radiograph = _read.pop(asked.name, None) or read_radiograph(asked.path)
        if radiograph.sha256 != sha256:
            raise DataError(f"{shown(asked.path)}: {CHANGED}")
        return write_outputs(out, asked, radiograph, seen, points, origin)
    except DataError as error:  # it has gone since it was read
        return make_row(asked, error=str(error))
    except (MemoryError, cv2.error) as error:
        return make_row(asked, error=_too_large(asked, error))
    except OSError as error:
        if error.errno not in _NO_NAME:
            raise
        why = f"no file can be called {shown(str(error.filename))} ({error.strerror})"
        return make_row(asked, error=f"{shown(asked.path)}: {why}")


def _too_large(asked: Input, error: MemoryError | cv2.error) -> str:
    """Returns why in one line; raises an error of OpenCV that is not of memory."""
    if isinstance(error, cv2.error) and not _NO_MEMORY.search(str(error)):
        raise error
    return f"{shown(asked.path)}: too large for the memory that there is"
