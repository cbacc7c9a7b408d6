"""The lungs that a run of stage 1 finds, as masks on disk for stage 2.

A mask is computed once: it lies in the lung run's folder, under the checkpoint and the
operating point that made it and under a hash of the image's bytes. An image that stands
in both trees, or is copied elsewhere, is found again; one that changes is not.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from PIL import Image

from covjax import multihost, parallel
from covjax.config import read_config
from covjax.data.covidqu import Sample
from covjax.data.mask_ops import as_lungs
from covjax.errors import DataError, UsageError
from covjax.metrics.operating_point import OperatingPoint, as_point, read_points
from covjax.runtime.cores import count_cores
from covjax.runtime.files import write_whole
from covjax.train.checkpoint import best_of, fingerprint
from covjax.train.eval_pass import Outputs, predict_split
from covjax.train.restore import run_of, share_trained, step_of
from covjax.train.run_folder import CONFIG

FOLDER = "lungs"
_PATIENCE = 90  # seconds; a network share may be a minute behind (acdirmax)
_AT_ONCE = 2048  # images predicted before their masks are written
_network = functools.lru_cache(maxsize=1)(share_trained)  # compiled once for all splits


@dataclasses.dataclass(frozen=True)
class LungFinder:
    """A checkpoint of stage 1 and the operating point that makes masks of its outputs.

    Attributes:
      checkpoint: its folder.
      fingerprint: of the checkpoint, wherever it lies.
      point: chosen on the lung run's Val; where it has none for this checkpoint, its
        bare threshold.
    """

    checkpoint: Path
    fingerprint: str
    point: OperatingPoint

    def told(self) -> dict[str, Any]:
        """Returns what a result says of the lungs that its network was shown."""
        run = run_of(self.checkpoint)
        about = {"run": run.name, "step": step_of(self.checkpoint)}
        about["fingerprint"] = self.fingerprint
        return about | dataclasses.asdict(self.point)


def same_lungs(a: Any, b: Any) -> bool:
    """Tells whether two results were shown the same found lungs, or both none.

    The name of the run that found them may have changed.

    Args:
      a: from `LungFinder.told`, or None.
      b: likewise.
    """
    if not isinstance(a, dict) or not isinstance(b, dict):
        return a == b
    return a | {"run": None} == b | {"run": None}


def make_finder(config: ml_collections.ConfigDict) -> LungFinder | None:
    """Returns what finds the lungs: the run that is named, else a stage 1 before.

    Returns:
      Of `config.data.lung_run`; else of `config.init_from`, where that is a run of
      lungs that is still there; else, and for stage 1, None.

    Raises:
      UsageError: if `data.lung_run` cannot be used, or `data.roi` is "predicted" and
        there is no run of lungs.
    """
    if config.data.task == "lung":
        return None
    if config.data.lung_run:
        return read_finder(config.data.lung_run)
    try:
        if config.init_from and _is_of_lungs(best_of(config.init_from)):
            return read_finder(config.init_from)
    except UsageError:
        pass  # moved or deleted since: a finished run does not need it
    if config.data.roi == "predicted":
        raise UsageError(
            f"config.data.roi = 'predicted', and {config.init_from} is no run that"
            " finds the lungs: put it back, or begin a run that names one in"
            " config.data.lung_run"
        )
    return None


def find_finder(config: ml_collections.ConfigDict) -> LungFinder | None:
    """Returns what `make_finder` does in the main process, on every process."""

    def read() -> dict[str, Any] | None:
        finder = make_finder(config)
        return finder and dataclasses.asdict(finder) | {
            "checkpoint": str(finder.checkpoint)
        }

    told = multihost.on_main(read)
    if told is None:
        return None
    point = OperatingPoint(**told["point"])
    return LungFinder(Path(told["checkpoint"]), told["fingerprint"], point)


def _is_of_lungs(checkpoint: Path) -> bool:
    config = read_config(run_of(checkpoint) / CONFIG).to_dict()
    return config.get("data", {}).get("task") == "lung"


def read_finder(path: str) -> LungFinder:
    """Returns what would find the lungs.

    Args:
      path: the lung run's folder, or one of its checkpoints.

    Raises:
      UsageError: if there is no whole checkpoint, or it is of another task.
    """
    checkpoint = best_of(path)
    if not _is_of_lungs(checkpoint):
        raise UsageError(
            f"{path}: a run of stage 2, where one that finds the lungs is needed"
            " (config.data.lung_run)"
        )
    run, identity = run_of(checkpoint), fingerprint(checkpoint)
    told = read_points(run).get("none", {})
    # A point of another checkpoint is not this one's.
    if (told.get("checkpoint"), told.get("fingerprint")) == (
        step_of(checkpoint), identity,
    ):  # fmt: skip
        point = as_point(told)
    else:
        point = OperatingPoint(read_config(run / CONFIG).eval.threshold)
    return LungFinder(checkpoint, identity, point)


def find_lungs(
    finder: LungFinder, samples: Sequence[Sample], *, spare: Path
) -> list[Sample]:
    """Returns the images, each with the path of the lungs that were found.

    The lungs are the mask at the operating point, holes filled, and of that the two
    largest areas.

    Args:
      finder: what finds them.
      samples: of any split and tree.
      spare: folder of the run that asks; new masks are kept there where the lung run's
        folder cannot be written.
    """
    run, point = run_of(finder.checkpoint), finder.point
    of_point = f"{point.threshold:g}-{point.min_area}-{point.presence:g}"
    name = f"{finder.checkpoint.name}-{finder.fingerprint}-{of_point}"
    homes = [folder / FOLDER / name for folder in (run, spare)]
    files = multihost.in_all(lambda: _name_masks(samples))
    # The main process looks for all: they have to go through the same passes, and on a
    # network share a host that once missed a file goes on missing it for a while.
    where = multihost.on_main(lambda: _look_for(files, homes))
    masks = [homes[k % 2] / file for k, file in zip(where, files, strict=True)]
    missing = {
        mask: sample
        for k, mask, sample in zip(where, masks, samples, strict=True)
        if k >= 2
    }
    if missing:
        if parallel.is_main():
            n = len(missing)
            print(f"finding the lungs of {n:,} images with {run}", flush=True)
        _write(finder, missing)
        multihost.in_all(lambda: _wait_for_files(list(missing)))
    return [
        dataclasses.replace(sample, found_lung=mask)
        for sample, mask in zip(samples, masks, strict=True)
    ]


def _name_masks(samples: Sequence[Sample]) -> list[str]:
    with concurrent.futures.ThreadPoolExecutor(count_cores()) as threads:
        return [f"{key}.png" for key in threads.map(_hash, samples)]


def _look_for(files: Sequence[str], homes: Sequence[Path]) -> list[int]:
    """Returns in which home each file is; 2 + where a new one is to go."""
    new = 0 if os.access(homes[0].parents[1], os.W_OK) else 1
    there = [[(home / file).exists() for home in homes] for file in files]
    return [row.index(True) if any(row) else 2 + new for row in there]


def _wait_for_files(paths: Sequence[Path]) -> None:
    """Returns once this host sees what the main process has written.

    Raises:
      DataError: naming the first file that does not come.
    """
    end = time.monotonic() + _PATIENCE
    for path in paths:
        while not path.exists():
            if time.monotonic() > end:
                raise DataError(
                    f"{path}: another process has written it, and it is not there on"
                    " this host: mount the folder under the same path on every host"
                )
            time.sleep(0.2)


def _hash(sample: Sample) -> str:
    try:
        return hashlib.sha256(sample.image.read_bytes()).hexdigest()[:24]
    except OSError as error:
        raise DataError(f"{sample.image}: cannot be read ({error.strerror})") from None


def _write(finder: LungFinder, missing: dict[Path, Sample]) -> None:
    paths, samples = list(missing), list(missing.values())
    trained = _network(str(finder.checkpoint))
    config, state = trained.config, parallel.replicate(trained.state)
    # It may have been trained on another number of devices.
    batch_size = parallel.shareable(config.train.batch_size)
    for start in range(0, len(samples), _AT_ONCE):
        some = samples[start : start + _AT_ONCE]
        # Each image is read this once: a packed copy would be of no use.
        outputs = predict_split(
            config, some, state, batch_size=batch_size, cached=False
        )
        write = functools.partial(_write_masks, paths[start:], outputs, finder.point)
        multihost.on_main(write)


def _write_masks(
    paths: Sequence[Path], outputs: Outputs, point: OperatingPoint
) -> None:
    found = point.masks(outputs.levels, outputs.presence)
    with concurrent.futures.ThreadPoolExecutor(count_cores()) as threads:
        list(threads.map(_write_mask, paths, found))


def _write_mask(path: Path, found: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(255 * as_lungs(found)).save(buffer, format="PNG")
    write_whole(path, buffer.getvalue())
