"""Phantoms: synthetic chest X-rays, written in the layout of COVID-QU-Ex.

    python -m covjax.data.phantom ROOT [--train N --val N --test N --size S --seed K]

They stand in for patients in tests and in the demo. `drawing.py` draws one.
"""

import argparse
import json
import os
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from covjax.data import covidqu
from covjax.data.phantom.drawing import MIN_SIZE, make_phantom
from covjax.errors import DataError, UsageError
from covjax.runtime.files import sync_folder
from covjax.runtime.strict_json import read_json

# Part of the marker: raise it when the same seed draws other images.
GENERATOR_VERSION = 1
STEMS = {"COVID-19": "covid", "Non-COVID": "non_COVID", "Normal": "Normal"}
# The classes take turns: in the infection tree, as published, half is COVID-19.
TURNS = {
    "lung": ("COVID-19", "Non-COVID", "Normal"),
    "infection": ("COVID-19", "Non-COVID", "COVID-19", "Normal"),
}


def write_phantoms(
    root: Path, *, samples: Mapping[str, int], size: int, seed: int
) -> Path:
    """Writes a set of phantoms, both trees, or finds it written.

    Image k of a tree, split and class is a function of these and of the seed: a larger
    set begins with the images of a smaller one, under the same names. The set appears
    under its name whole or not at all, even when two processes write it at once.

    Args:
      root: folder to write; nothing of that name may exist, but the same set.
      samples: number of images of each split and tree, {"Train": 240, ...}; a split
        that is not named gets none. COVID-19 is half of the infection tree and a third
        of the lung tree; the other classes share the rest.
      size: side of the images, pixels, at least `MIN_SIZE`.
      seed: not negative.

    Returns:
      `root`.

    Raises:
      UsageError: if a number or the name of a split makes no sense.
      DataError: if `root` holds anything else, which is left as it is, or cannot be
        written.
    """
    if size < MIN_SIZE or seed < 0 or min(samples.values(), default=0) < 0:
        raise UsageError(
            f"phantoms: size {size} (at least {MIN_SIZE}), seed {seed} and images"
            f" {dict(samples)} (none negative)"
        )
    if unknown := set(samples) - set(covidqu.SPLITS):
        raise UsageError(f"phantoms: no split {sorted(unknown)}; {covidqu.SPLITS}")
    marker = {
        "phantom": True,
        "images": {split: int(samples.get(split, 0)) for split in covidqu.SPLITS},
        "size": size,
        "seed": seed,
        "version": GENERATOR_VERSION,
    }
    root = Path(root)
    if os.path.lexists(root):
        _check_same(root, marker)
        return root
    # A sibling: only within one file system is a rename a single step.
    draft = root.absolute().with_name(f".{root.name}.{secrets.token_hex(4)}.tmp")
    try:
        draft.mkdir(parents=True)
        for task in covidqu.TASKS:
            _write_tree(draft, task, marker)
        text = json.dumps(marker, indent=2) + "\n"
        (draft / covidqu.PHANTOM_MARKER).write_text(text, encoding="utf-8")
        os.rename(draft, root)
        sync_folder(draft.parent)
    except OSError as error:
        if not os.path.lexists(root):
            raise DataError(f"{root}: cannot be written ({error})") from error
        _check_same(root, marker)  # another process was faster
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root


def _check_same(root: Path, marker: Mapping[str, Any]) -> None:
    """Raises DataError unless the folder holds the set that the marker describes."""
    way_on = "name another folder, or remove this one"
    path = root / covidqu.PHANTOM_MARKER
    try:
        found = read_json(path)
        other = [key for key in marker if found.get(key) != marker[key]]
    except (OSError, ValueError, AttributeError):
        raise DataError(
            f"{root}: exists and is no set of phantoms (no readable"
            f" {covidqu.PHANTOM_MARKER}); {way_on}"
        ) from None
    if other:
        differs = ", ".join(f"{k} {found.get(k)} not {marker[k]}" for k in other)
        raise DataError(f"{root}: holds other phantoms ({differs}); {way_on}")


def _write_tree(root: Path, task: str, marker: Mapping[str, Any]) -> None:
    name, task_id = covidqu.TREES[task], covidqu.TASKS.index(task)
    for split_id, split in enumerate(covidqu.SPLITS):
        for label_id, label in enumerate(covidqu.CLASSES):
            folder = root / name / name / split / label
            kinds = (covidqu.IMAGES, *covidqu.MASK_FOLDERS[task])
            for kind in kinds:
                (folder / kind).mkdir(parents=True)
            for k in range(_count(marker["images"][split], label, TURNS[task])):
                key = (marker["seed"], task_id, split_id, label_id, k)
                sample = make_phantom(label, np.random.default_rng(key), marker["size"])
                # The splits take turns, so that a name stands once in a tree and
                # stays when the set grows.
                number = k * len(covidqu.SPLITS) + split_id + 1
                masks = (255 * sample["lung"], 255 * sample["infection"])
                for kind, picture in zip(
                    kinds, (sample["image"], *masks), strict=False
                ):
                    path = folder / kind / f"{STEMS[label]}_{number}.png"
                    Image.fromarray(picture).save(path, compress_level=1)


def _count(total: int, label: str, turns: Sequence[str]) -> int:
    """Number of images of one class among the first `total`, the classes in turn."""
    places = [at for at, turn in enumerate(turns) if turn == label]
    return sum(len(range(at, total, len(turns))) for at in places)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes a set from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m covjax.data.phantom",
        description="Writes synthetic chest X-rays in the layout of COVID-QU-Ex.",
    )
    parser.add_argument("root", type=Path, help="folder to write")
    for split, number in zip(covidqu.SPLITS, (240, 48, 96), strict=True):
        text = f"images of {split} in each tree (%(default)s)"
        parser.add_argument(f"--{split.lower()}", type=int, default=number, help=text)
    parser.add_argument("--size", type=int, default=256, help="side, px (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    flags = parser.parse_args(arguments)
    samples = {split: getattr(flags, split.lower()) for split in covidqu.SPLITS}
    try:
        write_phantoms(flags.root, samples=samples, size=flags.size, seed=flags.seed)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    numbers = ", ".join(f"{split} {number}" for split, number in samples.items())
    print(f"{flags.root}: phantoms of {flags.size} px, images a tree: {numbers}")
    return 0
