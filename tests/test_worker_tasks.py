"""What a worker does of an image; here in this process."""

import errno
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from covjax.metrics.operating_point import OperatingPoint
from covjax.predict import worker_tasks
from covjax.predict.inputs import Input
from covjax.predict.postprocess import Origin, Points, Seen
from covjax.predict.radiograph import digest_file
from dicom_files import make_image, save
from whole_runs import PROJECT

IMAGE = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None], 64, axis=0)
HALF = (IMAGE > 127).astype(np.uint8)


@pytest.fixture
def asked(tmp_path) -> Input:
    path = tmp_path / "image.png"
    Image.fromarray(IMAGE).save(path)
    return Input(path, "ward/image")


def finish(
    asked, out, phantom: bool = False, *, sha256: str | None = None
) -> dict[str, str]:
    seen = Seen(255 * HALF, HALF, 255 * HALF, 0.75)
    points = Points(OperatingPoint(0.5), OperatingPoint(0.5))
    origin = Origin({"lungs": "0a", "infection": "1b"}, phantom)
    sha256 = sha256 or digest_file(asked.path)
    return worker_tasks.finish_image(asked, seen, out, points, origin, sha256)


def test_each_network_is_shown_the_image_at_its_size(asked):
    read = worker_tasks.read_sample(asked, (32, 64, 32))
    assert isinstance(read, tuple)
    (small, whole, again), sha256 = read
    assert sha256 == hashlib.sha256(asked.path.read_bytes()).hexdigest()
    assert np.array_equal(whole, IMAGE) and small is again
    assert small.shape == (32, 32)
    # Each pixel of half the size lies between two whose levels differ by four.
    assert np.array_equal(small[0, 1:-1], IMAGE[0, 2:-2].reshape(-1, 2).mean(axis=1))


def test_an_image_is_kept_until_it_is_finished_and_no_longer(asked, tmp_path):
    worker_tasks.read_sample(asked, (64,))
    sha256 = digest_file(asked.path)
    asked.path.unlink()  # what is written is of the image that was read
    row = finish(asked, tmp_path / "out", sha256=sha256)
    assert row["name"] == "ward/image" and row["presence"] == "0.75"
    assert row["infected_pixels"] == row["lung_pixels"] == str(64 * 32)
    assert (tmp_path / "out" / "lungs" / "ward" / "image.png").exists()
    with Image.open(tmp_path / "out" / "overlays" / "ward" / "image.jpg") as overlay:
        red, _, blue = np.moveaxis(np.asarray(overlay).astype(int), -1, 0)
    assert np.median((red - blue)[2:-2, 34:-2]) > 20  # orange
    assert worker_tasks._read == {}


def test_one_that_another_process_had_read_is_read_again(asked, tmp_path):
    assert worker_tasks._read == {}
    assert finish(asked, tmp_path / "out")["lung_pixels"] == str(64 * 32)


def test_one_that_was_replaced_since_another_process_read_it_is_an_error(
    asked, tmp_path
):
    before = digest_file(asked.path)
    Image.fromarray(255 - IMAGE).save(asked.path)
    row = finish(asked, tmp_path / "out", sha256=before)
    assert row["error"].startswith(f"{asked.path}: changed while it was read")
    assert row["lung_pixels"] == "" and not (tmp_path / "out").exists()


def test_what_knows_no_patient_is_marked_so(asked, tmp_path):
    pictures = []
    for phantom in (False, True):
        finish(asked, tmp_path / str(phantom), phantom)
        path = tmp_path / str(phantom) / "overlays" / "ward" / "image.jpg"
        pictures.append(np.asarray(Image.open(path)).astype(int))
    changed = np.abs(pictures[0] - pictures[1]).max(axis=-1) > 50
    assert changed[:10].any() and not changed[32:].any()  # a word, at the top


def test_without_lungs_there_is_no_presence(asked, tmp_path):
    nothing = 0 * HALF
    seen = Seen(nothing, nothing, 255 * HALF, 0.75)
    points = Points(OperatingPoint(0.5), OperatingPoint(0.5))
    origin = Origin({}, phantom=False)
    told = seen, tmp_path / "out", points, origin, digest_file(asked.path)
    row = worker_tasks.finish_image(asked, *told)
    assert row["presence"] == "" and "no lungs found" in row["warnings"]


def test_the_longest_image_that_is_read_has_its_picture(tmp_path):
    Image.new("L", (65_500, 4)).save(tmp_path / "image.png")
    row = finish(Input(tmp_path / "image.png", "image"), tmp_path / "out")
    assert row["width"] == "65500" and row["error"] == ""
    with Image.open(tmp_path / "out" / "overlays" / "image.jpg") as overlay:
        assert overlay.size == (65_500, 4)


def test_what_cannot_be_read_is_a_line(tmp_path):
    (tmp_path / "image.png").write_bytes(b"no picture")
    told = worker_tasks.read_sample(Input(tmp_path / "image.png", "image"), (64,))
    assert isinstance(told, str) and "image.png" in told and "\n" not in told
    assert worker_tasks._read == {}


@pytest.mark.parametrize(
    ("name", "why"), [("b", "Is a directory"), ("c.png/a", "File exists")]
)
def test_a_name_that_its_masks_cannot_have_is_a_line(tmp_path, asked, name, why):
    out = tmp_path / "out"
    (out / "lungs" / "b.png").mkdir(parents=True)
    (out / "lungs" / "c.png").write_bytes(b"")
    row = finish(Input(asked.path, name), out)
    assert row["lung_pixels"] == "" and row["error"].startswith(str(asked.path))
    assert "out/lungs/" in row["error"] and why in row["error"]
    row = finish(Input(asked.path, "a" * 254), out)
    assert "File name too long" in row["error"] and "\n" not in row["error"]


def test_a_segmentation_is_of_the_file_that_was_read_or_there_is_none(tmp_path):
    def radiograph(name: str, uid: str):
        told = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.2.1"}
        return save(make_image(IMAGE, SOPInstanceUID=uid, **told), tmp_path / name)

    asked, out = Input(radiograph("a.dcm", "1.2.3"), "a"), tmp_path / "out"
    worker_tasks.read_sample(asked, (64,))
    assert finish(asked, out)["warnings"].count("no DICOM SEG") == 0
    assert (out / "seg" / "a.dcm").exists()
    worker_tasks.read_sample(asked, (64,))
    before = digest_file(asked.path)
    radiograph("b.dcm", "1.2.4").replace(asked.path)
    row = finish(asked, out, sha256=before)
    assert "no DICOM SEG: changed while it was read" in row["warnings"]
    assert not (out / "seg" / "a.dcm").exists()


def test_a_full_disk_is_no_image_s_fault(tmp_path, asked, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        finish(asked, tmp_path / "out")


def test_what_images_need_loads_no_jax():
    """It would take each of them a second, and memory of the GPU."""
    program = "import sys, covjax.predict.worker_tasks; print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.stdout == "False\n", done.stderr
