"""Probabilities as their nearest 8-bit level, p = level / 255, on the host.

They are kept so wherever they are counted; counts.py makes levels of logits.
"""

import numpy as np

TOP_LEVEL = 255


def above(levels: np.ndarray, threshold: float) -> np.ndarray:
    """Returns where level / 255 is above a threshold, uint8 in {0, 1}.

    Args:
      levels: probabilities times 255, uint8 [...].
      threshold: in (0, 1).
    """
    # Among whole numbers the same as above 255 * threshold, and several times faster.
    return (levels > np.uint8(TOP_LEVEL * threshold)).view(np.uint8)
