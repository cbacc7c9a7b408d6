"""Which errors are told in a line, and what of a long text."""

import errno
import os

import pytest

from covjax.errors import DataError, StorageError, UsageError, as_failure, reason


@pytest.mark.parametrize("kind", [UsageError, DataError])
def test_what_the_user_can_mend_is_told_as_it_is(kind):
    error = kind("config.seed: must be")
    assert as_failure(error) is error
    assert error.exit_status == 2


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO]
)
def test_storage_that_fails_is_told_with_the_file(number):
    failure = as_failure(OSError(number, os.strerror(number), "runs/a/test.csv"))
    assert isinstance(failure, StorageError)
    assert failure.exit_status == 1
    assert str(failure).startswith(f"runs/a/test.csv: {os.strerror(number)}.")
    assert "\n" not in str(failure)


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("x"), OSError(errno.ENOENT, "no", "x")]
)
def test_what_nobody_foresaw_keeps_its_traceback(error):
    assert as_failure(error) is None


def test_the_reason_is_found_in_a_text_of_many_lines():
    text = 'Error writing "d/1":\nFailed to write 116 bytes: No space left on device [x'
    assert reason(ValueError(text)) == "No space left on device"
    assert reason(OSError(errno.EROFS, "Read-only file system", "a")) == (
        "Read-only file system"
    )
    assert reason(ValueError("first line\nsecond")) == "first line"
