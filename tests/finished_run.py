"""A finished run's folder of synthetic numbers and pictures, for tests of the page.

Every figure is another number, so that a test can tell from which it was taken.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from configs import infection
from covjax.config import save_config
from covjax.evaluation.results import COUNTED, MEASURED
from covjax.report.figures import Panel, draw_curves, draw_qualitative
from covjax.report.reliability import draw_reliability
from covjax.report.severity import draw_severity
from covjax.report.sheets import Thumbnail, draw_sheet

COMMAND = "python -m covjax.main --config=configs/infection.py:phantom --workdir=" + (
    "runs/" + "a-long-name-" * 12
)
CLASSES = ("COVID-19", "Non-COVID", "Normal")


def figure(mean: float | None, low: float | None, high: float | None) -> dict:
    return {"mean": mean, "low": low, "high": high}


def around(mean: float) -> dict:
    return figure(mean, round(mean - 0.02, 4), round(mean + 0.02, 4))


def make_results(**changes) -> dict:
    """What results/test.json held before anything was tuned."""
    results = {
        "split": "test",
        "n": 1166,
        "n_empty": 583,
        "threshold": 0.5,
        "loss": 0.3141,
        "all": {"dice": around(0.6111), "iou": around(0.5611)},
        "positive": {"dice": around(0.7222), "iou": around(0.6222)},
        "pooled": {"dice": around(0.8333), "iou": around(0.7333)},
        "blank_rate": around(0.4444) | {"Normal": 0.5555, "Non-COVID": 0.3333},
        "task": "infection",
        "roi": "truth",
        "image_size": 256,
        "checkpoint": 932,
        "phantom": False,
    }
    return results | changes


def families(start: float) -> dict:
    """The four families, each figure .0101 above the one before."""
    figures = [around(round(start + 0.0101 * k, 4)) for k in range(7)]
    names = ("all", "positive", "pooled")
    found: dict[str, Any] = {
        name: {"dice": figures[2 * k], "iou": figures[2 * k + 1]}
        for k, name in enumerate(names)
    }
    rates = {"Normal": round(start + 0.11, 4), "Non-COVID": round(start + 0.12, 4)}
    return found | {"blank_rate": figures[6] | rates}


def make_full_results(start: float, **changes) -> dict:
    """What results/<stem>.json holds of a tuned run.

    Args:
      start: the first figure; the others follow from it.
      changes: fields with other values.
    """
    detection: dict[str, Any] = {
        name: around(round(start + add, 4))
        for name, add in (("auroc", 0.21), ("sensitivity", 0.22), ("specificity", 0.23))
    }
    share = [0.0, 0.1, 0.25, 0.5, 1.0]
    results = make_results(
        **families(start),
        threshold=0.62,
        operating_point={
            "threshold": 0.62,
            "min_area": 40,
            "presence": 0.8,
            "chosen_on": "val",
            "objective": "all dice",
            "reached": 0.5757,
            "untuned": 0.3535,
            "n": 932,
            "checkpoint": 932,
            "lungs": None,
        },
        untuned={"threshold": 0.5} | families(round(start - 0.3, 4)),
        pixels={
            "precision": around(0.7171),
            "sensitivity": around(0.6161),
            "specificity": around(0.9797),
        },
        surface={
            "tolerance": 2,
            "hd95": figure(17.17, 15.15, 19.19),
            "surface_dice": around(0.3737),
            "n_hd95": 571,
            "n_surface_dice": 577,
        },
        detection=detection | {"n_positive": 583, "n": 1166},
        reliability={
            "ece": around(0.0321),
            "bins": [
                {
                    "low": k / 10,
                    "high": (k + 1) / 10,
                    "pixels": 10 ** (7 - k // 2) + k if k != 5 else 0,
                    "confidence": k / 10 + 0.0512 if k != 5 else None,
                    "frequency": k / 10 + 0.0213 if k != 5 else None,
                }
                for k in range(10)
            ],
        },
        severity={
            "n": 1159,
            "n_without_lungs": 7,
            "mae": around(0.0876),
            "bias": around(-0.0123),
            "limits": {"low": around(-0.2345), "high": around(0.2099)},
        },
        classes={
            label: {
                "n": 300 + k,
                "n_empty": 0 if k == 0 else 300 + k,
                "dice": around(round(0.55 + 0.01 * k, 4)),
                "positive_dice": around(0.6565) if k == 0 else figure(None, None, None),
                "blank_rate": around(0.8585) if k else figure(None, None, None),
                "false_pixels": figure(123.4 + k, 110.0, 140.0),
            }
            for k, label in enumerate(CLASSES)
        },
        lesions=[
            {
                "low": low,
                "high": high,
                "n": 101 + k,
                "dice": around(round(0.41 + 0.1 * k, 4)),
                "iou": around(round(0.31 + 0.1 * k, 4)),
                "sensitivity": around(round(0.36 + 0.1 * k, 4)),
            }
            for k, (low, high) in enumerate(zip(share[:-1], share[1:], strict=True))
        ],
        phantom=True,
    )
    return results | changes


AUDIT = {
    "root": "/somewhere/images",
    "phantom": True,
    "trees": {
        "infection": {
            "folder": "Infection Segmentation Data",
            "images": {
                "Train": dict(zip(CLASSES, (1861, 931, 933), strict=True)),
                "Val": dict(zip(CLASSES, (466, 233, 233), strict=True)),
                "Test": dict(zip(CLASSES, (583, 292, 291), strict=True)),
            },
            "published": {
                "Train": dict(zip(CLASSES, (1864, 932, 932), strict=True)),
                "Val": dict(zip(CLASSES, (466, 233, 233), strict=True)),
                "Test": dict(zip(CLASSES, (583, 292, 291), strict=True)),
            },
        }
    },
    "files": {"not_binary": [{"path": f"{k}.png"} for k in range(43)]},
    "identical": {
        "pairs": [
            {"parts": ["infection/Train", "infection/Test"], "pairs": 3, "leak": True}
        ],
        "across_splits": [],
    },
    "near": {"pairs": [], "across_splits": []},
    "seen_before": {"infection/Test": {"identical": 3, "near": 21}},
}


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


# An image of Dice .75; one missed; one left blank; a false alarm where no lung is.
ROWS = """
a.png,COVID-19,30,10,10,50,.1,.75,.6,.9,80,.5,.5,3.0,.5
b.png,COVID-19,0,0,8,92,.9,0.0,0.0,.2,80,.1,0.0,,
c.png,Normal,0,0,0,100,.1,1.0,1.0,.1,80,0.0,0.0,,
d.png,Normal,0,5,0,95,.3,0.0,0.0,.7,0,,,,
"""


# The same images with true lungs: of Dice .9; missed; two left blank.
TRUE_ROWS = """
a.png,COVID-19,36,4,4,56,.1,.9,.818,.9,80,.5,.5,3.0,.5
b.png,COVID-19,0,0,8,92,.9,0.0,0.0,.2,80,.1,0.0,,
c.png,Normal,0,0,0,100,.1,1.0,1.0,.1,80,0.0,0.0,,
d.png,Normal,0,0,0,100,.3,1.0,1.0,.7,80,0.0,0.0,,
"""


def write_regions(folder: Path, own: str, *, phantom: bool = True) -> None:
    """Writes the JSON files of an evaluated run of infection.

    Args:
      folder: the run's `results`.
      own: what the network was trained on, "truth", "predicted" or "none": its files
        have the split for a stem, without the region.
      phantom: whether the images are.
    """
    starts = {"truth": 0.601, "predicted": 0.502, "none": 0.403, "outside": 0.444}
    for roi, start in starts.items():
        results = make_full_results(start, roi=roi, phantom=phantom)
        if roi == "outside":  # a probe, which nothing is tuned for
            del results["untuned"]
            results |= {"operating_point": None, "threshold": 0.5}
        stem = "test" if roi == own else f"test-{roi}"
        write_json(folder / f"{stem}.json", results)
    for split, start in (("val", 0.333), ("train", 0.666)):
        results = make_full_results(start, split=split, roi=own, phantom=phantom)
        write_json(folder / f"{split}.json", results)


def write_finished_run(workdir: Path, *, phantom: bool = True) -> Path:
    """Writes all that a page can be made of; returns the folder."""
    config = infection.get_config("phantom" if phantom else "")
    config.init_from = "runs/<script>"
    told = {
        "command": COMMAND,
        "started": "2026-01-02T03:04:05+0000",
        "python": "3.11.9",
        "versions": {"jax": "0.10.77", "flax": "0.12.88"},
        "commit": "1f3a",
    }
    save_config(config, workdir / "config.json", told)
    folder = workdir / "results"
    write_regions(folder, "truth", phantom=phantom)
    head = ",".join((*COUNTED, *MEASURED))
    (folder / "test-predicted.csv").write_text(head + ROWS)
    (folder / "test.csv").write_text(head + TRUE_ROWS)
    write_json(folder / "audit.json", AUDIT)
    _draw(workdir / "figures", "PHANTOM infection, Test: synthetic run")
    lines = _lines()
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return workdir


def _lines() -> list[dict]:
    train = [
        {"step": k, "split": "train", "loss": 0.9 / (1 + k / 40)}
        for k in range(5, 200, 5)
    ]
    val = [
        {"step": 20 * k, "split": "val", "loss": 1 / (1 + k / 2)}
        | {f"{f}_dice": 0.05 * k + add for f, add in _ADDED.items()}
        for k in range(1, 11)
    ]
    return train + val


_ADDED = {"all": 0.0412, "positive": 0.1, "pooled": 0.15}


def _draw(folder: Path, title: str) -> None:
    draw_curves(folder / "curves.png", _lines(), title)
    samples = [_image(k) for k in range(10)]
    panels = [
        Panel(f"{name}: covid_{k}.png", sample, sample, truth, output)
        for k, (name, (sample, truth, output)) in enumerate(
            zip(("severe", "mild", "Normal"), samples[:3], strict=True)
        )
    ]
    draw_qualitative(folder / "qualitative.png", panels, title)
    for name in ("best", "median", "worst"):
        thumbnails = [
            Thumbnail(f"covid_{1000 + k}.png", CLASSES[k % 3], 1 - k / 11, *sample)
            for k, sample in enumerate(samples)
        ]
        draw_sheet(folder / f"{name}.png", thumbnails, f"{title}, {name}")
    edges = np.linspace(0, 1, 11)
    draw_reliability(
        folder / "reliability.png",
        edges=edges,
        confidence=edges[:-1] + 0.05,
        frequency=(edges[:-1] + 0.05) ** 1.3,
        pixels=10.0 ** np.arange(8, -2, -1),
        title=title,
    )
    rng = np.random.default_rng(0)
    true = np.where(np.arange(300) % 3, 0, rng.uniform(0, 1, 300))
    draw_severity(
        folder / "severity.png",
        true_share=true,
        found_share=np.clip(true + rng.normal(0, 0.1, 300), 0, 1),
        labels=[CLASSES[k % 3] for k in range(300)],
        bias=-0.0123,
        limits=(-0.2345, 0.2099),
        title=title,
    )


def _image(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two grey lobes, a disk for a truth and another, beside it, for an output."""
    y, x = np.mgrid[:64, :64]
    lobes = np.exp(-((np.abs(x - 32) - 12) ** 2 / 90 + (y - 34) ** 2 / 300))
    sample = (200 - 150 * lobes).clip(0, 255).astype(np.uint8)
    disks = [
        ((x - 20 - d) ** 2 + (y - 20 - 2 * seed) ** 2 < 40 + 5 * seed) for d in (0, 3)
    ]
    return sample, disks[0].astype(np.uint8), disks[1].astype(np.uint8)
