"""Lungs for stage 2: which run finds them, what it finds, and that it looks once.

The networks are U-Nets that hand every pixel on, so that NumPy knows their outputs.
"""

import dataclasses
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from configs import infection, lung
from covjax.config import save_config
from covjax.data.covidqu import Sample
from covjax.errors import DataError, UsageError
from covjax.evaluation import lung_masks
from covjax.evaluation.lung_masks import make_finder, read_finder
from covjax.metrics.operating_point import FILE, write_points
from covjax.train.checkpoint import Checkpoints, fingerprint
from covjax.train.run_folder import CONFIG
from plain_network import make_state

SIDE, BATCH = 16, 8
THRESHOLD = 0.4  # of the run; not the one of a new config
BEST, LAST = 3, 5  # checkpoints of the run
SLOPES = {BEST: 8.0, LAST: -8.0}  # the last one finds what is dark


def write_run(folder: Path, config: ml_collections.ConfigDict) -> Path:
    config.data.image_size, config.train.batch_size = SIDE, BATCH
    config.model.width, config.model.depth = 2, 1
    config.eval.threshold = THRESHOLD
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(make_state(config, SLOPES[BEST], BEST), dice=0.9)
        checkpoints.save(make_state(config, SLOPES[LAST], LAST), dice=0.4)
    save_config(config, folder / CONFIG, {})
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A folder with a run of lungs and one of infections."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "lung", lung.get_config("phantom"))
    write_run(folder / "infection", infection.get_config("phantom"))
    return folder


@pytest.fixture
def runs(written, tmp_path) -> Path:
    """The same, for a test to change."""
    return Path(shutil.copytree(written, tmp_path / "runs"))


@pytest.fixture
def predicted(monkeypatch) -> list[str]:
    """Names of the images that went through a network, in that order."""
    names = []
    predict = lung_masks.predict_split

    def recorded(config, samples, state, **how):
        names.extend(sample.name for sample in samples)
        return predict(config, samples, state, **how)

    monkeypatch.setattr(lung_masks, "predict_split", recorded)
    return names


