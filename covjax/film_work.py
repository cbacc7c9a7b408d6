"""What one film takes beside the networks, in a worker process that has no jax."""

from pathlib import Path

import cv2
import numpy as np

from covjax.data.inputs import Input
from covjax.data.radiograph import Radiograph, read_radiograph
from covjax.errors import DataError
from covjax.film_outputs import write_outputs
from covjax.predictions import Row
from covjax.seen import Points, Seen, squeeze

_read: dict[str, Radiograph] = {}  # and not finished yet; by the names of the films

cv2.setNumThreads(1)  # there is a worker for each core


def read_film(asked: Input, sides: tuple[int, ...]) -> tuple[np.ndarray, ...] | str:
    """Reads a film, and keeps it until it is finished.

    Args:
      asked: which film.
      sides: of what each network is shown, pixels.

    Returns:
      The film at these sizes; or in one line why it cannot be read.
    """
    try:
        film = read_radiograph(asked.path)
    except DataError as error:
        return str(error)
    _read[asked.name] = film
    return squeeze(film.image[film.box], sides)


def finish_film(
    asked: Input, seen: Seen, out: Path, points: Points, phantom: bool
) -> Row:
    """Writes the outputs of a film that this worker has read; returns its row."""
    film = _read.pop(asked.name, None)
    if film is None:  # another process had, and died
        film = read_radiograph(asked.path)
    return write_outputs(out, asked, film, seen, points, phantom=phantom)
