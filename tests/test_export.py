"""A run on the command line, and its weights in a file beside it."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs import infection
from covjax import export
from covjax.calibrate import FILE
from covjax.config import save_config
from covjax.run_dir import CONFIG
from covjax.trained import read_trained
from covjax.weights import read_weights
from saved_run import write_run

POINT = {"threshold": 0.3, "min_area": 4, "presence": 0.25}


def write_evaluated(folder: Path, about: dict[str, Any]) -> Path:
    """A run that has an operating point for its best checkpoint, step 3."""
    run = write_run(folder, infection.get_config("phantom"))
    save_config(run.config, folder / CONFIG, about)
    best = read_trained(str(folder)).fingerprint
    points = {
        "predicted": POINT | {"fingerprint": best},
        "truth": POINT | {"fingerprint": "00000000"},  # of a checkpoint before
    }
    (folder / FILE).write_text(json.dumps(points))
    return folder


def write_results(run: Path, phantom: bool) -> None:
    """As much of the results on Val as is asked of them."""
    names = (
        "task", "split", "roi", "n", "n_empty", "threshold", "loss", "all", "positive",
        "pooled", "blank_rate",
    )  # fmt: skip
    (run / "results").mkdir(exist_ok=True)
    content = dict.fromkeys(names, 0) | {"phantom": phantom}
    (run / "results" / "val.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "infection"
    return write_evaluated(folder, {"commit": "1f3a", "phantom": True})


def test_a_run_lies_beside_itself_with_the_points_of_its_checkpoint(run, capsys):
    assert export.main([str(run)]) == 0
    path = run.with_name("infection.safetensors")
    assert capsys.readouterr().out == f"{path}: {path.stat().st_size / 1e6:.1f} MB\n"
    found = read_weights(path)
    assert (found.trained.step, found.phantom, found.commit) == (3, True, "1f3a")
    assert found.points.keys() == {"predicted"}


def test_a_checkpoint_and_a_file_that_are_named_are_taken(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run.parent)
    out = tmp_path / "new" / "other.safetensors"
    path = "infection/checkpoints/3"
    assert export.main([path, f"--out={out}"]) == 0
    assert read_weights(out).points.keys() == {"predicted"}


def test_films_of_an_earlier_run_are_told_by_its_results(tmp_path, capsys):
    run = write_evaluated(tmp_path / "infection", {"commit": "1f3a"})
    assert export.main([str(run)]) == 2
    assert "results/val.json: no results there" in capsys.readouterr().err
    for phantom in (True, False):
        write_results(run, phantom)
        assert export.main([str(run)]) == 0
        assert read_weights(tmp_path / "infection.safetensors").phantom == phantom


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["RUN/checkpoints/5"], "no operating point of checkpoint 5; --mode=evaluate"),
        (["RUN/.."], "neither a run"),
        (["/"], "neither a run"),
        (["RUN", "--out=x.npz"], "--out=x.npz: must end in .safetensors"),
        (["RUN", "--out=RUN/config.json/x.safetensors"], "cannot be written"),
    ],
)
def test_what_cannot_be_exported_is_said_in_a_line_and_status_2(
    run, capsys, words, said
):
    assert export.main([word.replace("RUN", str(run)) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("covjax: ") and said in error and error.count("\n") == 1
