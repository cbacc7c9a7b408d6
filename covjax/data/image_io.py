"""Pictures that others made, read safely: the right pixels, or one line that says why.

Nothing but a regular file is opened, no more is read of it than its length, and its
header is believed in nothing but what can be refused: room is made only for a picture
of a size that an image may have.
"""

import contextlib
import io
import logging
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import (
    BmpImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from covjax.data.containers import MOST_PAGES, Stripped, Unfit, strip_metadata
from covjax.data.png import MAX_PIXELS, MAX_SIDE, MIN_SIDE, decode_grey_png, is_whole
from covjax.errors import DataError

MAX_BYTES = 2**28  # of a file
# Of a grey PNG that is decoded outside of a worker process (`quick_only`): within a
# second and 100 MB, whatever it holds.
_QUICK_BYTES, _QUICK_PIXELS = 2**20, 2**22
_thread = threading.local()

# What Pillow remarks on in a file (an odd tag, say) is nothing to whoever trains.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)

# First bytes → who reads what follows. `Image.open` would try some forty formats, one
# of which starts a program, and warn of a large picture where it is to be refused.
_KINDS = {
    b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    b"\xff\xd8\xff": JpegImagePlugin.jpeg_factory,
    b"II*\0": TiffImagePlugin.TiffImageFile,
    b"MM\0*": TiffImagePlugin.TiffImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
    b"RIFF": WebPImagePlugin.WebPImageFile,
}


def shown(path: Path | str) -> str:
    """Returns a path as it can be printed in one line, whatever its characters."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path)
    )


def decode(path: Path) -> np.ndarray:
    """Returns a picture as grey of its own depth.

    Colour is weighed by ITU-R 601-2 luma (of 16 bits a channel, the upper eight count);
    transparency and colour profiles are left aside.

    Args:
      path: a PNG, JPEG, TIFF, BMP or WebP.

    Returns:
      uint8 or uint16 [H, W].

    Raises:
      DataError: naming the file, if it is missing, no regular file, broken, too large,
        of several pages, to be turned (EXIF), or neither of 8 nor of 16 bits.
    """
    try:
        return decode_content(read_content(path))
    except ValueError as error:
        raise DataError(f"{shown(path)}: {error}") from None


def read_grey(path: Path) -> np.ndarray:
    """Returns what `decode` does as 8 bits, uint8 [H, W]; 16 are scaled by 255 / 65535.

    Raises:
      DataError: as `decode` does.
    """
    grey = decode(path)
    if grey.dtype == np.uint8:
        return grey
    # 257 * 255 = 65535. Rounded in integers: floats would take 16 bytes a pixel.
    return (grey // 257 + (grey % 257 > 128)).astype(np.uint8)


def decode_content(content: bytes) -> np.ndarray:
    """Returns what `decode` does, of the bytes of a file.

    Raises:
      ValueError: saying why there are no pixels to be had.
    """
    if _is_quick_only() and not _is_quick(content):
        raise NeedsWorker
    grey = decode_grey_png(content)
    if grey is not None:
        return grey
    if _is_quick_only():
        raise NeedsWorker
    stripped = strip_metadata(content)
    picture = _open(stripped)
    if picture.format == "PNG" and not is_whole(content):
        raise ValueError("cannot be read as a picture (broken or cut short)")
    _refuse_turned(stripped.orientation)
    try:
        picture.load()  # the whole file: a truncated one fails here
        grey = picture if picture.mode.startswith("I") else picture.convert("L")
        pixels = np.asarray(grey)
    except MemoryError:  # says nothing of the file
        raise
    except Exception as error:  # Pillow's decoders raise many kinds
        raise _unreadable(error) from None
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("neither 8 nor 16 bits a pixel")
    return pixels.astype(np.uint16)


class NeedsWorker(Exception):
    """A file that is decoded in a worker process with limits, and not in this one."""


@contextlib.contextmanager
def quick_only() -> Iterator[None]:
    """While entered, this thread decodes small grey PNGs of 8 bits alone.

    Their decoder is written in Rust, and its time and memory are bounded by their size.
    Any other file raises `NeedsWorker`: its decoder may hang, or take any memory.
    """
    _thread.quick_only = True
    try:
        yield
    finally:
        _thread.quick_only = False


def _is_quick_only() -> bool:
    return getattr(_thread, "quick_only", False)


def _is_quick(content: bytes) -> bool:
    width, height = (int.from_bytes(content[k : k + 4], "big") for k in (16, 20))
    return len(content) <= _QUICK_BYTES and width * height <= _QUICK_PIXELS


def read_content(path: Path) -> bytes:
    """Returns the bytes of a regular file of at most `MAX_BYTES`.

    Raises:
      ValueError: saying why they are not to be had.
    """
    try:
        told = os.stat(path)
        if not stat.S_ISREG(told.st_mode):  # a pipe would wait, a device never end
            raise ValueError("no regular file")
        if told.st_size > MAX_BYTES:
            raise ValueError(f"{told.st_size:,} bytes, more than {MAX_BYTES:,}")
        with path.open("rb") as file:
            content = file.read(told.st_size)
    except FileNotFoundError:
        raise ValueError("no such file") from None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    if not content:
        raise ValueError("cannot be read as a picture (it is empty)")
    return content


def _open(stripped: Stripped) -> Any:
    """Returns a Pillow picture whose header is fit to be read, and its pixels not yet.

    Raises:
      ValueError: if it is not.
    """
    content = stripped.content
    start = next((start for start in _KINDS if content.startswith(start)), None)
    if start is None:
        raise ValueError("cannot be read as a picture (no PNG, JPEG, TIFF, BMP, WebP)")
    if start == b"RIFF":
        check_size(*_webp_size(content))  # its decoder makes room at once
    if stripped.pages > 1:
        number = f"more than {MOST_PAGES}"
        if stripped.pages <= MOST_PAGES:
            number = str(stripped.pages)
        raise ValueError(f"{number} pages or frames, where one image is asked for")
    try:
        picture = _KINDS[start](io.BytesIO(content))
        check_size(*picture.size)
    except Unfit:
        raise
    except MemoryError:  # says nothing of the file
        raise
    except Exception as error:  # Pillow's decoders raise many kinds
        raise _unreadable(error) from None
    _check_depth(picture)
    return picture


def _unreadable(error: Exception) -> ValueError:
    said = str(error).partition("\n")[0][:100] or type(error).__name__
    return ValueError(f"cannot be read as a picture ({said})")


def check_size(width: int, height: int) -> None:
    """Refuses a picture of a size that no image has, before there is room made for it.

    Raises:
      ValueError: telling its size.
    """
    if width * height > MAX_PIXELS:
        raise Unfit(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")
    if min(width, height) < MIN_SIDE:
        raise Unfit(f"{width} x {height} pixels, less than {MIN_SIDE} a side")
    if max(width, height) > MAX_SIDE:
        raise Unfit(f"{width} x {height} pixels, more than {MAX_SIDE:,} a side")


def _webp_size(content: bytes) -> tuple[int, int]:
    """Returns width and height, as the first chunk of a WebP tells them."""

    def number(at: int, length: int) -> int:
        return int.from_bytes(content[at : at + length], "little")

    kind = content[12:16]
    if kind == b"VP8X":
        return number(24, 3) + 1, number(27, 3) + 1
    if kind == b"VP8L":
        return (number(21, 4) & 0x3FFF) + 1, (number(21, 4) >> 14 & 0x3FFF) + 1
    return number(26, 2) & 0x3FFF, number(28, 2) & 0x3FFF


def _check_depth(picture: Any) -> None:
    """Refuses what would be read, and not as it was meant."""
    deep = picture.mode.startswith("I")
    if picture.mode == "F":
        raise ValueError("neither 8 nor 16 bits a pixel")
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        tags = picture.tag_v2
        bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
        if deep and set(bits) - {16, 32}:
            raise ValueError(f"{bits[0]} bits a pixel, neither 8 nor 16")
        if deep and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
            raise ValueError("16 bits with black and white exchanged")


def _refuse_turned(turned: Any) -> None:
    if turned in range(2, 9):
        # Whether the masks were drawn on it before it was turned, nobody can tell.
        raise ValueError(
            f"to be turned when shown (EXIF orientation {turned}): store it upright"
        )
