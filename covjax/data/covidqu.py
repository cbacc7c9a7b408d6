"""COVID-QU-Ex as published: where the images lie, and how one is read.

    <root>/Lung Segmentation Data/[Lung Segmentation Data/]
        {Train,Val,Test}/{COVID-19,Non-COVID,Normal}/{images,lung masks}/*.png
    <root>/Infection Segmentation Data/[Infection Segmentation Data/]
        the same, and {infection masks} beside them

Some copies hold the folder once, some twice, and download tools put `versions/7/`
above it; all of them are understood. Image and masks are paired by file name.
"""

import dataclasses
import os
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image

from covjax.data.image_io import decode, read_grey, shown
from covjax.errors import DataError

SPLITS = ("Train", "Val", "Test")
CLASSES = ("COVID-19", "Non-COVID", "Normal")
POSITIVE = "COVID-19"  # the one class whose images show an infection to segment
TASKS = ("lung", "infection")
TREES = {"lung": "Lung Segmentation Data", "infection": "Infection Segmentation Data"}
IMAGES, LUNG_MASKS, INFECTION_MASKS = "images", "lung masks", "infection masks"
# Folders of masks that each tree holds beside `images`.
MASK_FOLDERS = {"lung": (LUNG_MASKS,), "infection": (LUNG_MASKS, INFECTION_MASKS)}
SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
# Kinds of characters (control, half of a pair, ends of lines) that a table cannot hold.
_NOT_IN_A_NAME = {"Cc", "Cs", "Zl", "Zp"}
# A phantom set carries this file in its root, so that no figure drawn from it can
# pass for a patient's.
PHANTOM_MARKER = "PHANTOM.json"
# So does a set that was laid out by somebody's table: it is not the published one.
TABLE_MARKER = "FROM_TABLE.json"


@dataclasses.dataclass(frozen=True)
class Sample:
    """One chest X-ray and the paths of its masks.

    Attributes:
      name: file name, "covid_1.png"; unique within a split and class.
      label: class, one of `CLASSES`.
      split: one of `SPLITS`.
      image: path of the image.
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

    Raises:
      DataError: if it lies in a home that there is not.
    """
    named = root or os.environ.get("COVJAX_DATA", "")
    try:
        return Path(named).expanduser() if named else project / "data" / "COVID-QU-Ex"
    except RuntimeError:
        raise DataError(f"{named}: there is no such home") from None


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
        (p for p in root.glob("versions/*") if p.name.isdecimal()),
        key=lambda p: int(p.name),
        reverse=True,  # the newest first
    )
    for base in (root, *versions):
        for folder in (base / name / name, base / name):
            if any(os.path.isdir(folder / split) for split in SPLITS):
                return folder
    raise DataError(
        f"no '{name}/{{Train,Val,Test}}' under {shown(root)} (nor nested once"
        " more, nor under versions/N/)"
    )


def is_phantom(root: Path) -> bool:
    """Tells whether the set is made of synthetic images."""
    return os.path.isfile(root / PHANTOM_MARKER)


def is_from_table(root: Path) -> bool:
    """Tells whether the set is another than COVID-QU-Ex, laid out like it."""
    return os.path.isfile(root / TABLE_MARKER)


def fits_a_line(name: str) -> bool:
    """Tells whether a line of a table can hold a name: UTF-8, no control characters."""
    return name.isprintable() or not any(
        unicodedata.category(c) in _NOT_IN_A_NAME for c in name
    )


def list_samples(root: Path, task: str, split: str) -> list[Sample]:
    """Lists one split of one tree, in an order that is the same on every machine.

    Args:
      root: the folder of the data.
      task: "lung" or "infection": which tree.
      split: "Train", "Val" or "Test".

    Returns:
      Images sorted by class, then by name. A mask that is missing has the path at which
      it should lie: whoever reads it is told so.

    Raises:
      DataError: if the split is missing or empty, a folder cannot be read, two files of
        it differ in their endings alone, or an image's name cannot stand in a table.
    """
    folder = find_tree(root, task) / split
    samples = []
    for label in CLASSES:
        masks = {kind: _by_stem(folder / label / kind) for kind in MASK_FOLDERS[task]}
        for stem, image in sorted(_by_stem(folder / label / IMAGES).items()):
            if not fits_a_line(image.name):
                raise DataError(
                    f"{shown(image)}: a name that no table can hold (not UTF-8, or with"
                    " control characters): rename it, and its masks"
                )
            paths = {
                kind: of.get(stem) or folder / label / kind / image.name
                for kind, of in masks.items()
            }
            lung, infection = paths[LUNG_MASKS], paths.get(INFECTION_MASKS)
            samples.append(Sample(image.name, label, split, image, lung, infection))
    if not samples:
        raise DataError(
            f"no images in {shown(folder)}/{{{','.join(CLASSES)}}}/{IMAGES}"
        )
    return samples


