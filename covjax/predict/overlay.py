"""Lungs and infection drawn over an image, to be looked at."""

import cv2
import numpy as np

from covjax.colours import BLUE, ORANGE

OPACITY = 0.3  # of the infection's colour


def draw_overlay(
    radiograph: np.ndarray,
    lungs: np.ndarray,
    infection: np.ndarray | None = None,
    *,
    opacity: float = OPACITY,
    phantom: bool = False,
) -> np.ndarray:
    """Draws the outlines of both masks over an image, and fills the infection.

    The lungs have a thin blue outline; the infection is orange, filled, hatched and
    outlined: the two are told apart with any colour vision, and without colours.

    Args:
      radiograph: uint8 [H, W].
      lungs: uint8 [H, W] in {0, 1}.
      infection: likewise; None draws none.
      opacity: of the infection's colour, in [0, 1].
      phantom: whether to write that the networks, or the image, are of no patient.

    Returns:
      RGB, uint8 [H, W, 3].
    """
    picture = cv2.cvtColor(radiograph, cv2.COLOR_GRAY2RGB)
    thick = max(1, round(min(radiograph.shape) / 256))
    if infection is not None and infection.any():
        left, top, width, height = cv2.boundingRect(infection)
        box = slice(top, top + height), slice(left, left + width)
        part, inside = picture[box], infection[box]
        hatch = _hatch(radiograph.shape, 8 * thick, thick)[box]
        # Half of the colour everywhere, all of it on every eighth diagonal: a hatch
        # that stands out where the image is as bright as the colour.
        for where, share in ((1 - hatch, opacity / 2), (hatch, opacity)):
            tinted = cv2.LUT(part, _tints(ORANGE, share))
            cv2.copyTo(tinted, inside * where, part)
    _outline(picture, lungs, BLUE, thick)
    if infection is not None:  # over that of the lungs: a whole lung may be infected
        _outline(picture, infection, ORANGE, thick)
    if phantom:
        _write(picture, "PHANTOM")
    return picture


def _tints(colour: str, share: float) -> np.ndarray:
    """Returns what each level becomes under a share of a colour, uint8 [1, 256, 3]."""
    levels = np.arange(256)[None, :, None]
    mixed = (1 - share) * levels + share * np.array(_rgb(colour))
    return np.rint(mixed).astype(np.uint8)


def _hatch(shape: tuple[int, ...], step: int, thick: int) -> np.ndarray:
    """Returns 1 on `thick` of `step` diagonals, else 0, uint8 [H, W]."""
    row = (np.arange(shape[0] + shape[1]) % step < thick).astype(np.uint8)
    # Each row is the one above it, moved by a pixel.
    return np.lib.stride_tricks.sliding_window_view(row, shape[1])[: shape[0]]


def _outline(picture: np.ndarray, mask: np.ndarray, colour: str, thick: int) -> None:
    outlines, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, _rgb(colour), thick)


def _write(picture: np.ndarray, words: str) -> None:
    scale = min(picture.shape[:2]) / 400
    thick = max(1, round(2 * scale))
    at = (round(12 * scale), round(32 * scale))
    for colour, width in (((0, 0, 0), 3 * thick), ((255, 255, 255), thick)):
        cv2.putText(
            picture, words, at, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, width,
            cv2.LINE_AA,
        )  # fmt: skip


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue
