"""Packed copies: the records of the images, and never a stale or a half-written one."""

import concurrent.futures
import errno
import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import infection
from covjax.data import image_cache, integrity
from covjax.data.covidqu import Sample, read_sample
from covjax.data.image_cache import CachedSamples, pack
from covjax.data.pipeline import ReadSamples, make_reader, make_train_dataset
from covjax.errors import DataError
from covjax.runtime import private

SIDE = 40  # of the files


def write_images(folder: Path, n: int, *, infected: bool = True) -> list[Sample]:
    """Images of noise with masks of noise, which no packing can get right by chance."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for k in range(n):
        rng = np.random.default_rng(k)
        paths = [folder / f"{k}-{kind}.png" for kind in ("image", "lung", "sick")]
        sample = rng.integers(0, 256, (SIDE, SIDE), np.uint8)
        masks = 255 * (rng.random((2, SIDE, SIDE)) < 0.4).astype(np.uint8)
        for path, array in zip(paths, (sample, *masks), strict=True):
            Image.fromarray(array).save(path)
        sick = paths[2] if infected else None
        samples.append(
            Sample(f"{k}.png", "COVID-19", "Train", paths[0], paths[1], sick)
        )
    return samples


@pytest.fixture
def samples(tmp_path) -> list[Sample]:
    return write_images(tmp_path / "images", 7)


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "new" / "cache"


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Names of the images that are read from their files from here on."""
    names = []
    for name in ("read_sample", "read_masks"):
        read = getattr(image_cache, name)

        def recorded(sample, size, read=read, **more):
            names.append(sample.name)
            return read(sample, size, **more)

        monkeypatch.setattr(image_cache, name, recorded)
    return names


def assert_same(read: CachedSamples, samples: list[Sample], size: int) -> None:
    for k, sample in enumerate(samples):
        expected, record = read_sample(sample, size), read(k)
        assert list(record) == list(expected)
        for name, array in expected.items():
            assert record[name].dtype == array.dtype == np.uint8
            np.testing.assert_array_equal(record[name], array, err_msg=name)


# 40: as the files are. 21: no multiple of 8 bits. 64: enlarged.
@pytest.mark.parametrize("size", [SIDE, 21, 64])
@pytest.mark.parametrize("infected", [True, False])
def test_records_are_those_of_the_images_themselves(tmp_path, cache, size, infected):
    samples = write_images(tmp_path / "images", 5, infected=infected)
    assert_same(pack(samples, size, cache), samples, size)
    assert_same(pack(samples, size, cache), samples, size)  # from the copies


def test_more_images_than_are_decoded_at_once(samples, cache, monkeypatch):
    monkeypatch.setattr(integrity, "_AT_ONCE", 3)
    told = []
    read = pack(samples, SIDE, cache, lambda done, n: told.append((done, n)))
    assert_same(read, samples, SIDE)
    assert told == [(3, 7), (6, 7), (7, 7)]


def test_parts_of_all_images_are_as_they_lie_in_the_copies(samples, cache):
    read = pack(samples, SIDE, cache)
    records = [read_sample(sample, SIDE) for sample in samples]
    images = np.stack([record["image"] for record in records])
    np.testing.assert_array_equal(read.read_all("image"), images)
    masks = np.stack([np.packbits(record["lung"]) for record in records])
    np.testing.assert_array_equal(read.read_all("lung"), masks)
    assert read.count_bytes(["image", "lung"]) == images.nbytes + masks.nbytes


def test_a_second_run_decodes_nothing(samples, cache, decoded):
    pack(samples, SIDE, cache)
    assert sorted(decoded) == sorted(sample.name for sample in samples)
    decoded.clear()
    assert_same(pack(samples, SIDE, cache), samples, SIDE)
    assert decoded == []


def test_what_comes_back_may_be_changed(samples, cache):
    read = pack(samples, SIDE, cache)
    for array in read(0).values():
        array[:] = 0
    assert_same(read, samples, SIDE)


