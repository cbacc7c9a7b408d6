"""The figures of an evaluated split anew, from its rows and masks, by NumPy alone.

Nothing of covjax is imported: `docs/metrics.md` is all that this is written from. What
is left out of a mean is NaN here.
"""

import numpy as np


def read(files: dict, rows: list[dict]) -> dict[str, np.ndarray]:
    """Returns what the figures are made of, one value or row an image.

    Args:
      files: results/<stem>.npz.
      rows: results/<stem>.csv, as `csv.DictReader` reads it.
    """
    masks = ("truth", "output", "levels", "lung", "seen_lung")
    t, o, p, lung, seen = (files[k].reshape(len(rows), -1) for k in masks)
    cells = {"tp": (1, 1), "fp": (0, 1), "fn": (1, 0), "tn": (0, 0)}
    x = {k: ((t == a) & (o == b)).sum(1) for k, (a, b) in cells.items()}
    x |= {"positive": t.any(1), "found": o.any(1)}
    x["label"] = np.array([row["class"] for row in rows])
    x["loss"] = np.array([float(row["loss"]) for row in rows])
    x["score"] = np.sort(p)[:, -(t.shape[1] // 256) :].mean(1) / 255
    with np.errstate(invalid="ignore"):  # 0 / 0
        x["dice"] = np.nan_to_num(2 * x["tp"] / (t.sum(1) + o.sum(1)), nan=1)
        x["iou"] = np.nan_to_num(x["tp"] / (t | o).sum(1), nan=1)
        x["true"] = (t & lung).sum(1) / lung.sum(1)
        x["share"] = (o & seen).sum(1) / seen.sum(1)
    pairs = zip(files["truth"], files["output"], strict=True)
    x["hd95"], x["surface"] = np.array([outline(*pair) for pair in pairs]).T
    # Of every image and bin of probability, inside the lungs: pixels, sum of p, of y.
    in_bin = [lung * (np.minimum(10 * p.astype(int) // 255, 9) == k) for k in range(10)]
    of_bin = [np.stack([m, m * p / 255, m * t]).sum(2).T for m in in_bin]
    return x | {"bins": np.stack(of_bin, axis=1)}  # [n, 10, 3]


def outline(truth: np.ndarray, output: np.ndarray) -> tuple[float, float]:
    """Returns HD95 and surface Dice at 2 px of two masks."""
    edges = []
    for mask in (truth, output):
        m = np.pad(mask, 1)
        inner = m[:-2, 1:-1] & m[2:, 1:-1] & m[1:-1, :-2] & m[1:-1, 2:]
        edges.append(np.argwhere(mask & ~inner & 1))
    if not len(edges[0]) or not len(edges[1]):
        return np.nan, 0.0 if len(edges[0]) else np.nan
    d = np.linalg.norm(edges[0][:, None] - edges[1], axis=2)
    there, back = d.min(1), d.min(0)
    near = (there <= 2).sum() + (back <= 2).sum()
    return max(np.percentile(k, 95) for k in (there, back)), near / sum(d.shape)


def figures(x: dict[str, np.ndarray]) -> dict[str, np.floating]:
    """Returns every figure of some images; an image may stand there more than once."""
    tp, fp, fn, tn = (x[k].sum() for k in ("tp", "fp", "fn", "tn"))
    yes, off, bins = x["positive"], x["share"] - x["true"], x["bins"].sum(0)
    higher = np.sign(x["score"][yes][:, None] - x["score"][~yes])
    spread = 1.96 * np.nanstd(off, ddof=1)
    return {
        "loss": x["loss"].mean(),
        "all.dice": x["dice"].mean(),
        "all.iou": x["iou"].mean(),
        "positive.dice": x["dice"][yes].mean(),
        "positive.iou": x["iou"][yes].mean(),
        "pooled.dice": 2 * tp / (2 * tp + fp + fn),
        "pooled.iou": tp / (tp + fp + fn),
        "blank_rate": 1 - x["found"][~yes].mean(),
        "pixels.precision": tp / (tp + fp),
        "pixels.sensitivity": tp / (tp + fn),
        "pixels.specificity": tn / (tn + fp),
        "surface.hd95": np.nanmean(x["hd95"]),
        "surface.surface_dice": np.nanmean(x["surface"]),
        "detection.auroc": (higher.mean() + 1) / 2,
        "detection.sensitivity": x["found"][yes].mean(),
        "detection.specificity": 1 - x["found"][~yes].mean(),
        "reliability.ece": abs(bins[:, 1] - bins[:, 2]).sum() / bins[:, 0].sum(),
        "severity.mae": np.nanmean(abs(off)),
        "severity.bias": np.nanmean(off),
        "severity.limits.low": np.nanmean(off) - spread,
        "severity.limits.high": np.nanmean(off) + spread,
        "false_pixels": x["fp"][~yes].mean(),
    }


def with_intervals(
    x: dict[str, np.ndarray], draws: int = 10_000
) -> dict[str, tuple[np.floating, ...]]:
    """Returns every figure with its 95 % interval: mean, low, high."""
    n, found = len(x["label"]), figures(x)
    samples = np.random.default_rng(0).integers(n, size=(draws, n))
    drawn = [list(figures({k: v[i] for k, v in x.items()}).values()) for i in samples]
    low, high = np.nanpercentile(drawn, (2.5, 97.5), axis=0)
    return dict(zip(found, zip(found.values(), low, high, strict=True), strict=True))
