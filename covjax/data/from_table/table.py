"""A table of images: a CSV file with a row per image.

The columns are in `COLUMNS`; docs/data.md says what stands in them. A fault in a table
is told with its line and column, and all faults of a kind together.
"""

import csv
import dataclasses
import difflib
import io
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from covjax.data.covidqu import CLASSES, SPLITS, SUFFIXES, fits_a_line
from covjax.data.image_io import shown
from covjax.errors import DataError, UsageError

FILES = ("image", "lung_mask", "infection_mask")
COLUMNS = (*FILES, "class", "split", "patient")
REQUIRED = ("image", "lung_mask", "class")
NO_INFECTION = "none"  # in the cell of an infection mask: there is nothing to outline
FEW = 5  # faults that a message shows


@dataclasses.dataclass(frozen=True)
class Row:
    """One image of a table.

    Attributes:
      line: of the table, 1 is the first.
      image: path of the image.
      lung_mask: path of its lung mask.
      infection_mask: path of its infection mask, or None.
      no_infection: whether the table says that it has none, so that its mask is empty.
      label: class, one of `covidqu.CLASSES`.
      split: one of `covidqu.SPLITS`; "" where the table has no such column.
      patient: whose image it is; "" likewise.
    """

    line: int
    image: Path
    lung_mask: Path
    infection_mask: Path | None
    no_infection: bool
    label: str
    split: str
    patient: str

    @property
    def has_infection_mask(self) -> bool:
        """Tells whether stage 2 can use the image: it has a mask, if an empty one."""
        return self.no_infection or self.infection_mask is not None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose cells make sense.

    Attributes:
      path: its file.
      rows: one an image, at least one.
      left_aside: names of columns that nothing reads.
    """

    path: Path
    rows: Sequence[Row]
    left_aside: Sequence[str]


@dataclasses.dataclass(frozen=True, order=True)
class Fault:
    """What is wrong in one line: `said` begins with the column."""

    line: int
    said: str


class Faults(DataError):
    """Faults of a table, a line each; of many the message shows a few.

    Attributes:
      faults: all of them, by line.
    """

    def __init__(self, table: Path, faults: Sequence[Fault]):
        """Sorts them by line."""
        self.faults, self._table = sorted(faults), shown(table)
        super().__init__(self.tell(FEW))

    def tell(self, most: int) -> str:
        """Returns the first of them, and how many more there are."""
        lines = [f"{self._table}: line {f.line}, {f.said}" for f in self.faults[:most]]
        if rest := len(self.faults) - most:
            if rest > 0:
                lines.append(f"{self._table}: and {rest:,} more of such (--show=N)")
        return "\n".join(lines)


def read_table(path: Path, names: Mapping[str, str] | None = None) -> Table:
    """Reads a table and looks at every cell, but at nothing in the pictures.

    Args:
      path: of a CSV file in UTF-8, with or without a byte order mark, whose cells are
        parted by commas, semicolons or tabs. Paths in it are absolute or begin at its
        folder.
      names: classes as the table calls them → one of `covidqu.CLASSES`; capitals do
        not count.

    Raises:
      UsageError: if `names` leads to no class.
      DataError: if the file is no such table; `Faults` of its rows.
    """
    classes = {label.casefold(): label for label in CLASSES}
    for name, label in (names or {}).items():
        if label.casefold() not in classes:
            raise UsageError(f"class {name!r}: {label!r} is none of {_one_of(CLASSES)}")
    known = classes | {
        name.casefold(): classes[label.casefold()]
        for name, label in (names or {}).items()
    }
    lines = _read_cells(path)
    at, header = next(lines, (1, []))
    columns = [name.casefold() for name in header]
    _check_header(path, at, columns)
    cells, faults = [], []
    for line, values in lines:
        if len(values) == len(columns):
            cells.append((line, dict(zip(columns, values, strict=True))))
        else:
            said = f"{len(values)} cells, where the first line has {len(columns)}"
            faults.append(Fault(line, said))
    if not cells and not faults:
        raise DataError(f"{shown(path)}: no images, only the names of columns")
    reader = _Reader(path, known, [of for _, of in cells])
    rows = [reader.read(line, of) for line, of in cells]
    if faults := faults + reader.faults:
        raise Faults(path, faults)
    aside = [name for name, column in zip(header, columns, strict=True)
             if column not in COLUMNS]  # fmt: skip
    return Table(path, rows, aside)


def _read_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields number and cells of each line that is not blank, without outer spaces."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{shown(path)}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{shown(path)}: not UTF-8 (byte {error.start:,}): save it as CSV in UTF-8"
        ) from None
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=_delimiter(text),
        skipinitialspace=True,
        strict=True,
    )
    line = 1
    try:
        for values in reader:
            values = [value.strip() for value in values]
            if any(values):
                yield line, values
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{shown(path)}: line {line}: {error}") from None


def _delimiter(text: str) -> str:
    """Returns what parts the first line into the most columns that are known."""
    first = text.lstrip().partition("\n")[0].casefold()

    def known(delimiter: str) -> int:
        names = (name.strip(' "\r') for name in first.split(delimiter))
        return len(set(COLUMNS).intersection(names))

    return max(",;\t", key=known)


def _check_header(path: Path, line: int, columns: Sequence[str]) -> None:
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise DataError(
            f"{shown(path)}: line {line}: no column {' nor '.join(missing)}; the first"
            f" line has to name {', '.join(REQUIRED)} and may name"
            f" {', '.join(c for c in COLUMNS if c not in REQUIRED)}"
        )
    for name in COLUMNS:
        if columns.count(name) > 1:
            raise DataError(f"{shown(path)}: line {line}: two columns {name}")
        # Left aside in silence, it would take the infection or the patients with it.
        others = [c for c in columns if c and c not in COLUMNS]
        alike = difflib.get_close_matches(name, others, 1, 0.8)
        if name not in columns and alike:
            raise DataError(
                f"{shown(path)}: line {line}: column {shown(alike[0])}: if {name} is"
                " meant, call it so, else otherwise"
            )


class _Reader:
    """Makes rows of cells, and collects what is wrong with them."""

    def __init__(
        self, path: Path, classes: Mapping[str, str], cells: Sequence[dict[str, str]]
    ):
        self.faults: list[Fault] = []
        self._folder, self._classes = path.parent, classes
        # A column that is empty from top to bottom is as good as none.
        self._used = {name for name in COLUMNS if any(of.get(name) for of in cells)}
        self._unknown: set[tuple[str, str]] = set()
        self._seen: dict[str, tuple[int, str]] = {}
        self._split_of: dict[str, tuple[int, str]] = {}

    def read(self, line: int, cells: Mapping[str, str]) -> Row:
        """Returns a row; it is of use only where there were no faults."""
        infection = cells.get("infection_mask", "")
        without = infection.casefold() == NO_INFECTION
        paths = {
            column: self._file(line, column, cells[column])
            for column in FILES
            if column in REQUIRED or (infection and not without)
        }
        splits = {split.casefold(): split for split in SPLITS}
        way = f'map it (--class "{shown(cells["class"])}=Non-COVID", or another)'
        label = self._one_of(line, "class", cells["class"], self._classes, CLASSES, way)
        split, patient = "", ""
        if "split" in self._used:
            way = "write one in each row, or leave the column out"
            split = self._one_of(line, "split", cells["split"], splits, SPLITS, way)
        if "patient" in self._used:
            patient = cells["patient"]
            self._check_patient(line, patient, split)
        return Row(
            line,
            paths["image"],
            paths["lung_mask"],
            paths.get("infection_mask"),
            without,
            label,
            split,
            patient,
        )

    def _say(self, line: int, column: str, said: str) -> None:
        self.faults.append(Fault(line, f"{column}: {said}"))

    def _one_of(
        self,
        line: int,
        column: str,
        value: str,
        known: Mapping[str, str],
        names: Sequence[str],
        way: str,
    ) -> str:
        found = known.get(value.casefold(), "")
        # A name that a thousand rows have is told once.
        if not found and (column, value) not in self._unknown:
            self._unknown.add((column, value))
            said = f"{shown(value)} is none of {_one_of(names)}: {way}"
            if not value:
                said = f"empty, where each image has {_one_of(names)}"
            self._say(line, column, said)
        return found

    def _check_patient(self, line: int, patient: str, split: str) -> None:
        # Who it is, is not said: messages are copied into mails.
        if not patient:
            way = "one whom nobody knows gets a name as well"
            self._say(line, "patient", f"empty, where other rows have one: {way}")
            return
        first, other = self._split_of.setdefault(patient, (line, split))
        if other != split:
            said = f"in {split} here and in {other} in line {first}: one patient's"
            self._say(line, "patient", f"{said} images have to stand in one split")

    def _file(self, line: int, column: str, cell: str) -> Path:
        path = Path(os.path.abspath(self._folder / cell))
        fault = _fault_of(path, cell)
        if fault:
            self._say(line, column, f"{shown(cell)}: {fault}" if cell else fault)
            return path
        first, other = self._seen.setdefault(os.path.realpath(path), (line, column))
        if (first, other) != (line, column):
            said = f"{shown(cell)}: the same file as {other} in line {first}"
            if column == "infection_mask":
                said += f" (where there is no infection, write {NO_INFECTION})"
            self._say(line, column, said)
        return path


def _fault_of(path: Path, cell: str) -> str:
    """Returns why a file cannot be laid out, or nothing; its pixels come later."""
    if not cell:
        return "empty, where each image needs one"
    if not fits_a_line(cell):
        return "a name with control characters: rename it"
    if path.name.startswith("."):
        return "a name that begins with a dot, which is passed over: rename it"
    if path.suffix.lower() not in SUFFIXES:
        return f"its name has to end in {_one_of(sorted(SUFFIXES))}"
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        way = " (folders are parted by /)" if "\\" in cell else ""
        return f"no such file{way}"
    except OSError as error:
        return str(error.strerror)
    return "" if regular else "no regular file"


def _one_of(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" or {names[-1]}"
