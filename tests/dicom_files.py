"""DICOM files of the tests: pydicom's own, and images written out of arrays."""

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


def make_image(pixels: np.ndarray | bytes, **elements: Any) -> FileDataset:
    """Returns an image with the elements of a picture; None removes an element."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID(DX)
    meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    radiograph = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    radiograph.SOPClassUID, radiograph.SOPInstanceUID = DX, "1.2.3.4"
    radiograph.Modality, radiograph.PhotometricInterpretation = "DX", "MONOCHROME2"
    radiograph.SamplesPerPixel, radiograph.PixelRepresentation = 1, 0
    content = pixels
    if isinstance(pixels, np.ndarray):
        radiograph.Rows, radiograph.Columns = pixels.shape[:2]
        radiograph.BitsAllocated = radiograph.BitsStored = 8 * pixels.dtype.itemsize
        radiograph.PixelRepresentation = int(pixels.dtype.kind == "i")
        if pixels.ndim == 3:
            radiograph.SamplesPerPixel, radiograph.PhotometricInterpretation = 3, "RGB"
            radiograph.PlanarConfiguration = 0
        content = pixels.tobytes()
    radiograph.PixelData = content + bytes(len(content) % 2)
    radiograph["PixelData"].VR = "OB" if radiograph.get("BitsAllocated") == 8 else "OW"
    change(radiograph, **elements)
    radiograph.HighBit = radiograph.get("BitsStored", 8) - 1
    return radiograph


def change(radiograph: pydicom.Dataset, **elements: Any) -> None:
    for name, value in elements.items():
        if value is None:
            delattr(radiograph, name)
        else:
            setattr(radiograph, name, value)


def save(
    radiograph: FileDataset, path: Path, syntax: str = ExplicitVRLittleEndian
) -> Path:
    """Writes an image; swaps the bytes of its pixels for big endian."""
    radiograph.file_meta.TransferSyntaxUID = UID(syntax)
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    radiograph.set_original_encoding(implicit, little)
    if syntax == ExplicitVRBigEndian and radiograph.BitsAllocated == 16:
        radiograph.PixelData = (
            np.frombuffer(radiograph.PixelData, "<u2").byteswap().tobytes()
        )
    radiograph.save_as(
        path,
        implicit_vr=implicit,
        little_endian=little,
        enforce_file_format=True,
    )
    return path


def save_stream(
    radiograph: FileDataset, stream: bytes, path: Path, syntax: str
) -> Path:
    """Writes an image whose pixels are compressed already."""
    radiograph.PixelData = encapsulate([stream])
    radiograph["PixelData"].is_undefined_length = True
    radiograph["PixelData"].VR = "OB"
    return save(radiograph, path, syntax)


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
