"""What a stored grey level looks like, as DICOM defines it (PS3.3, C.7.6.3 to C.11.2).

All is said of a table with an entry for each pattern of bits that a pixel may have,
65,536 at most, in float64: exact, and small however large the image is.
"""

import numpy as np

WINDOWS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def stored_values(bits: int, signed: bool) -> np.ndarray:
    """Returns the number that each pattern of `bits` bits stands for; float64."""
    values = np.arange(2**bits, dtype=np.float64)
    if signed:  # two's complement
        values[2 ** (bits - 1) :] -= 2**bits
    return values


def look_up(values: np.ndarray, first: int, entries: np.ndarray) -> np.ndarray:
    """Returns the entries for values, of which `first` has the first one (C.11.1.1).

    What lies before takes the first entry, what lies behind the last.
    """
    if first > 32767 and values.min() < 0:  # told as unsigned, though levels are signed
        first -= 65536
    place = np.clip(np.rint(values) - first, 0, len(entries) - 1)
    return entries[place.astype(np.int64)].astype(np.float64)


def through_window(
    values: np.ndarray, center: float, width: float, function: str = "LINEAR"
) -> np.ndarray:
    """Returns values as brightness from 0 to 1, through a window (C.11.2.1.2, .1.3).

    LINEAR: 0 up to c - .5 - (w - 1) / 2, 1 above c - .5 + (w - 1) / 2, and between them
    (x - (c - .5)) / (w - 1) + .5. LINEAR_EXACT: the same with c in place of c - .5 and
    w of w - 1. SIGMOID: 1 / (1 + exp(-4 (x - c) / w)).

    Args:
      values: float64, of any shape.
      center: c.
      width: w, at least 1 if LINEAR, else above 0.
      function: one of `WINDOWS`.

    Raises:
      ValueError: if such a window there is not.
    """
    if not np.isfinite([center, width]).all() or function not in WINDOWS:
        raise ValueError("no such window")
    if width < 1 if function == "LINEAR" else width <= 0:
        raise ValueError("a window of no width")
    if function == "SIGMOID":
        # exp of more than 700 is beyond float64; of 100, as good as.
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -100, 100)))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    return stretch(values, center - width / 2, center + width / 2)


def stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns 0 up to `low`, 1 above `high`, and a straight line between them."""
    if high == low:
        return (values > low).astype(np.float64)
    return np.clip((values - low) / (high - low), 0, 1)


def present(values: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Returns the .5th and 99.5th percentile of an image's levels.

    The lowest and the highest level in their place, if an image has too few of others.

    Args:
      values: a level for each pattern of bits.
      counts: how many pixels have it, of which at least one is not 0.
    """
    low, high = np.quantile(
        values, [0.005, 0.995], weights=counts, method="inverted_cdf"
    )
    if low == high:
        seen = values[counts > 0]
        low, high = seen.min(), seen.max()
    return float(low), float(high)
