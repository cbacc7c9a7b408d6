"""The training loop, in this process, on eight virtual devices and tiny phantoms."""

import dataclasses
import errno
import json
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import infection, lung
from covjax import parallel
from covjax.config import save_config
from covjax.data import pipeline
from covjax.data.source import find_samples
from covjax.errors import DataError, Diverged, UsageError
from covjax.run import train_and_evaluate
from covjax.runtime.signals import Interrupted
from covjax.train import loop, train
from covjax.train.checkpoint import Checkpoints, read_variables
from covjax.train.train_step import train_step
from covjax.train.validation import Verdict

STEPS_PER_EPOCH = 3


def make_config(stage):
    config = stage.get_config("phantom")
    config.data.phantom_images = (24, 8, 8)
    config.data.image_size = 32
    config.model.width, config.model.depth = 2, 1
    config.train.batch_size, config.train.epochs = 8, 3
    config.train.log_every = 1
    return config


@pytest.fixture
def config():
    return make_config(lung)


@pytest.fixture
def shown_found_lungs():
    """A config of stage 2 whose region of interest is the lungs that stage 1 finds."""
    config = make_config(infection)
    config.data.roi = "predicted"
    return config


def write_checkpoint(run: Path, stage) -> str:
    """What looks like a checkpoint of a run, but for its numbers; returns its path."""
    save_config(stage.get_config("phantom"), run / "config.json", {})
    checkpoint = run / "checkpoints" / "3"
    (checkpoint / "state").mkdir(parents=True)
    (checkpoint / "_CHECKPOINT_METADATA").write_text("{}")
    return str(checkpoint)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_good_epoch(
    config, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    # The first step of epoch 2 leaves no finite parameter, though its loss is one.
    monkeypatch.setattr(
        train,
        "make_schedule",
        lambda *_: optax.join_schedules(
            [optax.constant_schedule(1e-3), optax.constant_schedule(float("inf"))],
            [STEPS_PER_EPOCH],
        ),
    )
    run = tmp_path / "run"
    with pytest.raises(Diverged, match=f"step {STEPS_PER_EPOCH + 1} is not"):
        train_and_evaluate(config, run)
    with Checkpoints(run) as checkpoints:
        assert checkpoints.latest() == checkpoints.best() == STEPS_PER_EPOCH
    params = read_variables(run / "checkpoints" / str(STEPS_PER_EPOCH))["params"]
    assert np.isfinite(params["head"]["kernel"]).all()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines][-1] == STEPS_PER_EPOCH
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
        train_and_evaluate(config, run)
    assert stop.value.exit_status == 143
    with Checkpoints(run) as checkpoints:
        assert checkpoints.latest() == reached
        assert checkpoints.best() == STEPS_PER_EPOCH


def test_images_that_cannot_be_read_any_more_leave_a_checkpoint_of_that_step(
    config, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    read, asked = pipeline.ReadAugmented.__call__, []

    def fail(self, key):
        asked.append(key)
        if len(asked) == 6 * config.train.batch_size + 1:  # the first of the 7th batch
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "x.png")
        return read(self, key)

    monkeypatch.setattr(pipeline.ReadAugmented, "__call__", fail)
    config.data.threads = 1  # so that they are asked for in order
    with pytest.raises(OSError, match="Stale file handle"):
        train_and_evaluate(config, tmp_path / "run")
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest() == 5  # 3 are loaded ahead: 5, 6, and no 7th
        assert checkpoints.best() == STEPS_PER_EPOCH


