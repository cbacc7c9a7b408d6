"""The published layout, and images with their masks."""

import dataclasses
import os
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


def write_image(split: Path, label: str = "Normal", name: str = "a.png") -> None:
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
    write_image(tree / "Val")
    assert covidqu.find_tree(tmp_path, "infection") == tree
    assert len(covidqu.list_samples(tmp_path, "infection", "Val")) == 1


def test_takes_the_newest_version_by_number(tmp_path):
    for version in ("2", "10", "9"):
        write_image(tmp_path / "versions" / version / INFECTION / "Val")
    (tmp_path / "versions" / "old").mkdir()
    found = covidqu.find_tree(tmp_path, "infection")
    assert found == tmp_path / "versions" / "10" / INFECTION


def test_missing_tree_names_what_was_looked_for(tmp_path):
    write_image(tmp_path / INFECTION / "Val")
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
    first, second = covidqu.list_samples(tmp_path, "infection", "Train")
    assert (first.name, first.lung_mask.name) == ("a.JPEG", "a.png")
    assert (second.name, second.lung_mask.name) == ("b.2.jpg", "b.2.tif")
    assert first.infection_mask == folder / "infection masks" / "a.bmp"
    assert (first.label, first.split) == ("COVID-19", "Train")


def test_lung_tree_has_no_infection_masks(tmp_path):
    write_image(tmp_path / "Lung Segmentation Data" / "Test")
    (sample,) = covidqu.list_samples(tmp_path, "lung", "Test")
    assert sample.infection_mask is None
    assert set(covidqu.read_sample(sample, 8)) == {"image", "lung"}


def test_order_is_by_class_then_name(tmp_path):
    split = tmp_path / INFECTION / "Test"
    for label, name in (
        ("Normal", "a.png"),
        ("Non-COVID", "b.png"),
        ("COVID-19", "covid_9.png"),
        ("COVID-19", "covid_10.png"),
    ):
        write_image(split, label, name)
    samples = covidqu.list_samples(tmp_path, "infection", "Test")
    assert [sample.name for sample in samples] == [
        "covid_10.png",
        "covid_9.png",
        "b.png",
        "a.png",
    ]
    assert samples == covidqu.list_samples(tmp_path, "infection", "Test")


def test_ignores_files_that_are_not_images(tmp_path):
    split = tmp_path / INFECTION / "Test"
    write_image(split)
    for name in ("._a.png", "._b.png", ".DS_Store", "Thumbs.db", "notes.txt"):
        (split / "Normal" / "images" / name).write_bytes(b"\0\5\x16\7")
    assert len(covidqu.list_samples(tmp_path, "infection", "Test")) == 1


def test_missing_mask_is_told_to_whoever_reads_the_image(tmp_path):
    split = tmp_path / INFECTION / "Test"
    write_image(split)
    mask = split / "Normal" / "infection masks" / "a.png"
    mask.unlink()
    (sample,) = covidqu.list_samples(tmp_path, "infection", "Test")
    with pytest.raises(DataError, match=r"infection masks/a\.png: no such file"):
        covidqu.read_sample(sample, 8)


@pytest.mark.parametrize("above", ["images", ""], ids=["folder", "class"])
@pytest.mark.parametrize("to", ["nowhere", "Normal"], ids=["dangling", "circle"])
def test_folder_that_cannot_be_listed_is_no_empty_class(tmp_path, above, to):
    split = tmp_path / INFECTION / "Test"
    write_image(split, "COVID-19")
    if above:
        (split / "Normal").mkdir()
        (split / "Normal" / "images").symlink_to("images" if to == "Normal" else to)
    else:
        (split / "Normal").symlink_to(to)
    with pytest.raises(DataError) as caught:
        covidqu.list_samples(tmp_path, "infection", "Test")
    assert str(caught.value).startswith(str(split / "Normal"))
    assert len(str(caught.value).splitlines()) == 1


def test_class_behind_a_link_may_lack_a_folder(tmp_path):
    split = tmp_path / INFECTION / "Test"
    write_image(split, "COVID-19")
    (tmp_path / "elsewhere").mkdir()
    (split / "Normal").symlink_to(tmp_path / "elsewhere")
    assert len(covidqu.list_samples(tmp_path, "infection", "Test")) == 1


