"""One pass over a split: a score for every image, a summary over them all."""

import csv
import dataclasses
import functools
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from covjax import parallel
from covjax.data.covidqu import Film, is_phantom, read_film
from covjax.data.pipeline import make_eval_dataset
from covjax.data.source import phantom_prefix
from covjax.files import write_whole
from covjax.losses import make_loss
from covjax.metrics.counts import dice_per_image, iou_per_image
from covjax.metrics.families import summarize
from covjax.report.figures import Panel, choose_films, draw_qualitative
from covjax.steps import eval_step, predict_step

COLUMNS = ("file", "class", "TP", "FP", "FN", "TN", "loss", "dice", "iou")


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a model did on every film of a split, in the order of the split.

    Attributes:
      counts: TP, FP, FN, TN in pixels, int64 [n, 4].
      losses: float64 [n].
    """

    counts: np.ndarray
    losses: np.ndarray


def score(
    eval_step: Callable[[Any, Any], Any],
    state: Any,
    dataset: Iterable[dict[str, np.ndarray]],
    n: int,
) -> Scores:
    """Runs the compiled `eval_step` over a split.

    Args:
      eval_step: from `parallel.compile_eval_step`.
      state: replicated.
      dataset: from `make_eval_dataset`.
      n: films in the split.

    Returns:
      Scores of exactly n images, the same on every process.

    Raises:
      RuntimeError: if the dataset did not supply every film exactly once.
    """
    counts = np.zeros((n, 4), np.int64)
    losses = np.zeros(n)
    seen = np.zeros(n, np.int64)
    pending = None
    for batch in parallel.prefetch(dataset):
        # Read the results of a batch only when the next one is under way.
        result, pending = pending, eval_step(state, batch)
        _store(result, counts, losses, seen)
    _store(pending, counts, losses, seen)
    if (seen != 1).any():
        raise RuntimeError(f"{np.sum(seen != 1)} of {n} films were not scored once")
    return Scores(counts, losses)


def _store(result: Any, counts: np.ndarray, losses: np.ndarray, seen: np.ndarray):
    if result is None:
        return
    host = parallel.gather(result)
    real = host["weight"] > 0
    index = host["index"][real]
    counts[index] = host["counts"][real]
    losses[index] = host["loss"][real]
    np.add.at(seen, index, 1)


def compile_eval_step(config: ml_collections.ConfigDict) -> Callable[[Any, Any], Any]:
    """Returns the compiled `eval_step` with the config's loss and threshold."""
    return _compile(config.loss.dice, config.loss.bce, config.eval.threshold)


@functools.cache  # Val after each epoch and Test at the end share one program
def _compile(dice: float, bce: float, threshold: float) -> Callable[[Any, Any], Any]:
    loss_fn = make_loss(dice=dice, bce=bce)
    return parallel.compile_eval_step(
        functools.partial(eval_step, loss_fn=loss_fn, threshold=threshold)
    )


def evaluate_split(
    config: ml_collections.ConfigDict,
    workdir: Path,
    root: Path,
    films: Sequence[Film],
    split: str,
    state: Any,
) -> dict[str, Any]:
    """Scores a split; writes results/<split>.{json,csv} and its figure.

    Args:
      config: the run's.
      workdir: the run's folder.
      root: of the data.
      films: of the split.
      split: "Train", "Val" or "Test".
      state: of the checkpoint to score, replicated.

    Returns:
      What the JSON file holds.
    """
    rank, world = parallel.process()
    dataset = make_eval_dataset(films, config=config, rank=rank, world=world)
    scores = score(compile_eval_step(config), state, dataset, len(films))
    about = {
        "task": config.data.task,
        "roi": config.data.roi,
        "image_size": config.data.image_size,
        "checkpoint": int(parallel.unreplicate(state.step)),
        "phantom": is_phantom(root),
    }
    chosen = choose_films(
        [film.label for film in films], scores.counts, config.data.task == "lung"
    )
    outputs = _predict(config, [films[i] for _, i in chosen], state)
    if not parallel.is_main():
        return {}
    panels = [
        _panel(config, name, films[i], scores.counts[i], output)
        for (name, i), output in zip(chosen, outputs, strict=True)
    ]
    if panels:
        draw_qualitative(
            workdir / "figures" / _figure_name(split),
            panels,
            f"{phantom_prefix(root)}{config.data.task}, {split}: {workdir.name}",
        )
    return write_results(
        workdir / "results", split, films, scores,
        threshold=config.eval.threshold, about=about,
    )  # fmt: skip


def _figure_name(split: str) -> str:
    """Returns the name of a split's figure; Test's is the one of the report."""
    return f"qualitative{'' if split == 'Test' else '-' + split.lower()}.png"


def _predict(
    config: ml_collections.ConfigDict, films: Sequence[Film], state: Any
) -> np.ndarray:
    """Returns the network's input and its mask, uint8 [2, H, W], of a few films."""
    rank, world = parallel.process()
    dataset = make_eval_dataset(films, config=config, rank=rank, world=world)
    step = parallel.compile_eval_step(predict_step)
    outputs = np.zeros((len(films), 2, *[config.data.image_size] * 2), np.uint8)
    for batch in parallel.prefetch(dataset):
        host, probability = parallel.gather((batch, step(state, batch)))
        real = host["weight"] > 0
        outputs[host["index"][real], 0] = host["image"][real, ..., 0]
        outputs[host["index"][real], 1] = (
            probability[real, ..., 0] > config.eval.threshold
        )
    return outputs


def _panel(
    config: ml_collections.ConfigDict,
    name: str,
    film: Film,
    counts: np.ndarray,
    output: np.ndarray,
) -> Panel:
    record = read_film(film, config.data.image_size)
    truth, found = int(counts[0] + counts[2]), int(counts[0] + counts[1])
    dice = float(dice_per_image(counts[None])[0])
    return Panel(
        title=f"{name}: {film.name}\nDice {dice:.3f}; {truth} px true, {found} found",
        film=record["image"],
        seen=output[0],
        truth=record[config.data.task],
        output=output[1],
    )


def write_results(
    folder: Path,
    split: str,
    films: Sequence[Film],
    scores: Scores,
    *,
    threshold: float,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Writes results/<split>.json and results/<split>.csv.

    Args:
      folder: the run's `results`.
      split: "Train", "Val" or "Test".
      films: of the split.
      scores: of the same films.
      threshold: at which the counts were taken.
      about: what the results are of (task, region of interest, checkpoint, …).

    Returns:
      What the JSON file holds.
    """
    labels = [film.label for film in films]
    summary = {"split": split.lower()} | summarize(
        scores.counts, scores.losses, labels, threshold=threshold
    )
    summary |= about
    write_whole(folder / f"{split.lower()}.csv", _csv(films, scores))
    write_whole(folder / f"{split.lower()}.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _csv(films: Sequence[Film], scores: Scores) -> str:
    dice = dice_per_image(scores.counts)
    iou = iou_per_image(scores.counts)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for i, film in enumerate(films):
        # repr of a float: every digit, so that all figures can be computed again
        writer.writerow(
            [film.name, film.label, *scores.counts[i].tolist()]
            + [repr(float(x)) for x in (scores.losses[i], dice[i], iou[i])]
        )
    return out.getvalue()
