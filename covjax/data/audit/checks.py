"""Checks the images and masks of a tree one by one; faults are told, not raised."""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from covjax.data import covidqu
from covjax.data.audit import near_duplicates
from covjax.data.audit.leakage import Place
from covjax.data.image_io import decode, read_grey, shown
from covjax.errors import DataError

# What can be wrong with a file, and how the report calls it.
KINDS = {
    "unreadable": "files that cannot be read",
    "same_name": "files of one name in one folder",
    "missing_mask": "images without a mask",
    "surplus_mask": "masks without an image",
    "size_differs": "masks of another size than their image",
    "not_binary": "masks with values besides 0 and 255",
    "infection_outside_lungs": "infection masks that leave the lungs",
    "covid_without_infection": "COVID-19 images with an empty infection mask",
    "infection_in_others": "infection in Normal or Non-COVID images",
}
# A kind and what is known: "path", a Path, and what else its kind has to say.
Finding = tuple[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Entry:
    """An image and those of its masks that are there.

    Attributes:
      place: tree, split, class and name.
      image: path of the image.
      masks: paths by kind, "lung masks" and "infection masks".
    """

    place: Place
    image: Path
    masks: dict[str, Path]


@dataclasses.dataclass(frozen=True)
class Reading:
    """What one image and its masks gave.

    Attributes:
      findings: what is wrong with them.
      digest: hash of the image's grey pixels and shape; None if it cannot be read.
      thumbnail: the image, small, as `near_duplicates` compares it; None likewise.
    """

    findings: list[Finding]
    digest: bytes | None = None
    thumbnail: np.ndarray | None = None


def list_entries(folder: Path, task: str) -> tuple[list[Entry], list[Finding]]:
    """Lists a tree as it is; `covidqu.list_samples` stops at the first fault.

    Args:
      folder: what `covidqu.find_tree` returned.
      task: "lung" or "infection": which tree.

    Returns:
      The images by split, class and name, and what is missing or too much.
    """
    entries: list[Entry] = []
    found: list[Finding] = []
    for split, label in itertools.product(covidqu.SPLITS, covidqu.CLASSES):
        kinds = (covidqu.IMAGES, *covidqu.MASK_FOLDERS[task])
        by_kind = {}
        for kind in kinds:
            by_kind[kind], faults = _by_stem(folder / split / label / kind)
            found += faults
        images = by_kind.pop(covidqu.IMAGES)
        for stem, image in images.items():
            masks = {kind: of[stem] for kind, of in by_kind.items() if stem in of}
            entries.append(Entry(Place(task, split, label, image.name), image, masks))
            found += [
                ("missing_mask", {"path": image, "mask": kind})
                for kind in by_kind
                if kind not in masks
            ]
        found += [
            ("surplus_mask", {"path": path})
            for masks in by_kind.values()
            for stem, path in masks.items()
            if stem not in images
        ]
    return entries, found


def _by_stem(folder: Path) -> tuple[dict[str, Path], list[Finding]]:
    """Maps the names of pictures, without their endings, to paths, in order."""
    try:
        paths = sorted(folder.iterdir()) if folder.exists() else []
    except OSError as error:
        return {}, [("unreadable", {"path": folder, "reason": str(error.strerror)})]
    by_stem: dict[str, Path] = {}
    found: list[Finding] = []
    for path in paths:
        if path.suffix.lower() not in covidqu.SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in by_stem:
            other = by_stem[path.stem].name
            found.append(("same_name", {"path": path, "other": other}))
        else:
            by_stem[path.stem] = path
    return by_stem, found


def read_entry(entry: Entry) -> Reading:
    """Reads an image and its masks, each once.

    A file that cannot be read is a finding, and the others are checked without it.
    """
    found: list[Finding] = []

    def read(
        path: Path, reader: Callable[[Path], np.ndarray] = decode
    ) -> np.ndarray | None:
        try:
            return reader(path)
        except DataError as error:
            reason = str(error).removeprefix(f"{path}: ")
            found.append(("unreadable", {"path": path, "reason": reason}))
            return None

    image = read(entry.image, read_grey)
    masks = {}
    for kind, path in entry.masks.items():
        mask = read(path)
        if mask is None:
            continue
        found += _check_mask(path, mask, image)
        masks[kind] = covidqu.binarize(mask)
    found += _check_infection(entry, masks)
    if image is None:
        return Reading(found)
    digest = hashlib.blake2b(image.tobytes(), digest_size=16)
    digest.update(str(image.shape).encode())  # 2x8 and 4x4 pixels of black differ
    return Reading(found, digest.digest(), near_duplicates.make_thumbnail(image))


def _check_mask(
    path: Path, mask: np.ndarray, image: np.ndarray | None
) -> list[Finding]:
    found: list[Finding] = []
    if image is not None and mask.shape != image.shape:
        sizes = {"size": list(mask.shape[::-1]), "image": list(image.shape[::-1])}
        found.append(("size_differs", {"path": path, **sizes}))
    white = np.iinfo(mask.dtype).max
    grey = np.bincount(mask.ravel(), minlength=white + 1)
    grey[[0, white]] = 0
    if grey.any():
        values = np.flatnonzero(grey).tolist()
        what = {"path": path, "pixels": int(grey.sum()), "values": values}
        found.append(("not_binary", what))
    return found


def _check_infection(entry: Entry, masks: dict[str, np.ndarray]) -> list[Finding]:
    infection = masks.get(covidqu.INFECTION_MASKS)
    if infection is None:
        return []
    found: list[Finding] = []
    path = entry.masks[covidqu.INFECTION_MASKS]
    lungs = masks.get(covidqu.LUNG_MASKS)
    if lungs is not None and lungs.shape == infection.shape:
        outside = int(np.count_nonzero(infection > lungs))
        if outside:
            found.append(("infection_outside_lungs", {"path": path, "pixels": outside}))
    pixels = int(np.count_nonzero(infection))
    if entry.place.label == "COVID-19" and not pixels:
        found.append(("covid_without_infection", {"path": path}))
    if entry.place.label != "COVID-19" and pixels:
        found.append(("infection_in_others", {"path": path, "pixels": pixels}))
    return found


def check_image(sample: covidqu.Sample) -> tuple[tuple[int, ...], bool]:
    """Returns the shape of an image and its masks, and whether infection is marked.

    Raises:
      DataError: if one of them cannot be used; the message begins with the column.
    """
    shape = _read("image", read_grey, sample.image).shape
    infected = False
    for column, path in (
        ("lung_mask", sample.lung_mask),
        ("infection_mask", sample.infection_mask),
    ):
        if path is None:
            continue
        mask = _read(column, covidqu.read_mask, path)
        if mask.shape != shape:
            raise DataError(
                f"{column}: {shown(path)}: mask of {mask.shape[1]}x{mask.shape[0]}"
                f" pixels for an image of {shape[1]}x{shape[0]}"
            )
        infected = column == "infection_mask" and bool(mask.any())
    if infected and sample.label != covidqu.POSITIVE:
        raise DataError(
            f"infection_mask: {shown(sample.infection_mask or '')}: infection in a"
            f" {sample.label} image, where {covidqu.POSITIVE} alone may have any"
        )
    return shape, infected


def _read(column: str, read: Callable[[Path], np.ndarray], path: Path) -> np.ndarray:
    try:
        return read(path)
    except DataError as error:
        raise DataError(f"{column}: {error}") from None
