"""The frame around an image: collimator shutters, or the black or white of a scanner.

Rows and columns count as frame from an edge inward, as long as they are all but
uniform. A shutter that is round or slanted is no row: it stays.
"""

import numpy as np

_SPREAD = 4  # levels of 255 between the darkest and the brightest pixel of a line
_MOST = 0.4  # of a side; more than that is hardly a frame


def find_box(image: np.ndarray) -> tuple[slice, slice]:
    """Returns the part of an image that is not frame.

    A line is frame if its levels lie within 4 of each other, and all lines outside of
    it are frame. Rows and columns are looked at in turn, each within what is left,
    until nothing more goes: of a black frame within a white one, both go. A side of
    which more than 40 % would go, both ends together, is kept whole.

    Args:
      image: uint8 [H, W].

    Returns:
      Rows and columns, as slices with start and stop.
    """
    sides = [(0, length) for length in image.shape]
    before = None
    while sides != before:
        before = list(sides)
        for axis in (0, 1):
            (top, bottom), (left, right) = sides
            inner = image[top:bottom, left:right]
            lines = inner if axis == 0 else inner.T
            start = sides[axis][0] + _count_frame(lines)
            stop = sides[axis][1] - _count_frame(lines[::-1])
            length = image.shape[axis]
            if length - (stop - start) <= _MOST * length:
                sides[axis] = (start, stop)
    rows, columns = sides
    return slice(*rows), slice(*columns)


def _count_frame(lines: np.ndarray) -> int:
    """Returns how many of the first lines are frame, all of them at most."""
    frame = lines.max(axis=1) - lines.min(axis=1) <= _SPREAD
    return len(frame) if frame.all() else int(np.argmin(frame))
