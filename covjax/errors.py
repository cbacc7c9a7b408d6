"""Errors that end the program with one or two lines, without a traceback."""

import errno
import os

STORAGE = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE,
)  # fmt: skip


class Failure(Exception):
    """What is said in its message alone; see the kinds below."""

    exit_status = 1


class UsageError(Failure):
    """A wrong flag, config field, run folder or checkpoint: the user's to mend."""

    exit_status = 2


class DataError(UsageError):
    """A data set, film or mask that cannot be used; the message names the file."""


class Diverged(Failure):
    """Training whose loss is no longer a number."""


class StorageError(Failure):
    """A disk that cannot be read or written any more: full, taken away, read-only."""


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
