"""Cache folders that nobody else can read or change."""

import contextlib
import errno
import grp
import os
import pwd
import shutil
import stat
from pathlib import Path

from covjax.errors import UsageError

_MOST_LINKS = 40  # on the way to a folder, as on Linux
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def private_folder(folder: Path, *, may_share: bool = False) -> bool:
    """Makes a cache folder of mode 0700, or tightens one that exists.

    Files that others could have put or changed there are removed: it is a cache. Call
    it for a folder that covjax alone uses.

    Args:
      folder: missing parents are made with mode 0700 as well.
      may_share: whether a group may use it, where the folder or a parent asks for that
        by being writable by its group and having the setgid bit (`chmod 2770`).

    Returns:
      Whether it is shared with a group; its mode is then 2770.

    Raises:
      UsageError: if another user owns the folder, or could replace it.
      OSError: if it cannot be made.
    """
    _make(folder)
    shared = check_private(folder.parent, may_share=may_share)
    state, asked = folder.lstat(), may_share and _asks_to_share(folder)
    own = stat.S_ISDIR(state.st_mode) and state.st_uid == os.geteuid()
    if shared and own:
        folder.chmod(0o2770)
    elif own and state.st_mode & _OTHERS and not asked:
        folder.chmod(0o700)
        _remove_changeable(folder, every=_is_changeable(state))
    return check_private(folder, may_share=may_share)


def _asks_to_share(folder: Path) -> bool:
    mode = folder.stat().st_mode
    return bool(mode & stat.S_ISGID and mode & stat.S_IWGRP)


def check_private(folder: Path, *, may_share: bool = False) -> bool:
    """Refuses a folder that another user could replace.

    Looks at each folder and each symbolic link on the way to it, from the root. They
    have to belong to this user or to root. A folder that others can write to needs the
    sticky bit, without which they can rename what lies in it.

    Args:
      folder: exists.
      may_share: as in `private_folder`.

    Returns:
      Whether it is shared with a group.

    Raises:
      UsageError: naming what has to change.
      OSError: if a part of the path is missing or cannot be read.
    """
    left = list(reversed(folder.absolute().parts))
    here, links, sticky, shared = Path(left.pop()), 0, False, False
    while True:
        state = here.lstat()
        if not shared and state.st_uid not in _owners(sticky):
            raise UsageError(f"{here} belongs to {_user(state.st_uid)}")
        if stat.S_ISLNK(state.st_mode):
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(folder))
            target = Path(os.readlink(here))
            here = Path(target.anchor) if target.is_absolute() else here.parent
            left += reversed(target.relative_to(target.anchor).parts)
        else:
            sticky = bool(state.st_mode & stat.S_ISVTX)
            shared = _check_mode(here, state, shared, may_share)
        if not left:
            return shared
        part = left.pop()
        here = here.parent if part == ".." else here / part


def _check_mode(
    here: Path, state: os.stat_result, shared: bool, may_share: bool
) -> bool:
    """Returns whether a folder, and so all below it, is shared with a group.

    Raises:
      UsageError: if others can rename what lies in it.
    """
    if state.st_mode & stat.S_ISVTX:
        return shared
    if state.st_mode & stat.S_IWOTH:
        raise UsageError(f"every user can write to {here} (chmod o-w {here})")
    if not state.st_mode & stat.S_IWGRP or shared or _is_own_group(state.st_gid):
        return shared
    if may_share and _asks_to_share(here):
        return True
    raise UsageError(
        f"the group {_group(state.st_gid)} can write to {here} (chmod g-w {here})"
    )


def check_private_programs(folder: Path) -> None:
    """Refuses a folder of compiled programs that another user could have changed.

    Args:
      folder: that the user named; it is not changed.

    Raises:
      UsageError, OSError: as `check_private` does.
    """
    check_private(folder)
    state = folder.stat()
    if _is_changeable(state) or (state.st_mode & _OTHERS and _changeable_in(folder)):
        raise UsageError(f"others can write to {folder} (chmod -R go-w {folder})")


def _changeable_in(folder: Path) -> list[str]:
    """Returns the entries of a folder that others could have put there or changed."""
    with os.scandir(folder) as entries:
        return [
            e.path for e in entries if _is_changeable(e.stat(follow_symlinks=False))
        ]


def _is_changeable(state: os.stat_result) -> bool:
    """Tells whether another user could have made or changed a file or a folder."""
    by_group = state.st_mode & stat.S_IWGRP and not _is_own_group(state.st_gid)
    known = state.st_uid in (0, os.geteuid())
    return not known or bool(by_group or state.st_mode & stat.S_IWOTH)


def _remove_changeable(folder: Path, *, every: bool) -> None:
    for path in folder.iterdir() if every else map(Path, _changeable_in(folder)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            if path.is_file() and not path.is_symlink():
                path.chmod(stat.S_IMODE(path.stat().st_mode) & ~_OTHERS)


def _make(folder: Path) -> None:
    for missing in (*reversed(folder.parents), folder):
        if not os.path.lexists(missing):
            with contextlib.suppress(FileExistsError):  # another process was faster
                missing.mkdir(mode=0o700)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))


def _owners(sticky: bool) -> set[int]:
    """Returns the users who may own a part of a path.

    Args:
      sticky: whether everybody may make files in the folder that it lies in.
    """
    owners = {0, os.geteuid()}
    # Where a container does not map root, its folders belong to the overflow user.
    return owners if sticky else owners | _unmapped_root()


def _unmapped_root() -> set[int]:
    try:
        ranges = Path("/proc/self/uid_map").read_text().split()
        if int(ranges[2]) > 1:  # users of the system are mapped
            return set()
        return {int(Path("/proc/sys/kernel/overflowuid").read_text())}
    except (OSError, ValueError, IndexError):  # not Linux
        return set()


def _is_own_group(group: int) -> bool:
    """Tells whether this user is alone in a group, which then has his name."""
    try:
        user, found = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return (
        user.pw_gid == group
        and found.gr_name == user.pw_name
        and {*found.gr_mem} <= {user.pw_name}
    )


def _user(number: int) -> str:
    try:
        return f"the user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
