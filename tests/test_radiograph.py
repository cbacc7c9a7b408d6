"""A film of a user's own, whatever its name says that it is."""

import numpy as np
import pytest
from PIL import Image

from covjax.errors import DataError
from covjax.predict import radiograph
from covjax.predict.radiograph import read_radiograph
from dicom_files import make_film, save

FILM = np.arange(64, dtype=np.uint8).reshape(8, 8)


def test_the_content_tells_what_a_file_is(tmp_path):
    Image.fromarray(FILM).save(tmp_path / "film.png")
    picture = (tmp_path / "film.png").rename(tmp_path / "film.dcm")
    save(make_film(FILM), tmp_path / "film.png")
    for path in (picture, tmp_path / "film.png"):
        assert np.array_equal(read_radiograph(path).image, FILM)


@pytest.mark.parametrize("suffix", [".dcm", ".DICOM"])
def test_dicom_without_its_preamble_is_named_so(tmp_path, suffix):
    path = save(make_film(FILM), tmp_path / f"film{suffix}")
    path.write_bytes(path.read_bytes()[128:])
    with pytest.raises(DataError, match=r"film\.\w+: no DICOM file \(without its prea"):
        read_radiograph(path)
    with pytest.raises(DataError, match="cannot be read as a picture"):
        read_radiograph(path.rename(tmp_path / "film.png"))


def test_one_that_is_replaced_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "film.png"
    Image.fromarray(FILM).save(path)
    read = radiograph.read_grey

    def read_and_replace(path):
        image = read(path)
        Image.fromarray(FILM.T).save(path)
        return image

    monkeypatch.setattr(radiograph, "read_grey", read_and_replace)
    with pytest.raises(DataError, match=r"film.png: changed while it was read"):
        read_radiograph(path)
    monkeypatch.undo()
    assert np.array_equal(read_radiograph(path).image, FILM.T)
