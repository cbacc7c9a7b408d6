"""COVID-QU-Ex as published: where the films lie, and how one is read.

    <root>/Lung Segmentation Data/[Lung Segmentation Data/]
        {Train,Val,Test}/{COVID-19,Non-COVID,Normal}/{images,lung masks}/*.png
    <root>/Infection Segmentation Data/[Infection Segmentation Data/]
        the same, and {infection masks} beside them

Some copies hold the folder once, some twice, and download tools put `versions/7/`
above it; all of them are understood. Film and masks are paired by file name.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np
from PIL import Image

from covjax.data.png import decode_grey_png
from covjax.errors import DataError

SPLITS = ("Train", "Val", "Test")
CLASSES = ("COVID-19", "Non-COVID", "Normal")
POSITIVE = "COVID-19"  # the one class whose films show an infection to segment
TASKS = ("lung", "infection")
TREES = {"lung": "Lung Segmentation Data", "infection": "Infection Segmentation Data"}
IMAGES, LUNG_MASKS, INFECTION_MASKS = "images", "lung masks", "infection masks"
# Folders of masks that each tree holds beside `images`.
MASK_FOLDERS = {"lung": (LUNG_MASKS,), "infection": (LUNG_MASKS, INFECTION_MASKS)}
SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
# A phantom set carries this file in its root, so that no figure drawn from it can
# pass for a patient's.
PHANTOM_MARKER = "PHANTOM.json"


@dataclasses.dataclass(frozen=True)
class Film:
    """One chest X-ray and the paths of its masks.

    Attributes:
      name: file name, "covid_1.png"; unique within a split and class.
      label: class, one of `CLASSES`.
      split: one of `SPLITS`.
      image: path of the film.
      lung_mask: path of its lung mask.
      infection_mask: path of its infection mask; None in the lung tree.
      found_lung: path of the lungs that a model found; None unless one was asked.
    """

    name: str
    label: str
    split: str
    image: Path
    lung_mask: Path
    infection_mask: Path | None
    found_lung: Path | None = None


def data_root(root: str, project: Path) -> Path:
    """Returns the folder of the data: `root`, $COVJAX_DATA, or the project's own.

    Args:
      root: `config.data.root`; empty means that the environment decides.
      project: the project's folder, which holds `data/COVID-QU-Ex` by default.
    """
    named = root or os.environ.get("COVJAX_DATA", "")
    return Path(named).expanduser() if named else project / "data" / "COVID-QU-Ex"


def find_tree(root: Path, task: str) -> Path:
    """Returns the folder that holds Train, Val and Test of one of the two trees.

    Args:
      root: the folder of the data, or one that `versions/N/` stands in.
      task: "lung" or "infection": which tree.

    Raises:
      DataError: if there is no such tree, with the places that were looked at.
    """
    name = TREES[task]
    versions = sorted(
        (p for p in root.glob("versions/*") if p.name.isdigit()),
        key=lambda p: int(p.name),
        reverse=True,  # the newest first
    )
    for base in (root, *versions):
        for folder in (base / name / name, base / name):
            if any((folder / split).is_dir() for split in SPLITS):
                return folder
    raise DataError(
        f"no '{name}/{{Train,Val,Test}}' under {root} (nor nested once more, nor under"
        " versions/N/)"
    )


def is_phantom(root: Path) -> bool:
    """Tells whether the set is made of synthetic films."""
    return (root / PHANTOM_MARKER).is_file()


def list_films(root: Path, task: str, split: str) -> list[Film]:
    """Lists one split of one tree, in an order that is the same on every machine.

    Args:
      root: the folder of the data.
      task: "lung" or "infection": which tree.
      split: "Train", "Val" or "Test".

    Returns:
      Films sorted by class, then by name.

    Raises:
      DataError: if the split is missing or empty, or a film lacks a mask.
    """
    folder = find_tree(root, task) / split
    films = []
    for label in CLASSES:
        masks = {kind: _by_stem(folder / label / kind) for kind in MASK_FOLDERS[task]}
        for stem, image in sorted(_by_stem(folder / label / IMAGES).items()):
            for kind, found in masks.items():
                if stem not in found:
                    raise DataError(f"{image}: no mask of that name in '{kind}'")
            infection = masks[INFECTION_MASKS][stem] if task == "infection" else None
            films.append(
                Film(
                    image.name, label, split, image, masks[LUNG_MASKS][stem], infection
                )
            )
    if not films:
        raise DataError(f"no films in {folder}/{{{','.join(CLASSES)}}}/{IMAGES}")
    return films


def _by_stem(folder: Path) -> dict[str, Path]:
    """Maps the names of a folder's pictures, without their endings, to their paths."""
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for name in sorted(os.listdir(folder)):  # paths take ten times as long to sort
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in SUFFIXES and not name.startswith("."):
            if stem in found:
                raise DataError(f"{folder / name}: same name as {found[stem].name}")
            found[stem] = folder / name
    return found


