"""An image of a user's own, whatever its name says that it is."""

import numpy as np
import pytest
from PIL import Image

from covjax.errors import DataError
from covjax.predict import radiograph
from covjax.predict.radiograph import read_radiograph
from dicom_files import make_image, save

IMAGE = np.arange(64, dtype=np.uint8).reshape(8, 8)


def test_the_content_tells_what_a_file_is(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    picture = (tmp_path / "image.png").rename(tmp_path / "image.dcm")
    save(make_image(IMAGE), tmp_path / "image.png")
    for path in (picture, tmp_path / "image.png"):
        assert np.array_equal(read_radiograph(path).image, IMAGE)


@pytest.mark.parametrize("suffix", [".dcm", ".DICOM"])
def test_dicom_without_its_preamble_is_named_so(tmp_path, suffix):
    path = save(make_image(IMAGE), tmp_path / f"image{suffix}")
    path.write_bytes(path.read_bytes()[128:])
    with pytest.raises(
        DataError, match=r"image\.\w+: no DICOM file \(without its prea"
    ):
        read_radiograph(path)
    with pytest.raises(DataError, match="cannot be read as a picture"):
        read_radiograph(path.rename(tmp_path / "image.png"))


def test_one_that_is_replaced_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    Image.fromarray(IMAGE).save(path)
    read = radiograph.read_grey

    def read_and_replace(path):
        image = read(path)
        Image.fromarray(IMAGE.T).save(path)
        return image

    monkeypatch.setattr(radiograph, "read_grey", read_and_replace)
    with pytest.raises(DataError, match=r"image.png: changed while it was read"):
        read_radiograph(path)
    monkeypatch.undo()
    assert np.array_equal(read_radiograph(path).image, IMAGE.T)
