"""JSON of others: read as JSON is, and every fault is a ValueError."""

import json
import os

import pytest

from covjax.runtime import strict_json
from covjax.runtime.strict_json import parse_json, read_json

GOOD = {"a": [1, -2.5, 1e300, True, None, "ü"], "b": {"c": {}}, "n": 10**17}


def test_json_is_read_as_it_is(tmp_path):
    for text in (json.dumps(GOOD), json.dumps(GOOD, ensure_ascii=False).encode()):
        assert parse_json(text) == GOOD
    (tmp_path / "file").write_text(json.dumps(GOOD))
    assert read_json(tmp_path / "file") == GOOD


@pytest.mark.parametrize(
    "text",
    [
        "", "{", b'{"\xff": 1}', '{"a": 1, "a": 2}', '[{"b": {"c": 0, "c": 0}}]',
        "[" * 100_000, '{"a":' * 100_000, "9" * 19, "-" + "9" * 5000, "NaN",
        "[Infinity]", "-Infinity", "1e999", "-1e999",
    ],
)  # fmt: skip
def test_a_fault_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_numbers_that_are_not_finite_are_read_where_they_may_be():
    assert parse_json("[1e999, -Infinity]", finite=False) == [
        float("inf"),
        -float("inf"),
    ]


def test_what_may_never_end_is_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        read_json(tmp_path / "pipe")
    monkeypatch.setattr(strict_json, "MOST_BYTES", 3)
    (tmp_path / "file").write_text("[10]")
    with pytest.raises(ValueError, match="4 bytes, more than 3"):
        read_json(tmp_path / "file")
    (tmp_path / "file").write_text("[1]")
    assert read_json(tmp_path / "file") == [1]
