"""Images of a user's own: masks, table and pictures, whatever stands among them.

The networks hand every pixel on (plain_network.py), so that NumPy knows what they find.
"""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

import in_workers
from covjax.data.phantom.drawing import make_phantom
from covjax.predict import predict
from covjax.predict.inputs import Input
from covjax.predict.predict import batch_size, main
from covjax.predict.table import Additions
from covjax.predict.writer import make_row
from dicom_files import SHIPPED, make_image, save
from experiments.faults.hosts import hold_port
from plain_network import SIDE, draw_image, write_files, write_run
from whole_runs import PROJECT

IMAGE, LUNGS, SPOT = draw_image()
TURNED = np.ascontiguousarray(IMAGE[:, ::-1])


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The flags that name networks."""
    lung, infection = write_files(tmp_path_factory.mktemp("weights"))
    return [f"--lung={lung}", f"--infection={infection}"]


@pytest.fixture
def radiographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "images"
    (folder / "ward").mkdir(parents=True)
    Image.fromarray(IMAGE).save(folder / "a.png")
    Image.fromarray(TURNED).save(folder / "ward" / "b.png")
    monkeypatch.chdir(tmp_path)
    return folder


def table(out: str = "out") -> dict[str, dict[str, str]]:
    with Path(out, "predictions.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def mask(kind: str, name: str, out: str = "out") -> np.ndarray:
    stored = np.asarray(Image.open(Path(out, kind, f"{name}.png")))
    assert set(np.unique(stored)) <= {0, 255} and stored.dtype == np.uint8
    return (stored > 0).astype(np.uint8)


def test_each_image_gets_masks_a_picture_and_a_row(radiographs, networks, capsys):
    assert main(["images", "--out=out", *networks]) == 0
    said = capsys.readouterr().out
    assert (
        said.count("(PHANTOM weights, of no use") == 2 and "2 of 2 images: out" in said
    )
    assert np.array_equal(mask("lungs", "a"), LUNGS)
    assert np.array_equal(mask("infection", "a"), SPOT)
    assert np.array_equal(mask("infection", "ward/b"), SPOT[:, ::-1])
    for name in ("a", "ward/b"):
        with Image.open(f"out/overlays/{name}.jpg") as picture:
            assert (picture.size, picture.mode) == ((SIDE, SIDE), "RGB")
    rows = table()
    assert list(rows) == ["a", "ward/b"]
    a, b = rows["a"], rows["ward/b"]
    # The picture's left is the patient's right: 50 pixels, of which nine are infected.
    wanted = {
        "file": "images/a.png", "lung_pixels": "90", "lung_pixels_right": "50",
        "lung_pixels_left": "40", "infected_pixels": "9", "infected_share": "0.1",
        "infected_share_right": "0.18", "infected_share_left": "0", "height": "16",
        "width": "16", "mm2_per_pixel": "", "lung_mm2": "", "infected_mm2": "",
        "error": "",
    }  # fmt: skip
    assert {name: a[name] for name in wanted} == wanted
    surest = np.rint(255 / (1 + np.exp(-8 * (240 / 255 - 0.5)))) / 255
    assert float(a["presence"]) == pytest.approx(surest, abs=1e-5)
    assert (b["infected_share_right"], b["infected_share_left"]) == ("0", "0.18")


def test_lungs_alone(radiographs, networks):
    assert main(["images", "--out=out", networks[0], "--infection=none"]) == 0
    assert np.array_equal(mask("lungs", "a"), LUNGS)
    assert not Path("out/infection").exists()
    row = table()["a"]
    assert row["lung_pixels"] == "90"
    assert row["presence"] == row["infected_share"] == row["infected_pixels"] == ""


def test_runs_serve_as_files_do(radiographs, tmp_path):
    lung = write_run(tmp_path / "lung", "lung")
    run = write_run(tmp_path / "infection", "infection", lung_run=str(lung))
    assert main(["images", "--out=out", f"--infection={run}"]) == 0  # with its lungs
    assert np.array_equal(mask("infection", "a"), SPOT)


def write_dicom(path: Path, **elements) -> Path:
    """An image of 12 bits within a frame of four pixels; the lungs are dark in it."""
    framed = np.zeros((SIDE + 8, SIDE + 8), np.uint16)
    framed[4:-4, 4:-4] = IMAGE.astype(np.uint16) * 16
    told = {
        "BitsStored": 12, "WindowCenter": 2040, "WindowWidth": 4081,
        "PixelSpacing": [0.5, 0.4], "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.1", "PatientName": "Roe^Richard",
        "PatientID": "SECRET-17",
    }  # fmt: skip
    told = {name: value for name, value in (told | elements).items() if value}
    return save(make_image(framed, **told), path)


def test_dicom_has_its_frame_left_out_its_size_told_and_a_segmentation(
    radiographs, networks, capfd
):
    write_dicom(radiographs / "IM01", PatientOrientation=["R", "F"])
    assert main(["images/IM01", "--out=out", *networks]) == 0
    found = mask("infection", "IM01")
    assert found.shape == (SIDE + 8, SIDE + 8)
    assert np.array_equal(found, np.pad(SPOT, 4))
    assert np.array_equal(mask("lungs", "IM01"), np.pad(LUNGS, 4))
    row = table()["IM01"]
    assert float(row["mm2_per_pixel"]) == 0.2
    assert (float(row["lung_mm2"]), float(row["infected_mm2"])) == (18, 1.8)
    # It was hung the other way round: what is left on it is the patient's left.
    assert (row["infected_share_left"], row["infected_share_right"]) == ("0.18", "0")
    assert Path("out/seg/IM01.dcm").read_bytes()[128:132] == b"DICM"
    said = "".join(capfd.readouterr())
    for path in Path("out").rglob("*.*"):
        if path.suffix != ".dcm" and path.is_file():
            said += path.read_bytes().decode("latin-1")
    assert "Roe" not in said and "SECRET" not in said


def test_a_source_that_no_segmentation_can_refer_to_is_remarked(
    radiographs, networks, capsys
):
    write_dicom(radiographs / "c.dcm", StudyInstanceUID=None)
    assert main(["images/c.dcm", "--out=out", *networks]) == 0
    assert "no DICOM SEG" in table()["c"]["warnings"]
    assert not Path("out/seg/c.dcm").exists()
    assert main(["images/c.dcm", "--out=out", *networks]) == 0
    assert "1 of 1 images were done" in capsys.readouterr().out


def test_a_segmentation_that_has_gone_is_written_again(radiographs, networks):
    write_dicom(radiographs / "c.dcm")
    assert main(["images/c.dcm", "--out=out", *networks]) == 0
    seg = Path("out/seg/c.dcm")
    written = seg.read_bytes()
    seg.unlink()
    assert main(["images/c.dcm", "--out=out", *networks]) == 0
    assert (
        pydicom.dcmread(seg).PixelData == pydicom.dcmread(io.BytesIO(written)).PixelData
    )


def test_a_disk_that_is_full_when_a_segmentation_comes_is_told_as_one(
    radiographs, networks, capsys, monkeypatch
):
    monkeypatch.setattr(
        predict, "finish_image", in_workers.finish_until_seg_has_no_room
    )
    write_dicom(radiographs / "c.dcm")
    assert main(["images/c.dcm", "--out=out", *networks]) == 1
    said = capsys.readouterr().err
    assert "c.dcm: No space left" in said and "the same command goes on" in said


def test_a_hundred_broken_files_end_nothing(radiographs, networks, capfd):
    whole = {
        ".png": (radiographs / "a.png").read_bytes(),
        ".dcm": write_dicom(radiographs / "d.dcm").read_bytes(),
    }
    rng = np.random.default_rng(0)
    for suffix, content in whole.items():
        start = 140 if suffix == ".dcm" else 8  # says what it is
        for k in range(50):
            cut = content[: len(content) * k // 50]
            if k % 2:
                cut = content[:start] + rng.bytes(len(content) - start)
            (radiographs / f"broken-{k}{suffix}").write_bytes(cut)
    assert main(["images", "--out=out", *networks]) == 2
    rows = table()
    assert len(rows) == 103
    broken = [row for row in rows.values() if row["error"]]
    said = capfd.readouterr().err.splitlines()
    assert len(said) == len(broken) == 100
    for row, line in zip(broken, said, strict=True):
        assert line == f"covjax: {row['error']}" and row["file"] in line
        assert row["lung_pixels"] == ""
    for name in ("a", "ward/b", "d"):
        assert rows[name]["error"] == "" and rows[name]["infected_pixels"] == "9"


@pytest.mark.parametrize(
    ("function", "stand_in", "told"),
    [
        ("read_sample", in_workers.read_or_die, "read it ended by signal 11"),
        ("read_sample", in_workers.read_or_run_out, "too large for the memory"),
        ("finish_image", in_workers.finish_or_run_out, "too large for the memory"),
        ("finish_image", in_workers.finish_or_die, "masks ended with status 7"),
    ],
)
def test_an_image_that_is_too_much_for_its_process_costs_no_other(
    radiographs, networks, capfd, monkeypatch, function, stand_in, told
):
    """Those that this process had read are read again by the next."""
    monkeypatch.setattr(predict, function, stand_in)
    monkeypatch.setattr(predict, "count_readers", lambda: 1)
    for name in ("b", "c", "d", "dies", "e", "f"):
        Image.fromarray(TURNED).save(radiographs / f"{name}.png")
    assert main(["images", "--out=out", *networks]) == 2
    rows = table()
    assert len(rows) == 8
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("covjax: images/dies.png: ") and told in line
    assert line == f"covjax: {rows.pop('dies')['error']}"
    assert {row["infected_pixels"] for row in rows.values()} == {"9"}
    monkeypatch.undo()
    monkeypatch.chdir(radiographs.parent)
    assert main(["images", "--out=out", *networks]) == 0
    assert table()["dies"]["infected_pixels"] == "9"


@pytest.mark.parametrize(
    ("radiographs", "expected"), [(1, 8), (8, 8), (9, 16), (32, 32), (1000, 32)]
)
def test_a_batch_is_four_images_of_a_device_or_as_few_as_there_are(
    radiographs, expected
):
    assert batch_size(radiographs) == expected  # on 8 devices


def test_what_is_done_is_not_done_again(radiographs, networks, capsys):
    flags = ["images", "--out=out", *networks]
    (radiographs / "c.png").write_bytes(b"no picture")
    assert main(flags) == 2
    masks = {p: p.stat().st_mtime_ns for p in Path("out/lungs").rglob("*.png")}
    assert len(masks) == 2
    Image.fromarray(TURNED).save(radiographs / "c.png")  # mended
    Image.fromarray(TURNED).save(radiographs / "a.png")  # another image of that name
    os.utime(radiographs / "a.png", ns=(0, 0))
    capsys.readouterr()
    assert main(flags) == 0
    assert "1 of 3 images were done" in capsys.readouterr().out
    kept = {path for path, time in masks.items() if path.stat().st_mtime_ns == time}
    assert kept == {Path("out/lungs/ward/b.png")}
    assert np.array_equal(mask("infection", "a"), SPOT[:, ::-1])
    assert list(table()) == ["a", "c", "ward/b"]
    Path("out/infection/c.png").unlink()
    (radiographs / "ward" / "b.png").write_bytes(b"no picture")
    assert main(flags) == 2 and np.array_equal(mask("infection", "c"), SPOT[:, ::-1])
    assert not list(Path("out").rglob("ward/b.*"))  # an image that has gone


def test_a_row_is_never_taken_for_that_of_newer_masks(
    radiographs, networks, monkeypatch
):
    assert main(["images", "--out=out", *networks]) == 0
    Image.fromarray(np.pad(TURNED, (0, 4))).save(radiographs / "a.png")
    later = time.time_ns()
    os.utime(radiographs / "a.png", ns=(later, later))

    def fail(*_):
        raise RuntimeError("as if it were killed when the masks are written")

    monkeypatch.setattr(predict.Additions, "add", fail)
    assert main(["images", "--out=out", *networks]) == 1
    assert mask("lungs", "a").shape == (SIDE + 4, SIDE + 4)
    monkeypatch.undo()
    monkeypatch.chdir(radiographs.parent)
    assert main(["images", "--out=out", *networks]) == 0
    assert table()["a"]["height"] == str(SIDE + 4)


def test_the_newest_row_counts_whichever_process_added_it(radiographs, networks):
    assert main(["images", "--out=out", *networks]) == 0
    wanted = table()
    Path("out/predictions.csv").unlink()  # as two leave it that were killed
    with Additions(Path("out"), 1) as additions:
        additions.add(make_row(Input(Path("images/a.png"), "a"), error="gone"))
    assert main(["images", "--out=out", *networks]) == 0
    assert table() == wanted


def test_an_image_whose_outputs_are_called_otherwise_now_has_one_row(
    radiographs, networks
):
    assert main(["images", "--out=out", *networks]) == 0
    Image.fromarray(TURNED).save(radiographs / "a.bmp")
    assert main(["images", "--out=out", *networks]) == 0
    assert list(table()) == ["a.bmp", "a.png", "ward/b"]


def test_a_folder_of_something_else_is_left_alone(radiographs, networks, capsys):
    before = {path: path.read_bytes() for path in radiographs.rglob("*.png")}
    assert main(["images", "--out=images", *networks]) == 2
    assert "no images in images; links" in capsys.readouterr().err
    assert main(["images/a.png", "images/ward", "--out=images/ward", *networks]) == 2
    assert "holds files that are no predictions" in capsys.readouterr().err
    assert main(["images", "--out=out", *networks]) == 0
    written = Path("out/predictions.csv").read_bytes()
    assert main(["images", "--out=out", networks[0], "--infection=none"]) == 2
    assert "--out=out holds predictions of other networks" in capsys.readouterr().err
    assert Path("out/predictions.csv").read_bytes() == written
    assert {path: path.read_bytes() for path in radiographs.rglob("*.png")} == before


def test_another_image_of_a_name_that_is_there_costs_nothing(
    radiographs, networks, capsys
):
    assert main(["images/a.png", "--out=out", *networks]) == 0
    Image.fromarray(TURNED).save(radiographs.parent / "a.png")
    os.utime(radiographs.parent / "a.png", ns=(0, 0))  # older than what was found
    assert main(["a.png", "--out=out", *networks]) == 2
    assert "holds a of images/a.png, not of a.png" in capsys.readouterr().err
    assert np.array_equal(mask("infection", "a"), SPOT)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["nowhere", "--out=out"], "nowhere: no such file or folder"),
        (["images", "--out=out", "--lung=nowhere"], "nowhere: neither a run"),
        (["images", "--out=images/a.png"], "--out=images/a.png"),
        (["images", "--out=out", "--num_processes=2"], "--coordinator"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(radiographs, networks, capsys, flags, said):
    assert main(flags if "--lung" in flags[-1] else flags + networks) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def start(cwd: Path, *flags: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "XLA_FLAGS": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "covjax.predict", *flags], cwd=cwd, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_a_signal_leaves_what_is_whole_and_the_rest_is_done_later(
    radiographs, networks
):
    for k in range(1500):
        Image.fromarray(TURNED).save(radiographs / f"{k}.png")
    process = start(radiographs.parent, "images", "--out=out", *networks)
    rows = Path("out/.rows-0.csv")
    while process.poll() is None and not (rows.exists() and rows.stat().st_size > 999):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 143, said
    assert "stopped by signal 15" in said and "Traceback" not in said
    done = rows.read_text().count("\n")
    assert 0 < done < 1502 and not Path("out/predictions.csv").exists()
    process = start(radiographs.parent, "images", "--out=out", *networks)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert f"{done:,} of 1,502 images were done" in said
    found = table()
    assert len(found) == 1502
    assert {row["infected_pixels"] for row in found.values()} == {"9"}


def test_processes_share_the_images(radiographs, networks):
    for k in range(10):
        Image.fromarray(TURNED).save(radiographs / f"{k}.png")
    flags = ["images", "--out=out", *networks, "--num_processes=2"]
    with hold_port() as held:
        flags.append(f"--coordinator=127.0.0.1:{held.getsockname()[1]}")
        processes = [
            start(radiographs.parent, *flags, f"--process_id={k}") for k in range(2)
        ]
        said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "12 of 12 images: out" in said[0] and "images" not in said[1]
    assert main(["images", "--out=alone", *networks]) == 0
    assert table() == table("alone")
    for name in table():
        assert np.array_equal(mask("infection", name), mask("infection", name, "alone"))


def test_one_command_leads_from_an_image_to_its_masks(tmp_path):
    """With the weights that come with covjax, on an image of no patient."""
    radiograph = make_phantom("COVID-19", np.random.default_rng(4), 300)
    Image.fromarray(radiograph["image"]).save(tmp_path / "image.png")
    process = start(tmp_path, "image.png", "--out=out")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "PHANTOM" not in said  # the weights are of patients, if the image is not
    lungs = np.asarray(Image.open(tmp_path / "out" / "lungs" / "image.png")) > 0
    both = (lungs & (radiograph["lung"] > 0)).sum()
    assert 2 * both / (lungs.sum() + radiograph["lung"].sum()) > 0.8
    told = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert told["phantom"] is False and len(told["networks"]) == 2


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of what it wrote itself
def test_dicom_of_every_encoding_has_masks_of_its_size(radiographs, networks, capfd):
    """On all files of one frame that come with pydicom, whatever they show."""
    folder, sizes, syntaxes = radiographs / "dicom", {}, {}
    folder.mkdir()
    for path in sorted(SHIPPED.glob("*.dcm")):
        told = pydicom.dcmread(path, force=True)
        if path.read_bytes()[128:132] == b"DICM":
            shutil.copy(path, folder)
            if (
                "Rows" in told
                and "PixelData" in told
                and str(told.get("NumberOfFrames") or 1) == "1"
            ):
                sizes[f"dicom/{path.stem}"] = told.Rows, told.Columns
                syntaxes[f"dicom/{path.stem}"] = told.file_meta.TransferSyntaxUID
    main(["images", "--out=out", *networks])
    rows = table()
    good = [name for name in sizes if not rows[name]["error"]]
    assert len(good) >= 30 and len({syntaxes[name] for name in good}) >= 8
    for name in good:
        assert mask("lungs", name).shape == mask("infection", name).shape == sizes[name]
        assert (int(rows[name]["height"]), int(rows[name]["width"])) == sizes[name]
        if not rows[name]["warnings"].count("no DICOM SEG"):
            seg = pydicom.dcmread(Path("out", "seg", f"{name}.dcm"))
            source = pydicom.dcmread(folder / f"{Path(name).name}.dcm")
            (series,) = seg.ReferencedSeriesSequence
            (instance,) = series.ReferencedInstanceSequence
            assert instance.ReferencedSOPInstanceUID == source.SOPInstanceUID
    said = capfd.readouterr().err.splitlines()
    assert all(line.startswith("covjax: images/dicom/") for line in said)
