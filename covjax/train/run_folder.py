"""A run's folder: whose it is, who is at work in it, and what is written down of it."""

import contextlib
import importlib.metadata
import itertools
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_collections

from covjax import multihost, parallel
from covjax.config import differences, read_about, read_config, save_config
from covjax.errors import UsageError, reason
from covjax.runtime.files import HALF
from covjax.runtime.folder_lock import LOCK, BusyError, locked
from covjax.runtime.folder_owner import OWNER, owned
from covjax.train import checkpoint

CONFIG = "config.json"
PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "albumentations",
    "numpy",
)  # fmt: skip


@contextlib.contextmanager
def hold(workdir: Path, flag: str = "--workdir") -> Iterator[Callable[[], None]]:
    """Keeps every other process out of a folder, which is made if missing.

    What a process that died there had half-written is removed. Of the processes of one
    run, the main one holds the folder for all.

    Args:
      workdir: the run's folder, or one that is held in the same way.
      flag: by which it was named, for the error.

    Yields:
      What raises a StorageError if a process of another host has taken the folder over.

    Raises:
      UsageError: if another process holds it, or it cannot be written.
    """
    if not parallel.is_main():
        yield lambda: None
        return
    with contextlib.ExitStack() as stack:
        try:
            alone = stack.enter_context(locked(workdir))
            check = stack.enter_context(owned(workdir, locked=alone))
            if alone:
                _remove_half_written(workdir)
        except BusyError as error:
            who = f" ({error})" if str(error) else ""
            raise UsageError(
                f"{flag}={workdir}: another process is at work there{who}; wait for it,"
                " or give another folder"
            ) from None
        except OSError as error:
            raise UsageError(
                f"{flag}={workdir}: cannot be written ({reason(error)}); give another"
                " folder, or the rights to this one"
            ) from None
        if not alone:
            told = "cannot be locked; see that one process alone writes there"
            print(f"{workdir}: {told}")
        yield check


def _remove_half_written(workdir: Path) -> None:
    """Removes what dead processes left; the caller holds the folder."""
    for path in (workdir / checkpoint.FOLDER).glob(checkpoint.UNFINISHED):
        shutil.rmtree(path)
    for folder in (workdir, workdir / "results", workdir / "figures"):
        for path in folder.glob(f".*{HALF}"):
            path.unlink()


def claim(workdir: Path, config: ml_collections.ConfigDict, *, phantom: bool) -> None:
    """Makes a folder this run's, or finds that it already is.

    Args:
      workdir: new, empty, or the folder of a run of the same config.
      config: of this run.
      phantom: whether it is trained on synthetic images.

    Raises:
      UsageError: if the folder holds something else; nothing is changed then.
    """
    check(workdir, config)
    path = workdir / CONFIG
    if not path.exists():
        save_config(config, path, about(sys.argv) | {"phantom": phantom})


def check(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Refuses a folder that `claim` would refuse, and changes nothing.

    Raises:
      UsageError: if the folder holds something else than a run of this config.
    """
    if (workdir / CONFIG).exists():
        check_same(workdir, config)
        if file := read_about(workdir / CONFIG).get("weights"):
            raise UsageError(
                f"--workdir={workdir} was unpacked from {file}, which has no optimizer:"
                f" --init_from={workdir} starts from it, in another folder"
            )
    elif not is_free(workdir, CONFIG):
        raise UsageError(
            f"--workdir={workdir} holds files that are no run of covjax: give another"
        )


def is_free(workdir: Path, first: str) -> bool:
    """Tells whether nobody's files are there: none, a lock, or half of the first.

    Those are of a process that is beginning, or was killed while it began.

    Args:
      workdir: the folder.
      first: name of the file that is written there first.
    """
    if not workdir.exists():
        return True
    begun = f".{first}."  # the name that files.write_whole gives it
    return workdir.is_dir() and all(
        path.name in (LOCK, OWNER) or path.name.startswith(begun)
        for path in workdir.iterdir()
    )


def check_same(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Refuses a config that is not the one of the run in a folder.

    Raises:
      UsageError: naming the fields that differ.
    """
    changed = differences(read_config(workdir / CONFIG), config)
    if changed:
        fields = ", ".join(
            f"config.{name} ({old!r} there, {new!r} here)"
            for name, (old, new) in changed.items()
        )
        raise UsageError(
            f"--workdir={workdir} holds a run of another config: {fields}.\n"
            "Give another folder, or the same config to go on."
        )


@contextlib.contextmanager
def new_folder(config: ml_collections.ConfigDict) -> Iterator[Path]:
    """Makes a folder that names stage and time: runs/lung-20261123-134501.

    The next run that is started within the same second gets -2 after it. All processes
    of a run get the same, by the clock of the first. A folder in which nothing was
    written is removed in the end.

    Raises:
      UsageError: if it cannot be made.
    """
    stem = f"{config.data.task}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = Path(multihost.on_main(lambda: str(_make_first(Path("runs"), stem))))
    try:
        yield folder
    finally:
        if parallel.is_main():
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()


def _make_first(home: Path, stem: str) -> Path:
    """Makes the first of `stem`, `stem`-2, … that nobody else has made."""
    for number in itertools.count(1):
        folder = home / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(
                f"{folder}: cannot be made ({reason(error)}); name another folder by"
                " --workdir"
            ) from None
        return folder
    raise AssertionError("a count has no end")


def about(argv: list[str]) -> dict[str, Any]:
    """Returns what else one must know to repeat a run: command, versions, commit."""
    return {
        "command": shlex.join(["python", "-m", "covjax.main", *argv[1:]]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": sys.version.split()[0],
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Returns the commit of the code, marked where files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit, changes = (
            subprocess.run(
                [*git, *args], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for args in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.SubprocessError):
        return None  # not a checkout
    return commit + ("+changes" if changes else "")
