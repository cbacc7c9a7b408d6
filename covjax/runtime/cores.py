"""How many processes work on images beside the one that has the devices."""

import os

MOST = 16  # workers; one that trains from images holds some 300 MB of libraries
AUTO = -1


def count_workers(wanted: int, *, cores: int, accelerated: bool) -> int:
    """Returns the number of worker processes beside the one that trains.

    Without an accelerator there are none: a step takes far longer than its images, and
    needs every core itself. With one, every second core loads images; a machine of two
    or three has none to spare.

    Args:
      wanted: `config.data.workers`; `AUTO` leaves it to the machine.
      cores: that this process may use.
      accelerated: whether the steps run on something else than these cores.
    """
    if wanted != AUTO:
        return wanted
    return min(cores // 2, MOST) if accelerated and cores >= 4 else 0


def count_cores() -> int:
    """Returns the cores that this process may use: a container may have a few only."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
