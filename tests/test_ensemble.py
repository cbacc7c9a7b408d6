"""Several runs as one: means by hand, a point from Val alone, and what is refused."""

import csv
import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covjax import compare, ensemble
from covjax.data.covidqu import Sample
from covjax.data.split_masks import SplitMasks
from covjax.ensemble import Member, merge
from covjax.errors import UsageError
from covjax.evaluation.results import measure, write_results
from covjax.metrics.operating_point import (
    FILE,
    OperatingPoint,
    as_point,
    calibrate,
    read_points,
)
from covjax.runtime.folder_lock import LOCK
from covjax.train import run_folder
from covjax.train.eval_pass import Outputs

SIDE = 16
LABELS = {
    "val": 4 * ["COVID-19"] + 2 * ["Non-COVID"] + 2 * ["Normal"],
    "test": 3 * ["COVID-19"] + 2 * ["Non-COVID"] + ["Normal"],
}
NAMES = ("a", "b", "c")
LUNGS = {"run": "lung", "step": 3, "fingerprint": "12345678", "threshold": 0.5}


def truths_of(split: str) -> np.ndarray:
    """Boxes in the images of COVID-19, each of another size."""
    truths = np.zeros((len(LABELS[split]), SIDE, SIDE), np.uint8)
    for k, truth in enumerate(truths):
        if LABELS[split][k] == "COVID-19":
            truth[2 : 5 + k, 3:12] = 1
    return truths


def lungs_of(split: str) -> np.ndarray:
    lungs = np.zeros_like(truths_of(split))
    lungs[:, 1:14, 2:14] = 1
    return lungs


def outputs_of(name: str, split: str, way: str = "") -> Outputs:
    """What a run gave: the truth and a false alarm, in noise that no other run has."""
    rng = np.random.default_rng([*map(ord, name + split + way)])
    truths = truths_of(split)
    shown = truths.copy()
    shown[LABELS[split].index("Non-COVID")] = truths[0]  # which presence alone tells
    levels = 90 + 70.0 * shown + rng.normal(0, 40, truths.shape)
    presence = 0.3 + 0.3 * truths.any(axis=(1, 2)) + rng.normal(0, 0.1, len(truths))
    losses = rng.random(len(truths))
    return Outputs(levels.clip(0, 255).astype(np.uint8), losses, presence.clip(0, 1))


def write_stem(run: Path, split: str, way: str = "", **changes: Any) -> None:
    """Writes results/<split><way>.* of a run; by default its own way, true lungs."""
    roi = way[1:] or "truth"
    found = np.roll(lungs_of(split), ord(run.name), axis=1)
    masks = SplitMasks(truths_of(split), lungs_of(split), found)
    evaluated = measure(
        [sample_of(f"={k}.png", label) for k, label in enumerate(LABELS[split])],
        outputs_of(run.name, split, way), masks, OperatingPoint(0.5),
        task="infection", roi=roi,
    )  # fmt: skip
    summary = {
        "split": split,
        "n": len(LABELS[split]),
        "threshold": 0.45,
        "untuned": {"threshold": 0.5},
        "task": "infection",
        "roi": roi,
        "roi_dilate": 1,
        "image_size": SIDE,
        "phantom": True,
        "checkpoint": ord(run.name),
        "fingerprint": f"0000000{run.name}",
        "lungs": LUNGS if roi == "predicted" else None,
        "operating_point": {},
    }
    write_results(run / "results", split + way, evaluated, summary | changes)


def sample_of(name: str, label: str) -> Sample:
    return Sample(name, label, "Test", Path(name), Path(name), None)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A folder of three runs."""
    folder = tmp_path_factory.mktemp("runs")
    for name in NAMES:
        for split in LABELS:
            write_stem(folder / name, split)
    return folder


@pytest.fixture
def runs(written, tmp_path) -> list[Path]:
    """The three runs, which a test may damage; what it makes lies beside them."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return [tmp_path / name for name in NAMES]


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture(scope="module")
def together(written, tmp_path_factory) -> Path:
    """The ensemble of the three, evaluated on Test."""
    workdir = tmp_path_factory.mktemp("together")
    ensemble.evaluate_ensemble([written / name for name in NAMES], workdir, "test")
    return workdir


def read_json(run: Path, stem: str) -> dict[str, Any]:
    return json.loads((run / "results" / f"{stem}.json").read_text())


