"""Room on the devices, and what is put there once for a whole run."""

import types

import jax
import numpy as np
import pytest

from covjax import ensemble, parallel, unpack
from covjax.export import export

DEVICES = 8


def device(limit: int | None, used: int = 0):
    stats = None if limit is None else {"bytes_limit": limit, "bytes_in_use": used}
    return types.SimpleNamespace(memory_stats=lambda: stats)


@pytest.mark.parametrize(
    ("devices", "need", "fits"),
    [
        ([device(1000)], 500, True),
        ([device(1000)], 501, False),
        ([device(1000, used=400)], 300, True),
        ([device(1000, used=400)], 301, False),
        ([device(1000), device(1000, used=900)], 100, False),  # all have to hold it
        ([device(None)], 1, False),  # it does not say
    ],
)
def test_at_most_half_of_what_is_free_is_taken(monkeypatch, devices, need, fits):
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert parallel.has_room(need) is fits


def test_what_is_put_on_all_devices_lies_there_as_replicas_do(devices, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (5, 4, 4), np.uint8))
    arrays = {
        "image": np.load(tmp_path / "images.npy", mmap_mode="r"),
        "lung": rng.integers(0, 256, (5, 2), np.uint8),
    }
    found, expected = parallel.put_on_all(arrays), parallel.replicate(arrays)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].sharding == expected[name].sharding
        assert len(found[name].addressable_shards) == DEVICES
        for shard in found[name].addressable_shards:
            np.testing.assert_array_equal(shard.data, array[None])


@pytest.mark.parametrize("tool", [ensemble, export, unpack])
def test_tools_that_train_nothing_leave_accelerators_alone(tool, tmp_path, capsys):
    before = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_platforms", "")  # all that there are
    words = {ensemble: ["a", "b", f"--workdir={tmp_path / 'out'}"], export: ["a"]}
    try:
        assert tool.main(words.get(tool, ["a", f"--workdir={tmp_path / 'out'}"])) == 2
        assert jax.config.jax_platforms == "cpu"  # pyright: ignore
    finally:
        jax.config.update("jax_platforms", before)
