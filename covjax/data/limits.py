"""What the reading of one image from an untrusted file may cost."""

from covjax.system.workers import Limits

# The largest images that are read (2^26 pixels, 256 MiB) take a quarter of the time
# and, without JPEG 2000 in colour, half of the memory, on a core of 2.5 GHz.
IMAGE_LIMITS = Limits(seconds=60, wall=180, memory=2**31)
