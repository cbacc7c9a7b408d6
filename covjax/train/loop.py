"""The loop: one step after another, Val and a checkpoint after every epoch."""

import dataclasses
import signal
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from covjax import multihost, parallel
from covjax.data.source import Samples
from covjax.runtime import watchdog
from covjax.runtime.signals import Interrupt, Interrupted
from covjax.train.checkpoint import Checkpoints
from covjax.train.device_input import make_feed
from covjax.train.ema import Rate
from covjax.train.losses import make_objective
from covjax.train.metric_writer import RunLog
from covjax.train.nan_guard import Watch
from covjax.train.train_state import TrainState
from covjax.train.train_step import train_step
from covjax.train.validation import make_judge


def fit(
    config: ml_collections.ConfigDict,
    samples: Samples,
    state: TrainState,
    *,
    checkpoints: Checkpoints | None,
    log: RunLog,
    schedule: optax.Schedule,
    averaging: Rate | None,
    dropout_key: jax.Array,
) -> None:
    """Trains from a state to the last step.

    Args:
      config: the whole config.
      samples: of every split; Train and Val are read.
      state: to go on from, on the host.
      checkpoints: where it is kept; None in a process that keeps nothing.
      log: of the run.
      schedule: steps taken → learning rate, for the log.
      averaging: as `steps.train_step` takes it.
      dropout_key: of the run.

    Raises:
      Interrupted: after a signal, once the newest state is written.
      Diverged: if loss, gradients or weights are no longer finite.
      StorageError: if a checkpoint cannot be written.
      Failure: if images cannot be read any more, here or in another process, once the
        newest state is written.
    """
    steps_per_epoch = len(samples["Train"]) // config.train.batch_size
    start, total = int(state.step), config.train.epochs * steps_per_epoch
    if start == total:
        return
    skip = config.train.on_nan == "skip"
    objective = make_objective(**config.loss)
    device_state = parallel.replicate(state)
    # After the state, so that the memory that is still free can be measured.
    feed = make_feed(samples["Train"], config=config, steps=range(start, total))
    log.say(feed.description)
    prepare = feed.prepare  # alone: a compiled step outlives the batches
    step_fn = parallel.compile_train_step(
        lambda state, batch, rng: train_step(
            state, prepare(batch), rng,
            objective=objective, averaging=averaging, skip=skip,
        )
    )  # fmt: skip
    judge = make_judge(config, samples["Val"])
    reader = _Reader(
        log, Watch(skip=skip, dropped=log.dropped), schedule, config.train.log_every
    )

    agree_to_stop = parallel.compile_agreement()
    step = start
    with Interrupt() as interrupt, watchdog.watched():
        for step, batch in enumerate(feed.batches, start + 1):
            device_state, result = step_fn(device_state, batch, dropout_key)
            # Reading the step before keeps the device busy with this one.
            reader.read()
            reader.pending = step, result
            if step == start + 1:
                jax.block_until_ready(result)
                log.restart_clock(step)  # compilation is no training
            ended = step % steps_per_epoch == 0
            if ended:
                reader.read()
                rate = log.images_per_second(step)
                verdict = judge(device_state)
                log.write(step, "val", verdict.numbers)
                _save(checkpoints, device_state, dice=verdict.dice)
                log.say(
                    f"epoch {step // steps_per_epoch:3}/{config.train.epochs}  step"
                    f" {step}  {rate:.0f} images/s  val: {verdict.text}"
                )
                log.restart_clock(step)
            wants = interrupt.number is not None or feed.fails()
            stop = agree_to_stop(step, wants)
            if not ended and (stop or _is_due(step, config.train.checkpoint_every)):
                reader.read()
                _save(checkpoints, device_state, dice=None)
            if stop:
                break
        else:  # a signal that came to another process with the last step counts, too
            stop = agree_to_stop(total + 1, interrupt.number is not None)
        if stop:
            multihost.in_all(feed.check)
            number = interrupt.number or signal.SIGTERM  # another process got one
            raise Interrupted(
                number,
                f"stopped by signal {number:d} after step {step} of {total}; the same"
                " command goes on from there",
            )


def _save(checkpoints: Checkpoints | None, state: Any, *, dice: float | None) -> None:
    if checkpoints is not None:
        checkpoints.save(parallel.unreplicate(state), dice=dice)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@dataclasses.dataclass
class _Reader:
    """Reads the numbers of steps from the devices, shows them and writes them.

    Attributes:
      log: of the run.
      watch: looks at every step.
      schedule: steps taken → learning rate.
      every: steps between two lines of the log.
      pending: a step and its metrics, which were not read yet.
    """

    log: RunLog
    watch: Watch
    schedule: optax.Schedule
    every: int
    pending: tuple[int, Any] | None = None

    def read(self) -> None:
        """Reads the step that is pending, if one is.

        Raises:
          Diverged: as `Watch.look` does.
        """
        if self.pending is None:
            return
        step, result = self.pending
        self.pending = None
        numbers = {k: float(v) for k, v in parallel.unreplicate(result).items()}
        odd = self.watch.look(step, numbers)
        if odd:
            self.log.say(odd)
        finite = numbers.pop("finite")
        self.log.advance(step, numbers["loss"])
        if not finite:
            self.log.write(step, "train", dict.fromkeys(numbers) | {"dropped": 1})
        elif step % self.every == 0:
            numbers["lr"] = np.asarray(self.schedule(step - 1)).item()
            self.log.write(step, "train", numbers)
