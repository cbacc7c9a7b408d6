"""Chest X-rays out of DICOM files: the pixels as a viewer shows them, and their size.

What `decode.py` holds to holds here: only a regular file is opened, and its header is
believed in nothing but what can be refused. Beyond the elements listed below nothing of
a file is kept, and no text of it is repeated, in a remark or in an error, but codes of
the short lists below: a name or a date may stand in any other.
"""

import dataclasses
import io
import logging
import os
import zlib
from collections.abc import Callable, MutableSequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from covjax.data.image_io import check_size, read_content, shown
from covjax.errors import DataError, UsageError
from covjax.predict.dicom import lut
from covjax.predict.dicom.borders import find_box
from covjax.predict.dicom.quiet import without_warnings

if TYPE_CHECKING:
    from pydicom import Dataset

DICOM_SUFFIXES = {".dcm", ".dicom"}

_PREAMBLE = 128
_MAGIC = b"DICM"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_PLAIN = "1.2.840.10008.1.2.1"  # explicit VR, little endian
_IMPLICIT = "1.2.840.10008.1.2"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_MOST_INFLATED = 2**27 + 2**20  # bytes: the largest picture of 16 bits, and a header
# Each element costs two or three, and 8 KiB of compressed pixels one.
_MOST_READS = 2**17
_LONGEST, _LONGEST_LUT = 2**12, 2**20  # bytes of an element; of a LUT, or a sequence
_AT_ONCE = 256  # rows that are counted: eight bytes a pixel
_PIXELS = 0x7FE00000  # the group of elements that hold them
# Of what is neither an image nor said to be one by the elements below.
_NO_PIXELS = {
    "1.2.840.10008.1.3.10": "a directory of other files (DICOMDIR)",
    "1.2.840.10008.5.1.4.1.1.104.1": "an encapsulated PDF",
    "1.2.840.10008.5.1.4.1.1.88.": "a structured report",
    "1.2.840.10008.5.1.4.1.1.11.": "a presentation state",
}
# Photometric interpretation → samples a pixel.
_COLOURS = {
    "MONOCHROME1": 1,
    "MONOCHROME2": 1,
    "PALETTE COLOR": 1,
    "RGB": 3,
    "YBR_FULL": 3,
    "YBR_FULL_422": 3,
    "YBR_ICT": 3,
    "YBR_RCT": 3,
}
# Spacings in the plane of the detector, or of an image that was scanned.
_UNCORRECTED = {
    "ImagerPixelSpacing": "pixel spacing in the detector's plane",
    "NominalScannedPixelSpacing": "pixel spacing of the scanned image",
}
_READ = (
    ["Modality", "ViewPosition", "ViewCodeSequence", "BodyPartExamined"]
    + ["PresentationIntentType", "BurnedInAnnotation"]
    + ["PatientOrientation", "PixelSpacing", *_UNCORRECTED]
    + ["SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"]
    + ["NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"]
    + ["PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"]
    + ["RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"]
    + ["WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"]
    + [
        f"{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for part in ("Descriptor", "Data")
    ]
    + ["PixelData"]
)
_SAMPLES = {"CR", "DX"}  # modalities of a chest X-ray; those of no chest X-ray:
_OTHERS = set("CT ES IO IVUS MG MR NM OCT OP OT PT PX RF RG RTDOSE RTIMAGE SC".split())
_OTHERS |= set("SEG SM US XA XC".split())
_FRONTAL = {"AP", "PA"}
_NOT_FRONTAL = set("LL RL LLD RLD LLO RLO".split())
# Lateral, left, right, sagittal, and the obliques of a chest (PS3.16, CID 4010), as
# SNOMED CT has them and, before it, SRT.
_NOT_FRONTAL_CODES = set(
    "399067008 399173006 399198007 30730003 399135007 399356000 399006002 399038007"
    " R-102CD R-10236 R-10232 G-A145 R-10220 R-40985 R-10212 R-10210".split()
)
_CHEST = {"CHEST", "THORAX", "LUNG"}
_ELSEWHERE = set(
    "ABDOMEN ANKLE ARM BREAST CLAVICLE CSPINE ELBOW EXTREMITY FEMUR FOOT FOREARM HAND"
    " HEAD HIP HUMERUS JAW KNEE LEG LSPINE NECK PELVIS RIB SHOULDER SKULL SPINE SSPINE"
    " TSPINE WHOLEBODY WRIST".split()
)

# What pydicom remarks on in a file quotes it, and is nothing to whoever reads an image.
logging.getLogger("pydicom").propagate = False  # a level would be set anew


