"""Checks whether an image is a frontal chest X-ray and its lungs were found."""

import numpy as np

from covjax.data.mask_ops import areas
from covjax.predict.laterality import split_sides

# Published lungs are all of frontal chest X-rays. They take 4.5 to 60 % of the image,
# in two areas; of 1,398 images in all but one the smaller has .3 of the larger or more.
_LEAST, _MOST = 0.04, 0.62
_SMALLER = 0.25
_CONTRAST = 40  # levels of 255 between the 1st and the 99th percentile
_ELONGATED = 1.8
# Of 3,728 published images of Train all but 6 are within these: how far apart the lower
# ends of the two lungs point, and how far both are turned, in degrees; by how much of
# the image's range they are darker than what lies between (experiments/doubts.py).
_APART = (10, 90)
_TURNED = 16
_DARKER = 0.03
_MANY = 64  # pixels of a side at least


def doubt(radiograph: np.ndarray, lungs: np.ndarray) -> list[str]:
    """Says in a few words each what speaks against an image, or its lungs.

    Args:
      radiograph: uint8 [H, W].
      lungs: that were found, uint8 [H, W] in {0, 1}.
    """
    told = []
    long, short = max(radiograph.shape), min(radiograph.shape)
    if long > _ELONGATED * short or short < _MANY:
        told.append(f"{radiograph.shape[1]} x {radiograph.shape[0]} pixels")
    step = 1 + short // 256
    small = radiograph[::step, ::step]
    dark, bright = np.percentile(small, [1, 99])
    if bright - dark < _CONTRAST:
        told.append("little contrast")
    share = lungs.mean()
    sizes = np.sort(areas(lungs)[1])[::-1]
    if not len(sizes):
        told.append("no lungs found")
    elif not _LEAST <= share <= _MOST:
        told.append(f"lungs of {share:.0%} of the image")
    elif len(sizes) < 2:
        told.append("one area in place of two lungs")
    elif sizes[1] < _SMALLER * sizes[0]:
        told.append(f"one lung of {sizes[1] / sizes[0]:.0%} of the other")
    else:
        told += _doubt_pair(small, lungs[::step, ::step], float(bright - dark))
    if told:
        told[-1] += ": not a frontal chest X-ray?"
    return told


def _doubt_pair(radiograph: np.ndarray, lungs: np.ndarray, levels: float) -> list[str]:
    """Says what speaks against two lungs: how they lie, and how dark they are."""
    told = []
    leans = [_lean(lung) for lung in split_sides(lungs) if lung.any()]
    if len(leans) == 2:
        left, right = leans
        if right - left < _APART[0]:
            told.append("lungs no farther apart below than above")
        elif right - left > _APART[1]:
            told.append("lungs that lie across")
        elif abs(left + right) / 2 > _TURNED:
            told.append(f"lungs turned by {abs(left + right) / 2:.0f} degrees")
    rows, columns = (np.flatnonzero(lungs.any(axis=axis)) for axis in (1, 0))
    around = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    radiograph, inside = radiograph[around], lungs[around] > 0
    if not inside.all():
        darker = float(radiograph[~inside].mean()) - float(radiograph[inside].mean())
        if darker < _DARKER * levels:
            told.append("lungs no darker than what lies between")
    return told


def _lean(lung: np.ndarray) -> float:
    """Returns by how much a lung's long axis leans to the right on its way down.

    In degrees, of the image as a square, as the published ones are.
    """
    y, x = (at / side for at, side in zip(np.nonzero(lung), lung.shape, strict=True))
    y, x = y - y.mean(), x - x.mean()
    angle = np.arctan2(2 * (x * y).mean(), (y * y).mean() - (x * x).mean()) / 2
    return float(np.degrees(angle))