def write_image(folder: Path, name: str, pixels: np.ndarray) -> Sample:
    """An image of Test with an empty mask, which says nothing of the lungs."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / name, folder / f"mask-{name}"
    for path, array in zip(paths, (pixels, np.zeros_like(pixels)), strict=True):
        Image.fromarray(array).save(path)
    return Sample(name, "Normal", "Test", *paths, None)


def write_images(folder: Path, n: int) -> list[Sample]:
    """The first n of eleven clouds, no two of them the same."""
    clouds = np.random.default_rng(3).normal(size=(11, SIDE, SIDE))
    clouds = ndimage.gaussian_filter(clouds, (0, 1, 1))
    clouds = (127 + 110 * clouds / np.abs(clouds).max()).astype(np.uint8)[:n]
    return [write_image(folder, f"{k}.png", cloud) for k, cloud in enumerate(clouds)]


def found(sample: Sample) -> np.ndarray:
    """The mask on disk, bool [SIDE, SIDE]."""
    assert sample.found_lung is not None
    with Image.open(sample.found_lung) as picture:
        assert (picture.format, picture.mode) == ("PNG", "L")
        mask = np.asarray(picture)
    assert mask.shape == (SIDE, SIDE) and set(np.unique(mask)) <= {0, 255}
    return mask > 0


def numbered(mask: np.ndarray, *, corners: bool) -> np.ndarray:
    """Numbers the areas, whose pixels touch at sides alone or at corners as well."""
    labels: Any = ndimage.label(mask, ndimage.generate_binary_structure(2, 1 + corners))
    return labels[0]


def expected(
    sample: Sample, *, threshold: float = THRESHOLD, step: int = BEST, min_area: int = 0
) -> np.ndarray:
    """The lungs, from the pixels of the image."""
    with Image.open(sample.image) as picture:
        pixels = np.asarray(picture, np.float64)
    p = 1 / (1 + np.exp(-SLOPES[step] * (pixels / 255 - 0.5)))
    above = np.rint(255 * p) > 255 * threshold
    number = numbered(above, corners=True)
    above &= np.bincount(number.ravel())[number] >= min_area
    outside = numbered(np.pad(~above, 1, constant_values=True), corners=False)
    filled = (outside != outside[0, 0])[1:-1, 1:-1]
    number = numbered(filled, corners=True)
    sizes = np.bincount(number.ravel())[1:]
    second, third = np.sort(np.append(sizes, [0, 0, 0]))[::-1][1:3]
    assert second > third or not third  # no tie, which this would not know to break
    return filled & (np.append(0, sizes)[number] >= max(second, 1))


def assert_found(samples: list[Sample], **settings) -> None:
    for sample in samples:
        np.testing.assert_array_equal(found(sample), expected(sample, **settings))


def find_lungs(path: str, samples: list[Sample], *, spare: Path) -> list[Sample]:
    return lung_masks.find_lungs(read_finder(path), samples, spare=spare)


def pngs(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def stage_two(*, init_from: str | Path = "", named: str | Path = ""):
    config = infection.get_config("phantom")
    config.init_from, config.data.lung_run = str(init_from), str(named)
    return config


def checkpoint_of(config: ml_collections.ConfigDict) -> Path | None:
    finder = make_finder(config)
    return finder and finder.checkpoint


def test_the_run_that_is_named_finds_the_lungs(written):
    named = written / "lung" / "checkpoints" / str(LAST)
    for init_from in ("", written / "lung", written / "infection"):
        config = stage_two(init_from=init_from, named=named)
        assert checkpoint_of(config) == named


@pytest.mark.parametrize(
    ("path", "step"), [("lung", BEST), (f"lung/checkpoints/{LAST}", LAST)]
)
def test_else_the_run_of_lungs_that_the_weights_come_from(written, path, step):
    config = stage_two(init_from=written / path)
    assert checkpoint_of(config) == written / "lung" / "checkpoints" / str(step)


@pytest.mark.parametrize(
    "path", ["infection", f"infection/checkpoints/{LAST}", "deleted"]
)
def test_weights_of_another_kind_of_run_or_of_none_find_no_lungs(written, path):
    config = stage_two(init_from=written / path)
    assert make_finder(config) is None
    config.data.roi = "predicted"  # now they are needed
    with pytest.raises(UsageError, match="no run that finds the lungs") as caught:
        make_finder(config)
    assert str(written / path) in str(caught.value)


def test_without_any_run_nothing_finds_the_lungs():
    assert make_finder(stage_two()) is None


def test_stage_one_looks_for_no_lungs(written):
    config = lung.get_config("phantom")
    config.init_from = str(written / "lung")
    assert make_finder(config) is None


@pytest.mark.parametrize("lost", ["checkpoints", CONFIG])
def test_a_run_that_lost_a_part_finds_no_lungs(runs, lost):
    (runs / "lung" / lost).rename(runs / "lost")
    assert make_finder(stage_two(init_from=runs / "lung")) is None
    with pytest.raises(UsageError):  # one that is named has to be there
        make_finder(stage_two(named=runs / "lung"))


def test_the_best_checkpoint_finds_the_lungs_unless_one_is_named(written):
    folder = written / "lung" / "checkpoints"
    assert read_finder(str(written / "lung")).checkpoint == folder / str(BEST)
    last = read_finder(str(folder / str(LAST)))
    assert last.checkpoint == folder / str(LAST)


def test_what_is_told_of_the_lungs_names_no_folder_of_this_machine(written):
    told = read_finder(str(written / "lung")).told()
    of_best = fingerprint(written / "lung" / "checkpoints" / str(BEST))
    assert told == {
        "run": "lung", "step": BEST, "fingerprint": of_best,
        "threshold": THRESHOLD, "min_area": 0, "presence": 0.0,
    }  # fmt: skip
    of_last = fingerprint(written / "lung" / "checkpoints" / str(LAST))
    assert of_last != of_best and len(of_best) == 8


@pytest.mark.parametrize("path", ["infection", f"infection/checkpoints/{BEST}"])
def test_a_run_of_infections_is_refused_by_name(written, tmp_path, path):
    path = str(written / path)
    for refused in (
        lambda: make_finder(stage_two(named=path)),
        lambda: find_lungs(path, [], spare=tmp_path),
    ):
        with pytest.raises(UsageError, match="config.data.lung_run") as caught:
            refused()
        assert str(caught.value).startswith(f"{path}: a run of stage 2")


def test_what_is_no_run_is_refused_by_name(written, tmp_path):
    path = str(written / "nothing")
    with pytest.raises(UsageError, match="neither a run") as caught:
        find_lungs(path, [], spare=tmp_path)
    assert str(caught.value).startswith(path)


GREY = {".": 40, "+": 120, "#": 200}  # "+" is above .4 and below .5
IMAGE = """
    ................
    ..#####...####..
    ..#...#...####..
    ..#.+.#...####..
    ..#...#...####..
    ..#####...####..
    .......#........
    ...........++++.
    ..##......+++++.
    ..##......+++++.
    ..........+++++.
    ..........++++#.
    ................
    ...#............
    ....#####.......
    ................
