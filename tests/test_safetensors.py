"""A file of weights gives back the network, and says what it is of."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import covjax.export.safetensors
import covjax.train.restore
from configs import infection
from covjax.config import flatten
from covjax.errors import UsageError
from covjax.export.safetensors import (
    Weights,
    pack_weights,
    read_weights,
    unpack_variables,
)
from covjax.train.restore import read_trained
from saved_run import SIDE, outputs, write_run

PRETRAINED = Path(covjax.__file__).parent / "pretrained"
POINT = {"threshold": 0.3, "min_area": 4, "presence": 0.25, "lungs": {"run": "lung"}}


def make_config() -> ml_collections.ConfigDict:
    config = infection.get_config("phantom")
    config.data.root, config.data.lung_run = "/images/of/a/hospital", "/runs/lung"
    config.data.cache, config.init_from = "/scratch/somebody", "/runs/lung"
    config.model.presence_head, config.model.residual = True, True
    return config


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    run = write_run(tmp_path_factory.mktemp("runs") / "infection", make_config())
    return Weights(read_trained(str(run.folder)), {"predicted": POINT}, phantom=True)


@pytest.fixture(scope="module")
def file(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "infection.safetensors"
    write_weights(path, weights)
    return path


def write_weights(path: Path, weights: Weights) -> None:
    path.write_bytes(pack_weights(weights))


def leaves_of(weights: Weights) -> dict[str, Any]:
    return flatten_dict(weights.trained.state.variables(), sep="/")


def about(file: Path) -> dict[str, Any]:
    with safe_open(file, framework="numpy") as opened:
        return json.loads(opened.metadata()["covjax"])


def test_parameters_are_rounded_to_halves_and_statistics_are_not(file, weights):
    stored, leaves = load_file(file), leaves_of(weights)
    assert stored.keys() == leaves.keys()
    for name, array in leaves.items():
        if name.startswith("params/"):
            assert stored[name].dtype == np.float16
            # 11 bits: it lies within 2^-11 of the number.
            np.testing.assert_allclose(stored[name], array, rtol=2**-11)
        else:
            assert stored[name].dtype == np.float32
            np.testing.assert_array_equal(stored[name], array)


def test_the_network_that_is_read_gives_nearly_the_same(file, weights):
    found = read_weights(file)
    assert (found.trained.step, found.trained.run) == (3, file)
    assert found.trained.fingerprint == weights.trained.fingerprint
    assert found.points == {"predicted": POINT} and found.phantom
    ours, theirs = outputs(found.trained.state), outputs(weights.trained.state)
    np.testing.assert_allclose(ours, theirs, rtol=5e-3)
    assert not np.array_equal(ours, theirs)
    assert {array.dtype for array in leaves_of(found).values()} == {np.dtype("f4")}


def test_the_file_tells_no_folder_of_the_machine(file):
    config = about(file)["config"]
    assert "hospital" not in json.dumps(about(file))
    assert "/runs" not in json.dumps(about(file))
    assert config["data"]["image_size"] == SIDE and config["data"]["cache"] == "auto"
    found = flatten(read_weights(file).trained.config)
    expected = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in flatten(make_config()).items()
    }
    changed = {name for name in found if found[name] != expected[name]}
    assert changed == {
        "data.root", "data.lung_run", "data.cache", "init_from", "data.image_size",
        "model.width", "model.depth",
    }  # fmt: skip


def test_the_file_says_whom_the_images_are_owed_to(file, weights, tmp_path):
    assert "of no patient" in about(file)["attribution"]
    real = dataclasses.replace(weights, phantom=False)
    write_weights(tmp_path / "real.safetensors", real)
    told = about(tmp_path / "real.safetensors")["attribution"]
    assert "COVID-QU-Ex" in told and "CC BY-SA 4.0" in told
    assert not read_weights(tmp_path / "real.safetensors").phantom


def test_fields_that_were_added_later_are_filled_in(file, tmp_path):
    told = about(file)
    del told["config"]["loss"]["empty_weight"]
    save_file(load_file(file), tmp_path / "old", {"covjax": json.dumps(told)})
    assert read_weights(tmp_path / "old").trained.config.loss.empty_weight == 1.0


def test_a_network_without_statistics_is_read(tmp_path):
    config = make_config()
    config.model.norm = "group"
    run = write_run(tmp_path / "infection", config)
    path = tmp_path / "group.safetensors"
    write_weights(path, Weights(read_trained(str(run.folder)), {}, phantom=True))
    assert read_weights(path).trained.state.batch_stats == {}


def with_leaf(weights: Weights, name: str, value: Any) -> Weights:
    """The same weights but for one leaf."""
    trained = weights.trained
    leaves = leaves_of(weights)
    assert name in leaves
    tree = unflatten_dict(leaves | {name: value}, sep="/")
    state = trained.state.replace(**tree)
    return dataclasses.replace(
        weights, trained=dataclasses.replace(trained, state=state)
    )


@pytest.mark.parametrize(
    ("leaf", "value", "said"),
    [
        ("params/head/bias", 7e4, "head/bias holds 70000: float16 ends at 65504"),
        ("params/head/bias", -7e4, "head/bias holds -70000: float16 ends at 65504"),
        ("params/head/bias", np.nan, "params/head/bias is not finite"),
        ("batch_stats/decoder_0/norm_0/var", np.inf, "norm_0/var is not finite"),
    ],
)
def test_a_number_that_cannot_be_kept_is_named(weights, tmp_path, leaf, value, said):
    spoilt = with_leaf(weights, leaf, np.array([0.5, value], np.float32))
    with pytest.raises(UsageError, match=said):
        write_weights(tmp_path / "w.safetensors", spoilt)
    assert list(tmp_path.iterdir()) == []


def test_large_statistics_are_kept(weights, tmp_path):
    leaf = "batch_stats/decoder_0/norm_0/var"
    value = np.array([7e4, 1], np.float32)
    write_weights(tmp_path / "w.safetensors", with_leaf(weights, leaf, value))
    np.testing.assert_array_equal(load_file(tmp_path / "w.safetensors")[leaf], value)


def test_the_order_in_which_an_array_lies_in_memory_does_not_matter(
    file, weights, tmp_path
):
    leaf = "params/decoder_0/conv_0/kernel"
    kernel = np.asarray(leaves_of(weights)[leaf])
    for array in (np.asfortranarray(kernel), kernel[::-1].copy()[::-1]):
        path = tmp_path / "w.safetensors"
        write_weights(path, with_leaf(weights, leaf, array))
        assert path.read_bytes() == file.read_bytes()


def test_the_variables_of_a_content_are_those_that_are_read(file):
    tree = unpack_variables(file.read_bytes())
    assert tree.keys() == {"params", "batch_stats"}
    leaves: dict[str, Any] = flatten_dict(tree, sep="/")
    stored = load_file(file)
    assert leaves.keys() == stored.keys()
    for name, array in leaves.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, stored[name])


def change(file: Path, path: Path, **changes: Any) -> None:
    told = {k: v for k, v in (about(file) | changes).items() if v is not None}
    save_file(load_file(file), path, {"covjax": json.dumps(told)})


@pytest.mark.parametrize(
    "changes",
    [
        {"config": None},
        {"config": {"model": {}}},
        {"config": {"model": make_config().model.to_dict()}},
        {"step": None},
        {"operating_points": None},
        {"operating_points": {"truth": POINT | {"threshold": 2}}},
        {"phantom": None},
    ],
)
def test_a_file_that_does_not_say_what_it_is_is_named(file, tmp_path, changes):
    path = tmp_path / "w.safetensors"
    change(file, path, **changes)
    with pytest.raises(UsageError, match="not weights of covjax") as caught:
        read_weights(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("stage", ["lung", "infection"])
def test_weights_that_are_shipped_are_whole_and_say_whom_they_are_owed_to(stage):
    path = PRETRAINED / f"{stage}.safetensors"
    assert path.stat().st_size < 16 * 2**20
    found = read_weights(path)
    config = found.trained.config
    assert (config.data.task, found.phantom) == (stage, False)
    assert found.points.keys() >= {config.data.roi}
    assert all(told["chosen_on"] == "val" for told in found.points.values())
    assert "CC BY-SA 4.0" in about(path)["attribution"]
    assert (config.data.root, config.init_from) == ("", "")
    assert found.commit and len(found.commit) == 40


def test_a_file_of_something_else_is_named(file, tmp_path):
    path = tmp_path / "w.safetensors"
    cut = file.read_bytes()[:-100]
    save_file(load_file(file), path)  # without metadata
    for content in (path.read_bytes(), b"", b"text", cut):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="not weights of covjax"):
            read_weights(path)
    with pytest.raises(UsageError, match="not weights of covjax"):
        read_weights(tmp_path / "none")


def test_a_picture_that_is_no_picture_is_named(file, tmp_path):
    path = tmp_path / "w.safetensors"
    for size in ("16", None, 17):
        config = about(file)["config"]
        config["data"]["image_size"] = size
        change(file, path, config=config)
        with pytest.raises(UsageError, match="not weights of covjax"):
            read_weights(path)


def test_leaves_that_are_no_tree_are_named(file, tmp_path):
    path = tmp_path / "w.safetensors"
    leaves = load_file(file) | {"params/head": np.zeros(1, np.float32)}
    save_file(leaves, path, {"covjax": json.dumps(about(file))})
    with pytest.raises(UsageError, match="not weights of covjax|params/head"):
        read_weights(path)


def test_weights_of_another_network_are_named_by_their_first_leaf(file, tmp_path):
    path = tmp_path / "w.safetensors"
    config = about(file)["config"]
    config["model"]["width"] = 4
    change(file, path, config=config)
    with pytest.raises(UsageError, match=r"batch_stats/.* is \(4,\) in .*\(8,\) by"):
        read_weights(path)


def with_config(file: Path, path: Path, name: str, value: Any) -> None:
    config = about(file)["config"]
    group, _, field = name.partition(".")
    config[group][field] = value
    change(file, path, config=config)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("data.image_size", 20000, "image_size = 20000 and config.model.width = 2"),
        ("data.image_size", 16.0, "image_size = 16.0: must be a whole number"),
        ("model.width", 2048, "width = 2048: a stored network has at most"),
        ("model.width", 10**17, "a stored network has at most"),
        ("model.width", True, "width = True: must be a whole number"),
        ("model.depth", 9, "depth = 9: must be"),
        ("model.depth", 8, "image_size = 16: must be divisible by 256"),
        ("model.dtype", "float64", "dtype = 'float64': must be"),
        ("model.norm", "x" * 900, "norm = 'xxxx"),
        ("model.unknown", 1, "config.model.unknown: there is no such field"),
        ("data.roi_as", "beside", "roi_as = 'beside': must be"),
        ("transfer.fresh", ["a{99999999999999999999}"], "transfer.fresh"),
        ("transfer.fresh", ["(" * 900 + ")" * 900], "too long"),
    ],
)
def test_a_config_that_cannot_be_is_refused_before_a_number_is_read(
    file, tmp_path, monkeypatch, name, value, said
):
    def fail(*_: Any) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(covjax.export.safetensors, "_read_finite", fail)
    monkeypatch.setattr(covjax.train.restore.jax, "eval_shape", fail)
    with_config(file, tmp_path / "w.safetensors", name, value)
    with pytest.raises(UsageError, match="not weights of covjax") as caught:
        read_weights(tmp_path / "w.safetensors")
    assert said in str(caught.value) and len(str(caught.value)) < 600


def test_a_layer_takes_at_most_what_is_allowed(file, tmp_path):
    # 4096 * 4096 * 8 features are 2^27: the limit. The shapes fit, so it is read.
    path = tmp_path / "w.safetensors"
    with_config(file, path, "data.image_size", 4096)
    assert read_weights(path).trained.config.data.image_size == 4096
    with_config(file, path, "data.image_size", 4112)
    with pytest.raises(UsageError, match="4112"):
        read_weights(path)


def test_shapes_are_compared_before_a_number_is_read(file, tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(covjax.export.safetensors, "_read_finite", fail)
    path, leaves = tmp_path / "w.safetensors", load_file(file)
    many = {"params/head/bias": np.zeros(10**6, np.float16)}
    for changed in (leaves | many, leaves | {"params/more": np.zeros(3, np.float16)}):
        save_file(changed, path, {"covjax": json.dumps(about(file))})
        with pytest.raises(UsageError, match=r"params/(head/bias|more) is \("):
            read_weights(path)


@pytest.mark.parametrize(
    "array", [np.zeros(1, np.float64), np.zeros(1, np.int8), np.array([np.nan], "f2"),
              np.array([np.inf], "f4")]
)  # fmt: skip
def test_numbers_of_another_kind_are_refused(file, tmp_path, array):
    path = tmp_path / "w.safetensors"
    leaves = load_file(file) | {"params/head/bias": array}
    save_file(leaves, path, {"covjax": json.dumps(about(file))})
    with pytest.raises(UsageError, match="not weights of covjax.*params/head/bias: "):
        read_weights(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": -1}, {"step": 2**31}, {"step": 1.5}, {"step": True}, {"step": "3"},
        {"phantom": "false"}, {"phantom": 0}, {"fingerprint": 7},
        {"fingerprint": "\x1b[31m"}, {"commit": ["a"]}, {"commit": "a" * 1001},
        {"attribution": "two\nlines"}, {"operating_points": []},
        {"operating_points": {"elsewhere": POINT}},
        {"operating_points": {"truth": POINT | {"lungs": "lung"}}},
        {"operating_points": {"truth": POINT | {"lungs": {"run": "\x1b]0;"}}}},
        {"operating_points": {"truth": POINT | {"reached": "1"}}},
        {"operating_points": {"truth": POINT | {"reached": 1.5}}},
        {"operating_points": {"truth": POINT | {"presence": -0.1}}},
        {"operating_points": {"truth": POINT | {"presence": 1e300}}},
        {"operating_points": {"truth": POINT | {"threshold": "0.3"}}},
        {"operating_points": {"truth": POINT | {"threshold": True}}},
        {"operating_points": {"truth": POINT | {"min_area": 2.5}}},
        {"operating_points": {"truth": POINT | {"min_area": 2**31}}},
    ],
)  # fmt: skip
def test_metadata_of_another_type_or_range_is_refused(file, tmp_path, changes):
    path = tmp_path / "w.safetensors"
    change(file, path, **changes)
    with pytest.raises(UsageError, match="not weights of covjax") as caught:
        read_weights(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"config": 1, "config": 2}', '{"step": 1e999}', "[]", "null", "7"],
)
def test_hostile_json_is_refused(file, tmp_path, text):
    path = tmp_path / "w.safetensors"
    save_file(load_file(file), path, {"covjax": text})
    with pytest.raises(UsageError, match="not weights of covjax"):
        read_weights(path)


def test_a_header_that_no_network_has_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(covjax.export.safetensors, "safe_open", None)
    path = tmp_path / "w.safetensors"
    for length in (0, 2**20 + 1, 2**63):
        path.write_bytes(length.to_bytes(8, "little") + b"{}")
        with pytest.raises(UsageError, match=f"a header of {length} bytes"):
            read_weights(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="not a regular file"):
        read_weights(tmp_path / "pipe")
