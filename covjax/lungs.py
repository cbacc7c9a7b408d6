"""The lungs that a run of stage 1 finds, as masks on disk for stage 2.

A mask is computed once: it lies in the lung run's folder, under the checkpoint and the
operating point that made it and under a hash of the film's bytes. A film that stands in
both trees, or is copied elsewhere, is found again; one that changes is not.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np
from PIL import Image

from covjax import parallel
from covjax.calibrate import OperatingPoint, as_point, read_points
from covjax.checkpoint import best_of
from covjax.config import read_config
from covjax.data.covidqu import Film
from covjax.data.masks import fill_holes, keep_largest
from covjax.errors import DataError, UsageError
from covjax.files import write_whole
from covjax.outputs import predict_split
from covjax.run_dir import CONFIG
from covjax.trained import Trained, read_trained, run_of, step_of

FOLDER = "lungs"
_AT_ONCE = 2048  # films predicted before their masks are written


def lung_run(config: ml_collections.ConfigDict) -> str | None:
    """Returns the run that finds the lungs: the one named, else a stage 1 before.

    Returns:
      `config.data.lung_run`; else `config.init_from`, where it is a run of lungs that
      is still there; else None.
    """
    if config.data.lung_run:
        return config.data.lung_run
    try:
        if config.init_from and _is_of_lungs(best_of(config.init_from)):
            return config.init_from
    except UsageError:
        pass  # moved or deleted since: a finished run does not need it
    return None


def _is_of_lungs(checkpoint: Path) -> bool:
    config = read_config(run_of(checkpoint) / CONFIG).to_dict()
    return config.get("data", {}).get("task") == "lung"


def check_lung_run(path: str) -> Path:
    """Returns the checkpoint that would find the lungs.

    Raises:
      UsageError: if there is none, or it is of another task.
    """
    checkpoint = best_of(path)
    if not _is_of_lungs(checkpoint):
        raise UsageError(
            f"{path}: a run of stage 2, where one that finds the lungs is needed"
            " (config.data.lung_run)"
        )
    return checkpoint


def find_lungs(path: str, films: Sequence[Film], *, spare: Path) -> list[Film]:
    """Returns the films, each with the path of the lungs that a run finds.

    The lungs are the run's mask at its operating point, holes filled, and of that the
    two largest areas.

    Args:
      path: the lung run's folder, or one of its checkpoints.
      films: of any split and tree.
      spare: folder of the run that asks; the masks are kept there where the lung
        run's folder cannot be written.

    Raises:
      UsageError: if the run cannot be used.
    """
    checkpoint = check_lung_run(path)
    run = run_of(checkpoint)
    step = step_of(checkpoint)
    point = _point(run, step)
    name = f"{step}-{point.threshold:g}-{point.min_area}-{point.presence:g}"
    folder = run / FOLDER / name
    if not os.access(run, os.W_OK):
        of_run = hashlib.sha256(str(run).encode()).hexdigest()[:8]
        folder = spare / FOLDER / f"{of_run}-{name}"
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        hashes = list(threads.map(_hash, films))
    parallel.wait_for_all()  # or a slow process would find what a fast one wrote
    masks = [folder / f"{key}.png" for key in hashes]
    missing = {m: film for m, film in zip(masks, films, strict=True) if not m.exists()}
    if missing:
        if parallel.is_main():
            n = len(missing)
            print(f"finding the lungs of {n:,} films with {path}", flush=True)
        _write(_network(str(checkpoint)), point, missing)
    return [
        dataclasses.replace(film, found_lung=mask)
        for film, mask in zip(films, masks, strict=True)
    ]


def _point(run: Path, step: int) -> OperatingPoint:
    told = read_points(run).get("none")
    if told is not None and told.get("checkpoint") == step:
        return as_point(told)
    return OperatingPoint(read_config(run / CONFIG).eval.threshold)


# One object for all splits, or each of them would be compiled anew.
_network = functools.lru_cache(maxsize=1)(read_trained)


def _hash(film: Film) -> str:
    try:
        return hashlib.sha256(film.image.read_bytes()).hexdigest()[:24]
    except OSError as error:
        raise DataError(f"{film.image}: cannot be read ({error.strerror})") from None


def _write(trained: Trained, point: OperatingPoint, missing: dict[Path, Film]) -> None:
    paths, films = list(missing), list(missing.values())
    config = ml_collections.ConfigDict(trained.config.to_dict())
    # It may have been trained on another number of devices.
    config.train.batch_size = parallel.shareable(config.train.batch_size)
    state = parallel.replicate(trained.state)
    for start in range(0, len(films), _AT_ONCE):
        some = films[start : start + _AT_ONCE]
        levels = predict_split(config, some, state).levels
        if parallel.is_main():
            found = point.masks(levels)
            with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
                list(threads.map(_write_mask, paths[start:], found))
    parallel.wait_for_all()


def _write_mask(path: Path, found: np.ndarray) -> None:
    buffer = io.BytesIO()
    lungs = keep_largest(fill_holes(found), 2)
    Image.fromarray(255 * lungs).save(buffer, format="PNG")
    write_whole(path, buffer.getvalue())
