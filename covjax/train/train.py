"""Training of one stage: config and folder in, checkpoints and results out."""

import contextlib
from pathlib import Path
from typing import Any

import jax
import ml_collections

from covjax import multihost, parallel
from covjax.config import compile_patterns, validate_config
from covjax.data.covidqu import is_phantom
from covjax.data.pipeline import make_order, make_region
from covjax.data.source import Films, find_films, phantom_prefix
from covjax.errors import UsageError
from covjax.evaluation import evaluate
from covjax.evaluation.lung_masks import find_finder
from covjax.models import make_model
from covjax.report.figures import draw_curves
from covjax.train import checkpoint, run_folder
from covjax.train.checkpoint import Checkpoints, best_of, read_variables
from covjax.train.ema import make_averaging
from covjax.train.loop import fit
from covjax.train.metric_writer import RunLog, read_metrics
from covjax.train.optimizer import make_optimizer, make_schedule
from covjax.train.sample_manifest import choose_films
from covjax.train.train_state import TrainState, create_train_state, start_state
from covjax.train.transfer import Transfer, format_transfer, transfer


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
      StorageError: if the folder cannot be written any more; they stay as well.
      Interrupted: after SIGINT or SIGTERM, once a checkpoint is written.
    """
    validate_config(config)
    finder = find_finder(config)
    parallel.check_batch_size(config.train.batch_size)
    multihost.on_main(lambda: run_folder.check(workdir, config))
    root, films = multihost.in_all(lambda: find_films(config))
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
    begun = multihost.on_main(lambda: checkpoint.exists(workdir))
    if config.init_from and not begun:
        moved = _transfer(config, state)
    with contextlib.ExitStack() as held:
        check = multihost.in_all(lambda: held.enter_context(run_folder.hold(workdir)))

        def claim() -> None:
            run_folder.claim(workdir, config, phantom=is_phantom(root))
            for line in checkpoint.set_aside_damaged(workdir):
                print(line, flush=True)
            chosen.write(workdir)

        multihost.on_main(claim)
        films = evaluate.show_lungs(config, workdir, films, finder)
        with contextlib.ExitStack() as opened:
            # The main process alone reads and writes them, and tells the others.
            checkpoints = multihost.on_main_only(
                lambda: opened.enter_context(Checkpoints(workdir, check))
            )
            state, origin = _start(
                state, checkpoints, moved, config.init_from, averaged=bool(averaging)
            )
            with RunLog(
                workdir,
                start=int(state.step),
                total=config.train.epochs * steps_per_epoch,
                batch_size=config.train.batch_size,
                silent=not parallel.is_main(),
            ) as log:
                log.dropped = multihost.on_main(lambda: log.dropped)
                log.say(_describe(config, workdir, root, films))
                log.say(origin)
                fit(
                    config, films, state,
                    checkpoints=checkpoints, log=log, schedule=schedule,
                    averaging=averaging, dropout_key=dropout_key,
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
    state: TrainState,
    checkpoints: Checkpoints | None,
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


def _describe(
    config: ml_collections.ConfigDict, workdir: Path, root: Path, films: Films
) -> str:
    counts = ", ".join(f"{len(of_split)} {split}" for split, of_split in films.items())
    return (
        f"{config.data.task}: {phantom_prefix(root)}films of {root}: {counts}\n"
        f"{jax.device_count()} {jax.default_backend()} device(s); run: {workdir}"
    )
