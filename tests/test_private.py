"""Cache folders are private, and refused where another user could change them."""

import os
from pathlib import Path

import pytest

from covjax.errors import UsageError
from covjax.runtime import private
from covjax.runtime.private import check_private, check_private_programs, private_folder

STRANGER = 54321


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.fixture
def group_of_others(monkeypatch):
    """The group of all files has members beside this user."""
    monkeypatch.setattr(private, "_is_own_group", lambda _: False)


@pytest.fixture
def give_away(monkeypatch):
    """Makes a path look as if it belonged to another user."""
    lstat, given = Path.lstat, set()

    def look(path: Path) -> os.stat_result:
        found = lstat(path)
        if path not in given:
            return found
        return os.stat_result([*found[:4], STRANGER, *found[5:10]])

    monkeypatch.setattr(Path, "lstat", look)
    return given.add


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022])
def test_new_folders_are_of_their_owner_alone(tmp_path, umask):
    before = os.umask(umask)
    try:
        assert not private_folder(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o700


def test_a_folder_that_others_can_read_is_closed(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    for name, bits in (("readable", 0o644), ("writable", 0o666), ("mine", 0o600)):
        (folder / name).touch()
        (folder / name).chmod(bits)
    private_folder(folder)
    assert mode(folder) == 0o700
    # What others may have changed is gone.
    left = {path.name: mode(path) for path in folder.iterdir()}
    assert left == {"readable": 0o600, "mine": 0o600}


@pytest.mark.parametrize("bits", [0o777, 0o775, 0o1777])
def test_a_folder_that_others_could_write_to_is_emptied(
    tmp_path, bits, group_of_others
):
    folder = tmp_path / "cache"
    (folder / "planted").mkdir(parents=True)
    (folder / "planted" / "file").touch()
    (folder / "file").touch(mode=0o600)
    (folder / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "kept").touch(mode=0o644)
    folder.chmod(bits)
    private_folder(folder)
    assert mode(folder) == 0o700 and list(folder.iterdir()) == []
    assert (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        (0o777, r"every user can write to .*parent \(chmod o-w .*parent\)"),
        (0o775, r"the group \S+ can write to .*parent \(chmod g-w .*parent\)"),
    ],
)
def test_a_parent_that_others_can_write_to_is_refused(
    tmp_path, bits, said, group_of_others
):
    folder = tmp_path / "parent" / "cache"
    private_folder(folder)
    folder.parent.chmod(bits)
    with pytest.raises(UsageError, match=said):
        private_folder(folder)
    folder.parent.chmod(0o1777)  # as /tmp: nobody can rename what is mine
    private_folder(folder)


def test_a_group_without_others_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(private, "_is_own_group", lambda _: True)
    (tmp_path / "parent").mkdir()
    (tmp_path / "parent").chmod(0o775)
    private_folder(tmp_path / "parent" / "cache")
    assert mode(tmp_path / "parent" / "cache") == 0o700


@pytest.mark.parametrize("part", ["", "parent", "parent/cache"])
def test_a_folder_of_another_user_is_refused(tmp_path, give_away, part):
    private_folder(tmp_path / "parent" / "cache")
    give_away(tmp_path / part)
    with pytest.raises(UsageError, match=f"{part} belongs to user {STRANGER}"):
        check_private(tmp_path / "parent" / "cache")


def test_each_link_on_the_way_is_followed(tmp_path, give_away):
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine" / "cache").mkdir()
    (tmp_path / "theirs" / "link").symlink_to("../mine")
    (tmp_path / "mine" / "first").symlink_to(tmp_path / "theirs" / "link" / "cache")
    check_private(tmp_path / "mine" / "first")
    give_away(tmp_path / "theirs" / "link")
    with pytest.raises(UsageError, match="theirs/link belongs to"):
        check_private(tmp_path / "mine" / "first")


def test_links_in_a_circle_are_an_error(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        check_private(tmp_path / "a")


def test_a_group_shares_a_folder_only_where_both_sides_say_so(
    tmp_path, group_of_others
):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2770)
    assert private_folder(shared / "images", may_share=True)
    assert mode(shared / "images") == 0o2770
    with pytest.raises(UsageError, match="the group .* can write to"):
        private_folder(shared / "programs")
    private_folder(tmp_path / "own", may_share=True)
    (tmp_path / "own").chmod(0o2770)
    assert private_folder(tmp_path / "own", may_share=True)
    shared.chmod(0o770)  # by an umask of 002, and so by chance
    with pytest.raises(UsageError, match="the group .* can write to"):
        private_folder(shared / "images", may_share=True)


def test_programs_in_a_folder_of_the_users_choice(tmp_path, group_of_others):
    folder = tmp_path / "named"
    folder.mkdir()
    (folder / "program").touch(mode=0o644)
    for bits, program, right in (
        (0o755, 0o644, True),
        (0o755, 0o664, False),
        (0o700, 0o664, True),  # nobody else comes so far
        (0o1777, 0o644, False),
        (0o775, 0o644, False),
    ):
        (folder / "program").chmod(program)
        folder.chmod(bits)
        if right:
            check_private_programs(folder)
        else:
            with pytest.raises(UsageError, match="can write to"):
                check_private_programs(folder)
        assert mode(folder) == bits  # it is not ours to change