@dataclasses.dataclass(frozen=True)
class DicomImage:
    """A chest X-ray, upright as its file has it.

    Attributes:
      image: as displayed, 0 black and 255 white; uint8 [H, W].
      spacing: mm from row to row and from column to column; None: not told. Where a
        remark names the detector or the scanned image, a chest is smaller than it says.
      patient_left_on_right: whether the patient's left is on the picture's right, as is
        usual; so too if the file does not tell.
      box: rows and columns without the frame; see `borders.find_box`.
      remarks: what makes one doubt that this is a frontal chest X-ray as it should be.
    """

    image: np.ndarray
    spacing: tuple[float, float] | None
    patient_left_on_right: bool
    box: tuple[slice, slice]
    remarks: tuple[str, ...]


def is_dicom(content: bytes | Path) -> bool:
    """Tells whether the bytes of a file, or a file by its first bytes, are DICOM.

    False for a file that is not to be read, and for one without preamble.
    """
    if isinstance(content, Path):
        # Reading a pipe would wait. `Path.is_file` raises where it may not look.
        if not os.path.isfile(content):
            return False
        try:
            with content.open("rb") as file:
                content = file.read(_PREAMBLE + len(_MAGIC))
        except OSError:
            return False
    return content[_PREAMBLE : _PREAMBLE + len(_MAGIC)] == _MAGIC


def read_dicom(path: Path) -> DicomImage:
    """Reads an image.

    Grey levels go through the modality LUT (or slope and intercept), then through the
    VOI LUT or the first window, to 0 to 255; MONOCHROME1 is turned round. Without a
    window, 8 bits are shown whole, more from the .5th to the 99.5th percentile. Padding
    is not measured, and black. Of colour the luminance is taken.

    Args:
      path: a DICOM file with preamble, of one frame of 8 or 16 bits a sample.

    Raises:
      DataError: in one line that names the file and quotes nothing of it, if it is no
        such file, broken, or without a picture.
      UsageError: if pydicom is not installed, or imagecodecs for compressed pixels.
    """
    return _safely(path, lambda content: _image(*_parse(content, _READ)))


def read_header(path: Path) -> "Dataset":
    """Reads what stands before the pixels, the patient's data with it.

    Args:
      path: a DICOM file with preamble.

    Raises:
      DataError, UsageError: as `read_dicom` does.
    """
    return _safely(path, lambda content: _parse(content)[0])


def _safely(path: Path, read: Callable[[bytes], Any]) -> Any:
    """Returns what `read` makes of a file, or raises as `read_dicom` says."""
    try:
        content = _ours(read_content, path)
        if not is_dicom(content):
            raise _Unfit("no DICOM file: 128 bytes, then DICM, have to stand first")
        with without_warnings():
            return read(content)
    except MemoryError:  # says nothing of the file
        raise
    except ImportError as error:
        raise UsageError(
            f"{shown(path)}: this DICOM file needs {error.name}:"
            " pip install 'covjax[dicom]'"
        ) from None
    except _Unfit as error:
        raise DataError(f"{shown(path)}: {error}") from None
    except Exception as error:  # pydicom raises many kinds, whose texts quote the file
        raise DataError(
            f"{shown(path)}: cannot be read as DICOM ({type(error).__name__})"
        ) from None


class _Unfit(ValueError):
    """What was looked at and refused here; its text quotes nothing of the file."""


def _ours(call: Callable[..., Any], *arguments: Any) -> Any:
    """Calls what raises a ValueError whose text is our own."""
    try:
        return call(*arguments)
    except ValueError as error:
        raise _Unfit(str(error)) from None


def _parse(
    content: bytes, names: list[str] | None = None
) -> tuple["Dataset", str, str]:
    """Returns the elements of a file; transfer syntax and kind of file, as UIDs.

    Those of `names`; None: all that stand before the pixels.

    `pydicom.dcmread` would inflate whatever it is given, to whatever length.
    """
    from pydicom.filereader import read_dataset
    from pydicom.tag import Tag

    file = _CountedReads(content)
    file.seek(_PREAMBLE + len(_MAGIC))
    meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)
    syntax = str(meta.get("TransferSyntaxUID", ""))
    if syntax == _DEFLATED:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            plain = inflate.decompress(content[file.tell() :], _MOST_INFLATED)
        except zlib.error:
            raise _Unfit("what is deflated in it is broken") from None
        if not inflate.eof:
            more = len(plain) >= _MOST_INFLATED
            raise _Unfit(
                f"more than {_MOST_INFLATED:,} bytes when inflated"
                if more
                else "what is deflated in it is cut short"
            )
        file, syntax = _CountedReads(plain), _PLAIN
    dataset = read_dataset(
        file,
        syntax == _IMPLICIT,
        syntax != _BIG_ENDIAN,
        stop_when=None if names else lambda tag, *_: tag >= _PIXELS,
        specific_tags=[Tag(name) for name in names] if names else None,
    )
    for name in names or ():
        if name != "PixelData":
            _check_length(dataset, name)
    return dataset, syntax, str(meta.get("MediaStorageSOPClassUID", ""))


