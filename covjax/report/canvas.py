"""What all figures share: colours, outlines of masks, files of the same bytes."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from covjax.colours import BLUE, ORANGE
from covjax.runtime.files import write_whole

# A line style or a marker tells the same once more, for a print without colours.
TRUTH: Mapping[str, Any] = {"color": BLUE, "linestyle": "solid"}
OUTPUT: Mapping[str, Any] = {"color": ORANGE, "linestyle": "dashed"}
CLASS_STYLES: Mapping[str, Mapping[str, Any]] = {
    "COVID-19": {"color": "#D55E00", "marker": "o"},
    "Non-COVID": {"color": "#0072B2", "marker": "s"},
    "Normal": {"color": "#009E73", "marker": "^"},
}


def draw_image(cell: Any, picture: np.ndarray) -> None:
    """Shows a grey picture, uint8 [H, W], without ticks."""
    cell.imshow(picture, cmap="gray", vmin=0, vmax=255)
    cell.set_xticks([])
    cell.set_yticks([])


def draw_outlines(cell: Any, truth: np.ndarray, output: np.ndarray) -> None:
    """Draws the outlines of two masks, uint8 [H, W] in {0, 1}, over an image."""
    for mask, style in ((truth, TRUTH), (output, OUTPUT)):
        if mask.any() and not mask.all():
            cell.contour(
                mask, levels=[0.5], colors=style["color"],
                linestyles=style["linestyle"], linewidths=1.2,
            )  # fmt: skip


def outline_handles(cell: Any) -> list[Any]:
    """Returns what a legend needs to name truth and output, in that order."""
    return [cell.plot([], [], **style)[0] for style in (TRUTH, OUTPUT)]


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    # No date and no version inside: the same run draws the same bytes.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    write_whole(path, buffer.getvalue())
