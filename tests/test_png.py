"""The fast decoder of grey PNGs: right pixels, or none."""

import io
import tracemalloc
import zlib

import kornia_rs
import numpy as np
import pytest
from PIL import Image

from covjax.data.png import decode_grey_png, is_whole, read_chunks

# Wider than high; noise and a ramp, for which an encoder chooses other filters.
GREY = np.random.default_rng(0).integers(0, 256, (12, 20), np.uint8)
GREY[6:] = np.arange(120, dtype=np.uint8).reshape(6, 20)


def chunk(name: bytes, content: bytes) -> bytes:
    check = zlib.crc32(name + content).to_bytes(4, "big")
    return len(content).to_bytes(4, "big") + name + content + check


def png(rows: list[bytes], width: int, head: bytes = b"\x08\0\0\0\0") -> bytes:
    """A PNG by hand, from rows that begin with the number of their filter."""
    size = width.to_bytes(4, "big") + len(rows).to_bytes(4, "big")
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size + head)
        + chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + chunk(b"IEND", b"")
    )


def saved(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def test_pixels_are_those_that_were_saved():
    decoded = decode_grey_png(saved(Image.fromarray(GREY)))
    assert decoded is not None and decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, GREY)


def test_every_filter_of_a_row_is_undone_by_hand():
    # None; Sub adds the left, Up the upper, Average half of both, Paeth the nearest of
    # left, upper and upper left to left + upper - upper left; all of them modulo 256.
    rows = [
        bytes([0, 10, 20, 250, 0]),
        bytes([1, 1, 2, 3, 4]),  # 1, 3, 6, 10
        bytes([2, 9, 255, 0, 0]),  # 10, 2, 6, 10
        bytes([3, 5, 1, 1, 1]),  # 10, 7, 7, 9
        bytes([4, 1, 1, 1, 1]),  # 11, 8, 9, 10
    ]
    decoded = decode_grey_png(png(rows, 4))
    assert decoded is not None
    assert decoded.tolist() == [
        [10, 20, 250, 0],
        [1, 3, 6, 10],
        [10, 2, 6, 10],
        [10, 7, 7, 9],
        [11, 8, 9, 10],
    ]


PICTURE = Image.fromarray(GREY)
OTHERS = {
    "colour": saved(PICTURE.convert("RGB")),
    "palette": saved(PICTURE.convert("P")),
    "grey with alpha": saved(PICTURE.convert("LA")),
    "16 bits": saved(Image.fromarray(GREY.astype(np.uint16) * 257)),
    "1 bit": saved(PICTURE.convert("1")),
    "JPEG": saved(PICTURE, "JPEG"),
    "empty": b"",
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS.keys())
def test_other_pictures_are_left_to_others(content):
    assert decode_grey_png(content) is None


def test_a_broken_file_gives_nothing_wherever_it_breaks():
    whole = saved(PICTURE)
    end = len(whole) - 12  # the last chunk holds nothing
    for length in range(end):
        assert decode_grey_png(whole[:length]) is None
    for k in range(16, end):  # a bit of the header or the pixels
        broken = bytearray(whole)
        broken[k] ^= 4
        assert decode_grey_png(bytes(broken)) is None


def test_no_room_is_made_for_what_a_broken_header_says(monkeypatch):
    asked = []
    monkeypatch.setattr(
        kornia_rs.io, "decode_image_png_u8", lambda *args: asked.append(args)
    )
    broken = bytearray(saved(PICTURE))
    broken[16] ^= 64  # a width of a billion
    assert decode_grey_png(bytes(broken)) is None
    assert asked == []


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (40, 3)])
def test_picture_of_a_few_pixels_is_left_to_others(size):
    assert decode_grey_png(saved(Image.new("L", size))) is None
    assert decode_grey_png(saved(Image.new("L", (4, 4)))) is not None


def test_no_room_is_made_for_more_pixels_than_an_image_has(monkeypatch):
    asked = []
    monkeypatch.setattr(
        kornia_rs.io, "decode_image_png_u8", lambda *args: asked.append(args)
    )
    whole = saved(PICTURE)
    size = (2**13).to_bytes(4, "big") + (2**13 + 1).to_bytes(4, "big")
    head = chunk(b"IHDR", size + b"\x08\0\0\0\0")
    assert decode_grey_png(whole[:8] + head + whole[33:]) is None
    assert asked == []


@pytest.mark.parametrize("name", [b"acTL", b"eXIf"])
def test_animation_and_picture_to_be_turned_are_left_to_others(name):
    whole = saved(PICTURE)
    assert decode_grey_png(whole[:33] + chunk(name, bytes(8)) + whole[33:]) is None


def test_every_chunk_is_checked_to_the_last():
    whole = saved(PICTURE.convert("RGB"))
    assert is_whole(whole) and is_whole(whole + b"rest")
    for k in range(8, len(whole)):
        assert not is_whole(whole[:k])
        broken = bytearray(whole)
        broken[k] ^= 1
        assert not is_whole(bytes(broken))


# Bytes of 5 columns and 6 rows, counted by hand: each row is named by one more.
@pytest.mark.parametrize(
    ("head", "length"),
    [
        ((8, 0, 0, 0, 0), 6 * (1 + 5)),
        ((1, 0, 0, 0, 0), 6 * (1 + 1)),
        ((4, 0, 0, 0, 0), 6 * (1 + 3)),
        ((16, 0, 0, 0, 0), 6 * (1 + 10)),
        ((8, 2, 0, 0, 0), 6 * (1 + 15)),
        ((16, 6, 0, 0, 0), 6 * (1 + 40)),
        ((8, 4, 0, 0, 0), 6 * (1 + 10)),
        # Adam7: 1x1, 1x1 (column 4), 2x1 (row 4; columns 0, 4), 1 column by 2 rows,
        # 3x1 (row 2), 2 columns by 3 rows, 5x3.
        ((8, 0, 0, 0, 1), 2 + 2 + 3 + 2 * 2 + 4 + 3 * 3 + 3 * 6),
    ],
)
def test_a_value_is_there_for_each_pixel(head, length):
    def made(length: int) -> bytes:
        size = b"\0\0\0\5\0\0\0\6" + bytes(head)
        data = chunk(b"IDAT", zlib.compress(bytes(length)))
        start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size)
        return start + data + chunk(b"IEND", b"")

    assert is_whole(made(length)) and is_whole(made(length + 9))
    assert not is_whole(made(length - 1))
    assert Image.open(io.BytesIO(made(length))).convert("L").size == (5, 6)


def test_palette_has_to_be_there():
    whole = saved(PICTURE.convert("P"))
    at = whole.index(b"PLTE") - 4
    end = at + 12 + int.from_bytes(whole[at : at + 4], "big")
    assert is_whole(whole) and not is_whole(whole[:at] + whole[end:])


def test_what_is_not_inflated_yet_is_not_copied_as_a_whole():
    content = saved(Image.new("RGB", (2048, 2048)), compress_level=0)  # 12.6 MB
    start = content.index(b"IDAT") - 4
    chunks = [data for name, data in read_chunks(content) if name == b"IDAT"]
    whole = content[:start] + chunk(b"IDAT", b"".join(chunks)) + chunk(b"IEND", b"")
    tracemalloc.start()
    assert is_whole(whole)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 6e6
