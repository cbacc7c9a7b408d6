"""A run on the command line, and its weights in a file beside it."""

import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from safetensors import safe_open

from configs import infection
from covjax.config import save_config
from covjax.data.pipeline import make_region
from covjax.export import export
from covjax.export.inference import make_inference
from covjax.export.onnx import run_onnx
from covjax.export.parity import SAMPLES, draw_samples
from covjax.export.safetensors import pack_weights, read_weights
from covjax.export.stablehlo import run_stablehlo
from covjax.metrics.operating_point import FILE
from covjax.train.restore import read_trained
from covjax.train.run_folder import CONFIG
from saved_run import write_run
from small_network import SIDE, make_config, make_weights

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
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    said = capsys.readouterr().out
    assert said.startswith(f"{path}: {size}; on 8 sample images at most ")
    assert re.search(r"most \d\.\de[-+]\d\d away from the run\n$", said)
    found = read_weights(path)
    assert (found.trained.step, found.phantom, found.commit) == (3, True, "1f3a")
    assert found.points.keys() == {"predicted"}


def test_a_checkpoint_and_a_file_that_are_named_are_taken(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run.parent)
    out = tmp_path / "new" / "other.safetensors"
    path = "infection/checkpoints/3"
    assert export.main([path, f"--out={out}"]) == 0
    assert read_weights(out).points.keys() == {"predicted"}


