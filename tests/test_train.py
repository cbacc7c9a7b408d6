"""The training loop, in this process, on eight virtual devices and tiny phantoms."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import optax
import pytest

from configs import lung
from covjax import train
from covjax.checkpoint import Checkpoints, read_variables
from covjax.data.source import find_films
from covjax.errors import DataError, Diverged, UsageError
from covjax.interrupt import Interrupted

STEPS_PER_EPOCH = 3


@pytest.fixture
def config():
    config = lung.get_config("phantom")
    config.data.phantom_films = (24, 8, 8)
    config.data.image_size = 32
    config.model.width, config.model.depth = 2, 1
    config.train.batch_size, config.train.epochs = 8, 3
    config.train.log_every = 1
    return config


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_good_epoch(
    config, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    # The first step of epoch 2 leaves no finite parameter; the second sees it.
    monkeypatch.setattr(
        train,
        "make_schedule",
        lambda *_: optax.join_schedules(
            [optax.constant_schedule(1e-3), optax.constant_schedule(float("inf"))],
            [STEPS_PER_EPOCH],
        ),
    )
    run = tmp_path / "run"
    with pytest.raises(Diverged, match=f"step {STEPS_PER_EPOCH + 2}"):
        train.train_and_evaluate(config, run)
    with Checkpoints(run) as checkpoints:
        assert checkpoints.latest() == checkpoints.best() == STEPS_PER_EPOCH
    params = read_variables(run / "checkpoints" / str(STEPS_PER_EPOCH))["params"]
    assert np.isfinite(params["head"]["kernel"]).all()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines][-1] == STEPS_PER_EPOCH + 1
    assert not (run / "results").exists()


def test_a_signal_within_an_epoch_leaves_a_checkpoint_of_that_step(
    config, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)

    def advance(_, step: int, loss: float) -> None:
        if step == STEPS_PER_EPOCH + 1:  # read while the step after it runs
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train.RunLog, "advance", advance)
    run, reached = tmp_path / "run", STEPS_PER_EPOCH + 2
    with pytest.raises(Interrupted, match=f"after step {reached} of 9") as stop:
        train.train_and_evaluate(config, run)
    assert stop.value.exit_status == 143
    with Checkpoints(run) as checkpoints:
        assert checkpoints.latest() == reached
        assert checkpoints.best() == STEPS_PER_EPOCH


def test_a_batch_that_the_devices_cannot_share_is_refused(
    config, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config.train.batch_size = 12
    with pytest.raises(UsageError, match=r"batch_size = 12.*8 devices"):
        train.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_larger_than_the_split_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config.train.batch_size = 32
    with pytest.raises(UsageError, match=r"batch_size = 32.*24 Train films"):
        train.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_that_lacks_a_mask_is_refused_before_a_folder_is_made(
    config, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    root, films = find_films(config)
    films["Val"][0].lung_mask.unlink()
    config.data.phantom_films = ()
    config.data.root = str(root)
    with pytest.raises(DataError, match=films["Val"][0].name):
        train.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
