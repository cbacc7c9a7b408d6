"""What the step is fed: the same bits, wherever the images lie."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from configs import infection
from covjax import parallel
from covjax.data.augment_params import strengths_of
from covjax.data.covidqu import Sample, read_sample
from covjax.data.pipeline import Region, make_train_dataset, record_seed
from covjax.data.sampler import ShuffledEpochs
from covjax.train import device_input
from covjax.train.device_augment import DeviceAugment
from covjax.types import AXIS

SIDE = 18  # 324 pixels: the last byte of a packed mask is not full
SAMPLES, BATCH, STEPS = 19, 8, range(1, 6)  # from within the first epoch to the third


def write_images(folder: Path) -> list[Sample]:
    """Noise, which no other image nor another mask can stand for; no pixel is 0."""
    samples = []
    for k in range(SAMPLES):
        rng = np.random.default_rng(k)
        paths = [
            folder / f"{k}-{part}.png" for part in ("image", "lung", "sick", "net")
        ]
        blocks = np.kron(rng.random((3, 6, 6)) < 0.5, np.ones((3, 3)))
        blocks[:, 0, 0] = 0  # by chance, none is to look like a negative
        sample = rng.integers(60, 256, (SIDE, SIDE))
        for path, array in zip(paths, (sample, *255 * blocks), strict=True):
            Image.fromarray(array.astype(np.uint8)).save(path)
        samples.append(Sample(f"{k}.png", "COVID-19", "Train", *paths))
    return samples


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[Sample]:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def config(devices, monkeypatch):
    # A CPU does not say what it has free; most tests are of images that lie there.
    monkeypatch.setattr(parallel, "has_room", lambda _: True)
    config = infection.get_config("phantom")
    config.data.image_size = SIDE
    config.train.batch_size = BATCH
    config.seed = 3
    config.augment.where = "device"
    for name in ("flip_prob", "affine_prob", "brightness_contrast_prob"):
        config.augment[name] = 0.7
    return config


def prepared(given: device_input.Feed, devices: list | None = None) -> list[dict]:
    """All batches as the step takes them, joined, on the host."""
    step = jax.pmap(given.prepare, axis_name=AXIS, devices=devices)
    return [parallel.gather(step(batch)) for batch in given.batches]


def supply(samples, config, steps=STEPS) -> list[dict]:
    return prepared(device_input.make_feed(samples, config=config, steps=steps))


def assert_same(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys() == {"image", "mask", "index", "weight"}
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


REGIONS = [
    ("none", 0, "cut"),
    ("truth", 0, "cut"),
    ("truth", 2, "cut"),
    ("predicted", 1, "cut"),
    ("outside", 0, "cut"),
    ("outside", 1, "cut"),
    ("predicted", 1, "channel"),
    ("outside", 0, "channel"),
]


@pytest.mark.parametrize("region", REGIONS, ids=str)
def test_each_image_is_augmented_from_its_seed_then_shown(samples, config, region):
    config.data.roi, config.data.roi_dilate, config.data.roi_as = region
    config.augment.gamma_prob = config.augment.noise_prob = 0.7
    augment = jax.jit(DeviceAugment(**strengths_of(config.augment)))
    order = ShuffledEpochs(SAMPLES, BATCH, config.seed)
    expected = []
    for step in STEPS:
        keys = [order(step * BATCH + k) for k in range(BATCH)]
        records = [
            jax.device_get(
                augment(
                    read_sample(samples[index], SIDE),
                    np.uint32(record_seed(config.seed, epoch, index)),
                )
            )
            for epoch, index in keys
        ]
        # As the host shows it, through OpenCV.
        shown = [Region(*region).show(record) for record in records]
        expected.append(
            {
                "image": np.stack(shown),
                "mask": np.stack([r["infection"] for r in records])[..., None],
                "index": np.array([index for _, index in keys], np.int32),
                "weight": np.ones(BATCH, np.float32),
            }
        )
    assert_same(supply(samples, config), expected)
    images = np.concatenate([batch["image"] for batch in expected])
    # Something was cut.
    assert region[0] == "none" or 0.05 < np.mean(images == 0) < 0.95


def test_images_that_are_sent_give_the_bits_of_those_that_lie_there(
    samples, config, monkeypatch
):
    asked = []

    def has_room(need: int) -> bool:
        asked.append(need)
        return len(asked) == 1

    monkeypatch.setattr(parallel, "has_room", has_room)
    resident = device_input.make_feed(samples, config=config, steps=STEPS)
    sent = device_input.make_feed(samples, config=config, steps=STEPS)
    config.data.cache = ""
    unpacked = device_input.make_feed(samples, config=config, steps=STEPS)
    # Images of 324 bytes with two masks of 41: the ones that a model found stay away.
    assert asked == [SAMPLES * (324 + 2 * 41)] * 2
    whole = prepared(resident)
    assert_same(prepared(sent), whole)
    assert_same(prepared(unpacked), whole)
    size = f"{asked[0] / 2**30:.2f} GiB"
    assert f"all lie there ({size})" in resident.description
    assert "to stay, they need 0 MB free" in sent.description
    assert "to stay, they need config.data.cache" in unpacked.description


def test_only_keys_are_sent_where_the_images_lie_on_the_devices(samples, config):
    given = device_input.make_feed(samples, config=config, steps=STEPS)
    first, second, *_ = given.batches
    assert first.keys() == second.keys() == {"index", "seed", "weight", "images"}
    assert first["images"].keys() == {"image", "lung", "infection"}
    for name, array in first["images"].items():
        assert array is second["images"][name]


def test_lungs_that_are_target_and_region_in_one_are_kept_once(samples, config):
    config.data.task = "lung"
    given = device_input.make_feed(samples, config=config, steps=STEPS)
    batch = next(iter(given.batches))
    assert batch["images"].keys() == {"image", "lung"}
    config.data.roi = "none"
    uncut = supply(samples, config)
    for cut, whole in zip(prepared(given)[:3], uncut[1:], strict=False):
        hidden = whole["mask"] == 0
        assert (cut["image"][hidden] == 0).all()
        np.testing.assert_array_equal(cut["image"][~hidden], whole["image"][~hidden])


def test_one_device_gives_the_bits_of_eight(samples, config, devices):
    given = device_input.make_feed(samples, config=config, steps=STEPS)
    whole = prepared(given)
    again = device_input.make_feed(samples, config=config, steps=STEPS)

    def on_one(batch):
        """The shares of all devices as one."""
        rows = {
            name: np.asarray(array).reshape(1, -1, *array.shape[2:])
            for name, array in batch.items()
            if name != "images"
        }
        first = {name: np.asarray(a)[:1] for name, a in batch["images"].items()}
        return rows | {"images": first}

    single = dataclasses.replace(again, batches=map(on_one, again.batches))
    assert_same(prepared(single, devices[:1]), whole)


def test_run_that_starts_at_any_step_goes_on_with_the_same_bits(samples, config):
    whole = supply(samples, config)
    for start in (2, 4):
        rest = supply(samples, config, range(start, STEPS.stop))
        assert_same(rest, whole[start - STEPS.start :])


def test_another_run_and_another_epoch_draw_anew(samples, config):
    config.data.roi, config.augment.affine_prob = "none", 1.0

    def looks(seed: int) -> list[bytes]:
        config.seed = seed
        return [
            image.tobytes()
            for batch in supply(samples, config, range(0, 10))
            for image, index in zip(batch["image"], batch["index"], strict=True)
            if index == 3
        ]

    first, second = looks(0), looks(1)
    assert min(len(first), len(second)) >= 3
    assert len({*first, *second}) == len(first) + len(second)


def test_host_supplies_its_own_batches_as_they_are(samples, config):
    config.augment.where = "host"
    given = device_input.make_feed(samples, config=config, steps=STEPS)
    assert "host" in given.description
    expected = list(make_train_dataset(samples, config=config, steps=STEPS))
    assert_same(prepared(given), expected)
