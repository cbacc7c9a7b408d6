"""A run evaluated in every way: its files agree, and NumPy finds the figures again."""

import csv
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import recompute
from covjax.config import read_config
from covjax.data.covidqu import CLASSES, list_samples, read_sample
from covjax.data.split_masks import SplitMasks
from covjax.evaluation import evaluate
from covjax.evaluation.lung_masks import make_finder
from covjax.evaluation.results import measure, summarize_evaluated
from covjax.metrics.operating_point import (
    FILE,
    OperatingPoint,
    read_points,
    write_points,
)
from covjax.run import _add_predicted_lungs, evaluate_run
from covjax.train.eval_pass import Outputs
from evaluated_run import (
    SAMPLES,
    SIDE,
    STEP,
    expected_levels,
    write_run,
    write_two_runs,
)
from test_page import Page

N = {split: sum(counts) for split, counts in SAMPLES.items()}


class Runs(NamedTuple):
    """Both runs after Test was evaluated, and what was printed of the second."""

    lung: Path
    infection: Path
    printed: str


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    of_lungs, of_infection = write_two_runs(folder)
    evaluate_run(of_lungs, "Test")
    capture = pytest.MonkeyPatch()
    printed: list[str] = []
    capture.setattr("builtins.print", lambda *x, **_: printed.append(" ".join(x)))
    evaluate_run(of_infection, "Test")
    capture.undo()
    return Runs(of_lungs, of_infection, "\n".join(printed))


def read_json(run: Path, stem: str) -> dict[str, Any]:
    return json.loads((run / "results" / f"{stem}.json").read_text())