"""
# Bright pixels: 17 of the ring, 20 of the block. But the ring is an area with all that
# it encloses, and the run's threshold lets in the 24 pixels that are mostly grey.
LUNGS = """
    ................
    ..#####.........
    ..#####.........
    ..#####.........
    ..#####.........
    ..#####.........
    .......#........
    ...........####.
    ..........#####.
    ..........#####.
    ..........#####.
    ..........#####.
    ................
    ................
    ................
    ................
"""


def test_the_lungs_are_the_two_largest_areas_without_holes(runs, tmp_path):
    pixels = np.array([[GREY[c] for c in row] for row in IMAGE.split()], np.uint8)
    sample = write_image(tmp_path / "images", "drawn.png", pixels)
    dark = write_image(tmp_path / "images", "dark.png", np.zeros_like(pixels))
    results = find_lungs(str(runs / "lung"), [sample, dark], spare=tmp_path / "spare")
    drawn = [[c == "#" for c in row] for row in LUNGS.split()]
    np.testing.assert_array_equal(found(results[0]), drawn)
    assert not found(results[1]).any()


def test_every_image_has_its_own_lungs_and_is_else_the_same(runs, tmp_path):
    samples = write_images(tmp_path / "images", 11)  # the second batch is padded
    before = pngs(runs)
    results = find_lungs(str(runs / "lung"), samples, spare=tmp_path / "spare")
    assert_found(results)
    assert [
        dataclasses.replace(sample, found_lung=None) for sample in results
    ] == samples
    masks = {sample.found_lung for sample in results}
    assert len(masks) == len(samples)
    assert pngs(runs) - before == masks
    folder = runs / "lung" / "lungs"
    assert all(mask and mask.is_relative_to(folder) for mask in masks)
    assert not (tmp_path / "spare").exists()


def test_more_images_than_are_predicted_at_once(runs, tmp_path, monkeypatch, predicted):
    monkeypatch.setattr(lung_masks, "_AT_ONCE", 3)
    samples = write_images(tmp_path / "images", 8)
    assert_found(find_lungs(str(runs / "lung"), samples, spare=tmp_path / "spare"))
    assert predicted == [sample.name for sample in samples]


def test_images_of_the_same_bytes_are_looked_at_once(runs, tmp_path, predicted):
    samples = write_images(tmp_path / "images", 3)
    twin = tmp_path / "other tree" / "twin.png"
    twin.parent.mkdir()
    shutil.copy(samples[0].image, twin)
    copied = dataclasses.replace(samples[0], name="twin.png", image=twin, split="Val")
    results = find_lungs(
        str(runs / "lung"), [samples[0], samples[1], copied], spare=tmp_path / "spare"
    )
    assert len(predicted) == 2
    assert results[2] == dataclasses.replace(copied, found_lung=results[0].found_lung)
    assert_found(results)
    # Nor does a later call look at it again.
    again = find_lungs(
        str(runs / "lung"), [copied, samples[2]], spare=tmp_path / "spare"
    )
    assert predicted[2:] == [samples[2].name]
    assert again[0] == results[2]
    assert_found(again)


def test_what_was_found_is_not_looked_for_again(runs, tmp_path, monkeypatch):
    samples = write_images(tmp_path / "images", 4)
    first = find_lungs(str(runs / "lung"), samples, spare=tmp_path / "spare")
    times = {path: path.stat().st_mtime_ns for path in pngs(runs)}

    def refuse(*_: object) -> None:
        raise AssertionError("a network was asked again")

    monkeypatch.setattr(lung_masks, "predict_split", refuse)
    monkeypatch.setattr(lung_masks, "_network", refuse)
    again = find_lungs(str(runs / "lung"), samples[::-1], spare=tmp_path / "spare")
    assert again == first[::-1]
    # Whether the run or its best checkpoint was named.
    checkpoint = runs / "lung" / "checkpoints" / str(BEST)
    assert find_lungs(str(checkpoint), samples, spare=tmp_path / "spare") == first
    assert {path: path.stat().st_mtime_ns for path in pngs(runs)} == times


def test_an_image_that_changed_is_looked_at_again(runs, tmp_path, predicted):
    samples = write_images(tmp_path / "images", 3)
    first = find_lungs(str(runs / "lung"), samples, spare=tmp_path / "spare")
    with Image.open(samples[1].image) as picture:
        pixels = np.asarray(picture)
    Image.fromarray(pixels[::-1].copy()).save(samples[1].image)
    predicted.clear()
    again = find_lungs(str(runs / "lung"), samples, spare=tmp_path / "spare")
    assert predicted == [samples[1].name]
    assert (again[0], again[2]) == (first[0], first[2])
    assert again[1].found_lung != first[1].found_lung
    assert_found(again)


def tuned(run: Path, step: int = BEST, **changes: Any) -> dict[str, Any]:
    """What a run's file holds of a point of one of its checkpoints."""
    point = {"threshold": 0.5, "min_area": 0, "presence": 0.0, "checkpoint": step}
    point["fingerprint"] = fingerprint(run / "checkpoints" / str(step))
    return point | changes


