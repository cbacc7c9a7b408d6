"""Errors that end the program with one or two lines, without a traceback."""

import contextlib
import errno
import os
from collections.abc import Iterator

STORAGE = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE,
    errno.ELOOP,
)  # fmt: skip


class Failure(Exception):
    """What is said in its message alone; see the kinds below."""

    exit_status = 1


class UsageError(Failure):
    """A wrong flag, config field, run folder or checkpoint: the user's to mend."""

    exit_status = 2


class DataError(UsageError):
    """A data set, image or mask that cannot be used; the message names the file."""


class Diverged(Failure):
    """Training whose loss is no longer a number."""


class StorageError(Failure):
    """A disk that cannot be read or written any more: full, taken away, read-only."""


@contextlib.contextmanager
def expecting(what: str, *more: type[Exception]) -> Iterator[None]:
    """Turns an error that content of an unexpected form causes into a line.

    For files of a run's folder, which may come from others: each field is read in one
    place, and none of the places looks at types.

    Args:
      what: the files and what is expected of them, for the message.
      more: errors beside those of Python's own types.

    Raises:
      UsageError: in place of such an error.
    """
    kinds = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, *more)
    try:
        yield
    except kinds as error:
        raise UsageError(f"{what} ({repr(error)[:200]})") from error


def printable(text: str) -> str:
    """Returns text of several lines without characters that a terminal obeys.

    Names and messages may come from files of others.
    """
    return "".join(
        c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode()
        for c in text
    )


def reason(error: BaseException) -> str:
    """Returns why a system call failed, in a few words.

    Orbax and TensorStore tell it within a text of many lines.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    for number in STORAGE:
        if os.strerror(number) in text:
            return os.strerror(number)
    return text.partition("\n")[0][:200]