def test_masks_are_kept_as_bits(samples, cache):
    pack(samples, SIDE, cache)
    for path in cache.iterdir():
        header, checksum = 128, 4
        pixels = len(samples) * SIDE * SIDE
        size = pixels if path.name.startswith("image-") else pixels // 8
        assert path.stat().st_size == header + size + checksum, path.name
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("change", ["pixels", "time", "less", "more", "order", "size"])
def test_images_that_changed_are_read_anew(tmp_path, samples, cache, decoded, change):
    pack(samples, SIDE, cache)
    decoded.clear()
    size = SIDE
    if change == "pixels":
        Image.fromarray(np.full((SIDE, SIDE), 9, np.uint8)).save(samples[3].image)
    elif change == "time":  # of as many bytes, perhaps
        os.utime(samples[3].image, ns=(1, 1))
    elif change == "less":
        samples = samples[:-1]
    elif change == "more":
        samples = write_images(tmp_path / "images", 8)
    elif change == "order":
        samples = samples[::-1]
    else:
        size = 32
    assert_same(pack(samples, size, cache), samples, size)
    assert len(decoded) >= len(samples)


def test_a_mask_that_changed_is_read_anew_alone(samples, cache, decoded):
    pack(samples, SIDE, cache)
    decoded.clear()
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(samples[2].lung_mask)
    read = pack(samples, SIDE, cache)
    assert_same(read, samples, SIDE)
    assert not read(2)["lung"].any()
    after = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert before.items() <= after.items() and len(after) == len(before) + 1


def test_found_lungs_are_packed_beside_the_rest(samples, cache, decoded):
    pack(samples, SIDE, cache)
    decoded.clear()
    # Another image's lungs, so that they cannot be taken for its own.
    found = [
        Sample(f.name, f.label, f.split, f.image, f.lung_mask, f.infection_mask, lungs)
        for f, lungs in zip(
            samples,
            [sample.lung_mask for sample in samples[1:] + samples[:1]],
            strict=True,
        )
    ]
    read = pack(found, SIDE, cache)
    assert_same(read, found, SIDE)
    assert len(list(cache.iterdir())) == 4


def test_a_broken_image_is_named_and_leaves_nothing(samples, cache):
    samples[5].image.write_bytes(samples[5].image.read_bytes()[:200])
    with pytest.raises(DataError) as caught:
        pack(samples, SIDE, cache)
    assert str(caught.value).startswith(f"{samples[5].image}: cannot be read")
    assert list(cache.iterdir()) == []


def test_a_mask_of_another_size_is_named_before_anything_is_trained(samples, cache):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(samples[1].infection_mask)
    with pytest.raises(DataError, match="1-sick.png: mask of 8x8 pixels"):
        pack(samples, SIDE, cache)


def test_an_image_that_is_gone_is_named(samples, cache):
    samples[0].lung_mask.unlink()
    with pytest.raises(DataError, match="0-lung.png: no such file"):
        pack(samples, SIDE, cache)


def test_a_disk_without_room_is_said_before_anything_is_written(
    samples, cache, monkeypatch
):
    usage = shutil.disk_usage(cache.parent.parent)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError) as caught:
        pack(samples, SIDE, cache)
    said = str(caught.value)
    assert said.startswith(
        f"{cache}: packed copies cannot be kept there (0.0 MB needed"
    )
    assert "config.data.cache" in said and "\n" not in said
    assert list(cache.iterdir()) == []


def test_a_disk_that_fills_up_is_said_and_leaves_nothing(samples, cache, monkeypatch):
    monkeypatch.setattr(integrity, "_AT_ONCE", 2)
    append = image_cache._Growing.append

    def full(self, values):
        if self._file.tell() > 2 * SIDE * SIDE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, values)

    monkeypatch.setattr(image_cache._Growing, "append", full)
    with pytest.raises(DataError, match="No space left on device"):
        pack(samples, SIDE, cache)
    assert list(cache.iterdir()) == []
    monkeypatch.undo()
    assert_same(pack(samples, SIDE, cache), samples, SIDE)


def test_a_file_in_place_of_the_folder_is_said(samples, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="config.data.cache"):
        pack(samples, SIDE, tmp_path / "file")


def test_what_a_killed_run_left_is_never_opened_and_goes_in_time(samples, cache):
    cache.mkdir(parents=True)
    old, new = cache / ".half-old", cache / ".half-new"
    for path in (old, new):
        path.write_bytes(b"half")
    long_ago = time.time() - 2 * 86400
    os.utime(old, (long_ago, long_ago))
    assert_same(pack(samples, SIDE, cache), samples, SIDE)
    assert not old.exists() and new.exists()  # of a run that may be at it


def test_two_runs_at_once_do_not_spoil_each_other(samples, cache, monkeypatch):
    monkeypatch.setattr(integrity, "_AT_ONCE", 1)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        readers = list(threads.map(lambda _: pack(samples, SIDE, cache), range(4)))
    for read in readers:
        assert_same(read, samples, SIDE)
    assert len(list(cache.iterdir())) == 3