def test_the_operating_point_of_the_checkpoint_is_used_and_told_apart(runs, tmp_path):
    run, samples = runs / "lung", write_images(tmp_path / "images", 6)
    folders, masks = [], []
    points: list[dict[str, Any]] = [
        {},
        {"threshold": 0.55},
        {"threshold": 0.55, "min_area": 9},
    ]
    for point in points:
        write_points(run, {"none": tuned(run, **point)} if point else {})
        results = find_lungs(str(run), samples, spare=tmp_path / "spare")
        assert_found(results, **point)
        masks.append(np.stack([found(sample) for sample in results]))
        folders += {sample.found_lung.parent for sample in results if sample.found_lung}
    assert len(set(folders)) == len(folders) == 3
    for one, other in itertools.pairwise(masks):
        assert (one != other).any()  # or the lines above would say little


@pytest.mark.parametrize(
    ("region", "changes"),
    [
        ("none", {"step": LAST}),
        ("truth", {}),
        ("none", {"checkpoint": None}),
        ("none", {"fingerprint": "00000000"}),
    ],
    ids=["another checkpoint", "another region", "no checkpoint", "another run's"],
)
def test_another_operating_point_is_not_used(runs, tmp_path, region, changes):
    point = tuned(runs / "lung", **changes, threshold=0.6)
    write_points(runs / "lung", {region: point})
    samples = write_images(tmp_path / "images", 2)
    assert_found(find_lungs(str(runs / "lung"), samples, spare=tmp_path / "spare"))


def test_an_operating_point_that_cannot_be_read_is_named(runs, tmp_path):
    (runs / "lung" / FILE).write_text('{"none": ')
    with pytest.raises(UsageError) as caught:
        find_lungs(str(runs / "lung"), [], spare=tmp_path / "spare")
    assert str(caught.value).startswith(str(runs / "lung" / FILE))


