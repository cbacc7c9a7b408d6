"""One pass over a split: what a model makes of every image, averaged nowhere."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ml_collections
import numpy as np

from covjax import parallel
from covjax.data.covidqu import Sample
from covjax.data.pipeline import make_eval_dataset
from covjax.metrics.detection import presence_scores
from covjax.runtime import watchdog
from covjax.train.losses import make_loss, pixel_terms
from covjax.train.train_step import eval_step, predict_step

Terms = tuple[tuple[str, Any], ...]  # of the loss that is reported


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a model did on every image of a split, in the order of the split.

    Attributes:
      counts: TP, FP, FN, TN in pixels, int64 [n, 4].
      losses: float64 [n].
    """

    counts: np.ndarray
    losses: np.ndarray


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a model gave for every image of a split, in the order of the split.

    Attributes:
      levels: probabilities times 255, rounded, uint8 [n, H, W].
      losses: float64 [n].
      presence: how sure it is that there is a finding at all, in [0, 1], float64 [n]:
        what its presence head says, else the score of its levels.
    """

    levels: np.ndarray
    losses: np.ndarray
    presence: np.ndarray


def score(
    eval_step: Callable[[Any, Any], Any],
    state: Any,
    dataset: Iterable[dict[str, np.ndarray]],
    n: int,
) -> Scores:
    """Counts the pixels of a split on the devices, as training does after an epoch.

    Args:
      eval_step: from `compile_eval_step`.
      state: replicated.
      dataset: from `make_eval_dataset`.
      n: images in the split.

    Returns:
      Scores of exactly n images, the same on every process.

    Raises:
      RuntimeError: if the dataset did not supply every image exactly once.
    """
    kept = {"counts": np.zeros((n, 4), np.int64), "loss": np.zeros(n)}
    _collect(eval_step, state, dataset, kept)
    return Scores(kept["counts"], kept["loss"])


def predict_split(
    config: ml_collections.ConfigDict,
    samples: Sequence[Sample],
    state: Any,
    *,
    roi: str | None = None,
    batch_size: int | None = None,
    cached: bool = True,
) -> Outputs:
    """Keeps the probability of every pixel of a split.

    Args:
      config: `data`, `loss`, `eval.tta_flip`, `model.presence_head` and
        `train.batch_size` are read.
      samples: the split.
      state: replicated.
      roi: region of interest; None: `data.roi`.
      batch_size: over all processes; None: `train.batch_size`.
      cached: False reads each image from its files, whatever `data.cache` says.

    Returns:
      Outputs of all images, the same on every process.

    Raises:
      RuntimeError: if the dataset did not supply every image exactly once.
    """
    rank, world = parallel.process()
    dataset = make_eval_dataset(
        samples, config=config, rank=rank, world=world,
        roi=roi, batch_size=batch_size, cached=cached,
    )  # fmt: skip
    n, side = len(samples), config.data.image_size
    kept = {"levels": np.zeros((n, side, side), np.uint8), "loss": np.zeros(n)}
    if config.model.presence_head:
        kept["presence"] = np.zeros(n)
    step = _compile_predict_step(_terms(config), config.eval.tta_flip)
    _collect(step, state, dataset, kept)
    presence = kept.get("presence")
    if presence is None:
        presence = presence_scores(kept["levels"])
    return Outputs(kept["levels"], kept["loss"], presence)


def _collect(
    step: Callable[[Any, Any], Any],
    state: Any,
    dataset: Iterable[dict[str, np.ndarray]],
    kept: dict[str, np.ndarray],
) -> None:
    """Fills arrays [n, ...] with what a step returns under their names."""
    seen = np.zeros(len(kept["loss"]), np.int64)
    pending = None
    with watchdog.watched():
        for batch in parallel.prefetch(dataset):
            # Read the results of a batch only when the next one is under way.
            result, pending = pending, step(state, batch)
            _store(result, kept, seen)
        _store(pending, kept, seen)
    if (seen != 1).any():
        raise RuntimeError(
            f"{np.sum(seen != 1)} of {len(seen)} images were not scored once"
        )


def _store(result: Any, kept: dict[str, np.ndarray], seen: np.ndarray) -> None:
    if result is None:
        return
    host = parallel.gather(result)
    real = host["weight"] > 0
    index = host["index"][real]
    for name, values in kept.items():
        values[index] = host[name][real]
    np.add.at(seen, index, 1)


def compile_eval_step(config: ml_collections.ConfigDict) -> Callable[[Any, Any], Any]:
    """Returns the compiled `eval_step` with the config's loss, threshold and flip."""
    return _compile_eval_step(
        _terms(config), config.eval.threshold, config.eval.tta_flip
    )


@functools.cache  # Val after each epoch shares one program
def _compile_eval_step(
    terms: Terms, threshold: float, flip: bool
) -> Callable[[Any, Any], Any]:
    loss_fn = make_loss(**dict(terms))
    return parallel.compile_eval_step(
        functools.partial(eval_step, loss_fn=loss_fn, threshold=threshold, flip=flip)
    )


@functools.cache  # all splits and regions share one program
def _compile_predict_step(terms: Terms, flip: bool) -> Callable[[Any, Any], Any]:
    loss_fn = make_loss(**dict(terms))
    return parallel.compile_eval_step(
        functools.partial(predict_step, loss_fn=loss_fn, flip=flip)
    )


def _terms(config: ml_collections.ConfigDict) -> Terms:
    """Returns the arguments of `make_loss`, so that they can be a key."""
    return tuple(pixel_terms(config.loss).items())