def test_a_reader_goes_to_another_process(samples, cache):
    read = pickle.loads(pickle.dumps(pack(samples, SIDE, cache)))
    assert_same(read, samples, SIDE)


def test_batches_of_packed_images_are_those_of_the_images(samples, cache):
    config = infection.get_config("phantom")
    config.data.image_size, config.train.batch_size = 32, 2
    batches = {}
    for folder in ("", str(cache)):
        config.data.cache = folder
        batches[folder] = list(
            make_train_dataset(samples, config=config, steps=range(9))
        )
    for one, other in zip(*batches.values(), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_the_cache_is_where_the_config_or_the_environment_says(
    samples, tmp_path, monkeypatch
):
    data = infection.get_config("phantom").data
    data.image_size = SIDE
    monkeypatch.setenv("COVJAX_CACHE", str(tmp_path / "of-environment"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for setting, folder in (
        ("auto", tmp_path / "of-environment"),
        (str(tmp_path / "named"), tmp_path / "named"),
    ):
        data.cache = setting
        assert_same(make_reader(samples, data), samples, SIDE)  # type: ignore[arg-type]
        assert len(list((folder / "images").iterdir())) == 3
    monkeypatch.delenv("COVJAX_CACHE")
    data.cache = "auto"
    make_reader(samples, data)
    assert (tmp_path / "home" / ".cache" / "covjax" / "images").is_dir()
    data.cache = ""
    assert isinstance(make_reader(samples, data), ReadSamples)


def test_a_mask_that_became_another_size_is_named_beside_a_copy_of_the_image(
    samples, cache
):
    pack(samples, SIDE, cache)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(samples[1].infection_mask)
    with pytest.raises(
        DataError, match="1-sick.png: mask of 8x8 pixels for an image of"
    ):
        pack(samples, SIDE, cache)


def lung_copy(cache: Path) -> Path:
    (path,) = cache.glob("lung-*")
    return path


def zero(content: bytes) -> bytes:
    return content[:200] + bytes(len(content) - 200)


DAMAGE = {
    "empty": lambda content: b"",
    "header cut": lambda content: content[:60],
    "cut": lambda content: content[:-1],
    "longer": lambda content: content + b"0",
    "zeroed": zero,
    "a bit": lambda content: content[:500] + bytes([content[500] ^ 1]) + content[501:],
    "shape": lambda content: content.replace(b"(7, 200)", b"(200, 7)"),
    "dtype": lambda content: content.replace(b"|u1", b"|i1"),
    "checksum": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_copy_is_made_again(samples, cache, decoded, damage, capfd):
    pack(samples, SIDE, cache)
    path = lung_copy(cache)
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    decoded.clear()
    assert_same(pack(samples, SIDE, cache), samples, SIDE)
    assert path.read_bytes() == whole and len(decoded) == len(samples)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"{path}: ") and line.endswith("deleted, and made again")


def test_a_copy_is_read_once_for_its_checksum(samples, cache, monkeypatch):
    checked, check = [], image_cache._check
    monkeypatch.setattr(
        image_cache, "_check", lambda *a: checked.append(a[0]) or check(*a)
    )
    pack(samples, SIDE, cache)
    read = pack(samples, SIDE, cache)
    assert sorted(checked) == sorted(cache.iterdir())
    pack(samples, SIDE, cache)
    pickle.loads(pickle.dumps(read))  # as on the way to a worker
    assert len(checked) == 3


def test_a_copy_that_is_cut_before_a_worker_opens_it_is_named(samples, cache):
    sent = pickle.dumps(pack(samples, SIDE, cache))
    path = lung_copy(cache)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:300])
    with pytest.raises(DataError, match="300 bytes of 1,532: start again"):
        pickle.loads(sent)


def test_a_copy_that_is_replaced_stays_readable_where_it_is_open(samples, cache):
    read = pack(samples, SIDE, cache)
    other = cache / "other"
    other.write_bytes(b"")
    os.replace(other, lung_copy(cache))
    assert_same(read, samples, SIDE)


@pytest.mark.parametrize("cut", [300, 1500])  # no row of it, a part of the last
def test_a_copy_that_is_truncated_while_it_is_open_is_named(samples, cache, cut):
    read = pack(samples, SIDE, cache)
    lung_copy(cache).chmod(0o600)
    os.truncate(lung_copy(cache), cut)
    assert_same(read, samples[: (cut - 128) // (SIDE * SIDE // 8)], SIDE)
    with pytest.raises(DataError, match="lung-.*npy: truncated .*: start again"):
        read(6)
    with pytest.raises(DataError, match="lung-.*npy: truncated"):
        read.read_all("lung")


def test_a_disk_that_fails_while_an_image_is_read_is_named(samples, cache, monkeypatch):
    read = pack(samples, SIDE, cache)

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(DataError, match="image-.*npy: Input/output error: start"):
        read(0)


def test_copies_are_closed_with_their_reader(samples, cache):
    before = set(os.listdir("/proc/self/fd"))
    read = pack(samples, SIDE, cache)
    assert len(set(os.listdir("/proc/self/fd")) - before) == 3
    del read
    assert set(os.listdir("/proc/self/fd")) <= before


def test_an_error_of_the_disk_is_said_and_not_taken_for_damage(
    samples, cache, monkeypatch
):
    pack(samples, SIDE, cache)
    before = sorted(cache.iterdir())

    def fail(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(image_cache, "_checked", set())
    monkeypatch.setattr(image_cache, "_check", fail)
    with pytest.raises(
        DataError, match="cannot be kept there .Input/output error.: na"
    ):
        pack(samples, SIDE, cache)
    assert sorted(cache.iterdir()) == before


def test_the_names_of_copies_are_brought_to_the_disk(samples, cache, monkeypatch):
    synced = []
    monkeypatch.setattr(image_cache, "sync_folder", synced.append)
    pack(samples, SIDE, cache)
    assert synced == 3 * [cache]


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o000])
def test_nobody_else_can_read_or_change_a_copy(samples, cache, umask):
    before = os.umask(umask)
    try:
        pack(samples, SIDE, cache)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in cache.iterdir()}
    assert modes == {0o400}
    assert cache.stat().st_mode & 0o777 == 0o700


def test_a_cache_that_is_open_is_closed(samples, cache):
    pack(samples, SIDE, cache)
    cache.chmod(0o755)
    for path in cache.iterdir():
        path.chmod(0o644)
    assert_same(pack(samples, SIDE, cache), samples, SIDE)
    modes = {path.stat().st_mode & 0o077 for path in [cache, *cache.iterdir()]}
    assert modes == {0}


def test_copies_of_before_are_closed(samples, tmp_path):
    data = infection.get_config("phantom").data
    data.image_size, data.cache = SIDE, str(tmp_path / "cache")
    earlier = tmp_path / "cache" / f"image-{'0a' * 16}.npy"
    mine = tmp_path / "cache" / "notes-of-mine.npy"
    earlier.parent.mkdir()
    for path in (earlier, mine):
        path.touch()
        path.chmod(0o644)
    make_reader(samples, data)
    assert earlier.stat().st_mode & 0o777 == 0o600
    assert mine.stat().st_mode & 0o777 == 0o644


def test_a_folder_that_everybody_can_change_is_refused(samples, cache):
    cache.mkdir(parents=True)
    cache.parent.chmod(0o777)
    with pytest.raises(DataError) as caught:
        pack(samples, SIDE, cache)
    said = str(caught.value)
    assert f"every user can write to {cache.parent}" in said and "\n" not in said
    assert "config.data.cache" in said and list(cache.iterdir()) == []


def test_a_group_shares_the_copies_where_that_was_asked_for(
    samples, cache, monkeypatch
):
    monkeypatch.setattr(private, "_is_own_group", lambda _: False)  # it has others
    cache.parent.mkdir()
    cache.parent.chmod(0o2770)
    assert_same(pack(samples, SIDE, cache), samples, SIDE)
    assert cache.stat().st_mode & 0o7777 == 0o2770
    modes = {path.stat().st_mode & 0o777 for path in cache.iterdir()}
    assert modes == {0o440}


def test_a_user_without_a_home_is_told_so(samples):
    data = infection.get_config("phantom").data
    data.cache = "~nobody-of-that-name/cache"
    with pytest.raises(DataError, match="there is no such home.*COVJAX_CACHE"):
        make_reader(samples, data)


def test_two_sets_of_files_of_one_length_and_time_are_told_apart(tmp_path, cache):
    sets = []
    for name in ("a", "b"):
        samples = write_images(tmp_path / name, 2)
        for sample in samples:
            # A bitmap's length says nothing of its pixels.
            pixels = np.full((SIDE, SIDE), ord(name), np.uint8)
            Image.fromarray(pixels).save(sample.image, format="BMP")
            os.utime(sample.image, ns=(10**18, 10**18))
        sets.append(samples)
    for samples in sets:
        assert_same(pack(samples, SIDE, cache), samples, SIDE)
