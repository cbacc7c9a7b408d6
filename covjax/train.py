"""Training of one stage: config and folder in, checkpoints and results out."""

import math
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from covjax import checkpoint, evaluate, parallel, run_dir
from covjax.averaging import Rate, make_averaging
from covjax.checkpoint import Checkpoints, best_of, read_variables
from covjax.config import compile_patterns, validate_config
from covjax.data.covidqu import is_phantom
from covjax.data.pipeline import make_order, make_region
from covjax.data.source import Films, find_films, phantom_prefix
from covjax.errors import Diverged, UsageError
from covjax.feed import make_feed
from covjax.interrupt import Interrupt, Interrupted
from covjax.judge import make_judge
from covjax.losses import make_objective
from covjax.lungs import make_finder
from covjax.models import make_model
from covjax.optim import make_optimizer, make_schedule
from covjax.report.figures import draw_curves
from covjax.report.log import RunLog, read_metrics
from covjax.run_films import choose_films
from covjax.steps import train_step
from covjax.train_state import TrainState, create_train_state, start_state
from covjax.transfer import Transfer, format_transfer, transfer


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: Path, split: str = "Test"
) -> None:
    """Trains one stage, or goes on with it, then evaluates its best epoch.

    The state starts from the newest checkpoint in `workdir`; else from the run that
    `config.init_from` names; else from random parameters.

    Args:
      config: as configs/*.py make it.
      workdir: the run's folder.
      split: on which it is evaluated; an experiment that compares arms takes "Val".

    Raises:
      UsageError: if config, data, folder or `init_from` cannot be used; nothing that
        was there before is changed.
      Diverged: if the loss is no longer finite; the checkpoints stay.
      Interrupted: after SIGINT or SIGTERM, once a checkpoint is written.
    """
    validate_config(config)
    finder = make_finder(config)
    parallel.check_batch_size(config.train.batch_size)
    run_dir.check(workdir, config)
    root, films = find_films(config)
    chosen = choose_films(
        config, workdir, films, ("Train", "Val", split), training=True
    )
    films = chosen.films
    steps_per_epoch = len(films["Train"]) // config.train.batch_size
    if not steps_per_epoch:
        raise UsageError(
            f"config.train.batch_size = {config.train.batch_size}: there are only"
            f" {len(films['Train'])} Train films"
        )
    make_order(films["Train"], config)  # refuses a share that the films cannot give
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
    moved = None
    if config.init_from and not checkpoint.exists(workdir):
        moved = _transfer(config, state)
    if parallel.is_main():
        run_dir.claim(workdir, config, phantom=is_phantom(root))
    chosen.write(workdir)
    films = evaluate.show_lungs(config, workdir, films, finder)

    with Checkpoints(workdir) as checkpoints:
        state, origin = _start(
            state, checkpoints, moved, config.init_from, averaged=averaging is not None
        )
        with RunLog(
            workdir,
            start=int(state.step),
            total=config.train.epochs * steps_per_epoch,
            batch_size=config.train.batch_size,
            silent=not parallel.is_main(),
        ) as log:
            log.say(_describe(config, workdir, root, films))
            log.say(origin)
            with Interrupt() as interrupt:
                _fit(
                    config, films, state, checkpoints, log, schedule, averaging,
                    dropout_key, interrupt,
                )  # fmt: skip
    if parallel.is_main():
        kind = phantom_prefix(root)
        draw_curves(
            workdir / "figures" / "curves.png",
            read_metrics(workdir),
            f"{kind}{config.data.task}: {workdir.name}",
        )
    evaluate.evaluate_best(config, workdir, root, films, split, finder)


def _transfer(config: ml_collections.ConfigDict, state: TrainState) -> Transfer:
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
    state: TrainState,
    checkpoints: Checkpoints,
    moved: Transfer | None,
    init_from: str,
    *,
    averaged: bool,
) -> tuple[TrainState, str]:
    """Returns the state to go on from, and a text that says where it comes from."""
    origin = "every leaf starts anew (no --init_from)"
    if moved is not None:
        state = start_state(state.apply_fn, state.tx, **moved.variables)
        origin = format_transfer(moved, init_from)
    if averaged:
        state = state.replace(averaged=state.variables())
    reached = checkpoints.latest()
    if reached is not None:
        return checkpoints.restore(state, reached), f"resumed at step {reached}"
    return state, origin


