"""Splits by a hash: the shares, and that one patient's images stay together."""

import collections
import hashlib
from pathlib import Path

import pytest

from covjax.data.from_table.assign_splits import assign_splits, split_of
from covjax.data.from_table.table import Row


def row(name: str, patient: str = "", split: str = "") -> Row:
    image = Path(f"/images/{name}.png")
    return Row(1, image, image, None, True, "Normal", split, patient)


@pytest.mark.parametrize(
    ("digest", "split"),
    [
        ("0000000000000000", "Train"),
        # .8 of 2^64 is cccccccccccccccc.cc…, .9 of it is e666666666666666.66…
        ("cccccccccccccccc", "Train"),
        ("cccccccccccccccd", "Val"),
        ("e666666666666666", "Val"),
        ("e666666666666667", "Test"),
        ("ffffffffffffffffff", "Test"),
    ],
)
def test_eight_tenths_are_train(digest, split):
    assert split_of(bytes.fromhex(digest)) == split


def test_a_patient_decides_whatever_the_images_are():
    # SHA-256 of "abc" begins with ba, of "fox…" with d7, of "bar" with fc.
    fox = "The quick brown fox jumps over the lazy dog"
    rows = [row("1", "abc"), row("2", "bar"), row("3", fox), row("4", "bar")]
    given, said = assign_splits(rows, {r.image: b"\xff" * 32 for r in rows})
    assert [r.split for r in given] == ["Train", "Test", "Val", "Test"]
    assert [r.image for r in given] == [r.image for r in rows]
    assert said == "80 % Train, 10 % Val, 10 % Test, by a hash of the patient"


def test_without_patients_an_image_s_bytes_decide():
    rows = [row("1"), row("2")]
    digests = {rows[0].image: b"\xfc" + bytes(31), rows[1].image: b"\xba" + bytes(31)}
    given, said = assign_splits(rows, digests)
    assert [r.split for r in given] == ["Test", "Train"]
    assert "patients not known" in said


def test_shares_of_many_patients():
    rows = [row(str(k), f"patient {k}") for k in range(10_000)]
    given, _ = assign_splits(rows, {})
    counts = collections.Counter(r.split for r in given)
    # Four standard deviations of a binomial: 160 and 120.
    assert abs(counts["Train"] - 8000) < 160
    assert abs(counts["Val"] - 1000) < 120 and abs(counts["Test"] - 1000) < 120
    again, _ = assign_splits(rows[::-1][:500], {})
    split = {r.patient: r.split for r in given}
    assert all(split[r.patient] == r.split for r in again)


def test_splits_of_the_table_are_kept():
    rows = [row("1", "bar", "Train"), row("2", "abc", "Test")]
    digests = {r.image: hashlib.sha256(b"abc").digest() for r in rows}
    given, said = assign_splits(rows, digests)
    assert given == rows
    assert said == "as the table has them, each patient in one"
    _, said = assign_splits([row("1", split="Val")], {})
    assert said == "as the table has them, patients not known"