def read_rows(run: Path, stem: str) -> list[dict[str, str]]:
    with (run / "results" / f"{stem}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_arrays(run: Path, stem: str) -> dict[str, np.ndarray]:
    with np.load(run / "results" / f"{stem}.npz") as files:
        return dict(files)


def recomputed(run: Path, stem: str) -> dict[str, np.ndarray]:
    return recompute.read(read_arrays(run, stem), read_rows(run, stem))


STEMS = {"test": "truth", "test-predicted": "predicted", "test-none": "none",
         "test-outside": "outside"}  # fmt: skip


@pytest.mark.parametrize(("stem", "roi"), STEMS.items())
def test_each_way_shows_the_network_its_part_of_each_image(runs, stem, roi):
    root = Path(read_config(runs.infection / "config.json").data.root)
    samples = list_samples(root, "infection", "Test")
    arrays = read_arrays(runs.infection, stem)
    for i, sample in enumerate(samples):
        record = read_sample(sample, SIDE)
        inside = {
            "truth": record["lung"],
            "predicted": arrays["seen_lung"][i],
            "none": np.ones_like(record["lung"]),
            "outside": 1 - record["lung"],
        }[roi]
        expected = expected_levels(record["image"] * inside, "infection")
        # float32 may fall to the other side of a half.
        assert np.abs(arrays["levels"][i].astype(int) - expected).max() <= 1
        np.testing.assert_array_equal(arrays["truth"][i], record["infection"])
        np.testing.assert_array_equal(arrays["lung"][i], record["lung"])
        if roi != "predicted":
            np.testing.assert_array_equal(arrays["seen_lung"][i], record["lung"])


def test_found_lungs_are_near_the_true_ones_and_not_them(runs):
    arrays = read_arrays(runs.infection, "test-predicted")
    both = (arrays["lung"] & arrays["seen_lung"]).sum()
    dice = 2 * both / (arrays["lung"].sum() + arrays["seen_lung"].sum())
    assert 0.9 < dice < 1


@pytest.mark.parametrize(("stem", "roi"), STEMS.items())
def test_results_say_what_they_are_of(runs, stem, roi):
    found = read_json(runs.infection, stem)
    about = {"split": "test", "n": 24, "n_empty": 12, "task": "infection", "roi": roi}
    about |= {"image_size": SIDE, "checkpoint": STEP, "phantom": True}
    assert {name: found[name] for name in about} == about
    if roi != "predicted":
        assert found["lungs"] is None
        return
    point = read_points(runs.lung)["none"]
    assert found["lungs"] == {"run": "lung", "step": STEP} | {
        name: point[name]
        for name in ("fingerprint", "threshold", "min_area", "presence")
    }


def test_json_begins_with_what_others_read(runs):
    for run, stem in ((runs.lung, "test"), *((runs.infection, s) for s in STEMS)):
        assert list(read_json(run, stem))[:9] == [
            "split", "n", "n_empty", "threshold", "loss", "all", "positive", "pooled",
            "blank_rate",
        ]  # fmt: skip


def test_rows_are_of_every_image_in_order(runs):
    rows = read_rows(runs.infection, "test")
    assert list(rows[0]) == [
        "file", "class", "TP", "FP", "FN", "TN", "loss", "dice", "iou",
        "presence", "lung", "true_share", "found_share", "hd95", "surface_dice",
    ]  # fmt: skip
    root = Path(read_config(runs.infection / "config.json").data.root)
    samples = list_samples(root, "infection", "Test")
    assert [row["file"] for row in rows] == [sample.name for sample in samples]
    assert [row["class"] for row in rows] == [sample.label for sample in samples]
    assert {sum(int(row[k]) for k in ("TP", "FP", "FN", "TN")) for row in rows} == {
        SIDE * SIDE
    }


@pytest.mark.parametrize("stem", STEMS)
def test_rows_are_found_again_from_the_masks(runs, stem):
    rows, x = read_rows(runs.infection, stem), recomputed(runs.infection, stem)
    names = {"TP": "tp", "FP": "fp", "FN": "fn", "TN": "tn", "dice": "dice",
             "iou": "iou", "presence": "score", "true_share": "true",
             "found_share": "share", "hd95": "hd95",
             "surface_dice": "surface"}  # fmt: skip
    for column, name in names.items():
        written = [float(row[column] or "nan") for row in rows]
        np.testing.assert_allclose(written, x[name], rtol=1e-12, err_msg=column)
    lung = read_arrays(runs.infection, stem)["seen_lung"].sum(axis=(1, 2))
    assert [int(row["lung"]) for row in rows] == lung.tolist()


@pytest.mark.parametrize("stem", STEMS)
def test_masks_are_the_levels_at_the_operating_point(runs, stem):
    point = read_json(runs.infection, stem)["operating_point"]
    assert (point is None) == (stem == "test-outside")  # the probe is not tuned
    arrays, x = read_arrays(runs.infection, stem), recomputed(runs.infection, stem)
    threshold = point["threshold"] if point else 0.5
    above = arrays["levels"] / 255 > threshold
    gated = x["score"] < (point["presence"] if point else 0)
    assert not arrays["output"][gated].any()
    assert not (arrays["output"] & ~above).any()
    dropped = (above & (arrays["output"] == 0))[~gated].sum(axis=(1, 2))
    if not point or not point["min_area"]:
        assert not dropped.any()
    else:
        kept = arrays["output"].sum(axis=(1, 2))
        assert kept[kept > 0].min() >= point["min_area"] and dropped.any()


class Anew(NamedTuple):
    """Figures of a split by `recompute`: all images, by class, by lesion size."""

    x: dict[str, np.ndarray]
    all: dict[str, tuple[np.floating, ...]]
    classes: dict[str, dict[str, tuple[np.floating, ...]]]
    lesions: list[dict[str, tuple[np.floating, ...]]]


@pytest.fixture(scope="module")
def anew(runs) -> Anew:
    """The headline's figures; thousands of draws of images take some seconds."""
    x = recomputed(runs.infection, "test-predicted")
    share = np.where(x["positive"], x["true"], np.nan)
    sizes = [share < 0.1, (share >= 0.1) & (share <= 0.5), share > 0.5]
    with warnings.catch_warnings():  # where a draw holds images of one kind only
        warnings.simplefilter("ignore", RuntimeWarning)
        of_groups = [
            recompute.with_intervals({k: v[chosen] for k, v in x.items()})
            for chosen in (slice(None), *(x["label"] == label for label in CLASSES))
        ]
        lesions = [
            recompute.with_intervals({k: v[chosen] for k, v in x.items()})
            for chosen in sizes
            if chosen.any()
        ]
    classes = {label: of_groups[k] for k, label in enumerate(CLASSES, 1)}
    return Anew(x, of_groups[0], classes, lesions)


def check(found: dict[str, Any], expected: tuple[np.floating, ...]) -> None:
    told = [np.nan if found[k] is None else found[k] for k in ("mean", "low", "high")]
    np.testing.assert_allclose(told, expected, rtol=1e-9, atol=1e-12)


def test_every_figure_of_the_json_is_found_again_by_numpy(runs, anew):
    found = read_json(runs.infection, "test-predicted")
    assert found["loss"] == pytest.approx(anew.all["loss"][0], rel=1e-12)
    names = set(anew.all) - {"loss", "false_pixels"}
    assert len(names) == 20
    for name in names:
        value = found
        for key in name.split("."):
            value = value[key]
        check(value, anew.all[name])
    rates = found["blank_rate"]
    for label in ("Normal", "Non-COVID"):
        assert rates[label] == pytest.approx(anew.classes[label]["blank_rate"][0])
    assert found["surface"]["n_hd95"] == np.sum(~np.isnan(anew.x["hd95"]))
    assert found["surface"]["n_surface_dice"] == np.sum(~np.isnan(anew.x["surface"]))
    assert found["severity"]["n"] == N["Test"]
    for k, of_bin in enumerate(found["reliability"]["bins"]):
        pixels, p, y = anew.x["bins"][:, k].sum(axis=0)
        told = (of_bin["pixels"], of_bin["confidence"], of_bin["frequency"])
        assert told == pytest.approx((pixels, p / pixels, y / pixels), rel=1e-12)


def test_every_figure_of_a_group_is_found_again_by_numpy(runs, anew):
    found = read_json(runs.infection, "test-predicted")
    assert set(found["classes"]) == set(CLASSES)
    names = {"dice": "all.dice", "positive_dice": "positive.dice"}
    names |= {"blank_rate": "blank_rate", "false_pixels": "false_pixels"}
    for label, of_class in found["classes"].items():
        for name, ours in names.items():
            check(of_class[name], anew.classes[label][ours])
    names = {"dice": "all.dice", "iou": "all.iou", "sensitivity": "pixels.sensitivity"}
    some = [of_size for of_size in found["lesions"] if of_size["n"]]
    for of_size, expected in zip(some, anew.lesions, strict=True):
        for name, ours in names.items():
            check(of_size[name], expected[ours])
    assert sum(of_size["n"] for of_size in some) == SAMPLES["Test"][0]


@pytest.mark.parametrize("stem", ["test", "test-none", "test-outside"])
def test_the_other_ways_are_found_again_by_numpy(runs, stem):
    found, x = read_json(runs.infection, stem), recomputed(runs.infection, stem)
    expected = recompute.figures(x)
    for name in ("all.dice", "positive.iou", "pooled.dice", "detection.auroc"):
        of_name, _, key = name.partition(".")
        assert found[of_name][key]["mean"] == pytest.approx(expected[name], rel=1e-12)
    assert found["blank_rate"]["mean"] == pytest.approx(expected["blank_rate"])


def test_the_untuned_families_are_those_of_the_bare_threshold(runs):
    found = read_json(runs.infection, "test-predicted")["untuned"]
    arrays = read_arrays(runs.infection, "test-predicted")
    arrays["output"] = (arrays["levels"] > 127).astype(np.uint8)
    x = recompute.read(arrays, read_rows(runs.infection, "test-predicted"))
    expected = recompute.figures(x)
    assert found["threshold"] == 0.5
    for family in ("all", "positive", "pooled"):
        for name in ("dice", "iou"):
            told = found[family][name]["mean"]
            assert told == pytest.approx(expected[f"{family}.{name}"], rel=1e-12)
    assert found["blank_rate"]["mean"] == pytest.approx(expected["blank_rate"])
    assert found["blank_rate"]["mean"] < 1  # there is something to be tuned


def test_every_number_of_the_page_is_found_again_by_numpy(runs, anew):
    page = Page((runs.infection / "report.html").read_text())

    def told(name: str, of=anew.all, digits: int = 4) -> str:
        mean, low, high = (f"{v:.{digits}f}" for v in of[name])
        return "–" if mean == "nan" else f"{mean} [{low}, {high}]"

    families = page.table("Families, Test, region of interest: lungs found by stage 1")
    for row, family in zip(
        families.values(), ("all", "positive", "pooled"), strict=True
    ):
        assert row[:2] == [told(f"{family}.dice"), told(f"{family}.iou")]
    headline = page.table("Test, family “all”")["covjax, lungs found by stage 1, tuned"]
    loss = f"{anew.all['loss'][0]:.4f}"
    assert headline == [loss, told("all.dice"), told("all.iou")]
    blank = page.table("Blank rate: of 12 images")
    assert blank["all empty images"][0] == told("blank_rate")
    for label in ("Normal", "Non-COVID"):
        assert blank[label][0] == f"{anew.classes[label]['blank_rate'][0]:.4f}"
    pixels = page.table("Pixels and outlines")
    hd95, surface = (np.sum(~np.isnan(anew.x[k])) for k in ("hd95", "surface"))
    assert list(pixels.values()) == [
        [told("pixels.precision")], [told("pixels.sensitivity")],
        [told("pixels.specificity")], [told("surface.surface_dice")],
        [told("surface.hd95", digits=1)],
    ]  # fmt: skip
    assert f"Surface Dice at 2 px ({surface} images)" in pixels
    assert any(f"({hd95} images with both outlines)" in name for name in pixels)
    detection = page.table("Images with infection (12 of 24)")
    assert list(detection.values()) == [
        [told(f"detection.{k}")] for k in ("auroc", "sensitivity", "specificity")
    ]
    severity = page.table("Infected share of the lungs (0 to 1), 24 images; 0")
    names = ("mae", "bias", "limits.low", "limits.high")
    assert list(severity.values()) == [[told(f"severity.{k}")] for k in names]
    over = "calibration error over the pixels inside the true lungs"
    assert f"{over}: {told('reliability.ece')}" in page.text
    bins = page.table("Reliability, bin by bin")
    for row, (n, p, y) in zip(bins.values(), anew.x["bins"].sum(axis=0), strict=True):
        assert row == [f"{n:,.0f}", f"{p / n:.4f}", f"{y / n:.4f}"]
    classes = page.table("By class")
    for label, (samples, empty, *row) in classes.items():
        chosen = anew.x["label"] == label
        assert samples == str(chosen.sum())
        assert empty == str((~anew.x["positive"][chosen]).sum())
        names = ("all.dice", "positive.dice", "blank_rate")
        of = anew.classes[label]
        assert row == [*(told(k, of) for k in names), told("false_pixels", of, 1)]
    lesions = [row for row in page.table("By extent").values() if row[0] != "0"]
    for (_, *row), of in zip(lesions, anew.lesions, strict=True):
        names = ("all.dice", "all.iou", "pixels.sensitivity")
        assert row == [told(k, of) for k in names]
    missed = anew.x["positive"] & (anew.x["tp"] == 0)
    false = ~anew.x["positive"] & anew.x["found"]
    for label, row in page.table("Images that failed").items():
        of = anew.x["label"] == label
        assert [cell.split(" of ")[0] for cell in row] == [
            str((of & missed).sum()), str((of & false).sum()),
        ]  # fmt: skip


def test_page_shows_the_three_ways_and_the_probe(runs):
    page = Page((runs.infection / "report.html").read_text())
    regions = page.table("Test by what the network is shown")
    names = {"true lungs": "test", "lungs found by stage 1": "test-predicted",
             "whole image": "test-none"}  # fmt: skip
    for name, stem in names.items():
        x = recomputed(runs.infection, stem)
        means = recompute.figures(x)
        row = [cell.split(" ")[0] for cell in regions[name]]
        keys = ("all.dice", "positive.dice", "pooled.dice", "blank_rate")
        assert row[:4] == [f"{means[k]:.4f}" for k in keys]
        assert row[4] == f"{means['detection.auroc']:.4f}"
        assert f"{name}, threshold 0.5, untuned" in regions
    # The mark beside the lungs of COVID-19 images gives each of them away.
    x = recomputed(runs.infection, "test-outside")
    assert recompute.figures(x)["detection.auroc"] == 1.0
    probe = page.table("Detection of COVID-19 images, Test")
    assert probe["outside the lungs alone"] == ["1.0000 [1.0000, 1.0000]"]
    assert "more than chance" in page.text


def test_terminal_shows_the_three_ways_side_by_side(runs):
    for name in ("true lungs", "lungs found by stage 1", "whole image", "only what"):
        assert re.search(rf"^  {name}.* [01]\.\d{{4}}", runs.printed, re.M), name
    assert "chosen on Val for “all dice”" in runs.printed
    assert "PHANTOM" in runs.printed and str(runs.infection) in runs.printed


def test_figures_are_drawn_of_the_headline(runs):
    names = {path.name for path in (runs.infection / "figures").iterdir()}
    assert names == {
        f"{k}.png"
        for k in ("qualitative", "best", "median", "worst", "reliability", "severity")
    }
    names = {path.name for path in (runs.lung / "figures").iterdir()}
    assert names == {
        f"{k}.png" for k in ("qualitative", "best", "median", "worst", "reliability")
    }


def test_lungs_have_no_severity_and_no_detection(runs):
    found = read_json(runs.lung, "test")
    assert [found[k] for k in ("severity", "detection", "lesions")] == [None] * 3
    assert found["n_empty"] == 0 and found["blank_rate"]["mean"] is None
    assert {p.stem for p in (runs.lung / "results").glob("test*.json")} == {"test"}
    x = recomputed(runs.lung, "test")
    assert found["all"]["dice"]["mean"] == pytest.approx(x["dice"].mean(), rel=1e-12)
    arrays = read_arrays(runs.lung, "test")
    np.testing.assert_array_equal(arrays["truth"], arrays["lung"])
    # Of all pixels, not of those in the lungs alone.
    counted = sum(b["pixels"] for b in found["reliability"]["bins"])
    assert counted == arrays["levels"].size


def test_val_chose_each_operating_point_and_its_results_are_kept(runs):
    points = read_points(runs.infection)
    assert set(points) == {"truth", "predicted", "none"}
    for roi, stem in (("truth", "val"), ("predicted", "val-predicted")):
        found, told = read_json(runs.infection, stem), points[roi]
        assert (told["chosen_on"], told["n"]) == ("val", N["Val"])
        assert found["operating_point"] == told and found["split"] == "val"
        assert found["all"]["dice"]["mean"] == pytest.approx(told["reached"])
        assert told["reached"] > found["untuned"]["all"]["dice"]["mean"]
        assert (
            read_json(runs.infection, stem.replace("val", "test"))["operating_point"]
            == told
        )


@pytest.fixture
def copied(runs, tmp_path) -> Path:
    """The infection run, whose folder a test may change; the lung run stays."""
    return shutil.copytree(runs.infection, tmp_path / "infection")


def passes(monkeypatch) -> list[tuple[str, str]]:
    """Notes the split and the region of each pass over the data from here on."""
    noted = []
    predict = evaluate.predict_split

    def note(config, samples, state, *, roi):
        noted.append((samples[0].split, roi))
        return predict(config, samples, state, roi=roi)

    monkeypatch.setattr(evaluate, "predict_split", note)
    return noted


def test_evaluating_again_chooses_nothing_anew_and_gives_the_same(copied, monkeypatch):
    noted = passes(monkeypatch)
    before = {p: p.read_bytes() for p in copied.rglob("*") if p.suffix == ".json"}
    evaluate_run(copied, "Test")
    assert noted == [("Test", roi) for roi in STEMS.values()]
    assert before == {
        p: p.read_bytes() for p in copied.rglob("*") if p.suffix == ".json"
    }


def test_point_of_another_checkpoint_is_chosen_anew(copied, monkeypatch):
    points = read_points(copied)
    points["none"]["checkpoint"] = STEP - 1
    points["none"]["threshold"] = 0.123
    points["predicted"]["lungs"] = "runs/lung"  # of no form that is known
    write_points(copied, points)
    noted = passes(monkeypatch)
    evaluate_run(copied, "Test")
    assert [roi for split, roi in noted if split == "Val"] == ["predicted", "none"]
    assert read_points(copied)["none"]["checkpoint"] == STEP
    assert read_json(copied, "test-none")["threshold"] != 0.123


def test_point_that_is_kept_is_the_one_that_is_used(copied):
    points = read_points(copied)
    points["truth"] |= {"threshold": 0.9, "min_area": 3, "presence": 0.25}
    write_points(copied, points)
    evaluate_run(copied, "Test")
    found = read_json(copied, "test")
    assert found["operating_point"] == points["truth"] and found["threshold"] == 0.9
    arrays = read_arrays(copied, "test")
    assert (
        arrays["output"].any() and not arrays["output"][arrays["levels"] <= 229].any()
    )


def test_other_lungs_need_another_point(copied, runs, tmp_path, monkeypatch):
    other = shutil.copytree(runs.lung, tmp_path / "other")
    points = read_points(other)  # the same network, at another operating point
    points["none"]["threshold"] = 0.7
    write_points(other, points)
    config = read_config(copied / "config.json")
    config.data.lung_run = str(other)
    noted = passes(monkeypatch)
    evaluate_run(copied, "Test", config)
    assert [roi for split, roi in noted if split == "Val"] == ["predicted"]
    assert read_json(copied, "test-predicted")["lungs"]["threshold"] == 0.7


def test_figures_at_a_point_that_was_replaced_do_not_stay(
    copied, runs, tmp_path, capsys
):
    other = shutil.copytree(runs.lung, tmp_path / "other")
    points = read_points(other)
    points["none"]["threshold"] = 0.7
    write_points(other, points)
    config = read_config(copied / "config.json")
    config.data.lung_run = str(other)
    evaluate_run(copied, "Val", config)
    assert "test-predicted: removed" in capsys.readouterr().out
    assert not list((copied / "results").glob("test-predicted.*"))
    assert (copied / "results" / "test.json").exists()
    lungs = read_json(copied, "val-predicted")["lungs"]
    assert lungs == read_points(copied)["predicted"]["lungs"]


def test_val_alone_is_evaluated_in_the_same_ways_and_read_once(
    runs, copied, monkeypatch
):
    for path in (copied / FILE, *(copied / "results").glob("*")):
        path.unlink()
    noted = passes(monkeypatch)
    evaluate_run(copied, "Val")
    assert noted == [("Val", roi) for roi in STEMS.values()]
    for roi in ("", "-predicted", "-none"):  # as it was evaluated on Test's behalf
        for suffix in ("json", "csv", "npz"):
            path = f"results/val{roi}.{suffix}"
            assert (copied / path).read_bytes() == (runs.infection / path).read_bytes()
    stems = {path.stem for path in (copied / "results").glob("*.json")}
    assert stems == {"val", "val-predicted", "val-none", "val-outside", "audit"}
    assert (copied / "figures" / "qualitative-val.png").exists()


def test_run_from_scratch_has_no_predicted_lungs_and_says_so(copied):
    path = copied / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_from": ""}))
    for old in (copied / "results").glob("*predicted*"):
        old.unlink()
    evaluate_run(copied, "Test")
    stems = {path.stem for path in (copied / "results").glob("test*.json")}
    assert stems == {"test", "test-none", "test-outside"}
    page = Page((copied / "report.html").read_text())
    assert "flatter it" in page.text
    assert "lungs found by stage 1" not in page.table("Test by what")


def test_run_of_the_outside_is_evaluated_there_alone_and_tuned(copied):
    path = copied / "config.json"
    settings = json.loads(path.read_text())
    settings["data"]["roi"] = "outside"
    path.write_text(json.dumps(settings))
    for old in (copied / "results").glob("*"):
        old.unlink()
    evaluate_run(copied, "Test")
    found = read_json(copied, "test")
    assert found["roi"] == "outside" and found["operating_point"]["chosen_on"] == "val"
    assert {p.stem for p in (copied / "results").glob("test*.json")} == {"test"}
    # With no lungs found for it, true ones stand for those that it was not shown.
    arrays = read_arrays(copied, "test")
    np.testing.assert_array_equal(arrays["seen_lung"], arrays["lung"])


def test_run_that_is_shown_lungs_beside_the_image_is_never_shown_none(
    runs, tmp_path, monkeypatch
):
    config = read_config(runs.infection / "config.json")
    config.data.roi_as = "channel"
    run = write_run(tmp_path / "channel", config)
    noted = passes(monkeypatch)
    evaluate_run(run, "Val")
    assert noted == [("Val", roi) for roi in ("truth", "predicted", "outside")]
    assert set(read_points(run)) == {"truth", "predicted"}
    stems = {path.stem for path in (run / "results").glob("*.json")}
    assert stems == {"val", "val-predicted", "val-outside", "audit"}
    samples = list_samples(Path(config.data.root), "infection", "Val")
    for sample, levels in zip(samples, read_arrays(run, "val")["levels"], strict=True):
        whole = expected_levels(read_sample(sample, SIDE)["image"], "infection")
        assert np.abs(levels.astype(int) - whole).max() <= 1


def test_run_that_is_shown_whole_images_is_headed_by_them(copied, monkeypatch, capsys):
    path = copied / "config.json"
    settings = json.loads(path.read_text())
    settings["data"]["roi"] = "none"
    path.write_text(json.dumps(settings))
    for old in (copied / "results").glob("*"):
        old.unlink()
    drawn = []
    monkeypatch.setattr(
        "covjax.run.draw_split", lambda *_, region, title: drawn.append((region, title))
    )
    evaluate_run(copied, "Test")
    stems = {path.stem for path in (copied / "results").glob("test*.json")}
    assert stems == {"test", "test-truth", "test-predicted", "test-outside"}
    assert read_json(copied, "test")["roi"] == "none"
    [(region, title)] = drawn
    assert region.roi == "none" and "shown: whole image;" in title
    assert "\nregion of interest: whole image; threshold" in capsys.readouterr().out
    page = Page((copied / "report.html").read_text())
    rows = page.table("Families, Test, region of interest: whole image")
    mean = recomputed(copied, "test")["dice"].mean()
    assert list(rows.values())[0][0].startswith(f"{mean:.4f} [")


def test_images_are_gated_by_the_presence_that_the_network_told(runs):
    arrays = read_arrays(runs.infection, "test")
    root = Path(read_config(runs.infection / "config.json").data.root)
    samples, n = list_samples(root, "infection", "Test"), N["Test"]
    presence = np.where(np.arange(n) % 3, 0.8, 0.2)  # whatever the levels say
    measured = measure(
        samples,
        Outputs(arrays["levels"], np.zeros(n), presence),
        SplitMasks(arrays["truth"], arrays["lung"], None),
        OperatingPoint(0.5, presence=0.5),
        task="infection",
        roi="truth",
    )
    plain = (arrays["levels"] > 127).astype(np.uint8)
    shown = (presence > 0.5).astype(np.uint8)[:, None, None]
    np.testing.assert_array_equal(measured.output, plain * shown)
    assert (plain * (1 - shown)).any()
    np.testing.assert_array_equal(measured.rows["presence"], presence)
    found = summarize_evaluated(measured, task="infection", threshold=0.5, untuned=0.5)
    positive = arrays["truth"].any(axis=(1, 2))
    pairs = np.sign(presence[positive][:, None] - presence[~positive])
    auroc = found["detection"]["auroc"]["mean"]
    assert auroc == pytest.approx((pairs.mean() + 1) / 2)
    both = [(plain * a & arrays["truth"]).sum() for a in (1, shown)]
    sums = [(plain * a).sum() + arrays["truth"].sum() for a in (1, shown)]
    for families, tp, pixels in zip((found["untuned"], found), both, sums, strict=True):
        pooled = families["pooled"]["dice"]["mean"]
        assert pooled == pytest.approx(2 * tp / pixels)


def test_the_same_lungs_of_a_copied_run_need_no_other_point(
    copied, runs, tmp_path, monkeypatch
):
    config = read_config(copied / "config.json")
    config.data.lung_run = str(shutil.copytree(runs.lung, tmp_path / "moved"))
    noted = passes(monkeypatch)
    evaluate_run(copied, "Test", config)
    assert not [split for split, _ in noted if split == "Val"]


def test_all_points_are_chosen_before_the_split_is_read(runs, copied, monkeypatch):
    (copied / FILE).unlink()
    noted = passes(monkeypatch)
    evaluate_run(copied, "Test")
    assert [split for split, _ in noted] == ["Val"] * 3 + ["Test"] * 4


def lose_lungs(run: Path) -> None:
    path = run / "config.json"
    settings = json.loads(path.read_text()) | {"init_from": str(run / "deleted")}
    path.write_text(json.dumps(settings))


def test_found_lungs_of_before_still_head_the_page_once_their_run_is_gone(
    copied, capsys
):
    before = {
        path: path.read_bytes()
        for path in (*copied.glob("figures/*"), *copied.glob("results/*predicted*"))
    }
    lose_lungs(copied)
    evaluate_run(copied, "Test")
    out = capsys.readouterr().out
    assert "deleted is no run of lungs, or not there: nothing is evaluated" in out
    assert "region of interest: lungs found by stage 1" in out
    # The pictures are those of the figures they stand beside.
    assert before == {path: path.read_bytes() for path in before}


def test_results_of_another_checkpoint_are_removed(copied):
    for stem in ("test-predicted", "train"):
        results = read_json(copied, "test-predicted") | {"fingerprint": "00000000"}
        (copied / "results" / f"{stem}.json").write_text(json.dumps(results))
    lose_lungs(copied)
    evaluate_run(copied, "Test")
    stems = {path.stem for path in (copied / "results").iterdir()}
    assert not {"train", "test-predicted"} & stems
    assert {"val", "val-predicted", "test", "test-none"} <= stems
    page = Page((copied / "report.html").read_text())
    assert "flatter it" in page.text  # true lungs head it


def test_audit_of_other_images_is_made_anew(copied):
    path = copied / "results" / "audit.json"
    path.write_text(json.dumps({"root": "/elsewhere"}))
    evaluate_run(copied, "Test")
    assert json.loads(path.read_text())["root"].endswith("images")


def test_training_is_shown_found_lungs_only_where_asked(runs):
    config = read_config(runs.infection / "config.json")
    root, finder = Path(config.data.root), make_finder(config)
    samples = {s: list_samples(root, "infection", s) for s in SAMPLES}
    assert _add_predicted_lungs(config, runs.infection, samples, finder) is samples
    config.data.roi = "predicted"
    shown = _add_predicted_lungs(config, runs.infection, samples, finder)
    for split, of_split in shown.items():
        assert [f.name for f in of_split] == [f.name for f in samples[split]]
        if split == "Test":  # is read by the evaluation alone
            assert of_split is samples[split]
            continue
        assert all(f.found_lung is not None and f.found_lung.exists() for f in of_split)
