"""Every kind of picture: the right pixels, or one line that names the file."""

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from covjax.data import image_io
from covjax.data.image_io import decode_content, read_grey, shown
from covjax.errors import DataError
from test_png import chunk, png, saved

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
NOISE = np.random.default_rng(0).integers(0, 256, (24, 32), np.uint8)


def write(path: Path, array: np.ndarray, **options) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def palette() -> Image.Image:
    # Index 0 is white and 1 is black: reading the indices would turn them round.
    picture = Image.fromarray(np.eye(4, dtype=np.uint8), "P")
    picture.putpalette([255, 255, 255, 0, 0, 0])
    return picture


def with_alpha(mode: str) -> Image.Image:
    picture = Image.fromarray(RAMP).convert(mode)
    picture.putalpha(0)  # wholly transparent: the colour below must still come out
    return picture


def tall(levels: object, dtype: type = np.uint8) -> np.ndarray:
    """Four rows that are the same."""
    return np.repeat(np.array([levels], dtype), 4, axis=0)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (lambda: Image.fromarray(RAMP), RAMP),
        (lambda: Image.fromarray(RAMP).convert("RGB"), RAMP),
        (lambda: with_alpha("RGB"), RAMP),
        (lambda: with_alpha("L"), RAMP),
        (palette, 255 * (1 - np.eye(4))),
        (lambda: Image.fromarray(np.eye(4) > 0), 255 * np.eye(4)),
        # Luma of pure red, green and blue: .299, .587 and .114 of 255.
        (
            lambda: Image.fromarray(tall([*np.eye(3) * 255, (255, 255, 255)])),
            tall([76, 150, 29, 255]),
        ),
        # 128 / 257 and 385 / 257 are just below a half, 129 / 257 just above.
        (
            lambda: Image.fromarray(
                tall([0, 128, 129, 385, 257 * 100, 65535], np.uint16)
            ),
            tall([0, 0, 1, 1, 100, 255]),
        ),
    ],
    ids=["L", "RGB", "RGBA", "LA", "P", "1", "luma", "I;16"],
)
def test_reads_every_mode_as_8_bit_grey(tmp_path, picture, expected):
    picture().save(tmp_path / "x.png")
    grey = read_grey(tmp_path / "x.png")
    assert grey.dtype == np.uint8
    np.testing.assert_array_equal(grey, expected)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_reads_16_bit_tiff(tmp_path, dtype):
    write(tmp_path / "x.tif", tall([0, 257 * 7, 65535, 257], dtype))
    np.testing.assert_array_equal(read_grey(tmp_path / "x.tif"), tall([0, 7, 255, 1]))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_grey_of_few_bits_is_spread_over_the_scale(depth):
    top = 2**depth - 1
    levels = np.arange(16) % (top + 1)
    bits = "".join(f"{level:0{depth}b}" for level in levels)
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    content = png([row] * 4, 16, bytes([depth, 0, 0, 0, 0]))
    np.testing.assert_array_equal(decode_content(content), tall(levels * 255 // top))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_reads_cmyk(kind):
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[..., 3] = 255 - RAMP  # black ink alone
    options = {"quality": 95} if kind == "JPEG" else {}
    content = saved(Image.fromarray(ink, "CMYK"), kind, **options)
    np.testing.assert_allclose(decode_content(content).astype(int), RAMP, atol=6)


def test_reads_jpeg_webp_and_bitmaps():
    picture = Image.fromarray(RAMP)
    for kind, options in (("JPEG", {"quality": 95}), ("WEBP", {"lossless": True})):
        grey = decode_content(saved(picture.convert("RGB"), kind, **options))
        np.testing.assert_allclose(grey.astype(int), RAMP, atol=6)
    np.testing.assert_array_equal(decode_content(saved(picture, "BMP")), RAMP)


@pytest.mark.parametrize("kind", ["tiff_ccitt", "group3", "group4"])
def test_a_fax_is_refused_as_its_broken_lines_go_unseen(kind):
    content = saved(Image.new("1", (32, 32)), "TIFF", compression=kind)
    with pytest.raises(ValueError, match="compressed as a fax"):
        decode_content(content)


def test_grey_of_a_tiff_whose_zero_is_white():
    content = saved(Image.fromarray(RAMP), "TIFF", tiffinfo={262: 0})
    np.testing.assert_array_equal(decode_content(content), RAMP)
    content = saved(Image.fromarray(RAMP.astype(np.uint16)), "TIFF", tiffinfo={262: 0})
    refuse(content, "black and white exchanged")


def refuse(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        decode_content(content)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, -1.0])
def test_floats_are_refused(value):
    array = np.full((4, 4), value, np.float32)
    refuse(saved(Image.fromarray(array), "TIFF"), "neither 8 nor 16 bits")


@pytest.mark.parametrize("value", [-1, 65536])
def test_numbers_beyond_16_bits_are_refused(value):
    array = np.full((4, 4), value, np.int32)
    refuse(saved(Image.fromarray(array), "TIFF"), "neither 8 nor 16 bits")


def test_12_bits_are_not_read_as_the_darkest_of_16():
    rows = np.arange(32, dtype=np.uint8)  # 16 bytes hold some 10 pixels of 12 bits
    tags = {256: 4, 257: 4, 258: 12, 259: 1, 262: 1, 273: 200, 277: 1, 278: 4, 279: 24}
    entries = b"".join(
        struct.pack("<HHII", k, 4 if k in (273, 279) else 3, 1, v)
        for k, v in tags.items()
    )
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    refuse(head.ljust(200, b"\0") + bytes(rows), "12 bits a pixel")


@pytest.mark.parametrize("turn", [2, 3, 6, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_picture_to_be_turned_is_refused(kind, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    picture = Image.fromarray(NOISE)
    refuse(saved(picture, kind, exif=exif), rf"EXIF orientation {turn}\)")
    exif[0x0112] = 1
    assert decode_content(saved(picture, kind, exif=exif)).shape == NOISE.shape


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_png_that_says_so_in_xmp_is_refused_whatever_decodes_it(mode):
    words = '<rdf:Description tiff:Orientation="6"/>'
    told = PngImagePlugin.PngInfo()
    told.add_itxt("XML:com.adobe.xmp", words)
    picture = Image.fromarray(NOISE).convert(mode)
    refuse(saved(picture, "PNG", pnginfo=told), r"EXIF orientation 6\)")


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_memory_that_does_not_suffice_says_nothing_of_the_file(mode, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    content = saved(Image.fromarray(NOISE).convert(mode), "PNG")
    monkeypatch.setattr("covjax.data.png.kornia_rs.io.decode_image_png_u8", fail)
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(MemoryError):
        decode_content(content)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "MPO"])
@pytest.mark.parametrize("number", [2, 3])
def test_several_pages_are_refused_with_their_number(kind, number):
    pages = [Image.fromarray(255 - NOISE), Image.fromarray(NOISE[::-1])][: number - 1]
    content = saved(Image.fromarray(NOISE), kind, save_all=True, append_images=pages)
    refuse(content, f"^{number} pages or frames")


def test_pages_without_end_are_not_counted():
    page = Image.new("L", (4, 4))
    content = saved(page, "TIFF", save_all=True, append_images=[page] * 150)
    refuse(content, "^more than 100 pages")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize("size", [(1, 1), (3, 40), (40, 3)])
def test_picture_of_a_few_pixels_is_refused(kind, size):
    width, height = size
    refuse(
        saved(Image.new("L", size), kind), f"^{width} x {height} pixels, less than 4"
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("size", [(65_501, 4), (4, 65_501)])
def test_picture_that_is_longer_than_any_overlay_is_refused(kind, size):
    width, height = size
    refuse(
        saved(Image.new("L", size), kind),
        f"^{width} x {height} pixels, more than 65,500 a side",
    )


def header_only(kind: str, width: int, height: int) -> bytes:
    """A file that says it has so many pixels, and holds next to none."""
    size = struct.pack(">II", width, height)
    if kind == "PNG":
        bomb = zlib.compressobj()
        zeros = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(8))
        data = chunk(b"IDAT", zeros + bomb.flush()) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x08\0\0\0\0") + data
    if kind == "RGB PNG":
        grey = header_only("PNG", width, height)
        return grey[:12] + chunk(b"IHDR", size + b"\x08\2\0\0\0")[4:] + grey[33:]
    if kind == "BMP":
        content = bytearray(saved(Image.new("L", (8, 8)), "BMP"))
        content[18:26] = struct.pack("<II", width, height)
        return bytes(content)
    if kind == "JPEG":
        content = saved(Image.new("L", (8, 8)), "JPEG")
        at = content.index(b"\xff\xc0") + 5
        return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]
    if kind == "TIFF":
        content = bytearray(saved(Image.new("L", (8, 8)), "TIFF"))
        for tag, value in ((256, width), (257, height)):
            at = content.index(struct.pack("<HH", tag, 4))
            content[at + 8 : at + 12] = struct.pack("<I", value)
        return bytes(content)
    exif = Image.Exif()
    exif[0x0131] = "a program"
    alike = {"VP8X": {"exif": exif}, "VP8L": {"lossless": True}, "VP8 ": {}}
    content = bytearray(saved(Image.new("RGB", (8, 8)), "WEBP", **alike[kind]))
    assert content[12:16] == kind.encode()
    if kind == "VP8X":
        content[24:30] = (
            struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
        )
    elif kind == "VP8L":
        content[21:25] = struct.pack("<I", (width - 1) | (height - 1) << 14)
    else:
        content[26:30] = struct.pack("<HH", width, height)
    return bytes(content)


@pytest.mark.parametrize(
    ("kind", "width"),
    [
        *((kind, 30_000) for kind in ("PNG", "RGB PNG", "BMP", "JPEG", "TIFF")),
        *((kind, 16_000) for kind in ("VP8X", "VP8L", "VP8 ")),
    ],
)
def test_no_room_is_made_for_what_a_header_says(kind, width):
    content = header_only(kind, width, width - 1)
    tracemalloc.start()
    before = resident()
    refuse(content, f"^{width} x {width - 1} pixels, more than 67,108,864")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**20 + 4 * len(content)
    assert resident() < before + 2**26


def resident() -> int:
    """Bytes that the process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_16_bits_take_no_eight_bytes_a_pixel(tmp_path):
    side = 1024
    levels = np.arange(side * side, dtype=np.uint32).reshape(side, side) % 65536
    path = write(tmp_path / "x.png", levels.astype(np.uint16), compress_level=1)
    tracemalloc.start()
    grey = read_grey(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(grey, np.rint(levels / 257))
    assert most < 8 * side * side


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_file_cut_short_is_refused_or_holds_all_pixels(kind, mode):
    content = saved(Image.fromarray(NOISE).convert(mode), kind)
    whole = decode_content(content)
    for length in range(0, len(content), 7):
        try:
            pixels = decode_content(content[:length])
        except ValueError:
            continue
        assert length > 0.9 * len(content)
        np.testing.assert_array_equal(pixels, whole)


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "LA", "I;16"])
def test_no_bit_of_a_png_changes_unseen(mode):
    picture = Image.fromarray(NOISE)
    if mode == "I;16":
        picture = Image.fromarray(NOISE.astype(np.uint16) * 200)
    content = saved(picture.convert(mode) if mode != "I;16" else picture)
    whole = decode_content(content)
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(content), 200):
        broken = bytearray(content)
        broken[at] ^= 1 << rng.integers(8)
        try:
            pixels = decode_content(bytes(broken))
        except ValueError:
            continue
        np.testing.assert_array_equal(pixels, whole)


@pytest.mark.parametrize("colour", [0, 2, 6])
@pytest.mark.parametrize("depth", [8, 16])
def test_png_whose_writer_failed_is_refused(colour, depth):
    """Check values are right, and what they check is not."""
    head = bytes([depth, colour, 0, 0, 0])
    row = b"\0" + bytes(8 * depth // 8 * {0: 1, 2: 3, 6: 4}[colour])
    assert decode_content(png([row] * 8, 8, head)).shape == (8, 8)
    refuse(png([row] * 7 + [row[:-1]], 8, head), "cannot be read as a picture")
    refuse(png([b"\x09" + row[1:]] * 8, 8, head), "cannot be read as a picture")
    whole = png([row] * 8, 8, head)
    noise = chunk(b"IDAT", b"\x78\x9c" + bytes(range(99))) + chunk(b"IEND", b"")
    refuse(whole[:33] + noise, "cannot be read as a picture")


def test_progressive_jpeg_of_very_many_scans_is_refused():
    content = saved(Image.fromarray(NOISE), "JPEG", progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    assert decode_content(content).shape == NOISE.shape
    refuse(content[:-2] + scan * 100 + content[-2:], "more than 100 scans")


@pytest.mark.parametrize(
    "content",
    [
        b"no picture at all\n",
        b"GIF89a",
        b"%!PS-Adobe EPSF-3.0\n",
        b"RIFF\0\0\0\0WEBP",
        b"BM",
    ],
    ids=["text", "GIF", "EPS", "WebP", "BMP"],
)
def test_file_that_is_no_picture_is_refused(content):
    refuse(content, "^cannot be read as a picture|^0 x 0 pixels")


def test_file_is_named_with_what_is_wrong(tmp_path):
    path = tmp_path / "x.png"
    with pytest.raises(DataError, match=r"x\.png: no such file"):
        read_grey(path)
    path.touch()
    with pytest.raises(DataError, match=r"x\.png: cannot be read .*empty"):
        read_grey(path)
    path.write_text("text")
    with pytest.raises(DataError, match=r"x\.png: cannot be read as a picture"):
        read_grey(path)


def test_nothing_but_a_regular_file_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # to open it would wait for a writer
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "folder.png", "zero.png"):
        with pytest.raises(DataError, match=f"{name}: no regular file"):
            read_grey(tmp_path / name)
    (tmp_path / "circle.png").symlink_to("circle.png")
    with pytest.raises(DataError, match=r"circle\.png: cannot be read \(Too many"):
        read_grey(tmp_path / "circle.png")
    (tmp_path / "nowhere.png").symlink_to("gone.png")
    with pytest.raises(DataError, match=r"nowhere\.png: no such file"):
        read_grey(tmp_path / "nowhere.png")


def test_long_file_is_refused_unread(tmp_path):
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(image_io.MAX_BYTES + 1)  # takes no room on the disk
    with pytest.raises(DataError, match="268,435,457 bytes, more than 268,435,456"):
        read_grey(tmp_path / "x.png")


def test_path_is_shown_in_one_line():
    path = os.fsdecode(b"/a\n b/\xff\xe8\x82\xba.png") + "肺"
    assert shown(path).encode().decode() == r"/a\n b/\udcff肺.png肺"
    file = io.StringIO()
    print(shown(path), file=file)
    assert file.getvalue().count("\n") == 1
