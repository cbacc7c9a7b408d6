"""Compressed pixels as DICOM carries them, decoded by imagecodecs.

Its libraries (libjpeg-turbo, CharLS, OpenJPEG) answer a broken stream with an error.
GDCM, which pydicom would ask, ends the process, and writes to the terminal. A stream is
decoded only if its own header has the size that the file has told: room is made by it.
"""

import math
import struct
from collections.abc import Iterator

import imagecodecs
import numpy as np

# Transfer syntaxes (PS3.5 section 10) by their UID.
RLE = "1.2.840.10008.1.2.5"
JPEG = {
    "1.2.840.10008.1.2.4.50": "baseline",
    "1.2.840.10008.1.2.4.51": "extended, 8 and 12 bits",
    "1.2.840.10008.1.2.4.57": "lossless",
    "1.2.840.10008.1.2.4.70": "lossless, first-order prediction",
}
JPEG_LS = {
    "1.2.840.10008.1.2.4.80": "lossless",
    "1.2.840.10008.1.2.4.81": "near-lossless",
}
JPEG_2000 = {
    "1.2.840.10008.1.2.4.90": "lossless",
    "1.2.840.10008.1.2.4.91": "lossy",
    "1.2.840.10008.1.2.4.201": "high-throughput, lossless",
    "1.2.840.10008.1.2.4.202": "high-throughput, lossless, by resolution",
    "1.2.840.10008.1.2.4.203": "high-throughput, lossy",
}
KNOWN = {RLE, *JPEG, *JPEG_LS, *JPEG_2000}

_END = b"\xff\xd9"  # of every stream but RLE; zeros and some other bytes may follow
_PADDING = 16
# A JP2 file around it has no place in DICOM, but is met.
_START_2000 = b"\xff\x4f\xff\x51"
_LOOK_FOR_START = 4096
# Markers that start a frame, and so tell its size; four of the row are none.
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
# Sequential, baseline and extended, and lossless. A progressive frame is decoded as a
# whole for each of its scans, of which there may be any number.
_FRAMES_OF_DICOM = {0xC0, 0xC1, 0xC3}
_SCAN = b"\xff\xda"
_APP0, _APP14 = 0xE0, 0xEE
_COD = 0x52  # of JPEG 2000
_MOST_PACKETS = 2**22  # of JPEG 2000: each precinct of each layer is one
_MOST_TILES = 2**12


def decode_stream(
    stream: bytes, syntax: str, shape: tuple[int, int, int], bits: int
) -> np.ndarray:
    """Decodes the pixels of one image.

    Args:
      stream: the compressed pixels, all fragments as one.
      syntax: UID of the transfer syntax, one of `KNOWN`.
      shape: rows, columns, samples a pixel (1 or 3), as the file tells them.
      bits: allocated for a sample, 8 or 16; RLE alone goes by it.

    Returns:
      uint8, uint16, int8 or int16 of that shape. JPEG 2000 makes red, green and blue of
      luminance and differences; the others leave three samples as they are.

    Raises:
      ValueError: saying why there are no pixels to be had.
    """
    if syntax == RLE:
        return _decode_rle(stream, shape, bits)
    if _END not in stream.rstrip(b"\0")[-_PADDING:]:
        # A decoder would fill up with grey what is missing, or look for it long.
        raise ValueError("its compressed pixels are cut short")
    if syntax in JPEG_2000:
        start = stream.find(_START_2000, 0, _LOOK_FOR_START)
        stream = stream[max(start, 0) :]
        size = _size_2000(stream)
    else:
        size = _size(stream)
    if size != shape:
        raise ValueError("its compressed pixels are of another size than it says")
    if syntax in JPEG_2000:
        _check_2000(stream)
    else:
        _check_scans(stream, syntax, shape[2])
    try:
        if syntax in JPEG_2000:
            pixels = imagecodecs.jpeg2k_decode(stream)
        elif syntax in JPEG_LS:
            pixels = imagecodecs.jpegls_decode(stream)
        else:
            # The same before and after, whatever its name: nothing is converted.
            space = "YCBCR" if shape[2] == 3 else None
            pixels = imagecodecs.jpeg8_decode(
                stream, colorspace=space, outcolorspace=space
            )
    except MemoryError:  # says nothing of the file
        raise
    except Exception as error:  # each codec has its own
        raise ValueError(
            f"its compressed pixels are broken ({type(error).__name__})"
        ) from None
    if pixels.size != np.prod(shape) or pixels.dtype.itemsize > 2:
        raise ValueError("its compressed pixels are of another size than it says")
    return pixels.reshape(shape)


