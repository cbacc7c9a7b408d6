"""DICOM files of the tests: pydicom's own, and films written out of arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
DX = "1.2.840.10008.5.1.4.1.1.1.1"


def make_film(pixels: np.ndarray | bytes, **elements: Any) -> FileDataset:
    """Returns a film that has only what a picture needs; None takes an element away."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID(DX)
    meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    film = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    film.SOPClassUID, film.SOPInstanceUID = DX, "1.2.3.4"
    film.Modality, film.PhotometricInterpretation = "DX", "MONOCHROME2"
    film.SamplesPerPixel, film.PixelRepresentation = 1, 0
    content = pixels
    if isinstance(pixels, np.ndarray):
        film.Rows, film.Columns = pixels.shape[:2]
        film.BitsAllocated = film.BitsStored = 8 * pixels.dtype.itemsize
        film.PixelRepresentation = int(pixels.dtype.kind == "i")
        if pixels.ndim == 3:
            film.SamplesPerPixel, film.PhotometricInterpretation = 3, "RGB"
            film.PlanarConfiguration = 0
        content = pixels.tobytes()
    film.PixelData = content + bytes(len(content) % 2)
    film["PixelData"].VR = "OB" if film.get("BitsAllocated") == 8 else "OW"
    change(film, **elements)
    film.HighBit = film.get("BitsStored", 8) - 1
    return film


def change(film: pydicom.Dataset, **elements: Any) -> None:
    for name, value in elements.items():
        if value is None:
            delattr(film, name)
        else:
            setattr(film, name, value)


def save(film: FileDataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Writes a film; one that is not to be little endian has its pixels turned here."""
    film.file_meta.TransferSyntaxUID = UID(syntax)
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    film.set_original_encoding(implicit, little)
    if syntax == ExplicitVRBigEndian and film.BitsAllocated == 16:
        film.PixelData = np.frombuffer(film.PixelData, "<u2").byteswap().tobytes()
    film.save_as(
        path,
        implicit_vr=implicit,
        little_endian=little,
        enforce_file_format=True,
    )
    return path


def save_stream(film: FileDataset, stream: bytes, path: Path, syntax: str) -> Path:
    """Writes a film whose pixels are compressed already."""
    film.PixelData = encapsulate([stream])
    film["PixelData"].is_undefined_length = True
    film["PixelData"].VR = "OB"
    return save(film, path, syntax)


def make_lut(
    descriptor: list[int], entries: np.ndarray, packed: bool = False
) -> pydicom.Dataset:
    """Returns the item of a LUT; its entries as numbers, or as bytes (`packed`)."""
    lut = pydicom.Dataset()
    lut.add_new("LUTDescriptor", "US", descriptor)
    lut.add_new(
        "LUTData",
        *(("OW", entries.tobytes()) if packed else ("US", list(map(int, entries)))),
    )
    return lut


def item(**elements: Any) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    change(dataset, **elements)
    return dataset