class _CountedReads(io.BytesIO):
    """A file out of which so much is read, and no more: elements may be nested."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > _MOST_READS:
            raise _Unfit("more elements than an image has")
        return super().read(size)


def _check_length(dataset: "Dataset", name: str) -> None:
    """Refuses an element that is longer than what an image needs.

    pydicom makes objects of its values, of some hundred bytes each, when it is asked
    for it.
    """
    from pydicom.dataelem import RawDataElement

    if name not in dataset:
        return
    element = dataset.get_item(name)
    if not isinstance(element, RawDataElement):  # a sequence: its reads are counted
        return
    long = name.endswith(("Sequence", "Data"))
    if len(element.value or b"") > (_LONGEST_LUT if long else _LONGEST):
        raise _Unfit(f"its {name} is longer than that of an image")


def _image(dataset: "Dataset", syntax: str, kind: str) -> DicomImage:
    _check_image(dataset, kind)
    samples, coloured = _decode(dataset, syntax)
    remarks = []
    if _COLOURS[dataset.PhotometricInterpretation] == 3:
        image = _luminance(dataset, samples, coloured)
    elif dataset.PhotometricInterpretation == "PALETTE COLOR":
        image = _from_palette(dataset, samples[..., 0])
    else:
        image, remarks = _grey(dataset, samples[..., 0])
    spacing, doubted = _spacing(dataset)
    left_on_right, turned = _orientation(dataset)
    return DicomImage(
        image,
        spacing,
        left_on_right,
        find_box(image),
        tuple([*_doubts(dataset), *turned, *remarks, *doubted]),
    )


def _check_image(dataset: "Dataset", kind: str) -> None:
    """Refuses what is no single picture of a depth and a size that images have."""
    if "PixelData" not in dataset:
        what = [said for start, said in _NO_PIXELS.items() if kind.startswith(start)]
        raise _Unfit(f"no pixels in it, but {what[0]}" if what else "no pixels in it")
    rows, columns = (_whole(dataset, name) for name in ("Rows", "Columns"))
    _ours(check_size, columns, rows)
    frames = _whole(dataset, "NumberOfFrames", 1)
    if frames > 1:
        raise _Unfit(f"{frames} frames, where one image is asked for")
    allocated, stored = (
        _whole(dataset, name) for name in ("BitsAllocated", "BitsStored")
    )
    if allocated not in (8, 16):
        raise _Unfit(f"{allocated} bits a sample, neither 8 nor 16")
    if not 1 <= stored <= allocated:
        raise _Unfit("its BitsStored is not between 1 and BitsAllocated")
    if _whole(dataset, "HighBit", stored - 1) != stored - 1:
        raise _Unfit("its HighBit is not BitsStored - 1")
    colour = str(dataset.get("PhotometricInterpretation", ""))
    if colour not in _COLOURS:
        raise _Unfit("its PhotometricInterpretation is none that is known")
    if _whole(dataset, "SamplesPerPixel", 1) != _COLOURS[colour]:
        raise _Unfit(f"its SamplesPerPixel does not go with {colour}")


def _whole(dataset: "Dataset", name: str, otherwise: int | None = None) -> int:
    """Returns an element that is a whole number."""
    value = dataset.get(name)
    if value is None and otherwise is not None:
        return otherwise
    try:
        return int(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        raise _Unfit(f"its {name} is missing, or no number") from None


def _decode(dataset: "Dataset", syntax: str) -> tuple[np.ndarray, bool]:
    """Returns the samples, [H, W, 1 or 3], and whether three are red, green and blue.

    Else the first is the luminance. Bits above BitsStored may be set.
    """
    from pydicom.dataset import FileMetaDataset
    from pydicom.encaps import get_frame
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    colour = dataset.PhotometricInterpretation
    shape = (int(dataset.Rows), int(dataset.Columns), _COLOURS[colour])
    bits = int(dataset.BitsAllocated)
    if syntax in (_PLAIN, _IMPLICIT, _BIG_ENDIAN):
        room = shape[0] * shape[1] * shape[2] * bits // 8
        if colour == "YBR_FULL_422":  # two pixels share their differences
            room = room * 2 // 3
        if len(dataset.PixelData) < room:
            raise _Unfit("its pixels are cut short")
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
        pixels, _ = get_decoder(UID(syntax)).as_array(dataset, raw=True, index=0)
        return pixels.reshape(shape), colour == "RGB"

    from covjax.predict.dicom.codecs import KNOWN, decode_stream, says_rgb

    if syntax not in KNOWN:
        raise _Unfit("its transfer syntax is none that is known")
    stream = get_frame(dataset.PixelData, 0, number_of_frames=1)
    pixels = _ours(decode_stream, stream, syntax, shape, bits)
    told = says_rgb(stream, syntax)
    if told is not None:  # many a stream was wrapped without a look at its colours
        return pixels, told
    return pixels, colour in ("RGB", "YBR_ICT", "YBR_RCT")


def _patterns(dataset: "Dataset", samples: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns the bits of each sample as an unsigned number, and how many they are."""
    bits = int(dataset.BitsStored)
    native = samples.astype(samples.dtype.newbyteorder("="), copy=False)
    unsigned = native.view(f"u{native.dtype.itemsize}")
    return unsigned & unsigned.dtype.type(2**bits - 1), bits