def change_json(run: Path, stem: str, **changes: Any) -> None:
    path = run / "results" / f"{stem}.json"
    path.write_text(json.dumps(read_json(run, stem) | changes))


def read_arrays(run: Path, stem: str) -> dict[str, Any]:
    with np.load(run / "results" / f"{stem}.npz") as arrays:
        return dict(arrays)


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def member(
    levels: Any, *, presence: float = 0.5, loss: float = 0.0, found: Any = None
) -> Member:
    """A run's one image."""
    array = np.array([levels], np.uint8)
    about = dict.fromkeys(ensemble.SAME) | {"threshold": 0.5}
    return Member(
        Path("run/results/test.json"),
        about,
        [sample_of("a.png", "COVID-19")],
        Outputs(array, np.array([loss]), np.array([presence])),
        SplitMasks(
            np.zeros_like(array),
            np.ones_like(array),
            None if found is None else np.array([found], np.uint8),
        ),
    )


def test_a_level_is_the_mean_of_the_levels_and_half_way_is_rounded_down():
    two = merge([member([[0, 1, 254, 127]]), member([[1, 1, 255, 128]])])
    assert two.outputs.levels.dtype == np.uint8
    assert two.outputs.levels.tolist() == [[[0, 1, 254, 127]]]
    # A mean probability of .5 is not above .5.
    assert OperatingPoint(0.5).masks(two.outputs.levels).tolist() == [[[0, 0, 1, 0]]]
    three = [[[0, 0, 1, 255]], [[0, 1, 1, 255]], [[1, 1, 1, 254]]]
    found = merge([member(levels) for levels in three]).outputs.levels
    assert found.tolist() == [[[0, 1, 1, 255]]]


def test_presence_and_loss_are_means():
    members = [
        member([[9]], presence=presence, loss=loss)
        for presence, loss in ((0.1, 3.0), (0.2, 1.0), (0.6, 0.5))
    ]
    found = merge(members).outputs
    assert found.presence.tolist() == [pytest.approx(0.3)]
    assert found.losses.tolist() == [pytest.approx(1.5)]


def test_lungs_are_those_that_most_members_found():
    lungs = [[[1, 1, 0, 0]], [[1, 0, 1, 0]], [[1, 1, 0, 0]]]
    members = [member([[0, 0, 0, 0]], found=found) for found in lungs]
    found = merge(members).masks.found_lung
    assert found is not None and found.dtype == np.uint8
    assert found.tolist() == [[[1, 1, 0, 0]]]
    two = merge(members[:2]).masks.found_lung
    assert two is not None and two.tolist() == [[[1, 0, 0, 0]]]  # one of two is no more
    assert merge([member([[0]]), member([[0]])]).masks.found_lung is None


def mean_outputs(split: str, names: Sequence[str] = NAMES) -> Outputs:
    """The means by NumPy; no level is half-way, as three is odd."""
    outputs = [outputs_of(name, split) for name in names]
    levels = sum(found.levels.astype(int) for found in outputs) / len(names)
    return Outputs(
        np.rint(levels).astype(np.uint8),
        np.mean([found.losses for found in outputs], axis=0),
        np.mean([found.presence for found in outputs], axis=0),
    )


def test_point_is_the_best_for_the_means_on_val(together):
    val = mean_outputs("val")
    point, reached = calibrate(val.levels, truths_of("val"), val.presence)
    told = read_points(together)
    assert set(told) == {"truth"}
    assert as_point(told["truth"]) == point
    assert told["truth"]["reached"] == pytest.approx(reached)
    assert (told["truth"]["chosen_on"], told["truth"]["n"]) == ("val", 8)
    # It is no member's, and not what the levels alone would give.
    assert point != calibrate(val.levels, truths_of("val"))[0]
    for name in NAMES:
        of_one = outputs_of(name, "val")
        assert calibrate(of_one.levels, truths_of("val"), of_one.presence)[0] != point