def read_grey(path: Path) -> np.ndarray:
    """Reads a picture of 8 or 16 bits, grey or in colour, as 8-bit grey.

    Colour is weighed by ITU-R 601-2 luma; 16 bits are scaled by 255 / 65535.

    Args:
      path: any picture that Pillow reads.

    Returns:
      uint8 [H, W].

    Raises:
      DataError: if the file is missing, truncated or no picture.
    """
    grey = decode(path)
    return grey if grey.dtype == np.uint8 else np.rint(grey / 257).astype(np.uint8)


def binarize(mask: np.ndarray) -> np.ndarray:
    """Returns a mask as {0, 1}, uint8 [H, W].

    Of a mask that holds 0 and one other value, whichever (255, 1, 65535), that value
    is the foreground; one of more values (a JPEG, say) is cut at mid-grey.

    Args:
      mask: as `decode` returns it, uint8 or uint16 [H, W].
    """
    foreground = mask != 0
    if np.count_nonzero(foreground) == np.count_nonzero(mask == mask.max(initial=1)):
        return foreground.view(np.uint8)
    return (mask > np.iinfo(mask.dtype).max // 2).astype(np.uint8)


def decode(path: Path) -> np.ndarray:
    """Returns a picture as grey of its own depth, uint8 or uint16 [H, W].

    Raises:
      DataError: if the file is missing, truncated or no picture.
    """
    try:
        grey = decode_grey_png(path.read_bytes())
        if grey is not None:
            return grey
        with Image.open(path) as picture:
            picture.load()  # the whole file: a truncated one fails here
            if picture.mode.startswith(("I", "F")):  # 16 bits; Pillow clips, not scales
                wide = np.asarray(picture, np.float64)
                if picture.mode == "F" or wide.min() < 0 or wide.max() > 65535:
                    raise DataError(f"{path}: neither 8 nor 16 bits a pixel")
                return wide.astype(np.uint16)
            return np.asarray(picture.convert("L"))
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DataError(f"{path}: cannot be read as a picture ({error})") from None


def read_shape(path: Path) -> tuple[int, int]:
    """Returns height and width of a picture, from its header alone.

    Raises:
      DataError: if the file is missing or no picture.
    """
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DataError(f"{path}: cannot be read as a picture ({error})") from None


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes uint8 [H, W] to [size, size], linearly, antialiased when it shrinks."""
    return _resize(image, size, Image.Resampling.BILINEAR)


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Resizes {0, 1} [H, W] to [size, size] by nearest neighbour: no new values."""
    return _resize(mask, size, Image.Resampling.NEAREST)


def _resize(array: np.ndarray, size: int, how: Image.Resampling) -> np.ndarray:
    if array.shape == (size, size):
        return array
    return np.asarray(Image.fromarray(array).resize((size, size), how))


def read_film(film: Film, size: int) -> dict[str, np.ndarray]:
    """Reads a film and its masks, square.

    Args:
      film: what to read.
      size: side of the result, pixels.

    Returns:
      "image" uint8 [size, size] in 0 to 255, and what `read_masks` returns.

    Raises:
      DataError: if a file cannot be read, or a mask is not of the film's size.
    """
    image = read_grey(film.image)
    masks = read_masks(film, size, film_shape=image.shape)
    return {"image": resize_image(image, size)} | masks


def read_masks(
    film: Film, size: int, film_shape: tuple[int, ...] | None = None
) -> dict[str, np.ndarray]:
    """Reads the masks of a film, square.

    Args:
      film: whose masks.
      size: side of the result, pixels.
      film_shape: that a published mask has to have; None: any.

    Returns:
      "lung" uint8 [size, size] in {0, 1}; in the infection tree also "infection", and
      where a model looked for the lungs, "found_lung", the same.

    Raises:
      DataError: if a file cannot be read, or a mask is not of the film's size.
    """
    masks = {}
    for kind, path in (("lung", film.lung_mask), ("infection", film.infection_mask)):
        if path is None:
            continue
        mask = binarize(decode(path))
        if film_shape not in (None, mask.shape):
            raise DataError(
                f"{path}: mask of {mask.shape[1]}x{mask.shape[0]} pixels for a film of"
                f" {film_shape[1]}x{film_shape[0]}"
            )
        masks[kind] = resize_mask(mask, size)
    if film.found_lung is not None:
        masks["found_lung"] = resize_mask(binarize(decode(film.found_lung)), size)
    return masks
