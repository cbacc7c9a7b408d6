"""Pictures of a run: what the model did on three images, and how training went."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from covjax import colours
from covjax.report import canvas


@dataclasses.dataclass(frozen=True)
class Panel:
    """One image of the qualitative figure.

    Attributes:
      title: which case it is, and its figures.
      sample: the whole image, uint8 [H, W].
      seen: what the network saw of it, uint8 [H, W].
      truth: uint8 [H, W] in {0, 1}.
      output: the same.
    """

    title: str
    sample: np.ndarray
    seen: np.ndarray
    truth: np.ndarray
    output: np.ndarray


def choose_samples(
    labels: Sequence[str], counts: np.ndarray, lungs: bool
) -> list[tuple[str, int]]:
    """Picks three images by a rule that looks at the truth, never at the output.

    For infection: among the images that have any, the one at the 90th percentile of
    infected pixels (severe) and at the 10th (mild), and the Normal image in the middle
    of the list. For lungs: the middle image of each class.

    Args:
      labels: class of every image, [n].
      counts: TP, FP, FN, TN of every image, int [n, 4].
      lungs: whether the task is lungs.

    Returns:
      (what it is, index) of each; fewer where a class is empty.
    """
    chosen = []
    pixels = counts[:, 0] + counts[:, 2]
    if not lungs:
        positive = np.flatnonzero(pixels)
        by_size = positive[np.argsort(pixels[positive], kind="stable")]
        for name, quantile in (("severe", 0.9), ("mild", 0.1)):
            if len(by_size):
                chosen.append((name, int(by_size[int(quantile * (len(by_size) - 1))])))
    for label in ("COVID-19", "Non-COVID", "Normal") if lungs else ("Normal",):
        of_class = np.flatnonzero(np.asarray(labels) == label)
        if len(of_class):
            chosen.append((label, int(of_class[len(of_class) // 2])))
    return chosen


def draw_qualitative(path: Path, panels: Sequence[Panel], title: str) -> None:
    """Draws a row for each image: input, truth, output, outlines over the image.

    Args:
      path: of the PNG.
      panels: what to draw.
      title: above all of it; says "PHANTOM" where the images are.
    """
    figure = Figure(figsize=(10, 2.5 * len(panels) + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(len(panels), 4, squeeze=False)
    for row, panel in zip(axes, panels, strict=True):
        pictures = (panel.seen, 255 * panel.truth, 255 * panel.output, panel.sample)
        for cell, picture in zip(row, pictures, strict=True):
            canvas.draw_image(cell, picture)
        canvas.draw_outlines(row[3], panel.truth, panel.output)
        row[0].set_ylabel(panel.title, fontsize=8)
    for cell, name in zip(axes[0], ("input", "truth", "output", ""), strict=True):
        cell.set_title(name, fontsize=10)
    axes[0, 3].legend(
        canvas.outline_handles(axes[0, 3]), ["truth", "output"], loc="lower center",
        bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=9,
    )  # fmt: skip
    canvas.save(figure, path)


def draw_curves(path: Path, lines: Sequence[dict[str, Any]], title: str) -> None:
    """Draws loss (Train, Val) and Dice (Val) over the steps of a run.

    The loss of Train is what training lowers, that of Val the loss of each image's
    mask.

    Args:
      path: of the PNG.
      lines: of metrics.jsonl.
      title: above all of it.
    """
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    loss, dice = figure.subplots(1, 2)
    for split, colour, style, told in (
        ("train", colours.BLUE, "-", "train: what training lowers"),
        ("val", colours.ORANGE, "--o", "val: of the masks alone"),
    ):
        of_split = [line for line in lines if line["split"] == split]
        steps = [line["step"] for line in of_split]
        losses = [line["loss"] for line in of_split]
        loss.plot(steps, losses, style, color=colour, label=told, markersize=3)
        if split == "val":
            for family, style in (("all", "-"), ("positive", "--"), ("pooled", ":")):
                values = [line[f"{family}_dice"] for line in of_split]
                dice.plot(steps, values, style, color=colour, label=f"val, {family}")
            tuned = [line.get("tuned_all_dice", np.nan) for line in of_split]
            if not np.isnan(tuned).all():
                dice.plot(
                    steps, tuned, "-o", color=colours.BLUE, label="val, all, tuned"
                )
    loss.set(xlabel="step", ylabel="loss")
    dice.set(xlabel="step", ylabel="Dice")
    for cell in (loss, dice):
        cell.grid(alpha=0.3)
        cell.legend(frameon=False, fontsize=8)
    canvas.save(figure, path)
