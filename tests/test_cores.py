"""How many workers load images: the config's number, or the machine's."""

import os

import grain
import pytest

from configs import infection
from covjax import parallel
from covjax.data import decode_limits
from covjax.data.pipeline import make_eval_dataset
from covjax.data.source import find_samples
from covjax.runtime.cores import count_cores, count_workers
from covjax.train import device_input


@pytest.mark.parametrize(
    ("cores", "expected"),
    [(1, 0), (2, 0), (3, 0), (4, 2), (7, 3), (16, 8), (32, 16), (208, 16)],
)
def test_an_accelerator_is_fed_by_half_of_the_cores(cores, expected):
    assert count_workers(-1, cores=cores, accelerated=True) == expected
    assert count_workers(-1, cores=cores, accelerated=False) == 0


@pytest.mark.parametrize("wanted", [0, 1, 5, 40])
def test_a_number_in_the_config_stands(wanted):
    for cores in (1, 8):
        for accelerated in (False, True):
            found = count_workers(wanted, cores=cores, accelerated=accelerated)
            assert found == wanted


def test_pipelines_start_so_many_workers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = infection.get_config("phantom")
    config.data.phantom_images, config.data.image_size = (4, 2, 2), 32
    config.train.batch_size = 2
    samples = find_samples(config)[1]["Train"]
    asked = []
    options = grain.MultiprocessingOptions

    def recorded(num_workers: int):
        asked.append(num_workers)
        return options(num_workers)

    monkeypatch.setattr(grain, "MultiprocessingOptions", recorded)
    monkeypatch.setattr(device_input, "count_cores", lambda: 12)
    monkeypatch.setattr(parallel, "has_room", lambda _: True)
    found = {}
    for workers in (-1, 0, 3):
        config.data.workers = workers
        for accelerated in (False, True):
            monkeypatch.setattr(parallel, "is_accelerated", lambda a=accelerated: a)
            device_input.make_feed(samples, config=config, steps=range(2))
            found[workers, accelerated], asked[:] = list(asked), []
        make_eval_dataset(samples, config=config)
        found[workers, "evaluation"], asked[:] = list(asked), []
        config.augment.where = "device"  # and the images, too: keys need none
        device_input.make_feed(samples, config=config, steps=range(2))
        found[workers, "keys"], asked[:] = list(asked), []
        config.augment.where = "host"
    assert found == {
        (-1, False): [],
        (-1, True): [6],
        (-1, "evaluation"): [],
        (-1, "keys"): [],
        (0, False): [],
        (0, True): [],
        (0, "evaluation"): [],
        (0, "keys"): [],
        (3, False): [3],
        (3, True): [3],
        (3, "evaluation"): [3],
        (3, "keys"): [],
    }


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert count_cores() == 2  # of a container
    monkeypatch.delattr(os, "sched_getaffinity")
    assert count_cores() == 64


# A page is 4 KiB; each reader may take 2 GiB.
@pytest.mark.parametrize(
    ("cores", "pages", "expected"),
    [(4, 2**24, 4), (64, 2**24, 16), (64, 2**21, 4), (8, 2**20 - 1, 1), (8, 9, 1)],
)
def test_readers_fit_in_the_memory(monkeypatch, cores, pages, expected):
    told = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": pages}
    monkeypatch.setattr(decode_limits, "count_cores", lambda: cores)
    monkeypatch.setattr(os, "sysconf", told.__getitem__)
    assert decode_limits.count_readers() == expected
