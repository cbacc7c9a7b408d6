"""The benchmarks of step, loop and growth: what they count, divide and say."""

import json
import sys
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from configs import lung
from experiments.benchmarks import growth, loop, step, step_profile, step_sweep
from experiments.benchmarks.bare_steps import BareSteps
from experiments.benchmarks.peer import Peer, PeerError
from experiments.benchmarks.spread import print_spread

# Answers as torch_step.py does: two images a second in training, four in inference.
SCRIPT = """
import json, sys
told = json.loads(sys.stdin.readline())
print(json.dumps({"told": told}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    seconds = 8 * asked["steps"] / {"train": 2, "infer": 4}[asked["kind"]]
    print(json.dumps({"seconds": seconds}), flush=True)
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A tiny network on a few phantoms, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    config = lung.get_config("phantom")
    config.data.phantom_images, config.data.image_size = (48, 8, 8), 32
    config.model.width, config.model.depth = 2, 1
    config.train.batch_size = 8  # one for each device
    return config


def set_flags(monkeypatch, module: Any, **values: Any) -> None:
    for name, value in values.items():
        flag = SimpleNamespace(value=value)
        monkeypatch.setattr(module, f"_{name.upper()}", flag, raising=False)


def test_operations_are_those_of_the_convolutions(config):
    config.data.image_size, config.model.width = 64, 8
    found = BareSteps(config).flop()
    # (channels, features, side) of the 3x3 convolutions, (…) of the going up.
    convolutions = [(1, 8, 64), (8, 8, 64), (8, 16, 32), (16, 16, 32)]
    convolutions += [(16, 8, 64), (8, 8, 64)]
    forward = sum(2 * 9 * c * f * side**2 for c, f, side in convolutions)
    forward += 2 * 16 * 4 * 8 * 32**2
    # A gradient costs as much as the output, once by the input and once by the kernel;
    # norms, the loss and the optimizer come on top.
    assert 0.9 * 3 * forward < found < 1.3 * 3 * forward


def test_step_says_what_it_measured(config, monkeypatch, tmp_path, capsys):
    script = tmp_path / "torch_step.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(step, "PEER_SCRIPT", script)
    set_flags(monkeypatch, step, config=config, peer="torch", rounds=2, steps=1)
    set_flags(monkeypatch, step, peer_python=sys.executable, start=False)
    set_flags(monkeypatch, step, first=False, sweep=False, profile=True)
    set_flags(monkeypatch, step, derived=False)
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # as the peer has
    step._main([])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["peer"]["told"] == {
        "width": 2,
        "depth": 1,
        "image_size": 32,
        "batch": 8,
        "dtype": "float32",
    }
    assert found["train_peer_images_per_s"] == 2
    assert found["infer_peer_images_per_s"] == 4
    assert found["ratio"] == pytest.approx(found["train_images_per_s"] / 2)
    assert len(found["ratios_train"]) == len(found["ratios_infer"]) == 2
    assert np.median(found["ratios_infer"]) == found["infer_images_per_s"] / 4
    per_device = found["train_images_per_s"] * found["gflop_per_image"] / 1e3
    assert found["tflops"] == pytest.approx(per_device)
    assert found["memory_bytes"] > 8 * 32 * 32 * 2  # the batch alone
    spent = found["profile_ms"]
    assert {"norms", "gradients with respect to kernels"} <= spent.keys()


@pytest.mark.parametrize(
    ("field", "value"),
    [("loss.bce", 0.5), ("model.norm", "group"), ("model.remat", True)],
)
def test_step_is_not_compared_with_a_peer_that_does_something_else(
    config, monkeypatch, field, value
):
    set_flags(monkeypatch, step, peer="torch")
    config.update_from_flattened_dict({field: value})
    with pytest.raises(SystemExit, match=f"peer knows config.{field} = "):
        step._start_peer(config)


def test_operations_are_those_of_the_network_whether_or_not_computed_twice(config):
    once = BareSteps(config).flop()
    config.model.remat = True
    assert BareSteps(config).flop() == once


def test_a_peer_that_ends_is_an_error_and_not_the_end(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys; sys.stdin.readline(); print('{}', flush=True)")
    peer = Peer(sys.executable, script)
    with pytest.raises(PeerError, match="ended with status 0"):
        peer.ask(steps=1)
    peer.close()
    script.write_text("raise SystemExit(3)")
    with pytest.raises(PeerError, match="ended with status 3"):
        Peer(sys.executable, script)
    with pytest.raises(PeerError, match="No such file"):
        Peer(str(tmp_path / "python"), script)


def test_profile_tells_tasks_by_the_path_in_the_network():
    program = """
      %fusion.1 = f32[3] fusion(%p), calls=%c, metadata={op_name="jit(f)/decoder_0/norm_0/sub"}
      ROOT %dot.2 = f32[3] dot(%a, %b), metadata={op_name="x/kernel_gradient/dot" id=3}
      %copy.3 = f32[3] copy(%dot.2)
    """  # noqa: E501
    paths = step_profile._paths(program)
    assert {name: step_profile.task_of(path) for name, path in paths.items()} == {
        "fusion.1": "norms",
        "dot.2": "gradients with respect to kernels",
        "copy.3": "XLA's own (layouts, and what lost its name)",
    }


def test_loop_times_the_loop_that_a_user_starts(config, monkeypatch):
    clock = iter([10.0, 14.0, 0.0])  # read after step 1 and after step 3
    timer = SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr(loop, "time", timer)
    set_flags(monkeypatch, loop, steps=2, skip=1)
    assert loop.loop_rate(config) == 2 * 8 / 4
    config.train.epochs, config.data.phantom_images = 1, (16, 8, 8)
    config.optim.warmup_epochs = 0.0
    monkeypatch.setattr("covjax.run.evaluate_best", lambda *_: None)
    with pytest.raises(SystemExit, match="ended before step 3"):
        loop.loop_rate(config)


def test_growth_measures_as_many_images_as_it_is_told(config, monkeypatch):
    set_flags(monkeypatch, growth, batches=5)
    monkeypatch.setattr(growth, "_own_memory", lambda: 5_000_000)
    found = growth.measure_images(config, 24)
    assert found["images"] == 24
    assert found["own_memory_mb"] == 5
    assert found["images_per_s"] > 0


def test_sweep_runs_every_combination_and_goes_on_after_one_that_fails(
    monkeypatch, tmp_path, capsys
):
    def measure(settings: dict[str, str]) -> dict[str, Any]:
        width, batch = int(settings["model.width"]), int(settings["train.batch_size"])
        if (width, batch) == (16, 4):
            return {"failed": "out of memory"}
        figures = {"width": width, "batch": batch, "image_size": 64, "dtype": "float32"}
        figures |= {"train_images_per_s": 100.0 / width, "infer_images_per_s": 7.25}
        return figures | {"share": 0.5, "memory_bytes": 2**29, "ratio": float(batch)}

    monkeypatch.setattr(step_sweep, "_measure", measure)
    fields = {
        "model.width": ["8", "16"],
        "data.image_size": [],
        "train.batch_size": ["2", "4"],
    }
    plot = tmp_path / "sweep.png"
    found = step_sweep.sweep(fields, plot)
    assert [tuple(p["settings"].values()) for p in found["points"]] == [
        ("8", "2"), ("8", "4"), ("16", "2"), ("16", "4"),
    ]  # fmt: skip
    assert found["ratio"] == 2.0  # the median of 2, 4 and 2
    out = capsys.readouterr().out
    assert "| 8 | 64 | 2 | float32 | 12.5 | 7.25 | 50% | 0.50 | 2 |" in out
    assert "model.width 16, train.batch_size 4: out of memory" in out
    assert out.count("\n| ") == 2 + 3  # title, rule, and what could be measured
    assert plot.stat().st_size > 10_000


def test_spread_is_lowest_median_highest(capsys):
    print_spread("images/s", {"one": [3.0, 1.0, 2.0], "longer name": [4.0]})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["images/s", "min", "median", "max"]
    assert lines[1].split() == ["one", "1", "2", "3"]
    assert lines[2].split() == ["longer", "name", "4", "4", "4"]
