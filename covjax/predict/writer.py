"""What is written of one image: masks and a picture at its own size, and its row."""

import importlib.metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from covjax.data.image_io import shown
from covjax.data.mask_ops import place
from covjax.errors import DataError
from covjax.predict.dicom_seg import write_seg
from covjax.predict.inputs import Input
from covjax.predict.laterality import measure_sides
from covjax.predict.overlay import draw_overlay
from covjax.predict.postprocess import Origin, Points, Seen
from covjax.predict.quality_checks import doubt
from covjax.predict.radiograph import Radiograph
from covjax.predict.resume import (
    INFECTION,
    LUNGS,
    OVERLAYS,
    SEGS,
    digest_outputs,
    output_path,
    remove_outputs,
)
from covjax.predict.table import COLUMNS, Row
from covjax.runtime.files import write_whole

_OPTIONS = {  # of OpenCV
    ".png": [  # runs of equal pixels are all that a mask has: OpenCV's own choice
        # takes five times as long, and three times the space
        cv2.IMWRITE_PNG_COMPRESSION, 1,
        cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE,
        cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE,
    ],
    ".jpg": [
        cv2.IMWRITE_JPEG_QUALITY, 90,
        # Colour at full size: outlines are a pixel wide.
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ],
}  # fmt: skip


def make_row(asked: Input, **told: str) -> Row:
    """Returns an image's row, blank but for what is told."""
    about = {"file": shown(asked.path), "name": asked.name}
    return dict.fromkeys(COLUMNS, "") | about | told


def write_outputs(
    out: Path,
    asked: Input,
    radiograph: Radiograph,
    seen: Seen,
    points: Points,
    origin: Origin,
) -> Row:
    """Writes masks and overlay of an image and, of DICOM, a segmentation.

    Args:
      out: folder of all outputs.
      asked: which image.
      radiograph: it.
      seen: what the networks made of the inside of its border.
      points: what makes masks of that.
      origin: the networks; if of phantoms, the overlay and the segmentation say so.

    Returns:
      The image's row.

    Raises:
      OSError: if a file cannot be written.
    """
    shape, box = radiograph.image.shape, radiograph.box
    inside = radiograph.image[box].shape
    lungs = place(points.lungs_of(seen, inside), shape, box)
    infection = None
    if points.infection is not None:
        infection = place(points.infection_of(seen, inside), shape, box)
    overlay = draw_overlay(radiograph.image, lungs, infection, phantom=origin.phantom)
    warnings = [*radiograph.remarks, *doubt(radiograph.image, lungs)]
    _write(output_path(out, LUNGS, asked), 255 * lungs)
    if infection is not None:
        _write(output_path(out, INFECTION, asked), 255 * infection)
    _write(output_path(out, OVERLAYS, asked), cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR))
    remove_outputs(out, asked, [SEGS])  # of another file that had this path
    if radiograph.is_dicom:
        try:
            write_seg(
                output_path(out, SEGS, asked), asked.path, lungs, infection, origin,
                name="covjax", version=importlib.metadata.version("covjax"),
                sha256=radiograph.sha256,
            )  # fmt: skip
        except DataError as error:
            why = str(error).removeprefix(f"{shown(asked.path)}: ")
            warnings.append(f"no DICOM SEG: {why}")
    told = _figures(radiograph, seen, lungs, infection) | {
        "warnings": "; ".join(warnings),
        "file_sha256": radiograph.sha256,
        "outputs_sha256": digest_outputs(out, asked),
    }
    return make_row(asked, **told)


def _figures(
    radiograph: Radiograph,
    seen: Seen,
    lungs: np.ndarray,
    infection: np.ndarray | None,
) -> Row:
    nothing = np.zeros_like(lungs)
    sides = measure_sides(
        lungs, nothing if infection is None else infection,
        patient_left_on_right=radiograph.patient_left_on_right,
    )  # fmt: skip
    both, right, left = (sides[name] for name in ("both", "right", "left"))
    height, width = lungs.shape
    told: dict[str, Any] = {
        "lung_pixels": both.lung,
        "lung_pixels_right": right.lung,
        "lung_pixels_left": left.lung,
        "height": height,
        "width": width,
    }
    if infection is not None:
        told |= {
            # Of an image without lungs it means nothing.
            "presence": seen.presence if both.lung else None,
            "infected_share": both.share,
            "infected_share_right": right.share,
            "infected_share_left": left.share,
            "infected_pixels": both.infected,
        }
    if radiograph.spacing is not None:
        area = radiograph.spacing[0] * radiograph.spacing[1]
        told |= {"mm2_per_pixel": area, "lung_mm2": area * both.lung}
        if infection is not None:
            told["infected_mm2"] = area * both.infected
    return {name: _text(value) for name, value in told.items()}


def _text(value: float | int | None) -> str:
    """Returns a number as the table has it: shares to a thousandth of a percent."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _write(path: Path, picture: np.ndarray) -> None:
    """Writes a picture, grey or BGR, in the format that its name says."""
    _, content = cv2.imencode(path.suffix, picture, _OPTIONS[path.suffix])
    write_whole(path, content.tobytes())
