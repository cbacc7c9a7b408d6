"""Images decoded once: packed copies in a cache folder, which later runs open at once.

    <cache>/image-<key>.npy     uint8 [n, size, size], then its CRC-32 (4 bytes)
    <cache>/<mask>-<key>.npy    bits, uint8 [n, ceil(size * size / 8)], likewise

A key is a hash of the size and of every file's path, length and time of change: a file
that changes, comes or goes makes another key. A copy is written under another name and
renamed once it is whole: a half-written one is never opened, and two runs that write at
once write the same.

The first opening in a process reads a copy once and compares shape and checksum; a
damaged one is deleted and made again. That is against accidents: against other users,
the folder is private (runtime/private.py). A copy is read-only and never changed in
place. It is read, not mapped into memory: where a mapped file was truncated, or its
disk fails, the system kills the process without a word.
"""

import contextlib
import errno
import functools
import hashlib
import io
import math
import os
import shutil
import sys
import tempfile
import time
import weakref
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from covjax.data.covidqu import Sample, read_masks, read_sample
from covjax.data.image_io import decode
from covjax.data.integrity import read_all
from covjax.errors import DataError, UsageError, reason
from covjax.runtime.files import sync_folder
from covjax.runtime.private import private_folder
from covjax.runtime.progress import Progress, progress_bar

FOLDER = "images"  # of covjax's cache
FORMAT = 3  # of the files, and of what is refused; part of the key
_CRC_BYTES = 4
_BLOCK = (
    1 << 16
)  # bytes read at once for the checksum: they stay in the cache of a core
_DAY = 86_400  # seconds; what is half-written for longer was left by a run that died
_HALF = ".half-"
_ANEW = "start again, which makes the packed copy again"
_WAY_ON = (
    "name another folder in COVJAX_CACHE or config.data.cache (with '', images are read"
    " from their files)"
)

Record = dict[str, np.ndarray]  # as `read_sample` returns it
_checked: set[tuple[int, ...]] = set()  # copies whose checksum this process computed


class Damaged(Exception):
    """A packed copy that is not what was written."""


class CachedSamples:
    """Reads images from packed copies; gives the records that `read_sample` gives.

    Any number of threads may read at once.
    """

    def __init__(self, copies: Mapping[str, Path], n: int, size: int):
        """Opens the copies, without computing their checksums.

        Args:
          copies: from `pack`: names of a record → files.
          n: number of images.
          size: side of the images, pixels.

        Raises:
          DataError: if a copy is missing or damaged.
        """
        self._copies, self._n, self._size = dict(copies), n, size
        # Now, not at the first image: threads must not open them at once.
        try:
            self._opened = {
                name: _open(path, (n, *_row(name, size)), check=False)
                for name, path in copies.items()
            }
        except (Damaged, OSError) as error:
            raise DataError(f"{error}: {_ANEW}") from None

    def __getstate__(self) -> tuple[dict[str, Path], int, int]:
        """Leaves the open files behind, on the way to another process."""
        return self._copies, self._n, self._size

    def __setstate__(self, state: tuple[dict[str, Path], int, int]) -> None:
        """Opens the files again."""
        self.__init__(*state)

    def __call__(self, index: int) -> Record:
        """Returns an image and its masks.

        Raises:
          DataError: if a copy was truncated meanwhile, or its disk fails.
        """
        record = {}
        for name, copy in self._opened.items():
            row = copy.read_row(index)
            if name != "image":
                row = np.unpackbits(row, count=self._size**2)
            record[name] = row.reshape(self._size, self._size)
        return record

    def count_bytes(self, names: Iterable[str]) -> int:
        """Returns how large some parts of all records are, as they lie in the copies.

        Args:
          names: of a record's parts.
        """
        return sum(_bytes(name, self._n, self._size) for name in names)

    def read_all(self, name: str) -> np.ndarray:
        """Returns one part of all records, as it lies in its copy, uint8 [n, ...].

        Args:
          name: of the part.

        Raises:
          DataError: as when one record is read.
        """
        found = np.empty((self._n, *_row(name, self._size)), np.uint8)
        for index, row in enumerate(found):
            row.flat = self._opened[name].read_row(index)
        return found


