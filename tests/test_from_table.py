"""Images of another layout: refused with their line, or trained on in both stages."""

import csv
import dataclasses
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covjax.data import covidqu
from covjax.data.audit import audit
from covjax.data.from_table import from_table
from covjax.data.phantom.dataset import write_phantoms
from covjax.data.phantom.drawing import make_phantom
from whole_runs import PROJECT, finish, make_project, start

SHAPE = (10, 8)  # rows, columns
HEADER = "image,lung_mask,infection_mask,class,split"
LUNGS = np.zeros(SHAPE, np.uint8)
LUNGS[2:8, 1:7] = 255
SICK = np.zeros(SHAPE, np.uint8)
SICK[4, 3] = 255
EMPTY = np.zeros(SHAPE, np.uint8)


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@dataclasses.dataclass
class Samples:
    """Images, and the lines of a table of them."""

    folder: Path
    lines: list[str] = dataclasses.field(default_factory=lambda: [HEADER])

    def add(
        self,
        name: str,
        label: str,
        split: str,
        infection: str | None = None,
        lungs: np.ndarray = LUNGS,
        sick: np.ndarray = SICK,
    ) -> None:
        """One image with a cell for the infection mask; "mask" writes one."""
        seed = len(self.lines)
        sample = np.random.default_rng(seed).integers(0, 256, SHAPE, np.uint8)
        write(self.folder / name, sample)
        mask = name.replace("/", "-").replace(".png", "")
        write(self.folder / "m" / f"{mask}.png", lungs)
        if infection is None:
            infection = "mask" if label == "COVID-19" else "none"
        if infection == "mask":
            infection = f"m/{mask}_i.png"
            write(self.folder / infection, sick)
        self.lines.append(f"{name},m/{mask}.png,{infection},{label},{split}")

    @property
    def table(self) -> str:
        path = self.folder / "images.csv"
        path.write_text("\n".join([*self.lines, ""]))
        return str(path)


@pytest.fixture
def samples(tmp_path) -> Samples:
    """Four images that can be used, one of them of stage 1 alone."""
    made = Samples(tmp_path / "in")
    made.add("a/1.png", "COVID-19", "Train")
    made.add("b/2.png", "COVID-19", "Val")
    made.add("c/3.png", "Non-COVID", "Test")
    made.add("c/4.png", "Normal", "Train", infection="")
    return made


def list_names(root: Path, task: str) -> dict[str, list[str]]:
    return {
        split: [f"{sample.label}/{sample.name}" for sample in of]
        for split in covidqu.SPLITS
        for of in [covidqu.list_samples(root, task, split)]
    }


def files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_each_image_stands_in_the_trees_that_have_its_masks(samples, tmp_path, capsys):
    root = tmp_path / "out"
    assert from_table.main([samples.table, str(root)]) == 0
    assert list_names(root, "lung") == {
        "Train": ["COVID-19/1.png", "Normal/4.png"],
        "Val": ["COVID-19/2.png"],
        "Test": ["Non-COVID/3.png"],
    }
    assert list_names(root, "infection") == {
        "Train": ["COVID-19/1.png"],
        "Val": ["COVID-19/2.png"],
        "Test": ["Non-COVID/3.png"],
    }
    (third,) = covidqu.list_samples(root, "infection", "Test")
    assert third.infection_mask is not None
    drawn = np.asarray(Image.open(third.infection_mask))
    assert drawn.shape == SHAPE and not drawn.any()
    out = capsys.readouterr().out
    assert out.splitlines()[:2] == [
        f"{root}: 4 images (17 files written)",
        "split: as the table has them, patients not known",
    ]
    counts = [line.split() for line in out.splitlines() if line.startswith("stage")]
    assert counts == [
        ["stage", "1", "Train", "1", "0", "1", "2"],
        ["stage", "1", "Val", "1", "0", "0", "1"],
        ["stage", "1", "Test", "0", "1", "0", "1"],
        ["stage", "2", "Train", "1", "0", "0", "1"],
        ["stage", "2", "Val", "1", "0", "0", "1"],
        ["stage", "2", "Test", "0", "1", "0", "1"],
    ]
    assert [line for line in out.splitlines() if line.startswith("note")] == [
        "note: images of stage 1 alone, without an infection mask: 1",
        "note: no infection in Test: figures of stage 2 tell nothing",
    ]
    assert f"python -m covjax.data.audit {root}" in out
    assert f"  --init_from=runs/own-lung --config.data.root={root}" in out


