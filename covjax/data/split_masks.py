"""The masks of a whole split, in memory."""

import concurrent.futures
import dataclasses
from collections.abc import Sequence

import numpy as np

from covjax.data.covidqu import Sample, read_masks
from covjax.runtime.cores import count_cores


@dataclasses.dataclass(frozen=True)
class SplitMasks:
    """The masks of a split, uint8 [n, H, W] in {0, 1} each.

    Attributes:
      truth: of the task.
      lung: the true lungs.
      found_lung: those that a model found; None where none was asked.
    """

    truth: np.ndarray
    lung: np.ndarray
    found_lung: np.ndarray | None


def read_split_masks(samples: Sequence[Sample], size: int, task: str) -> SplitMasks:
    """Reads the masks of all images of a split.

    Args:
      samples: of the split.
      size: side, pixels.
      task: "lung" or "infection": which mask is the truth.
    """
    with concurrent.futures.ThreadPoolExecutor(count_cores()) as threads:
        masks = list(threads.map(lambda sample: read_masks(sample, size), samples))
    found = all("found_lung" in m for m in masks)
    return SplitMasks(
        truth=np.stack([m[task] for m in masks]),
        lung=np.stack([m["lung"] for m in masks]),
        found_lung=np.stack([m["found_lung"] for m in masks]) if found else None,
    )
