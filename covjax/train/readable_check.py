"""Whether all images of a split can be read, told before anything is done with them."""

import functools
from collections.abc import Sequence
from typing import Any

from covjax.data.covidqu import Sample, read_sample
from covjax.data.integrity import BadSample, BadSamples, read_all
from covjax.data.pipeline import ReadSamples, make_reader
from covjax.runtime.progress import progress_bar


def find_bad(samples: Sequence[Sample], data: Any) -> list[BadSample]:
    """Returns the images of which a file cannot be used.

    Images of which there are packed copies have been read. Where there are none, they
    are made, unless an image is bad; without a cache, all images are read and dropped.

    Args:
      samples: of one split.
      data: `config.data`; `cache` and `image_size` are read.

    Raises:
      DataError: if the packed copies cannot be made or opened.
    """
    try:
        if isinstance(make_reader(samples, data), ReadSamples):
            read = functools.partial(read_sample, size=data.image_size)
            with progress_bar("reading images") as progress:
                for _ in read_all(samples, read, progress):
                    pass
    except BadSamples as found:
        return found.bad
    return []