def test_links_lead_to_the_images_and_copies_do_without_them(samples, tmp_path, capsys):
    links, copies = tmp_path / "links", tmp_path / "copies"
    assert from_table.main([samples.table, str(links)]) == 0
    assert from_table.main([samples.table, str(copies), "--copy"]) == 0
    first = links / "Lung Segmentation Data/Train/COVID-19/images/1.png"
    assert os.readlink(first) == str(samples.folder / "a" / "1.png")
    trees = (files(links), files(copies))
    for tree in trees:
        del tree["FROM_TABLE.json"]
    assert trees[0] == trees[1] and len(trees[0]) == 17
    os.rename(samples.folder, tmp_path / "gone")
    for split in covidqu.SPLITS:
        for sample in covidqu.list_samples(copies, "infection", split):
            assert covidqu.read_sample(sample, 8).keys() == {
                "image",
                "lung",
                "infection",
            }


def test_without_infection_masks_there_is_stage_1_alone(samples, tmp_path, capsys):
    rest = ["class,split", "Normal,Train", "COVID-19,Val", "Normal,Test", "Normal,Test"]
    of_lungs = [",".join(line.split(",")[:2]) for line in samples.lines]
    samples.lines = [",".join(c) for c in zip(of_lungs, rest, strict=True)]
    root = tmp_path / "out"
    assert from_table.main([samples.table, str(root)]) == 0
    assert [path.name for path in root.iterdir() if path.is_dir()] == [
        "Lung Segmentation Data"
    ]
    out = capsys.readouterr().out
    assert "stage 2" not in out and "infection.py" not in out and "lung.py" in out


def test_names_are_kept_and_told_apart_in_a_split_and_class():
    rows = [
        from_table.Row(k, Path(f"/{k}/{name}"), Path(), None, True, label, split, "")
        for k, (name, label, split) in enumerate(
            [
                ("x.png", "Normal", "Train"),
                ("x.tif", "Normal", "Train"),
                ("X.png", "Normal", "Train"),
                ("x_2.png", "Normal", "Train"),
                ("x.png", "Normal", "Val"),
                ("x.png", "COVID-19", "Train"),
                ("x.1.png", "Normal", "Train"),
            ]
        )
    ]
    assert from_table.name_images(rows) == [
        "x", "x_2", "X_3", "x_2_2", "x", "x", "x.1",
    ]  # fmt: skip


def test_images_and_masks_of_one_name_stay_together(samples, tmp_path, capsys):
    other = np.array(LUNGS)
    other[2] = 0
    samples.add("z/1.png", "COVID-19", "Train", lungs=other)
    root = tmp_path / "out"
    assert from_table.main([samples.table, str(root)]) == 0
    one, two, _ = covidqu.list_samples(root, "lung", "Train")
    assert (one.name, two.name) == ("1.png", "1_2.png")
    assert two.image.samefile(samples.folder / "z" / "1.png")
    assert np.array_equal(np.asarray(Image.open(two.lung_mask)), other)
    assert np.array_equal(np.asarray(Image.open(one.lung_mask)), LUNGS)


def refused(samples: Samples, root: Path, capsys, *flags: str) -> list[str]:
    """The lines that a refusal says, without the table's name; nothing is written."""
    assert from_table.main([samples.table, str(root), *flags]) == 2
    told = capsys.readouterr()
    assert told.out == "" and not root.exists()
    start = f"{samples.folder / 'images.csv'}: "
    lines = told.err.splitlines()
    assert all(line.startswith(start) for line in lines), lines
    return [line.removeprefix(start) for line in lines]


