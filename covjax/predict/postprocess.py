"""One image at the networks: what they are shown and say, the masks, and whose."""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from covjax.data.covidqu import resize_image
from covjax.data.mask_ops import as_lungs, dilate
from covjax.metrics.levels import above
from covjax.metrics.operating_point import OperatingPoint


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the networks made of one image, at their own sizes.

    Attributes:
      lung_levels: probabilities times 255, uint8 [S, S].
      lungs: the mask of them, uint8 [S, S] in {0, 1}.
      levels: of infection, uint8 [T, T]; None without a second stage.
      presence: how sure it is that there is an infection at all, in [0, 1].
    """

    lung_levels: np.ndarray
    lungs: np.ndarray
    levels: np.ndarray | None = None
    presence: float | None = None


@dataclasses.dataclass(frozen=True)
class Origin:
    """The networks that masks come from.

    Attributes:
      fingerprints: of their checkpoints, by what each finds: "lungs", "infection".
      phantom: whether one of them was trained on synthetic images.
    """

    fingerprints: dict[str, str]
    phantom: bool


@dataclasses.dataclass(frozen=True)
class Points:
    """The operating points of both networks: what they saw, as masks.

    Attributes:
      lung: of the first.
      infection: of the second; None without one.
    """

    lung: OperatingPoint
    infection: OperatingPoint | None = None

    def lungs_of(self, seen: Seen, shape: tuple[int, ...]) -> np.ndarray:
        """Returns the lungs at the size of an image, uint8 [H, W] in {0, 1}."""
        if seen.lungs.shape == shape:
            return seen.lungs
        found = enlarge(seen.lung_levels, seen.lungs, shape, self.lung.threshold)
        return as_lungs(found)

    def infection_of(
        self,
        seen: Seen,
        shape: tuple[int, ...],
        point: OperatingPoint | None = None,
    ) -> np.ndarray:
        """Returns the infection at the size of an image, uint8 [H, W] in {0, 1}.

        Args:
          seen: of two networks.
          shape: (H, W) of the image.
          point: another operating point than the run's.

        Raises:
          ValueError: if there was no second network.
        """
        point = point or self.infection
        if point is None or seen.levels is None:
            raise ValueError("a network of lungs alone finds no infection")
        kept = point.masks(seen.levels[None], np.array([seen.presence]))[0]
        return enlarge(seen.levels, kept, shape, point.threshold)


def squeeze(radiograph: np.ndarray, sides: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Returns an image as the square of each network.

    Args:
      radiograph: uint8 [H, W] of any size.
      sides: of their squares, pixels.

    Returns:
      uint8 [S, S] for each side.
    """
    squares = {side: resize_image(radiograph, side) for side in set(sides)}
    return tuple(squares[side] for side in sides)


def enlarge(
    levels: np.ndarray, kept: np.ndarray, shape: tuple[int, ...], threshold: float
) -> np.ndarray:
    """Returns a mask at the size of an image, with smooth outlines.

    Probabilities are interpolated, then cut; what the operating point had dropped
    (small areas, images of low presence) stays dropped.

    Args:
      levels: probabilities times 255, uint8 [S, S].
      kept: the mask that the operating point made of them, uint8 [S, S] in {0, 1}.
      shape: (H, W) of the image.
      threshold: of the operating point.

    Returns:
      uint8 [H, W] in {0, 1}; `kept` itself at its own size.
    """
    if kept.shape == shape:
        return kept
    height, width = shape
    if not kept.any():
        return np.zeros((height, width), np.uint8)
    smooth, near = (
        cv2.resize(array, (width, height), interpolation=how)
        for array, how in (
            (levels, cv2.INTER_LINEAR),
            (dilate(kept, 1), cv2.INTER_NEAREST_EXACT),  # interpolation moves edges
        )
    )
    return above(smooth, threshold) & near
