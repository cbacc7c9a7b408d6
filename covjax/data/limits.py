"""What the reading of one image from an untrusted file may cost."""

from covjax.system.workers import Limits

# Measured on a core of 2.4 GHz with images of 2^26 pixels, the largest that are read:
# JPEG 2000 of 16 bits takes 15 s of CPU time, every other format at most 4 s; WebP in
# colour takes 1.1 GiB, every other format at most .8 GiB.
IMAGE_LIMITS = Limits(seconds=60, wall=180, memory=2**31)
