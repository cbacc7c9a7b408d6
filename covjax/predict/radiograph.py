"""An image of a user's own: no class, no masks, any size; a picture or a DICOM file."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from covjax.data.image_io import read_content, read_grey, shown
from covjax.errors import DataError
from covjax.predict.dicom.reader import DICOM_SUFFIXES, is_dicom, read_dicom

Box = tuple[slice, slice]  # rows, columns
CHANGED = "changed while it was read; the same command reads it again"


@dataclasses.dataclass(frozen=True)
class Radiograph:
    """One image, and what its file tells of it.

    Attributes:
      image: as it is displayed, uint8 [H, W]; 0 is black.
      box: rows and columns without a burnt-in border.
      spacing: millimetres between rows, and between columns; None where not known.
      patient_left_on_right: whether the patient's left is on the picture's right, as
        images are hung.
      remarks: what a user should know of it.
      is_dicom: whether the file is DICOM.
      sha256: of the file's content, hexadecimal; "": it is of no file.
    """

    image: np.ndarray
    box: Box
    spacing: tuple[float, float] | None = None
    patient_left_on_right: bool = True
    remarks: tuple[str, ...] = ()
    is_dicom: bool = False
    sha256: str = ""


def read_radiograph(path: Path) -> Radiograph:
    """Reads an image; what kind of file it is, its content tells.

    Of a DICOM file, borders are found and what else it says is kept. A picture is taken
    as it is, as in training.

    Raises:
      DataError: naming the file, if it cannot be read or changes meanwhile.
      UsageError: if it is DICOM and what reads that is not installed.
    """
    sha256 = digest_file(path)
    image = _read(path)
    if digest_file(path) != sha256:
        raise DataError(f"{shown(path)}: {CHANGED}")
    return dataclasses.replace(image, sha256=sha256)


def digest_file(path: Path) -> str:
    """Returns the SHA-256 of a file's content, hexadecimal.

    Raises:
      DataError: naming the file, if `read_content` refuses it.
    """
    try:
        return hashlib.sha256(read_content(path)).hexdigest()
    except ValueError as error:
        raise DataError(f"{shown(path)}: {error}") from None


def _read(path: Path) -> Radiograph:
    if is_dicom(path):
        radiograph = read_dicom(path)
        return Radiograph(
            radiograph.image, radiograph.box, radiograph.spacing,
            radiograph.patient_left_on_right, radiograph.remarks, is_dicom=True,
        )  # fmt: skip
    try:
        image = read_grey(path)
    except DataError:
        if path.suffix.lower() in DICOM_SUFFIXES:  # and lacks how DICOM begins
            raise DataError(
                f"{shown(path)}: no DICOM file (without its preamble), nor a picture"
            ) from None
        raise
    return Radiograph(image, (slice(0, image.shape[0]), slice(0, image.shape[1])))
