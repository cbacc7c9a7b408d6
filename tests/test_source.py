"""Which images a config means: those of its folder, or a share of the Train images."""

from pathlib import Path

import pytest

from configs import infection
from covjax.data.covidqu import SPLITS, Sample
from covjax.data.source import find_samples, keep_share


def make_images(**counts: int) -> list[Sample]:
    """So many images of each class, in the order of a split."""
    nowhere = Path("nowhere.png")
    return [
        Sample(f"{label}_{k}.png", label, "Train", nowhere, nowhere, None)
        for label, n in counts.items()
        for k in range(n)
    ]


SAMPLES = make_images(covid=200, other=50, normal=3)


def count(samples: list[Sample]) -> dict[str, int]:
    labels = [sample.label for sample in samples]
    return {label: labels.count(label) for label in ("covid", "other", "normal")}


@pytest.mark.parametrize(
    ("share", "counts"),
    [
        (1.0, (200, 50, 3)),
        (0.3, (60, 15, 1)),
        (0.1, (20, 5, 1)),  # one of a class that has any
        (0.013, (3, 1, 1)),  # 2.6 and 0.65, rounded
        (1e-6, (1, 1, 1)),
    ],
)
def test_each_class_keeps_the_same_share(share, counts):
    kept = keep_share(SAMPLES, share)
    assert tuple(count(kept).values()) == counts
    assert kept == [
        sample for sample in SAMPLES if sample in kept
    ]  # in order, each once


def test_smaller_share_lies_within_a_larger_one():
    shares = [set(keep_share(SAMPLES, share)) for share in (0.02, 0.1, 0.3, 0.7, 1.0)]
    for small, large in zip(shares, shares[1:], strict=False):
        assert small < large


def test_images_are_taken_from_all_over_a_class():
    # Neighbours by name may be of one patient. Of ten tenths of a class of 200, a
    # sample of 60 holds 6 each, give or take 6 (three standard deviations).
    places = [int(f.name[6:-4]) for f in keep_share(SAMPLES, 0.3) if f.label == "covid"]
    tenths = [sum(place // 20 == k for place in places) for k in range(10)]
    assert min(tenths) >= 1 and max(tenths) <= 12


def test_an_image_is_kept_for_its_name_alone():
    expected = {sample.name for sample in keep_share(SAMPLES, 0.3)}
    assert {sample.name for sample in keep_share(SAMPLES[::-1], 0.3)} == expected
    moved = [
        Sample(f.name, f.label, f.split, Path("/elsewhere") / f.name, f.lung_mask, None)
        for f in SAMPLES
    ]
    assert {sample.name for sample in keep_share(moved, 0.3)} == expected


def test_share_is_of_train_alone_and_of_every_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = infection.get_config("phantom")
    config.data.phantom_images, config.data.image_size = (16, 8, 8), 32
    root, whole = find_samples(config)
    assert {split: len(whole[split]) for split in SPLITS} == {
        "Train": 16, "Val": 8, "Test": 8,
    }  # fmt: skip
    config.data.train_share, config.seed = 0.5, 1
    again, kept = find_samples(config)
    assert again == root
    assert kept["Val"] == whole["Val"] and kept["Test"] == whole["Test"]
    assert len(kept["Train"]) == 8 and set(kept["Train"]) < set(whole["Train"])
    config.seed = 2
    assert find_samples(config)[1] == kept