def poison(monkeypatch, bad: set[int]) -> None:
    """Makes the loss of some steps, counted from 1, no number."""
    make_feed = loop.make_feed

    def feed_some_bad(samples, *, config, steps):
        feed = make_feed(samples, config=config, steps=steps)
        marked = (
            batch | {"bad": jnp.full((8,), step in bad)}
            for step, batch in enumerate(feed.batches, steps.start + 1)
        )
        return dataclasses.replace(feed, batches=marked)

    def step_some_bad(state, batch, rng, *, objective, **settings):
        def broken(prediction, masks):
            return jnp.where(batch["bad"], jnp.nan, objective(prediction, masks))

        return train_step(state, batch, rng, objective=broken, **settings)

    monkeypatch.setattr(loop, "make_feed", feed_some_bad)
    monkeypatch.setattr(loop, "train_step", step_some_bad)


def read_lines(run: Path) -> list[dict]:
    return [json.loads(t) for t in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_skips_goes_on_past_a_step_that_is_not_finite(
    config, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("covjax.run.evaluate_best", lambda *_: None)
    poison(monkeypatch, {2, 5})
    run = tmp_path / "run"
    with pytest.raises(Diverged, match="step 2 is not finite"):
        train_and_evaluate(config, run)
    config.train.on_nan = "skip"  # of the same run
    train_and_evaluate(config, run)
    lines = [line for line in read_lines(run) if line["split"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert [line["step"] for line in lines if line["loss"] is None] == [2, 5]
    assert [line["step"] for line in lines if "dropped" in line] == [2, 5]
    said = capsys.readouterr().out
    assert "step 5 is not finite" in said and "dropped, 2 so far" in said
    params = read_variables(run / "checkpoints" / "9")["params"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert (run / "figures" / "curves.png").exists()


def test_ten_steps_in_a_row_end_a_run_also_where_it_went_on_between(
    config, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config.train.epochs, config.train.on_nan = 5, "skip"
    poison(monkeypatch, set(range(2, 16)))
    run, advance = tmp_path / "run", train.RunLog.advance

    def stop(log, step: int, loss: float) -> None:
        advance(log, step, loss)
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(train.RunLog, "advance", stop)
        with pytest.raises(Interrupted):
            train_and_evaluate(config, run)
    with pytest.raises(Diverged, match="step 11 is not finite.*nor were the 9 before"):
        train_and_evaluate(config, run)


def test_checkpoints_are_written_within_an_epoch_as_often_as_asked(
    config, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("covjax.run.evaluate_best", lambda *_: None)
    config.train.checkpoint_every = 2
    saved, save = [], Checkpoints.save

    def note(checkpoints, state, *, dice):
        saved.append((int(state.step), dice is not None))
        save(checkpoints, state, dice=dice)

    monkeypatch.setattr(Checkpoints, "save", note)
    run = tmp_path / "run"
    train_and_evaluate(config, run)
    assert saved == [
        (2, False),
        (3, True),
        (4, False),
        (6, True),
        (8, False),
        (9, True),
    ]
    assert not [line for line in read_lines(run) if line["step"] not in range(1, 10)]
    names = {p.name for p in (run / "checkpoints").iterdir()}
    assert names <= {"3", "6", "9"} and "9" in names


def test_a_signal_in_the_last_pass_over_val_ends_the_run_before_its_evaluation(
    config, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "covjax.run.evaluate_best", lambda *_: pytest.fail("evaluated all the same")
    )
    make_judge = loop.make_judge

    def interrupted(config, samples):
        judge = make_judge(config, samples)

        def judge_late(state) -> Verdict:
            if int(state.step[0]) == 9:
                os.kill(os.getpid(), signal.SIGINT)
            return judge(state)

        return judge_late

    monkeypatch.setattr(loop, "make_judge", interrupted)
    run = tmp_path / "run"
    with pytest.raises(Interrupted, match="after step 9 of 9") as stop:
        train_and_evaluate(config, run)
    assert stop.value.exit_status == 130
    with Checkpoints(run) as checkpoints:
        assert checkpoints.latest() == 9


def test_the_judge_chooses_the_epoch_and_its_averages_are_kept(
    config, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    config.optim.average, config.optim.average_epochs = "epochs", 2
    ends, evaluated_on = [], []

    def judge(state) -> Verdict:
        ends.append(parallel.unreplicate(state))
        epoch = len(ends)
        numbers = {f"{f}_dice": epoch / 10 for f in ("all", "positive", "pooled")}
        dice = {1: 0.3, 2: 0.5, 3: 0.4}[epoch]
        return Verdict({"loss": 1.0} | numbers, dice, f"verdict {epoch}")

    def make_judge(_, samples):
        assert {sample.split for sample in samples} == {"Val"}
        return judge

    monkeypatch.setattr(loop, "make_judge", make_judge)
    monkeypatch.setattr(
        "covjax.run.evaluate_best", lambda *given: evaluated_on.append(given[4])
    )
    run, last = tmp_path / "run", 3 * STEPS_PER_EPOCH
    train_and_evaluate(config, run, "Val")
    assert evaluated_on == ["Val"]
    assert "val: verdict 2\n" in capsys.readouterr().out
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    told = [line["all_dice"] for line in lines if line["split"] == "val"]
    assert told == [0.1, 0.2, 0.3]
    with Checkpoints(run) as checkpoints:  # not the highest of what was logged
        assert (checkpoints.best(), checkpoints.latest()) == (last - 3, last)
    newest = [state.variables() for state in ends]
    means = jax.tree.map(
        lambda a, b: (np.float64(a) + np.float64(b)) / 2, newest[1], newest[2]
    )
    for step, expected in ((last - 3, newest[1]), (last, means)):
        found = read_variables(run / "checkpoints" / str(step))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    moved = [
        np.abs(a - b).max()
        for a, b in zip(*map(jax.tree.leaves, newest[1:]), strict=True)
    ]
    assert min(moved) > 1e-5


def test_a_run_augmented_on_the_device_goes_on_to_the_same_bits(
    shown_found_lungs, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("covjax.run.evaluate_best", lambda *_: None)
    config = shown_found_lungs
    config.data.roi, config.data.roi_dilate = "truth", 1
    config.augment.where = "device"
    monkeypatch.setattr(train.parallel, "has_room", lambda _: True)
    calm, stopped = tmp_path / "calm", tmp_path / "stopped"
    train_and_evaluate(config, calm)
    assert "augmented on the device; all lie there" in capsys.readouterr().out

    advance = train.RunLog.advance

    def stop(log, step: int, loss: float) -> None:
        advance(log, step, loss)
        if step == STEPS_PER_EPOCH + 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(train.RunLog, "advance", stop)
        with pytest.raises(Interrupted):
            train_and_evaluate(config, stopped)
    config.data.cache = ""  # they are sent, then
    train_and_evaluate(config, stopped)
    assert "they need config.data.cache" in capsys.readouterr().out
    last = 3 * STEPS_PER_EPOCH
    a, b = (read_variables(run / "checkpoints" / str(last)) for run in (calm, stopped))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(one, other)
    metrics = [(run / "metrics.jsonl").read_text() for run in (calm, stopped)]
    assert metrics[0] == metrics[1]

    config.augment.where = "host"  # another run
    with pytest.raises(UsageError, match="augment.where"):
        train_and_evaluate(config, stopped)


def test_a_batch_that_the_devices_cannot_share_is_refused(
    config, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config.train.batch_size = 12
    with pytest.raises(UsageError, match=r"batch_size = 12.*8 devices"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_larger_than_the_split_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config.train.batch_size = 32
    with pytest.raises(UsageError, match=r"batch_size = 32.*24 Train images"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_that_lacks_a_mask_is_refused_before_a_folder_is_made(
    config, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    root, samples = find_samples(config)
    samples["Val"][0].lung_mask.unlink()
    config.data.phantom_images = ()
    config.data.root = str(root)
    with pytest.raises(DataError, match=samples["Val"][0].name):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "stage", "said"),
    [
        ("data.lung_run", None, "neither a run with a whole checkpoint nor"),
        (
            "data.lung_run",
            infection,
            "a run of stage 2, where one that finds the lungs",
        ),
        ("init_from", None, "is no run that finds the lungs: put it back"),
        ("init_from", infection, "is no run that finds the lungs: put it back"),
    ],
)
def test_lungs_that_no_run_finds_are_refused_before_a_folder_is_made(
    shown_found_lungs, tmp_path, monkeypatch, field, stage, said
):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other"
    path = write_checkpoint(other, stage) if stage else str(other)
    shown_found_lungs.update_from_flattened_dict({field: path})
    with pytest.raises(UsageError, match=f"{path}.*{said}"):
        train_and_evaluate(shown_found_lungs, tmp_path / "run")
    assert {p.name for p in tmp_path.iterdir()} <= {"other"}  # nor a phantom drawn


def test_new_input_channels_are_not_to_be_frozen(
    shown_found_lungs, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config, run = shown_found_lungs, tmp_path / "run"
    config.init_from = write_checkpoint(tmp_path / "lung", lung)
    model, size = train.make_model(config), config.data.image_size
    image = jnp.zeros((1, size, size, 1))
    variables = model.init(jax.random.key(0), image, train=False)
    monkeypatch.setattr(train, "read_variables", lambda _: dict(variables))
    config.data.roi_as = "channel"
    config.transfer.frozen, config.transfer.frozen_epochs = ("encoder_0",), 1
    with pytest.raises(UsageError, match="would hold params/encoder_0/conv_0/kernel"):
        train_and_evaluate(config, run)
    assert not run.exists()


def test_share_that_the_images_cannot_give_is_refused_before_a_folder_is_made(
    shown_found_lungs, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config, run = shown_found_lungs, tmp_path / "run"
    config.data.roi, config.data.positive_share = "truth", (0.5, 0.5)
    root, samples = find_samples(config)
    samples["Train"] = [
        sample for sample in samples["Train"] if sample.label != "COVID-19"
    ]
    monkeypatch.setattr("covjax.run.find_samples", lambda config: (root, samples))
    with pytest.raises(UsageError, match="asks for positive images"):
        train_and_evaluate(config, run)
    assert not run.exists()


@pytest.mark.parametrize("roi", ["predicted", "truth"])
def test_training_on_found_lungs_is_shown_them_and_leaves_test_alone(
    shown_found_lungs, tmp_path, monkeypatch, roi
):
    monkeypatch.chdir(tmp_path)
    config, run = shown_found_lungs, tmp_path / "run"
    config.data.roi = roi
    config.data.lung_run = write_checkpoint(tmp_path / "lung", lung)
    asked, trained_on, evaluated_on = [], [], []

    def find_lungs(finder, samples, *, spare):
        asked.append((finder.checkpoint, {sample.split for sample in samples}, spare))
        return [
            dataclasses.replace(f, found_lung=Path(f"{f.name}.png")) for f in samples
        ]

    monkeypatch.setattr("covjax.run.find_lungs", find_lungs)
    monkeypatch.setattr(
        train, "fit", lambda _, samples, *__, **___: trained_on.append(samples)
    )
    monkeypatch.setattr(
        "covjax.run.evaluate_best", lambda *given: evaluated_on.append(given[3])
    )
    train_and_evaluate(config, run)
    splits, asking = {"Train": 24, "Val": 8, "Test": 8}, ("Train", "Val")
    for samples in (*trained_on, *evaluated_on):
        found = {
            split: [sample.found_lung for sample in of_split]
            for split, of_split in samples.items()
        }
        assert found == {
            split: [
                Path(f"{sample.name}.png")
                if roi == "predicted" and split in asking
                else None
                for sample in samples[split]
            ]
            for split in splits
        }
        assert {split: len(of_split) for split, of_split in found.items()} == splits
    assert len(trained_on) == len(evaluated_on) == 1
    expected = [(Path(config.data.lung_run), {split}, run) for split in asking]
    assert asked == (expected if roi == "predicted" else [])
