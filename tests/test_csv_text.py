"""No cell of a table is a formula, and each text comes back."""

import csv
import itertools

import pytest

from covjax.predict.table import COLUMNS, TABLE, Additions, read_rows, write_table
from covjax.runtime.csv_text import escape, unescape

FORMULAS = [
    "=1+2", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n1", " =1", '"=1', "'=1",
    " '\"+1", "''-1", "＝1", "\xa0=1",
]  # fmt: skip
TEXTS = ["", "a", "a=1", "image_1.png", "ward/-1.png", "'a", "''", " a", "Größe", "1-2"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_begins_with_an_apostrophe(text):
    assert escape(text) == f"'{text}"


@pytest.mark.parametrize("text", TEXTS)
def test_other_text_stays_as_it_is(text):
    assert escape(text) == text


def test_every_text_comes_back_and_no_two_meet():
    texts = {
        "".join(t) for n in range(6) for t in itertools.product("'\" =\ta", repeat=n)
    }
    cells = {text: escape(text) for text in texts}
    assert all(unescape(cell) == text for text, cell in cells.items())
    assert len({*cells.values()}) == len(texts)


def test_predictions_are_found_again_by_their_names(tmp_path):
    rows = {
        name: dict.fromkeys(COLUMNS, "")
        | {"file": f"{name}.png", "name": name, "warnings": "-1", "presence": "-0.5"}
        for name in ("=cmd|' /C calc'!A0", "'=1", "plain")
    }
    first, *others = rows.values()
    write_table(tmp_path, others)
    with Additions(tmp_path, 0) as additions:
        additions.add(first)
    assert read_rows(tmp_path) == rows
    with (tmp_path / TABLE).open(newline="") as file:
        cells = list(csv.reader(file))[1:]
    assert [line[:2] for line in cells] == [
        ["''=1.png", "''=1"],
        ["plain.png", "plain"],
    ]
    assert {line[COLUMNS.index("warnings")] for line in cells} == {"'-1"}
    assert {line[COLUMNS.index("presence")] for line in cells} == {"-0.5"}  # a number
