"""One process alone is at work in a folder, and is told where that cannot be had."""

import errno
import fcntl
import os

import pytest

from covjax.runtime.folder_lock import LOCK, BusyError, locked


def test_a_second_is_kept_out_until_the_first_has_ended(tmp_path):
    folder = tmp_path / "new" / "folder"
    with locked(folder) as alone:
        assert alone and [path.name for path in folder.iterdir()] == [LOCK]
        with pytest.raises(BusyError), locked(folder):
            pytest.fail("entered")
    with locked(folder):
        pass


def test_what_goes_wrong_inside_frees_the_folder(tmp_path):
    with pytest.raises(OSError, match="of the work"), locked(tmp_path):
        raise OSError(errno.ENOLCK, "of the work")
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path) as alone:
        assert not alone


def test_what_else_a_file_system_answers_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), locked(tmp_path / "file" / "run"):
        pytest.fail("entered")

    def flock(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"), locked(tmp_path):
        pytest.fail("entered")