@pytest.mark.parametrize("split", ["val", "test"])
def test_results_are_of_the_means_at_that_point(together, split):
    point = as_point(read_points(together)["truth"])
    expected, truths = mean_outputs(split), truths_of(split)
    masks = point.masks(expected.levels, expected.presence)
    arrays = read_arrays(together, split)
    for name, array in (
        ("levels", expected.levels), ("output", masks), ("truth", truths),
        ("lung", lungs_of(split)), ("seen_lung", lungs_of(split)),
    ):  # fmt: skip
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)
    with (together / "results" / f"{split}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == LABELS[split]
    assert [row["file"] for row in rows] == [f"'={k}.png" for k in range(len(rows))]
    for name, values in (("loss", expected.losses), ("presence", expected.presence)):
        np.testing.assert_allclose([float(row[name]) for row in rows], values)
    hits = (masks & truths).sum(axis=(1, 2))
    assert [int(row["TP"]) for row in rows] == hits.tolist()
    sums = masks.sum(axis=(1, 2), dtype=int) + truths.sum(axis=(1, 2), dtype=int)
    dice = np.where(sums, 2 * hits / np.maximum(sums, 1), 1)
    found = read_json(together, split)
    assert found["all"]["dice"]["mean"] == pytest.approx(dice.mean())
    assert found["loss"] == pytest.approx(expected.losses.mean())
    assert found["operating_point"] == read_points(together)["truth"]
    if split == "val":
        assert dice.mean() == pytest.approx(found["operating_point"]["reached"])


def test_results_say_what_they_are_of(together):
    found = read_json(together, "test")
    assert list(found)[:4] == ["split", "n", "n_empty", "threshold"]
    about = {"split": "test", "n": 6, "n_empty": 3, "task": "infection"}
    about |= {"roi": "truth", "roi_dilate": 1, "image_size": SIDE, "phantom": True}
    about |= {"lungs": None}
    assert {name: found[name] for name in about} == about
    assert found["untuned"]["threshold"] == 0.5
    assert found["members"] == [
        {"run": name, "checkpoint": ord(name), "fingerprint": f"0000000{name}",
         "lungs": None}
        for name in NAMES
    ]  # fmt: skip


def test_test_does_not_choose(runs, out, together):
    for run in runs:
        path, arrays = run / "results" / "test.npz", read_arrays(run, "test")
        arrays["truth"] = 1 - arrays["truth"]
        np.savez(path, **arrays)
    ensemble.evaluate_ensemble(runs, out, "test")
    assert (out / FILE).read_bytes() == (together / FILE).read_bytes()
    dice = [read_json(run, "test")["all"]["dice"]["mean"] for run in (out, together)]
    assert dice[0] != dice[1]


def test_val_alone_needs_no_test(runs, out, together):
    for run in runs:
        for path in run.glob("results/test.*"):
            path.unlink()
    ensemble.evaluate_ensemble(runs, out, "val")
    names = {path.name for path in (out / "results").iterdir()}
    assert names == {"val.json", "val.csv", "val.npz"}
    for name in names:
        path = f"results/{name}"
        assert (out / path).read_bytes() == (together / path).read_bytes()


def test_the_same_command_gives_the_same_bytes(runs, out, capsys):
    command = [*map(str, runs), f"--workdir={out}"]
    assert ensemble.main(command) == 0
    before, printed = content(out), capsys.readouterr()
    assert len(before) == 9 and printed.err == ""  # the lock is one
    assert f"{out}: infection, test, 6 PHANTOM images" in printed.out
    assert ensemble.main(command) == 0
    assert content(out) == before and capsys.readouterr() == printed
    for run in runs:
        assert set(content(run)) == {
            f"results/{split}.{kind}"
            for split in LABELS
            for kind in ("json", "csv", "npz")
        }


def test_regions_that_all_runs_have_are_evaluated_but_for_the_probe(runs, out):
    for run in runs:
        for split in LABELS:
            write_stem(run, split, "-predicted")
            write_stem(run, split, "-outside", operating_point=None)
            if run.name != "b":
                write_stem(run, split, "-none")
    write_stem(runs[1], "val", "-none")  # and not on Test
    ensemble.evaluate_ensemble(runs, out, "test")
    stems = {path.stem for path in (out / "results").glob("*.json")}
    assert stems == {"val", "test", "val-predicted", "test-predicted"}
    points = read_points(out)
    assert set(points) == {"truth", "predicted"}
    outputs = [outputs_of(name, "val", "-predicted") for name in NAMES]
    levels = np.rint(sum(o.levels.astype(int) for o in outputs) / 3).astype(np.uint8)
    presence = np.mean([o.presence for o in outputs], axis=0)
    point = calibrate(levels, truths_of("val"), presence)[0]
    assert as_point(points["predicted"]) == point
    assert read_json(out, "test-predicted")["lungs"] == LUNGS
    votes = sum(np.roll(lungs_of("test"), ord(name), axis=1) for name in NAMES)
    seen = read_arrays(out, "test-predicted")["seen_lung"]
    np.testing.assert_array_equal(seen, votes >= 2)


def test_lungs_that_the_runs_found_in_several_ways_are_no_ones(runs, out):
    for run in runs:
        for split in LABELS:
            write_stem(run, split, "-predicted")
        # Another folder's name makes no other lungs; another threshold does.
        change_json(run, "val-predicted", lungs=LUNGS | {"run": run.name})
    change_json(runs[2], "test-predicted", lungs=LUNGS | {"threshold": 0.7})
    ensemble.evaluate_ensemble(runs, out, "test")
    assert read_json(out, "val-predicted")["lungs"] == LUNGS | {"run": "a"}
    assert read_json(out, "test-predicted")["lungs"] is None


def refused(runs: list[Path], out: Path, split: str = "test") -> str:
    """What is said of an ensemble that is refused, and leaves no trace."""
    before = content(out.parent)
    with pytest.raises(UsageError) as caught:
        ensemble.evaluate_ensemble(runs, out, split)
    assert content(out.parent) == before
    said = str(caught.value)
    assert said.count("\n") <= 1
    return said


@pytest.mark.parametrize(
    ("field", "value"),
    [("task", "lung"), ("phantom", False), ("image_size", 32), ("roi", "none"),
     ("roi_dilate", 0), ("roi_as", "channel"), ("presence_from", "head"),
     ("loss_weights", {"dice": 1.0})],
)  # fmt: skip
@pytest.mark.parametrize("split", ["val", "test"])
def test_a_run_of_another_kind_is_named(runs, out, split, field, value):
    first = (ensemble.EARLIER | read_json(runs[0], split))[field]
    change_json(runs[1], split, **{field: value})
    assert refused(runs, out) == (
        f"{runs[1] / 'results' / split}.json: {field} {value}, and {first} in"
        f" {runs[0] / 'results' / split}.json"
    )


@pytest.mark.parametrize("what", ["file", "class", "order", "truth", "lung"])
def test_a_run_of_other_images_or_masks_is_named(runs, out, what):
    path = runs[2] / "results" / "test.csv"
    if what in ("truth", "lung"):
        arrays = read_arrays(runs[2], "test")
        arrays[what][5, 0, 0] ^= 1
        np.savez(path.with_suffix(".npz"), **arrays)
    elif what == "order":
        head, *rows = path.read_text().splitlines(keepends=True)
        path.write_text("".join([head, *rows[::-1]]))
    else:
        old, new = {"file": ("5.png", "6.png"), "class": ("Normal", "Non-COVID")}[what]
        path.write_text(path.read_text().replace(old, new))
    kind = "images" if what in ("file", "class", "order") else f"{what} masks"
    assert refused(runs, out) == (
        f"{path.with_suffix('.json')}: not of the {kind} of"
        f" {runs[0] / 'results' / 'test.json'}"
    )


def damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    else:
        path.write_text("[]")


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "other"])
@pytest.mark.parametrize("kind", ["json", "csv", "npz"])
def test_results_that_are_not_whole_are_named_with_what_writes_them(
    runs, out, kind, how
):
    damage(runs[1] / "results" / f"test.{kind}", how)
    said = refused(runs, out)
    assert said.startswith(f"{runs[1] / 'results' / 'test'}: no whole results")
    assert f"--mode=evaluate --workdir={runs[1]} --split=test writes them" in said