@pytest.mark.parametrize(
    "name", [b"a\nb.png", b"a\x7fb.png", b"a\xffb.png", "a\u2028b.png".encode()]
)
def test_name_that_no_table_can_hold_is_refused_in_one_line(tmp_path, name):
    split = tmp_path / INFECTION / "Test"
    write_image(split)
    images = split / "Normal" / "images"
    os.rename(images / "a.png", os.fsencode(images) + b"/" + name)
    with pytest.raises(DataError, match=r"images/a.*b\.png: a name that no") as caught:
        covidqu.list_samples(tmp_path, "infection", "Test")
    assert len(str(caught.value).encode().splitlines()) == 1


@pytest.mark.parametrize(
    "name", ["ä b.png", "肺 1.png", "ن\u200cو.png", "a\u00a0b.png"]
)
def test_names_of_other_scripts_are_read(tmp_path, name):
    split = tmp_path / INFECTION / "Test"
    write_image(split, name=name)
    (sample,) = covidqu.list_samples(tmp_path, "infection", "Test")
    assert sample.name == name
    assert covidqu.read_sample(sample, 8)["lung"].any()


def test_two_images_of_one_name_are_refused(tmp_path):
    split = tmp_path / INFECTION / "Test"
    write_image(split)
    write(split / "Normal" / "images" / "a.jpg", RAMP)
    with pytest.raises(DataError, match=r"a\.png: same name as a\.jpg"):
        covidqu.list_samples(tmp_path, "infection", "Test")


@pytest.mark.parametrize("present", [False, True], ids=["missing", "empty"])
def test_split_without_images_is_refused(tmp_path, present):
    write_image(tmp_path / INFECTION / "Test")
    if present:
        (tmp_path / INFECTION / "Val" / "Normal" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match="no images in .*Val"):
        covidqu.list_samples(tmp_path, "infection", "Val")


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


DISC = (np.hypot(*(np.indices((20, 20)) - 9.5)) < 7).astype(np.uint8)


def read_stored(folder: Path, stored: np.ndarray, name: str = "m.png") -> np.ndarray:
    return covidqu.read_mask(write(folder / name, stored))


def test_mask_is_read_whatever_its_white(tmp_path):
    for white in (1, 38, 128, 255, 65535):
        stored = DISC.astype(np.uint16 if white > 255 else np.uint8) * white
        np.testing.assert_array_equal(read_stored(tmp_path, stored), DISC)
    assert not read_stored(tmp_path, 0 * DISC).any()


def test_negative_of_a_mask_is_refused(tmp_path):
    for mask in (DISC, 0 * DISC):  # of a blank one, too
        with pytest.raises(DataError, match=r"m\.png: corners .* are exchanged"):
            read_stored(tmp_path, 255 * (1 - mask))


def test_mask_that_touches_the_border_is_no_negative(tmp_path):
    wide = np.ones((20, 20), np.uint8)  # all but one corner
    wide[-1, -1] = 0
    corners = np.zeros((20, 20), np.uint8)
    corners[:6, :6] = corners[-6:, :6] = corners[:6, -6:] = corners[-6:, -6:] = 1
    for mask in (wide, corners):  # 46 of 76 pixels of the border are the corners'
        np.testing.assert_array_equal(read_stored(tmp_path, 255 * mask), mask)


def test_edges_of_a_mask_may_be_grey(tmp_path):
    soft = np.asarray(
        Image.fromarray(255 * DISC).resize((80, 80), Image.Resampling.BICUBIC)
    )
    assert len(np.unique(soft)) > 30
    np.testing.assert_array_equal(read_stored(tmp_path, soft), soft > 127)
    path = tmp_path / "m.jpg"
    Image.fromarray(255 * DISC).save(path, quality=60)
    np.testing.assert_array_equal(covidqu.read_mask(path), DISC)


@pytest.mark.parametrize("grey", [64, 127, 128, 200])
def test_area_of_a_third_level_is_refused(tmp_path, grey):
    stored = 255 * DISC
    stored[:, 10:][DISC[:, 10:] > 0] = grey  # the left lung and the right one
    with pytest.raises(DataError, match=r"m\.png: \d+% of it grey"):
        read_stored(tmp_path, stored)


def test_labels_are_not_read_as_a_blank_mask(tmp_path):
    stored = DISC.copy()
    stored[:, 10:] *= 2
    with pytest.raises(DataError, match=r"m\.png: levels up to 2 alone"):
        read_stored(tmp_path, stored)


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


def make_image(folder: Path, image: np.ndarray, mask: np.ndarray) -> covidqu.Sample:
    paths = [write(folder / name, a) for name, a in (("i.png", image), ("m.png", mask))]
    return covidqu.Sample("i.png", "Normal", "Val", paths[0], paths[1], paths[1])


