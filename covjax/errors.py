"""Errors that end the program with one or two lines, without a traceback."""


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
