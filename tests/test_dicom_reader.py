"""DICOM images: pixels as the standard displays them, or one line that says why not."""

import io
import logging
import math
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import jpeg_ls
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from covjax.data.phantom.drawing import make_phantom
from covjax.errors import DataError, UsageError
from covjax.predict.dicom import reader
from covjax.predict.dicom.reader import is_dicom, read_dicom, read_header
from dicom_files import SHIPPED, change, item, make_image, make_lut, save, save_stream

PHANTOM = make_phantom("COVID-19", np.random.default_rng(3), 64)["image"]
# 16 bits of it, all in use: a ramp within each of the 256 levels.
DEEP = PHANTOM.astype(np.uint16) * 257 - np.arange(64, dtype=np.uint16) % 200
DEEP = np.clip(DEEP, 0, 65535).astype(np.uint16)
# Not square: rows and columns are not to be taken for each other.
TALL, TALL_DEEP = PHANTOM[:, 5:53].copy(), DEEP[:, 5:53].copy()


def grey(
    radiograph: pydicom.FileDataset, path: Path, syntax: str = ExplicitVRLittleEndian
):
    return read_dicom(save(radiograph, path / "x.dcm", syntax)).image


def refused(path: Path) -> str:
    """Returns the one line that a file is refused with, less its name."""
    with pytest.raises(DataError) as caught:
        read_dicom(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and "\n" not in said
    return said.removeprefix(f"{path}: ")


def close(image: np.ndarray, bright: np.ndarray) -> None:
    """Asserts levels to be the nearest to 255 times a brightness of 0 to 1."""
    assert image.dtype == np.uint8
    assert np.abs(image - 255 * bright).max() <= 0.5 + 1e-9


# Levels.


def test_8_bits_stay_as_they_are(tmp_path):
    np.testing.assert_array_equal(grey(make_image(PHANTOM), tmp_path), PHANTOM)


def test_monochrome1_is_turned_round(tmp_path):
    radiograph = make_image(PHANTOM, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(grey(radiograph, tmp_path), 255 - PHANTOM)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_without_window_deep_levels_go_from_percentile_to_percentile(
    tmp_path, bits, signed
):
    pixels = (DEEP >> (16 - bits)).astype(np.int32)
    if signed:
        pixels -= 2 ** (bits - 1)
    dtype = np.int16 if signed else np.uint16
    radiograph = make_image(pixels.astype(dtype), BitsStored=bits)
    ordered = np.sort(pixels.ravel())
    low, high = (ordered[math.ceil(q * 4096) - 1] for q in (0.005, 0.995))
    assert low < high
    close(grey(radiograph, tmp_path), np.clip((pixels - low) / (high - low), 0, 1))
    remarks = read_dicom(tmp_path / "x.dcm").remarks
    assert "no window: levels between the .5th and 99.5th percentile" in remarks


def test_what_stands_above_the_stored_bits_is_left_aside(tmp_path):
    # Old files keep an overlay there; read as levels it would be brighter than all.
    pixels = (DEEP >> 4) | np.where(np.eye(64, dtype=bool), 0xF000, 0).astype(np.uint16)
    radiograph = make_image(pixels, BitsStored=12, WindowCenter=2048, WindowWidth=4096)
    close(
        grey(radiograph, tmp_path), np.clip(((DEEP >> 4) - 2047.5) / 4095 + 0.5, 0, 1)
    )


def test_bits_above_a_sign_are_left_aside(tmp_path):
    # -1 of 12 bits is stored as 0x0FFF, not as 0xFFFF.
    pixels = np.array([[-2048, -1, 0, 2047]] * 4)
    radiograph = make_image((pixels & 0xFFF).astype(np.uint16), BitsStored=12)
    change(radiograph, PixelRepresentation=1, WindowCenter=0.5, WindowWidth=4096)
    close(grey(radiograph, tmp_path), (pixels + 2048) / 4095)


def test_window_is_of_levels_after_slope_and_intercept(tmp_path):
    pixels = np.array([[0, 110, 200, 290, 400]] * 4, np.int16)
    radiograph = make_image(pixels, RescaleSlope=2, RescaleIntercept=-1024)
    change(radiograph, WindowCenter=-624, WindowWidth=401)
    # -1024, -804, -624, -444, -224 in a window of 400 about -624.5.
    bright = np.clip((2.0 * pixels - 1024 + 624.5) / 400 + 0.5, 0, 1)
    assert 0 < bright[0, 1] < bright[0, 3] < 1
    close(grey(radiograph, tmp_path), bright)


def test_falling_slope_turns_8_bits_round(tmp_path):
    radiograph = make_image(PHANTOM, RescaleSlope=-1, RescaleIntercept=255)
    np.testing.assert_array_equal(grey(radiograph, tmp_path), 255 - PHANTOM)


def windowed(x: float, c: float, w: float, function: str) -> float:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3 word by word, with 0 and 1 as ends."""
    if function == "SIGMOID":
        return 1 / (1 + math.exp(-4 * (x - c) / w))
    if function == "LINEAR_EXACT":
        if x <= c - w / 2:
            return 0
        return 1 if x > c + w / 2 else (x - c) / w + 0.5
    if x <= c - 0.5 - (w - 1) / 2:
        return 0
    return 1 if x > c - 0.5 + (w - 1) / 2 else (x - (c - 0.5)) / (w - 1) + 0.5


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", ""])
@pytest.mark.parametrize(("c", "w"), [(40, 2), (35.5, 11), (20, 1), (60, 100)])
def test_window_functions(tmp_path, function, c, w):
    pixels = np.array([range(64)] * 4, np.uint16)
    radiograph = make_image(pixels, WindowCenter=[c, 7], WindowWidth=[w, 3])
    if function:
        change(radiograph, VOILUTFunction=function)
    expected = [windowed(x, c, w, function) for x in range(64)]
    close(grey(radiograph, tmp_path), np.array([expected] * 4))


@pytest.mark.parametrize(("center", "width"), [(40, 0), (40, -3)])
def test_window_of_no_width_counts_as_none(tmp_path, center, width):
    radiograph = make_image(PHANTOM, WindowCenter=center, WindowWidth=width)
    np.testing.assert_array_equal(grey(radiograph, tmp_path), PHANTOM)
    assert "a window that is none" in read_dicom(tmp_path / "x.dcm").remarks


@pytest.mark.parametrize("broken", [b"auto", b"12,5"])
def test_window_that_is_no_number_counts_as_none(tmp_path, broken):
    radiograph = make_image(
        PHANTOM, WindowCenter=["77.7", "9"], WindowWidth=["40", "9"]
    )
    path = save(radiograph, tmp_path / "x.dcm")
    path.write_bytes(path.read_bytes().replace(b"77.7", broken))
    radiograph = read_dicom(path)
    np.testing.assert_array_equal(radiograph.image, PHANTOM)
    assert "a window that is none" in radiograph.remarks


@pytest.mark.parametrize("packed", [False, True])
def test_voi_lut_goes_before_the_window(tmp_path, packed):
    pixels = np.array([[0, 9, 10, 11, 12, 13, 500]] * 4, np.uint16)
    entries = np.array([1023, 100, 700, 0], np.uint16)
    lut = make_lut([4, 10, 10], entries, packed)
    radiograph = make_image(pixels, VOILUTSequence=[lut, item()])
    change(radiograph, WindowCenter=5, WindowWidth=3)
    expected = np.array([1023, 1023, 1023, 100, 700, 0, 0]) / 1023
    close(grey(radiograph, tmp_path), np.array([expected] * 4))


def test_voi_lut_of_negative_levels(tmp_path):
    # The first level is told as 65436: -100 of 16 bits, as the levels are signed.
    pixels = np.array([[-101, -100, -99, -98]] * 4, np.int16)
    entries = np.array([0, 128, 255], np.uint16)
    lut = make_lut([3, 65436, 8], entries)
    radiograph = make_image(pixels, VOILUTSequence=[lut])
    expected = np.array([[0, 0, 128, 255]] * 4)
    np.testing.assert_array_equal(grey(radiograph, tmp_path), expected)
    np.testing.assert_array_equal(
        grey(radiograph, tmp_path, ImplicitVRLittleEndian), expected
    )


def test_modality_lut_goes_before_the_window(tmp_path):
    pixels = np.array([[0, 1, 2, 3]] * 4, np.uint16)
    lut = make_lut([4, 0, 16], np.array([0, 1000, 50, 500], np.uint16))
    lut.ModalityLUTType = "US"
    radiograph = make_image(pixels, ModalityLUTSequence=[lut])
    change(radiograph, WindowCenter=500.5, WindowWidth=1001)
    close(grey(radiograph, tmp_path), np.array([[0, 1, 0.05, 0.5]] * 4))


def test_lut_of_all_16_bits(tmp_path):
    # 65,536 entries, which 16 bits tell as 0.
    entries = np.arange(65536, dtype=np.uint16)[::-1]
    radiograph = make_image(
        DEEP, VOILUTSequence=[make_lut([0, 0, 16], entries, packed=True)]
    )
    close(grey(radiograph, tmp_path), (65535 - DEEP.astype(np.float64)) / 65535)


@pytest.mark.parametrize("colour", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_not_measured_and_is_black(tmp_path, colour):
    pixels = (DEEP >> 5).astype(np.uint16)
    pixels[:, :20] = 2047
    radiograph = make_image(
        pixels, PixelPaddingValue=2047, PhotometricInterpretation=colour
    )
    image = grey(radiograph, tmp_path)
    assert (image[:, :20] == 0).all()
    ordered = np.sort(pixels[:, 20:].ravel())
    low, high = (ordered[math.ceil(q * ordered.size) - 1] for q in (0.005, 0.995))
    bright = np.clip((pixels[:, 20:] - float(low)) / (high - low), 0, 1)
    close(image[:, 20:], 1 - bright if colour == "MONOCHROME1" else bright)


def test_padding_of_a_range_below_zero(tmp_path):
    pixels = np.array([[-2000, -1990, -1024, 0, 1000]] * 4, np.int16)
    radiograph = make_image(
        pixels, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1990
    )
    # Of 12 pixels the percentiles are the ends, -1024 and 1000.
    expected = np.array([[0, 0, 0, 1024 / 2024, 1]] * 4)
    close(grey(radiograph, tmp_path), expected)
    # The same two, told as unsigned.
    radiograph.add_new("PixelPaddingValue", "US", 65536 - 2000)
    radiograph.add_new("PixelPaddingRangeLimit", "US", 65536 - 1990)
    close(grey(radiograph, tmp_path), expected)


def test_padding_below_zero_of_levels_without_sign(tmp_path):
    # 65535 and 65530, told as signed; of the others the percentiles are the ends.
    pixels = np.array([[65535, 65530, 1000, 3000, 5000]] * 4, np.uint16)
    radiograph = make_image(pixels)
    radiograph.add_new("PixelPaddingValue", "SS", -1)
    radiograph.add_new("PixelPaddingRangeLimit", "SS", -6)
    close(grey(radiograph, tmp_path), np.array([[0, 0, 0, 0.5, 1]] * 4))


def test_image_of_one_level_is_black(tmp_path):
    radiograph = make_image(np.full((8, 8), 700, np.uint16))
    assert (grey(radiograph, tmp_path) == 0).all()
    change(radiograph, PixelPaddingValue=700)
    assert (grey(radiograph, tmp_path) == 0).all()


def test_few_pixels_of_another_level_are_seen(tmp_path):
    pixels = np.full((64, 64), 700, np.uint16)
    pixels[3, 4], pixels[5, 6] = 900, 500
    image = grey(make_image(pixels), tmp_path)
    assert (image[3, 4], image[5, 6], image[0, 0]) == (255, 0, 128)


# Encodings.


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_plain_syntaxes_hold_the_same_image(tmp_path, syntax, dtype):
    pixels = (DEEP >> 8 if dtype == np.uint8 else DEEP >> 3).astype(dtype)[:, :63]
    radiograph = make_image(pixels, WindowCenter=100, WindowWidth=200)
    close(
        grey(radiograph, tmp_path, syntax), np.clip((pixels - 99.5) / 199 + 0.5, 0, 1)
    )


def streams() -> Iterator[tuple[str, str, np.ndarray, bytes, int]]:
    eight, deep = io.BytesIO(), io.BytesIO()
    Image.fromarray(TALL).save(eight, "JPEG2000", irreversible=False, no_jp2=True)
    Image.fromarray(TALL_DEEP).save(deep, "JPEG2000", irreversible=False, no_jp2=True)
    yield "j2k 8", JPEG2000Lossless, TALL, eight.getvalue(), 0
    yield "j2k 16", JPEG2000Lossless, TALL_DEEP, deep.getvalue(), 0
    lossy = io.BytesIO()
    Image.fromarray(TALL).save(
        lossy, "JPEG2000", irreversible=True, no_jp2=True,
        quality_mode="dB", quality_layers=[45],
    )  # fmt: skip
    yield "j2k lossy", JPEG2000, TALL, lossy.getvalue(), 12
    for syntax in (HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K):
        stream = bytes(imagecodecs.htj2k_encode(TALL_DEEP))
        yield f"htj2k {syntax[-3:]}", syntax, TALL_DEEP, stream, 0
    for pixels in (TALL, TALL_DEEP):
        stream = bytes(jpeg_ls.encode_array(pixels))
        yield f"jls {pixels.dtype}", JPEGLSLossless, pixels, stream, 0
    near = bytes(jpeg_ls.encode_array(TALL, lossy_error=3))
    yield "jls near", JPEGLSNearLossless, TALL, near, 3
    jpeg = io.BytesIO()
    Image.fromarray(TALL).save(jpeg, "JPEG", quality=97)
    yield "jpeg", JPEGBaseline8Bit, TALL, jpeg.getvalue(), 8


STREAMS = {stream[0]: stream[1:] for stream in streams()}


@pytest.mark.parametrize("name", STREAMS)
def test_compressed_grey(tmp_path, name):
    syntax, pixels, stream, away = STREAMS[name]
    radiograph = make_image(pixels, WindowCenter=32768, WindowWidth=65536)
    if pixels.dtype == np.uint8:
        change(radiograph, WindowCenter=128, WindowWidth=256)
    image = read_dicom(
        save_stream(radiograph, stream, tmp_path / "x.dcm", syntax)
    ).image
    exact = np.rint(pixels / np.iinfo(pixels.dtype).max * 255)
    worst = np.abs(image - exact).max()
    assert worst <= away and (worst > 0) == (away > 0)


def test_signed_levels_in_a_stream_without_signs(tmp_path):
    # JPEG-LS knows no sign: -1 of 16 bits stands there as 65535.
    pixels = (DEEP.astype(np.int32) - 32768).astype(np.int16)
    radiograph = make_image(pixels, WindowCenter=0, WindowWidth=65536)
    stream = bytes(jpeg_ls.encode_array(pixels.view(np.uint16)))
    path = save_stream(radiograph, stream, tmp_path / "x.dcm", JPEGLSLossless)
    close(read_dicom(path).image, np.clip((pixels + 0.5) / 65535 + 0.5, 0, 1))


@pytest.mark.parametrize("pixels", [PHANTOM[:, :63], DEEP[:63, :63]])
def test_rle(tmp_path, pixels):
    radiograph = make_image(pixels, WindowCenter=150, WindowWidth=100)
    plain = grey(radiograph, tmp_path)
    radiograph.compress(RLELossless, generate_instance_uid=False)
    np.testing.assert_array_equal(grey(radiograph, tmp_path, RLELossless), plain)


def test_lossless_jpeg_of_16_bits(tmp_path):
    stream = lossless_jpeg(TALL_DEEP)
    radiograph = make_image(TALL_DEEP, WindowCenter=32768, WindowWidth=65536)
    path = save_stream(radiograph, stream, tmp_path / "x.dcm", JPEGLosslessSV1)
    close(read_dicom(path).image, TALL_DEEP / 65535)


def lossless_jpeg(pixels: np.ndarray) -> bytes:
    """ITU-T T.81 process 14, predictor 1, with 17 codes of five bits."""
    rows, columns = pixels.shape
    bits = []
    for row in range(rows):
        for column in range(columns):
            if column:
                guess = int(pixels[row, column - 1])
            else:
                guess = int(pixels[row - 1, 0]) if row else 32768
            away = (int(pixels[row, column]) - guess + 32768) % 65536 - 32768
            kind = abs(away).bit_length()
            bits.append(f"{kind:05b}")
            if 0 < kind < 16:
                bits.append(f"{away if away > 0 else away + 2**kind - 1:0{kind}b}")
    joined = "".join(bits)
    joined += "1" * (-len(joined) % 8)
    data = int(joined, 2).to_bytes(len(joined) // 8, "big")
    frame = struct.pack(">BHHBBBB", 16, rows, columns, 1, 1, 0x11, 0)
    table = bytes([0]) + bytes([0, 0, 0, 0, 17] + [0] * 11) + bytes(range(17))
    scan = bytes([1, 1, 0, 1, 0, 0])
    parts = [(0xC3, frame), (0xC4, table), (0xDA, scan)]
    head = b"".join(
        bytes([0xFF, marker]) + (len(part) + 2).to_bytes(2, "big") + part
        for marker, part in parts
    )
    return b"\xff\xd8" + head + data.replace(b"\xff", b"\xff\0") + b"\xff\xd9"


def luma(rgb: np.ndarray) -> np.ndarray:
    return rgb.astype(np.float64) @ [0.299, 0.587, 0.114]


COLOURS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colour_becomes_luminance(tmp_path, planar, dtype):
    pixels = COLOURS.astype(dtype)
    if dtype == np.uint16:
        pixels = pixels * 256 + 99
    radiograph = make_image(pixels, PlanarConfiguration=planar)
    if planar:
        radiograph.PixelData = np.ascontiguousarray(
            np.moveaxis(pixels, -1, 0)
        ).tobytes()
    np.testing.assert_allclose(grey(radiograph, tmp_path), luma(COLOURS), atol=0.51)


def test_ybr_is_shown_by_its_luminance(tmp_path):
    radiograph = make_image(COLOURS, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_array_equal(grey(radiograph, tmp_path), COLOURS[..., 0])
    pairs = np.concatenate(
        [COLOURS[:, ::2, :1], COLOURS[:, 1::2, :1], COLOURS[:, ::2, 1:]], axis=-1
    )
    change(
        radiograph, PhotometricInterpretation="YBR_FULL_422", PixelData=pairs.tobytes()
    )
    np.testing.assert_array_equal(grey(radiograph, tmp_path), COLOURS[..., 0])


@pytest.mark.parametrize("told", ["RGB", "YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("rgb", [False, True])
def test_colours_of_a_jpeg_are_those_that_its_stream_names(tmp_path, told, rgb):
    # JFIF's are luminance and differences (T.871), whatever the elements say. A patch
    # has one colour, so that all frequencies but the lowest are 0.
    pixels = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=100, keep_rgb=rgb)
    plain = stream.getvalue()
    assert (plain[6:10] == b"JFIF") is not rgb
    # Adobe's header (T.872, 6.5.3) in its place, with 1 at the end: differences.
    head, after = b"\xff\xd8\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\1", 20
    radiograph = make_image(pixels, PhotometricInterpretation=told)
    for written in [plain] if rgb else [plain, head + plain[after:]]:
        path = save_stream(radiograph, written, tmp_path / "x.dcm", JPEGBaseline8Bit)
        # .299 * 200 + .587 * 40 + .114 * 90
        np.testing.assert_allclose(read_dicom(path).image, 93.54, atol=1.5)


@pytest.mark.parametrize("told", ["RGB", "YBR_RCT", "YBR_FULL"])
@pytest.mark.parametrize("transformed", [False, True])
def test_colours_of_jpeg_2000(tmp_path, told, transformed):
    # PS3.5, table 8.2.4-1: YBR_FULL without the codec's transformation is as it was.
    stream = io.BytesIO()
    Image.fromarray(COLOURS).save(
        stream, "JPEG2000", irreversible=False, no_jp2=True, mct=int(transformed)
    )
    radiograph = make_image(COLOURS, PhotometricInterpretation=told)
    path = save_stream(
        radiograph, stream.getvalue(), tmp_path / "x.dcm", JPEG2000Lossless
    )
    as_it_was = told == "YBR_FULL" and not transformed
    expected = COLOURS[..., 0] if as_it_was else luma(COLOURS)
    np.testing.assert_allclose(read_dicom(path).image, expected, atol=0.51)


def test_palette_is_looked_up(tmp_path):
    pixels = np.array([[0, 1, 2, 3]] * 4, np.uint8)
    reds, greens, blues = ([255, 0, 0, 9], [0, 255, 0, 9], [0, 0, 255, 9])
    radiograph = make_image(pixels, PhotometricInterpretation="PALETTE COLOR")
    for name, levels in (("Red", reds), ("Green", greens), ("Blue", blues)):
        radiograph[f"{name}PaletteColorLookupTableDescriptor"] = pydicom.DataElement(
            f"{name}PaletteColorLookupTableDescriptor", "US", [4, 0, 16]
        )
        data = (np.array(levels, np.uint16) * 256 + 99).tobytes()
        setattr(radiograph, f"{name}PaletteColorLookupTableData", data)
    # .299, .587 and .114 of 255.
    np.testing.assert_array_equal(grey(radiograph, tmp_path), [[76, 150, 29, 9]] * 4)
    change(radiograph, BluePaletteColorLookupTableData=None)
    assert "cannot be read as DICOM" in refused(save(radiograph, tmp_path / "x.dcm"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_palette_of_8_bits(tmp_path, dtype):
    # PS3.3, C.7.6.3.1.5, note: some store them in 16 bits, and mean the lower eight.
    radiograph = make_image(
        np.array([[0, 1, 2, 3]] * 4, np.uint8),
        PhotometricInterpretation="PALETTE COLOR",
    )
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTable"
        radiograph[f"{name}Descriptor"] = pydicom.DataElement(
            f"{name}Descriptor", "US", [4, 0, 8]
        )
        setattr(radiograph, f"{name}Data", np.array([9, 255, 0, 130], dtype).tobytes())
    np.testing.assert_array_equal(grey(radiograph, tmp_path), [[9, 255, 0, 130]] * 4)


SAME = [
    # Of pydicom's own files, encoded by others: the same picture in many ways.
    ("SC_rgb_rle.dcm", "SC_rgb_jpeg_gdcm.dcm", 0),  # JPEG lossless
    ("SC_rgb_rle.dcm", "SC_rgb_rle_16bit.dcm", 0),
    ("SC_rgb_rle.dcm", "SC_rgb_gdcm_KY.dcm", 0),  # JPEG 2000
    ("SC_rgb_rle.dcm", "SC_rgb_jls_lossy_line.dcm", 6),
    ("SC_rgb_rle.dcm", "SC_rgb_jls_lossy_sample.dcm", 6),
    ("SC_rgb_rle.dcm", "SC_rgb_dcmtk_+eb+cr.dcm", 3),  # JPEG that stays RGB
    ("SC_rgb_rle.dcm", "SC_rgb_dcmtk_+eb+cy+n1.dcm", 3),
    ("SC_rgb_rle.dcm", "SC_rgb_dcmtk_+eb+cy+s4.dcm", 3),
    ("SC_rgb_rle.dcm", "SC_rgb_jpeg_lossy_gdcm.dcm", 3),
    ("SC_rgb_rle.dcm", "SC_ybr_full_422_uncompressed.dcm", 3),
    ("SC_rgb_jpeg_dcmd.dcm", "SC_rgb_jpeg.dcm", 0),
    ("MR_small.dcm", "MR_small_RLE.dcm", 0),
    ("MR_small.dcm", "MR_small_bigendian.dcm", 0),
    ("MR_small.dcm", "MR_small_expb.dcm", 0),
    ("MR_small.dcm", "MR_small_implicit.dcm", 0),
    ("MR_small.dcm", "MR_small_jp2klossless.dcm", 0),
    ("MR_small.dcm", "MR_small_jpeg_ls_lossless.dcm", 0),
    ("MR_small.dcm", "MR_small_padded.dcm", 0),
    ("JPEG-lossy.dcm", "JPGExtended.dcm", 0),  # 12 bits
]


@pytest.mark.parametrize(("one", "other", "away"), SAME)
def test_shipped_files_agree(one, other, away):
    a, b = (read_dicom(SHIPPED / name).image.astype(int) for name in (one, other))
    assert np.abs(a - b).max() <= away and a.std() > 0.5


def test_window_of_a_shipped_file():
    pixels = pydicom.dcmread(SHIPPED / "MR_small.dcm").pixel_array
    bright = np.clip((pixels - 599.5) / 1599 + 0.5, 0, 1)  # its window: 600, 1600
    close(read_dicom(SHIPPED / "MR_small.dcm").image, bright)


def test_stream_that_forgets_the_sign():
    # Told as signed, while its JPEG 2000 says unsigned.
    radiograph = read_dicom(SHIPPED / "J2K_pixelrep_mismatch.dcm")
    pixels = pydicom.dcmread(SHIPPED / "J2K_pixelrep_mismatch.dcm").pixel_array
    close(radiograph.image, np.clip((pixels - 39.5) / 99 + 0.5, 0, 1))  # window 40, 100


# What else an image tells.


def test_spacing_is_of_the_patient_else_of_the_detector(tmp_path):
    radiograph = make_image(PHANTOM, ImagerPixelSpacing=[0.2, 0.1])
    told = read_dicom(save(radiograph, tmp_path / "x.dcm"))
    assert told.spacing == (0.2, 0.1)
    assert told.remarks == ("pixel spacing in the detector's plane",)
    change(radiograph, PixelSpacing=[0.15, 0.14])
    told = read_dicom(save(radiograph, tmp_path / "x.dcm"))
    assert (told.spacing, told.remarks) == ((0.15, 0.14), ())
    change(radiograph, PixelSpacing=[0, 0.14], ImagerPixelSpacing=None)
    told = read_dicom(save(radiograph, tmp_path / "x.dcm"))
    assert (told.spacing, told.remarks) == (None, ("no pixel spacing",))


@pytest.mark.parametrize(
    ("name", "remark"),
    [
        ("ImagerPixelSpacing", "pixel spacing in the detector's plane"),
        ("NominalScannedPixelSpacing", "pixel spacing of the scanned image"),
    ],
)
def test_spacing_that_repeats_the_detectors_is_the_detectors(tmp_path, name, remark):
    # PS3.3, 10.7.1.1: the same values, if the image was not calibrated.
    radiograph = make_image(
        PHANTOM, PixelSpacing=["0.2", "0.1"], **{name: ["0.200", "0.1"]}
    )
    told = read_dicom(save(radiograph, tmp_path / "x.dcm"))
    assert (told.spacing, told.remarks) == ((0.2, 0.1), (remark,))
    change(radiograph, PixelSpacing=None)
    told = read_dicom(save(radiograph, tmp_path / "x.dcm"))
    assert (told.spacing, told.remarks) == ((0.2, 0.1), (remark,))


@pytest.mark.parametrize("broken", [b"none\\none", b"0,11\\0,22", b"0.111\\   "])
def test_spacing_that_cannot_be_read_is_none(tmp_path, broken):
    path = save(make_image(PHANTOM, PixelSpacing=["0.11", "0.22"]), tmp_path / "x.dcm")
    assert read_dicom(path).spacing == (0.11, 0.22)
    path.write_bytes(path.read_bytes().replace(b"0.11\\0.22", broken))
    radiograph = read_dicom(path)
    assert (radiograph.spacing, radiograph.remarks) == (None, ("no pixel spacing",))
    np.testing.assert_array_equal(radiograph.image, PHANTOM)


@pytest.mark.parametrize(
    ("told", "left_on_right", "remark"),
    [
        (["L", "F"], True, None),
        (["R", "F"], False, None),
        (None, True, None),
        (["LA", "FP"], True, None),
        (["L", "H"], True, "PatientOrientation: upside down?"),
        (["F", "L"], True, "PatientOrientation: turned by a quarter?"),
        (["A", "F"], True, "PatientOrientation: not a frontal image?"),
        (["PL", "F"], True, "PatientOrientation: not a frontal image?"),
        (["L", "P"], True, "PatientOrientation: not a frontal image?"),
    ],
)
def test_side(tmp_path, told, left_on_right, remark):
    radiograph = make_image(PHANTOM, PixelSpacing=[1, 1])
    if told:
        change(radiograph, PatientOrientation=told)
    read = read_dicom(save(radiograph, tmp_path / "x.dcm"))
    assert read.patient_left_on_right is left_on_right
    assert read.remarks == ((remark,) if remark else ())


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ({"ViewPosition": "PA", "BodyPartExamined": "CHEST"}, []),
        ({"Modality": "CR", "ViewPosition": "AP"}, []),
        ({"BurnedInAnnotation": "NO"}, []),
        (
            {"BurnedInAnnotation": "YES"},
            ["BurnedInAnnotation: its pictures may name the patient"],
        ),
        ({"PresentationIntentType": "FOR PRESENTATION"}, []),
        (
            {"PresentationIntentType": "FOR PROCESSING"},
            ["PresentationIntentType FOR PROCESSING: raw levels?"],
        ),
        ({"ViewPosition": "LL"}, ["ViewPosition LL: not a frontal image?"]),
        ({"Modality": "CT"}, ["Modality CT: not a chest X-ray?"]),
        ({"BodyPartExamined": "HAND"}, ["BodyPartExamined HAND: not a chest X-ray?"]),
        ({"BodyPartExamined": "DOE JANE"}, ["BodyPartExamined: not a chest X-ray?"]),
        ({"ViewPosition": "DOE"}, ["ViewPosition: not a frontal image?"]),
        ({"Modality": "DOE"}, ["Modality: not a chest X-ray?"]),
    ],
)
def test_doubts_are_told_by_known_codes_alone(tmp_path, elements, said):
    radiograph = make_image(PHANTOM, PixelSpacing=[1, 1], **elements)
    assert list(read_dicom(save(radiograph, tmp_path / "x.dcm")).remarks) == said


@pytest.mark.parametrize(
    ("code", "scheme", "view", "said"),
    [
        # PS3.16, CID 4010: left lateral, as SNOMED CT and as SRT have it; postero-
        # anterior, antero-posterior.
        ("399173006", "SCT", "", ["ViewCodeSequence: not a frontal image?"]),
        ("R-10236", "SRT", "", ["ViewCodeSequence: not a frontal image?"]),
        ("R-10236", "SRT", "LL", ["ViewPosition LL: not a frontal image?"]),
        ("272479007", "SCT", "", []),
        ("R-10206", "SRT", "", []),
        ("CHPA", "99VENDOR", "", []),
    ],
)
def test_view_of_an_image_that_has_it_as_a_code(tmp_path, code, scheme, view, said):
    # A DX image may have either, both, or none (PS3.3, C.8.11.5: both of type 3).
    coded = item(CodeValue=code, CodingSchemeDesignator=scheme, CodeMeaning="Doe^Jane")
    radiograph = make_image(PHANTOM, PixelSpacing=[1, 1], ViewCodeSequence=[coded])
    change(radiograph, ViewPosition=view)
    assert list(read_dicom(save(radiograph, tmp_path / "x.dcm")).remarks) == said


def framed(top: int, bottom: int, left: int, right: int, level: int) -> np.ndarray:
    image = np.full((64 + top + bottom, 64 + left + right), level, np.uint8)
    image[top : top + 64, left : left + 64] = PHANTOM
    return image


@pytest.mark.parametrize("level", [0, 255])
def test_frame_is_told(tmp_path, level):
    radiograph = make_image(framed(5, 9, 0, 12, level))
    assert read_dicom(save(radiograph, tmp_path / "x.dcm")).box == (
        slice(5, 69),
        slice(0, 64),
    )


# Errors.


def test_is_dicom(tmp_path):
    path = save(make_image(PHANTOM), tmp_path / "x.dcm")
    assert is_dicom(path) and is_dicom(path.read_bytes())
    assert not is_dicom(b"DICM") and not is_dicom(bytes(200)) and not is_dicom(b"")
    assert not is_dicom(tmp_path) and not is_dicom(tmp_path / "none.dcm")
    os.mkfifo(tmp_path / "pipe")
    assert not is_dicom(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("test-SR.dcm", "no pixels in it, but a structured report"),
        ("dicomdirtests/DICOMDIR", "no pixels in it, but a directory of other files"),
        ("rtplan.dcm", "no pixels in it"),
        ("no_meta.dcm", "no DICOM file"),
        ("README.txt", "no DICOM file"),
        ("MR_truncated.dcm", "cut short"),
        ("SC_rgb_rle_2frame.dcm", "2 frames, where one image is asked for"),
        ("rtdose_1frame.dcm", "32 bits a sample, neither 8 nor 16"),
        ("liver_1frame.dcm", "1 bits a sample"),
        ("SC_rgb_small_odd.dcm", "3 x 3 pixels, less than 4 a side"),
        ("badVR.dcm", "NumberOfFrames is missing, or no number"),
        ("JPEG2000-embedded-sequence-delimiter.dcm", "another size than it says"),
    ],
)
def test_shipped_files_that_are_no_image(name, said):
    assert said in refused(SHIPPED / name)


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ({"PixelData": None}, "no pixels in it"),
        ({"Rows": None}, "its Rows is missing, or no number"),
        ({"Rows": 65535, "Columns": 65535}, "65535 x 65535 pixels, more than"),
        ({"Rows": 65}, "its pixels are cut short"),
        ({"Rows": 0}, "less than 4 a side"),
        ({"BitsStored": 9}, "BitsStored is not between 1 and BitsAllocated"),
        ({"PhotometricInterpretation": "DOE"}, "none that is known"),
        ({"PhotometricInterpretation": "RGB"}, "does not go with RGB"),
        ({"RescaleSlope": 0}, "RescaleSlope or RescaleIntercept is no use"),
        ({"VOILUTSequence": [item()]}, "cannot be read as DICOM (AttributeError)"),
        ({"NumberOfFrames": 3}, "3 frames"),
    ],
)
def test_broken_headers(tmp_path, elements, said):
    radiograph = make_image(PHANTOM, **elements)
    assert said in refused(save(radiograph, tmp_path / "x.dcm"))


def test_encapsulated_pdf(tmp_path):
    radiograph = make_image(PHANTOM, PixelData=None, EncapsulatedDocument=b"%PDF")
    radiograph.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.104.1")
    radiograph.file_meta.MediaStorageSOPClassUID = radiograph.SOPClassUID
    assert "an encapsulated PDF" in refused(save(radiograph, tmp_path / "x.dcm"))


def test_left_justified_bits_are_refused(tmp_path):
    radiograph = make_image(DEEP, BitsStored=12)
    radiograph.HighBit = 15
    assert "HighBit is not BitsStored - 1" in refused(
        save(radiograph, tmp_path / "x.dcm")
    )


def test_unknown_syntax_is_refused(tmp_path):
    syntax = "1.2.840.10008.1.2.4.100"  # MPEG-2
    path = save_stream(make_image(PHANTOM), b"1234", tmp_path / "x.dcm", syntax)
    assert "transfer syntax is none that is known" in refused(path)


def deflated(path: Path, content: bytes) -> Path:
    """Writes a file of which all behind the first elements is deflated."""
    radiograph = make_image(PHANTOM)
    save(radiograph, path, DeflatedExplicitVRLittleEndian)
    head = path.read_bytes()
    length = 144 + int.from_bytes(head[140:144], "little")
    path.write_bytes(head[:length] + content)
    return path


def test_bomb_is_not_inflated(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "_MOST_INFLATED", 2**20)
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = squeeze.compress(bytes(2**24)) + squeeze.flush()
    path = deflated(tmp_path / "x.dcm", bomb)
    assert "more than 1,048,576 bytes when inflated" in refused(path)
    path = deflated(tmp_path / "x.dcm", bomb[:1000])
    assert "what is deflated in it is cut short" in refused(path)
    path = deflated(tmp_path / "x.dcm", b"\xff" * 100)
    assert "what is deflated in it is broken" in refused(path)


def test_progressive_jpeg_is_refused(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(PHANTOM).save(stream, "JPEG", progressive=True)
    path = tmp_path / "x.dcm"
    save_stream(make_image(PHANTOM), stream.getvalue(), path, JPEGBaseline8Bit)
    assert "process that its transfer syntax excludes" in refused(path)


def test_jpeg_of_more_scans_than_samples_is_refused(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(PHANTOM).save(stream, "JPEG")
    whole = stream.getvalue()
    scan = whole[whole.index(b"\xff\xda") : -2]
    path = tmp_path / "x.dcm"
    stream_of_two = whole[:-2] + scan + whole[-2:]
    save_stream(make_image(PHANTOM), stream_of_two, path, JPEGBaseline8Bit)
    assert "more scans than samples" in refused(path)


def test_elements_without_end_are_refused(tmp_path):
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    elements = struct.pack("<HH2sH", 0x11, 1, b"SH", 0) * 200_000
    content = squeeze.compress(elements) + squeeze.flush()
    path = deflated(tmp_path / "x.dcm", content)
    assert refused(path) == "more elements than an image has"


def test_window_of_a_million_numbers_is_not_made_into_objects(tmp_path):
    radiograph = make_image(PHANTOM)
    path = save(radiograph, tmp_path / "x.dcm")
    content = path.read_bytes()
    at = content.index(b"\xe0\x7f\x10\0")
    numbers = b"1\\" * 10_000
    window = struct.pack("<HH2sH", 0x28, 0x1050, b"DS", len(numbers)) + numbers
    path.write_bytes(content[:at] + window + content[at:])
    assert refused(path) == "its WindowCenter is longer than that of an image"


def test_run_that_never_ends_is_not_followed(tmp_path):
    head = struct.pack("<16L", 1, 64, *[0] * 14)
    stream = head + b"\x81\x07" * 10**6  # 128 million pixels
    path = save_stream(make_image(PHANTOM), stream, tmp_path / "x.dcm", RLELossless)
    assert "its compressed pixels are broken" in refused(path)


@pytest.mark.parametrize("name", STREAMS)
def test_stream_of_another_size_is_not_decoded(tmp_path, name):
    syntax, pixels, stream, _ = STREAMS[name]
    radiograph = make_image(pixels, Rows=48, Columns=64)
    path = save_stream(radiograph, stream, tmp_path / "x.dcm", syntax)
    assert "of another size than it says" in refused(path)


@pytest.mark.parametrize("name", STREAMS)
def test_stream_cut_short_in_a_whole_file(tmp_path, name):
    # A JPEG of which the end is missing would come out grey there.
    syntax, pixels, stream, _ = STREAMS[name]
    stream = stream[: len(stream) * 3 // 4 // 2 * 2]
    path = save_stream(make_image(pixels), stream, tmp_path / "x.dcm", syntax)
    assert refused(path) == "its compressed pixels are cut short"


@pytest.mark.parametrize("name", STREAMS)
def test_stream_filled_up_with_zeros_is_whole(tmp_path, name):
    syntax, pixels, stream, _ = STREAMS[name]
    path = save_stream(make_image(pixels), stream, tmp_path / "x.dcm", syntax)
    plain = read_dicom(path).image
    save_stream(make_image(pixels), stream + bytes(1000), path, syntax)
    np.testing.assert_array_equal(read_dicom(path).image, plain)


@pytest.mark.parametrize("name", [*STREAMS, "rle", "plain", "deflated"])
def test_file_cut_at_any_tenth(tmp_path, name, capfd):
    path = tmp_path / "x.dcm"
    if name in STREAMS:
        syntax, pixels, stream, _ = STREAMS[name]
        save_stream(make_image(pixels), stream, path, syntax)
    else:
        radiograph, syntax = make_image(DEEP), ExplicitVRLittleEndian
        if name == "rle":
            radiograph.compress(RLELossless, generate_instance_uid=False)
            syntax = RLELossless
        elif name == "deflated":
            syntax = DeflatedExplicitVRLittleEndian
        save(radiograph, path, syntax)
    content = path.read_bytes()
    for tenth in range(10):
        path.write_bytes(content[: len(content) * tenth // 10])
        refused(path)
    assert capfd.readouterr() == ("", "")


def test_a_hundred_broken_files_give_pixels_or_one_line(tmp_path, capfd):
    rng = np.random.default_rng(0)
    path = tmp_path / "x.dcm"
    contents = []
    for syntax, pixels, stream, _ in STREAMS.values():
        radiograph = make_image(
            pixels, WindowCenter=1, WindowWidth=9, PatientName="Doe^J"
        )
        contents.append(save_stream(radiograph, stream, path, syntax).read_bytes())
    for name in ("examples_palette.dcm", "MR_small_RLE.dcm", "image_dfl.dcm"):
        contents.append((SHIPPED / name).read_bytes())
    read = refusals = 0
    for turn in range(10):
        for content in contents:
            broken = bytearray(content)
            end = len(broken) if turn % 2 else min(len(broken), 1500)
            for at in rng.integers(132, end, 1 + turn):
                broken[at] ^= 1 << rng.integers(8)
            path.write_bytes(broken)
            try:
                radiograph = read_dicom(path)
            except DataError as error:
                refusals += 1
                assert len(str(error).splitlines()) == 1 and "Doe" not in str(error)
                assert str(error).startswith(f"{path}: ")
            else:
                read += 1
                assert radiograph.image.dtype == np.uint8 and radiograph.image.ndim == 2
    assert read > 10 and refusals > 10
    assert capfd.readouterr() == ("", "")


def test_nothing_of_a_file_is_repeated(tmp_path):
    radiograph = make_image(PHANTOM, PatientName="Doe^Jane", PatientID="secret-1")
    path = save(radiograph, tmp_path / "x.dcm")
    content = path.read_bytes()
    at = content.index(b"MONOCHROME2")
    path.write_bytes(content[:at] + b"DOE^JANE 12" + content[at + 11 :])
    # A program that logs to the terminal, as absl does, unlike pytest.
    logged = io.StringIO()
    handler = logging.StreamHandler(logged)
    logging.getLogger().addHandler(handler)
    try:
        assert "DOE" not in refused(path)
        read_dicom(SHIPPED / "SC_rgb_jpeg.dcm")  # implicit, and says explicit
    finally:
        logging.getLogger().removeHandler(handler)
    assert logged.getvalue() == ""


def test_only_a_regular_file_is_read(tmp_path):
    assert refused(tmp_path) == "no regular file"
    assert refused(tmp_path / "none.dcm") == "no such file"
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe") == "no regular file"
    (tmp_path / "empty.dcm").touch()
    assert "empty" in refused(tmp_path / "empty.dcm")


@pytest.mark.parametrize(
    ("library", "name"),
    [("pydicom", "MR_small.dcm"), ("imagecodecs", "MR_small_jp2klossless.dcm")],
)
def test_what_is_not_installed_is_named(monkeypatch, library, name):
    for module in [m for m in sys.modules if m.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "covjax.predict.dicom.codecs", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=f"needs {library}.*covjax.dicom") as caught:
        read_dicom(SHIPPED / name)
    assert str(SHIPPED / name) in str(caught.value)


def test_header_has_all_but_the_pixels():
    header = read_header(SHIPPED / "MR_small.dcm")
    assert "PixelData" not in header and header.PatientID == "4MR1"