def test_read_image_gives_square_arrays(tmp_path):
    sample = make_image(tmp_path, RAMP, (RAMP > 99).astype(np.uint8))  # stored 0 and 1
    record = covidqu.read_sample(sample, 8)
    np.testing.assert_array_equal(record["image"], RAMP)
    np.testing.assert_array_equal(record["lung"], RAMP > 99)
    np.testing.assert_array_equal(record["infection"], RAMP > 99)
    for array in covidqu.read_sample(sample, 5).values():
        assert (array.shape, array.dtype) == ((5, 5), np.uint8)


def test_mask_of_16_bits_that_holds_0_and_1_is_not_emptied(tmp_path):
    sample = make_image(tmp_path, RAMP, (RAMP > 99).astype(np.uint16))
    np.testing.assert_array_equal(covidqu.read_sample(sample, 8)["lung"], RAMP > 99)


def test_mask_of_another_size_is_refused(tmp_path):
    sample = make_image(tmp_path, RAMP, np.zeros((8, 4), np.uint8))
    with pytest.raises(
        DataError, match=r"m\.png: mask of 4x8 pixels for an image of 8x8"
    ):
        covidqu.read_sample(sample, 8)


TRUE = (RAMP > 99).astype(np.uint8)
SICK = (RAMP > 199).astype(np.uint8)
FOUND = np.array([[0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.uint8)


@pytest.fixture
def sample(tmp_path) -> covidqu.Sample:
    """An image of the infection tree, whose three masks are unlike one another."""
    names = {"i.png": RAMP, "lung.png": 255 * TRUE, "sick.png": 255 * SICK}
    paths = [write(tmp_path / name, array) for name, array in names.items()]
    return covidqu.Sample("i.png", "COVID-19", "Val", *paths)


def with_found_lung(sample: covidqu.Sample, found: np.ndarray) -> covidqu.Sample:
    path = write(sample.image.parent / "found.png", 255 * found)
    return dataclasses.replace(sample, found_lung=path)


def test_masks_are_read_without_the_image(sample):
    sample.image.unlink()
    masks = covidqu.read_masks(sample, 8)
    assert {kind: mask.tolist() for kind, mask in masks.items()} == {
        "lung": TRUE.tolist(),
        "infection": SICK.tolist(),
    }
    assert {mask.dtype.name for mask in masks.values()} == {"uint8"}
    half = covidqu.read_masks(sample, 4)
    # Centres of the 4 cells fall on rows and columns 1, 3, 5 and 7.
    np.testing.assert_array_equal(half["lung"], TRUE[1::2, 1::2])
    of_lung_tree = dataclasses.replace(sample, infection_mask=None)
    assert set(covidqu.read_masks(of_lung_tree, 8)) == {"lung"}


def test_lungs_that_a_model_found_are_read_beside_the_true_ones(sample):
    shown = with_found_lung(sample, TRUE.T)
    expected = {"image": RAMP, "lung": TRUE, "infection": SICK, "found_lung": TRUE.T}
    record = covidqu.read_sample(shown, 8)
    assert record.keys() == expected.keys()
    for kind, array in expected.items():
        np.testing.assert_array_equal(record[kind], array)
        assert record[kind].dtype == np.uint8
    masks = covidqu.read_masks(shown, 8)
    np.testing.assert_array_equal(masks["found_lung"], TRUE.T)


def test_found_lungs_of_another_size_are_resized_and_not_refused(sample):
    shown = with_found_lung(sample, FOUND)  # found at half the size of the image
    twice = FOUND.repeat(2, axis=0).repeat(2, axis=1)
    for masks in (covidqu.read_sample(shown, 8), covidqu.read_masks(shown, 8)):
        np.testing.assert_array_equal(masks["found_lung"], twice)
    same = covidqu.read_sample(shown, 4)["found_lung"]
    np.testing.assert_array_equal(same, FOUND)


def test_found_lungs_that_are_missing_are_named(sample):
    shown = with_found_lung(sample, FOUND)
    (sample.image.parent / "found.png").unlink()
    with pytest.raises(DataError, match=r"found\.png: no such file"):
        covidqu.read_sample(shown, 8)


def test_published_mask_needs_the_size_of_its_image_where_that_is_known(sample):
    write(sample.image.parent / "sick.png", 255 * FOUND)
    with pytest.raises(DataError, match=r"sick\.png: mask of 4x4 pixels for .* 8x8"):
        covidqu.read_sample(sample, 8)
    with pytest.raises(DataError, match=r"lung\.png: mask of 8x8 pixels for .* 9x5"):
        covidqu.read_masks(sample, 8, image_shape=(5, 9))
    assert covidqu.read_masks(sample, 8)["infection"].shape == (8, 8)
