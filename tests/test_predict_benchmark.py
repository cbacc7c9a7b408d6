"""The benchmark of predict: what it counts, compares, divides and refuses."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from covjax import parallel
from covjax.errors import UsageError
from covjax.export.inference import make_inference
from covjax.export.safetensors import pack_weights
from experiments.benchmarks import network_alone, predict
from experiments.benchmarks.raw_tensors import read_tensors
from small_network import make_config, make_weights, samples_of
from tiny_networks import write_networks

# Answers as torch_network.py does; what it says of the images was prepared.
SCRIPT = """
import json, shutil, sys
told = json.loads(sys.stdin.readline())
shutil.copy({prepared!r}, told["said"])
print(json.dumps(dict(shape=told["shape"], batch=told["batch"])), flush=True)
for line in sys.stdin:
    print(json.dumps(dict(seconds=json.loads(line)["batches"] / 4)), flush=True)
"""
NO_TORCH = """
import sys
sys.stdin.readline()
print('{"missing": "no torch"}')
"""


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_last_line_holds_share_ratios_and_starts(tmp_path, monkeypatch, capsys):
    lung, infection = write_networks(tmp_path)
    flags = [f"--lung={lung}", f"--infection={infection}"]
    asked = []

    def time_start(radiograph: Path, networks: list[str], cache: Path) -> float:
        asked.append((radiograph.suffix, networks))
        kept = cache / "program"
        seconds = 0.25 if kept.exists() else 2.0
        kept.touch()
        return seconds

    rates = {"predict": [3.0, 9.0], "forward": [4.0, 10.0]}
    measured = predict.compare_whole

    def compare_whole(*given):
        assert measured(*given).keys() == rates.keys()
        return rates

    monkeypatch.setattr(predict, "compare_whole", compare_whole)
    monkeypatch.setattr(predict, "time_start", time_start)
    status = predict.main(
        [*flags, "--images=16", "--batch=8", "--rounds=2", "--peer=none"]
    )
    assert status == 0
    found = last_line(capsys)
    assert found["shares"] == [0.75, 0.9]
    assert found["share"] == pytest.approx(0.825)
    assert found["predict_images_per_s"] == 6 and found["forward_images_per_s"] == 7
    assert found["images"] == 16 and found["batch"] == found["devices"] == 8
    assert found["source_size"] == found["image_size"] == 32
    assert len(found["ratios_onnx"]) == 2
    assert found["ratio_onnx"] == np.median(found["ratios_onnx"])
    assert found["onnx_distance"] < 1e-5
    assert 1e-5 < found["covjax_distance"] < 0.51 / 255  # by the rounding to levels
    assert found["ratio_torch"] is None
    assert found["start_empty_s"] == 2 and found["start_filled_s"] == 0.25
    assert asked == [(".png", flags)] * 4


def test_both_sides_see_every_image_once_a_turn(monkeypatch):
    seen: dict[str, list[int]] = {"lung": [], "infection": [], "predict": []}

    def network(name):
        return lambda pictures: seen[name].append(pictures.shape[-1])

    def whole(inputs, out, segmenter, about):
        assert not out.exists()  # else images would count as done
        seen["predict"].append(len(inputs))
        return len(inputs), 0

    monkeypatch.setattr(predict.predicting, "predict", whole)
    # Start and end of a turn of each side, after the one that does not count.
    clock = iter([0, 1, 10, 14, 20, 28, 30, 34, 40, 56])
    timer = SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr(predict, "time", timer)
    segmenter: Any = SimpleNamespace(
        lung=network("lung"), infection=network("infection")
    )
    radiographs: list[Any] = [None] * 16
    shown = [np.zeros((4, 8, 8, 1)), np.zeros((4, 8, 8, 2))]
    rates = predict.compare_whole(segmenter, radiographs, shown, 2)
    assert rates == {"forward": [4.0, 4.0], "predict": [2.0, 1.0]}
    assert predict._ratios(rates["predict"], rates["forward"]) == [0.5, 0.25]
    assert seen["lung"] == [1] * 9 and seen["infection"] == [2] * 9  # 1 to compile
    assert seen["predict"] == [16] * 3


def test_images_that_fail_are_no_figure(monkeypatch):
    monkeypatch.setattr(predict.predicting, "predict", lambda *_: (4, 1))
    segmenter: Any = SimpleNamespace(lung=lambda _: None, infection=None)
    radiographs: list[Any] = [None] * 4
    with pytest.raises(UsageError, match="1 of 4 images failed"):
        predict.compare_whole(segmenter, radiographs, [np.zeros((4, 8, 8, 1))], 1)


def test_start_that_fails_is_told_with_its_last_line(tmp_path):
    with pytest.raises(UsageError, match=r"ended with 2: covjax: .*no such file"):
        predict.time_start(tmp_path / "none.png", [], tmp_path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--images=0"], "0: at least 1"),
        (["--rounds=two"], "--rounds: invalid _count value: 'two'"),
        (["--peer=tf"], "--peer: invalid choice: 'tf'"),
        (["--lung=nowhere"], "nowhere"),
        (["--infection=none"], "none"),
        (["--images=12", "--batch=12"], "--batch=12: must be divisible by 8 devices"),
        (["--images=8", "--batch=16"], "--images=8: must be whole batches of 16"),
        (["--images=16", "--size=16"], "--size=16: phantoms have 32 px or more"),
    ],
)
def test_flags_are_refused_in_a_line(flags, said, tmp_path, monkeypatch, capsys):
    lung, infection = write_networks(tmp_path)
    given = [f"--lung={lung}", f"--infection={infection}", *flags]
    assert predict.main(given) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1 and told.startswith("covjax: ")


@pytest.fixture(scope="module")
def measured():
    """A small network of two channels, and what it says of the sample images."""
    config = make_config(presence=True, channel=True)
    weights, radiographs = make_weights(config), jnp.asarray(samples_of(config))
    return weights, jax.device_get(make_inference(weights.trained)(radiographs))


@pytest.fixture
def alone(measured, tmp_path, monkeypatch):
    """Opens the sides of that network, changed as one says, and times each.

    A function (what changes the peer's probabilities and presences, its script) → (the
    sides, the seconds of 8 batches of each).
    """
    weights, said = measured
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # as the peer has
    monkeypatch.setattr(network_alone, "make_inference", lambda _: lambda _: said)
    radiographs = samples_of(weights.trained.config)

    def network(pictures):
        assert len(pictures) == 3  # else it would be compiled once more
        # Which of the images these are: all of them differ.
        same = (pictures[:, None] == radiographs[None]).all(axis=(2, 3, 4))
        which = same.argmax(axis=1)
        levels = np.rint(255 * said["probability"][which, ..., 0]).astype(np.uint8)
        return levels, said["presence"][which]

    def open_sides(change=lambda said: None, script=SCRIPT):
        changed = {name: array.copy() for name, array in said.items()}
        change(changed)
        prepared = tmp_path / "prepared"
        parts = changed["probability"], changed["presence"]
        prepared.write_bytes(b"".join(part.tobytes() for part in parts))
        (tmp_path / "script.py").write_text(
            script.replace("{prepared!r}", repr(str(prepared)))
        )
        monkeypatch.setattr(network_alone, "PEER_SCRIPT", tmp_path / "script.py")
        with network_alone.open_sides(
            weights, network, 3, sys.executable, tmp_path
        ) as sides:
            return sides, {name: side.seconds(8) for name, side in sides.items()}

    return open_sides


def test_sides_are_asked_once_they_agree(alone):
    sides, seconds = alone()
    assert sides.keys() == {"covjax", "onnx", "torch"}
    assert sides["torch"].about == {"shape": [8, 16, 16, 2], "batch": 3}
    assert sides["torch"].distance == 0 < sides["onnx"].distance < 1e-5
    assert sides["covjax"].distance == pytest.approx(0.5 / 255, rel=0.05)
    assert seconds["torch"] == 2 and seconds["covjax"] > 0 < seconds["onnx"]


def test_each_side_has_the_cores_that_this_process_may_use(alone, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 8, 9})
    sides, _ = alone(
        script=SCRIPT.replace("batch=told", "threads=told['threads'], batch=told")
    )
    assert [sides[name].about["threads"] for name in ("onnx", "torch")] == [3, 3]


def nudge(name, by):
    def change(said):
        said[name].flat[-1] += by

    return change


@pytest.mark.parametrize("name", ["probability", "presence"])
@pytest.mark.parametrize("by", [3e-4, np.nan])
def test_a_peer_that_computes_something_else_is_not_timed(alone, name, by):
    with pytest.raises(UsageError, match="^torch is up to .* another network$"):
        alone(nudge(name, by))


def test_a_peer_may_sum_in_another_order(alone):
    sides, _ = alone(nudge("probability", 3e-5))
    assert sides["torch"].distance == pytest.approx(3e-5, rel=0.01)


def test_a_peer_that_tells_of_fewer_images_is_not_timed(alone):
    with pytest.raises(UsageError, match="tells of something else"):
        alone(lambda said: said.update(presence=said["presence"][1:]))


def test_own_network_is_compared_as_well(tmp_path):
    config = make_config()
    weights = make_weights(config)

    def network(pictures):
        return np.zeros(pictures.shape[:3], np.uint8), np.zeros(len(pictures))

    with (
        pytest.raises(UsageError, match="^covjax is up to"),
        network_alone.open_sides(weights, network, 8, None, tmp_path),
    ):
        pass


def test_what_is_not_there_is_told_and_left_out(alone, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    sides, _ = alone(script=NO_TORCH)
    assert sides.keys() == {"covjax"}
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("no ONNX Runtime (") and ".[export]" in told[0]
    assert told[1].startswith(f"no peer ({sys.executable}: no torch)")


def test_onnx_runtime_without_the_gpu_is_no_rival_of_one(alone, monkeypatch, capsys):
    monkeypatch.setattr(parallel, "is_accelerated", lambda: True)
    sides, _ = alone()
    assert sides.keys() == {"covjax", "torch"}
    assert "CUDAExecutionProvider is not there" in capsys.readouterr().out


def test_peer_is_not_given_what_it_does_not_know(tmp_path, monkeypatch):
    weights = make_weights(make_config(norm="group"))
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="knows config.model.norm = 'batch' alone"):
        network_alone._check_peer_knows(weights.trained)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="the peer has one device, covjax 2"):
        network_alone._check_peer_knows(make_weights(make_config()).trained)


def test_tensors_are_those_that_safetensors_reads(tmp_path):
    weights = make_weights(make_config(presence=True, flip=True))
    path = tmp_path / "infection.safetensors"
    path.write_bytes(pack_weights(weights))
    tensors, config = read_tensors(path)
    assert config["eval"]["tta_flip"] is True
    expected = load_file(path)
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        raw = tensors[name]
        dtype = {"F16": "<f2", "F32": "<f4"}[raw.dtype]
        found = np.frombuffer(raw.content, dtype).reshape(raw.shape)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
