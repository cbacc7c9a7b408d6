"""The steps of a network alone, on a batch that lies on the devices already."""

import functools
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from covjax import parallel
from covjax.data.pipeline import make_region
from covjax.models import make_model
from covjax.train.ema import make_averaging
from covjax.train.losses import make_objective
from covjax.train.optimizer import make_optimizer, make_schedule
from covjax.train.train_state import create_train_state
from covjax.train.train_step import scale_pixels, train_step
from covjax.types import AXIS

Kind = str  # "train" or "infer"


class BareSteps:
    """A network as training and evaluation compile it, and a batch on the devices."""

    def __init__(self, config: ml_collections.ConfigDict):
        """Makes the network and a random batch, and compiles both programs."""
        side, batch = config.data.image_size, config.train.batch_size
        channels = make_region(config.data).channels
        parallel.check_batch_size(batch)
        schedule = make_schedule(config, steps_per_epoch=1000)
        self._model = make_model(config)
        state = create_train_state(
            self._model,
            make_optimizer(config, schedule, steps_per_epoch=1000),
            jax.random.key(config.seed),
            image_size=side,
            channels=channels,
        )
        averaging = make_averaging(config, steps_per_epoch=1000)
        if averaging is not None:
            state = state.replace(averaged=state.variables())
        self._batch = _random_batch(batch, side, channels)
        self._key = jax.random.key(0)
        self._state = parallel.replicate(state)
        self._step = functools.partial(
            train_step, objective=make_objective(**config.loss), averaging=averaging
        )
        start = time.perf_counter()
        compiled: Any = parallel.compile_train_step(self._step)
        compiled = compiled.lower(self._state, self._batch, self._key).compile()
        self._train = compiled
        self.compile_s = time.perf_counter() - start
        self._infer = parallel.compile_eval_step(
            lambda s, b: s.apply_fn(
                s.variables(), scale_pixels(b["image"]), train=False
            )
        )
        self._images = batch
        self.loss = float("nan")  # of the last step of training

    def run(self, kind: Kind, steps: int) -> float:
        """Returns the images a second of some steps.

        Args:
          kind: "train" or "infer".
          steps: how many.
        """
        start = time.perf_counter()
        result: Any = None
        for _ in range(steps):
            if kind == "train":
                self._state, result = self._train(self._state, self._batch, self._key)
            else:
                result = self._infer(self._state, self._batch)
        jax.block_until_ready(result)
        seconds = time.perf_counter() - start
        if kind == "train":
            self.loss = float(parallel.unreplicate(result)["loss"])
        return self._images * steps / seconds

    def flop(self) -> float:
        """Returns the operations of a step, for one image, as XLA counts them.

        Of the form that the step has on a GPU, which is the network's definition: of
        the loops that stand for it on a CPU, XLA counts one turn. What `model.remat`
        computes twice counts once.
        """
        step = jax.vmap(self._step, axis_name=AXIS, in_axes=(0, 0, None))
        state = self._state.replace(apply_fn=self._model.clone(remat=False).apply)
        traced = jax.jit(step).trace(state, self._batch, self._key)
        count: Any = traced.lower(lowering_platforms=("cuda",)).cost_analysis()
        return count["flops"] / self._images

    def program(self) -> str:
        """Returns the text of the compiled train step."""
        return self._train.as_text()

    def memory(self) -> tuple[int, int | None]:
        """Returns bytes of a device.

        Returns:
          What XLA plans for a step; and the peak of this process so far, where the
          device says (a CPU does not).
        """
        told: Any = self._train.memory_analysis()
        need = told.argument_size_in_bytes + told.temp_size_in_bytes
        need += told.output_size_in_bytes - told.alias_size_in_bytes
        stats = jax.local_devices()[0].memory_stats() or {}
        return need, stats.get("peak_bytes_in_use")


def _random_batch(batch: int, side: int, channels: int) -> Any:
    rng = np.random.default_rng(0)
    shape = (batch, side, side, 1)
    arrays = {
        "image": rng.integers(0, 256, (*shape[:3], channels), np.uint8),
        "mask": rng.integers(0, 2, shape, np.uint8),
        "index": np.zeros(batch, np.int32),
        "weight": np.ones(batch, np.float32),
    }
    return next(iter(parallel.prefetch([arrays])))
