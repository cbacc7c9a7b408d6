"""Which files are taken for images, and what their outputs are called."""

import os
from pathlib import Path

import pytest

from covjax.errors import UsageError
from covjax.predict.inputs import find_inputs

DICOM = bytes(128) + b"DICM"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images, and of what is none; the test stands beside it."""
    files = {
        "images/b.png": b"", "images/a.JPG": b"", "images/notes.txt": b"",
        "images/.hidden.png": b"", "images/.git/c.png": b"",
        "images/ward 2/IM0001": DICOM, "images/ward 2/IM0002": b"no image",
        "images/ward 2/x.dcm": b"", "images/DICOMDIR": DICOM,
        "images/lung masks/b.png": b"", "images/infection masks/b.png": b"",
        "images/out/masks/a.txt": b"", "images/out/overlays/b.jpg": b"",
        "elsewhere/b.png": b"", "images/v1.2/d.tif": b"",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*given: str) -> list[str]:
    return [one.name for one in find_inputs(given, leave_out=Path("images/out"))]


def test_a_folder_gives_all_images_below_it(folder):
    found = find_inputs(["images"], leave_out=folder / "images" / "out")
    assert {one.name: str(one.path) for one in found} == {
        "a": "images/a.JPG",
        "b": "images/b.png",
        "v1.2/d": "images/v1.2/d.tif",
        "ward 2/IM0001": "images/ward 2/IM0001",
        "ward 2/x": "images/ward 2/x.dcm",
    }


def test_files_and_patterns_keep_their_order_and_come_once(folder):
    assert names("images/b.png", "images/a.JPG") == ["b", "a"]
    assert names("images/[ab].*", "images/b.png") == ["a", "b"]
    assert names("images/**/*.dcm") == ["x"]
    both = names("images", "images/ward 2/x.dcm")  # called as it was found first
    assert both == names("images")
    assert names("images/notes.txt") == ["notes.txt"]  # named: it will have a line
    assert names("images/DICOMDIR") == ["DICOMDIR"]
    assert names("images/ward 2/../b.png") == ["b"]


@pytest.mark.parametrize("out", ["images/out", "images/../images/out", "link/out"])
def test_outputs_are_no_images_however_they_are_met(folder, out):
    os.symlink(folder / "images", folder / "link")
    for word in (
        "images",
        "link",
        "images/[ow]*",
        "images/**/*.[jJ]*",
        "link/**/*.[jJ]*",
    ):
        found = find_inputs([word], leave_out=Path(out))
        assert not any("/out/" in str(one.path) for one in found), word
    for word in ("link/**/*.jpg", "images/out", "images/out/overlays/b.jpg"):
        with pytest.raises(UsageError, match="no images"):
            find_inputs([word], leave_out=Path(out))


def test_outputs_of_other_networks_are_no_images(folder):
    before = names("images")
    other = folder / "images" / "other"
    (other / "lungs").mkdir(parents=True)
    (other / "lungs" / "b.png").write_bytes(b"")
    (other / "predictions.json").write_text("{}")
    assert names("images") == before
    assert names("images/other") == ["lungs/b"]  # named itself


def test_an_image_that_is_named_in_two_ways_comes_once(folder):
    again = ["images/ward 2/../b.png", str(folder / "images" / "b.png"), "images/*.png"]
    assert names("images/b.png", *again) == ["b"]
    assert names("images", str(folder / "images")) == names("images")


@pytest.mark.parametrize("name", ["~$b.png", "~nobody-of-this-name"])
def test_a_name_may_begin_as_a_home_does(folder, name):
    (folder / name).write_bytes(b"")
    assert [one.path for one in find_inputs([name], leave_out=Path("out"))] == [
        Path(name)
    ]
    (folder / name).unlink()
    with pytest.raises(UsageError, match="no such file"):
        names(name)


def test_names_are_lines_of_utf_8_whatever_the_files_are_called(folder):
    (folder / "odd").mkdir()
    for name in (b"a\rb.png", b"c\nd.png", b"\xe9.png", "\u00e9\u00a0\u200d.png"):
        (folder / "odd" / os.fsdecode(name)).write_bytes(b"")
    assert set(names("odd")) == {
        r"a\rb", r"c\nd", r"\udce9", "\u00e9\u00a0\u200d"
    }  # fmt: skip


def test_a_link_that_cannot_be_followed_is_no_image_unless_it_is_named(folder):
    before = names("images")
    os.symlink("x" * 300, folder / "images" / "IM0003")  # too long for a name
    assert names("images") == before
    assert names("images/b.png", "images/IM0003") == ["b", "IM0003"]  # will have a line


def test_a_name_with_brackets_is_no_pattern(folder):
    (folder / "image [1].png").write_bytes(b"")
    assert names("image [1].png") == ["image [1]"]


def test_images_that_differ_in_their_endings_alone_keep_them(folder):
    (folder / "images" / "b.dcm").write_bytes(DICOM)
    assert names("images/b.png", "images/b.dcm", "images/a.JPG") == [
        "b.png",
        "b.dcm",
        "a",
    ]


@pytest.mark.parametrize("other", ["elsewhere/b.png", "elsewhere"])
def test_two_images_never_have_outputs_of_one_name(folder, other):
    with pytest.raises(UsageError, match="outputs of one name") as error:
        names("images", other)
    assert "images/b.png" in str(error.value) and "elsewhere/b.png" in str(error.value)


def test_capitals_do_not_tell_outputs_apart(folder):
    (folder / "images" / "B.png").write_bytes(b"")
    with pytest.raises(UsageError, match="outputs of one name; some disks know no cap"):
        names("images")


@pytest.mark.parametrize("word", ["nowhere", "images/*.bmp", "images/out/masks"])
def test_nothing_to_read_is_told(folder, word):
    with pytest.raises(UsageError, match="no such file|no images") as error:
        names(word)
    assert word in str(error.value) and "\n" not in str(error.value)


def test_links_in_a_circle_end(folder):
    os.symlink(folder / "images", folder / "images" / "ward 2" / "again")
    assert "b" in names("images")
