"""How far an exported network is from its run, on sample images that are drawn here."""

from collections.abc import Mapping

import cv2
import numpy as np

from covjax.data.covidqu import CLASSES
from covjax.data.phantom.drawing import MIN_SIZE, make_phantom
from covjax.data.pipeline import Region

PHANTOMS = 4
SPREADS = (256, 64, 16, 4)  # levels of the pictures of noise
SAMPLES = PHANTOMS + len(SPREADS)


def draw_samples(region: Region, size: int, seed: int = 0) -> np.ndarray:
    """Draws phantoms, then pictures of noise, as a network is shown them.

    Noise comes in grains of 1, 2, 4 and 8 pixels, and in fewer and fewer levels.

    Args:
      region: what is shown; the phantoms' own lungs stand for found ones.
      size: side, pixels; of phantoms that would be too small a corner is shown.
      seed: of all randomness.

    Returns:
      uint8 [SAMPLES, size, size, C].
    """
    rng = np.random.default_rng(seed)
    records = []
    for k in range(PHANTOMS):
        sample = make_phantom(CLASSES[k % len(CLASSES)], rng, max(size, MIN_SIZE))
        records.append({name: plane[:size, :size] for name, plane in sample.items()})
    for k, spread in enumerate(SPREADS):
        cells = (-(-size // 2**k),) * 2
        noise = (rng.integers(0, spread, cells), rng.integers(0, 2, cells))
        image, lung = (_magnify(plane.astype(np.uint8), size) for plane in noise)
        records.append({"image": image, "lung": lung})
    shown = [region.show(record | {"found_lung": record["lung"]}) for record in records]
    return np.stack(shown)


def _magnify(plane: np.ndarray, size: int) -> np.ndarray:
    return cv2.resize(plane, (size, size), interpolation=cv2.INTER_NEAREST)


def find_distance(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    """Returns the largest absolute difference of two networks' probabilities.

    Args:
      a: names → arrays, as in inference.py.
      b: of the other network.

    Returns:
      NaN if a number is; infinity if they tell other things, or of other shapes.
    """
    if a.keys() != b.keys() or any(a[name].shape != b[name].shape for name in a):
        return float("inf")
    return float(np.max([np.max(np.abs(a[name] - b[name])) for name in a]))
