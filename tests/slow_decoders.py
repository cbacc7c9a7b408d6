"""Stands in for the decoder of images in a worker process: slow or greedy if told."""

import time
from pathlib import Path

from covjax.predict.radiograph import Radiograph, read_radiograph


def read_in_time(path: Path) -> Radiograph:
    """Reads an image; of a file that holds "wait FILE", not before FILE is there.

    Raises:
      MemoryError: of a file that holds "greedy".
    """
    word, _, file = path.read_bytes()[:1000].partition(b" ")
    while word == b"wait" and not Path(file.decode()).exists():
        time.sleep(0.02)
    if word == b"greedy":
        raise MemoryError
    return read_radiograph(path)
