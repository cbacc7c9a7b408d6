"""Batches: who stands where is a function of seed and position alone."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import grain
import ml_collections
import numpy as np
import pytest
from PIL import Image

from configs import infection
from covjax.data.covidqu import Sample
from covjax.data.pipeline import (
    ReadKey,
    ReadUnaugmented,
    Region,
    make_eval_dataset,
    make_reader,
    make_train_dataset,
    record_seed,
)
from covjax.data.sampler import BalancedBatches, ShuffledEpochs
from covjax.errors import DataError, UsageError
from covjax.runtime.signals import shield_workers
from processes import is_there, wait_until

PROJECT = Path(__file__).parents[1]
SIDE = 16
KEYS = {"image", "mask", "index", "weight"}
KINDS = ("image", "lung", "infection", "found_lung")


def picture(seed: int, kind: str) -> np.ndarray:
    """Image or mask of one image; no image has a pixel of 0, no found lung is true."""
    rng = np.random.default_rng(seed)
    sample = rng.integers(80, 256, (SIDE, SIDE), np.uint8)
    lung = np.kron(rng.integers(0, 2, (4, 4), np.uint8), np.ones((4, 4), np.uint8))
    lung[0, 0] = 0  # by chance, none is to look like a negative
    sick = lung * rng.integers(0, 2, (SIDE, SIDE), np.uint8)
    found = np.kron(rng.integers(0, 2, (8, 8), np.uint8), np.ones((2, 2), np.uint8))
    of_kind = {"image": sample, "lung": lung, "infection": sick, "found_lung": found}
    return of_kind[kind]


def write_images(folder: Path, n: int) -> list[Sample]:
    samples = []
    for k in range(n):
        paths = [folder / f"{k}-{kind}.png" for kind in KINDS]
        arrays = [picture(k, kind) for kind in KINDS]
        for path, array, scale in zip(paths, arrays, (1, 255, 255, 255), strict=True):
            Image.fromarray(array * np.uint8(scale)).save(path)
        samples.append(Sample(f"{k}.png", "COVID-19", "Train", *paths))
    return samples


def widen(mask: np.ndarray, radius: int) -> np.ndarray:
    """A mask and all that lies at most `radius` pixels off, pixel by pixel."""
    wide = np.zeros_like(mask)
    rows, columns = np.nonzero(mask)
    for y, x in np.ndindex(*mask.shape):
        wide[y, x] = np.any((y - rows) ** 2 + (x - columns) ** 2 <= radius**2)
    return wide


def shown(k: int, roi: str, dilate: int) -> np.ndarray:
    """What the network is to see of an image as it lies on the disk."""
    sample = picture(k, "image")
    if roi == "none":
        return sample
    lungs = widen(picture(k, "found_lung" if roi == "predicted" else "lung"), dilate)
    return np.where(lungs == (roi != "outside"), sample, 0)


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[Sample]:
    """Seven, so that a batch of two or four leaves some over."""
    return write_images(tmp_path_factory.mktemp("images"), 7)


@pytest.fixture
def config() -> ml_collections.ConfigDict:
    config = infection.get_config("phantom")
    config.data.image_size = SIDE
    config.train.batch_size = 2
    return config


def without_augmentation(config):
    for name in ("flip_prob", "affine_prob", "brightness_contrast_prob"):
        config.augment[name] = 0.0
    return config


def train(samples, config, steps, **share) -> list[dict]:
    return list(
        make_train_dataset(samples, config=config, steps=range(*steps), **share)
    )


def assert_same(a: list[dict], b: list[dict]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys() == KEYS
        for key in KEYS:
            assert one[key].dtype == other[key].dtype
            np.testing.assert_array_equal(one[key], other[key])


def indices(batches: list[dict]) -> list[int]:
    return [int(index) for batch in batches for index in batch["index"]]


def is_as_on_disk(batches: list[dict]) -> bool:
    return all(
        np.array_equal(image[..., 0], picture(int(index), "image"))
        for batch in batches
        for image, index in zip(batch["image"], batch["index"], strict=True)
    )


@pytest.mark.parametrize("batch_size", [1, 2, 4, 7])
def test_epoch_holds_every_image_at_most_once(samples, config, batch_size):
    config.train.batch_size = batch_size
    steps = 7 // batch_size
    for epoch in range(3):
        batches = train(samples, config, (epoch * steps, (epoch + 1) * steps))
        seen = indices(batches)
        assert len(seen) == len(set(seen)) == steps * batch_size
        assert set(seen) <= set(range(7))
        assert all((batch["weight"] == 1).all() for batch in batches)


SICK = (1, 4, 6)  # of the seven images below


@pytest.fixture
def mixed(samples) -> list[Sample]:
    """The seven images, of which some show COVID-19."""
    labels = ["COVID-19" if k in SICK else "Normal" for k in range(7)]
    return [
        dataclasses.replace(sample, label=label)
        for sample, label in zip(samples, labels, strict=True)
    ]


def test_share_of_positive_images_goes_over_all_epochs(mixed, config):
    # Four epochs of one batch: 4, 2.7, 1.3 and 0 of four images, rounded.
    config.train.batch_size, config.train.epochs = 4, 4
    config.data.positive_share = (1.0, 0.0)
    keys = train(mixed, config, (0, 4), read=ReadKey(config.seed))
    sick = [sum(int(k) in SICK for k in batch["index"]) for batch in keys]
    assert sick == [4, 3, 1, 0]
    # Where each image stands, and in which pass it is augmented, is for the order.
    expected = BalancedBatches(
        [k in SICK for k in range(7)], 4, config.seed, (1.0, 0.0), 4
    )
    for step, batch in enumerate(keys):
        for place in range(4):
            number, index = expected(4 * step + place)
            assert batch["index"][place] == index
            assert batch["seed"][place] == record_seed(config.seed, number, index)


def test_balanced_run_goes_on_with_the_same_bits_and_is_shared(mixed, config):
    config.train.batch_size, config.train.epochs = 4, 8
    config.data.positive_share = (0.8, 0.3)
    whole = train(mixed, config, (0, 8))
    assert_same(train(mixed, config, (3, 8)), whole[3:])
    shares = [train(mixed, config, (0, 8), rank=rank, world=2) for rank in (0, 1)]
    for batch, one, other in zip(whole, *shares, strict=True):
        for name in KEYS:
            np.testing.assert_array_equal(one[name], batch[name][::2])
            np.testing.assert_array_equal(other[name], batch[name][1::2])


def test_share_of_images_that_the_split_lacks_is_refused(samples, config):
    config.data.positive_share = (0.5, 0.5)
    with pytest.raises(UsageError, match="asks for other images"):
        train(samples, config, (0, 1))


def test_images_that_an_epoch_leaves_out_change():
    order = ShuffledEpochs(7, 4, seed=0)
    kept = [
        frozenset(order(position)[1] for position in range(4 * epoch, 4 * epoch + 4))
        for epoch in range(12)
    ]
    assert len(set(kept)) > 3
    assert frozenset.union(*kept) == set(range(7))


def test_positions_are_numbered_by_epoch():
    order = ShuffledEpochs(7, 2, seed=0)
    assert [order(position)[0] for position in range(13)] == [0] * 6 + [1] * 6 + [2]


def test_orders_differ_between_epochs_and_seeds(samples, config):
    def orders(seed: int) -> list[tuple[int, ...]]:
        config.seed = seed
        seen = indices(train(samples, config, (0, 12)))
        return [tuple(seen[k : k + 6]) for k in range(0, 24, 6)]

    assert len({*orders(0), *orders(1)}) == 8
    assert orders(0) == orders(0)


def test_shape_and_type_of_a_batch(samples, config):
    (batch,) = train(samples, config, (0, 1))
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "image": ((2, SIDE, SIDE, 1), "uint8"),
        "mask": ((2, SIDE, SIDE, 1), "uint8"),
        "index": ((2,), "int32"),
        "weight": ((2,), "float32"),
    }


def test_seed_of_a_record_depends_on_run_epoch_and_image():
    keys = [(s, e, i) for s in range(4) for e in range(4) for i in range(4)]
    seeds = {record_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert record_seed(1, 2, 3) == record_seed(1, 2, 3)


def test_image_is_augmented_otherwise_in_every_epoch_and_run(samples, config):
    config.augment.affine_prob = 1.0

    def looks(seed: int) -> list[bytes]:
        config.seed = seed
        return [
            image.tobytes()
            for batch in train(samples, config, (0, 18))
            for image, index in zip(batch["image"], batch["index"], strict=True)
            if index == 3
        ]

    first, second = looks(0), looks(1)
    assert min(len(first), len(second)) >= 4
    assert len({*first, *second}) == len(first) + len(second)


def test_image_that_a_device_augments_comes_as_it_is_with_its_seed(samples, config):
    config.train.batch_size, config.seed = 4, 5
    read = make_reader(samples, config.data)
    parts = ("image", "found_lung", "infection")
    unaugmented = train(
        samples, config, (0, 3), read=ReadUnaugmented(read, parts, config.seed)
    )
    keys = train(samples, config, (0, 3), read=ReadKey(config.seed))
    on_host = train(samples, config, (0, 3))
    for epoch, (batch, key, expected) in enumerate(
        zip(unaugmented, keys, on_host, strict=True)
    ):
        assert list(key) == ["index", "seed", "weight"]
        assert list(batch) == [*parts, *key]
        for name, dtype in [("index", "int32"), ("weight", "float32")]:
            assert key[name].dtype == dtype
            np.testing.assert_array_equal(key[name], expected[name])
        assert key["seed"].dtype == "uint32"
        seeds = [record_seed(5, epoch, int(index)) for index in key["index"]]
        assert key["seed"].tolist() == seeds
        for name in key:
            np.testing.assert_array_equal(batch[name], key[name])
        for name in parts:
            whole = np.stack([picture(int(index), name) for index in key["index"]])
            np.testing.assert_array_equal(batch[name], whole)
            assert batch[name].dtype == np.uint8


def test_threads_do_not_change_a_bit(samples, config):
    config.data.threads = 1
    expected = train(samples, config, (0, 24))
    config.data.threads, config.data.prefetch = 4, 8
    assert_same(train(samples, config, (0, 24)), expected)


def test_run_that_starts_at_any_step_goes_on_with_the_same_bits(samples, config):
    whole = train(samples, config, (0, 8))
    for start in (1, 3, 5, 8):  # within an epoch, and at its end
        assert_same(train(samples, config, (start, 8)), whole[start:])


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("world", [2, 4])
def test_shares_of_all_processes_are_the_batch_of_one(samples, config, world, start):
    config.train.batch_size = 4
    whole = train(samples, config, (start, 5))
    shares = [
        train(samples, config, (start, 5), rank=rank, world=world)
        for rank in range(world)
    ]
    joined = [
        {
            k: np.stack([share[k] for share in of_step], axis=1).reshape(
                whole[0][k].shape
            )
            for k in KEYS
        }
        for of_step in zip(*shares, strict=True)
    ]
    assert_same(joined, whole)


def test_batch_larger_than_the_split_is_refused(samples, config):
    config.train.batch_size = 8
    with pytest.raises(UsageError, match="batch_size = 8: there are only 7 images"):
        make_train_dataset(samples, config=config, steps=range(1))


@pytest.mark.parametrize("task", ["lung", "infection"])
def test_target_is_the_mask_of_the_task(samples, config, task):
    config.data.task = task
    for batch in make_eval_dataset(samples, config=config):
        for mask, index, weight in zip(
            batch["mask"], batch["index"], batch["weight"], strict=True
        ):
            if weight:
                assert np.array_equal(mask[..., 0], picture(int(index), task))


REGIONS = [
    ("none", 0),
    ("truth", 0),
    ("predicted", 0),
    ("outside", 0),
    ("truth", 1),
    ("predicted", 1),
    ("outside", 2),
]


def test_region_of_an_image_by_hand():
    record = {
        "image": np.array([[10, 20, 30, 40]], np.uint8),
        "lung": np.array([[1, 1, 0, 0]], np.uint8),
        "infection": np.array([[1, 0, 0, 0]], np.uint8),
        "found_lung": np.array([[0, 1, 1, 0]], np.uint8),
    }
    seen = {
        (roi, dilate): Region(roi, dilate).show(record)[0, :, 0].tolist()
        for roi, dilate in [*REGIONS[:4], ("predicted", 1), ("outside", 1)]
    }
    assert seen == {
        ("none", 0): [10, 20, 30, 40],
        ("truth", 0): [10, 20, 0, 0],
        ("predicted", 0): [0, 20, 30, 0],
        ("outside", 0): [0, 0, 30, 40],
        ("predicted", 1): [10, 20, 30, 40],
        ("outside", 1): [0, 0, 0, 40],
    }


def test_lungs_beside_an_image_by_hand():
    record = {
        "image": np.array([[10, 20, 30, 40]], np.uint8),
        "lung": np.array([[1, 1, 0, 0]], np.uint8),
        "found_lung": np.array([[0, 0, 1, 0]], np.uint8),
    }
    for region, sample, lungs in [
        (("truth", 0), [10, 20, 30, 40], [255, 255, 0, 0]),
        (("truth", 1), [10, 20, 30, 40], [255, 255, 255, 0]),
        (("predicted", 0), [10, 20, 30, 40], [0, 0, 255, 0]),
        # What the image gives away without its lungs, to a network that is told them.
        (("outside", 0), [0, 0, 30, 40], [255, 255, 0, 0]),
        (("outside", 1), [0, 0, 0, 40], [255, 255, 255, 0]),
    ]:
        region = Region(*region, "channel")
        seen = region.show(record)
        assert (seen.shape, seen.dtype) == ((1, 4, 2), np.uint8)
        assert seen[0].T.tolist() == [sample, lungs]
        assert region.channels == 2
    assert Region("truth", 1, "cut").channels == Region().channels == 1


@pytest.mark.parametrize(("roi", "dilate"), [("truth", 0), ("predicted", 1)])
def test_lungs_stand_beside_the_image_in_every_batch(samples, config, roi, dilate):
    config.data.roi, config.data.roi_dilate = roi, dilate
    config.data.roi_as, config.train.batch_size = "channel", 4
    batches = train(samples, without_augmentation(config), (0, 3))
    padded = list(make_eval_dataset(samples, config=config))
    assert not padded[-1]["image"][3].any() and not padded[-1]["mask"][3].any()
    kind = "found_lung" if roi == "predicted" else "lung"
    for batch in batches + padded:
        assert batch["image"].shape == (4, SIDE, SIDE, 2)
        assert batch["mask"].shape == (4, SIDE, SIDE, 1)
        for image, index, weight in zip(
            batch["image"], batch["index"], batch["weight"], strict=True
        ):
            if weight:
                lungs = 255 * widen(picture(index, kind), dilate)
                np.testing.assert_array_equal(image[..., 0], picture(index, "image"))
                np.testing.assert_array_equal(image[..., 1], lungs)


def test_share_that_is_padding_alone_has_the_channels_of_the_others(samples, config):
    config.data.roi_as, config.train.batch_size = "channel", 4
    shares = [
        list(make_eval_dataset(samples[:5], config=config, rank=rank, world=4))[1]
        for rank in range(4)
    ]
    assert [share["weight"].tolist() for share in shares] == [[1], [0], [0], [0]]
    assert {share["image"].shape for share in shares} == {(1, SIDE, SIDE, 2)}


def test_lungs_move_with_the_image_that_they_stand_beside(samples, config):
    # The lungs are made the target as well, which shows how they have moved.
    samples = [
        dataclasses.replace(sample, infection_mask=sample.lung_mask)
        for sample in samples
    ]
    config.augment.affine_prob = config.augment.brightness_contrast_prob = 1.0
    config.data.roi, config.data.roi_as = "truth", "channel"
    both = train(samples, config, (0, 3))
    config.data.roi, config.data.roi_as = "none", "cut"
    for one, whole in zip(both, train(samples, config, (0, 3)), strict=True):
        np.testing.assert_array_equal(one["image"][..., :1], whole["image"])
        np.testing.assert_array_equal(one["image"][..., 1:], 255 * whole["mask"])


@pytest.mark.parametrize(("roi", "dilate"), REGIONS)
def test_region_blackens_what_the_network_is_not_to_see(samples, config, roi, dilate):
    config.data.roi, config.data.roi_dilate = roi, dilate
    batches = train(samples, without_augmentation(config), (0, 3))
    batches += make_eval_dataset(samples[:6], config=config)
    assert {int(index) for batch in batches for index in batch["index"]} >= {*range(6)}
    for batch in batches:
        for image, mask, index in zip(
            batch["image"], batch["mask"], batch["index"], strict=True
        ):
            np.testing.assert_array_equal(image[..., 0], shown(index, roi, dilate))
            # The target is not cut: what is missed outside of found lungs is missed.
            np.testing.assert_array_equal(mask[..., 0], picture(index, "infection"))


@pytest.mark.parametrize(("roi", "dilate"), REGIONS[1:])
def test_region_is_cut_after_the_augmentation(samples, config, roi, dilate):
    # The mask of the region is made the target as well, which shows how it has moved.
    name = "found_lung" if roi == "predicted" else "lung_mask"
    samples = [
        dataclasses.replace(sample, infection_mask=getattr(sample, name))
        for sample in samples
    ]
    for name in ("brightness_contrast_prob", "affine_prob", "gamma_prob", "noise_prob"):
        config.augment[name] = 1.0
    config.data.roi, config.data.roi_dilate = roi, dilate
    cut = train(samples, config, (0, 6))
    config.data.roi, config.data.roi_dilate = "none", 0
    whole = train(samples, config, (0, 6))
    for one, other in zip(cut, whole, strict=True):
        np.testing.assert_array_equal(one["mask"], other["mask"])
        for image, sample, mask in zip(
            one["image"][..., 0],
            other["image"][..., 0],
            one["mask"][..., 0],
            strict=True,
        ):
            hidden = widen(mask, dilate) == (roi == "outside")
            assert (image[hidden] == 0).all() and (sample[hidden] > 0).any()
            np.testing.assert_array_equal(image[~hidden], sample[~hidden])


def test_no_region_keeps_the_whole_image(samples, config):
    config.data.roi = "none"
    assert is_as_on_disk(train(samples, without_augmentation(config), (0, 6)))


def test_image_is_augmented_in_training_only(samples, config):
    config.data.roi = "none"
    assert not is_as_on_disk(train(samples, config, (0, 3)))
    (batch, *_) = make_eval_dataset(samples, config=config)
    assert is_as_on_disk([batch])


@pytest.mark.parametrize("batch_size", [1, 2, 4, 7, 8, 16])
def test_evaluation_takes_every_image_once_in_order(samples, config, batch_size):
    config.train.batch_size, config.data.roi = batch_size, "none"
    batches = list(make_eval_dataset(samples, config=config))
    assert all(batch["image"].shape[0] == batch_size for batch in batches)
    assert len(batches) == -(-7 // batch_size)
    weights = np.concatenate([batch["weight"] for batch in batches])
    assert weights.tolist() == [1] * 7 + [0] * (len(weights) - 7)
    assert indices(batches)[:7] == list(range(7))
    images = np.concatenate([batch["image"] for batch in batches])
    masks = np.concatenate([batch["mask"] for batch in batches])
    for k in range(7):
        assert np.array_equal(images[k, ..., 0], picture(k, "image"))
    assert not images[7:].any() and not masks[7:].any()


@pytest.mark.parametrize("batch_size", [4, 8, 16])
@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_an_evaluation_evenly(samples, config, world, batch_size):
    config.train.batch_size = batch_size
    shares = [
        list(make_eval_dataset(samples, config=config, rank=rank, world=world))
        for rank in range(world)
    ]
    assert {len(share) for share in shares} == {-(-7 // batch_size)}
    seen = []
    for share in shares:
        for batch in share:
            assert len(batch["index"]) == batch_size // world
            seen += batch["index"][batch["weight"] > 0].tolist()
    assert sorted(seen) == list(range(7))


def test_evaluation_can_be_run_again(samples, config):
    dataset = make_eval_dataset(samples, config=config)
    assert_same(list(dataset), list(dataset))


def test_split_of_whole_batches_has_no_padding(samples, config):
    batches = list(make_eval_dataset(samples[:6], config=config))
    assert len(batches) == 3
    assert all((batch["weight"] == 1).all() for batch in batches)


def broken(tmp_path: Path) -> tuple[list[Sample], Path]:
    """Eight images, of which the sixth cannot be read."""
    samples = write_images(tmp_path, 8)
    samples[5].image.write_bytes(samples[5].image.read_bytes()[:60])
    return samples, samples[5].image


@pytest.mark.parametrize("make", [make_eval_dataset, make_train_dataset])
def test_broken_image_is_named_through_threads(tmp_path, config, make):
    samples, path = broken(tmp_path)
    steps = {"steps": range(4)} if make is make_train_dataset else {}
    with pytest.raises(DataError) as caught:
        list(make(samples, config=config, **steps))
    assert str(caught.value).startswith(f"{path}: cannot be read as a picture")


def test_workers_change_no_bit_name_a_broken_image_get_no_signals_and_end(
    tmp_path, config
):
    # One test, because it takes seconds until workers have started.
    samples, path = broken(tmp_path)
    config.data.cache = ""  # or the image would be named before there is a worker
    config.seed = next(  # that comes to the broken image in the last batch
        seed
        for seed in range(99)
        if 5 in [ShuffledEpochs(8, 2, seed)(k)[1] for k in (6, 7)]
    )
    expected = train(samples, config, (0, 3))
    config.data.workers = 2
    iterator = iter(make_train_dataset(samples, config=config, steps=range(4)))
    assert isinstance(iterator, grain.DatasetIterator)
    batches = shield_workers(iterator)
    assert_same([next(batches) for _ in range(3)], expected)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:  # what a terminal sends to all is for the one that trains
        told = Path(f"/proc/{worker.pid}/status").read_text()
        held_back = int(told.partition("SigBlk:")[2].split()[0], 16)
        for number in (signal.SIGINT, signal.SIGTERM):
            assert held_back & 1 << number - 1
    with pytest.raises(DataError) as caught:
        next(iterator)
    assert str(caught.value).startswith(f"{path}: cannot be read as a picture")
    iterator.close()
    assert multiprocessing.active_children() == []


WORKER = """
import multiprocessing, os, time
from covjax.data.pipeline import _start_worker

def work(pipe):
    _start_worker(0, 1)
    pipe.send(os.getpid())
    time.sleep(120)

if __name__ == "__main__":
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    context.Process(target=work, args=(there,)).start()
    print(here.recv(), flush=True)
    time.sleep(120)
"""


def test_a_worker_ends_with_the_process_that_started_it(tmp_path):
    (tmp_path / "parent.py").write_text(WORKER)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py")],
        stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
    ) as parent:  # fmt: skip
        assert parent.stdout
        worker = int(parent.stdout.readline())
        assert is_there(worker)
        parent.kill()
    assert wait_until(lambda: not is_there(worker)), "it outlives who started it"
