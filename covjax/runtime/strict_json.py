"""JSON from files that others may have written: every fault is a ValueError."""

import json
import math
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MOST_BYTES = 64 << 20
_DIGITS = 18  # of a whole number: it fits into 64 bits


def read_json(path: Path, *, finite: bool = True) -> Any:
    """Reads a file as `parse_json` reads a text.

    Raises:
      OSError: if it cannot be read, or is a pipe or a device, which may never end.
      ValueError: if it is not such JSON, or larger than `MOST_BYTES`.
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise OSError(f"{path}: not a regular file")
    if state.st_size > MOST_BYTES:
        raise ValueError(f"{state.st_size:,} bytes, more than {MOST_BYTES:,}")
    return parse_json(path.read_bytes(), finite=finite)


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """Parses JSON in UTF-8.

    Args:
      text: the JSON.
      finite: whether NaN, Infinity and numbers too large for a float are refused.

    Raises:
      ValueError: also for a name that occurs twice in an object, a whole number of more
        than 18 digits, and nesting that Python's parser does not follow.
    """
    try:
        return json.loads(
            text.decode() if isinstance(text, bytes) else text,
            object_pairs_hook=_object,
            parse_int=_whole,
            parse_float=_finite if finite else float,
            parse_constant=_finite if finite else float,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:80]!r} occurs twice")
    return found


def _whole(digits: str) -> int:
    if len(digits.lstrip("-")) > _DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value
