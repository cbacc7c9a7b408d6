"""Every combination of some settings of a benchmark: a table, and a picture."""

import itertools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

COLUMNS = {  # of the table: title → field of a point's figures
    "width": "width",
    "size": "image_size",
    "batch": "batch",
    "dtype": "dtype",
    "images/s": "train_images_per_s",
    "inference": "infer_images_per_s",
    "share": "share",
    "GiB planned": "memory_bytes",
    "ratio": "ratio",
}


def sweep(fields: Mapping[str, Sequence[str]], plot: Path | None) -> dict[str, Any]:
    """Measures every combination in a process of its own.

    So none inherits another's memory, and one that runs out of it costs only itself.

    Args:
      fields: names within the config → values; those without values stay as they are.
      plot: where to draw them, a PNG file.

    Returns:
      "points": the figures of each; "ratio": the median of theirs, or None.
    """
    names = [name for name, values in fields.items() if values]
    points = []
    for chosen in itertools.product(*(fields[name] for name in names)):
        settings = dict(zip(names, chosen, strict=True))
        print(", ".join(f"{k} {v}" for k, v in settings.items()), end=": ", flush=True)
        point = _measure(settings)
        points.append({"settings": settings} | point)
        rate = point.get("train_images_per_s")
        print(f"{rate:.4g} images/s" if rate else point["failed"], flush=True)
    print("\n" + format_table(points))
    if plot:
        draw(points, plot)
        print(f"\ndrawn: {plot}")
    ratios = [p["ratio"] for p in points if p.get("ratio")]
    return {"ratio": float(np.median(ratios)) if ratios else None, "points": points}


def _measure(settings: Mapping[str, str]) -> dict[str, Any]:
    """Returns the figures of one combination, or why there are none ("failed")."""
    command = [sys.executable, "-m", "experiments.benchmarks.step", *sys.argv[1:]]
    command += ["--nosweep", "--nostart"]
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode == 0:
        return json.loads(run.stdout.splitlines()[-1])
    if "RESOURCE_EXHAUSTED" in run.stderr or "out of memory" in run.stderr.lower():
        return {"failed": "out of memory"}
    lines = run.stderr.strip().splitlines()
    return {"failed": lines[-1] if lines else f"status {run.returncode}"}


def format_table(points: Sequence[Mapping[str, Any]]) -> str:
    """Returns a table in Markdown, a row for each point that could be measured."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS)]
    for point in points:
        if "failed" in point:  # it was said
            continue
        rows.append([_cell(title, point.get(key)) for title, key in COLUMNS.items()])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(title: str, value: Any) -> str:
    if value is None:
        return "–"
    if title == "GiB planned":
        return f"{value / 2**30:.2f}"
    if title == "share":
        return f"{value:.0%}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def draw(points: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws images a second over the batch, a line for each of the other settings."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    measured = [p for p in points if "train_images_per_s" in p]
    lines: dict[tuple[Any, ...], list[tuple[int, float]]] = {}
    for p in measured:
        key = (p["width"], p["image_size"], p["dtype"])
        lines.setdefault(key, []).append((p["batch"], p["train_images_per_s"]))
    for (width, side, dtype), values in lines.items():
        x, y = zip(*sorted(values), strict=True)
        axes.plot(x, y, marker="o", label=f"width {width}, {side} px, {dtype}")
    axes.set(xscale="log", yscale="log", xlabel="images a batch")
    batches = sorted({p["batch"] for p in measured})
    axes.set_xticks(batches, labels=[str(b) for b in batches])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_ylabel("images a second, training")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=150)
