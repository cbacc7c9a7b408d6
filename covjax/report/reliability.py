"""The reliability curve: how often a pixel is what its probability says."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from covjax import colours
from covjax.report import canvas


def draw_reliability(
    path: Path,
    *,
    edges: np.ndarray,
    confidence: np.ndarray,
    frequency: np.ndarray,
    pixels: np.ndarray,
    title: str,
) -> None:
    """Draws frequency against confidence, bin by bin, and the bins' pixels beside it.

    Args:
      path: of the PNG.
      edges: of the bins of probability, rising, [b + 1].
      confidence: mean probability of a bin's pixels, [b]; NaN where it has none.
      frequency: share of a bin's pixels that are foreground, [b]; NaN likewise.
      pixels: how many lie in each bin, [b].
      title: above all of it; says "PHANTOM" where the images are.
    """
    edges, pixels = np.asarray(edges, float), np.asarray(pixels, float)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    curve, sizes = figure.subplots(1, 2, width_ratios=(3, 2))
    curve.plot([0, 1], [0, 1], ":", color=colours.GREY, label="identity")
    of_bins = np.stack([confidence, frequency]).astype(float)
    filled = np.isfinite(of_bins).all(axis=0)
    curve.plot(*of_bins[:, filled], "-o", color="#0072B2", markersize=4, label="bins")
    curve.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    curve.set(xlabel="mean probability of the pixels", ylabel="share in the truth")
    curve.legend(frameon=False, fontsize=8)
    # Most pixels are background: without a logarithm, one bar would be all there is.
    sizes.bar(
        edges[:-1], np.maximum(pixels, 0.5), np.diff(edges), align="edge",
        color=colours.BLUE, edgecolor="white",
    )  # fmt: skip
    sizes.set(yscale="log", ylim=(0.5, 2 * max(1.0, *pixels)), xlim=(0, 1))
    sizes.set(xlabel="probability", ylabel="pixels")
    for cell in (curve, sizes):
        cell.grid(alpha=0.3)
    canvas.save(figure, path)
