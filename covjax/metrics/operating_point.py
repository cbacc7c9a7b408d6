"""The operating point: what turns probabilities into a mask, chosen on Val.

    probability -> blank, if the image's presence is below `presence`
                -> foreground, where it is above `threshold`
                -> without areas of fewer than `min_area` pixels

The search is exhaustive. Of all thresholds .05, .10, …, .95, all smallest areas 0 and
1/4096, 1/2048, …, 1/32 of the picture, and all presence thresholds that tell two images
of Val apart, it takes the three together that give the highest mean Dice of family
`all`. Among equals it takes the lowest presence threshold, then the smallest area, then
the threshold nearest .5, the lower of two.
"""

import concurrent.futures
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from covjax.data.mask_ops import areas, drop_small
from covjax.errors import UsageError
from covjax.metrics.detection import presence_scores
from covjax.metrics.levels import above
from covjax.runtime.cores import count_cores
from covjax.runtime.files import write_whole
from covjax.runtime.strict_json import read_json

FILE = "operating_points.json"
OBJECTIVE = "all dice"
# Nearest to .5 first, so that the first of equals is the one to take.
THRESHOLDS = tuple(k / 20 for k in sorted(range(1, 20), key=lambda k: (abs(k - 10), k)))


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """What turns probabilities into masks.

    Attributes:
      threshold: a pixel is foreground if its probability is above it.
      min_area: connected areas of fewer pixels are dropped.
      presence: an image whose presence is below it stays blank.
    """

    threshold: float
    min_area: int = 0
    presence: float = 0.0

    def masks(
        self, levels: np.ndarray, presence: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns the masks of some images, uint8 [n, H, W] in {0, 1}.

        Args:
          levels: probabilities times 255, uint8 [n, H, W].
          presence: of a presence head, [n]; None: the scores of these levels.
        """
        if presence is None:
            presence = presence_scores(levels)
        found = above(levels, self.threshold)
        found[presence < self.presence] = 0
        if self.min_area > 1:
            for mask in found:
                mask[:] = drop_small(mask, self.min_area)
        return found


def areas_to_try(pixels: int) -> list[int]:
    """Returns the smallest areas that the search tries, pixels, rising.

    Args:
      pixels: of a picture.
    """
    return sorted({0, *(pixels >> k for k in range(5, 13))})


def calibrate(
    levels: np.ndarray, truths: np.ndarray, presence: np.ndarray | None = None
) -> tuple[OperatingPoint, float]:
    """Searches the operating point with the highest mean Dice of family `all`.

    Args:
      levels: probabilities times 255 of the images of Val, uint8 [n, H, W], n > 0.
      truths: their masks, uint8 [n, H, W] in {0, 1}.
      presence: of a presence head, [n]; None: the scores of these levels.

    Returns:
      The point, and the mean Dice that it reaches on these images.
    """
    if presence is None:
        presence = presence_scores(levels)
    sizes = areas_to_try(levels[0].size)
    with concurrent.futures.ThreadPoolExecutor(count_cores()) as threads:
        kept = np.stack(list(threads.map(_image_dice, levels, truths)))
    blank = (truths.any(axis=(1, 2)) == 0).astype(np.float64)  # Dice of no output

    # Images in the order of their score, so that a gate keeps the first k of them.
    order = np.argsort(-presence, kind="stable")
    falling = presence[order]
    gain = np.cumsum(kept[order] - blank[order][:, None, None], axis=0)
    gain = np.concatenate([np.zeros_like(gain[:1]), gain])  # [k, areas, thresholds]
    # No gate can part images of one score; a gate of 0 keeps them all.
    parts = np.append(falling[:-1] > falling[1:], True)
    gain = np.where(np.insert(parts, 0, True)[:, None, None], gain, -np.inf)
    # Most images kept first, then the smallest area, then the threshold nearest .5.
    # Rounded: sums in another order differ in their last bits, and are equals.
    best = np.argmax(np.round(gain[::-1], 9))
    k, area, threshold = np.unravel_index(best, gain.shape)
    k = len(levels) - int(k)
    point = OperatingPoint(THRESHOLDS[threshold], sizes[area], _gate(falling, k))
    return point, float((blank.sum() + gain[k, area, threshold]) / len(levels))


def _gate(falling: np.ndarray, k: int) -> float:
    """Returns a threshold that keeps the first k of some falling scores."""
    if k == len(falling):
        return 0.0
    if k == 0:
        return float(falling[0]) + 1e-6
    return float(falling[k - 1] + falling[k]) / 2


def _image_dice(levels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns the Dice of one image at every point, [areas, thresholds]."""
    sizes = np.array(areas_to_try(levels.size))
    true = np.flatnonzero(truth)
    dice = np.empty((len(sizes), len(THRESHOLDS)))
    for column, threshold in enumerate(THRESHOLDS):
        labels, pixels = areas(above(levels, threshold))
        hits = np.bincount(labels.ravel()[true], minlength=len(pixels) + 1)[1:]
        kept = pixels[None, :] >= sizes[:, None]  # [areas to try, areas found]
        both = (kept @ pixels) + len(true)
        dice[:, column] = np.where(both, 2 * (kept @ hits) / np.maximum(both, 1), 1.0)
    return dice


def read_points(workdir: Path) -> dict[str, dict[str, Any]]:
    """Reads a run's operating points: region of interest → point and its origin.

    Raises:
      UsageError: if the file is there and cannot be read.
    """
    path = workdir / FILE
    try:
        points = read_json(path)
        for told in points.values():
            as_point(told)
        return points
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"{path}: not a run's operating points ({repr(error)[:200]}); without the"
            " file they are chosen anew"
        ) from None


def write_points(workdir: Path, points: dict[str, dict[str, Any]]) -> None:
    """Writes what `read_points` reads."""
    write_whole(workdir / FILE, json.dumps(points, indent=2) + "\n")


def as_point(told: dict[str, Any]) -> OperatingPoint:
    """Returns the point of an entry of the file.

    Raises:
      KeyError, TypeError, ValueError: if it holds none.
    """
    threshold, presence, area = (told[k] for k in ("threshold", "presence", "min_area"))
    numbers = all(type(value) in (int, float) for value in (threshold, presence))
    if not numbers or type(area) is not int:
        raise TypeError(f"not numbers: {threshold!r}, {presence!r}, {area!r}")
    # A gate that no image of Val passed is just above the highest presence, 1.
    if not (0 < threshold < 1 and 0 <= area < 2**31 and 0 <= presence < 2):
        raise ValueError(f"out of range: {threshold}, {presence}, {area}")
    return OperatingPoint(float(threshold), area, float(presence))