def _luminance(dataset: "Dataset", samples: np.ndarray, coloured: bool) -> np.ndarray:
    patterns, bits = _patterns(dataset, samples)
    if bits < 8:
        raise _Unfit(f"colours of {bits} bits a sample, less than 8")
    eight = (patterns >> (bits - 8)).astype(np.uint8)
    if coloured:
        return np.asarray(Image.fromarray(eight).convert("L"))
    return np.ascontiguousarray(eight[..., 0])


def _from_palette(dataset: "Dataset", samples: np.ndarray) -> np.ndarray:
    from pydicom.pixels.processing import apply_color_lut

    patterns, bits = _patterns(dataset, samples)
    every = np.arange(2**bits, dtype=patterns.dtype)
    colours = apply_color_lut(every, dataset)
    # Entries of 8 bits are met in words of 16 (PS3.3, C.7.6.3.1.5).
    told = dataset.RedPaletteColorLookupTableDescriptor[2]
    if colours.dtype.itemsize == 2 and told > 8:
        colours = colours >> 8
    table = Image.fromarray(colours.astype(np.uint8)[None]).convert("L")
    return np.asarray(table)[0][patterns]


def _grey(dataset: "Dataset", samples: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Returns the image as displayed, uint8 [H, W], and remarks on its levels."""
    patterns, bits = _patterns(dataset, samples)
    stored = lut.stored_values(bits, _whole(dataset, "PixelRepresentation", 0) == 1)
    padding = _padding(dataset, stored)
    values = _modality(dataset, stored)
    bright, remarks = _through_voi(dataset, values)
    if bright is None and bits <= 8:
        bright = lut.stretch(values, values.min(), values.max())
    elif bright is None:
        counts = np.zeros(2**bits, np.int64)
        for start in range(0, len(patterns), _AT_ONCE):
            part = patterns[start : start + _AT_ONCE].ravel()
            counts += np.bincount(part, minlength=2**bits)
        counts[padding] = 0
        ends = lut.present(values, counts) if counts.any() else (0.0, 0.0)
        bright = lut.stretch(values, *ends)
        remarks.append("no window: levels between the .5th and 99.5th percentile")
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        bright = 1 - bright
    bright[padding] = 0
    return np.rint(255 * bright).astype(np.uint8)[patterns], remarks


def _padding(dataset: "Dataset", stored: np.ndarray) -> np.ndarray:
    """Tells of each stored value whether it stands for no pixel; bool."""
    if dataset.get("PixelPaddingValue") is None:
        return np.zeros(len(stored), bool)
    first = _whole(dataset, "PixelPaddingValue")
    last = _whole(dataset, "PixelPaddingRangeLimit", first)
    # Of 16 bits, whatever sign it is told with.
    least = -32768 if stored.min() < 0 else 0
    first, last = ((k - least) % 65536 + least for k in (first, last))
    return (stored >= min(first, last)) & (stored <= max(first, last))


def _modality(dataset: "Dataset", stored: np.ndarray) -> np.ndarray:
    if dataset.get("ModalityLUTSequence"):
        return lut.look_up(stored, *_read_lut(dataset.ModalityLUTSequence[0])[:2])
    slope, intercept = (
        1.0 if value is None else float(value)
        for value in (dataset.get("RescaleSlope"), dataset.get("RescaleIntercept", 0))
    )
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise _Unfit("its RescaleSlope or RescaleIntercept is no use")
    return slope * stored + intercept


def _through_voi(
    dataset: "Dataset", values: np.ndarray
) -> tuple[np.ndarray | None, list[str]]:
    """Returns brightness from 0 to 1, None if the file tells of none; and remarks."""
    if dataset.get("VOILUTSequence"):
        first, entries, bits = _read_lut(dataset.VOILUTSequence[0])
        return lut.look_up(values, first, entries) / (2**bits - 1), []
    center, width = (_first(dataset, name) for name in ("WindowCenter", "WindowWidth"))
    if center is None or width is None:
        return None, []
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    try:
        return lut.through_window(values, center, width, function), []
    except ValueError:
        return None, ["a window that is none"]


def _first(dataset: "Dataset", name: str) -> float | None:
    """Returns the first of one or several numbers; None: not told; NaN: no number."""
    try:
        value = dataset.get(name)
        if isinstance(value, MutableSequence):
            value = value[0] if value else None
        return None if value is None or value == "" else float(value)
    except ValueError:
        return np.nan


def _read_lut(item: "Dataset") -> tuple[int, np.ndarray, int]:
    """Returns the first value that a LUT maps, its entries, and the bits of one."""
    length, first, bits = (int(value) for value in item.LUTDescriptor)
    length = length % 65536 or 65536  # 0 stands for 65536, which 16 bits cannot say
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if item.original_encoding[1] else ">"
        wide = len(data) >= 2 * length
        entries = np.frombuffer(data, f"{order}u2" if wide else "u1")
    else:
        entries = np.atleast_1d(np.array(data, np.int64))
    if not 8 <= bits <= 16 or len(entries) < length:
        raise _Unfit("its LUT is broken")
    return first, np.clip(entries[:length], 0, 2**bits - 1), bits


def _spacing(dataset: "Dataset") -> tuple[tuple[float, float] | None, list[str]]:
    """Returns mm from row to row and from column to column, and what to think of it.

    A PixelSpacing that repeats one of the detector is that one: the image was not
    corrected for magnification (PS3.3, 10.7.1.1).
    """
    told = {}
    for name in ("PixelSpacing", *_UNCORRECTED):
        try:
            rows, columns = (float(number) for number in dataset.get(name, ()))
        except (TypeError, ValueError):  # one that cannot be read is none
            continue
        if 0 < rows < np.inf and 0 < columns < np.inf:
            told[name] = (rows, columns)
    if not told:
        return None, ["no pixel spacing"]
    spacing = next(iter(told.values()))
    same = [name for name in told if np.allclose(told[name], spacing)]
    return spacing, [_UNCORRECTED[name] for name in same[-1:] if name in _UNCORRECTED]


def _orientation(dataset: "Dataset") -> tuple[bool, list[str]]:
    """Returns whether the patient's left is on the right, and remarks on the rest."""
    told = dataset.get("PatientOrientation")
    if not isinstance(told, MutableSequence) or len(told) != 2:
        return True, []
    across, down = (str(direction)[:1] for direction in told)
    if {across, down} & {"A", "P"}:
        return True, ["PatientOrientation: not a frontal image?"]
    if across in ("H", "F") or down in ("L", "R"):
        return True, ["PatientOrientation: turned by a quarter?"]
    return across != "R", ["PatientOrientation: upside down?"] if down == "H" else []


def _doubts(dataset: "Dataset") -> list[str]:
    """Returns why this may be no frontal chest X-ray, by codes that are known."""
    modality, view, part = (
        str(dataset.get(name) or "").upper()
        for name in ("Modality", "ViewPosition", "BodyPartExamined")
    )
    said = []
    if modality and modality not in _SAMPLES:
        named = f" {modality}" if modality in _OTHERS else ""
        said.append(f"Modality{named}: not a chest X-ray?")
    if view and view not in _FRONTAL:
        named = f" {view}" if view in _NOT_FRONTAL else ""
        said.append(f"ViewPosition{named}: not a frontal image?")
    views = dataset.get("ViewCodeSequence") or []
    codes = {str(view.get("CodeValue") or "") for view in views}
    if not view and codes & _NOT_FRONTAL_CODES:
        said.append("ViewCodeSequence: not a frontal image?")
    if part and part not in _CHEST:
        named = f" {part}" if part in _ELSEWHERE else ""
        said.append(f"BodyPartExamined{named}: not a chest X-ray?")
    if str(dataset.get("PresentationIntentType") or "").upper() == "FOR PROCESSING":
        said.append("PresentationIntentType FOR PROCESSING: raw levels?")
    if str(dataset.get("BurnedInAnnotation") or "").upper() == "YES":
        said.append("BurnedInAnnotation: its pictures may name the patient")
    return said
