"""The spread of measured values, as a table for people."""

from collections.abc import Mapping, Sequence

import numpy as np


def print_spread(what: str, values: Mapping[str, Sequence[float]]) -> None:
    """Prints lowest, median and highest of every name's values.

    Args:
      what: the values are, with the unit.
      values: names → one value of every round.
    """
    width = max(len(what), *map(len, values)) + 2
    print(f"{what:{width}}       min   median      max")
    for name, rounds in values.items():
        low, middle, high = np.percentile(rounds, (0, 50, 100))
        print(f"  {name:{width - 2}}{low:10.4g}{middle:9.4g}{high:9.4g}")
