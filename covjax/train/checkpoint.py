"""Checkpoints: Orbax writes them, keeps the latest and the best, and reads them.

A checkpoint holds the state as numpy arrays of one device, so that a run may go on
with another number of devices. It carries digests of its files, written before Orbax
gives it its name: one that was cut or changed since is never taken for whole.
"""

import contextlib
import hashlib
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from covjax import parallel
from covjax.errors import STORAGE, StorageError, UsageError, reason
from covjax.runtime.checksums import (
    check_digests,
    is_as_written,
    unreadable,
    write_digests,
)
from covjax.train.train_state import TrainState

FOLDER = "checkpoints"
DAMAGED = "damaged"  # beside it: what was found not to be whole
UNFINISHED = "*.orbax-checkpoint-tmp*"  # what Orbax is writing, or was when killed
_STATE = "state"
_ABOUT = "_CHECKPOINT_METADATA"  # Orbax writes the time of the renaming into it
_METRIC = "dice"  # of the Val split; the best has the highest
MOST_NUMBERS = 2**30  # of a network that is read: 4 GiB in float32


class Checkpoints:
    """The checkpoints of a run; close it, or use it in a `with`, to end the writing.

    Each process works on its own and waits for no other: of several, the main one alone
    writes, and what a run goes on from is read by it alone (`together.on_main`).
    """

    def __init__(self, workdir: Path, check: Callable[[], None] = lambda: None):
        """Opens `workdir`/checkpoints, made if missing.

        Args:
          workdir: the run's folder.
          check: is called before one is written, and raises if that must not be.
        """
        self._check = check
        policies = ocp.checkpoint_managers
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(1),
                policies.BestN(
                    get_metric_fn=lambda m: m[_METRIC],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        folder = (workdir / FOLDER).absolute()
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda m: m[_METRIC],
            best_mode="max",
            preservation_policy=keep,
            create=False,  # Orbax refuses to make it for some of several processes
            multiprocessing_options=_alone(),
            async_options=ocp.AsyncOptions(post_finalization_callback=self._digest),
        )
        self._folder = folder
        self._logger = logging.getLogger("absl")
        try:  # reads the metrics of every checkpoint
            folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                folder, item_names=(_STATE,), options=options
            )
        except (OSError, ValueError) as error:
            if _of_storage(error):
                raise unreadable(folder, error) from None
            raise UsageError(f"{folder}: not whole ({error})") from None
        self._logger.addFilter(_is_not_of_orbax)
        self._told_once = contextlib.ExitStack()
        self._told_once.enter_context(_told_once())

    def __enter__(self) -> "Checkpoints":
        """Returns itself."""
        return self

    def __exit__(self, *about: Any) -> None:
        """Waits until all is written.

        Raises:
          StorageError: if it could not be.
        """
        try:
            self._manager.close()
            self._told_once.__exit__(*about)
        except (OSError, ValueError) as error:
            raise _unwritten(self._folder, error) from None
        finally:
            self._logger.removeFilter(_is_not_of_orbax)

    def latest(self) -> int | None:
        """Returns the step of the newest checkpoint, None if there is none."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Returns the step of the best checkpoint on Val, None if there is none."""
        return self._manager.best_step()

    def save(self, state: TrainState, *, dice: float | None) -> None:
        """Writes a checkpoint in the background; it counts once it is whole.

        Args:
          state: on the host, without a device axis (`parallel.unreplicate`).
          dice: mean Dice of the Val split, family `all`; None within an epoch: such
            a checkpoint is never the best, and goes when a later one is written.

        Raises:
          StorageError: if this one, or the one before it, cannot be written, or another
            process has taken the folder over.
        """
        self._check()
        step = int(state.step)
        if step == self._manager.latest_step():
            return  # written at the end of an epoch, just before a signal
        metrics = None if dice is None else {_METRIC: dice}
        args = ocp.args.Composite(**{_STATE: ocp.args.StandardSave(_tree(state))})
        try:
            self._manager.save(step, metrics=metrics, args=args)
        except (OSError, ValueError) as error:
            raise _unwritten(self._folder, error) from None

    def _digest(self) -> None:
        """Adds the digests to what is about to be renamed to a whole checkpoint."""
        for folder in self._folder.glob(UNFINISHED):
            write_digests(folder, unless=(_ABOUT,))

    def restore_newest(self, state: TrainState) -> tuple[TrainState | None, list[str]]:
        """Restores the newest checkpoint that can be restored.

        One that cannot be, and is not proved whole by its digests, is moved to the
        folder `DAMAGED` of the run. (What restores is not looked at: digests are what
        `set_aside_damaged` is for.)

        Args:
          state: one of the same shape, on the host; its values do not matter.

        Returns:
          The state, None if nothing was ever written; and what was moved, and why.

        Raises:
          UsageError: if something was written, and nothing of it is whole; or the
            newest is, and holds no state of this kind. That one is left where it is.
          StorageError: if the disk does not answer; nothing is moved.
        """
        told = []
        while (step := self.latest()) is not None:
            folder = self._folder / str(step)
            try:
                return self.restore(state, step), told
            except UsageError as error:
                if is_as_written(folder):
                    raise UsageError(
                        f"{error}. Its files are what was written: with other versions"
                        " of the packages (config.json has them: install those) or by"
                        " another network (give another --workdir)"
                    ) from None
                told.append(_set_aside(folder, error))
                self._manager.reload()
        if (aside := self._folder.parent / DAMAGED).exists():
            raise UsageError(
                f"{self._folder}: no whole checkpoint is left; the damaged ones lie in"
                f" {aside}. Give another --workdir, or delete this one to begin anew"
            )
        return None, told

    def restore(self, state: TrainState, step: int) -> TrainState:
        """Returns the state of a checkpoint.

        Args:
          state: one of the same shape, on the host; its values do not matter.
          step: which checkpoint.

        Raises:
          UsageError: if it cannot be read.
          StorageError: if the disk does not answer.
        """
        target = jax.tree.map(np.asarray, _tree(state))
        args = ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(target)})
        try:
            restored = self._manager.restore(step, args=args)
        except (OSError, ValueError, KeyError) as error:
            folder = self._folder / str(step)
            if _of_storage(error):
                raise unreadable(folder, error) from None
            why = str(error).partition("\n")[0]
            raise UsageError(f"{folder}: cannot be restored ({why})") from None
        return state.replace(**restored[_STATE])


