"""Which split an image stands in, where nobody has said: by a hash, most in Train.

A hash of the patient, so that all images of one stand together; of the image's bytes
where patients are not known. What stands in a split stays there when images are added.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from covjax.data.from_table.table import Row


def split_of(digest: bytes) -> str:
    """Returns "Train" for eight tenths of all digests, "Val" and "Test" for one each.

    Args:
      digest: eight bytes or more, all of which are as likely as any other.
    """
    tenth = int.from_bytes(digest[:8], "big") * 10 >> 64
    return "Train" if tenth < 8 else "Val" if tenth == 8 else "Test"


def assign_splits(
    rows: Sequence[Row], digests: Mapping[Path, bytes]
) -> tuple[list[Row], str]:
    """Returns the rows, each with a split, and one line that says where it is from.

    Args:
      rows: that all have a split, or all none; the same of the patient.
      digests: SHA-256 of every image.
    """
    if rows[0].split:
        checked = "each patient in one" if rows[0].patient else "patients not known"
        return list(rows), f"as the table has them, {checked}"
    by = "patient" if rows[0].patient else "image: patients not known"

    def digest(row: Row) -> bytes:
        if row.patient:
            return hashlib.sha256(row.patient.encode()).digest()
        return digests[row.image]

    given = [dataclasses.replace(row, split=split_of(digest(row))) for row in rows]
    return given, f"80 % Train, 10 % Val, 10 % Test, by a hash of the {by}"
