"""Errors that are the user's to mend: one or two lines, exit status 2, no traceback."""


class UsageError(Exception):
    """A wrong flag, config field, run folder or checkpoint."""


class DataError(UsageError):
    """A data set, film or mask that cannot be used; the message names the file."""


class Diverged(Exception):
    """Training whose loss is no longer a number; exit status 1, no traceback."""