def _by_stem(folder: Path) -> dict[str, Path]:
    """Maps the names of a folder's pictures, without their endings, to their paths."""
    try:
        names = sorted(os.listdir(folder))  # paths take ten times as long to sort
    except FileNotFoundError:
        for path in (folder, folder.parent):  # an empty class is one thing
            if path.is_symlink() and not path.exists():
                raise DataError(f"{shown(path)}: a link that leads nowhere") from None
        return {}
    except OSError as error:
        raise DataError(f"{shown(folder)}: {error.strerror}") from None
    found: dict[str, Path] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in SUFFIXES and not name.startswith("."):
            if stem in found:
                raise DataError(
                    f"{shown(folder / name)}: same name as {shown(found[stem].name)}"
                )
            found[stem] = folder / name
    return found


def binarize(mask: np.ndarray) -> np.ndarray:
    """Returns a mask as {0, 1}, uint8 [H, W].

    Of a mask that holds 0 and one other value, whichever (255, 1, 65535), that value
    is the foreground; one of more values (a JPEG, say) is cut at mid-grey.

    Args:
      mask: as `decode` returns it, uint8 or uint16 [H, W].
    """
    if _is_of_two(mask):
        return (mask != 0).view(np.uint8)
    return (mask > np.iinfo(mask.dtype).max // 2).astype(np.uint8)


def _is_of_two(mask: np.ndarray) -> bool:
    """Tells whether a mask holds 0 and at most one other value."""
    return np.count_nonzero(mask) == np.count_nonzero(mask == mask.max(initial=1))


def is_inverted(mask: np.ndarray) -> bool:
    """Tells whether black and white of a mask seem to be exchanged.

    They do if all four corners and two thirds of the border are foreground. Of the
    17,478 published masks, none holds more than one corner or 23.3 % of the border, and
    their negatives hold 76.7 % of it or more.

    Args:
      mask: uint8 [H, W] in {0, 1}.
    """
    border = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    corners = mask[[0, 0, -1, -1], [0, -1, 0, -1]]
    return bool(corners.all() and border.mean() > 2 / 3)


def read_mask(path: Path) -> np.ndarray:
    """Reads a mask that others made, as {0, 1}, uint8 [H, W].

    Between black and white there may be the grey of a JPEG or of smoothed edges, which
    is cut in the middle, but no third area: which side it would be on is a guess.

    Raises:
      DataError: naming the file, if it cannot be read, or its foreground not be told.
    """
    stored = decode(path)
    mask, fault = binarize(stored), ""
    if stored.any() and not mask.any():
        fault = f"levels up to {stored.max()} alone, where a mask is black and white"
    elif not _is_of_two(stored) and (grey := _grey_area(stored)) > 0.01:
        fault = f"{grey:.0%} of it grey, where a mask is black and white"
    elif is_inverted(mask):
        fault = "corners and border are foreground: black and white are exchanged"
    if fault:
        raise DataError(f"{shown(path)}: {fault}")
    return mask


def _grey_area(stored: np.ndarray) -> float:
    """Returns the share of pixels that lie in an area of one grey, far from its edge.

    Grey is what is not within an eighth of the scale of black or white.
    """
    full = np.iinfo(stored.dtype).max
    inner = stored[1:-1, 1:-1]
    grey = (inner > full // 8) & (inner < full - full // 8)
    for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        grey &= inner == np.roll(stored, (down, right), (0, 1))[1:-1, 1:-1]
    return float(grey.mean())


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


def read_sample(sample: Sample, size: int) -> dict[str, np.ndarray]:
    """Reads an image and its masks, square.

    Args:
      sample: what to read.
      size: side of the result, pixels.

    Returns:
      "image" uint8 [size, size] in 0 to 255, and what `read_masks` returns.

    Raises:
      DataError: if a file cannot be read, or a mask is not of the image's size.
    """
    image = read_grey(sample.image)
    masks = read_masks(sample, size, image_shape=image.shape)
    return {"image": resize_image(image, size)} | masks


def read_masks(
    sample: Sample, size: int, image_shape: tuple[int, ...] | None = None
) -> dict[str, np.ndarray]:
    """Reads the masks of an image, square.

    Args:
      sample: whose masks.
      size: side of the result, pixels.
      image_shape: that a published mask has to have; None: any.

    Returns:
      "lung" uint8 [size, size] in {0, 1}; in the infection tree also "infection", and
      where a model looked for the lungs, "found_lung", the same.

    Raises:
      DataError: if a file cannot be read, or a mask is not of the image's size.
    """
    masks = {}
    for kind, path in (
        ("lung", sample.lung_mask),
        ("infection", sample.infection_mask),
    ):
        if path is None:
            continue
        mask = read_mask(path)
        if image_shape not in (None, mask.shape):
            raise DataError(
                f"{shown(path)}: mask of {mask.shape[1]}x{mask.shape[0]} pixels for an"
                f" image of {image_shape[1]}x{image_shape[0]}"
            )
        masks[kind] = resize_mask(mask, size)
    if sample.found_lung is not None:
        masks["found_lung"] = resize_mask(binarize(decode(sample.found_lung)), size)
    return masks
