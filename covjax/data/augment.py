"""The study's three augmentations, and two beyond it, through Albumentations."""

import dataclasses
import os
import random
import threading
import warnings
from typing import Any

import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network
import albumentations as A  # noqa: E402, N812

from covjax.data.augment_params import Strengths

MASKS = ("lung", "infection", "found_lung")  # of a record, as `read_sample` names them
_MAKING = threading.Lock()  # the filters of warnings belong to the whole process


@dataclasses.dataclass
class Augment(Strengths):
    """Flips and moves an image together with its masks, and re-exposes the image.

    A result is a function of the record and its seed alone, whichever thread or
    process computes it: a `Compose` holds its random state, so every thread has its
    own and seeds it anew for each record.
    """

    def __post_init__(self) -> None:
        """Makes the place where each thread keeps its own `Compose`."""
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what belongs to a thread, on the way to another process."""
        return dataclasses.asdict(self)

    def __setstate__(self, settings: dict[str, Any]) -> None:
        """Takes what `__getstate__` returned."""
        self.__init__(**settings)

    def __call__(
        self, record: dict[str, np.ndarray], seed: int
    ) -> dict[str, np.ndarray]:
        """Augments one image.

        Args:
          record: "image" uint8 [H, W], "lung" and, where there are any, "infection"
            and "found_lung", uint8 [H, W] in {0, 1}.
          seed: of this record in this epoch, 32 bits.

        Returns:
          The same keys, shapes, dtypes; masks stay in {0, 1}. Where the image moves
          away, pixels are 0 until brightness and noise change them as any others.
        """
        if not hasattr(self._local, "compose"):
            self._local.compose = self._make_compose()
        compose = self._local.compose
        # Not `set_random_seed`: it gives every transform a generator of the same seed,
        # so that all of them happen, or none does.
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        # Albumentations' types know no targets beyond its own.
        targets: dict[str, Any] = record | {"image": record["image"][..., None]}
        result = compose(**targets)
        return {k: result[k] for k in record} | {"image": result["image"][..., 0]}

    def _make_compose(self) -> A.Compose:
        # In percent, of which Albumentations wants at least one.
        exponents = max(1, 100 - 100 * self.gamma), 100 + 100 * self.gamma
        with _MAKING, warnings.catch_warnings():
            # A misspelt argument only warns: never train without a transform.
            warnings.simplefilter("error", UserWarning)
            transforms = [
                A.HorizontalFlip(p=self.flip_prob),
                A.Affine(
                    translate_percent=(-self.shift, self.shift),
                    scale=(1 - self.scale, 1 + self.scale),
                    keep_ratio=True,
                    rotate=(-self.rotate, self.rotate),
                    fill=0,
                    fill_mask=0,
                    p=self.affine_prob,
                ),
                A.RandomBrightnessContrast(
                    brightness_limit=self.brightness,
                    contrast_limit=self.contrast,
                    p=self.brightness_contrast_prob,
                ),
                A.RandomGamma(gamma_limit=exponents, p=self.gamma_prob),
                A.GaussNoise(std_range=(0, self.noise), p=self.noise_prob),
            ]
            return A.Compose(
                [t for t in transforms if t.p > 0],
                additional_targets=dict.fromkeys(MASKS, "mask"),
            )