class _Copy:
    """A packed copy that is open."""

    def __init__(self, path: Path, descriptor: int, start: int, row: int):
        """Takes it; it is closed with this object.

        Args:
          path: of the copy.
          descriptor: of the open file.
          start: where its first row begins, bytes.
          row: of how many bytes a row is.
        """
        self._path, self._descriptor = path, descriptor
        self._start, self._row = start, row
        weakref.finalize(self, os.close, descriptor)

    def read_row(self, index: int) -> np.ndarray:
        """Returns a row, uint8 [bytes], which may be changed."""
        row = np.empty(self._row, np.uint8)
        at = self._start + index * self._row
        try:
            # Unlike `seek` and `read`, it leaves other threads alone.
            got = os.preadv(self._descriptor, [row.data], at)
        except OSError as error:
            raise DataError(f"{self._path}: {reason(error)}: {_ANEW}") from None
        if got < self._row:
            raise DataError(f"{self._path}: truncated while it was read: {_ANEW}")
        return row


def pack(
    samples: Sequence[Sample], size: int, cache: Path, progress: Progress | None = None
) -> CachedSamples:
    """Returns the packed copies of some images; missing or damaged ones are made.

    Args:
      samples: in the order in which they will be read; all with the same masks.
      size: side, pixels.
      cache: folder for the copies alone; made private, or made if missing.
      progress: told how far the writing is.

    Raises:
      BadSamples: if images cannot be read, once all were looked at.
      DataError: if a copy does not fit on the disk or cannot be written, or if others
        could change the folder. Nothing half-written is left behind in either case.
    """
    copies = {
        name: cache / f"{name}-{_key(name, paths, size)}.npy"
        for name, paths in _files(samples).items()
    }
    try:
        shared = private_folder(cache, may_share=True)
        missing = {
            name: path
            for name, path in copies.items()
            if not _is_whole(path, (len(samples), *_row(name, size)))
        }
        if missing:
            _remove_abandoned(cache)
            _check_room(
                cache, sum(_bytes(name, len(samples), size) for name in missing)
            )
            _write(samples, size, missing, progress, mode=0o440 if shared else 0o400)
    except UsageError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{cache}: not used for packed copies: {error}; {_WAY_ON}"
        ) from None
    except OSError as error:
        raise DataError(
            f"{cache}: packed copies cannot be kept there ({reason(error)}): {_WAY_ON}"
        ) from None
    return CachedSamples(copies, len(samples), size)


def _check_room(cache: Path, need: int) -> None:
    free = shutil.disk_usage(cache).free
    if need > free:
        told = f"{need / 1e6:.1f} MB needed, {free / 2**30:.1f} GiB are free"
        raise OSError(errno.ENOSPC, told)


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    """Tells whether there is a copy; a damaged one is deleted, which is said."""
    try:
        _open(path, shape, check=True)
        return True
    except FileNotFoundError:
        return False
    except Damaged as error:
        path.unlink(missing_ok=True)
        print(f"{error}: deleted, and made again", file=sys.stderr, flush=True)
        return False


def _open(path: Path, shape: tuple[int, ...], *, check: bool) -> _Copy:
    """Opens a copy.

    Args:
      path: of the copy.
      shape: that it has to have.
      check: whether its checksum is computed, unless this process did so before.

    Raises:
      Damaged: if it is not what was written.
      OSError: if it cannot be read.
    """
    # What is read is the file that was checked, whatever its name stands for later.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        start = len(_header(shape))
        state = os.fstat(descriptor)
        expected = start + math.prod(shape) + _CRC_BYTES
        if state.st_size != expected:
            raise Damaged(f"{path}: {state.st_size:,} bytes of {expected:,}")
        identity = state.st_dev, state.st_ino, state.st_mtime_ns, state.st_ctime_ns
        if check and identity not in _checked:
            _check(path, file, shape)
            _checked.add(identity)
        return _Copy(path, os.dup(descriptor), start, math.prod(shape[1:]))


