"""The images that a run begins with: all whole, told, and the same ever after."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import infection
from covjax import parallel
from covjax.data import image_cache
from covjax.data.covidqu import Sample
from covjax.errors import DataError, UsageError
from covjax.run import evaluate_run, train_and_evaluate
from covjax.train import readable_check, sample_manifest, train
from covjax.train.sample_manifest import choose_samples

SIDE = 8
SPLITS = ("Train", "Val", "Test")


def write(path: Path, value: int = 0) -> Path:
    array = np.zeros((SIDE, SIDE), np.uint8)
    array[2:5, 2:5] = value
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def config(tmp_path):
    config = infection.get_config("phantom")
    config.data.image_size = SIDE
    config.data.cache = str(tmp_path / "cache")
    return config


@pytest.fixture
def samples(tmp_path) -> dict[str, list[Sample]]:
    """Three splits of images that share their files, but for one each."""
    paths = [write(tmp_path / f"{k}.png", 255) for k in range(3)]
    samples = {}
    for split, n in zip(SPLITS, (200, 100, 50), strict=True):
        some = [Sample(f"{k}.png", "Normal", split, *paths) for k in range(n)]
        own = write(tmp_path / f"{split}.png", 255)
        some[7] = dataclasses.replace(some[7], infection_mask=own)
        samples[split] = some
    return samples


def spoil(tmp_path: Path, *splits: str) -> None:
    for split in splits:
        (tmp_path / f"{split}.png").write_text("no picture")


def refusal(*arguments, **more) -> str:
    with pytest.raises(DataError) as caught:
        choose_samples(*arguments, **more)
    said = str(caught.value)
    assert len(said.splitlines()) <= 2
    return said


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
def test_bad_images_of_all_splits_are_counted_before_anything_is_written(
    config, samples, tmp_path, cache
):
    if not cache:
        config.data.cache = ""
    workdir = tmp_path / "run"
    chosen = choose_samples(config, workdir, samples, SPLITS, training=True)
    assert chosen.samples == samples
    spoil(tmp_path, "Train", "Test")
    (tmp_path / "2.png").unlink()  # of all images but Val's seventh
    said = refusal(config, workdir, samples, SPLITS, training=True)
    assert said.startswith(
        f"349 images cannot be used: {tmp_path}/2.png: no such file;"
    )
    write(tmp_path / "2.png", 255)
    said = refusal(config, workdir, samples, SPLITS, training=True)
    assert said.startswith("2 images cannot be used: ")
    assert f"{tmp_path}/Train.png: cannot be read" in said
    assert f"{tmp_path}/Test.png: cannot be read" in said
    assert "on_bad_record = 'skip'" in said
    assert not workdir.exists()


def test_only_the_splits_that_are_read_are_looked_at(config, samples, tmp_path):
    spoil(tmp_path, "Test")
    chosen = choose_samples(config, tmp_path, samples, ("Train", "Val"), training=True)
    assert set(chosen.told) == {"Train", "Val"}


def test_packed_images_are_not_decoded_again(config, samples, tmp_path, monkeypatch):
    choose_samples(config, tmp_path, samples, SPLITS, training=True)
    for module in (image_cache, readable_check):
        monkeypatch.setattr(module, "read_sample", None)
    chosen = choose_samples(config, tmp_path, samples, SPLITS, training=True)
    assert chosen.samples == samples


def test_skipped_images_are_left_out_told_and_listed(config, samples, tmp_path, capsys):
    config.data.on_bad_record = "skip"
    spoil(tmp_path, "Train", "Val")
    chosen = choose_samples(config, tmp_path, samples, SPLITS, training=True)
    for split in SPLITS:
        left = [f for f in samples[split] if f.name != "7.png" or split == "Test"]
        assert chosen.samples[split] == left
    said = capsys.readouterr().out
    assert "1 of 200 Train images are skipped, and listed in images.json: " in said
    assert f"{tmp_path}/Val.png" in said
    assert not (tmp_path / "images.json").exists()
    chosen.write(tmp_path)
    told = json.loads((tmp_path / "images.json").read_text())
    assert {k: v["images"] for k, v in told.items()} == {
        "Train": 199, "Val": 99, "Test": 50,
    }  # fmt: skip
    assert told["Test"]["skipped"] == []
    (one,) = told["Train"]["skipped"]
    assert one["image"] == "Normal/7.png"
    assert one["reason"].startswith(f"{tmp_path}/Train.png: cannot be read")


def test_more_than_a_hundredth_of_a_split_is_not_skipped(config, samples, tmp_path):
    config.data.on_bad_record = "skip"
    spoil(tmp_path, "Test")  # 1 of 50, and of 350 in all
    said = refusal(config, tmp_path, samples, SPLITS, training=True)
    assert said.startswith(f"{tmp_path}/Test.png: cannot be read")
    assert "1 of 50 Test images, more than the 1%" in said
    samples["Test"] *= 2
    assert "2 of 100" in refusal(config, tmp_path, samples, SPLITS, training=True)


def begun(config, samples, workdir: Path, mode: str, splits=SPLITS) -> None:
    config.data.on_bad_record = mode
    choose_samples(config, workdir, samples, splits, training=True).write(workdir)


@pytest.mark.parametrize("training", [True, False])
def test_a_run_keeps_to_what_it_skipped(config, samples, tmp_path, training):
    spoil(tmp_path, "Train")
    begun(config, samples, tmp_path, "skip")
    write(tmp_path / "Train.png", 255)
    config.data.on_bad_record = "error"
    chosen = choose_samples(config, tmp_path, samples, SPLITS, training=training)
    assert [f.name for f in samples["Train"] if f not in chosen.samples["Train"]] == [
        "7.png"
    ]


@pytest.mark.parametrize("training", [True, False])
def test_a_run_skips_nothing_that_it_began_with(config, samples, tmp_path, training):
    begun(config, samples, tmp_path, "error")
    spoil(tmp_path, "Train")
    config.data.on_bad_record = "skip"
    said = refusal(config, tmp_path, samples, SPLITS, training=training)
    assert said.startswith(f"{tmp_path}/Train.png: cannot be read")
    assert f"{tmp_path} began with what cannot be used now" in said


@pytest.mark.parametrize("change", ["less", "more", "other"])
def test_training_does_not_go_on_with_other_images(config, samples, tmp_path, change):
    begun(config, samples, tmp_path, "error")
    last = samples["Val"].pop()
    if change != "less":
        samples["Val"].append(dataclasses.replace(last, name="new.png"))
    if change == "more":
        samples["Val"].append(last)
    said = refusal(config, tmp_path, samples, SPLITS, training=True)
    assert (
        f"began with 100 Val images, and these {len(samples['Val'])} are others" in said
    )
    chosen = choose_samples(config, tmp_path, samples, ("Val",), training=False)
    assert chosen.samples == samples  # another set may be evaluated


@pytest.mark.parametrize("mode", ["skip", "error"])
def test_an_evaluation_on_other_images_looks_at_those(config, samples, tmp_path, mode):
    spoil(tmp_path, "Val")
    begun(config, samples, tmp_path, "skip")  # without Val's seventh
    listed = (tmp_path / sample_manifest.FILE).read_bytes()
    others = samples | {"Val": samples["Test"] + samples["Train"]}
    for value, left_out in ((255, []), (0, ["7.png"])):
        write(tmp_path / "Val.png", 255)
        if not value:
            spoil(tmp_path, "Train")
        config.data.on_bad_record = mode
        if left_out and mode == "error":
            said = refusal(config, tmp_path, others, ("Val",), training=False)
            assert "began with" not in said
            continue
        chosen = choose_samples(config, tmp_path, others, ("Val",), training=False)
        gone = [f.name for f in others["Val"] if f not in chosen.samples["Val"]]
        assert gone == left_out
        chosen.write(tmp_path)
        assert (tmp_path / sample_manifest.FILE).read_bytes() == listed


def test_an_evaluation_on_other_images_adds_nothing(config, samples, tmp_path):
    begun(config, samples, tmp_path, "error", ("Train", "Val"))
    listed = (tmp_path / sample_manifest.FILE).read_bytes()
    others = {"Val": samples["Test"], "Test": samples["Val"]}
    for split in ("Val", "Test"):
        chosen = choose_samples(
            config, tmp_path, samples | others, ("Val", split), training=False
        )
        chosen.write(tmp_path)
        assert (tmp_path / sample_manifest.FILE).read_bytes() == listed
    # and the run's own Test is still to be had
    choose_samples(config, tmp_path, samples, SPLITS, training=True)


def test_what_an_evaluation_adds_is_kept_to(config, samples, tmp_path):
    begun(config, samples, tmp_path, "skip", ("Train", "Val"))
    samples["Test"] *= 2
    samples["Test"] = [
        dataclasses.replace(f, name=f"{k}.png") for k, f in enumerate(samples["Test"])
    ]
    for k in range(50, 100):  # one of a hundred
        samples["Test"][k] = dataclasses.replace(samples["Test"][0], name=f"{k}.png")
    spoil(tmp_path, "Test")
    for _ in range(2):
        chosen = choose_samples(config, tmp_path, samples, ("Test",), training=False)
        chosen.write(tmp_path)
        assert len(chosen.samples["Test"]) == 99
        assert set(chosen.told) == set(SPLITS)
        write(tmp_path / "Test.png", 255)


def test_processes_that_find_other_images_all_stop(
    config, samples, tmp_path, monkeypatch
):
    gathered = []

    def gather(digest):
        gathered.append(digest[0])
        return np.concatenate(gathered)

    monkeypatch.setattr(parallel, "gather", gather)
    config.data.on_bad_record = "skip"
    choose_samples(config, tmp_path, samples, SPLITS, training=True)
    choose_samples(config, tmp_path, samples, SPLITS, training=True)  # the same: fine
    spoil(tmp_path, "Train")
    said = refusal(config, tmp_path, samples, SPLITS, training=True)
    assert "Train.png" in said and "do not find the same images" in said
    del gathered[:]
    choose_samples(config, tmp_path, samples, SPLITS, training=True)
    write(tmp_path / "Train.png", 255)
    said = refusal(config, tmp_path, samples, SPLITS, training=True)
    assert said.startswith("The processes do not find the same images")


@pytest.mark.parametrize("content", ["", "[]", '{"Train": {}}', '{"Train": 3}', "\xff"])
def test_a_list_that_is_none_is_said(config, samples, tmp_path, content):
    (tmp_path / "images.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError, match="images.json: not a run's list of images"):
        choose_samples(config, tmp_path, samples, SPLITS, training=True)


def test_a_run_begins_and_is_evaluated_with_the_images_that_are_left(
    config, samples, tmp_path, monkeypatch
):
    """The check stands before the run's folder, and its choice to the end."""
    config.model.width, config.model.depth = 2, 1
    config.train.batch_size = 8
    seen = {}
    monkeypatch.setattr("covjax.run.find_samples", lambda _: (tmp_path, dict(samples)))
    monkeypatch.setattr(
        train, "fit", lambda _, samples, *rest, **others: seen.update(fit=samples)
    )
    monkeypatch.setattr("covjax.run.draw_curves", lambda *_: None)
    monkeypatch.setattr(
        "covjax.run.evaluate_best", lambda *given: seen.update(best=given[3])
    )
    workdir = tmp_path / "run"
    spoil(tmp_path, "Val")
    with pytest.raises(DataError, match="Val.png"):
        train_and_evaluate(config, workdir)
    assert not workdir.exists()
    config.data.on_bad_record = "skip"
    train_and_evaluate(config, workdir)
    assert len(json.loads((workdir / sample_manifest.FILE).read_text())) == 3
    assert len(seen["fit"]["Val"]) == len(seen["best"]["Val"]) == 99
    write(tmp_path / "Val.png", 255)
    evaluate_run(workdir, "Train")
    assert len(seen["best"]["Val"]) == 99
    spoil(tmp_path, "Train")
    with pytest.raises(DataError, match=r"Train\.png(.|\n)* began with"):
        evaluate_run(workdir, "Train")
