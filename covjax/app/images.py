"""Images that the page shows: predicted once, drawn and measured often.

What is kept of an image is small enough to answer a control at once: the picture as it
is shown, and what the networks made of it at their own sizes.
"""

import dataclasses

import cv2
import numpy as np

from covjax import parallel
from covjax.data.covidqu import CLASSES
from covjax.data.mask_ops import place
from covjax.data.phantom.drawing import make_phantom
from covjax.metrics.operating_point import OperatingPoint
from covjax.predict.postprocess import Seen
from covjax.predict.radiograph import Box, Radiograph
from covjax.predict.segmenter import Segmenter

LONGEST = 1024  # side of an image as it is shown, pixels
_SIDE = 512  # of a phantom, pixels


@dataclasses.dataclass(frozen=True)
class ViewedImage:
    """An image that the networks have looked at.

    Attributes:
      name: of its file.
      image: as it is shown, uint8 [H, W], at most `LONGEST` a side.
      box: the rows and columns of it that the networks were shown.
      seen: what they made of these.
      lungs: the lungs that were found, uint8 [H, W] in {0, 1}.
      patient_left_on_right: as images are hung.
      remarks: what a user should know of it.
      phantom: whether it is synthetic.
    """

    name: str
    image: np.ndarray
    box: Box
    seen: Seen
    lungs: np.ndarray
    patient_left_on_right: bool = True
    remarks: tuple[str, ...] = ()
    phantom: bool = False

    def infection(self, segmenter: Segmenter, point: OperatingPoint) -> np.ndarray:
        """Returns the infection at an operating point, uint8 [H, W] in {0, 1}."""
        shape = self.image[self.box].shape
        found = segmenter.points.infection_of(self.seen, shape, point)
        return place(found, self.image.shape, self.box)


def look_at(
    segmenter: Segmenter, radiograph: Radiograph, name: str, *, phantom: bool = False
) -> ViewedImage:
    """Asks both networks, at the image's own size, and keeps what is shown of it."""
    # The devices share a batch: one image is repeated for each of them.
    seen = segmenter.look([radiograph.image[radiograph.box]] * parallel.shareable(1))[0]
    image, box = _reduce(radiograph.image, radiograph.box)
    lungs = place(segmenter.points.lungs_of(seen, image[box].shape), image.shape, box)
    return ViewedImage(
        name,
        image,
        box,
        seen,
        lungs,
        radiograph.patient_left_on_right,
        radiograph.remarks,
        phantom,
    )


def draw_phantoms() -> list[tuple[str, Radiograph]]:
    """Draws a synthetic image of each class, with a name that says so."""
    drawn = []
    for label in CLASSES:
        image = make_phantom(label, np.random.default_rng(4), _SIDE)["image"]
        box = (slice(0, _SIDE), slice(0, _SIDE))
        drawn.append((f"PHANTOM, drawn as {label}", Radiograph(image, box)))
    return drawn


def _reduce(image: np.ndarray, box: Box) -> tuple[np.ndarray, Box]:
    """Returns an image and its box at the size at which it is shown."""
    longest = max(image.shape)
    if longest <= LONGEST:
        return image, box
    height, width = (max(1, round(side * LONGEST / longest)) for side in image.shape)
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    rows, columns = (
        _scale(part, new, old)
        for part, new, old in zip(box, small.shape, image.shape, strict=True)
    )
    return small, (rows, columns)


def _scale(part: slice, new: int, old: int) -> slice:
    start = min(round(part.start * new / old), new - 1)
    return slice(start, max(start + 1, round(part.stop * new / old)))
