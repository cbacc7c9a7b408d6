"""Small DICOM files and compressed streams, from which fuzzing starts."""

import io
import struct

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

SIDE = 16  # pixels
_DX = UID("1.2.840.10008.5.1.4.1.1.1.1")  # digital X-ray, for presentation
_PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99")
# Transfer syntaxes in the order in which the first byte of a stream's input names them.
SYNTAXES = (
    "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90",
)  # fmt: skip


def make_streams() -> list[tuple[str, bytes]]:
    """Returns a transfer syntax and an image, uint8 [16, 16], for each codec."""
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), np.uint8)
    # One segment of runs, behind a header of sixteen numbers (PS3.5, annex G).
    rle = struct.pack("<16I", 1, 64, *[0] * 14)
    rle += imagecodecs.packbits_encode(image.tobytes())
    streams = [
        rle + bytes(len(rle) % 2),
        bytes(imagecodecs.jpeg8_encode(image)),
        bytes(imagecodecs.ljpeg_encode(image)),
        bytes(imagecodecs.jpegls_encode(image)),
        bytes(imagecodecs.jpeg2k_encode(image, reversible=True, codecformat="j2k")),
    ]
    return list(zip(SYNTAXES, streams, strict=True))


def make_files() -> list[bytes]:
    """Returns DICOM files: uncompressed of 8 and 16 bits, with LUTs, and compressed."""
    rng = np.random.default_rng(1)
    files = []
    for syntax in _PLAIN:
        grey = _image(rng.integers(0, 4096, (SIDE, SIDE)).astype(np.uint16))
        grey.WindowCenter, grey.WindowWidth = [2048, 100], [4096, 50]
        grey.PixelSpacing = [0.1, 0.1]
        files.append(_save(grey, syntax))
    looked_up = _image(rng.integers(0, 256, (SIDE, SIDE)).astype(np.uint8))
    looked_up.PhotometricInterpretation = "MONOCHROME1"
    looked_up.VOILUTSequence = [_lut([256, 0, 16])]
    looked_up.ModalityLUTSequence = [_lut([256, 0, 16])]
    files.append(_save(looked_up, _PLAIN[1]))
    for syntax, stream in make_streams():
        packed = _image(np.zeros((SIDE, SIDE), np.uint8))
        packed.PixelData = encapsulate([stream])
        packed["PixelData"].is_undefined_length = True
        files.append(_save(packed, syntax))
    return files


def _lut(descriptor: list[int]) -> Dataset:
    lut = Dataset()
    lut.add_new("LUTDescriptor", "US", descriptor)
    lut.add_new("LUTData", "US", list(range(0, 65536, 256)))
    return lut


def _image(pixels: np.ndarray) -> Dataset:
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = _DX, "1.2.3.4"
    image.Modality, image.PhotometricInterpretation = "DX", "MONOCHROME2"
    image.PatientName = "Doe^Jane"
    image.SamplesPerPixel, image.PixelRepresentation = 1, 0
    image.Rows, image.Columns = pixels.shape
    image.BitsAllocated = image.BitsStored = 8 * pixels.dtype.itemsize
    image.HighBit = image.BitsStored - 1
    image.PixelData = pixels.tobytes()
    image["PixelData"].VR = "OW" if pixels.dtype == np.uint16 else "OB"
    return image


def _save(image: Dataset, syntax: str) -> bytes:
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = UID(syntax)
    image.file_meta.MediaStorageSOPClassUID = _DX
    image.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    content = io.BytesIO()
    image.save_as(content, enforce_file_format=True)
    return content.getvalue()
