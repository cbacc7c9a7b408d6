"""What lies in a run's folder, read for the report; most of it may be absent."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from covjax.errors import UsageError
from covjax.evaluation.results import ROI_NAMES, headline_roi
from covjax.report import split_figures
from covjax.runtime.csv_text import unescape
from covjax.runtime.strict_json import read_json
from covjax.train.metric_writer import read_metrics

# Stems of results/*.json and *.csv.
RESULTS = (
    "test", "val", "train", "test-truth", "test-predicted", "test-none", "test-outside",
)  # fmt: skip
FIGURES = ("curves", *split_figures.FIGURES)


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """A run's folder in memory.

    Attributes:
      name: of the folder.
      config: settings, without "about".
      about: command, versions, commit; empty where the run did not write them.
      lines: of metrics.jsonl.
      results: by stem, what results/<stem>.json holds.
      counts: by stem, class and TP, FP, FN, TN of every image of results/<stem>.csv.
      audit: what results/audit.json holds, or None.
      figures: by stem, the bytes of figures/<stem>.png.
    """

    name: str
    config: dict[str, Any]
    about: dict[str, Any]
    lines: list[dict]
    results: dict[str, dict[str, Any]]
    counts: dict[str, tuple[list[str], np.ndarray]]
    audit: dict[str, Any] | None
    figures: dict[str, bytes]

    @property
    def task(self) -> str:
        """Returns "lung" or "infection"."""
        return self.config["data"]["task"]

    @property
    def phantom(self) -> bool:
        """Tells whether the images are synthetic."""
        asked = bool(self.config["data"].get("phantom_images"))
        return asked or any(r.get("phantom") for r in self.results.values())

    @property
    def from_table(self) -> bool:
        """Tells whether the images are of another set than COVID-QU-Ex."""
        return any(r.get("from_table") for r in self.results.values())

    @property
    def headline(self) -> str | None:
        """Returns the stem that stands for the run: a clinic's way, else its own."""
        if "test" not in self.results:
            return None
        own = str(self.results["test"].get("roi"))
        rois = [own, *(roi for roi in ROI_NAMES if self.of_region(roi))]
        roi = headline_roi(rois)
        return "test" if roi == own else self.of_region(roi)

    def of_region(self, roi: str) -> str | None:
        """Returns the stem of Test where the network was shown this of each image."""
        for stem in ("test", f"test-{roi}"):
            if self.results.get(stem, {}).get("roi") == roi:
                return stem
        return None

    @property
    def main(self) -> dict[str, Any]:
        """Returns the results of `headline`; empty before Test was read."""
        return self.results[self.headline] if self.headline else {}


def read_run(workdir: Path) -> RunFiles:
    """Reads a run's folder.

    Raises:
      UsageError: if config.json is missing, or a JSON file is none.
    """
    config = _read_json(workdir / "config.json")
    if config is None:
        raise UsageError(f"{workdir} holds no run: no config.json")
    about = config.pop("about", {})
    folder = workdir / "results"
    results = {s: _read_json(folder / f"{s}.json") for s in RESULTS}
    tables = {s: folder / f"{s}.csv" for s in RESULTS}
    figures = {s: workdir / "figures" / f"{s}.png" for s in FIGURES}
    return RunFiles(
        name=workdir.resolve().name,
        config=config,
        about=about,
        lines=read_metrics(workdir),
        results={s: found for s, found in results.items() if found},
        counts={s: _read_counts(path) for s, path in tables.items() if path.exists()},
        audit=_read_json(folder / "audit.json"),
        figures={s: path.read_bytes() for s, path in figures.items() if path.exists()},
    )


def _read_json(path: Path) -> Any:
    try:
        return read_json(path, finite=False)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UsageError(f"{path}: no JSON ({error})") from None


def _read_counts(path: Path) -> tuple[list[str], np.ndarray]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    counts = [[int(row[k]) for k in ("TP", "FP", "FN", "TN")] for row in rows]
    return [unescape(row["class"]) for row in rows], np.array(counts, int).reshape(
        -1, 4
    )
