"""predictions.csv: one row per image, added as soon as it is done.

predictions.csv       the rows of all images, once all are done; in their order. Before,
                      if somebody went on, of those that were to stay as they are.
                      The last two columns tell whether files have changed since
.rows-<rank>.csv      rows that a process has added since; read back by whoever goes on
predictions.json      what made them: version, networks, operating points
"""

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from covjax.errors import UsageError
from covjax.predict.inputs import ABOUT
from covjax.runtime.csv_text import escape, unescape
from covjax.runtime.files import write_whole
from covjax.runtime.strict_json import read_json

TABLE = "predictions.csv"
COLUMNS: tuple[str, ...] = (
    "file", "name", "presence", "infected_share", "infected_share_right",
    "infected_share_left", "lung_pixels", "lung_pixels_right", "lung_pixels_left",
    "infected_pixels", "height", "width", "mm2_per_pixel", "lung_mm2", "infected_mm2",
    "warnings", "error", "file_sha256", "outputs_sha256",
)  # fmt: skip
# Of these, what a spreadsheet would take for a formula gets an apostrophe in front.
_TEXTS = ("file", "name", "warnings", "error")
_ADDED = ".rows-*.csv"

Row = dict[str, str]  # of every column


def claim(out: Path, about: dict[str, Any]) -> None:
    """Makes a folder that of these networks' predictions, or finds that it is.

    Args:
      out: a folder that is there; empty, or of predictions.
      about: what makes them.

    Raises:
      UsageError: if it holds something else, or predictions of other networks.
    """
    path = out / ABOUT
    text = json.dumps(about, indent=2) + "\n"
    if not path.exists():
        write_whole(path, text)
        return
    try:
        there = read_json(path)
    except (OSError, ValueError):
        there = None
    if there != json.loads(text):
        raise UsageError(
            f"--out={out} holds predictions of other networks, or of another covjax"
            f" ({ABOUT}): give another"
        )


def read_rows(out: Path) -> dict[str, Row]:
    """Returns the rows that are there, by the names of the images' outputs.

    A row that was half-written, by a process that was killed, is left out.
    """
    rows = {}
    for path in [out / TABLE, *sorted(out.glob(_ADDED))]:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            continue
        whole = text[: text.rfind("\n") + 1]
        for row in csv.DictReader(io.StringIO(whole), fieldnames=COLUMNS):
            fields = tuple(row.values())
            if fields != COLUMNS and None not in row and None not in fields:
                row |= {column: unescape(row[column]) for column in _TEXTS}
                rows[row["name"]] = row
    return rows


class Additions:
    """Rows that one process adds; in a `with`, which closes the file."""

    def __init__(self, out: Path, rank: int):
        """Begins, or goes on with, the file of a process."""
        path = out / _ADDED.replace("*", str(rank))
        # Not through a link, which others may have put into a folder of theirs.
        with open(path, "ab+", opener=_open_file) as there:  # drops a half-written row
            there.seek(0)
            there.truncate(there.read().rfind(b"\n") + 1)
        self._path = path
        self._file = open(path, "a", newline="", encoding="utf-8", opener=_open_file)
        self._rows = csv.DictWriter(self._file, COLUMNS, lineterminator="\n")

    def __enter__(self) -> "Additions":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file; what could not be written has been reported by `add`."""
        with contextlib.suppress(OSError):
            self._file.close()

    def add(self, row: Row) -> None:
        """Adds a row, which outlives this process if it is killed now.

        Raises:
          OSError: naming the file, if it cannot be written.
        """
        try:
            self._rows.writerow(_escaped(row))
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error


def write_table(out: Path, rows: Iterable[Row]) -> None:
    """Writes the table whole, and removes what it was put together from."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_escaped, rows))
    write_whole(out / TABLE, text.getvalue())
    for path in out.glob(_ADDED):
        path.unlink()


def _open_file(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _escaped(row: Row) -> Row:
    return row | {column: escape(row[column]) for column in _TEXTS}


def in_order(rows: dict[str, Row], names: Sequence[str]) -> list[Row]:
    """Returns the rows of some images in their order, then those of others."""
    first = [rows[name] for name in names if name in rows]
    asked = set(names)
    return first + [row for name, row in rows.items() if name not in asked]
