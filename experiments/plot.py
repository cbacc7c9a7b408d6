"""The picture of an experiment: how far each arm lies from the baseline."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from covjax import colours
from covjax.report import canvas
from experiments.seeds import FIGURES

_APART, _NOT_APART = "#D55E00", "#0072B2"  # of Okabe and Ito, as in colours.py


def draw_differences(
    path: Path,
    differences: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    baseline: str,
    of_baseline: Mapping[str, Mapping[str, Any]],
    title: str,
) -> None:
    """Draws a panel a figure, a row an arm: mean, 95 % interval, and every seed.

    Args:
      path: of the PNG.
      differences: arm → figure → what `estimate_over_seeds` returns; empty for the
        baseline and for arms that cannot be paired with it.
      baseline: name of that arm, drawn as the line at 0.
      of_baseline: its own figures, for the panels' titles.
      title: above all of it; says "PHANTOM" where the images are.
    """
    arms = list(differences)
    height = 1.9 + 0.42 * len(arms)
    figure = Figure(figsize=(3.0 + 2.5 * len(FIGURES), height), layout="constrained")
    figure.suptitle(title, fontsize=12)
    panels = figure.subplots(1, len(FIGURES), sharey=True, squeeze=False)[0]
    for panel, (name, called) in zip(panels, FIGURES.items(), strict=True):
        panel.axvline(0, color=colours.GREY, linewidth=1, zorder=1)
        for row, arm in enumerate(arms):
            found = differences[arm].get(name)
            if arm == baseline:
                panel.plot(0, row, "D", color=colours.GREY, markersize=6, zorder=3)
            elif found and found["mean"] is not None:
                _draw_row(panel, row, found)
        mean = of_baseline.get(name, {}).get("mean")
        told = "not defined" if mean is None else f"baseline {mean:.3f}"
        panel.set_title(f"{called}\n{told}", fontsize=10)
        panel.grid(axis="x", alpha=0.3)
        panel.tick_params(axis="x", labelsize=8)
        panel.locator_params(axis="x", nbins=5)
        panel.margins(x=0.12)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
        panel.tick_params(axis="y", length=0)
    names = [f"{arm} (baseline)" if arm == baseline else arm for arm in arms]
    panels[0].set_yticks(range(len(arms)), names, fontsize=10)
    panels[0].set_ylim(len(arms) - 0.4, -0.6)  # the first arm on top
    figure.supxlabel(
        "difference from the baseline: mean and 95 % interval (orange: 0 is outside of"
        " it); dots: seeds",
        fontsize=9,
    )
    canvas.save(figure, path)


def _draw_row(panel: Any, row: int, found: Mapping[str, Any]) -> None:
    low, high = found["low"], found["high"]
    told = low is not None
    apart = told and (low > 0 or high < 0)
    color = _APART if apart else _NOT_APART
    if told:
        panel.plot([low, high], [row, row], color=color, linewidth=2.5, zorder=2)
    panel.plot(
        found["mean"], row, "s" if apart else "o", color=color, markersize=7, zorder=4
    )
    seeds = [value for value in found["of_seeds"] if value is not None]
    panel.plot(
        seeds, [row + 0.22] * len(seeds), ".", color="black", markersize=5, alpha=0.6
    )