def test_another_checkpoint_of_the_run_finds_its_own(runs, tmp_path):
    samples = write_images(tmp_path / "images", 2)
    best = find_lungs(str(runs / "lung"), samples, spare=tmp_path / "spare")
    path = runs / "lung" / "checkpoints" / str(LAST)
    last = find_lungs(str(path), samples, spare=tmp_path / "spare")
    assert_found(best)
    assert_found(last, step=LAST)
    assert not {sample.found_lung for sample in best} & {
        sample.found_lung for sample in last
    }


def test_lungs_of_a_run_that_cannot_be_written_lie_with_the_run_that_asks(
    runs, tmp_path, monkeypatch, predicted
):
    shutil.copytree(runs / "lung", runs / "other")
    may = os.access

    def access(path, mode, **settings) -> bool:
        closed = mode & os.W_OK and Path(path).is_relative_to(runs)
        return not closed and may(path, mode, **settings)

    monkeypatch.setattr(os, "access", access)
    before, samples = pngs(runs), write_images(tmp_path / "images", 2)
    results = find_lungs(str(runs / "lung"), samples, spare=tmp_path / "spare")
    assert_found(results)
    # A copy of the run holds the same checkpoint, and needs no second look.
    for name in ("lung", "other"):
        again = find_lungs(str(runs / name), samples, spare=tmp_path / "spare")
        assert again == results
    assert predicted == [sample.name for sample in samples]
    assert pngs(tmp_path / "spare") == {sample.found_lung for sample in results}
    assert pngs(runs) == before


def test_lungs_that_a_closed_run_already_holds_are_taken_from_there(
    runs, tmp_path, monkeypatch, predicted
):
    samples = write_images(tmp_path / "images", 3)
    first = find_lungs(str(runs / "lung"), samples[:2], spare=tmp_path / "spare")
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    predicted.clear()
    all_three = find_lungs(str(runs / "lung"), samples, spare=tmp_path / "spare")
    assert all_three[:2] == first and predicted == [samples[2].name]
    assert pngs(tmp_path / "spare") == {all_three[2].found_lung}


def test_a_lung_run_of_a_batch_for_other_devices_still_finds_lungs(runs):
    path = runs / "lung" / CONFIG
    settings = json.loads(path.read_text())
    settings["train"]["batch_size"] = 12  # there are 8 devices
    path.write_text(json.dumps(settings))
    [sample] = write_images(runs, 1)
    [shown] = find_lungs(str(runs / "lung"), [sample], spare=runs)
    assert shown.found_lung is not None and shown.found_lung.exists()


def test_an_image_that_is_gone_is_named(runs):
    [sample] = write_images(runs, 1)
    sample.image.unlink()
    with pytest.raises(DataError, match="0.png: cannot be read"):
        find_lungs(str(runs / "lung"), [sample], spare=runs)


def test_a_checkpoint_of_another_name_than_its_step_is_named(runs):
    checkpoint = runs / "lung" / "checkpoints" / str(BEST)
    other = checkpoint.rename(checkpoint.with_name("finest"))
    with pytest.raises(UsageError, match="finest.*named by its step"):
        find_lungs(str(other), write_images(runs, 1), spare=runs)


def test_masks_that_a_network_share_shows_late_are_waited_for(runs, monkeypatch):
    """A host that missed a file goes on missing it for a while (negative look-ups)."""
    samples, late = write_images(runs, 2), {}
    exists = Path.exists

    def stale(path: Path, **settings) -> bool:
        if path.suffix == ".png" and exists(path):
            late[path] = late.get(path, 0) + 1
            return late[path] > 2
        return exists(path, **settings)

    monkeypatch.setattr(Path, "exists", stale)
    monkeypatch.setattr(lung_masks.time, "sleep", lambda _: None)
    results = find_lungs(str(runs / "lung"), samples, spare=runs / "spare")
    assert {sample.found_lung for sample in results} == late.keys()
    monkeypatch.setattr(Path, "exists", lambda *_: False)
    monkeypatch.setattr(lung_masks, "_PATIENCE", 0)
    with pytest.raises(DataError, match=r"\.png: another process has written it"):
        find_lungs(str(runs / "lung"), samples, spare=runs / "spare")