@pytest.mark.parametrize("field", ["roi_dilate", "task", "threshold", "n", "split"])
def test_results_of_before_a_field_was_there_are_named(runs, out, field):
    path = runs[0] / "results" / "val.json"
    about = json.loads(path.read_text())
    del about[field]
    path.write_text(json.dumps(about))
    said = refused(runs, out)
    assert str(path.with_suffix("")) in said and repr(field) in said
    assert "--split=val writes them" in said


def test_a_split_that_was_not_evaluated_is_named(runs, out):
    said = refused(runs, out, "train")
    assert said.startswith(f"{runs[0] / 'results' / 'train'}: no whole results")
    assert "--split=train writes them" in said


def test_a_region_that_is_not_whole_is_not_passed_over(runs, out):
    for run in runs:
        for split in LABELS:
            write_stem(run, split, "-none")
    damage(runs[0] / "results" / "test-none.json", "cut")
    assert str(runs[0] / "results" / "test-none") in refused(runs, out)


@pytest.mark.parametrize("what", ["a file in it", "a file", "a member", "other runs"])
def test_a_folder_of_something_else_is_not_touched(runs, out, what):
    if what == "a file in it":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    elif what == "a file":
        out.write_text("mine")
    elif what == "a member":
        out = runs[0]
    else:
        ensemble.evaluate_ensemble(runs[:2], out, "val")
    assert f"--workdir={out} holds something else" in refused(runs, out)


