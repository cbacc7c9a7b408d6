"""Why a system call failed, out of texts of many lines."""

import errno

from covjax.errors import reason


def test_the_reason_is_found_in_a_text_of_many_lines():
    text = 'Error writing "d/1":\nFailed to write 116 bytes: No space left on device [x'
    assert reason(ValueError(text)) == "No space left on device"
    assert reason(OSError(errno.EROFS, "Read-only file system", "a")) == (
        "Read-only file system"
    )
    assert reason(ValueError("first line\nsecond")) == "first line"