def _check(path: Path, file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Compares header and checksum."""
    header = _header(shape)
    if file.read(len(header)) != header:
        raise Damaged(f"{path}: not the shape {shape}")
    left, crc = math.prod(shape), 0
    while left:
        block = file.read(min(_BLOCK, left))
        if not block:
            raise Damaged(f"{path}: truncated")
        crc, left = zlib.crc32(block, crc), left - len(block)
    if file.read(_CRC_BYTES) != crc.to_bytes(_CRC_BYTES, "little"):
        raise Damaged(f"{path}: damaged (its checksum differs)")


def _header(shape: tuple[int, ...]) -> bytes:
    """Returns the head of a .npy file of uint8."""
    head = io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, about)
    return head.getvalue()


def pack_with_bar(samples: Sequence[Sample], size: int, cache: Path) -> CachedSamples:
    """Does what `pack` does; a terminal shows how far it is."""
    with progress_bar("decoding images once") as progress:
        return pack(samples, size, cache, progress)


def hide_earlier(cache: Path) -> None:
    """Takes from other users the copies that earlier versions kept in the cache itself.

    These are no longer read.

    Args:
      cache: parent of the folder that `pack` was given, so that it was checked.
    """
    for path in cache.glob("*-????????????????????????????????.npy"):
        with contextlib.suppress(OSError):
            if not path.is_symlink():
                path.chmod(0o600)


def _files(samples: Sequence[Sample]) -> dict[str, list[Path]]:
    """Returns the files of every part of a record, without the parts there are not."""
    parts = {
        "image": [sample.image for sample in samples],
        "lung": [sample.lung_mask for sample in samples],
        "infection": [sample.infection_mask for sample in samples],
        "found_lung": [sample.found_lung for sample in samples],
    }
    return {
        name: [path for path in paths if path is not None]
        for name, paths in parts.items()
        if None not in paths
    }


def _key(name: str, paths: Sequence[Path], size: int) -> str:
    """Returns a name for some files as they are now, at this size."""
    digest = hashlib.sha256(f"{FORMAT} {name} {size}\n".encode())
    here = os.getcwd()  # once: `absolute` would ask for each of 100,000 files
    for path in paths:
        try:
            told = os.stat(path)
            state = f"{told.st_size}\0{told.st_mtime_ns}"
        except OSError:
            state = ""  # no copy has this name: the reading says what is wrong
        digest.update(os.fsencode(f"{os.path.join(here, path)}\0{state}\n"))
    return digest.hexdigest()[:32]


def _row(name: str, size: int) -> tuple[int, ...]:
    """Returns the shape of one image's part, uint8."""
    return (size, size) if name == "image" else (-(-(size**2) // 8),)


def _bytes(name: str, n: int, size: int) -> int:
    return n * int(np.prod(_row(name, size)))


def _write(
    samples: Sequence[Sample],
    size: int,
    copies: Mapping[str, Path],
    progress: Progress | None,
    mode: int,
) -> None:
    with contextlib.ExitStack() as stack:
        shapes = {name: (len(samples), *_row(name, size)) for name in copies}
        files = {
            name: stack.enter_context(_Growing(path, shapes[name], mode))
            for name, path in copies.items()
        }
        read = functools.partial(_encode, size=size, wanted=copies)
        for records in read_all(samples, read, progress):
            for name, file in files.items():
                file.append(np.stack([record[name] for record in records]))


def _encode(sample: Sample, size: int, wanted: Mapping[str, Path]) -> Record:
    if "image" in wanted:
        record = read_sample(sample, size)
    else:  # its size is all that is asked of the image
        record = read_masks(sample, size, image_shape=decode(sample.image).shape)
    return {k: v if k == "image" else np.packbits(v) for k, v in record.items()}


class _Growing:
    """A packed copy, written from front to back and renamed once it is whole."""

    def __init__(self, path: Path, shape: tuple[int, ...], mode: int):
        self._path, self._mode, self._crc = path, mode, 0
        descriptor, name = tempfile.mkstemp(prefix=_HALF, dir=path.parent)
        self._half, self._file = Path(name), os.fdopen(descriptor, "wb")
        self._file.write(_header(shape))

    def append(self, values: np.ndarray) -> None:
        data = np.ascontiguousarray(values).data
        self._crc = zlib.crc32(data, self._crc)
        self._file.write(data)

    def __enter__(self) -> "_Growing":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._file.write(self._crc.to_bytes(_CRC_BYTES, "little"))
                self._file.flush()
                os.fsync(self._file.fileno())
                os.chmod(self._half, self._mode)
                self._half.replace(self._path)
                sync_folder(self._path.parent)
        finally:
            self._half.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the disk is full: said already
                self._file.close()


def _remove_abandoned(cache: Path) -> None:
    for path in cache.glob(f"{_HALF}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _DAY:
                path.unlink()