def test_a_folder_that_another_process_holds_is_refused(runs, out):
    with run_folder.hold(out):
        assert "another process is at work there" in refused(runs, out)


@pytest.mark.parametrize("left", ["", LOCK, f".{ensemble.FILE}.x.half"])
def test_a_folder_in_which_nothing_was_finished_is_taken(runs, out, left):
    out.mkdir()
    if left:
        (out / left).touch()
    ensemble.evaluate_ensemble(runs, out, "val")
    assert (out / "results" / "val.json").exists()


def test_figures_of_members_as_they_were_do_not_stay(runs, out, capsys):
    ensemble.evaluate_ensemble(runs, out, "test")
    for split in LABELS:  # trained on, since; evaluated again
        change_json(runs[1], split, checkpoint=99, fingerprint="99999999")
    ensemble.evaluate_ensemble(runs, out, "val")
    assert f"{out / 'results' / 'test'}: removed" in capsys.readouterr().out
    assert {path.stem for path in (out / "results").iterdir()} == {"val"}
    assert read_points(out)["truth"]["members"][1]["checkpoint"] == 99


def test_a_way_that_a_member_has_lost_is_lost_to_the_ensemble(runs, out):
    for run in runs:
        for split in LABELS:
            write_stem(run, split, "-predicted")
    ensemble.evaluate_ensemble(runs, out, "test")
    assert set(read_points(out)) == {"truth", "predicted"}
    (runs[2] / "results" / "test-predicted.json").unlink()
    ensemble.evaluate_ensemble(runs, out, "test")
    assert {path.stem for path in (out / "results").iterdir()} == {"val", "test"}
    assert set(read_points(out)) == {"truth"}


def test_figures_of_another_split_stay_where_nothing_changed(runs, out):
    ensemble.evaluate_ensemble(runs, out, "test")
    before = content(out)
    ensemble.evaluate_ensemble(runs, out, "val")
    assert content(out) == before


@pytest.mark.parametrize("names", ["a", "aa", "aba"])
def test_an_ensemble_needs_several_runs_each_once(runs, out, capsys, names):
    command = [str(out.parent / name) for name in names]
    assert ensemble.main([*command, f"--workdir={out}"]) == 2
    assert capsys.readouterr() == (
        "", "covjax: an ensemble needs two runs or more, each of them once\n",
    )  # fmt: skip
    assert not out.exists()


def test_what_is_refused_is_said_in_a_line_and_status_2(runs, out, capsys):
    (runs[0] / "results" / "val.json").unlink()
    assert ensemble.main([*map(str, runs), f"--workdir={out}"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert str(runs[0] / "results" / "val") in printed.err


def test_compare_reads_an_ensemble_as_it_reads_a_run(written, together, capsys):
    assert compare.main([str(written / "a"), str(together), "--roi=truth"]) == 0
    text = capsys.readouterr().out
    assert "infection, test, 6 PHANTOM images, paired" in text
    assert "were found in two ways" not in text and "None" not in text
    a, b = (compare.read_run(run, "val") for run in (written / "a", together))
    pixels = dict(zip(b.samples, b.counts[:, [0, 2]].sum(axis=1), strict=True))
    assert list(pixels.values()) == truths_of("val").sum(axis=(1, 2)).tolist()
    found = compare.compare(a, b)["figures"]["all dice"]["b"]["mean"]
    assert found == pytest.approx(read_points(together)["truth"]["reached"])


def test_members_are_not_changed_by_a_merge(written):
    members = [ensemble.read_member(written / name, "test") for name in NAMES]
    before = [dataclasses.replace(m, about=dict(m.about)) for m in members]
    levels = [m.outputs.levels.copy() for m in members]
    merge(members)
    for m, kept, array in zip(members, before, levels, strict=True):
        assert m.about == kept.about
        np.testing.assert_array_equal(m.outputs.levels, array)
