"""Strips image files to the parts that carry pixels, before a library parses them.

Pillow copies every tag, comment, profile and EXIF block of a file, and some of them
again when it decodes: a small file whose 65,535 tags share one region takes gigabytes.
It is given files without them. What covjax needs of them, how the image is to be turned
and how many images there are, is read here, by walks whose length is bounded.
"""

import dataclasses
import re
import struct
import zlib
from collections.abc import Iterator

from covjax.data.png import read_chunks

MOST_PAGES = 100  # that are counted
MOST_SCANS = 100  # of a JPEG: each decodes the whole image
_MOST_SEGMENTS = 10_000  # of a JPEG before its first scan; chunks of a WebP
_MOST_VALUES = 2**18  # of a TIFF tag: the largest image in tiles of 16 x 16
_MOST_TEXT = 2**20  # bytes of XMP, or of EXIF written as text
_ORIENTATION, _NUMBER_OF_IMAGES, _XMP = 0x0112, 0xB001, 700
_MARKER = re.compile(rb"\xff[^\xff\0]")
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_SIZES |= {13: 4}
_SHORT = 3
# TIFF tags that say where the pixels are and how they are stored.
_WIDTH, _HEIGHT, _COMPRESSION, _STRIPS, _TILE_WIDTH, _TILE_HEIGHT, _TILES = (
    256, 257, 259, 273, 322, 323, 324,
)  # fmt: skip
_PIXEL_TAGS = {_WIDTH, _HEIGHT, 258, _COMPRESSION, 262, 266, _STRIPS, 277, 278, 279}
_PIXEL_TAGS |= {284, 317, 320, _TILE_WIDTH, _TILE_HEIGHT, _TILES, 325, 332, 338, 339}
_PIXEL_TAGS |= {347, 529, 530, 531, 532}
# Of these, one number each, and of a type that every reader understands the same way.
_NUMBERS = {_WIDTH, _HEIGHT, _COMPRESSION, _TILE_WIDTH, _TILE_HEIGHT}
_UNSIGNED = {1, _SHORT, 4}  # types: 8, 16 and 32 bits
_FAX, _JPEG_IN_TIFF = {2, 3, 4}, 7
# None, LZW, JPEG, deflate (twice), PackBits.
_COMPRESSIONS = {1, 5, _JPEG_IN_TIFF, 8, 32773, 32946}
_SMALL_TILE = 2**20  # pixels

