"""How strong the augmentations are, on the host and on the device."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(eq=False)  # so that each has a hash, as jax wants it
class Strengths:
    """What the config says of the transforms; each happens on its own.

    The first three are the study's. A probability of 0 leaves a transform out.

    Attributes:
      flip_prob: probability of a horizontal flip.
      affine_prob: probability of shift, scale and rotation together.
      shift: largest shift along each axis, as a share of the side.
      scale: largest relative change of size, the same along both axes.
      rotate: largest rotation, degrees.
      brightness_contrast_prob: probability of brightness and contrast together.
      brightness: largest change of brightness, as a share of full scale.
      contrast: largest relative change of contrast.
      gamma_prob: probability of another gamma.
      gamma: largest difference of the levels' exponent from 1, below 1.
      noise_prob: probability of noise.
      noise: its largest standard deviation, as a share of full scale.
    """

    flip_prob: float
    affine_prob: float
    shift: float
    scale: float
    rotate: float
    brightness_contrast_prob: float
    brightness: float
    contrast: float
    gamma_prob: float
    gamma: float
    noise_prob: float
    noise: float


def strengths_of(augment: Mapping[str, Any]) -> dict[str, float]:
    """Returns the strengths that `config.augment` names, without its `where`."""
    return {name: value for name, value in augment.items() if name != "where"}
