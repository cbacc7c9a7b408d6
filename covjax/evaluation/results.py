"""What an evaluated split comes to: a row per image, a summary, and the masks.

    results/<stem>.csv   a row per image; every figure below is taken from these,
    results/<stem>.npz   the calibration from these: levels and masks,
    results/<stem>.json  figures with intervals.

The stem is the split, "test", where the network was shown what it was trained on, else
both: "test-predicted". `docs/metrics.md` defines the figures.
"""

import csv
import dataclasses
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covjax.data.covidqu import Sample
from covjax.data.split_masks import SplitMasks
from covjax.errors import UsageError
from covjax.metrics.calibration import histograms, summarize_reliability
from covjax.metrics.counts import count_pixels, dice_per_image, iou_per_image
from covjax.metrics.detection import summarize_detection
from covjax.metrics.operating_point import OperatingPoint
from covjax.metrics.pixels import summarize_pixels
from covjax.metrics.segmentation import summarize
from covjax.metrics.severity import summarize_severity
from covjax.metrics.subgroups import by_class, by_lesion_size
from covjax.metrics.surface import boundary_rows, summarize_boundaries
from covjax.runtime.csv_text import escape
from covjax.runtime.files import write_set
from covjax.runtime.strict_json import read_json
from covjax.train.eval_pass import Outputs

COUNTED = ("file", "class", "TP", "FP", "FN", "TN", "loss", "dice", "iou")
MEASURED = ("presence", "lung", "true_share", "found_share", "hd95", "surface_dice")
TOLERANCE = 2.0  # of the surface Dice, pixels
# What every reader of results/<stem>.json relies on.
NEEDED = (
    "task", "split", "phantom", "roi", "n", "n_empty", "threshold", "loss", "all",
    "positive", "pooled", "blank_rate",
)  # fmt: skip
# What the network is shown of an image: `config.data.roi`.
ROI_NAMES = {
    "truth": "true lungs",
    "predicted": "lungs found by stage 1",
    "none": "whole image",
    "outside": "only what lies outside the lungs",
}


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """A split, evaluated in one way.

    Attributes:
      samples: of the split, n.
      levels: probabilities times 255, uint8 [n, H, W].
      output: masks at the operating point, uint8 [n, H, W] in {0, 1}.
      truth: masks of the task, likewise.
      lung: the true lungs, likewise.
      seen_lung: the lungs that the network was shown, before they were widened; the
        true ones where it was shown the whole image.
      rows: `MEASURED` and "loss" → one value an image, [n]; NaN where not defined.
      counts: TP, FP, FN, TN of every image, int64 [n, 4].
    """

    samples: Sequence[Sample]
    levels: np.ndarray
    output: np.ndarray
    truth: np.ndarray
    lung: np.ndarray
    seen_lung: np.ndarray
    rows: dict[str, np.ndarray]
    counts: np.ndarray


def measure(
    samples: Sequence[Sample],
    outputs: Outputs,
    masks: SplitMasks,
    point: OperatingPoint,
    *,
    task: str,
    roi: str,
) -> Evaluated:
    """Measures every image of a split at an operating point.

    The infected share is that of the lungs that the network was shown, before they were
    widened: found pixels inside of them, divided by theirs.

    Args:
      samples: of the split.
      outputs: of the model, of the same images.
      masks: of the same images.
      point: what makes masks of the outputs.
      task: "lung" or "infection".
      roi: what the network was shown.
    """
    output = point.masks(outputs.levels, outputs.presence)
    seen = masks.found_lung if roi == "predicted" else masks.lung
    assert seen is not None, "lungs were predicted, and their masks not read"
    hd95, surface_dice = boundary_rows(masks.truth, output, tolerance=TOLERANCE)
    unknown = np.full(len(samples), np.nan)
    infection = task == "infection"
    rows = {
        "loss": outputs.losses,
        "presence": outputs.presence,
        "lung": np.count_nonzero(seen, axis=(1, 2)),
        "true_share": _share(masks.truth, masks.lung) if infection else unknown,
        "found_share": _share(output, seen) if infection else unknown,
        "hd95": hd95,
        "surface_dice": surface_dice,
    }
    return Evaluated(
        samples=samples,
        levels=outputs.levels,
        output=output,
        truth=masks.truth,
        lung=masks.lung,
        seen_lung=seen,
        rows=rows,
        counts=count_pixels(masks.truth, output),
    )


def _share(found: np.ndarray, lung: np.ndarray) -> np.ndarray:
    """Returns the share of the lungs' pixels that are found; NaN without lungs."""
    inside = np.count_nonzero(found & lung, axis=(1, 2)).astype(np.float64)
    pixels = np.count_nonzero(lung, axis=(1, 2))
    return np.divide(inside, pixels, out=np.full(len(inside), np.nan), where=pixels > 0)