def _alone() -> ocp.options.MultiprocessingOptions:
    """Returns what has Orbax wait for no other process of the run."""
    rank, _ = parallel.process()
    return ocp.options.MultiprocessingOptions(
        primary_host=rank, active_processes={rank}, barrier_sync_key_prefix=f"of-{rank}"
    )


def _of_storage(error: Exception) -> bool:
    """Tells whether the disk failed, by the number of an error or by its text."""
    number = getattr(error, "errno", None)
    return number in STORAGE or any(os.strerror(n) in str(error) for n in STORAGE)


def _tree(state: TrainState) -> dict[str, Any]:
    tree = {
        "step": state.step,
        "params": state.params,
        "batch_stats": state.batch_stats,
        "opt_state": state.opt_state,
    }
    return tree if state.averaged is None else tree | {"averaged": state.averaged}


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    """Tells a log's record from those of Orbax.

    It logs tracebacks of errors that it raises as well, which are told in a line here,
    and advises metrics for checkpoints that are not meant to be the best.
    """
    return "orbax" not in Path(record.pathname).parts


@contextlib.contextmanager
def _told_once() -> Iterator[None]:
    """While entered, and ever after an error, one failing write is told once.

    TensorStore writes every leaf by itself. Of writes that fail the first is raised,
    and told in a line; the others would be pages of tracebacks: from its threads, which
    report to an event loop that Orbax has closed, and of tasks that nobody waits for.
    """
    before, logger = sys.unraisablehook, logging.getLogger("asyncio")

    def tell(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = tell
    logger.addFilter(_is_not_of_a_task)
    yield  # after an error they may not be done with their complaints
    sys.unraisablehook = before
    logger.removeFilter(_is_not_of_a_task)


def _is_not_of_a_task(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Task exception was never retrieved")


def _unwritten(folder: Path, error: Exception) -> StorageError:
    return StorageError(
        f"{folder}: a checkpoint cannot be written ({reason(error)}). The ones before"
        " it are whole: make room, and the same command goes on from the newest"
    )


def set_aside_damaged(workdir: Path) -> list[str]:
    """Moves every checkpoint of a run that is no longer whole out of the way.

    For the process alone that holds the run's folder; to be called before
    `Checkpoints` opens it.

    Returns:
      What was moved, and why, a line each.

    Raises:
      StorageError: if the disk does not answer; what was not looked at stays.
    """
    told = []
    for folder in sorted((workdir / FOLDER).glob("*")):
        if not folder.name.isdecimal():
            continue
        try:
            check_digests(folder)
        except UsageError as error:
            told.append(_set_aside(folder, error))
    return told


def _set_aside(folder: Path, error: UsageError) -> str:
    """Moves a checkpoint to `DAMAGED`; returns a line that says so."""
    home = folder.parents[1] / DAMAGED
    taken = len(list(home.glob(f"{folder.name}*")))
    moved = home / (f"{folder.name}-{taken}" if taken else folder.name)
    home.mkdir(exist_ok=True)
    folder.rename(moved)
    return f"WARNING: {error}. It was moved to {moved}"


def exists(workdir: Path) -> bool:
    """Tells whether a run has come to a checkpoint, whole or not; makes no folder."""
    return any(path.name.isdecimal() for path in (workdir / FOLDER).glob("*"))


def best_of(path: str) -> Path:
    """Returns the folder of a checkpoint: `path` itself, or the best of a run.

    Args:
      path: a run's folder, or one of its checkpoints (runs/lung/checkpoints/932).

    Raises:
      UsageError: if it is neither.
    """
    folder = Path(path)
    if (folder / _STATE).is_dir():
        return folder
    if (folder / FOLDER).is_dir():
        with Checkpoints(folder) as checkpoints:
            step = checkpoints.best()
        if step is not None:
            return folder / FOLDER / str(step)
    raise UsageError(
        f"{path}: neither a run with a whole checkpoint nor a checkpoint"
        " (give RUN, or RUN/checkpoints/STEP)"
    )


def fingerprint(folder: Path) -> str:
    """Returns eight digits that tell a checkpoint from every other, also once copied.

    Two runs of one config may have their best at the same step; when each was written,
    to the nanosecond, Orbax keeps beside it.

    Args:
      folder: RUN/checkpoints/STEP.

    Raises:
      UsageError: if the checkpoint is not whole.
    """
    try:
        written = (folder / _ABOUT).read_bytes()
    except OSError as error:
        raise UsageError(f"{folder}: not a whole checkpoint ({error})") from None
    return hashlib.sha256(written).hexdigest()[:8]


def _check_size(held: Any) -> None:
    """Refuses leaves that are too many or too large, before memory is taken for them.

    Raises:
      ValueError: if it is refused.
    """
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(held))
    if count > MOST_NUMBERS:
        raise ValueError(f"{count:,} numbers, more than {MOST_NUMBERS:,}")


def read_variables(folder: Path) -> dict[str, Any]:
    """Reads parameters and batch statistics of a checkpoint, whatever their shapes.

    Where the run averages them, these are the averages: what it is judged by.

    Args:
      folder: RUN/checkpoints/STEP.

    Returns:
      {"params": …, "batch_stats": …} of numpy arrays.

    Raises:
      UsageError: if it cannot be read.
    """
    check_digests(folder)
    # The handler, not a checkpointer around it: that one looks for a file that a
    # manager's checkpoints do not have, and warns.
    handler = ocp.PyTreeCheckpointHandler()
    path = epath.Path(folder / _STATE).absolute()
    try:
        stored = handler.metadata(path).tree
        held = stored.get("averaged", stored)
        _check_size(held)
        wanted = {
            name: jax.tree.map(lambda _: 0, held.get(name, {}))
            for name in ("params", "batch_stats")
        }
        args = ocp.args.PyTreeRestore(
            item=wanted if held is stored else {"averaged": wanted},
            partial_restore=True,
        )
        restored = handler.restore(path, args=args)
        return restored.get("averaged", restored)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        logging.debug("restore failed", exc_info=True)
        if _of_storage(error):
            raise unreadable(folder, error) from None
        raise UsageError(f"{folder}: not a whole checkpoint ({error})") from None
    finally:
        handler.close()
