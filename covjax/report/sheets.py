"""Contact sheets: the ten best, the ten middling and the ten worst images."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from covjax.metrics.counts import dice_per_image
from covjax.report import canvas

ROWS, COLUMNS = 2, 5


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """One image of a contact sheet.

    Attributes:
      name: of the file.
      label: its class.
      dice: of the image.
      sample: uint8 [H, W].
      truth: uint8 [H, W] in {0, 1}.
      output: the same.
    """

    name: str
    label: str
    dice: float
    sample: np.ndarray
    truth: np.ndarray
    output: np.ndarray


def choose_sheets(counts: np.ndarray) -> dict[str, list[int]]:
    """Picks the images of the three sheets by their Dice.

    "best" and "median" are of the images with a truth: the highest Dice, and the places
    around the middle one (an empty image that stays blank scores 1 and shows nothing).
    "worst" is of all images: the lowest Dice, and among equals the most wrong pixels,
    so that whole lesions missed and large false alarms come first.

    Args:
      counts: TP, FP, FN, TN of every image, int [n, 4].

    Returns:
      Up to ten indices each, in the order in which they are drawn.
    """
    counts = np.asarray(counts).reshape(-1, 4)
    size = ROWS * COLUMNS
    dice, wrong = dice_per_image(counts), counts[:, 1] + counts[:, 2]
    positive = np.flatnonzero(counts[:, 0] + counts[:, 2])
    falling = positive[np.argsort(-dice[positive], kind="stable")]
    first = max(0, (len(falling) - size) // 2)
    return {
        "best": falling[:size].tolist(),
        "median": falling[first : first + size].tolist(),
        "worst": np.lexsort((-wrong, dice))[:size].tolist(),
    }


def draw_sheet(path: Path, samples: Sequence[Thumbnail], title: str) -> None:
    """Draws up to ten images, five a row, with the outlines of truth and output.

    Args:
      path: of the PNG.
      samples: what to draw, from the top left.
      title: above all of it; says "PHANTOM" where the images are.
    """
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08)  # type: ignore[union-attr]
    figure.suptitle(title, fontsize=11)
    cells = figure.subplots(ROWS, COLUMNS).ravel()
    for cell in cells:
        cell.axis("off")
    for cell, sample in zip(cells, samples, strict=False):
        canvas.draw_image(cell, sample.sample)
        canvas.draw_outlines(cell, sample.truth, sample.output)
        cell.set_title(
            f"{sample.name}\n{sample.label}, Dice {sample.dice:.3f}", fontsize=8
        )
    figure.legend(
        canvas.outline_handles(cells[0]), ["truth", "output"],
        loc="outside lower center", ncols=2, frameon=False, fontsize=9,
    )  # fmt: skip
    canvas.save(figure, path)
