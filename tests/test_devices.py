"""The same batch, shared by other numbers of devices and of processes: the same run.

Two whole runs of stage 1 on tiny phantoms: twenty steps, Val after each epoch, and the
evaluation with its results, but for what is only drawn. One runs on two processes of
two devices, the other here on eight devices, then on one. Other numbers, and stage 2,
are in experiments/faults/hosts.py, which takes longer.
"""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

from configs import lung
from covjax.run import train_and_evaluate
from covjax.runtime.signals import Interrupted
from covjax.train import train
from covjax.train.metric_writer import read_metrics
from experiments.faults.hosts import Group, check_equal, make_project, newest

FLAGS = {
    "data.phantom_images": (80, 8, 8),
    "data.image_size": 32,
    "model.width": 2,
    "model.depth": 1,
    "model.upsample": "depth_to_space",
    "train.batch_size": 8,
    "train.log_every": 1,
    "train.epochs": 2,
}
STEPS = 20
DRAWN = ("draw_curves", "draw_split", "write_report", "audit_once")


def make_config():
    config = lung.get_config("phantom")
    config.update_from_flattened_dict(FLAGS)
    return config


@pytest.fixture
def cwd(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder that stands for the project's; all is compiled there quickly, once."""
    monkeypatch.chdir(make_project(tmp_path))
    for name in DRAWN:
        monkeypatch.setattr(f"covjax.run.{name}", lambda *_, **__: None)
    quickly = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path / "xla"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name, False) for name in quickly}
    for name, value in quickly.items():
        jax.config.update(name, value)
        monkeypatch.setenv(name.upper(), str(value))  # of the processes
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def train_on(devices, cwd) -> Callable[..., None]:
    """Trains, or goes on, on the first devices; may get a signal after a step."""
    advance = train.RunLog.advance

    def train_on_first(count: int, run: str, stop: int | None = None) -> None:
        def stop_after(log, step: int, loss: float) -> None:
            advance(log, step, loss)
            if step == stop:
                os.kill(os.getpid(), signal.SIGTERM)

        some = devices[:count]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "devices", lambda *_: some)
            patch.setattr(jax, "local_devices", lambda *_: some)
            patch.setattr(jax, "device_count", lambda: count)
            patch.setattr(jax, "local_device_count", lambda: count)
            patch.setattr(train.RunLog, "advance", stop_after)
            train_and_evaluate(make_config(), cwd / run)

    return train_on_first


def train_on_two_processes(cwd: Path) -> Path:
    program = (
        "import runpy, covjax.run\n"
        f"for name in {DRAWN}:\n"
        "    setattr(covjax.run, name, lambda *_, **__: None)\n"
        "runpy.run_module('covjax.main', run_name='__main__')"
    )
    flags = ["--config=configs/lung.py:phantom", "--workdir=two"]
    flags += [f"--config.{name}={value}" for name, value in FLAGS.items()]
    with Group(cwd, flags, program=["-c", program]) as group:
        group.finish(0, 0)
        assert "4 cpu device(s)" in group.said(0)
        assert "epoch" not in group.said(1)  # the first process talks
    return cwd / "two"


def test_a_run_is_the_same_on_any_devices_and_processes(train_on, cwd):
    two, fewer = train_on_two_processes(cwd), cwd / "fewer"
    with pytest.raises(Interrupted, match=f"after step 7 of {STEPS}"):
        train_on(8, "fewer", stop=6)
    train_on(1, "fewer")
    assert newest(two) == newest(fewer) == STEPS
    found = check_equal(two, fewer)
    assert found["parameters"] > 0  # summed in another way
    steps = [m["step"] for m in read_metrics(fewer) if m["split"] == "train"]
    assert steps == list(range(1, STEPS + 1))
    names = [
        sorted(
            {
                str(path.relative_to(run)).partition("tfevents")[0]
                for path in run.rglob("*")
                if "checkpoints" not in path.parts
            }
        )
        for run in (two, fewer)
    ]
    assert names[0] == names[1]  # nothing of another process, nothing half written
    assert len(list(two.glob("*tfevents*"))) == 1