def _describe(
    config: ml_collections.ConfigDict, workdir: Path, root: Path, films: Films
) -> str:
    counts = ", ".join(f"{len(of_split)} {split}" for split, of_split in films.items())
    return (
        f"{config.data.task}: {phantom_prefix(root)}films of {root}: {counts}\n"
        f"{jax.device_count()} {jax.default_backend()} device(s); run: {workdir}"
    )


def _fit(
    config: ml_collections.ConfigDict,
    films: Films,
    state: TrainState,
    checkpoints: Checkpoints,
    log: RunLog,
    schedule: optax.Schedule,
    averaging: Rate | None,
    dropout_key: jax.Array,
    interrupt: Interrupt,
) -> None:
    """Trains to the last step; every epoch ends with Val and a checkpoint.

    Raises:
      Interrupted: after a signal, once the newest state is written.
      Diverged: if the loss is no longer finite.
    """
    steps_per_epoch = len(films["Train"]) // config.train.batch_size
    start, total = int(state.step), config.train.epochs * steps_per_epoch
    if start == total:
        return
    objective = make_objective(**config.loss)
    device_state = parallel.replicate(state)
    # After the state, so that the memory that is still free can be measured.
    feed = make_feed(films["Train"], config=config, steps=range(start, total))
    log.say(feed.description)
    prepare = feed.prepare  # alone: a compiled step outlives the batches
    step_fn = parallel.compile_train_step(
        lambda state, batch, rng: train_step(
            state, prepare(batch), rng, objective=objective, averaging=averaging
        )
    )
    judge = make_judge(config, films["Val"])

    pending = None  # (step, metrics) whose numbers were not read yet
    for step, batch in enumerate(feed.batches, start + 1):
        if interrupt.number:
            _read(pending, log, schedule, config.train.log_every)
            checkpoints.save(parallel.unreplicate(device_state), dice=None)
            raise Interrupted(
                interrupt.number,
                f"stopped by signal {interrupt.number} after step {step - 1} of"
                f" {total}; the same command goes on from there",
            )
        device_state, result = step_fn(device_state, batch, dropout_key)
        # Reading the step before keeps the device busy with this one.
        _read(pending, log, schedule, config.train.log_every)
        pending = step, result
        if step == start + 1:
            jax.block_until_ready(result)
            log.restart_clock(step)  # compilation is no training
        if step % steps_per_epoch:
            continue
        _read(pending, log, schedule, config.train.log_every)
        pending = None
        rate = log.images_per_second(step)
        verdict = judge(device_state)
        log.write(step, "val", verdict.numbers)
        checkpoints.save(parallel.unreplicate(device_state), dice=verdict.dice)
        log.say(
            f"epoch {step // steps_per_epoch:3}/{config.train.epochs}  step {step}"
            f"  {rate:.0f} images/s  val: {verdict.text}"
        )
        log.restart_clock(step)


def _read(
    pending: tuple[int, Any] | None,
    log: RunLog,
    schedule: optax.Schedule,
    log_every: int,
) -> None:
    """Reads a step's metrics; shows them, and writes every `log_every`-th."""
    if pending is None:
        return
    step, result = pending
    numbers = {k: float(v) for k, v in parallel.unreplicate(result).items()}
    if not math.isfinite(numbers["loss"]):
        raise Diverged(
            f"the loss is {numbers['loss']} at step {step}. The checkpoints of earlier"
            " epochs are whole; try a lower config.optim.lr in another --workdir."
        )
    log.advance(step, numbers["loss"])
    if step % log_every == 0:
        numbers["lr"] = np.asarray(schedule(step - 1)).item()
        log.write(step, "train", numbers)
