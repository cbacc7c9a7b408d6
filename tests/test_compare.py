"""Two runs compared: figures by hand, a bootstrap paired by image, errors."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covjax import compare
from covjax.data.covidqu import Sample
from covjax.errors import UsageError
from covjax.evaluation import results

HEAD = "file,class,TP,FP,FN,TN,loss,dice,iou"
# File, class, TP, FP, FN, TN of 100 pixels in A and in B. The file name "1.png" occurs
# in two classes.
HAND = [
    ("1.png", "COVID-19", (30, 10, 10, 50), (40, 20, 0, 40)),  # .75 → .8
    ("2.png", "COVID-19", (2, 0, 6, 92), (1, 0, 7, 92)),  # .4 → 2/9
    ("1.png", "Normal", (0, 0, 0, 100), (0, 0, 0, 100)),  # 1 → 1
    ("3.png", "Non-COVID", (0, 20, 0, 80), (0, 0, 0, 100)),  # 0 → 1
]
ABOUT = {"task": "infection", "split": "test", "phantom": False, "image_size": 10}

Row = tuple[str, str, Any]  # file, class, counts


def hand(side: int) -> list[Row]:
    return [(row[0], row[1], row[2 + side]) for row in HAND]


def write_csv(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(HEAD.split(","))
        for file, label, counts in rows:
            writer.writerow([file, label, *counts, 0.5, 0.25, 0.125])
    return path


def write_run(folder: Path, rows: list[Row], **about: Any) -> Path:
    """A run's folder with results/test.csv and the JSON file beside it."""
    path = write_csv(folder / "results" / "test.csv", rows)
    path.with_suffix(".json").write_text(json.dumps(ABOUT | about))
    return folder


@pytest.fixture
def runs(tmp_path) -> list[str]:
    """The folders of the two runs of `HAND`."""
    return [
        str(write_run(tmp_path / name, hand(k))) for k, name in enumerate(("a", "b"))
    ]


def compare_runs(*runs: Path | str) -> dict[str, Any]:
    a, b = (compare.read_run(Path(run), "test") for run in runs)
    return compare.compare(a, b)


def means(found: dict[str, Any], side: str) -> dict[str, float | None]:
    return {name: row[side]["mean"] for name, row in found["figures"].items()}


def test_what_an_evaluation_writes_is_read(tmp_path):
    names = ('a, "1".png', '=HYPERLINK("2").png')
    masks = np.zeros((2, 2, 3), np.uint8)
    counts = np.array([(1, 2, 3, 0), (0, 0, 0, 6)])
    evaluated = results.Evaluated(
        samples=[Sample(x, "Normal", "Test", tmp_path, tmp_path, None) for x in names],
        levels=masks,
        output=masks,
        truth=masks,
        lung=masks,
        seen_lung=masks,
        # Most is not defined on most images: cells of columns that are not read.
        rows=dict.fromkeys(results.MEASURED, np.full(2, np.nan))
        | {"loss": np.array([0.25, 1e-9])},
        counts=counts,
    )
    about = ABOUT | {"roi": "predicted"}
    results.write_results(tmp_path / "results", "test", evaluated, about)
    run = compare.read_run(tmp_path, "test")
    assert run.samples == [("Normal", x) for x in names]
    np.testing.assert_array_equal(run.counts, counts)
    assert run.about == about
    found = compare_runs(tmp_path, tmp_path)
    assert means(found, "b")["all dice"] == pytest.approx((2 / 7 + 1) / 2)
    assert found["a"]["roi"] == "predicted"
    head, _, last = (tmp_path / "results" / "test.csv").read_text().splitlines()
    assert head.startswith(HEAD + ",")  # as in the files that are written here
    assert last.startswith("\"'=HYPERLINK")  # no formula


def test_figures_and_differences_by_hand(runs):
    found = compare_runs(*runs)
    expected = {
        "all dice": ((0.75 + 0.4 + 1 + 0) / 4, (0.8 + 2 / 9 + 1 + 1) / 4),
        "all iou": ((0.6 + 0.25 + 1 + 0) / 4, (40 / 60 + 1 / 8 + 1 + 1) / 4),
        "positive dice": ((0.75 + 0.4) / 2, (0.8 + 2 / 9) / 2),
        "positive iou": ((0.6 + 0.25) / 2, (40 / 60 + 1 / 8) / 2),
        "pooled dice": (64 / 110, 82 / 109),  # of A: TP 32, FP 30, FN 16
        "pooled iou": (32 / 78, 41 / 68),  # of B: TP 41, FP 20, FN 7
        "blank_rate": (1 / 2, 1),
    }
    assert means(found, "a") == pytest.approx({k: a for k, (a, _) in expected.items()})
    assert means(found, "b") == pytest.approx({k: b for k, (_, b) in expected.items()})
    assert means(found, "difference") == pytest.approx(
        {k: b - a for k, (a, b) in expected.items()}, abs=1e-11
    )
    assert found["n"] == 4
    assert found["dice"] == {"higher": 2, "lower": 1, "same": 1}


