"""The table of predictions: rows are added, survive a kill, and end in order."""

import csv
from pathlib import Path

import pytest

from covjax.errors import UsageError
from covjax.predict.table import (
    COLUMNS,
    TABLE,
    Additions,
    claim,
    in_order,
    read_rows,
    write_table,
)


def row(name: str, **told: str) -> dict[str, str]:
    return dict.fromkeys(COLUMNS, "") | {"file": f"{name}.png", "name": name} | told


AWKWARD = row("ward, 2/“a”", warnings='no "window"; 90 x 200 pixels')


def test_rows_that_were_added_are_read_by_whoever_goes_on(tmp_path):
    with Additions(tmp_path, 0) as mine, Additions(tmp_path, 1) as theirs:
        mine.add(AWKWARD)
        theirs.add(row("b"))
        # While they are still open: a process that is killed closes nothing.
        assert read_rows(tmp_path) == {AWKWARD["name"]: AWKWARD, "b": row("b")}


@pytest.mark.parametrize("kept", range(1, 40, 3))
def test_a_row_that_was_cut_short_is_none(tmp_path, kept):
    with Additions(tmp_path, 0) as additions:
        additions.add(row("a", error="broken"))
        whole = (tmp_path / ".rows-0.csv").read_bytes()
        additions.add(AWKWARD)
    content = (tmp_path / ".rows-0.csv").read_bytes()
    (tmp_path / ".rows-0.csv").write_bytes(content[: len(whole) + kept])
    assert list(read_rows(tmp_path)) == ["a"]
    with Additions(tmp_path, 0) as additions:  # and harms no row after it
        additions.add(row("c"))
    assert read_rows(tmp_path)["c"] == row("c")
    assert AWKWARD["name"] not in read_rows(tmp_path)


def test_rows_are_not_added_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("not whole")
    (tmp_path / ".rows-0.csv").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        Additions(tmp_path, 0)
    assert (tmp_path / "precious").read_text() == "not whole"


def test_the_row_of_an_image_that_is_called_as_a_column_is_one(tmp_path):
    radiograph = row("file") | {"file": "file"}
    write_table(tmp_path, [radiograph, row("b")])
    assert read_rows(tmp_path) == {"file": radiograph, "b": row("b")}


def test_the_newest_row_of_an_image_counts(tmp_path):
    write_table(tmp_path, [row("a", error="broken"), row("b")])
    with Additions(tmp_path, 0) as additions:
        additions.add(row("a", presence="0.5"))
    assert read_rows(tmp_path) == {"a": row("a", presence="0.5"), "b": row("b")}


def test_the_table_has_a_row_an_image_in_the_order_that_is_asked(tmp_path):
    with Additions(tmp_path, 0) as additions:
        for name in ("d", "b", "a"):
            additions.add(row(name))
    write_table(tmp_path, in_order(read_rows(tmp_path), ["a", "b", "c"]))
    with (tmp_path / TABLE).open(newline="") as file:
        read = list(csv.reader(file))
    assert read[0] == list(COLUMNS)
    assert [line[1] for line in read[1:]] == ["a", "b", "d"]
    assert [path.name for path in tmp_path.iterdir()] == [TABLE]


def test_a_folder_is_of_one_pair_of_networks(tmp_path):
    claim(tmp_path, {"networks": ["1", "2"]})
    claim(tmp_path, {"networks": ["1", "2"]})
    before = sorted(path.read_bytes() for path in Path(tmp_path).iterdir())
    for other in ({"networks": ["1", "3"]}, {}):
        with pytest.raises(UsageError, match="predictions of other networks"):
            claim(tmp_path, other)
    assert sorted(path.read_bytes() for path in Path(tmp_path).iterdir()) == before