_APP0, _APP1, _APP2, _APP14, _APP15 = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF
_COMMENT, _SOS = 0xFE, 0xDA
_XAP = b"http://ns.adobe.com/xap/1.0/\0"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_WEBP_PIXELS = (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_WEBP_METADATA = 0x20 | 0x08 | 0x04  # flags of VP8X: ICC profile, EXIF, XMP

Tags = dict[int, tuple[int, int, bytes]]  # tag → type, count, value or its offset


class Unfit(ValueError):
    """A file that is refused; the text says why."""


@dataclasses.dataclass(frozen=True)
class Stripped:
    """A file with the parts that carry pixels.

    Attributes:
      content: of the file, in its format.
      orientation: EXIF orientation, 1 to 8; None if the file does not say.
      pages: number of images in the original file, at most `MOST_PAGES` + 1.
    """

    content: bytes
    orientation: int | None = None
    pages: int = 1


def strip_metadata(content: bytes) -> Stripped:
    """Returns a file without metadata.

    A BMP, which has none, and what is no image are returned as they are.

    Raises:
      Unfit: if its structure is broken, or costs more to read than an image needs.
    """
    for start, strip in _FORMATS.items():
        if content.startswith(start):
            return strip(content)
    return Stripped(content)


def _strip_png(content: bytes) -> Stripped:
    chunks = read_chunks(content)
    exif, texts = b"", {}
    for name, data in chunks:
        if name == b"eXIf":
            exif = bytes(data[:_MOST_TEXT])
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            texts[bytes(data[:79]).partition(b"\0")[0]] = name, data
    # The last of each keyword alone is inflated: a small chunk may hold much.
    xmp, raw = (
        _png_text(*texts[keyword]) if keyword in texts else b""
        for keyword in (b"XML:com.adobe.xmp", b"Raw profile type exif")
    )
    kept = [content[:8]]
    for name, data in chunks:
        if name in _PNG_PIXELS:
            check = zlib.crc32(data, zlib.crc32(name)).to_bytes(4, "big")
            kept += [len(data).to_bytes(4, "big"), name, data, check]
    exif = exif or _from_hex(raw)
    return Stripped(b"".join(kept), _orientation(exif, xmp), _count_frames(chunks))


def _count_frames(chunks: list[tuple[bytes, memoryview]]) -> int:
    """Returns the images of a PNG: frames of the animation, and one beside it."""
    frames, beside = 0, 1
    for name, data in chunks:
        if name == b"acTL":
            frames = int.from_bytes(data[:4], "big")
        elif name == b"fcTL":  # before the pixels: they are its first frame
            beside = 0
        elif name == b"IDAT":
            break
    return max(frames + beside, 1)


def _png_text(name: bytes, data: memoryview) -> bytes:
    """Returns the text of a chunk, up to `_MOST_TEXT` bytes."""
    _, _, text = bytes(data[: 2 * _MOST_TEXT]).partition(b"\0")
    packed = name == b"zTXt"
    if name == b"zTXt":
        text = text[1:]
    elif name == b"iTXt":
        packed = text[:1] == b"\1"
        text = text[2:].partition(b"\0")[2].partition(b"\0")[2]
    if packed:
        try:
            return zlib.decompressobj().decompress(text, _MOST_TEXT)
        except zlib.error:
            return b""
    return text[:_MOST_TEXT]


def _from_hex(text: bytes) -> bytes:
    """Returns EXIF out of ImageMagick's text: three lines, then hexadecimal digits."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""


def _strip_jpeg(content: bytes) -> Stripped:
    kept, exif, xmp, pages, at = [content[:2]], b"", b"", 1, 2
    for marker, start, end in _jpeg_segments(content):
        if marker == _SOS:
            at = start
            break
        data = content[start + 4 : end]
        if marker == _APP1 and data.startswith(b"Exif\0\0"):
            exif = exif or data
        elif marker == _APP1 and data.startswith(_XAP):
            xmp = data[len(_XAP) :]
        elif marker == _APP2 and data.startswith(b"MPF\0"):
            pages = _first_value(data[4:], _NUMBER_OF_IMAGES) or 1
        is_metadata = _APP0 <= marker <= _APP15 or marker == _COMMENT
        if not is_metadata or data.startswith((b"JFIF\0", b"Adobe")):
            kept.append(content[start:end])
    else:
        raise Unfit("cannot be read as a picture (broken or cut short)")
    if content.count(b"\xff\xda", at) > MOST_SCANS:
        raise Unfit(f"a JPEG of more than {MOST_SCANS} scans")
    kept.append(content[at:])
    return Stripped(b"".join(kept), _orientation(exif, xmp), pages)


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields marker, start and end of the segments up to the first scan, with that."""
    at = 2
    for _ in range(_MOST_SEGMENTS):
        found = _MARKER.search(content, at)
        if found is None or found.end() + 2 > len(content):
            return
        at, marker = found.start(), content[found.start() + 1]
        end = at + 2
        if not 0xD0 <= marker <= 0xD9 and marker != 0x01:  # those have no content
            end += int.from_bytes(content[at + 2 : at + 4], "big")
        yield marker, at, end
        if marker == _SOS:
            return
        at = end
    raise Unfit(f"a JPEG of more than {_MOST_SEGMENTS:,} segments")


def _strip_webp(content: bytes) -> Stripped:
    kept, exif, xmp, frames = [], b"", b"", 0
    for name, data in _webp_chunks(content):
        if name == b"EXIF":
            exif = bytes(data[:_MOST_TEXT])
        elif name == b"XMP ":
            xmp = bytes(data[:_MOST_TEXT])
        frames += name == b"ANMF"
        if name == b"VP8X" and len(data):
            flags = bytes([data[0] & ~_WEBP_METADATA])
            kept.append((name, flags + bytes(data[1:])))
        elif name in _WEBP_PIXELS:
            kept.append((name, data))
    parts: list[bytes | memoryview] = [b"WEBP"]
    for name, data in kept:
        size = len(data).to_bytes(4, "little")
        parts += [name, size, data, bytes(len(data) % 2)]
    body = b"".join(parts)
    whole = b"RIFF" + len(body).to_bytes(4, "little") + body
    return Stripped(whole, _orientation(exif, xmp), min(frames or 1, MOST_PAGES + 1))


def _webp_chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    if content[8:12] != b"WEBP":
        raise Unfit("cannot be read as a picture (no WebP)")
    whole, at = memoryview(content), 12
    end = min(len(content), 8 + int.from_bytes(content[4:8], "little"))
    for _ in range(_MOST_SEGMENTS):
        if at + 8 > end:
            return
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        if at + 8 + size > end:
            raise Unfit("cannot be read as a picture (broken or cut short)")
        yield content[at : at + 4], whole[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
    raise Unfit(f"a WebP of more than {_MOST_SEGMENTS:,} chunks")


def _strip_tiff(content: bytes) -> Stripped:
    order = "<" if content.startswith(b"II") else ">"
    tags, following = _read_tags(content, order, _first_directory(content, order))
    total = sum(_SIZES.get(kind, 0) * count for kind, count, _ in tags.values())
    if total > len(content):
        raise Unfit("a TIFF whose tags are larger than the file")
    pages = _count_pages(content, order, following)
    if pages > 1:  # refused for that: no need to look further
        return Stripped(content, pages=pages)
    _check_tags(content, tags, order)
    orientation = _value(tags, _ORIENTATION, order)
    if orientation is None and _XMP in tags:
        _, count, where = tags[_XMP]
        start = struct.unpack(f"{order}I", where)[0]
        xmp = content[start : start + min(count, _MOST_TEXT)]
        orientation = _orientation(b"", xmp)
    return Stripped(_keep_pixel_tags(content, tags, order), orientation)


def _keep_pixel_tags(content: bytes, tags: Tags, order: str) -> bytes:
    """Returns a TIFF whose directory has fewer tags, in its place, and no successor."""
    kept = sorted((tag, tags[tag]) for tag in _PIXEL_TAGS & tags.keys())
    directory = struct.pack(f"{order}H", len(kept))
    for tag, (kind, count, value) in kept:
        directory += struct.pack(f"{order}HHI", tag, kind, count) + value
    at = _first_directory(content, order)
    end = at + len(directory)
    # If no tag goes, what follows may be pixels: some writers leave out the pointer to
    # the next directory.
    directory += content[end : end + 4] if len(kept) == len(tags) else bytes(4)
    return b"".join([content[:at], directory, content[at + len(directory) :]])


def _check_tags(content: bytes, tags: Tags, order: str) -> None:
    """Refuses tags that make a decoder reserve more than the image needs."""
    if any(tags[tag][1] > _MOST_VALUES for tag in _PIXEL_TAGS & tags.keys()):
        raise Unfit(f"a TIFF with a tag of more than {_MOST_VALUES:,} values")
    for tag in _NUMBERS & tags.keys():
        # A decoder may find there another number than `_value` does.
        if tags[tag][0] not in _UNSIGNED or tags[tag][1] != 1:
            raise Unfit(f"a TIFF whose tag {tag} is not one unsigned number")
    compression = _value(tags, _COMPRESSION, order) or 1
    if compression in _FAX:
        # libtiff only warns of what is broken, and leaves there what lies about in
        # the memory.
        raise Unfit("compressed as a fax (CCITT): store it as PNG")
    if compression not in _COMPRESSIONS:
        raise Unfit(f"a TIFF of compression {compression}: store it as PNG")
    if compression == _JPEG_IN_TIFF:
        strips = sum(tags[tag][1] for tag in (_STRIPS, _TILES) if tag in tags)
        if content.count(b"\xff\xda") > MOST_SCANS + 4 * strips:
            raise Unfit(f"a TIFF of more than {MOST_SCANS} scans")
    tile = _area(tags, _TILE_WIDTH, _TILE_HEIGHT, order)
    if tile > max(_SMALL_TILE, 4 * _area(tags, _WIDTH, _HEIGHT, order)):
        raise Unfit("a TIFF whose tiles are larger than the image")


def _area(tags: Tags, width: int, height: int, order: str) -> int:
    return (_value(tags, width, order) or 0) * (_value(tags, height, order) or 0)


def _count_pages(content: bytes, order: str, following: int) -> int:
    pages, seen = 1, set()
    while following and following not in seen and pages <= MOST_PAGES:
        seen.add(following)
        try:
            _, following = _read_tags(content, order, following)
        except Unfit:
            break
        pages += 1
    return pages


def _first_directory(content: bytes, order: str) -> int:
    return int.from_bytes(content[4:8], "little" if order == "<" else "big")


def _read_tags(content: bytes, order: str, at: int) -> tuple[Tags, int]:
    """Returns the tags of a TIFF directory, and where the next one is (0: none).

    Args:
      content: from the byte order on.
      order: "<" or ">".
      at: where the directory is.

    Raises:
      Unfit: if it is cut short.
    """
    try:
        (number,) = struct.unpack_from(f"{order}H", content, at)
        tags: Tags = {}
        for k in range(number):
            entry = struct.unpack_from(f"{order}HHI4s", content, at + 2 + 12 * k)
            tags[entry[0]] = entry[1:]
        end = at + 2 + 12 * number
        # Some writers leave out where the next is, where there is none.
        following = int.from_bytes(
            content[end : end + 4], "little" if order == "<" else "big"
        )
        return tags, following
    except struct.error:
        raise Unfit("cannot be read as a picture (broken or cut short)") from None


def _value(tags: Tags, tag: int, order: str) -> int | None:
    """Returns a whole number that stands in the directory itself."""
    kind, count, value = tags.get(tag, (0, 0, b""))
    if count != 1 or _SIZES.get(kind, 8) > 4:
        return None
    if kind == _SHORT:
        return struct.unpack(f"{order}H", value[:2])[0]
    return struct.unpack(f"{order}I", value)[0] if _SIZES[kind] == 4 else value[0]


def _first_value(exif: bytes, tag: int) -> int | None:
    """Returns a whole number of the first directory of a TIFF within another file."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    try:
        tags, _ = _read_tags(exif, order, _first_directory(exif, order))
        return _value(tags, tag, order)
    except Unfit:
        return None


def _orientation(exif: bytes, xmp: bytes) -> int | None:
    """Returns the orientation that EXIF gives, else XMP."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    found = _first_value(exif, _ORIENTATION)
    if found is None and (match := _XMP_ORIENTATION.search(xmp[:_MOST_TEXT])):
        found = int(match[1])
    return found


_FORMATS = {
    b"\x89PNG\r\n\x1a\n": _strip_png,
    b"\xff\xd8\xff": _strip_jpeg,
    b"II*\0": _strip_tiff,
    b"MM\0*": _strip_tiff,
    b"RIFF": _strip_webp,
}
