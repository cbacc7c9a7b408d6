"""Both trained networks in a row: an image of any size → lungs → infection.

Each image is squeezed to the square that a network was trained on, as the published
ones were. The lungs that stage 1 finds are shown to stage 2, and probabilities become
masks at the operating points that the runs chose on Val.
"""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from covjax import parallel
from covjax.data.covidqu import resize_mask
from covjax.data.mask_ops import as_lungs
from covjax.data.pipeline import Region
from covjax.errors import UsageError
from covjax.evaluation.lung_masks import same_lungs
from covjax.export.safetensors import Weights
from covjax.metrics.counts import to_levels
from covjax.metrics.detection import presence_scores
from covjax.metrics.operating_point import as_point
from covjax.predict.postprocess import Origin, Points, Seen, squeeze
from covjax.train.restore import in_form
from covjax.train.train_step import predict

# Pictures, uint8 [B, S, S, C] → levels, uint8 [B, S, S], and presence, float [B].
Network = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Segmenter:
    """Finds lungs, and infection within what they show.

    Attributes:
      lung: the first network, of images at its size; compiled once for each number of
        them.
      infection: the second, of images as `Region.show` shows them; None without one.
      sides: of the square that each network sees, pixels.
      points: what makes masks of their probabilities.
      remarks: what a user should know of this pair of networks.
      origin: which networks they are.
    """

    def __init__(self, lung: Weights, infection: Weights | None = None):
        """Takes the weights of both stages, or of the first alone.

        Raises:
          UsageError: if they are of another stage, or hold no operating point.
        """
        _check_task(lung, "lung")
        self.remarks: list[str] = []
        lung_point = as_point(_find_point(lung, "none"))
        self.points = Points(lung_point)
        self.origin = Origin({"lungs": lung.trained.fingerprint}, lung.phantom)
        self.lung: Network = _compile(lung)
        self.infection: Network | None = None
        self.sides: tuple[int, ...] = (lung.trained.config.data.image_size,)
        if infection is None:
            return
        _check_task(infection, "infection")
        data = infection.trained.config.data
        self.origin = Origin(
            self.origin.fingerprints | {"infection": infection.trained.fingerprint},
            self.origin.phantom or infection.phantom,
        )
        self.infection = _compile(infection)
        self.sides += (data.image_size,)
        self._region = _region(infection)
        told = self._choose_point(infection)
        self.points = Points(lung_point, as_point(told))
        lungs = {"fingerprint": lung.trained.fingerprint, "step": lung.trained.step}
        lungs |= dataclasses.asdict(lung_point) | {"run": None}
        if told.get("lungs") and not same_lungs(told["lungs"], lungs):
            self.remarks.append(
                f"the operating point of {infection.trained.run.name} was chosen with"
                " the lungs of another run"
            )

    def _choose_point(self, infection: Weights) -> dict[str, Any]:
        """Returns the operating point for what the network is shown.

        Raises:
          UsageError: if there is none.
        """
        if "truth" in infection.points and self._region.roi not in infection.points:
            self.remarks.append(
                f"the operating point of {infection.trained.run.name} was chosen with"
                " true lungs"
            )
            return infection.points["truth"]
        return _find_point(infection, self._region.roi)

    def look(self, radiographs: Sequence[np.ndarray]) -> list[Seen]:
        """Asks the networks about images, uint8 [H, W] of any size."""
        return self.look_at_squares(
            [squeeze(radiograph, self.sides) for radiograph in radiographs]
        )

    def look_at_squares(
        self, radiographs: Sequence[tuple[np.ndarray, ...]]
    ) -> list[Seen]:
        """Asks the networks.

        Compiled once for each number of images: keep to one.

        Args:
          radiographs: for each what `squeeze` makes of it for `sides`.

        Returns:
          What was seen of each.
        """
        squares = np.stack([squares[0] for squares in radiographs])
        lung_levels, presence = self.lung(squares[..., None])
        found = self.points.lung.masks(lung_levels, presence)
        lungs = [as_lungs(mask) for mask in found]
        if self.infection is None:
            return [
                Seen(*of_image) for of_image in zip(lung_levels, lungs, strict=True)
            ]
        side = self.sides[1]
        shown = [
            self._region.show(
                {"image": squares[1], "found_lung": resize_mask(mask, side)}
            )
            for squares, mask in zip(radiographs, lungs, strict=True)
        ]
        levels, presence = self.infection(np.stack(shown))
        of_images = zip(lung_levels, lungs, levels, presence.tolist(), strict=True)
        return [Seen(*of_image) for of_image in of_images]


def _find_point(weights: Weights, roi: str) -> dict[str, Any]:
    if roi not in weights.points:
        raise UsageError(
            f"{weights.trained.run}: no operating point for roi = {roi}; python -m"
            " covjax.main --mode=evaluate --split=val --workdir=RUN chooses one"
        )
    return weights.points[roi]


def _check_task(weights: Weights, task: str) -> None:
    found = weights.trained.config.data.task
    if found != task:
        raise UsageError(
            f"{weights.trained.run}: trained to find {found}, where --{task} needs"
            f" one that finds {task}"
        )


def _region(weights: Weights) -> Region:
    """Returns what stage 2 is shown of an image whose lungs were found.

    Raises:
      UsageError: if it was trained on what is no image.
    """
    data = weights.trained.config.data
    if data.roi == "outside":
        raise UsageError(
            f"{weights.trained.run}: trained on the outside of the lungs (data.roi),"
            " a probe that is no segmentation"
        )
    roi = "none" if data.roi == "none" else "predicted"
    return Region(roi, data.roi_dilate, data.roi_as)


def _compile(weights: Weights) -> Network:
    """Returns the network of some weights, to be called from any thread.

    The network is computed in the form that suits the machine: without an accelerator,
    bfloat16 and a transposed convolution take longer than what gives the same numbers.
    """
    form = {"dtype": "float32", "upsample": "depth_to_space"}
    trained = weights.trained
    state = in_form(trained, **({} if parallel.is_accelerated() else form))
    state, flip = parallel.put_on_local(state), trained.config.eval.tta_flip

    def levels_and_presence(state: Any, images: Any) -> tuple[Any, Any]:
        prediction = predict(state, images, flip=flip)
        return to_levels(prediction.logits)[..., 0], prediction.presence

    step = parallel.jit_local(levels_and_presence)
    programs, lock = dict[tuple[int, ...], Any](), threading.Lock()

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with lock:  # JAX would compile once for each thread that comes first
            if images.shape not in programs:
                programs[images.shape] = step.lower(state, images).compile()
        levels, presence = programs[images.shape](state, images)
        levels = np.asarray(levels)
        if presence is None:
            return levels, presence_scores(levels)
        return levels, 1 / (1 + np.exp(-np.asarray(presence, np.float64)))

    return run