def test_images_that_changed_are_listed_most_changed_first(runs):
    found = compare_runs(*runs)
    worsened, improved = found["worsened"], found["improved"]
    assert [(x["class"], x["file"]) for x in worsened] == [("COVID-19", "2.png")]
    assert [(x["class"], x["file"]) for x in improved] == [
        ("Non-COVID", "3.png"),
        ("COVID-19", "1.png"),
    ]
    assert [worsened[0][k] for k in ("a", "b", "difference")] == pytest.approx(
        [0.4, 2 / 9, 2 / 9 - 0.4]
    )


def test_ten_images_are_listed_and_equal_changes_keep_their_order(tmp_path):
    names = [f"{k}.png" for k in range(12)]
    a = [(name, "Normal", (0, 0, 0, 9)) for name in names]
    b = [(name, "Normal", (0, 1, 0, 8)) for name in names]
    paths = [write_csv(tmp_path / n, rows) for n, rows in (("a.csv", a), ("b.csv", b))]
    for pair, which in ((paths, "worsened"), (paths[::-1], "improved")):
        found = compare_runs(*pair)
        assert [row["file"] for row in found[which]] == names[:10]


def random_pair(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of two runs with the same masks; a half is empty, of that some blank."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(1, 200, n) * (np.arange(n) % 2)
    sides = []
    for _ in range(2):
        tp = rng.integers(0, truth + 1)
        fp = rng.integers(1, 200, n) * rng.integers(0, 2, n)
        sides.append(np.stack([tp, fp, truth - tp, 800 - truth - fp], axis=1))
    return sides[0], sides[1]


def figures_by_hand(counts: np.ndarray) -> dict[str, float]:
    """The figures of one draw from its images alone, as docs/metrics.md has it."""
    dice, iou, positive, blank = [], [], [], []
    for tp, fp, fn, _ in counts.tolist():
        if tp + fn == 0:
            blank.append(float(fp == 0))
            dice.append(blank[-1])
            iou.append(blank[-1])
        else:
            dice.append(2 * tp / (2 * tp + fp + fn))
            iou.append(tp / (tp + fp + fn))
            positive.append((dice[-1], iou[-1]))
    tp, fp, fn, _ = counts.sum(axis=0).tolist()
    return {
        "all dice": np.mean(dice),
        "all iou": np.mean(iou),
        "positive dice": np.mean([d for d, _ in positive]),
        "positive iou": np.mean([i for _, i in positive]),
        "pooled dice": 2 * tp / (2 * tp + fp + fn),
        "pooled iou": tp / (tp + fp + fn),
        "blank_rate": np.mean(blank),
    }  # type: ignore[return-value]


def test_intervals_are_those_of_differences_computed_anew_from_every_draw():
    a, b = random_pair(24, seed=1)
    found = compare.compare_figures(a, b, resamples=400, seed=5)
    rng = np.random.default_rng(5)
    draws = []
    for _ in range(400):
        drawn = rng.integers(24, size=24)  # one draw, for both runs
        of_a, of_b = figures_by_hand(a[drawn]), figures_by_hand(b[drawn])
        draws.append({name: of_b[name] - of_a[name] for name in of_a})
    for name, row in found.items():
        low, high = np.percentile([draw[name] for draw in draws], (2.5, 97.5))
        assert row["difference"]["low"] == pytest.approx(low, abs=1e-11), name
        assert row["difference"]["high"] == pytest.approx(high, abs=1e-11), name


def test_pairing_narrows_the_interval_of_runs_that_find_the_same_images_hard():
    rng = np.random.default_rng(2)
    tp = rng.integers(0, 90, 200)  # from hopeless to easy, for both runs
    a = np.stack([tp, 0 * tp, 100 - tp, 900 + 0 * tp], axis=1)
    better = tp + rng.integers(0, 5, 200)
    b = np.stack([better, 0 * tp, 100 - better, 900 + 0 * tp], axis=1)
    row = compare.compare_figures(a, b, resamples=2000)["positive dice"]
    # Unpaired: draws of their own for each run.
    draws = [
        np.mean((2 * y / (y + 100))[rng.integers(200, size=200)])
        - np.mean((2 * x / (x + 100))[rng.integers(200, size=200)])
        for x, y in 2000 * [(tp, better)]
    ]
    low, high = np.percentile(draws, (2.5, 97.5))
    assert low < 0 < row["difference"]["low"]  # only the paired one can tell
    assert row["difference"]["high"] - row["difference"]["low"] < (high - low) / 10
    assert row["a"]["high"] > row["b"]["low"]  # although their intervals overlap
    assert row["verdict"] == "B better"
    assert (
        compare.compare_figures(b, a, resamples=2000)["positive dice"]["verdict"]
        == "A better"
    )


@pytest.mark.parametrize("n", [30, 61])
def test_a_run_is_not_told_apart_from_itself_nor_by_a_single_image(n: int):
    a, _ = random_pair(n, seed=n)
    b = a.copy()
    for row in compare.compare_figures(a, b, resamples=2000).values():
        assert row["difference"] == {"mean": 0, "low": 0, "high": 0}
        assert row["verdict"] == "not told apart"
    b[1] = (a[1, 0] + a[1, 2], 0, 0, a[1, 1] + a[1, 3])  # one image outlined perfectly
    for name, row in compare.compare_figures(a, b, resamples=2000).items():
        # More than a third of the draws lack that image, and their difference is 0.
        assert row["difference"]["low"] == 0, name
        assert row["verdict"] == "not told apart", name


def test_a_figure_without_anything_to_divide_by_is_a_dash(tmp_path):
    paths = [
        write_csv(tmp_path / f"{k}.csv", hand(k)[:2])
        for k in range(2)  # no empty truth
    ]
    found = compare_runs(*paths)
    none = {"mean": None, "low": None, "high": None}
    assert found["figures"]["blank_rate"] == {
        "a": none,
        "b": none,
        "difference": none,
        "verdict": None,
    }
    (line,) = (
        line
        for line in compare.format_comparison(found).splitlines()
        if "blank rate" in line
    )
    assert line.split() == ["blank", "rate", "–", "–", "–", "–", "–"]


def test_images_are_paired_by_class_and_name_not_by_place(tmp_path, runs):
    rows = hand(1)
    shuffled = write_run(tmp_path / "c", [rows[k] for k in (2, 3, 1, 0)])
    expected, found = compare_runs(*runs), compare_runs(runs[0], shuffled)
    assert found["figures"] == expected["figures"]
    assert found["improved"] == expected["improved"]


def test_later_columns_are_not_read(tmp_path, runs):
    path = Path(runs[1]) / "results" / "test.csv"
    lines = path.read_text().splitlines()
    wide = tmp_path / "wide.csv"
    wide.write_text(
        "\n".join([lines[0] + ",area,note", *(f"{x},7,odd" for x in lines[1:])]) + "\n"
    )
    assert compare_runs(runs[0], wide)["figures"] == compare_runs(*runs)["figures"]


def test_two_ways_of_scoring_one_run_are_compared_by_their_files(tmp_path, runs):
    folder = Path(runs[0]) / "results"
    other = write_csv(folder / "test-predicted.csv", hand(1))
    about = ABOUT | {"roi": "predicted"}
    other.with_suffix(".json").write_text(json.dumps(about))
    found = compare_runs(folder / "test.csv", other)
    assert found["figures"] == compare_runs(*runs)["figures"]
    assert found["b"] == {"csv": str(other), "image_size": 10, "roi": "predicted"}


def test_another_split_is_read_from_the_folders(tmp_path, runs, capsys):
    for k, run in enumerate(runs):
        write_csv(Path(run) / "results" / "val.csv", hand(k)[:3])
    assert compare.main([*runs, "--split=val"]) == 0
    assert "3 images, paired" in capsys.readouterr().out


def test_another_image_size_is_compared_and_noted(tmp_path, runs):
    # Four times the pixels, of a mask that four times as many do not cover exactly.
    rows = [(f, c, 4 * np.array(counts) + (1, 0, 0, -1)) for f, c, counts in hand(1)]
    rows = [
        row if row[1] == "COVID-19" else (*row[:2], row[2] - (1, 0, 0, -1))
        for row in rows
    ]
    large = write_run(tmp_path / "large", rows, image_size=20)
    found = compare_runs(runs[0], large)
    (note,) = found["notes"]
    assert "100 pixels in A, 400 in B" in note
    assert note in compare.format_comparison(found)
    assert compare_runs(*runs)["notes"] == []


def test_the_table_says_what_was_compared_and_what_came_out(runs, capsys):
    assert compare.main(runs) == 0
    out = capsys.readouterr().out
    assert out.startswith("infection, test, 4 images, paired\n")
    assert f"  A  {runs[0]}/results/test.csv  image_size 10\n" in out
    for line in (
        "all Dice        0.5375   0.7556   +0.2181",
        "pooled IoU      0.4103   0.6029   +0.1927",
        "blank rate      0.5000   1.0000   +0.5000",
        "2.png  COVID-19      0.4000   0.2222   -0.1778",
        "3.png  Non-COVID     0.0000   1.0000   +1.0000",
        "higher in 2, lower in 1, the same in 1",
    ):
        assert line in out, line


def test_phantoms_are_called_so_in_the_title(tmp_path):
    runs = [
        str(write_run(tmp_path / name, hand(0), phantom=True)) for name in ("a", "b")
    ]
    title = compare.format_comparison(compare_runs(*runs)).splitlines()[0]
    assert title == "infection, test, 4 PHANTOM images, paired"


def test_json_holds_it_all(tmp_path, runs, capsys):
    path = tmp_path / "new" / "found.json"
    assert compare.main([*runs, f"--json={path}"]) == 0
    found = json.loads(path.read_text())
    assert found == compare_runs(*runs)
    assert compare.format_comparison(found) + "\n" == capsys.readouterr().out
    assert [x.name for x in path.parent.iterdir()] == ["found.json"]


def test_a_wrong_flag_has_status_2(runs, capsys):
    for wrong in (["--fast"], ["--split=all"], ["a third run"]):
        with pytest.raises(SystemExit) as caught:
            compare.main([*runs, *wrong])
        assert caught.value.code == 2
        assert wrong[0].partition("=")[0] in capsys.readouterr().err


def test_the_command_ends_with_one_line_and_status_2(tmp_path, runs):
    done = subprocess.run(
        [sys.executable, "-m", "covjax.compare", runs[0], str(tmp_path / "none")],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"{tmp_path}/none: no results there (No such file or directory)\n"
    )


def test_a_run_that_was_not_evaluated_on_the_split_is_told_how(runs, capsys):
    assert compare.main([*runs, "--split=val"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{runs[0]}/results/val.csv: no results there")
    assert line.endswith(f"--mode=evaluate --workdir={runs[0]} --split=val writes them")


def test_json_that_cannot_be_written_is_said(tmp_path, runs, capsys):
    assert compare.main([*runs, f"--json={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith(f"--json: {tmp_path}: ")


GOOD = "1.png,Normal,0,0,0,100,0.5,1.0,1.0\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "its columns do not begin with file,class,TP"),
        (HEAD.replace("FN,", "") + "\n" + GOOD, "its columns do not begin with"),
        (HEAD.replace("TP,FP", "FP,TP") + "\n" + GOOD, "its columns do not begin"),
        (HEAD + "\n", "no image in it"),
        (f"{HEAD}\n{GOOD}2.png,Normal,0,0\n", "line 3: 4 values in 9 columns"),
        (f"{HEAD}\n{GOOD}{GOOD.strip()}", "torn"),
        (f"{HEAD}\n" + GOOD.replace("100", "x"), "line 2: TP, FP, FN and TN have to"),
        (f"{HEAD}\n" + GOOD.replace("100", "1.5"), "line 2: TP"),
        (f"{HEAD}\n" + GOOD.replace("100", "-1"), "line 2: TP"),
        (f"{HEAD}\n" + GOOD.replace("100", 30 * "9"), "line 2: TP"),
        (f"{HEAD}\n" + GOOD.replace("0.5", "nan"), "line 2: TP"),
        (f"{HEAD}\n" + GOOD.replace("0.5", ""), "line 2: TP"),
        ("\x00\n", "its columns do not begin with"),
        (b"\xff\xfe".decode("latin-1"), "its columns do not begin with"),
        (
            f"{HEAD}\n{GOOD}{GOOD.replace('1.png', '2.png')}{GOOD}{GOOD}",
            "Normal 1.png is listed more than once",
        ),
    ],
)
def test_a_damaged_csv_is_named(tmp_path, runs, capsys, text: str, said: str):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    assert compare.main([runs[0], str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{path}") and said in err
    assert len(err.splitlines()) == 1


def test_a_file_that_is_no_text_is_named(tmp_path, runs, capsys):
    path = tmp_path / "bad.csv"
    path.write_bytes(b"\xff\xfe\x00")
    assert compare.main([str(path), runs[1]]) == 2
    assert capsys.readouterr().err.startswith(f"{path}: not a CSV file")


@pytest.mark.parametrize("text", ["", '{"task": "lu', "[]"])
def test_a_damaged_json_beside_the_csv_is_named(runs, capsys, text: str):
    path = Path(runs[1]) / "results" / "test.json"
    path.write_text(text)
    assert compare.main(runs) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"{path}: ") and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "about", [{"task": "lung"}, {"split": "val"}, {"phantom": True}]
)
def test_runs_of_another_kind_are_refused(tmp_path, runs, about: dict[str, Any]):
    other = write_run(tmp_path / "c", hand(1), **about)
    with pytest.raises(UsageError, match="cannot be compared: " + next(iter(about))):
        compare_runs(runs[0], other)


def test_runs_of_other_images_are_refused(tmp_path, runs):
    fewer = write_run(tmp_path / "fewer", hand(1)[1:2])
    said = "COVID-19 1.png and 2 more are in .*/a/.* and not in .*/fewer/"
    with pytest.raises(UsageError, match=said):
        compare_runs(runs[0], fewer)
    with pytest.raises(UsageError, match=said):
        compare_runs(fewer, runs[0])
    moved = [*hand(1)[:3], ("3.png", "Normal", (0, 0, 0, 100))]  # to another class
    with pytest.raises(UsageError, match=r"Non-COVID 3.png is in .*/a/.* and not in"):
        compare_runs(runs[0], write_run(tmp_path / "moved", moved))


def test_other_masks_of_the_same_size_are_refused(tmp_path, runs):
    rows = hand(1)
    rows[1] = ("2.png", "COVID-19", (1, 0, 8, 91))  # 9 pixels true, 8 in A
    other = write_run(tmp_path / "c", rows[::-1])
    said = r"COVID-19 2.png is scored against different masks \(8 pixels in"
    with pytest.raises(UsageError, match=said) as caught:
        compare_runs(runs[0], other)
    assert "\n9 in " in str(caught.value)


def test_a_region_is_found_whichever_way_a_run_was_trained(tmp_path, capsys):
    # A was trained on true lungs, B on found ones: the same region has two names.
    a, b = (write_run(tmp_path / k, hand(0), roi=roi) for k, roi in
            (("a", "truth"), ("b", "predicted")))  # fmt: skip
    other = write_csv(a / "results" / "test-predicted.csv", hand(1))
    about = ABOUT | {"roi": "predicted"}
    other.with_suffix(".json").write_text(json.dumps(about))
    read = [compare.read_run(run, "test", "predicted").path.name for run in (a, b)]
    assert read == ["test-predicted.csv", "test.csv"]
    assert compare.main([str(a), str(b), "--roi=predicted"]) == 0
    assert capsys.readouterr().out.count("roi predicted") == 2
    assert compare.main([str(a), str(b), "--roi=none"]) == 2
    assert "test-none.csv: no results there" in capsys.readouterr().err


def test_what_else_differs_between_two_results_is_said(tmp_path):
    point = {"threshold": 0.5}
    lungs = {"run": "a", "fingerprint": "1"}
    base = {"roi": "predicted", "lungs": lungs, "operating_point": point}
    one = write_run(tmp_path / "one", hand(0), **base)
    for name, change, note in (
        ("same", {"lungs": lungs | {"run": "renamed"}}, None),
        ("roi", {"roi": "truth", "lungs": None}, "predicted in A, truth in B"),
        ("dilate", {"roi_dilate": 2}, "shown were widened in two ways"),
        ("lungs", {"lungs": lungs | {"fingerprint": "2"}}, "shown were found in two"),
        ("tuned", {"operating_point": None}, "A is tuned and B is untuned"),
    ):
        other = write_run(tmp_path / name, hand(1), **base | change)
        notes = compare_runs(one, other)["notes"]
        assert len(notes) == (note is not None), (name, notes)
        if note:
            assert note in notes[0]
