"""What a page is made of (sections of text, tables, pictures), and how figures read."""

import base64
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from covjax.report.tables import NONE


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; `note` sets it off from the others."""

    kind: ClassVar[str] = "text"
    text: str
    note: bool = False


@dataclasses.dataclass(frozen=True)
class Code:
    """Something to type, as it is."""

    kind: ClassVar[str] = "code"
    text: str


@dataclasses.dataclass(frozen=True)
class Points:
    """A list of sentences."""

    kind: ClassVar[str] = "points"
    items: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Link:
    """A cell of a table that leads to a section."""

    text: str
    section: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under a head; the first cell of a row names it.

    Attributes:
      caption: what the figures are.
      head: names of the columns.
      rows: as many cells as the head has, each.
      prose: whether the cells hold sentences, not figures.
    """

    kind: ClassVar[str] = "table"
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Link]]
    prose: bool = False


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG; `alt` says what is to be seen, to whom does not see it."""

    kind: ClassVar[str] = "picture"
    png: bytes
    alt: str
    caption: str

    @property
    def src(self) -> str:
        """Returns the picture as an address that needs no other file."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


Part = Text | Code | Points | Table | Picture


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading, its anchor, and what stands below it."""

    anchor: str
    title: str
    parts: Sequence[Part]


def at(results: dict[str, Any], *names: str) -> Any:
    """Returns what lies at a path in results, or None where an older run has none."""
    value: Any = results
    for name in names:
        value = (value or {}).get(name)
    return value


def count(value: int | None) -> str:
    """Returns 1,166 for 1166, or a dash."""
    return NONE if value is None else f"{value:,}"
