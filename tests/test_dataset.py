"""Phantoms: what is drawn, what is written, and what is never overwritten."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from covjax.data import covidqu
from covjax.data.phantom import dataset
from covjax.errors import DataError, UsageError

SAMPLES = {"Train": 12, "Val": 4, "Test": 5}
# By tree and split: COVID-19, Non-COVID, Normal.
COUNTS = {
    ("lung", "Train"): (4, 4, 4),
    ("lung", "Val"): (2, 1, 1),
    ("lung", "Test"): (2, 2, 1),
    ("infection", "Train"): (6, 3, 3),
    ("infection", "Val"): (2, 1, 1),
    ("infection", "Test"): (3, 1, 1),
}


def draw(label: str, seed: int, size: int = 64) -> dict[str, np.ndarray]:
    return dataset.make_phantom(label, np.random.default_rng(seed), size)


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantoms") / "set"
    return dataset.write_phantoms(root, samples=SAMPLES, size=64, seed=3)


@pytest.mark.parametrize("label", covidqu.CLASSES)
@pytest.mark.parametrize("size", [32, 96, 131])
def test_image_and_masks_have_the_promised_form(label: str, size: int) -> None:
    sample = draw(label, 5, size)
    assert set(sample) == {"image", "lung", "infection"}
    for array in sample.values():
        assert array.shape == (size, size) and array.dtype == np.uint8
    assert set(np.unique(sample["lung"])) == {0, 1}
    assert sample["image"].std() > 15  # a picture, not a blank


def test_infection_is_inside_the_lungs_and_of_covid_alone() -> None:
    for seed in range(30):
        for label in covidqu.CLASSES:
            sample = draw(label, seed)
            infected = int(sample["infection"].sum())
            assert (infected > 0) == (label == "COVID-19"), (label, seed)
            assert not (sample["infection"] & ~sample["lung"]).any(), (label, seed)


@pytest.mark.parametrize("size", [32, 96])
def test_two_lungs_of_human_size(size: int) -> None:
    for seed in range(60):
        lung = draw("Normal", seed, size)["lung"]
        assert cv2.connectedComponents(lung)[0] - 1 == 2, seed
        assert 0.1 < lung.mean() < 0.5, seed


def test_infected_share_spans_mild_to_severe_in_both_lungs() -> None:
    shares, sides = [], []
    for seed in range(60):
        sample = draw("COVID-19", seed)
        count, parts = cv2.connectedComponents(sample["lung"])
        shares.append(sample["infection"].sum() / sample["lung"].sum())
        sides.append(
            all(sample["infection"][parts == i].any() for i in range(1, count))
        )
    low, middle, high = np.quantile(shares, [0.05, 0.5, 0.95])
    assert low < 0.2 and 0.35 < middle < 0.65 and high > 0.8
    assert min(shares) > 0.02
    assert all(sides)


def test_disease_alone_separates_the_classes_and_brightens_the_lungs() -> None:
    for seed in range(20):
        normal = draw("Normal", seed)
        lung = normal["lung"] > 0
        for label in ("COVID-19", "Non-COVID"):
            sample = draw(label, seed)
            change = sample["image"].astype(float) - normal["image"]
            assert np.array_equal(sample["lung"], normal["lung"])
            assert (
                np.abs(change[cv2.dilate(sample["lung"], np.ones((9, 9))) == 0]).max()
                < 2
            )
            assert change[lung].mean() > 1, (label, seed)
            if label == "COVID-19":
                # Where the mask says so, and less elsewhere in the lung.
                infected = sample["infection"] > 0
                rest = change[lung & ~infected].mean()
                assert change[infected].mean() > 4 + 2 * rest, seed


def test_consolidation_is_one_sided() -> None:
    sides = set()
    for seed in range(20):
        normal, sample = draw("Normal", seed), draw("Non-COVID", seed)
        change = sample["image"].astype(float) - normal["image"]
        _, parts = cv2.connectedComponents(normal["lung"])
        means = [change[parts == i].mean() for i in (1, 2)]
        assert max(means) > 5 and min(means) < 0.5, seed
        columns = [np.nonzero(parts == i)[1].mean() for i in (1, 2)]
        sides.add(columns[int(np.argmax(means))] < 32)
    assert sides == {True, False}


def test_same_patient_at_every_size() -> None:
    small, large = draw("COVID-19", 8, 64), draw("COVID-19", 8, 256)
    for kind, least in (("lung", 0.95), ("infection", 0.85)):
        shrunk = covidqu.resize_mask(large[kind], 64)
        overlap = 2 * (shrunk & small[kind]).sum() / (shrunk.sum() + small[kind].sum())
        assert overlap > least, kind


def test_rejects_unknown_class_and_tiny_image() -> None:
    with pytest.raises(ValueError, match="covid"):
        draw("covid", 0)
    with pytest.raises(ValueError, match="at least 32"):
        draw("Normal", 0, 31)


def test_layout_and_counts_are_the_published_ones(written: Path) -> None:
    assert covidqu.is_phantom(written)
    marker = json.loads((written / covidqu.PHANTOM_MARKER).read_text())
    assert marker == {
        "phantom": True,
        "images": SAMPLES,
        "size": 64,
        "seed": 3,
        "version": dataset.GENERATOR_VERSION,
    }
    for task in covidqu.TASKS:
        tree = covidqu.TREES[task]
        assert covidqu.find_tree(written, task) == written / tree / tree
        names = []
        for split in covidqu.SPLITS:
            samples = covidqu.list_samples(written, task, split)
            labels = [sample.label for sample in samples]
            found = tuple(labels.count(label) for label in covidqu.CLASSES)
            assert found == COUNTS[task, split]
            names += [sample.name for sample in samples]
        assert len(set(names)) == len(names)
        first = "Train/COVID-19/images/covid_1.png"
        assert (written / tree / tree / first).is_file()


def test_files_read_back_as_drawn_and_masks_are_binary(written: Path) -> None:
    for task in covidqu.TASKS:
        for sample in covidqu.list_samples(written, task, "Val"):
            record = covidqu.read_sample(sample, 64)
            for kind, path in (
                ("lung", sample.lung_mask),
                ("infection", sample.infection_mask),
            ):
                if path is None:
                    continue
                with Image.open(path) as picture:
                    assert picture.mode == "L" and picture.format == "PNG"
                    values = set(np.unique(np.asarray(picture)).tolist())
                empty = kind == "infection" and sample.label != "COVID-19"
                assert values == ({0} if empty else {0, 255})
                assert set(np.unique(record[kind])) == ({0} if empty else {0, 1})
            # The image goes with this mask, not another's: lungs are the darker part
            # of the chest's upper half.
            upper, lung = record["image"][:32], record["lung"][:32] > 0
            ring = (cv2.dilate(record["lung"], np.ones((7, 7)))[:32] > 0) & ~lung
            assert upper[lung].mean() < upper[ring].mean(), sample.name


def test_no_image_occurs_twice(written: Path) -> None:
    images = [
        p.read_bytes() for p in written.rglob("*.png") if p.parent.name == "images"
    ]
    assert len(images) == 2 * sum(SAMPLES.values())
    assert len(set(images)) == len(images)


def test_seed_alone_decides_and_a_larger_set_keeps_the_smaller(
    written: Path, tmp_path: Path
) -> None:
    more = {"Train": 16, "Val": 4, "Test": 5}
    larger = dataset.write_phantoms(tmp_path / "a", samples=more, size=64, seed=3)
    other = dataset.write_phantoms(tmp_path / "b", samples=SAMPLES, size=64, seed=4)
    first, second, third = contents(written), contents(larger), contents(other)
    for found in (first, second, third):
        del found[covidqu.PHANTOM_MARKER]
    assert first.items() < second.items()
    assert first.keys() == third.keys()
    images = [name for name in first if Path(name).parent.name == "images"]
    assert not any(first[name] == third[name] for name in images)


def test_an_identical_call_writes_nothing(written: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (written, *written.rglob("*"))}
    samples = dict(reversed(SAMPLES.items()))
    assert dataset.write_phantoms(written, samples=samples, size=64, seed=3) == written
    assert {p: p.stat().st_mtime_ns for p in (written, *written.rglob("*"))} == before
    assert list(written.parent.iterdir()) == [written]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 4}, "seed 3 not 4"),
        ({"size": 48}, "size 64 not 48"),
        ({"samples": {"Train": 12}}, "images"),
    ],
)
def test_refuses_another_set(written: Path, change: dict, said: str) -> None:
    before = contents(written)
    wanted = {"samples": SAMPLES, "size": 64, "seed": 3} | change
    with pytest.raises(DataError, match=said) as caught:
        dataset.write_phantoms(written, **wanted)
    assert str(written) in str(caught.value) and "remove" in str(caught.value)
    assert contents(written) == before


@pytest.mark.parametrize("marker", [None, "", "[1]", '{"phantom": true}'])
def test_refuses_a_foreign_or_half_written_folder(
    tmp_path: Path, marker: str | None
) -> None:
    root = tmp_path / "mine"
    (root / covidqu.TREES["lung"]).mkdir(parents=True)
    (root / "notes.txt").write_text("keep me")
    if marker is not None:
        (root / covidqu.PHANTOM_MARKER).write_text(marker)
    before = contents(root)
    with pytest.raises(DataError, match="mine"):
        dataset.write_phantoms(root, samples={"Train": 3}, size=32, seed=0)
    assert contents(root) == before
    assert list(tmp_path.iterdir()) == [root]


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = dataset.make_phantom, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    root = tmp_path / "deep" / "set"
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "make_phantom", interrupted)
        with pytest.raises(KeyboardInterrupt):
            dataset.write_phantoms(root, samples={"Train": 6}, size=32, seed=0)
    assert list(root.parent.iterdir()) == []
    dataset.write_phantoms(root, samples={"Train": 6}, size=32, seed=0)
    assert len(covidqu.list_samples(root, "infection", "Train")) == 6


@pytest.mark.parametrize("other_seed", [0, 1])
def test_two_writers_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_seed: int
) -> None:
    root, samples = tmp_path / "set", {"Train": 3}
    rename = os.rename

    def overtaken(source, target):
        monkeypatch.setattr(os, "rename", rename)
        dataset.write_phantoms(root, samples=samples, size=32, seed=other_seed)
        rename(source, target)

    monkeypatch.setattr(os, "rename", overtaken)
    if other_seed == 0:
        assert dataset.write_phantoms(root, samples=samples, size=32, seed=0) == root
    else:
        with pytest.raises(DataError, match="seed 1 not 0"):
            dataset.write_phantoms(root, samples=samples, size=32, seed=0)
    assert list(tmp_path.iterdir()) == [root]
    marker = json.loads((root / covidqu.PHANTOM_MARKER).read_text())
    assert marker["seed"] == other_seed


@pytest.mark.parametrize(
    "wrong",
    [{"size": 16}, {"seed": -1}, {"samples": {"Train": -1}}, {"samples": {"train": 3}}],
)
def test_refuses_senseless_numbers(tmp_path: Path, wrong: dict) -> None:
    wanted = {"samples": {"Train": 3}, "size": 32, "seed": 0} | wrong
    with pytest.raises(UsageError):
        dataset.write_phantoms(tmp_path / "set", **wanted)
    assert list(tmp_path.iterdir()) == []


def test_command_writes_refuses_and_never_imports_jax(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    flags = ["--train=4", "--val=3", "--test=3", "--size=32"]
    assert dataset.main([str(root), *flags, "--seed=1"]) == 0
    out = capsys.readouterr().out
    assert str(root) in out and out.count("\n") == 1
    assert len(covidqu.list_samples(root, "infection", "Test")) == 3
    assert dataset.main([str(root), *flags, "--seed=2"]) == 2
    err = capsys.readouterr().err
    assert "seed 1 not 2" in err and err.count("\n") == 1
    code = "import sys, covjax.data.phantom.dataset; print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