def summarize_evaluated(
    evaluated: Evaluated, *, task: str, threshold: float, untuned: float | None
) -> dict[str, Any]:
    """Returns every figure of an evaluated split, each with its interval.

    Args:
      evaluated: from `measure`.
      task: "lung" or "infection".
      threshold: of the operating point.
      untuned: another threshold, whose families stand beside; None: none.

    Returns:
      What results/<stem>.json holds, but for what it is of. What the task does not
      have (lesions and severity of lungs) is None.
    """
    counts, rows = evaluated.counts, evaluated.rows
    labels = [sample.label for sample in evaluated.samples]
    infection = task == "infection"
    positive, found = (counts[:, 0] + counts[:, k] > 0 for k in (2, 1))
    # Outside the lungs all is background and easy: with it, any error would be small.
    counted = evaluated.lung if infection else np.ones_like(evaluated.lung)
    surface = summarize_boundaries(rows["hd95"], rows["surface_dice"])
    summary = summarize(counts, rows["loss"], labels, threshold=threshold)
    if untuned is not None:
        output = OperatingPoint(untuned).masks(evaluated.levels, rows["presence"])
        plain = count_pixels(evaluated.truth, output)
        of_plain = summarize(plain, rows["loss"], labels, threshold=untuned)
        names = ("threshold", "all", "positive", "pooled", "blank_rate")
        summary["untuned"] = {name: of_plain[name] for name in names}
    return summary | {
        "pixels": summarize_pixels(counts),
        "surface": {"tolerance": TOLERANCE}
        | {f"n_{name}": of_name.pop("n") for name, of_name in surface.items()}
        | surface,
        "detection": summarize_detection(rows["presence"], positive, found)
        if infection
        else None,
        "reliability": summarize_reliability(
            histograms(evaluated.levels, evaluated.truth, counted)
        ),
        "severity": summarize_severity(rows["true_share"], rows["found_share"])
        if infection
        else None,
        "classes": by_class(counts, labels),
        "lesions": by_lesion_size(counts, rows["true_share"]) if infection else None,
    }


def remove_results(
    folder: Path, stem: str, *, unless: tuple[int, str] | None = None
) -> None:
    """Removes the files of a stem, and says so.

    Args:
      folder: the run's `results`.
      stem: of the files.
      unless: step and fingerprint of the checkpoint whose results stay; None: none.
    """
    path = folder / f"{stem}.json"
    try:
        found = read_json(path, finite=False)
        if (found["checkpoint"], found["fingerprint"]) == unless:
            return
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none, not whole, or of before there were fingerprints
    files = [path.with_suffix(suffix) for suffix in (".json", ".csv", ".npz")]
    if any(file.exists() for file in files):
        print(f"{path.with_suffix('')}: removed, of another checkpoint or point")
    for file in files:
        file.unlink(missing_ok=True)


def write_results(
    folder: Path, stem: str, evaluated: Evaluated, summary: dict[str, Any]
) -> None:
    """Writes results/<stem>.npz, .csv and, last, .json, without which they are none.

    Where the disk is full, the results of before stay.

    Args:
      folder: the run's `results`.
      stem: of the files.
      evaluated: from `measure`.
      summary: what the JSON file is to hold.
    """
    names = ("levels", "output", "truth", "lung", "seen_lung")
    arrays = {name: getattr(evaluated, name) for name in names}
    write_set(
        {
            folder / f"{stem}.npz": _npz(arrays),
            folder / f"{stem}.csv": _csv(evaluated),
            folder / f"{stem}.json": json.dumps(summary, indent=2) + "\n",
        }
    )


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    """Returns what `numpy.savez_compressed` writes, several times faster."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, array in arrays.items():
            # One date for all: the same arrays give the same bytes.
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            with file.open(entry, "w", force_zip64=True) as out:
                np.lib.format.write_array(out, np.ascontiguousarray(array))
    return buffer.getvalue()


def _csv(evaluated: Evaluated) -> str:
    columns = {
        "dice": dice_per_image(evaluated.counts),
        "iou": iou_per_image(evaluated.counts),
    } | evaluated.rows
    names = ("loss", "dice", "iou", *MEASURED)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*COUNTED, *MEASURED))
    for i, sample in enumerate(evaluated.samples):
        writer.writerow(
            [escape(sample.name), escape(sample.label), *evaluated.counts[i].tolist()]
            + [_cell(columns[name][i].item()) for name in names]
        )
    return out.getvalue()


def _cell(value: float) -> str:
    """Returns every digit, so that all figures can be computed again; NaN is empty."""
    return "" if value != value else repr(value)


def read_results(workdir: Path, split: str) -> list[dict[str, Any]]:
    """Reads results/<split>.json of a run, and those of the other regions.

    Returns:
      What the files hold, the run's own region of interest first.

    Raises:
      UsageError: naming the file that is missing or is not what its name says.
    """
    first = workdir / "results" / f"{split.lower()}.json"
    others = (first.with_stem(f"{first.stem}-{roi}") for roi in ROI_NAMES)
    return [_read(path) for path in (first, *others) if path == first or path.exists()]


def _read(path: Path) -> dict[str, Any]:
    try:
        results = read_json(path, finite=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: no results there ({error})") from None
    if not isinstance(results, dict):
        raise UsageError(f"{path}: no results there")
    missing = [name for name in NEEDED if name not in results]
    if missing:
        raise UsageError(
            f"{path}: lacks {missing[0]!r}; --mode=evaluate writes it anew"
        )
    return results


def headline_roi(rois: Sequence[str]) -> str:
    """Returns which of a run's regions stands for it: a way that a clinic has.

    Args:
      rois: what the network was shown, in the results that there are; the way in which
        it was trained comes first.

    Returns:
      That way, if it needs no true lungs; else found lungs, where they were tried; else
      that way.
    """
    if rois[0] in ("none", "predicted") or "predicted" not in rois:
        return rois[0]
    return "predicted"


def roi_name(results: dict[str, Any]) -> str:
    """Returns the words for what the network was shown of each image."""
    roi, pixels = results.get("roi", "not stated"), results.get("roi_dilate")
    name = ROI_NAMES.get(roi, str(roi))
    if pixels:
        name += f", widened by {pixels} px"
    if results.get("roi_as") != "channel":
        return name
    if roi == "outside":
        return f"{name}, and where they are"
    return f"whole image, {name} beside it"
