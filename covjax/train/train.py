"""Training of one stage: images in, checkpoints and a log out."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import optax

from covjax import multihost, parallel
from covjax.config import compile_patterns
from covjax.data.pipeline import make_order, make_region
from covjax.data.source import Samples
from covjax.errors import UsageError
from covjax.models import make_model
from covjax.train import checkpoint
from covjax.train.checkpoint import Checkpoints, best_of, read_variables
from covjax.train.ema import Rate, make_averaging
from covjax.train.loop import fit
from covjax.train.metric_writer import RunLog
from covjax.train.optimizer import make_optimizer, make_schedule
from covjax.train.train_state import TrainState, create_train_state, start_state
from covjax.train.transfer import Transfer, format_transfer, transfer


@dataclasses.dataclass(frozen=True)
class Training:
    """A stage that can be trained: all that was checked and made before the first step.

    Attributes:
      config: the whole config.
      steps_per_epoch: steps from one pass over Val to the next.
      state: with random parameters, on the host.
      transferred: what the run that `config.init_from` names gives; None: nothing, or
        training has begun already.
      schedule: steps taken → learning rate.
      averaging: of the weights, as `train_step` takes it.
      dropout_key: of the run.
    """

    config: ml_collections.ConfigDict
    steps_per_epoch: int
    state: TrainState
    transferred: Transfer | None
    schedule: optax.Schedule
    averaging: Rate | None
    dropout_key: jax.Array


def make_training(
    config: ml_collections.ConfigDict, workdir: Path, samples: Samples
) -> Training:
    """Makes network, optimizer and first state; writes nothing.

    Args:
      config: the whole config.
      workdir: the run's folder, or where it is to be.
      samples: of every split; Train is read.

    Raises:
      UsageError: if config, data or `init_from` cannot be used.
    """
    steps_per_epoch = len(samples["Train"]) // config.train.batch_size
    if not steps_per_epoch:
        raise UsageError(
            f"config.train.batch_size = {config.train.batch_size}: there are only"
            f" {len(samples['Train'])} Train images"
        )
    make_order(samples["Train"], config)  # refuses a share that the images cannot give
    schedule = make_schedule(config, steps_per_epoch)
    averaging = make_averaging(config, steps_per_epoch)
    init_key, dropout_key = jax.random.split(jax.random.key(config.seed))
    state = create_train_state(
        make_model(config),
        make_optimizer(config, schedule, steps_per_epoch),
        init_key,
        image_size=config.data.image_size,
        channels=make_region(config.data).channels,
    )
    transferred = None
    begun = multihost.on_main(lambda: checkpoint.exists(workdir))
    if config.init_from and not begun:
        transferred = _transfer(config, state)
    return Training(
        config, steps_per_epoch, state, transferred, schedule, averaging, dropout_key
    )


def train(
    training: Training,
    workdir: Path,
    samples: Samples,
    *,
    check: Callable[[], None],
    description: str,
) -> None:
    """Trains to the last step, from the newest checkpoint if there is one.

    Without a checkpoint the state starts from the run that `config.init_from` names;
    else from random parameters.

    Args:
      training: from `make_training`.
      workdir: the run's folder, held by this process.
      samples: of every split; Train and Val are read.
      check: from `run_folder.hold`.
      description: of the run, for its log.

    Raises:
      Diverged: if the loss is no longer finite; the checkpoints stay.
      StorageError: if the folder cannot be written any more; they stay as well.
      Interrupted: after SIGINT or SIGTERM, once a checkpoint is written.
    """
    config = training.config
    with contextlib.ExitStack() as opened:
        # The main process alone reads and writes them, and tells the others.
        checkpoints = multihost.on_main_only(
            lambda: opened.enter_context(Checkpoints(workdir, check))
        )
        state, origin = _start(training, checkpoints)
        with RunLog(
            workdir,
            start=int(state.step),
            total=config.train.epochs * training.steps_per_epoch,
            batch_size=config.train.batch_size,
            silent=not parallel.is_main(),
        ) as log:
            log.dropped = multihost.on_main(lambda: log.dropped)
            log.say(description)
            log.say(origin)
            fit(
                config, samples, state,
                checkpoints=checkpoints, log=log, schedule=training.schedule,
                averaging=training.averaging, dropout_key=training.dropout_key,
            )  # fmt: skip


def _transfer(config: ml_collections.ConfigDict, state: TrainState) -> Transfer:
    """Returns what the main process reads of the run that `config.init_from` names."""
    moved = multihost.on_main(lambda: vars(_read_transfer(config, state)))
    return Transfer(**moved)


def _read_transfer(config: ml_collections.ConfigDict, state: TrainState) -> Transfer:
    source = best_of(config.init_from)
    moved = transfer(
        read_variables(source),
        state.variables(),
        fresh=config.transfer.fresh,
        name=str(source),
    )
    frozen = compile_patterns(config.transfer.frozen, "transfer.frozen")
    for leaf in moved.widened:
        if any(pattern.search(leaf) for pattern in frozen):
            raise UsageError(
                f"config.transfer.frozen would hold {leaf}, whose new input channel"
                " starts at 0: leave it out, or set config.data.roi_as = 'cut'"
            )
    return moved


def _start(
    training: Training, checkpoints: Checkpoints | None
) -> tuple[TrainState, str]:
    """Returns the state to go on from, and a text that says where it comes from."""
    state, moved = training.state, training.transferred
    origin = "every leaf starts anew (no --init_from)"
    if moved is not None:
        state = start_state(state.apply_fn, state.tx, **moved.variables)
        origin = format_transfer(moved, training.config.init_from)
    if training.averaging is not None:
        state = state.replace(averaged=state.variables())

    def restore() -> dict[str, Any]:
        assert checkpoints is not None  # in the main process
        restored, told = checkpoints.restore_newest(state)
        leaves = None if restored is None else jax.tree.leaves(restored)
        return {"leaves": leaves, "told": told}

    found = multihost.on_main(restore)
    if found["leaves"] is None:
        return state, origin
    restored = jax.tree.unflatten(jax.tree.structure(state), found["leaves"])
    said = [*found["told"], f"resumed at step {int(restored.step)}"]
    return restored, "\n".join(said)
