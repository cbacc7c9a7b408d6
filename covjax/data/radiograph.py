"""A film of a user's own: no class, no masks, any size; a picture or a DICOM file."""

import dataclasses
from pathlib import Path

import numpy as np

from covjax.data.decode import read_grey, shown
from covjax.data.dicom import DICOM_SUFFIXES, is_dicom, read_dicom
from covjax.errors import DataError

Box = tuple[slice, slice]  # rows, columns


@dataclasses.dataclass(frozen=True)
class Radiograph:
    """One film, and what its file tells of it.

    Attributes:
      image: as it is displayed, uint8 [H, W]; 0 is black.
      box: rows and columns without a burnt-in border.
      spacing: millimetres between rows, and between columns; None where not known.
      patient_left_on_right: whether the patient's left is on the picture's right, as
        films are hung.
      remarks: what a user should know of it.
    """

    image: np.ndarray
    box: Box
    spacing: tuple[float, float] | None = None
    patient_left_on_right: bool = True
    remarks: tuple[str, ...] = ()


def read_radiograph(path: Path) -> Radiograph:
    """Reads a film; what kind of file it is, its content tells.

    Of a DICOM file, borders are found and what else it says is kept. A picture is taken
    as it is, as in training.

    Raises:
      DataError: naming the file, if it cannot be read.
      UsageError: if it is DICOM and what reads that is not installed.
    """
    if is_dicom(path):
        film = read_dicom(path)
        return Radiograph(
            film.image, film.box, film.spacing, film.patient_left_on_right, film.remarks
        )
    try:
        image = read_grey(path)
    except DataError:
        if path.suffix.lower() in DICOM_SUFFIXES:  # and lacks how DICOM begins
            raise DataError(
                f"{shown(path)}: no DICOM file (without its preamble), nor a picture"
            ) from None
        raise
    return Radiograph(image, (slice(0, image.shape[0]), slice(0, image.shape[1])))
