"""Text in CSV files that a spreadsheet does not take for a formula.

A file can be named `=HYPERLINK(…)`. A spreadsheet runs what begins with one of
`= + - @`, a tab or an end of line, also behind spaces and quotes, which it may drop.
Such text gets an apostrophe in front, as OWASP advises ("CSV Injection").
"""

import re

# The full-width forms are read as the others by some spreadsheets.
_FORMULA = re.compile("[\\s'\"]*[=+\\-@＝＋－＠]|[ '\"]*[\\t\\r\\n]")


def escape(text: str) -> str:
    """Returns text as it is written into a cell; only formulas are changed."""
    return f"'{text}" if _FORMULA.match(text) else text


def unescape(cell: str) -> str:
    """Returns the text that `escape` was given."""
    # An apostrophe in front of a formula makes another formula, so no two texts meet.
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell[1:]) else cell
