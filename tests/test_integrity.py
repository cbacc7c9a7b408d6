"""Images that exceed the limits of a worker cost no other image."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covjax.data.covidqu import Sample
from covjax.data.image_io import read_grey
from covjax.data.integrity import BadSamples, read_all


def read_or_die(sample: Sample) -> int:
    image = read_grey(sample.image)
    if image[0, 0] > 200:
        os.kill(os.getpid(), signal.SIGKILL)
    return int(image[0, 0])


def test_an_image_that_ends_its_worker_is_named_and_the_others_are_read(tmp_path):
    samples = []
    for k, (level, suffix) in enumerate(
        [(10, "png"), (30, "bmp"), (255, "bmp"), (50, "bmp"), (20, "png")]
    ):
        path = Path(tmp_path / f"{k}.{suffix}")
        Image.fromarray(np.full((8, 8), level, np.uint8)).save(path)
        samples.append(Sample(path.name, "Normal", "Train", path, path, None))
    found = []
    with pytest.raises(
        BadSamples, match=r"2\.bmp: the process that read it was killed"
    ):
        for some in read_all(samples, read_or_die):
            found += some
    assert found == [10, 30, 50, 20]
