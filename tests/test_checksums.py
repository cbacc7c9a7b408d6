"""Digests of a folder tell whether its files are what was written."""

import hashlib
import json
from pathlib import Path

import pytest

from covjax.errors import UsageError
from covjax.runtime.checksums import NAME, check_digests, write_digests


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "state" / "d").mkdir(parents=True)
    (tmp_path / "state" / "d" / "arrays").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "state" / "empty").write_bytes(b"")
    (tmp_path / "about").write_text("the time")
    write_digests(tmp_path, unless=["about"])
    return tmp_path


def test_lengths_and_digests_stand_under_the_names_of_the_files(folder):
    content = bytes(range(256)) * 40
    digest = hashlib.blake2b(content).hexdigest()
    told = json.loads((folder / NAME).read_text())
    assert set(told) == {"state/d/arrays", "state/empty"}
    assert told["state/d/arrays"][0] == 10_240
    assert digest.startswith(told["state/d/arrays"][1])
    assert len(told["state/d/arrays"][1]) >= 32


def test_a_folder_that_is_as_it_was_passes(folder):
    (folder / "state" / "later").write_text("came later")
    (folder / "about").write_text("another time")
    check_digests(folder)


def test_a_folder_without_digests_passes(tmp_path):
    (tmp_path / "file").write_text("of an older version")
    check_digests(tmp_path)


def change(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(content[:-1])
    elif how == "longer":
        path.write_bytes(content + b"\0")
    else:  # one bit
        path.write_bytes(content[:99] + bytes([content[99] ^ 1]) + content[100:])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("gone", "is gone"),
        ("emptied", "0 of its 10240 bytes"),
        ("cut", "10239 of its 10240 bytes"),
        ("longer", "10241 of its 10240 bytes"),
        ("one bit", "has changed"),
    ],
)
def test_a_file_that_is_not_what_it_was_is_named(folder, how, said):
    change(folder / "state" / "d" / "arrays", how)
    with pytest.raises(UsageError, match=said) as error:
        check_digests(folder)
    assert str(error.value).startswith(f"{folder}: not whole: state/d/arrays ")


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"state/empty": 3}'])
def test_digests_that_cannot_be_read_are_no_digests_that_hold(folder, text):
    (folder / NAME).write_text(text)
    with pytest.raises(UsageError, match="not whole"):
        check_digests(folder)