def says_rgb(stream: bytes, syntax: str) -> bool | None:
    """Tells whether three samples, once decoded, are red, green and blue by the stream.

    None: it does not say. A JPEG says so by the names of its components. They are not
    with a header of JFIF, where they are luminance and differences (ITU-T T.871), or
    with one of Adobe's that says so (T.872). JPEG 2000 says so by its transformation.
    """
    if syntax in JPEG_2000:
        start = max(stream.find(_START_2000, 0, _LOOK_FOR_START), 0)
        coding = next((s for m, s in _segments(stream[start:]) if m == _COD), b"")
        return True if coding[4:5] == b"\1" else None
    if syntax not in JPEG:
        return None
    segments = list(_segments(stream))
    if any(m in _FRAMES and s[6:15:3].upper() == b"RGB" for m, s in segments):
        return True
    differences = any(
        (marker == _APP0 and segment.startswith(b"JFIF\0"))
        or (marker == _APP14 and segment.startswith(b"Adobe") and segment[11:] == b"\1")
        for marker, segment in segments
    )
    return False if differences else None


def _decode_rle(stream: bytes, shape: tuple[int, int, int], bits: int) -> np.ndarray:
    rows, columns, samples = shape
    room = rows * columns * samples * bits // 8
    try:
        # Never more than `room`, however often the stream repeats a byte.
        content = imagecodecs.dicomrle_decode(stream, f"<u{bits // 8}", out=room)
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"its compressed pixels are broken ({type(error).__name__})"
        ) from None
    if len(content) != room:
        raise ValueError("its compressed pixels are cut short")
    planes = np.frombuffer(content, f"<u{bits // 8}").reshape(samples, rows, columns)
    return np.ascontiguousarray(np.moveaxis(planes, 0, -1))


def _check_scans(stream: bytes, syntax: str, samples: int) -> None:
    """Refuses a JPEG or JPEG-LS whose decoding costs more than its pixels."""
    frames = [marker for marker, _ in _segments(stream) if marker in _FRAMES]
    if len(frames) > 1:
        raise ValueError("its compressed pixels have several frame headers")
    if syntax in JPEG and not _FRAMES_OF_DICOM.issuperset(frames):
        raise ValueError("its JPEG is of a process that its transfer syntax excludes")
    first = max(stream.find(_SCAN, _end_of_header(stream)), 0)
    if stream.count(_SCAN, first) > samples:
        raise ValueError("its compressed pixels have more scans than samples")


def _end_of_header(stream: bytes) -> int:
    return 2 + sum(4 + len(segment) for _, segment in _segments(stream))


def _check_2000(stream: bytes) -> None:
    """Refuses a JPEG 2000 of more tiles or packets than a picture needs.

    A decoder reserves some hundred bytes for each, before it looks for their data.
    """
    x1, y1, _, _, width, height, x0, y0 = struct.unpack_from(">8I", stream, 8)
    samples = int.from_bytes(stream[40:42], "big")
    if not width or not height:
        raise ValueError("its compressed pixels have tiles of no size")
    tiles = math.ceil((x1 - x0) / width) * math.ceil((y1 - y0) / height)
    if tiles > _MOST_TILES:
        raise ValueError(f"its compressed pixels have more than {_MOST_TILES:,} tiles")
    across, down = min(x1, width), min(y1, height)
    for marker, coding in _segments(stream):
        if marker == _COD and len(coding) >= 10:
            packets = _packets(coding, across, down) * tiles * samples
            if packets > _MOST_PACKETS:
                raise ValueError(
                    f"its compressed pixels have more than {_MOST_PACKETS:,} packets"
                )


def _packets(coding: bytes, across: int, down: int) -> int:
    """Returns the packets of a tile's component, by a COD segment (T.800, A.6.1)."""
    layers = int.from_bytes(coding[2:4], "big")
    levels = min(coding[5], 32)
    count = 0
    for level in range(levels + 1):
        size = 0xFF  # 2^15 by 2^15
        if coding[0] & 1 and len(coding) > 10 + level:
            size = coding[10 + level]
        shrink = levels - level
        across_precincts = math.ceil(across / 2 ** (shrink + (size & 15)))
        down_precincts = math.ceil(down / 2 ** (shrink + (size >> 4)))
        count += across_precincts * down_precincts
    return layers * count


def _size(stream: bytes) -> tuple[int, int, int] | None:
    """Returns rows, columns and samples of a JPEG or a JPEG-LS; None: not to be had."""
    sizes = {
        (
            int.from_bytes(segment[1:3], "big"),
            int.from_bytes(segment[3:5], "big"),
            segment[5],
        )
        for marker, segment in _segments(stream)
        if marker in _FRAMES and len(segment) > 5
    }
    return sizes.pop() if len(sizes) == 1 else None


def _segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields marker and content of what stands before the first scan or tile."""
    at = 2
    while at + 4 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # a byte of padding
            at += 1
            continue
        if marker in (0xDA, 0x90):
            return
        length = int.from_bytes(stream[at + 2 : at + 4], "big")
        yield marker, stream[at + 4 : at + 2 + length]
        at += 2 + length


def _size_2000(stream: bytes) -> tuple[int, int, int] | None:
    """Returns rows, columns and samples of a JPEG 2000 codestream; None as above."""
    if not stream.startswith(_START_2000) or len(stream) < 42:
        return None
    right, bottom, left, top = (
        int.from_bytes(stream[at : at + 4], "big") for at in (8, 12, 16, 20)
    )
    return bottom - top, right - left, int.from_bytes(stream[40:42], "big")
