"""How often images are doubted that are as they should be, and how often others.

  python -m experiments.doubts [--images=160] [--root=DIR]

All images of Train of the infection tree, with their published lungs; and some of Val,
with the lungs that the network in covjax/pretrained finds: as they are, with black and
white exchanged, and turned to the left. Prints a row each; the last line is a JSON
object of the shares. About two minutes on two cores.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from covjax import parallel
from covjax.data.covidqu import Sample, data_root, list_samples, read_sample
from covjax.data.mask_ops import as_lungs
from covjax.errors import DataError
from covjax.export.load_model import shipped_network
from covjax.predict.quality_checks import doubt
from covjax.predict.segmenter import Segmenter
from covjax.runtime.progress import progress_bar

PROJECT = Path(__file__).parents[1]
_AT_ONCE = 8  # images of a device


def turn(radiograph: np.ndarray, degrees: float) -> np.ndarray:
    """Turns an image to the left about its middle; what comes in is black."""
    side = radiograph.shape[0]
    how = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), degrees, 1)
    return cv2.warpAffine(radiograph, how, (side, side))


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as they are": lambda radiograph: radiograph,
    "black and white exchanged": lambda radiograph: 255 - radiograph,
    "upside down": lambda radiograph: turn(radiograph, 180),
    "turned by 90 degrees": lambda radiograph: turn(radiograph, 90),
    "turned by -90 degrees": lambda radiograph: turn(radiograph, -90),
    "turned by 35 degrees": lambda radiograph: turn(radiograph, 35),
    "turned by 20 degrees": lambda radiograph: turn(radiograph, 20),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=160, help="of Val")
    parser.add_argument("--root", default="", help="default: as training looks for it")
    given = parser.parse_args(argv)
    network = shipped_network("lung")
    size = network.trained.config.data.image_size
    try:
        root = data_root(given.root, PROJECT)
        train, val = (list_samples(root, "infection", k) for k in ("Train", "Val"))
        shares = {"Train, published lungs": _of_published(train, size)}
        order = np.random.default_rng(0).permutation(len(val))[: given.images]
        some = [read_sample(val[k], size)["image"] for k in order]
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    segmenter = Segmenter(network)
    for name, change in CHANGES.items():
        shares[f"Val, {name}"] = _of_found(
            [change(radiograph) for radiograph in some], segmenter
        )
    print(f"\n{'images that are doubted':40} of")
    for name, (doubted, radiographs) in shares.items():
        print(f"{name:34}{doubted:6}{radiographs:7,}")
    print(json.dumps({name: doubted / of for name, (doubted, of) in shares.items()}))
    return 0


def _of_published(radiographs: Sequence[Sample], size: int) -> tuple[int, int]:
    doubted = 0
    with progress_bar("published lungs") as progress:
        for done, radiograph in enumerate(radiographs, 1):
            read = read_sample(radiograph, size)
            doubted += bool(doubt(read["image"], as_lungs(read["lung"])))
            progress(done, len(radiographs))
    return doubted, len(radiographs)


def _of_found(
    radiographs: Sequence[np.ndarray], segmenter: Segmenter
) -> tuple[int, int]:
    doubted, at_once = 0, _AT_ONCE * parallel.local_devices()
    for start in range(0, len(radiographs), at_once):
        some = radiographs[start : start + at_once]
        filled_up = [*some, *[some[-1]] * (at_once - len(some))]
        for radiograph, seen in zip(some, segmenter.look(filled_up), strict=False):
            doubted += bool(doubt(radiograph, seen.lungs))
    return doubted, len(radiographs)


if __name__ == "__main__":
    sys.exit(main())
