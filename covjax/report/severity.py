"""Severity, the infected share of the lungs: found against true, and the difference."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from covjax import colours
from covjax.report import canvas


def draw_severity(
    path: Path,
    *,
    true_share: np.ndarray,
    found_share: np.ndarray,
    labels: Sequence[str],
    bias: float,
    limits: tuple[float, float],
    title: str,
) -> None:
    """Draws a scatter of shares and, beside it, their differences (Bland and Altman).

    Images without a share (NaN: no lungs) are left out.

    Args:
      path: of the PNG.
      true_share: infected share of the lungs by the truth, 0 to 1, [n].
      found_share: the same by the output, [n].
      labels: class of every image, [n].
      bias: mean of found − true.
      limits: of agreement, low and high.
      title: above all of it; says "PHANTOM" where the images are.

    Reference:
      Bland and Altman, Lancet 327, 1986.
    """
    true = np.asarray(true_share, float)
    found = np.asarray(found_share, float)
    known = np.isfinite(true) & np.isfinite(found)
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    figure.suptitle(title, fontsize=11)
    scatter, difference = figure.subplots(1, 2)
    for label, style in canvas.CLASS_STYLES.items():
        shown = known & (np.asarray(labels) == label)
        look = {**style, "s": 18, "alpha": 0.6, "linewidths": 0}
        scatter.scatter(
            true[shown], found[shown], label=f"{label} ({shown.sum()})", **look
        )
        middle = (true[shown] + found[shown]) / 2
        difference.scatter(middle, found[shown] - true[shown], **look)
    scatter.plot([0, 1], [0, 1], ":", color=colours.GREY, label="identity")
    scatter.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    scatter.set(xlabel="true share", ylabel="found share")
    scatter.legend(frameon=False, fontsize=8)
    difference.axhline(bias, color="black", label=f"bias {bias:+.3f}")
    for limit, name in zip(limits, ("lower", "upper"), strict=True):
        style = {"color": "black", "linestyle": "--" if name == "lower" else "-."}
        difference.axhline(limit, label=f"{name} limit {limit:+.3f}", **style)
    difference.set(xlim=(-0.02, 1.02), ylim=(-1.05, 1.05))
    difference.set(xlabel="mean of true and found", ylabel="found − true")
    difference.legend(frameon=False, fontsize=8)
    for cell in (scatter, difference):
        cell.grid(alpha=0.3)
    canvas.save(figure, path)
