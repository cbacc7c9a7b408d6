"""What people look at: logs, tables, figures (the page: test_page.py)."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from covjax.evaluation.results import ROI_NAMES, headline_roi, roi_name
from covjax.report import tables
from covjax.report.figures import Panel, choose_samples, draw_curves, draw_qualitative
from covjax.report.reliability import draw_reliability
from covjax.report.severity import draw_severity
from covjax.report.sheets import Thumbnail, choose_sheets, draw_sheet
from covjax.report.tables import format_point, format_regions, format_results
from covjax.train import metric_writer
from covjax.train.metric_writer import RunLog, read_metrics
from finished_run import CLASSES, figure, make_full_results, make_results


def open_log(workdir: Path, start: int = 0, silent: bool = False) -> RunLog:
    return RunLog(workdir, start=start, total=9, batch_size=8, silent=silent)


def read_events(workdir: Path) -> list[tuple[int, str, float]]:
    """Step, name and number of everything that TensorBoard would show."""
    found = []
    for path in workdir.glob("events.out.tfevents.*"):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            # Its classes are made when it is imported, unseen by pyright.
            event = event_pb2.Event.FromString(  # type: ignore[attr-defined]
                data[12 : 12 + length]
            )
            data = data[16 + length :]  # a checksum stands on either side
            for value in event.summary.value:
                found.append((event.step, value.tag, value.simple_value))
    return found


def test_numbers_are_a_line_of_json_each(tmp_path):
    with open_log(tmp_path) as run_log:
        run_log.write(2, "train", {"loss": 0.5, "lr": 1e-3})
        run_log.write(4, "val", {"loss": 0.25, "blank_rate": None})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == [
        {"step": 2, "split": "train", "loss": 0.5, "lr": 1e-3},
        {"step": 4, "split": "val", "loss": 0.25, "blank_rate": None},
    ]
    assert text.endswith("\n")
    assert read_metrics(tmp_path) == [json.loads(line) for line in text.splitlines()]


def test_numbers_are_on_disk_as_soon_as_they_are_written(tmp_path):
    with open_log(tmp_path) as run_log:
        run_log.write(2, "train", {"loss": 0.5})
        assert read_metrics(tmp_path) == [{"step": 2, "split": "train", "loss": 0.5}]


def test_tensorboard_gets_the_same_numbers_but_for_none(tmp_path):
    with open_log(tmp_path) as run_log:
        run_log.write(2, "train", {"loss": 0.5})
        run_log.write(4, "val", {"loss": 0.25, "blank_rate": None})
    assert read_events(tmp_path) == [(2, "train/loss", 0.5), (4, "val/loss", 0.25)]


def test_a_run_that_goes_on_writes_its_events_anew(tmp_path):
    with open_log(tmp_path) as run_log:
        for step in (1, 2, 3):
            run_log.write(step, "train", {"loss": 1.0 / step})
    (old,) = tmp_path.glob("events.out.tfevents.*")
    old.write_bytes(old.read_bytes()[:-3])  # killed while it wrote
    old.rename(f"{old}-of-another-host")
    with open_log(tmp_path, start=2) as run_log:
        run_log.write(3, "train", {"loss": 9.0})
    told = [(1, "train/loss", 1.0), (2, "train/loss", 0.5), (3, "train/loss", 9.0)]
    assert read_events(tmp_path) == told


def test_dropped_updates_of_before_are_known(tmp_path):
    with open_log(tmp_path) as run_log:
        assert run_log.dropped == []
        run_log.write(1, "train", {"loss": 0.5})
        run_log.write(2, "train", {"loss": None, "dropped": 1})
        run_log.write(4, "train", {"loss": None, "dropped": 1})
    with open_log(tmp_path, start=3) as run_log:
        assert run_log.dropped == [2]


TORN = ["", '{"step": 5, "spl', '{"step": 5, "split": "train", "loss": 0.1']


@pytest.mark.parametrize("torn", TORN, ids=["whole", "in a name", "before its end"])
def test_run_that_goes_on_drops_what_was_beyond_its_checkpoint(tmp_path, torn):
    with open_log(tmp_path) as run_log:
        for step in (1, 2, 3, 4):
            run_log.write(step, "train", {"loss": 1.0 / step})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + torn)
    with open_log(tmp_path, start=3) as run_log:
        run_log.write(4, "train", {"loss": 9.0})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["loss"] for line in lines] == [1.0, 0.5, 1 / 3, 9.0]


def test_torn_last_line_is_not_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "split": "val"}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "split": "val"}]


def test_folder_without_numbers_has_none(tmp_path):
    assert read_metrics(tmp_path) == []


def test_silent_log_writes_and_says_nothing(tmp_path, capsys):
    with open_log(tmp_path, silent=True) as run_log:
        run_log.say("hello")
        run_log.write(1, "train", {"loss": 0.5})
        run_log.advance(1, 0.5)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_log_says_a_text_as_it_is(tmp_path, capsys):
    text = "[bold] runs/[1] " + 40 * "long "
    with open_log(tmp_path) as run_log:
        run_log.say(text)
    assert capsys.readouterr().out == f"{text}\n"


def test_rate_counts_from_the_last_start_of_the_clock(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(metric_writer.time, "perf_counter", lambda: now)
    with open_log(tmp_path, start=3) as run_log:
        now = 104.0
        assert run_log.images_per_second(5) == 2 * 8 / 4
        run_log.restart_clock(5)
        assert run_log.images_per_second(5) == 0
        now = 106.0
        assert run_log.images_per_second(9) == 4 * 8 / 2


def rows_of(text: str) -> dict[str, str]:
    """Name of a row → the rest of it."""
    parts = (re.split(r"  +", line.strip(), maxsplit=1) for line in text.splitlines())
    return {part[0]: part[1] for part in parts if len(part) == 2}


def test_table_names_run_images_region_and_threshold():
    lines = format_results(make_results(), "runs/a").splitlines()
    assert lines[:3] == [
        "runs/a: infection, test, 1166 images (583 with an empty truth)",
        "region of interest: true lungs; threshold 0.5, untuned",
        "",
    ]


def test_table_of_a_tuned_run_says_what_was_chosen_on_what():
    results = make_full_results(0.5, roi="predicted")
    told = (
        "threshold 0.62, smallest area 40 px, presence 0.800, chosen on Val for"
        " “all dice”"
    )
    assert format_point(results) == told
    second = format_results(results, "runs/a").splitlines()[1]
    assert second == f"region of interest: lungs found by stage 1; {told}"
    probe = results | {"operating_point": None, "threshold": 0.25}
    assert format_point(probe) == "threshold 0.25, untuned"


def test_untuned_threshold_has_a_row_below_the_tuned_point():
    rows = rows_of(format_results(make_full_results(0.5, phantom=False), "runs/a"))
    shown = {name: rows[name].split() for name in list(rows)[1:4]}
    assert list(shown.items()) == [
        ("covjax, all", ["0.3141", "0.5000", "0.5101"]),
        ("at 0.5, untuned", ["–", "0.2000", "0.2101"]),
        ("the study, true lungs", ["0.3656", "0.6167", "0.5642"]),
    ]
    _, table, _ = format_results(make_results(), "runs/a").split("\n\n")
    assert "untuned" not in table


def test_table_shows_every_figure_with_its_interval():
    rows = rows_of(format_results(make_results(), "runs/a"))
    assert rows["covjax, all"].split() == ["0.3141", "0.6111", "0.5611"]
    assert rows["all"].startswith("0.6111 [0.5911, 0.6311]")
    assert rows["all"].endswith("0.5611 [0.5411, 0.5811]")
    assert rows["positive"].startswith("0.7222 [0.7022, 0.7422]")
    assert rows["positive"].endswith("0.6222 [0.6022, 0.6422]")
    assert rows["pooled"].startswith("0.8333 [0.8133, 0.8533]")
    assert rows["pooled"].endswith("0.7333 [0.7133, 0.7533]")
    assert rows["blank rate"].startswith("0.4444 [0.4244, 0.4644]")
    assert rows["blank rate"].endswith("Normal 0.5555, Non-COVID 0.3333")


def test_columns_stand_under_their_names():
    lines = format_results(make_full_results(0.6), "runs/a").splitlines()
    head = next(line for line in lines if "loss" in line)
    for start, values in (
        ("covjax", ("0.3141", "0.6000", "0.6101")),
        ("at 0.5", ("–", "0.3000", "0.3101")),
    ):
        row = next(line for line in lines if line.strip().startswith(start))
        for name, value in zip(("loss", "Dice", "IoU"), values, strict=True):
            assert head.index(name) + len(name) == row.index(value) + len(value)


@pytest.mark.parametrize(
    ("task", "study"),
    [
        ("lung", ["0.0372", "0.9690", "0.9411"]),
        ("infection", ["0.3656", "0.6167", "0.5642"]),
    ],
)
def test_study_is_shown_beside_real_images(task, study):
    text = format_results(make_results(task=task), "runs/a")
    shown = "whole image" if task == "lung" else "true lungs"
    assert rows_of(text)[f"the study, {shown}"].split() == study
    assert "PHANTOM" not in text


def test_study_is_not_shown_beside_val():
    assert "the study" not in format_results(make_results(split="val"), "runs/a")


def test_table_says_which_run_found_the_lungs():
    lungs = {"run": "lung-7", "step": 932, "threshold": 0.5}
    results = make_results(roi="predicted", lungs=lungs)
    second = format_results(results, "runs/a").splitlines()[1]
    assert second.startswith(
        "region of interest: lungs found by stage 1 (lung-7, step 932); threshold"
    )


def test_phantoms_are_stated_and_never_compared_with_the_study():
    text = format_results(make_results(phantom=True), "runs/a")
    assert "1166 PHANTOM images" in text.splitlines()[0]
    assert "study" not in text


def test_figure_that_nothing_tells_is_a_dash():
    nothing = {"dice": figure(None, None, None), "iou": figure(None, None, None)}
    blank = figure(0.4444, 0.4, 0.5) | {"Normal": 0.5555, "Non-COVID": None}
    text = format_results(make_results(positive=nothing, blank_rate=blank), "runs/a")
    assert rows_of(text)["positive"].split() == ["–", "–"]
    assert "Normal 0.5555, Non-COVID –" in text
    assert "None" not in text and "nan" not in text


def test_split_without_empty_truths_has_no_blank_rate():
    blank = figure(None, None, None) | {"Normal": None, "Non-COVID": None}
    assert "blank" not in format_results(make_results(blank_rate=blank), "runs/a")


def test_regions_stand_below_one_another_each_with_its_untuned_row():
    probe = make_full_results(0.1, roi="outside", operating_point=None)
    del probe["untuned"]
    lungs = make_full_results(0.6, roi="none", detection=None)
    found = [make_full_results(0.5, roi="predicted"), lungs, probe]
    head, names, *rows = format_regions(found).splitlines()
    assert head.startswith("Shown of each image (Dice; below each, at the untuned")
    columns = ["Dice, all", "positive", "pooled", "blank rate", "AUROC"]
    assert re.split(r"  +", names.strip()) == columns
    assert [re.split(r"  +", row.strip()) for row in rows] == [
        # Dice of all, positive and pooled, blank rate: .0202 apart; AUROC.
        ["lungs found by stage 1", "0.5000", "0.5202", "0.5404", "0.5606", "0.7100"],
        ["0.2000", "0.2202", "0.2404", "0.2606"],
        ["whole image", "0.6000", "0.6202", "0.6404", "0.6606", "–"],
        ["0.3000", "0.3202", "0.3404", "0.3606"],
        ["only what lies outside the lungs"]
        + ["–", "–", "–", "–", "0.3100"],  # not tuned, and no measure of outlines
    ]
    ends = [names.index(name) + len(name) for name in columns]
    for row in rows:
        values = [match.end() for match in re.finditer(r"\d\.\d{4}|–", row)]
        assert values == ends[: len(values)]


def test_region_without_an_empty_truth_has_a_dash_for_its_blank_rate():
    blank = figure(None, None, None) | {"Normal": None, "Non-COVID": None}
    results = make_results(blank_rate=blank, detection=None)
    row = format_regions([results]).splitlines()[2]
    assert row.split() == ["true", "lungs", "0.6111", "0.7222", "0.8333", "–", "–"]


def write_results(run: Path, content: str) -> Path:
    (run / "results").mkdir(parents=True)
    (run / "results" / "test.json").write_text(content)
    return run


def test_tables_of_several_runs_are_printed(tmp_path, capsys):
    runs = [
        str(write_results(tmp_path / name, json.dumps(make_results(loss=loss))))
        for name, loss in (("a", 0.1234), ("b", 0.4321))
    ]
    assert tables.main(runs) == 0
    out = capsys.readouterr().out
    assert out.index("0.1234") < out.index("0.4321")
    for run in runs:
        assert f"{run}: infection" in out
        assert f"report: {run}/report.html" in out


def test_tables_without_a_run_show_how_to_use_it(capsys):
    assert tables.main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("usage: ")


def test_tables_show_found_lungs_first_and_all_regions_below(tmp_path, capsys):
    run = tmp_path / "run"
    for stem, roi, loss in (
        ("test", "truth", 0.1111), ("test-predicted", "predicted", 0.2222),
    ):  # fmt: skip
        (run / "results").mkdir(parents=True, exist_ok=True)
        results = make_full_results(0.6, roi=roi, loss=loss)
        (run / "results" / f"{stem}.json").write_text(json.dumps(results))
    assert tables.main([str(run)]) == 0
    out = capsys.readouterr().out
    assert "region of interest: lungs found by stage 1" in out
    assert "0.2222" in out and "0.1111" not in out
    assert [name for name in ("true lungs", "lungs found") if f"\n  {name}" in out] == [
        "true lungs", "lungs found",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("regions", "headline"),
    [
        # What a run is shown comes first. A clinic has the image, and a run of stage 1.
        (["none"], "none"),
        (["none", "truth", "outside"], "none"),
        (["none", "truth", "predicted", "outside"], "none"),
        (["predicted", "truth", "none", "outside"], "predicted"),
        (["truth", "predicted", "none", "outside"], "predicted"),
        (["truth", "none", "outside"], "truth"),  # no lungs were found
        (["truth"], "truth"),
        (["outside"], "outside"),
    ],
)
def test_headline_is_a_way_that_a_clinic_has_if_there_is_one(regions, headline):
    assert headline_roi(regions) == headline
    found = [make_full_results(0.3 + k / 10, roi=roi) for k, roi in enumerate(regions)]
    text = tables.format_evaluation(found, "runs/a")
    assert f"region of interest: {ROI_NAMES[headline]};" in text.split("\n")[1]
    dice = f"{0.3 + regions.index(headline) / 10:.4f}"
    assert rows_of(text.split("Shown of each image")[0])["all"].startswith(dice)


def test_tables_of_results_that_lack_a_figure_name_it(tmp_path, capsys):
    results = make_results()
    del results["pooled"]
    write_results(tmp_path / "run", json.dumps(results))
    assert tables.main([str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert "test.json: lacks 'pooled'" in err and "--mode=evaluate" in err


@pytest.mark.parametrize("content", [None, "{", ""], ids=["missing", "cut", "empty"])
def test_tables_of_a_run_without_results_name_the_file(tmp_path, capsys, content):
    if content is not None:
        write_results(tmp_path / "run", content)
    assert tables.main([str(tmp_path / "run")]) == 2
    out, err = capsys.readouterr()
    assert str(tmp_path / "run" / "results" / "test.json") in err
    assert err.count("\n") == 1 and "report:" not in out


@pytest.mark.parametrize(
    "changes",
    [
        {"all": 3}, {"all": {"dice": {}}}, {"threshold": "0.5"},
        {"roi": []}, {"roi": {}}, {"operating_point": {"threshold": 1}},
        {"operating_point": [1]}, {"blank_rate": None}, {"lungs": 3}, {"untuned": 1},
    ],
)  # fmt: skip
def test_tables_of_results_of_another_form_are_a_line(tmp_path, capsys, changes):
    write_results(tmp_path / "run", json.dumps(make_results(**changes)))
    assert tables.main([str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(str(tmp_path / "run")) and err.count("\n") == 1


def test_a_terminal_obeys_nothing_of_a_file(tmp_path, capsys):
    lungs = {"run": "\x1b[2Jlung", "step": 3}
    results = make_results(roi="predicted", lungs=lungs)
    write_results(tmp_path / "run", json.dumps(results))
    assert tables.main([str(tmp_path / "run")]) == 0
    assert "(\\x1b[2Jlung, step 3)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line", [b"[1]", b"3", b'{"step": "a", "split": "val"}', b'{"step": 1}', b"\xff",
             b"[" * 100_000]
)  # fmt: skip
def test_numbers_end_at_a_line_of_another_form(tmp_path, line):
    good = b'{"step": 1, "split": "train", "loss": 0.5}'
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([good, line, good]))
    assert read_metrics(tmp_path) == [{"step": 1, "split": "train", "loss": 0.5}]


def counts_of(pixels: list[int], seed: int) -> np.ndarray:
    """Counts of images with so many true pixels, and any output."""
    rng = np.random.default_rng(seed)
    truth = np.array(pixels)
    tp = rng.integers(0, truth + 1)
    fp = rng.integers(0, 50, len(pixels))
    return np.stack([tp, fp, truth - tp, 500 - fp - truth], axis=1)


PIXELS = [50, 10, 90, 20, 70, 30, 110, 40, 60, 80, 100, 0, 0, 0, 0]
LABELS = 11 * ["COVID-19"] + ["Non-COVID"] + 3 * ["Normal"]


@pytest.mark.parametrize("seed", range(4))
def test_images_of_infection_are_chosen_by_their_truth_alone(seed):
    # Of 11 infected images the 10th percentile is the second smallest, 20 pixels, and
    # the 90th the second largest, 100. Of 3 Normal images the second is in the middle.
    chosen = choose_samples(LABELS, counts_of(PIXELS, seed), lungs=False)
    assert chosen == [("severe", 10), ("mild", 3), ("Normal", 13)]


@pytest.mark.parametrize("seed", range(4))
def test_images_of_lungs_are_the_middle_of_each_class(seed):
    chosen = choose_samples(LABELS, counts_of(PIXELS, seed), lungs=True)
    assert chosen == [("COVID-19", 5), ("Non-COVID", 11), ("Normal", 13)]


def test_class_without_images_is_left_out():
    counts = counts_of(PIXELS, 0)
    assert choose_samples(LABELS[:11], counts[:11], lungs=True) == [("COVID-19", 5)]
    assert choose_samples(LABELS[11:], counts[11:], lungs=False) == [("Normal", 2)]
    assert choose_samples(LABELS[:1], counts[:1], lungs=False) == [
        ("severe", 0),
        ("mild", 0),
    ]
    assert choose_samples([], np.zeros((0, 4), int), lungs=False) == []


def make_panel(truth: int, output: int) -> Panel:
    sample = np.arange(256, dtype=np.uint8).reshape(16, 16)
    masks = [np.full((16, 16), value, np.uint8) for value in (truth, output)]
    if truth and output:
        masks[0][:8], masks[1][4:] = 0, 0
    return Panel("title", sample, sample * masks[0], *masks)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        return picture.size


def test_qualitative_figure_fits_a_page_and_grows_by_a_row_an_image(tmp_path):
    panels = [make_panel(1, 1), make_panel(0, 1), make_panel(1, 0)]
    path = tmp_path / "figures" / "qualitative.png"
    heights = []
    for rows in (1, 2, 3):
        draw_qualitative(path, panels[:rows], "PHANTOM infection")
        width, height = size_of(path)
        assert width == 1100
        heights.append(height)
    # four square pictures side by side: a row is about a quarter of the width high
    assert all(250 <= b - a <= 300 for a, b in zip(heights, heights[1:], strict=False))


def test_qualitative_figure_shows_truth_and_output_in_their_colours(tmp_path):
    def colours(truth: int, output: int) -> list[bool]:
        path = tmp_path / f"{truth}{output}.png"
        draw_qualitative(path, [make_panel(truth, output)], "title")
        pixels = np.asarray(Image.open(path).convert("RGB"), int)
        below = pixels[100:]  # the legend, in the same colours, stands above
        blue, orange = (0x56, 0xB4, 0xE9), (0xE6, 0x9F, 0x00)
        return [bool((np.abs(below - c).max(-1) < 30).any()) for c in (blue, orange)]

    assert colours(1, 1) == [True, True]
    assert colours(0, 0) == [False, False]


LINES = [
    {"step": 1, "split": "train", "loss": 0.9},
    {
        "step": 2, "split": "val", "loss": 0.8,
        "all_dice": 0.1, "positive_dice": None, "pooled_dice": 0.3,
    },
    {"step": 3, "split": "train", "loss": 0.7},
]  # fmt: skip


@pytest.mark.parametrize("lines", [LINES, LINES[:1], []], ids=["both", "train", "none"])
def test_curves_are_drawn_of_whatever_there_is(tmp_path, lines):
    draw_curves(tmp_path / "curves.png", lines, "title")
    assert size_of(tmp_path / "curves.png") == (1100, 352)


def test_same_run_draws_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        draw_curves(tmp_path / name, LINES, "title")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def make_thumbnails(n: int) -> list[Thumbnail]:
    sample = np.full((16, 16), 90, np.uint8)
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 4:12] = 1
    return [Thumbnail("a.png", "Normal", 0.5, sample, mask, mask) for _ in range(n)]


@pytest.mark.parametrize("n", [0, 3, 10])
def test_sheet_shows_each_image_once_five_a_row(tmp_path, n):
    draw_sheet(tmp_path / "sheet.png", make_thumbnails(n), "title")
    assert size_of(tmp_path / "sheet.png") == (1100, 594)
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"), int)
    # The grey of the images: inside the outlines, and all around them.
    grey = np.abs(pixels - 90) < 3
    shown = [
        [bool(grey[rows][:, 220 * k : 220 * (k + 1)].mean() > 0.2) for k in range(5)]
        for rows in (slice(0, 297), slice(297, 594))
    ]
    assert shown == [[k < n for k in range(5)], [k + 5 < n for k in range(5)]]


def test_sheets_are_chosen_by_dice():
    # Image k finds k of 12 pixels and adds none: Dice 2k / (k + 12), which rises with
    # k. Image 12 is blank as it should be, Dice 1; image 13 a false alarm, Dice 0.
    counts = [[k, 0, 12 - k, 88] for k in range(12)]
    chosen = choose_sheets(np.array([*counts, [0, 0, 0, 100], [0, 50, 0, 50]]))
    assert chosen["best"] == [11, 10, 9, 8, 7, 6, 5, 4, 3, 2]
    assert chosen["median"] == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert chosen["worst"] == [13, 0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_sheets_of_few_images_or_none():
    few = choose_sheets(np.array([[1, 0, 1, 8], [2, 0, 0, 8]]))
    assert few == {"best": [1, 0], "median": [1, 0], "worst": [0, 1]}
    none = choose_sheets(np.zeros((0, 4), int))
    assert none == {"best": [], "median": [], "worst": []}


def draw_bins(path: Path) -> None:
    draw_reliability(
        path,
        edges=np.array([0, 0.5, 0.9, 1]),
        confidence=np.array([0.1, np.nan, 0.95]),
        frequency=np.array([0.05, np.nan, 0.9]),
        pixels=np.array([10_000, 0, 10]),
        title="PHANTOM",
    )


def draw_shares(path: Path) -> None:
    draw_severity(
        path,
        true_share=np.array([0.1, 0.9, np.nan, 0.0]),
        found_share=np.array([0.2, 0.7, 0.5, np.nan]),
        labels=["COVID-19", "COVID-19", "Non-COVID", "Normal"],
        bias=-0.05,
        limits=(-0.3, 0.2),
        title="PHANTOM",
    )


@pytest.mark.parametrize("draw", [draw_bins, draw_shares])
def test_bins_and_images_without_a_value_are_left_out(tmp_path, draw):
    for name in ("a.png", "b.png"):
        draw(tmp_path / name)
    assert size_of(tmp_path / "a.png")[0] == 1100
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_severity_of_a_class_has_its_own_colour(tmp_path):
    def reds(labels: list[str]) -> bool:
        draw_severity(
            tmp_path / "a.png",
            true_share=np.array([0.5]),
            found_share=np.array([0.5]),
            labels=labels,
            bias=0.0,
            limits=(0.0, 0.0),
            title="title",
        )
        # The legend, at the top left, names every class in its colour.
        pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"), int)
        red = (pixels[..., 0] > 200) & (pixels[..., 2] < 140)
        return bool(red[150:].any())

    assert [reds([label]) for label in CLASSES] == [True, False, False]


def test_reliability_curve_goes_on_over_an_empty_bin(tmp_path):
    draw_bins(tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"), int)
    blue = (np.abs(pixels - (0x00, 0x72, 0xB2)).max(-1) < 30).any(axis=0)
    assert blue.sum() > 200  # columns of the picture: a line, not two points


def test_lungs_that_were_widened_are_called_so():
    results = make_results(roi_dilate=2)
    text = "true lungs, widened by 2 px"
    assert f"region of interest: {text};" in format_results(results, "runs/a")
    assert roi_name(results) == text
    assert roi_name(make_results(roi_dilate=0)) == "true lungs"


@pytest.mark.parametrize(
    ("weights", "loss"),
    [({"dice": 0.5, "bce": 0.5}, "0.3656"), ({"dice": 1.0}, "–"), ({"bce": 0.5}, "–")],
)
def test_loss_of_the_study_stands_only_beside_the_same_loss(weights, loss):
    results = make_results() | {"loss_weights": weights}
    row = rows_of(format_results(results, "runs/a"))["the study, true lungs"]
    assert row.split() == [loss, "0.6167", "0.5642"]


@pytest.mark.parametrize(
    ("about", "name"),
    [
        ({"roi": "truth"}, "true lungs"),
        ({"roi": "truth", "roi_as": "channel"}, "whole image, true lungs beside it"),
        (
            {"roi": "predicted", "roi_as": "channel", "roi_dilate": 3},
            "whole image, lungs found by stage 1, widened by 3 px beside it",
        ),
        ({"roi": "none", "roi_as": "cut"}, "whole image"),
        (
            {"roi": "outside", "roi_as": "channel"},
            "only what lies outside the lungs, and where they are",
        ),
    ],
)
def test_what_a_network_was_shown_is_told_with_how(about, name):
    assert roi_name(about) == name
