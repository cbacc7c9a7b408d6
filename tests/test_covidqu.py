"""The published layout, and the reading of films in every kind of file."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covjax.data import covidqu
from covjax.errors import DataError

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def write_film(split: Path, label: str = "Normal", name: str = "a.png") -> None:
    write(split / label / "images" / name, RAMP)
    for kind in ("lung masks", "infection masks"):
        write(split / label / kind / name, (RAMP > 99).astype(np.uint8) * 255)


INFECTION = "Infection Segmentation Data"


@pytest.mark.parametrize(
    "above",
    ["", INFECTION, f"versions/7/{INFECTION}", "versions/12"],
    ids=["once", "twice", "versions-twice", "versions-once"],
)
def test_finds_the_tree_however_it_is_nested(tmp_path, above):
    tree = tmp_path / above / INFECTION
    write_film(tree / "Val")
    assert covidqu.find_tree(tmp_path, "infection") == tree
    assert len(covidqu.list_films(tmp_path, "infection", "Val")) == 1


def test_takes_the_newest_version_by_number(tmp_path):
    for version in ("2", "10", "9"):
        write_film(tmp_path / "versions" / version / INFECTION / "Val")
    (tmp_path / "versions" / "old").mkdir()
    found = covidqu.find_tree(tmp_path, "infection")
    assert found == tmp_path / "versions" / "10" / INFECTION


def test_missing_tree_names_what_was_looked_for(tmp_path):
    write_film(tmp_path / INFECTION / "Val")
    with pytest.raises(DataError, match="Lung Segmentation Data.*versions/N"):
        covidqu.find_tree(tmp_path, "lung")


def test_pairs_by_name_whatever_the_endings(tmp_path):
    folder = tmp_path / INFECTION / "Train" / "COVID-19"
    write(folder / "images" / "b.2.jpg", RAMP)
    write(folder / "images" / "a.JPEG", RAMP)
    write(folder / "lung masks" / "a.png", RAMP)
    write(folder / "lung masks" / "b.2.tif", RAMP)
    write(folder / "infection masks" / "a.bmp", RAMP)
    write(folder / "infection masks" / "b.2.png", RAMP)
    first, second = covidqu.list_films(tmp_path, "infection", "Train")
    assert (first.name, first.lung_mask.name) == ("a.JPEG", "a.png")
    assert (second.name, second.lung_mask.name) == ("b.2.jpg", "b.2.tif")
    assert first.infection_mask == folder / "infection masks" / "a.bmp"
    assert (first.label, first.split) == ("COVID-19", "Train")


def test_lung_tree_has_no_infection_masks(tmp_path):
    write_film(tmp_path / "Lung Segmentation Data" / "Test")
    (film,) = covidqu.list_films(tmp_path, "lung", "Test")
    assert film.infection_mask is None
    assert set(covidqu.read_film(film, 8)) == {"image", "lung"}


def test_order_is_by_class_then_name(tmp_path):
    split = tmp_path / INFECTION / "Test"
    for label, name in (
        ("Normal", "a.png"),
        ("Non-COVID", "b.png"),
        ("COVID-19", "covid_9.png"),
        ("COVID-19", "covid_10.png"),
    ):
        write_film(split, label, name)
    films = covidqu.list_films(tmp_path, "infection", "Test")
    assert [film.name for film in films] == [
        "covid_10.png",
        "covid_9.png",
        "b.png",
        "a.png",
    ]
    assert films == covidqu.list_films(tmp_path, "infection", "Test")


def test_ignores_files_that_are_not_films(tmp_path):
    split = tmp_path / INFECTION / "Test"
    write_film(split)
    for name in ("._a.png", "._b.png", ".DS_Store", "Thumbs.db", "notes.txt"):
        (split / "Normal" / "images" / name).write_bytes(b"\0\5\x16\7")
    assert len(covidqu.list_films(tmp_path, "infection", "Test")) == 1


def test_missing_mask_names_the_film(tmp_path):
    split = tmp_path / INFECTION / "Test"
    write_film(split)
    (split / "Normal" / "infection masks" / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png.*'infection masks'"):
        covidqu.list_films(tmp_path, "infection", "Test")


def test_two_films_of_one_name_are_refused(tmp_path):
    split = tmp_path / INFECTION / "Test"
    write_film(split)
    write(split / "Normal" / "images" / "a.jpg", RAMP)
    with pytest.raises(DataError, match=r"a\.png: same name as a\.jpg"):
        covidqu.list_films(tmp_path, "infection", "Test")


@pytest.mark.parametrize("present", [False, True], ids=["missing", "empty"])
def test_split_without_films_is_refused(tmp_path, present):
    write_film(tmp_path / INFECTION / "Test")
    if present:
        (tmp_path / INFECTION / "Val" / "Normal" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match="no films in .*Val"):
        covidqu.list_films(tmp_path, "infection", "Val")


def test_data_root_prefers_config_then_environment(monkeypatch):
    project = Path("/project")
    monkeypatch.setenv("COVJAX_DATA", "/from/environment")
    assert covidqu.data_root("/from/config", project) == Path("/from/config")
    assert covidqu.data_root("", project) == Path("/from/environment")
    monkeypatch.delenv("COVJAX_DATA")
    assert covidqu.data_root("", project) == Path("/project/data/COVID-QU-Ex")


def test_phantom_is_told_by_its_marker(tmp_path):
    assert not covidqu.is_phantom(tmp_path)
    (tmp_path / "PHANTOM.json").write_text("{}")
    assert covidqu.is_phantom(tmp_path)


def palette() -> Image.Image:
    # Index 0 is white and 1 is black: reading the indices would turn them round.
    picture = Image.fromarray(np.array([[0, 1], [1, 1]], np.uint8), "P")
    picture.putpalette([255, 255, 255, 0, 0, 0])
    return picture


def with_alpha(mode: str) -> Image.Image:
    picture = Image.fromarray(RAMP).convert(mode)
    picture.putalpha(0)  # wholly transparent: the colour below must still come out
    return picture


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (lambda: Image.fromarray(RAMP), RAMP),
        (lambda: Image.fromarray(RAMP).convert("RGB"), RAMP),
        (lambda: with_alpha("RGB"), RAMP),
        (lambda: with_alpha("L"), RAMP),
        (palette, [[255, 0], [0, 0]]),
        (lambda: Image.new("1", (1, 1), 1), [[255]]),
        # Luma of pure red, green and blue: .299, .587 and .114 of 255.
        (
            lambda: Image.fromarray(np.eye(3, dtype=np.uint8)[None] * 255),
            [[76, 150, 29]],
        ),
        (
            lambda: Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)),
            [[0, 100, 255]],
        ),
    ],
    ids=["L", "RGB", "RGBA", "LA", "P", "1", "luma", "I;16"],
)
def test_reads_every_mode_as_8_bit_grey(tmp_path, picture, expected):
    picture().save(tmp_path / "x.png")
    grey = covidqu.read_grey(tmp_path / "x.png")
    assert grey.dtype == np.uint8
    np.testing.assert_array_equal(grey, expected)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_reads_16_bit_tiff(tmp_path, dtype):
    write(tmp_path / "x.tif", np.array([[0, 257 * 7, 65535]], dtype))
    np.testing.assert_array_equal(covidqu.read_grey(tmp_path / "x.tif"), [[0, 7, 255]])


def test_reads_jpeg(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "x.jpg", quality=95)
    grey = covidqu.read_grey(tmp_path / "x.jpg")
    np.testing.assert_allclose(grey.astype(int), RAMP, atol=6)


def test_refuses_floats(tmp_path):
    write(tmp_path / "x.tif", np.full((2, 2), 0.5, np.float32))
    with pytest.raises(DataError, match=r"x\.tif: neither 8 nor 16 bits"):
        covidqu.read_grey(tmp_path / "x.tif")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.99])
def test_truncated_file_is_refused_wherever_it_is_cut(tmp_path, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    whole = write(tmp_path / "x.png", noise).read_bytes()
    # The last 12 bytes are the end marker, after all pixels.
    (tmp_path / "x.png").write_bytes(whole[: int(share * (len(whole) - 12))])
    with pytest.raises(DataError, match=r"x\.png: cannot be read"):
        covidqu.read_grey(tmp_path / "x.png")


@pytest.mark.parametrize(
    "content", [b"", b"no picture at all\n"], ids=["empty", "text"]
)
def test_file_that_is_no_picture_is_refused(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.png: cannot be read"):
        covidqu.read_grey(tmp_path / "x.png")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"x\.png: no such file"):
        covidqu.read_grey(tmp_path / "x.png")


def test_binarize_cuts_many_values_at_mid_grey():
    levels = np.array([[0, 1, 127, 128, 255]], np.uint8)
    np.testing.assert_array_equal(covidqu.binarize(levels), [[0, 0, 0, 1, 1]])
    wide = np.array([[0, 255, 32767, 32768, 65535]], np.uint16)
    np.testing.assert_array_equal(covidqu.binarize(wide), [[0, 0, 0, 1, 1]])


@pytest.mark.parametrize("value", [1, 38, 255, 65535])
def test_binarize_takes_the_one_other_value_for_foreground(value):
    dtype = np.uint8 if value < 256 else np.uint16
    stored = np.array([[0, value, 0, value]], dtype)
    np.testing.assert_array_equal(covidqu.binarize(stored), [[0, 1, 0, 1]])
    assert covidqu.binarize(stored[:, :1]).sum() == 0


def test_image_shrinks_by_averaging():
    checkers = (np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)
    half = covidqu.resize_image(checkers, 8)
    # Every weight of the filter falls evenly on black and white; the border, where
    # the filter is cut, keeps a little of its corner.
    np.testing.assert_allclose(half[1:-1, 1:-1].astype(float), 127.5, atol=1)
    assert set(np.unique(checkers[::2, ::2])) == {0}  # what dropping pixels would give


def test_image_keeps_its_size_or_becomes_square():
    assert covidqu.resize_image(RAMP, 8) is RAMP
    assert covidqu.resize_image(np.zeros((5, 9), np.uint8), 7).shape == (7, 7)


def test_mask_stays_binary_at_an_odd_ratio():
    mask = np.zeros((13, 13), np.uint8)
    mask[4:9, 3:11] = 1
    small = covidqu.resize_mask(mask, 5)
    # Centres of the 5 cells fall on rows and columns 1, 3, 6, 9 and 11.
    np.testing.assert_array_equal(
        small, mask[np.ix_([1, 3, 6, 9, 11], [1, 3, 6, 9, 11])]
    )
    assert small.sum() == 3


def make_film(folder: Path, image: np.ndarray, mask: np.ndarray) -> covidqu.Film:
    paths = [write(folder / name, a) for name, a in (("i.png", image), ("m.png", mask))]
    return covidqu.Film("i.png", "Normal", "Val", paths[0], paths[1], paths[1])


def test_read_film_gives_square_arrays(tmp_path):
    film = make_film(tmp_path, RAMP, (RAMP > 99).astype(np.uint8))  # stored 0 and 1
    record = covidqu.read_film(film, 8)
    np.testing.assert_array_equal(record["image"], RAMP)
    np.testing.assert_array_equal(record["lung"], RAMP > 99)
    np.testing.assert_array_equal(record["infection"], RAMP > 99)
    for array in covidqu.read_film(film, 5).values():
        assert (array.shape, array.dtype) == ((5, 5), np.uint8)


def test_mask_of_16_bits_that_holds_0_and_1_is_not_emptied(tmp_path):
    film = make_film(tmp_path, RAMP, (RAMP > 99).astype(np.uint16))
    np.testing.assert_array_equal(covidqu.read_film(film, 8)["lung"], RAMP > 99)


def test_mask_of_another_size_is_refused(tmp_path):
    film = make_film(tmp_path, RAMP, np.zeros((8, 4), np.uint8))
    with pytest.raises(
        DataError, match=r"m\.png: mask of 4x8 pixels for a film of 8x8"
    ):
        covidqu.read_film(film, 8)


TRUE = (RAMP > 99).astype(np.uint8)
SICK = (RAMP > 199).astype(np.uint8)
FOUND = np.array([[0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.uint8)


@pytest.fixture
def film(tmp_path) -> covidqu.Film:
    """A film of the infection tree, whose three masks are unlike one another."""
    names = {"i.png": RAMP, "lung.png": 255 * TRUE, "sick.png": 255 * SICK}
    paths = [write(tmp_path / name, array) for name, array in names.items()]
    return covidqu.Film("i.png", "COVID-19", "Val", *paths)


def with_found_lung(film: covidqu.Film, found: np.ndarray) -> covidqu.Film:
    path = write(film.image.parent / "found.png", 255 * found)
    return dataclasses.replace(film, found_lung=path)


def test_masks_are_read_without_the_film(film):
    film.image.unlink()
    masks = covidqu.read_masks(film, 8)
    assert {kind: mask.tolist() for kind, mask in masks.items()} == {
        "lung": TRUE.tolist(),
        "infection": SICK.tolist(),
    }
    assert {mask.dtype.name for mask in masks.values()} == {"uint8"}
    half = covidqu.read_masks(film, 4)
    # Centres of the 4 cells fall on rows and columns 1, 3, 5 and 7.
    np.testing.assert_array_equal(half["lung"], TRUE[1::2, 1::2])
    of_lung_tree = dataclasses.replace(film, infection_mask=None)
    assert set(covidqu.read_masks(of_lung_tree, 8)) == {"lung"}


def test_lungs_that_a_model_found_are_read_beside_the_true_ones(film):
    shown = with_found_lung(film, TRUE.T)
    expected = {"image": RAMP, "lung": TRUE, "infection": SICK, "found_lung": TRUE.T}
    record = covidqu.read_film(shown, 8)
    assert record.keys() == expected.keys()
    for kind, array in expected.items():
        np.testing.assert_array_equal(record[kind], array)
        assert record[kind].dtype == np.uint8
    masks = covidqu.read_masks(shown, 8)
    np.testing.assert_array_equal(masks["found_lung"], TRUE.T)


def test_found_lungs_of_another_size_are_resized_and_not_refused(film):
    shown = with_found_lung(film, FOUND)  # found at half the size of the film
    twice = FOUND.repeat(2, axis=0).repeat(2, axis=1)
    for masks in (covidqu.read_film(shown, 8), covidqu.read_masks(shown, 8)):
        np.testing.assert_array_equal(masks["found_lung"], twice)
    same = covidqu.read_film(shown, 4)["found_lung"]
    np.testing.assert_array_equal(same, FOUND)


def test_found_lungs_that_are_missing_are_named(film):
    shown = with_found_lung(film, FOUND)
    (film.image.parent / "found.png").unlink()
    with pytest.raises(DataError, match=r"found\.png: no such file"):
        covidqu.read_film(shown, 8)


def test_published_mask_needs_the_size_of_its_film_where_that_is_known(film):
    write(film.image.parent / "sick.png", 255 * FOUND)
    with pytest.raises(DataError, match=r"sick\.png: mask of 4x4 pixels for .* 8x8"):
        covidqu.read_film(film, 8)
    with pytest.raises(DataError, match=r"lung\.png: mask of 8x8 pixels for .* 9x5"):
        covidqu.read_masks(film, 8, film_shape=(5, 9))
    assert covidqu.read_masks(film, 8)["infection"].shape == (8, 8)
