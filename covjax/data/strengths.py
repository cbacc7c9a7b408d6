"""How strong the study's three augmentations are, on the host and on the device."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(eq=False)  # so that each has a hash, as jax wants it
class Strengths:
    """What the config says of the three transforms; each happens on its own.

    Attributes:
      flip_prob: probability of a horizontal flip.
      affine_prob: probability of shift, scale and rotation together.
      shift: largest shift along each axis, as a share of the side.
      scale: largest relative change of size, the same along both axes.
      rotate: largest rotation, degrees.
      tone_prob: probability of brightness and contrast together.
      brightness: largest change of brightness, as a share of full scale.
      contrast: largest relative change of contrast.
    """

    flip_prob: float
    affine_prob: float
    shift: float
    scale: float
    rotate: float
    tone_prob: float
    brightness: float
    contrast: float


def strengths_of(augment: Mapping[str, Any]) -> dict[str, float]:
    """Returns the strengths that `config.augment` names, without its `where`."""
    return {name: value for name, value in augment.items() if name != "where"}
