"""Which files are taken for films, and what their outputs are called."""

import os
from pathlib import Path

import pytest

from covjax.errors import UsageError
from covjax.predict.inputs import find_inputs

DICOM = bytes(128) + b"DICM"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of films, and of what is none; the test stands beside it."""
    files = {
        "films/b.png": b"", "films/a.JPG": b"", "films/notes.txt": b"",
        "films/.hidden.png": b"", "films/.git/c.png": b"", "films/ward 2/IM0001": DICOM,
        "films/ward 2/IM0002": b"no film", "films/ward 2/x.dcm": b"",
        "films/DICOMDIR": DICOM,
        "films/lung masks/b.png": b"", "films/infection masks/b.png": b"",
        "films/out/masks/a.txt": b"", "films/out/overlays/b.jpg": b"",
        "elsewhere/b.png": b"", "films/v1.2/d.tif": b"",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*given: str) -> list[str]:
    return [one.name for one in find_inputs(given, leave_out=Path("films/out"))]


def test_a_folder_gives_all_films_below_it(folder):
    found = find_inputs(["films"], leave_out=folder / "films" / "out")
    assert {one.name: str(one.path) for one in found} == {
        "a": "films/a.JPG",
        "b": "films/b.png",
        "v1.2/d": "films/v1.2/d.tif",
        "ward 2/IM0001": "films/ward 2/IM0001",
        "ward 2/x": "films/ward 2/x.dcm",
    }


def test_files_and_patterns_keep_their_order_and_come_once(folder):
    assert names("films/b.png", "films/a.JPG") == ["b", "a"]
    assert names("films/[ab].*", "films/b.png") == ["a", "b"]
    assert names("films/**/*.dcm") == ["x"]
    both = names("films", "films/ward 2/x.dcm")  # called as it was found first
    assert both == names("films")
    assert names("films/notes.txt") == ["notes.txt"]  # named: it will have a line
    assert names("films/DICOMDIR") == ["DICOMDIR"]
    assert names("films/ward 2/../b.png") == ["b"]


@pytest.mark.parametrize("out", ["films/out", "films/../films/out", "link/out"])
def test_outputs_are_no_films_however_they_are_met(folder, out):
    os.symlink(folder / "films", folder / "link")
    for word in ("films", "link", "films/[ow]*", "films/**/*.[jJ]*", "link/**/*.[jJ]*"):
        found = find_inputs([word], leave_out=Path(out))
        assert not any("/out/" in str(one.path) for one in found), word
    for word in ("link/**/*.jpg", "films/out", "films/out/overlays/b.jpg"):
        with pytest.raises(UsageError, match="no films"):
            find_inputs([word], leave_out=Path(out))


def test_outputs_of_other_networks_are_no_films(folder):
    before = names("films")
    other = folder / "films" / "other"
    (other / "lungs").mkdir(parents=True)
    (other / "lungs" / "b.png").write_bytes(b"")
    (other / "predictions.json").write_text("{}")
    assert names("films") == before
    assert names("films/other") == ["lungs/b"]  # named itself


def test_a_film_that_is_named_in_two_ways_comes_once(folder):
    again = ["films/ward 2/../b.png", str(folder / "films" / "b.png"), "films/*.png"]
    assert names("films/b.png", *again) == ["b"]
    assert names("films", str(folder / "films")) == names("films")


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


def test_a_link_that_cannot_be_followed_is_no_film_unless_it_is_named(folder):
    before = names("films")
    os.symlink("x" * 300, folder / "films" / "IM0003")  # too long for a name
    assert names("films") == before
    assert names("films/b.png", "films/IM0003") == ["b", "IM0003"]  # will have a line


def test_a_name_with_brackets_is_no_pattern(folder):
    (folder / "film [1].png").write_bytes(b"")
    assert names("film [1].png") == ["film [1]"]


def test_films_that_differ_in_their_endings_alone_keep_them(folder):
    (folder / "films" / "b.dcm").write_bytes(DICOM)
    assert names("films/b.png", "films/b.dcm", "films/a.JPG") == ["b.png", "b.dcm", "a"]


@pytest.mark.parametrize("other", ["elsewhere/b.png", "elsewhere"])
def test_two_films_never_have_outputs_of_one_name(folder, other):
    with pytest.raises(UsageError, match="outputs of one name") as error:
        names("films", other)
    assert "films/b.png" in str(error.value) and "elsewhere/b.png" in str(error.value)


def test_capitals_do_not_tell_outputs_apart(folder):
    (folder / "films" / "B.png").write_bytes(b"")
    with pytest.raises(UsageError, match="outputs of one name; some disks know no cap"):
        names("films")


@pytest.mark.parametrize("word", ["nowhere", "films/*.bmp", "films/out/masks"])
def test_nothing_to_read_is_told(folder, word):
    with pytest.raises(UsageError, match="no such file|no films") as error:
        names(word)
    assert word in str(error.value) and "\n" not in str(error.value)


def test_links_in_a_circle_end(folder):
    os.symlink(folder / "films", folder / "films" / "ward 2" / "again")
    assert "b" in names("films")
