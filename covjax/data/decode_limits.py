"""What the reading of one image from an untrusted file may cost."""

import os

from covjax.runtime.cores import MOST, count_cores
from covjax.runtime.worker_process import Limits

# Measured on a core of 2.4 GHz with images of 2^26 pixels, the largest that are read:
# JPEG 2000 of 16 bits takes 15 s of CPU time, every other format at most 4 s; WebP in
# colour takes 1.1 GiB, every other format at most .8 GiB. Writing what `predict` makes
# of such an image takes at most 10 s and 1.75 GiB.
IMAGE_LIMITS = Limits(seconds=60, wall=180, memory=2**31)


def count_readers() -> int:
    """Returns how many processes may read images at once.

    One for each core, at most `MOST`, and no more than fit in the memory of the machine
    if each takes as much as it may; at least one.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(count_cores(), MOST, memory // IMAGE_LIMITS.memory))