def test_images_of_an_earlier_run_are_told_by_its_results(tmp_path, capsys):
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
        (["RUN", "--format=onnx", "--out=x.stablehlo"], "must end in .onnx"),
        (["none.safetensors", "--format=onnx"], "none.safetensors: not weights of"),
        (["RUN", "--out=RUN/config.json/x.safetensors"], "cannot be written"),
    ],
)
def test_what_cannot_be_exported_is_said_in_a_line_and_status_2(
    run, capsys, words, said
):
    assert export.main([word.replace("RUN", str(run)) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("covjax: ") and said in error and error.count("\n") == 1


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights; its probabilities are spread over 0 to 1."""
    path = tmp_path_factory.mktemp("weights") / "infection.v1.safetensors"
    config = make_config(presence=True, channel=True, flip=True)
    config.model.depth = 1
    path.write_bytes(pack_weights(make_weights(config)))
    return path


def images_and_truth(packed: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Images that the check does not draw, and what the weights say of them."""
    trained = read_weights(packed).trained
    samples = draw_samples(make_region(trained.config.data), SIDE, seed=5)
    return samples, jax.device_get(make_inference(trained)(jnp.asarray(samples)))


def about_in_onnx(path: Path) -> str:
    model = onnx.load(path)
    return {prop.key: prop.value for prop in model.metadata_props}["covjax"]


def about_in_stablehlo(path: Path) -> str:
    with zipfile.ZipFile(path) as file:
        return file.read("about.json").decode()


@pytest.mark.parametrize(
    ("form", "run_file", "about_in"),
    [
        ("onnx", run_onnx, about_in_onnx),
        ("stablehlo", run_stablehlo, about_in_stablehlo),
    ],
)
def test_a_file_of_weights_becomes_a_network_beside_it(
    packed, capsys, form, run_file, about_in
):
    path = packed.with_name(f"infection.v1.{form}")
    path.write_text("of before")
    assert export.main([str(packed), f"--format={form}"]) == 0
    said = re.search(r"at most (\S+) away from the run", capsys.readouterr().out)
    assert said and 0 <= float(said[1]) < 1e-5
    samples, expected = images_and_truth(packed)
    found = run_file(path.read_bytes(), samples)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=2e-5)
    about = json.loads(about_in(path))
    with safe_open(packed, framework="numpy") as file:
        assert about == json.loads(file.metadata()["covjax"])


def test_a_run_becomes_a_network_beside_it(run, capsys):
    assert export.main([str(run), "--format=onnx"]) == 0
    about = json.loads(about_in_onnx(run.with_name("infection.onnx")))
    assert (about["step"], about["commit"], about["phantom"]) == (3, "1f3a", True)
    assert about["operating_points"].keys() == {"predicted"}


def test_a_file_of_weights_is_not_made_of_itself(packed, capsys):
    before = packed.read_bytes()
    assert export.main([str(packed)]) == 2
    said = capsys.readouterr().err
    assert f"{packed}: is such a file; --format=" in said and said.count("\n") == 1
    assert packed.read_bytes() == before


def another(*_: Any) -> dict[str, np.ndarray]:
    return {
        "probability": np.full((SAMPLES, SIDE, SIDE, 1), np.float32(0.5)),
        "presence": np.full(SAMPLES, np.float32(0.5)),
    }


def none(*_: Any) -> dict[str, np.ndarray]:
    return {name: values * np.nan for name, values in another().items()}


@pytest.mark.parametrize(
    ("form", "place"),
    [
        ("onnx", "covjax.export.onnx.run_onnx"),
        ("safetensors", "covjax.export.export._run_packed"),
    ],
)
@pytest.mark.parametrize(
    ("says", "far"), [(another, r"[1-9]\.\de-01"), (none, "nan")], ids=["other", "nan"]
)
def test_a_file_that_says_something_else_is_not_written(
    packed, tmp_path, monkeypatch, capsys, form, place, says, far
):
    monkeypatch.setattr(place, says)
    monkeypatch.setattr(export, "read_network", lambda path: read_weights(packed))
    out = tmp_path / f"infection.{form}"
    out.write_text("of before")
    assert export.main([str(tmp_path), f"--format={form}", f"--out={out}"]) == 2
    said = capsys.readouterr().err
    assert re.search(rf"{out}: not written: on 8 sample images it is up to {far}", said)
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == [out] and out.read_text() == "of before"


def test_a_network_that_is_a_little_off_is_refused(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_run", another)
    out = tmp_path / "infection.onnx"
    for by, status in ((2e-4, 2), (-2e-4, 2), (5e-5, 0)):
        told = another()
        told["probability"][7, 3, 2, 0] += np.float32(by)  # one pixel of one image
        monkeypatch.setattr("covjax.export.onnx.run_onnx", lambda *_, told=told: told)
        words = [str(packed), "--format=onnx", f"--out={out}"]
        assert export.main(words) == status
        assert out.exists() == (status == 0)


def test_a_package_that_is_missing_is_named(packed, tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "covjax.export.onnx")
    monkeypatch.delattr("covjax.export.onnx", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    out = tmp_path / "x.onnx"
    assert export.main([str(packed), "--format=onnx", f"--out={out}"]) == 2
    said = capsys.readouterr().err
    assert "onnxruntime" in said and "pip install 'covjax[export]'" in said
    assert said.count("\n") == 1 and not out.exists()


def test_without_flatbuffers_the_way_on_is_told(packed, tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "jax._src.export.serialization", raising=False)
    monkeypatch.delattr("jax._src.export.serialization", raising=False)
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    out = tmp_path / "x.stablehlo"
    assert export.main([str(packed), "--format=stablehlo", f"--out={out}"]) == 2
    said = capsys.readouterr().err
    assert "flatbuffers" in said and "pip install 'covjax[export]'" in said
    assert said.count("\n") == 1 and not out.exists()


@pytest.mark.parametrize("form", ["onnx", "stablehlo"])
def test_a_network_that_is_too_large_for_a_format_is_refused(
    packed, monkeypatch, capsys, form
):
    parameters = read_weights(packed).trained.state.params
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(parameters))
    monkeypatch.setattr(export, "_MOST", size)  # batch statistics are beside them
    assert export.main([str(packed), f"--format={form}"]) == 2
    said = capsys.readouterr().err
    assert "GB of parameters" in said and said.count("\n") == 1


def test_half_a_file_that_a_killed_export_left_is_removed(packed, tmp_path):
    out = tmp_path / "it.stablehlo"
    half, other = tmp_path / ".it.stablehlo.x1.half", tmp_path / ".b.onnx.x1.half"
    for path in (half, other):
        path.write_bytes(b"half")
    assert export.main([str(packed), "--format=stablehlo", f"--out={out}"]) == 0
    assert sorted(tmp_path.iterdir()) == sorted([other, out])


def test_an_export_that_is_interrupted_leaves_the_file_of_before(
    packed, tmp_path, monkeypatch, capsys
):
    def interrupt(*_):
        raise KeyboardInterrupt

    out = tmp_path / "it.onnx"
    out.write_bytes(b"of before")
    monkeypatch.setattr(export, "_distance", interrupt)
    assert export.main([str(packed), "--format=onnx", f"--out={out}"]) == 130
    assert "interrupted; what is whole stays" in capsys.readouterr().err
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"of before"]
