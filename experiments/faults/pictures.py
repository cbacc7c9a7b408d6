"""Files of pictures, good and broken, made byte by byte where no library would."""

import functools
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def saved(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Returns the file that Pillow writes of a picture."""
    if isinstance(pixels, np.ndarray):
        pixels = Image.fromarray(pixels)
    file = io.BytesIO()
    pixels.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes, check: int | None = None) -> bytes:
    """Returns a chunk of a PNG; `check` instead of the right check value."""
    right = zlib.crc32(name + content) if check is None else check
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", right)


def png(
    width: int,
    height: int,
    data: bytes,
    *,
    head: Sequence[int] = (8, 0, 0, 0, 0),
    before: bytes = b"",
) -> bytes:
    """Returns a PNG.

    Args:
      width: as the header says.
      height: likewise.
      data: what stands in its one chunk of pixels, compressed.
      head: depth, kind of colour, compression, filter and interlacing.
      before: chunks ahead of the pixels.
    """
    size = struct.pack(">II", width, height)
    parts = (chunk(b"IHDR", size + bytes(head)), before, chunk(b"IDAT", data))
    return SIGNATURE + b"".join(parts) + chunk(b"IEND", b"")


def rows(samples: np.ndarray, filtering: int = 0) -> bytes:
    """Returns the uncompressed data of a PNG, [H, W] or [H, W, C], each row alike.

    Args:
      samples: uint8 or uint16.
      filtering: the number of the filter that each row names; 0 is none.
    """
    big = samples.astype(samples.dtype.newbyteorder(">"))
    return b"".join(bytes([filtering]) + row.tobytes() for row in big)


def zeros(length: int) -> bytes:
    """Returns so many bytes of 0, compressed at the cost of one MiB."""
    squeeze = zlib.compressobj(9, wbits=-15)
    block = squeeze.compress(bytes(1 << 20)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    blocks, rest = divmod(length, 1 << 20)
    end = squeeze.compress(bytes(rest)) + squeeze.flush()
    check = (length % 65521) << 16 | 1  # Adler's sums of zeros
    return b"\x78\xda" + block * blocks + end + struct.pack(">I", check)


def damaged_pngs(grey: np.ndarray) -> dict[str, bytes]:
    """Returns PNGs that break a rule of the format, and hold too little or nonsense.

    Args:
      grey: uint8 [H, W].
    """
    height, width = grey.shape
    data = zlib.compress(rows(grey))
    whole = png(width, height, data)
    size = struct.pack(">II", width, height)
    head = chunk(b"IHDR", size + b"\x08\0\0\0\0")
    idat, end = chunk(b"IDAT", data), chunk(b"IEND", b"")
    at = len(SIGNATURE) + len(head)  # of the length of the pixels
    wrong = {
        f"length-{name}": whole[:at] + struct.pack(">I", length) + whole[at + 4 :]
        for name, length in {
            "0": 0,
            "1": 1,
            "short": len(data) - 1,
            "long": len(data) + 1,
            "31-bits": 2**31 - 1,
            "32-bits": 2**32 - 1,
        }.items()
    }
    for name, content in (("IHDR", size + b"\x08\0\0\0\0"), ("IDAT", data)):
        bad = chunk(name.encode(), content, check=0)
        right = {"IHDR": head, "IDAT": idat} | {name: bad}
        wrong[f"check-{name}"] = SIGNATURE + right["IHDR"] + right["IDAT"] + end
    for name, head_of in {
        "depth-3": (3, 0, 0, 0, 0),
        "depth-0": (0, 0, 0, 0, 0),
        "depth-255": (255, 0, 0, 0, 0),
        "colour-1": (8, 1, 0, 0, 0),
        "colour-7": (8, 7, 0, 0, 0),
        "interlaced-not": (8, 0, 0, 0, 1),
        "interlacing-2": (8, 0, 0, 0, 2),
        "colour-without-bytes": (8, 2, 0, 0, 0),
        "16-bits-without-bytes": (16, 0, 0, 0, 0),
        "palette-without-one": (8, 3, 0, 0, 0),
    }.items():
        wrong[f"header-{name}"] = png(width, height, data, head=head_of)
    for name, (w, h) in {
        "width-0": (0, height),
        "height-0": (width, 0),
        "wider": (width + 1, height),
        "higher": (width, height + 1),
        "narrower": (width - 1, height),
        "wide-as-can-be": (2**31 - 1, 1),
        "beyond-31-bits": (2**32 - 1, 2**32 - 1),
        "large": (30_000, 30_000),
    }.items():
        wrong[f"header-{name}"] = png(w, h, data)
    return wrong | {
        "no-pixels": SIGNATURE + head + end,
        "no-header": SIGNATURE + idat + end,
        "no-end": SIGNATURE + head + idat[:-8] + end,
        "pixels-first": SIGNATURE + idat + head + end,
        "signature-alone": SIGNATURE,
        "filter-9": png(width, height, zlib.compress(rows(grey, 9))),
        "stream-of-noise": png(width, height, b"\x78\x9c" + bytes(range(256))),
        "stream-empty": png(width, height, b""),
        "ends-of-lines": whole.replace(b"\n", b"\r\n"),
        "as-text": whole.decode("latin-1").encode("utf-8"),
    }


@functools.cache
def bombs() -> dict[str, bytes]:
    """Returns small files that say, or hold, far more than an image does."""
    side = 30_000
    grey = png(side, side, zeros(side * (side + 1)))
    tiff = bytearray(saved(np.zeros((8, 8), np.uint8), "TIFF"))
    for tag in (256, 257):
        at = tiff.index(struct.pack("<HH", tag, 4)) + 8
        tiff[at : at + 4] = struct.pack("<I", side)
    bitmap = bytearray(saved(np.zeros((8, 8), np.uint8), "BMP"))
    bitmap[18:26] = struct.pack("<II", side, side)
    jpeg = bytearray(saved(np.zeros((8, 8), np.uint8), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    webp = bytearray(saved(np.zeros((8, 8), np.uint8), "WEBP"))
    webp[26:30] = struct.pack("<HH", 16_383, 16_383)
    text = zeros(2**30)
    small = zlib.compress(rows(np.zeros((8, 8), np.uint8)))
    return {
        "grey": grey,
        "colour": png(side, side, zeros(side * (3 * side + 1)), head=(8, 2, 0, 0, 0)),
        "16-bits": png(side, side, zeros(side * 2 * side), head=(16, 0, 0, 0, 0)),
        "1-bit": png(90_000, 90_000, zeros(90_000**2 // 8), head=(1, 0, 0, 0, 0)),
        "tall": png(4, 2**28, zeros(2**28)),
        "TIFF": bytes(tiff),
        "BMP": bytes(bitmap),
        "JPEG": bytes(jpeg),
        "WEBP": bytes(webp),
        "text-of-a-gigabyte": png(
            8, 8, small, head=(8, 2, 0, 0, 0), before=chunk(b"zTXt", b"a\0\0" + text)
        ),
        "profile-of-a-gigabyte": png(
            8, 8, small, head=(8, 2, 0, 0, 0), before=chunk(b"iCCP", b"a\0\0" + text)
        ),
    }


def tiff(entries: dict[int, tuple[int, int]], after: int, data: bytes) -> bytes:
    """Returns a TIFF of one directory.

    Args:
      entries: tags → (type, value); what stands at an offset is 4-byte.
      after: offset of the next directory.
      data: from byte 512 on.
    """
    body = b"".join(
        struct.pack("<HHII", tag, kind, 1, value)
        for tag, (kind, value) in sorted(entries.items())
    )
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + body
    return (head + struct.pack("<I", after)).ljust(512, b"\0") + data


def tiff_entries(side: int, bits: int) -> dict[int, tuple[int, int]]:
    """Returns the entries of a grey TIFF whose pixels stand at byte 512."""
    return {
        256: (3, side),
        257: (3, side),
        258: (3, bits),
        259: (3, 1),
        262: (3, 1),
        273: (4, 512),
        277: (3, 1),
        278: (3, side),
        279: (4, side * side * bits // 8),
    }


def damaged_tiffs(grey: np.ndarray) -> dict[str, bytes]:
    """Returns TIFFs that lie about where things are, or how many."""
    side, data = len(grey), grey.tobytes()
    right = tiff_entries(side, 8)
    changes: dict[str, Callable[[dict], dict]] = {
        "pixels-beyond-the-end": lambda e: e | {273: (4, 2**31)},
        "strip-of-gigabytes": lambda e: e | {279: (4, 2**31 - 1)},
        "tile-of-gigabytes": lambda e: (
            {k: v for k, v in e.items() if k not in (273, 278, 279)}
            | {322: (4, 65_536), 323: (4, 65_536), 324: (4, 512), 325: (4, 9)}
        ),
        "12-bits": lambda e: e | {258: (3, 12)},
        "64-bits": lambda e: e | {258: (3, 64)},
        "many-samples": lambda e: e | {277: (3, 60_000)},
        "compression-unknown": lambda e: e | {259: (3, 50_000)},
        "deflate-of-noise": lambda e: e | {259: (3, 8)},
        "fax-of-noise": lambda e: e | {259: (3, 4), 258: (3, 1)},
    }
    made = {name: tiff(change(right), 0, data) for name, change in changes.items()}
    # A second page, which is the first again: some count these for ever.
    made["directory-in-a-circle"] = tiff(right, 8, data)
    made["next-beyond-the-end"] = tiff(right, 2**31, data)
    return made