def test_what_the_pixels_forbid_is_told_with_line_and_column(samples, tmp_path, capsys):
    samples.add("d/6.png", "Normal", "Train", infection="mask")
    samples.add("d/7.png", "COVID-19", "Train", lungs=LUNGS.T)
    samples.add("d/8.png", "COVID-19", "Train", sick=SICK[1:])
    samples.add("d/9.png", "COVID-19", "Train", lungs=255 - EMPTY)
    samples.add("d/10.png", "COVID-19", "Train")
    (samples.folder / "d" / "10.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    samples.add("d/11.png", "COVID-19", "Train")
    (samples.folder / "d" / "11.png").write_bytes(bytes(128) + b"DICM")
    here = samples.folder
    want = [
        f"line 6, infection_mask: {here}/m/d-6_i.png: infection in a Normal image,"
        " where"
        " COVID-19 alone may have any",
        f"line 7, lung_mask: {here}/m/d-7.png: mask of 10x8 pixels for an image of"
        " 8x10",
        f"line 8, infection_mask: {here}/m/d-8_i.png: mask of 8x9 pixels for an image"
        " of"
        " 8x10",
        f"line 9, lung_mask: {here}/m/d-9.png: corners and border are foreground: black"
        " and white are exchanged",
        f"line 10, image: {here}/d/10.png: cannot be read as a picture",
        f"line 11, image: {here}/d/11.png: cannot be read as a picture (no PNG, JPEG,"
        " TIFF, BMP, WebP)",
    ]
    said = refused(samples, tmp_path / "out", capsys, "--show=6")
    assert len(said) == 6
    assert all(a.startswith(b) for a, b in zip(said, want, strict=True)), said
    few = refused(samples, tmp_path / "out", capsys)
    assert few == said[:5] + ["and 1 more of such (--show=N)"]


def test_one_pixel_of_infection_counts_however_large_the_image(
    samples, tmp_path, capsys
):
    samples.add("d/6.png", "Non-COVID", "Train", infection="mask", sick=SICK)
    (said,) = refused(samples, tmp_path / "out", capsys)
    assert "infection in a Non-COVID image" in said


def test_an_empty_mask_of_another_class_is_no_infection(samples, tmp_path, capsys):
    samples.add("d/6.png", "Non-COVID", "Train", infection="mask", sick=EMPTY)
    samples.add("d/7.png", "COVID-19", "Train", infection="none")
    samples.add("d/8.png", "COVID-19", "Train", sick=EMPTY)
    assert from_table.main([samples.table, str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "note: COVID-19 images with an empty infection mask: 2\n" in said


def test_copies_of_an_image_are_refused(samples, tmp_path, capsys):
    samples.add("d/6.png", "Normal", "Test")
    (samples.folder / "d/6.png").write_bytes((samples.folder / "b/2.png").read_bytes())
    assert refused(samples, tmp_path / "out", capsys) == [
        f"line 6, image: {samples.folder}/d/6.png: the same image as in line 3, byte"
        " for"
        " byte: keep one of them"
    ]


def test_each_stage_needs_images_of_each_split(samples, tmp_path, capsys):
    samples.lines[3] = samples.lines[3].replace(",none,", ",,")  # the only one of Test
    assert refused(samples, tmp_path / "out", capsys) == [
        "stage 2 has no images in Test: it takes some of each split (column split)"
    ]
    samples.lines = [line.replace(",Val", ",Train") for line in samples.lines]
    (said,) = refused(samples, tmp_path / "out", capsys)
    assert said.startswith("stage 1 has no images in Val:")


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("pneumonia", "not of the form NAME=CLASS"),
        ("=Normal", "not of the form NAME=CLASS"),
        ("pneumonia=Sick", "'Sick' is none of COVID-19, Non-COVID or Normal"),
    ],
)
def test_a_class_that_leads_nowhere_is_a_usage_error(samples, capsys, flag, said):
    assert from_table.main([samples.table, "out", f"--class={flag}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_name_of_two_classes_is_a_usage_error(samples, capsys):
    flags = ["--class=a=Normal", "--class", "A=Non-COVID"]
    assert from_table.main([samples.table, "out", *flags]) == 2
    assert "'A=Non-COVID': Normal before" in capsys.readouterr().err


def test_a_folder_of_something_else_is_told_before_images_are_read(
    samples, tmp_path, capsys
):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    (samples.folder / "a/1.png").write_bytes(b"")
    assert from_table.main([samples.table, str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "neither empty nor laid out by a table" in line
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_changed_table_is_followed(samples, tmp_path, capsys):
    root = tmp_path / "out"
    assert from_table.main([samples.table, str(root)]) == 0
    samples.lines[1] = samples.lines[1].replace(",Train", ",Val")
    samples.add("d/6.png", "Normal", "Train")
    assert from_table.main([samples.table, str(root)]) == 0
    assert list_names(root, "infection") == {
        "Train": ["Normal/6.png"],
        "Val": ["COVID-19/1.png", "COVID-19/2.png"],
        "Test": ["Non-COVID/3.png"],
    }
    assert from_table.main([samples.table, str(root)]) == 0
    written = [
        line for line in capsys.readouterr().out.splitlines() if "written" in line
    ]
    # An image of both stages is five files: one moved, one new.
    assert written == [
        f"{root}: 4 images (17 files written)",
        f"{root}: 5 images (10 files written)",
        f"{root}: 5 images (0 files written)",
    ]


def test_patients_decide_and_are_written_nowhere(samples, tmp_path, capsys):
    # By SHA-256: "bar" is of Test (fc), the sentence of Val (d7), "abc" of Train (ba).
    fox = "The quick brown fox jumps over the lazy dog"
    samples.lines = [line.rsplit(",", 1)[0] for line in samples.lines]
    patients = ["patient", "bar", fox, "abc", "bar"]
    samples.lines = [",".join(c) for c in zip(samples.lines, patients, strict=True)]
    samples.add("a/6.png", "Normal", "bar")  # its last cell is now the patient
    root = tmp_path / "out"
    assert from_table.main([samples.table, str(root)]) == 0
    assert list_names(root, "lung") == {
        "Train": ["Non-COVID/3.png"],
        "Val": ["COVID-19/2.png"],
        "Test": ["COVID-19/1.png", "Normal/4.png", "Normal/6.png"],
    }
    out = capsys.readouterr().out
    assert "split: 80 % Train, 10 % Val, 10 % Test, by a hash of the patient\n" in out
    everything = out.encode() + b"".join(
        name.encode() + content for name, content in files(root).items()
    )
    assert b"fox" not in everything and b"abc" not in everything


def test_phantoms_remain_phantoms(tmp_path, capsys):
    base = write_phantoms(
        tmp_path / "drawn", samples={"Train": 1, "Val": 1, "Test": 1}, size=32, seed=0
    )
    lines = ["image,lung_mask,class,split"]
    for split in covidqu.SPLITS:
        (sample,) = covidqu.list_samples(base, "lung", split)
        lines.append(f"{sample.image},{sample.lung_mask},{sample.label},{split}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    assert from_table.main([str(tmp_path / "t.csv"), str(tmp_path / "out")]) == 0
    assert covidqu.is_phantom(tmp_path / "out")
    assert "phantom set" in audit.format_report(audit.audit(tmp_path / "out"))


def test_audit_sets_no_published_counts_beside_another_set(samples, tmp_path, capsys):
    root = tmp_path / "out"
    assert from_table.main([samples.table, str(root)]) == 0
    assert audit.main([str(root)]) == 0
    out = capsys.readouterr().out
    assert "COVID-QU-Ex" not in out and "7,658" not in out and "differs" not in out
    start = out.index("Lung Segmentation Data: images\n")
    assert out[start:].splitlines()[2].split() == ["Train", "1", "0", "1", "2"]


def test_jax_is_not_loaded(samples, tmp_path):
    code = (
        "import sys; from covjax.data.from_table import from_table;"
        f" status = from_table.main([{samples.table!r}, {str(tmp_path / 'out')!r}]);"
        " sys.exit(status or 'jax' in sys.modules)"
    )
    env = os.environ | {"PYTHONPATH": str(PROJECT)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


# The whole way: a set in a layout of its own → both stages.

NAMES = {"COVID-19": "corona", "Non-COVID": "pneumonia", "Normal": "ohne Befund"}
TURNS = ("COVID-19", "Non-COVID", "COVID-19", "Normal")
SPLIT_NAMES = {"Train": "TRAIN", "Val": "val", "Test": "test"}
COUNTS = {"Train": 16, "Val": 4, "Test": 6}
WIDE, HIGH, SIZE = 160, 128, 32


@dataclasses.dataclass(frozen=True)
class Own:
    """An image as its makers keep it."""

    split: str
    label: str
    image: Path
    lung: Path
    infection: Path | None


def write_own(folder: Path) -> tuple[Path, list[Own]]:
    """Phantoms of 160 x 128 px in .tif and .jpg, masks elsewhere; and a table."""
    made: list[Own] = []
    text = io.StringIO()
    table = csv.writer(text, delimiter=";", lineterminator="\r\n")
    table.writerow(
        ["Patient", "class", "image", "infection_mask", "lung_mask", "split"]
    )
    for split, number in COUNTS.items():
        for k in range(number):
            label = TURNS[k % 4]
            rng = np.random.default_rng((len(made), 7))
            drawn = make_phantom(label, rng, WIDE)
            image, lung, infection = (
                drawn[part][16 : 16 + HIGH] for part in ("image", "lung", "infection")
            )
            stem = f"{NAMES[label]} {len(made)}"
            sample = Own(
                split,
                label,
                folder / "Röntgen" / f"{stem}.{('tif', 'jpg')[k % 2]}",
                folder / "Masken" / "Lunge" / f"{len(made)}-l.png",
                folder / "Masken" / f"{len(made)}-i.bmp" if infection.any() else None,
            )
            write(sample.image, image)
            write(sample.lung, 255 * lung)
            if sample.infection:
                write(sample.infection, 255 * infection)
            cells = [sample.image, sample.infection or "none", sample.lung]
            cells = [c if c == "none" else os.path.relpath(c, folder) for c in cells]
            table.writerow([f"P{len(made)}", NAMES[label], *cells, SPLIT_NAMES[split]])
            made.append(sample)
    path = folder / "Tabelle.csv"
    path.write_bytes(b"\xef\xbb\xbf" + text.getvalue().encode())
    return path, made


def pillow(path: Path, how: Image.Resampling) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.size == (WIDE, HIGH)
        return np.asarray(picture.convert("L").resize((SIZE, SIZE), how))


def check_pixels(root: Path, made: Sequence[Own]) -> None:
    """What the pipeline is given is what Pillow finds in the makers' files."""
    seen = 0
    for split in covidqu.SPLITS:
        own = {sample.image.stem: sample for sample in made if sample.split == split}
        samples = covidqu.list_samples(root, "infection", split)
        assert sorted(os.path.splitext(sample.name)[0] for sample in samples) == sorted(
            own
        )
        lungs = covidqu.list_samples(root, "lung", split)
        assert [(f.label, f.name) for f in lungs] == [
            (f.label, f.name) for f in samples
        ]
        for sample, of_lungs in zip(samples, lungs, strict=True):
            source = own[os.path.splitext(sample.name)[0]]
            assert sample.label == source.label
            record = covidqu.read_sample(sample, SIZE)
            bilinear, nearest = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
            want = {
                "image": pillow(source.image, bilinear),
                "lung": pillow(source.lung, nearest) // 255,
                "infection": pillow(source.infection, nearest) // 255
                if source.infection
                else np.zeros((SIZE, SIZE), np.uint8),
            }
            for name, array in want.items():
                np.testing.assert_array_equal(record[name], array, err_msg=sample.name)
            again = covidqu.read_sample(of_lungs, SIZE)
            np.testing.assert_array_equal(again["lung"], want["lung"])
            seen += 1
    assert seen == sum(COUNTS.values())


def test_another_set_goes_through_both_stages(tmp_path):
    project = make_project(tmp_path)
    table, made = write_own(tmp_path / "Klinik")
    flags = [f"--class={name}={label}" for label, name in NAMES.items()]
    command = ("-m", "covjax.data.from_table")
    out, _ = finish(start(project, str(table), "set", *flags, command=command))
    assert "stage 2 Train           8          4          4         16" in out
    assert "note" not in out
    check_pixels(project / "set", made)

    small = (
        "--config.data.phantom_images=()",
        "--config.data.root=set",
        f"--config.data.image_size={SIZE}",
        "--config.model.width=2",
        "--config.model.depth=1",
        "--config.train.batch_size=8",
        "--config.train.epochs=1",
    )
    lung, infection = project / "lung", project / "infection"
    config = "--config=configs/{}.py:phantom"
    run = (config.format("lung"), *small, f"--workdir={lung}")
    out, _ = finish(start(project, *run))
    assert "images of set: 16 Train, 4 Val, 6 Test" in out
    init = f"--init_from={lung}"
    run = (config.format("infection"), *small, init, f"--workdir={infection}")
    out, _ = finish(start(project, *run))
    assert "the study" not in out

    results = json.loads((lung / "results" / "test.json").read_text())
    assert (results["n"], results["n_empty"]) == (6, 0)
    infected = [
        sample for sample in made if sample.split == "Test" and sample.infection
    ]
    assert len(infected) == 3  # of six, two Non-COVID and one Normal
    for stem in ("test", "test-predicted"):
        results = json.loads((infection / "results" / f"{stem}.json").read_text())
        assert (results["n"], results["n_empty"]) == (6, 3)
        assert results["from_table"] and not results["phantom"]
    lines = (infection / "results" / "test.csv").read_text().splitlines()
    rows = csv.DictReader(lines)
    assert [(row["class"], row["file"]) for row in rows] == [
        ("COVID-19", "corona 20.tif"),
        ("COVID-19", "corona 22.tif"),
        ("COVID-19", "corona 24.tif"),
        ("Non-COVID", "pneumonia 21.jpg"),
        ("Non-COVID", "pneumonia 25.jpg"),
        ("Normal", "ohne Befund 23.jpg"),
    ]
    page = (infection / "report.html").read_text()
    assert "another set than COVID-QU-Ex" in page and ".6167" not in page
    assert "1,864" not in page
