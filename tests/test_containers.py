"""Small files that ask for much memory: refused, or read without what asks for it."""

import struct
import tracemalloc
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from covjax.data import containers
from covjax.data.image_io import NeedsWorker, decode_content, quick_only
from test_png import chunk, saved

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
_PIXELS = [
    (256, 3, 1, 64), (257, 3, 1, 64), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
    (277, 3, 1, 1), (278, 3, 1, 64), (279, 4, 1, 4096),
]  # fmt: skip


def shared_tags(number: int, size: int, others: Sequence[Any] = ()) -> bytes:
    """A TIFF directory in which so many tags point to the same bytes."""
    at = 8 + 2 + 12 * (number + len(others) + bool(others)) + 4
    tags = [*others, *([(273, 4, 1, at)] if others else [])]
    tags += [(40_000 + k, 1, size, at) for k in range(number)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4 + size)


def segment(marker: int, data: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    whole = saved(Image.fromarray(NOISE).convert("RGB"), "WEBP", lossless=True)
    size = struct.pack("<I", 63)[:3] * 2
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x08\0\0\0" + size + whole[12:]
    body += b"".join(
        name + struct.pack("<I", len(data)) + data for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def peak(content: bytes) -> tuple[str, int]:
    """Returns what was said of a file ("" if it was read), and the memory it took."""
    tracemalloc.start()
    try:
        decode_content(content)
        said = ""
    except ValueError as error:
        said = str(error)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return said, most


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_whose_tags_share_bytes_is_not_expanded(kind):
    exif = shared_tags(500, 50_000)  # 25 MB, if each were copied
    colour = saved(Image.fromarray(NOISE).convert("RGB"))
    jpeg = saved(NOISE_PICTURE, "JPEG")
    content = {
        "PNG": colour[:33] + chunk(b"eXIf", exif) + colour[33:],
        "JPEG": jpeg[:2] + segment(0xE1, b"Exif\0\0" + exif) + jpeg[2:],
        "WEBP": webp((b"EXIF", exif)),
    }[kind]
    said, most = peak(content)
    assert said == "" and most < 2e6


NOISE_PICTURE = Image.fromarray(NOISE)


def test_tiff_whose_tags_share_bytes_is_refused():
    said, most = peak(shared_tags(500, 50_000, _PIXELS))
    assert said == "a TIFF whose tags are larger than the file" and most < 1e6
    assert peak(shared_tags(1, 50_000, _PIXELS))[0] == ""


def test_tiff_whose_tile_is_larger_than_its_image_is_refused():
    others = [tag for tag in _PIXELS if tag[0] not in (278, 279)]
    content = shared_tags(
        0, 50_000, [*others, (322, 4, 1, 2**15), (323, 4, 1, 2**15), (324, 4, 1, 300)]
    )
    assert peak(content)[0] == "a TIFF whose tiles are larger than the image"


def test_png_of_very_many_chunks_is_refused():
    colour = saved(NOISE_PICTURE.convert("RGB"))
    said, most = peak(colour[:33] + chunk(b"abCd", b"") * 70_000 + colour[33:])
    assert said == "a PNG of more than 65,536 chunks" and most < 3e7


def test_jpeg_and_webp_of_very_many_parts_are_refused():
    jpeg = saved(NOISE_PICTURE, "JPEG")
    said, _ = peak(jpeg[:2] + segment(0xFE, b"ab") * 20_000 + jpeg[2:])
    assert said == "a JPEG of more than 10,000 segments"
    said, _ = peak(webp(*[(b"abcd", b"")] * 20_000))
    assert said == "a WebP of more than 10,000 chunks"


def test_only_small_grey_pngs_are_decoded_without_a_worker():
    with quick_only():
        np.testing.assert_array_equal(decode_content(saved(NOISE_PICTURE)), NOISE)
        for content in (
            saved(NOISE_PICTURE, "JPEG"),
            saved(NOISE_PICTURE.convert("RGB")),
            saved(Image.new("L", (2049, 2048))),
        ):
            with pytest.raises(NeedsWorker):
                decode_content(content)
    assert decode_content(saved(NOISE_PICTURE, "JPEG")).shape == NOISE.shape


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_without_a_pointer_to_the_next_directory_keeps_its_pixels(order):
    at = 8 + 2 + 12 * (len(_PIXELS) + 1)  # the pixels follow the last tag
    tags = sorted([*_PIXELS, (273, 4, 1, at)])
    content = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    content += struct.pack(f"{order}H", len(tags))
    for tag, kind, count, value in tags:
        packed = struct.pack(f"{order}{'HI'[kind == 4]}", value).ljust(4, b"\0")
        content += struct.pack(f"{order}HHI", tag, kind, count) + packed
    pixels = NOISE.copy()
    pixels[0, :4] = 255  # as a pointer, beyond the end of the file
    found = decode_content(content + pixels.tobytes())
    np.testing.assert_array_equal(found, pixels)


# Types 8, 9 and 16: signed of 16 and 32 bits, and unsigned of 64 bits at an offset.
@pytest.mark.parametrize("kind", [8, 9, 16])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_tags_of_an_unusual_type_hide_no_fax(kind, order):
    tags = {tag: (known, value) for tag, known, _, value in _PIXELS}
    tags |= {258: (3, 1), 259: (kind, 4)}
    start = 8 + 2 + 12 * (len(tags) + 1) + 4
    tags[273] = (4, start + 8)
    directory = struct.pack(f"{order}H", len(tags))
    for tag, (known, value) in sorted(tags.items()):
        if known == 16:
            packed = struct.pack(f"{order}I", start)
        else:
            packed = struct.pack(f"{order}{'H' if known in (3, 8) else 'I'}", value)
        directory += struct.pack(f"{order}HHI", tag, known, 1) + packed.ljust(4, b"\0")
    content = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    content += directory + bytes(4) + struct.pack(f"{order}Q", 4) + NOISE.tobytes()
    assert peak(content)[0] == "a TIFF whose tag 259 is not one unsigned number"


def test_tiff_tile_of_a_signed_type_is_refused():
    others = [tag for tag in _PIXELS if tag[0] not in (278, 279)]
    others += [(322, 8, 1, 2**14), (323, 8, 1, 2**14), (324, 4, 1, 300)]
    said, _ = peak(shared_tags(0, 50_000, others))
    assert said == "a TIFF whose tag 322 is not one unsigned number"


def test_only_the_last_text_of_a_png_is_inflated(monkeypatch):
    inflated = []

    def count(name: bytes, data: memoryview) -> bytes:
        inflated.append(name)
        return inflate(name, data)

    inflate = containers._png_text
    monkeypatch.setattr(containers, "_png_text", count)
    text = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(2**20)))
    colour = saved(NOISE_PICTURE.convert("RGB"))
    assert peak(colour[:33] + 5 * text + colour[33:])[0] == ""
    assert inflated == [b"zTXt"]


def test_padding_before_a_jpeg_segment_is_passed_over():
    jpeg = saved(NOISE_PICTURE, "JPEG")
    padded = jpeg[:2] + b"\xff" * 100 + b"\xff\0" * 100 + jpeg[2:]
    np.testing.assert_array_equal(decode_content(padded), decode_content(jpeg))
