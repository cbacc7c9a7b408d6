"""A trained network: a checkpoint, and the config of the run that it is of."""

import dataclasses
from pathlib import Path

import ml_collections

from covjax.checkpoint import best_of, read_variables
from covjax.config import read_config
from covjax.errors import UsageError
from covjax.models import make_model
from covjax.run_dir import CONFIG
from covjax.train_state import TrainState, inference_state


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run came to.

    Attributes:
      run: its folder.
      config: its settings.
      step: of the checkpoint.
      state: of the checkpoint, on the host; it cannot be trained further.
    """

    run: Path
    config: ml_collections.ConfigDict
    step: int
    state: TrainState


def read_trained(path: str) -> Trained:
    """Reads the best checkpoint of a run, or the one that is named.

    Args:
      path: a run's folder, or one of its checkpoints (runs/lung/checkpoints/932).

    Raises:
      UsageError: if it is neither, or cannot be read.
    """
    checkpoint = best_of(path)
    run, step = run_of(checkpoint), step_of(checkpoint)
    config = read_config(run / CONFIG)
    state = inference_state(make_model(config).apply, **read_variables(checkpoint))
    return Trained(run, config, step, state.replace(step=step))


def run_of(checkpoint: Path) -> Path:
    """Returns the folder of the run that a checkpoint is of."""
    return checkpoint.absolute().parents[1]


def step_of(checkpoint: Path) -> int:
    """Returns the step of a checkpoint, which is the name of its folder.

    Raises:
      UsageError: if it has another name.
    """
    if not checkpoint.name.isdecimal():
        raise UsageError(f"{checkpoint}: a checkpoint's folder is named by its step")
    return int(checkpoint.name)
