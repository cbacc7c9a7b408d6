"""Checkpoints: Orbax writes them, keeps the latest and the best, and reads them.

A checkpoint holds the state as numpy arrays of one device, so that a run may go on
with another number of devices.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from covjax.errors import UsageError
from covjax.train_state import TrainState

FOLDER = "checkpoints"
_STATE = "state"
_METRIC = "dice"  # of the Val split; the best has the highest


class Checkpoints:
    """The checkpoints of a run; close it, or use it in a `with`, to end the writing."""

    def __init__(self, workdir: Path):
        """Opens `workdir`/checkpoints, made if missing."""
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
            best_fn=lambda m: m[_METRIC], best_mode="max", preservation_policy=keep
        )
        try:  # reads the metrics of every checkpoint
            self._manager = ocp.CheckpointManager(
                folder, item_names=(_STATE,), options=options
            )
        except (OSError, ValueError) as error:
            raise UsageError(f"{folder}: not whole ({error})") from None

    def __enter__(self) -> "Checkpoints":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Waits until all is written."""
        self._manager.close()

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
        """
        step = int(state.step)
        if step == self._manager.latest_step():
            return  # written at the end of an epoch, just before a signal
        self._manager.save(
            step,
            metrics=None if dice is None else {_METRIC: dice},
            args=ocp.args.Composite(**{_STATE: ocp.args.StandardSave(_tree(state))}),
        )

    def restore(self, state: TrainState, step: int) -> TrainState:
        """Returns the state of a checkpoint.

        Args:
          state: one of the same shape, on the host; its values do not matter.
          step: which checkpoint.

        Raises:
          UsageError: if it cannot be read.
        """
        target = jax.tree.map(np.asarray, _tree(state))
        args = ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(target)})
        try:
            restored = self._manager.restore(step, args=args)
        except (OSError, ValueError, KeyError) as error:
            folder = Path(self._manager.directory) / str(step)
            why = str(error).partition("\n")[0]
            raise UsageError(f"{folder}: not a whole checkpoint ({why})") from None
        return state.replace(**restored[_STATE])


def _tree(state: TrainState) -> dict[str, Any]:
    tree = {
        "step": state.step,
        "params": state.params,
        "batch_stats": state.batch_stats,
        "opt_state": state.opt_state,
    }
    return tree if state.averaged is None else tree | {"averaged": state.averaged}


def exists(workdir: Path) -> bool:
    """Tells whether a run has a checkpoint to go on from; makes no folder."""
    if not (workdir / FOLDER).is_dir():
        return False
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.latest() is not None


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
        written = (folder / "_CHECKPOINT_METADATA").read_bytes()
    except OSError as error:
        raise UsageError(f"{folder}: not a whole checkpoint ({error})") from None
    return hashlib.sha256(written).hexdigest()[:8]


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
    # The handler, not a checkpointer around it: that one looks for a file that a
    # manager's checkpoints do not have, and warns.
    handler = ocp.PyTreeCheckpointHandler()
    path = epath.Path(folder / _STATE).absolute()
    try:
        stored = handler.metadata(path).tree
        held = stored.get("averaged", stored)
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
        raise UsageError(f"{folder}: not a whole checkpoint ({error})") from None
    finally:
        handler.close()
