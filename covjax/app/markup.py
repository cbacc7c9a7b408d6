"""HTML of one image: its picture, its figures and its warnings."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from covjax.app.images import ViewedImage
from covjax.metrics.operating_point import OperatingPoint
from covjax.predict.laterality import Side, measure_sides
from covjax.predict.overlay import draw_overlay
from covjax.predict.quality_checks import doubt
from covjax.predict.segmenter import Segmenter

_QUALITY = 92  # of JPEG: outlines of one pixel stay clean


def picture_html(
    radiograph: ViewedImage,
    segmenter: Segmenter,
    infection: np.ndarray,
    *,
    opacity: float,
    beside: bool,
) -> str:
    """Returns the image with lungs and infection over it, as HTML.

    Args:
      radiograph: what is drawn.
      segmenter: what looked at it.
      infection: uint8 [H, W] in {0, 1}, of the image.
      opacity: of the infection's colour, in [0, 1].
      beside: whether the image itself is shown beside it.
    """
    over = draw_overlay(
        radiograph.image, radiograph.lungs, infection, opacity=opacity,
        phantom=radiograph.phantom or segmenter.origin.phantom,
    )  # fmt: skip
    figures = [_figure(over, _described(radiograph, infection), _LEGEND)]
    if beside:
        bare = draw_overlay(
            radiograph.image,
            np.zeros_like(radiograph.lungs),
            phantom=radiograph.phantom,
        )
        figures.insert(0, _figure(bare, "The image alone", "The image alone."))
    kind = "images beside" if beside else "images"
    return f'<div class="{kind}">{"".join(figures)}</div>'


_LEGEND = (
    '<span class="key lungs" aria-hidden="true"></span>Lungs: thin blue outline.'
    ' <span class="key infection" aria-hidden="true"></span>Infection: orange, hatched'
    " and outlined."
)


def _figure(picture: np.ndarray, alt: str, caption: str) -> str:
    buffer = io.BytesIO()
    # Colours at full resolution: an outline is a pixel wide.
    Image.fromarray(picture).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    data = base64.b64encode(buffer.getvalue()).decode()
    height, width = picture.shape[:2]
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" width="{width}"'
        f' height="{height}" alt="{html.escape(alt)}"><figcaption>{caption}'
        "</figcaption></figure>"
    )


def _described(radiograph: ViewedImage, infection: np.ndarray) -> str:
    found = "infection is drawn" if infection.any() else "no infection is drawn"
    lungs = (
        "with the lungs outlined" if radiograph.lungs.any() else "no lungs were found"
    )
    return f"The image, {lungs}; {found}. The figures tell how much."


def figures_html(
    radiograph: ViewedImage,
    segmenter: Segmenter,
    infection: np.ndarray,
    point: OperatingPoint,
) -> str:
    """Returns what was measured on an image, and what to know of it, as HTML.

    Args:
      radiograph: what was measured.
      segmenter: what looked at it.
      infection: uint8 [H, W] in {0, 1}, of the image, at `point`.
      point: the operating point.
    """
    hung = radiograph.patient_left_on_right
    sides = measure_sides(radiograph.lungs, infection, patient_left_on_right=hung)
    rows = "".join(_row(label, sides[name]) for name, label in _ROWS.items())
    where = "left" if hung else "right"
    remarks = "".join(
        f"<li>{html.escape(remark)}</li>"
        for remark in remarks_of(radiograph, segmenter, infection, point)
    )
    noted = f'<h3>To be noted</h3><ul class="remarks">{remarks}</ul>' if remarks else ""
    return (
        f"<h2>{html.escape(radiograph.name)}</h2>{_presence(radiograph, point)}"
        "<table><caption>Infected share of the lungs, in % of the area found"
        f"</caption><tbody>{rows}</tbody></table>"
        f"<p>Right and left are the patient's: the right lung is on the {where} of the"
        f" picture.</p>{noted}"
    )


def _presence(radiograph: ViewedImage, point: OperatingPoint) -> str:
    label = '<p class="figure"><span>Probability of an infection at all</span>'
    if (
        not radiograph.lungs.any()
    ):  # what it says of an image without lungs means nothing
        return f"{label}<strong>not judged</strong></p>"
    presence = radiograph.seen.presence or 0.0
    said = f"{label}<strong>{_percent(presence)}</strong></p>{_bar(presence)}"
    if point.presence > 0:
        said += f"<p>Infection is drawn from {_percent(point.presence)} on.</p>"
    return said


_ROWS = {"both": "Both lungs", "right": "Right lung", "left": "Left lung"}


def _row(label: str, side: Side) -> str:
    if side.share is None:
        told, bar = "not found", ""
    else:
        told, bar = _percent(side.share), _bar(side.share)
    return (
        f'<tr><th scope="row">{label}</th><td class="number">{told}</td>'
        f"<td>{bar}</td></tr>"
    )


def _percent(share: float) -> str:
    """Returns "12.3 %"; what is neither none nor all is not rounded to it."""
    if 0 < share < 0.001:
        return "under 0.1 %"
    if 0.999 < share < 1:
        return "over 99.9 %"
    return f"{100 * share:.1f} %"


def _bar(share: float) -> str:
    """Returns a bar that repeats a figure to the eye alone."""
    return (
        '<div class="bar" aria-hidden="true">'
        f'<span style="width:{100 * share:.1f}%"></span></div>'
    )


def remarks_of(
    radiograph: ViewedImage,
    segmenter: Segmenter,
    infection: np.ndarray,
    point: OperatingPoint,
) -> list[str]:
    """Returns what a user should know of an image and its figures, a sentence each."""
    remarks = [
        *radiograph.remarks,
        *doubt(radiograph.image, radiograph.lungs),
        *segmenter.remarks,
    ]
    if radiograph.phantom and not segmenter.origin.phantom:
        remarks.append(
            "a synthetic image: what networks of patients make of it means nothing"
        )
    if not radiograph.lungs.any():
        return remarks
    presence = radiograph.seen.presence or 0.0
    if presence < point.presence:
        remarks.append(
            "nothing is drawn at any threshold: the probability of an infection at all"
            f" is below the run's limit of {_percent(point.presence)}"
        )
    elif not infection.any():
        remarks.append("no area above the threshold is large enough to be drawn")
    return remarks


def told(problems: Sequence[tuple[str, str]], number: int) -> str:
    """Returns what is said of a drop, as HTML: what was read, and a line a problem.

    Args:
      problems: names of files, and why they are not shown.
      number: of images that are.
    """
    radiographs = "1 image is" if number == 1 else f"{number} images are"
    lines = [f"<p>{radiographs} shown.</p>"] if number or not problems else []
    lines += [
        '<p class="problem"><strong>Not shown:</strong>'
        f" {html.escape(name)}: {html.escape(why)}</p>"
        for name, why in problems
    ]
    role = "alert" if problems else "status"
    return f'<div role="{role}">{"".join(lines)}</div>'
