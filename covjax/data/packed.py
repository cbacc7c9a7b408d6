"""Films decoded once: packed copies in a cache folder, which later runs open at once.

    <cache>/image-<key>.npy     uint8 [n, size, size]
    <cache>/<mask>-<key>.npy    bits, uint8 [n, ceil(size * size / 8)]

A key is a hash of the size and of every file's path, length and time of change: a file
that changes, comes or goes makes another key. A copy is written under another name and
renamed once it is whole: a half-written one is never opened, and two runs that write at
once write the same.
"""

import contextlib
import errno
import functools
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from covjax.data.covidqu import Film, read_film, read_masks
from covjax.data.decode import decode
from covjax.data.progress import Progress, progress_bar
from covjax.data.readable import read_all
from covjax.errors import DataError
from covjax.system.files import MODE

FORMAT = 2  # of the files, and of what is refused; part of the key
_DAY = 86_400  # seconds; what is half-written for longer was left by a run that died
_HALF = ".half-"

Record = dict[str, np.ndarray]  # as `read_film` returns it


class PackedFilms:
    """Reads films from packed copies; gives the records that `read_film` gives.

    Attributes:
      arrays: names of a record → the copies as they lie in their files, uint8 [n, …].
    """

    def __init__(self, copies: Mapping[str, Path], size: int):
        """Opens the copies.

        Args:
          copies: from `pack`: names of a record → files.
          size: side of the films, pixels.
        """
        self._copies, self._size = dict(copies), size
        # Now, not at the first film: threads must not open them at once.
        self.arrays = {name: _open(path) for name, path in copies.items()}

    def __getstate__(self) -> tuple[dict[str, Path], int]:
        """Leaves the open files behind, on the way to another process."""
        return self._copies, self._size

    def __setstate__(self, state: tuple[dict[str, Path], int]) -> None:
        """Opens the files again."""
        self.__init__(*state)

    def __call__(self, index: int) -> Record:
        """Returns a film and its masks."""
        record = {}
        for name, array in self.arrays.items():
            if name == "image":
                record[name] = np.array(array[index])
            else:
                mask = np.unpackbits(array[index], count=self._size**2)
                record[name] = mask.reshape(self._size, self._size)
        return record


def pack(
    films: Sequence[Film], size: int, cache: Path, progress: Progress | None = None
) -> PackedFilms:
    """Returns the packed copies of some films; those that are missing are made.

    Args:
      films: in the order in which they will be read; all with the same masks.
      size: side, pixels.
      cache: folder that the copies lie in; made if missing.
      progress: told how far the writing is.

    Raises:
      BadFilms: if films cannot be read, once all were looked at.
      DataError: if a copy does not fit on the disk or cannot be written. Nothing
        half-written is left behind in either case.
    """
    copies = {
        name: cache / f"{name}-{_key(name, paths, size)}.npy"
        for name, paths in _files(films).items()
    }
    missing = {name: path for name, path in copies.items() if not path.exists()}
    if missing:
        need = sum(_bytes(name, len(films), size) for name in missing)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(cache)
            free = shutil.disk_usage(cache).free
            if need > free:
                raise OSError(errno.ENOSPC, f"{free / 2**30:.1f} GiB are free")
            _write(films, size, missing, progress)
        except OSError as error:
            raise DataError(
                f"{cache}: a packed copy of {need / 1e6:.1f} MB cannot be written there"
                f" ({error.strerror}): name another folder in COVJAX_CACHE or"
                " config.data.cache (with '', films are read from their files)"
            ) from None
    return PackedFilms(copies, size)


def _open(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        raise DataError(
            f"{path}: a damaged copy of films; delete it, and it is made anew"
        ) from None


def pack_with_bar(films: Sequence[Film], size: int, cache: Path) -> PackedFilms:
    """Does what `pack` does; a terminal shows how far it is."""
    with progress_bar("decoding films once") as progress:
        return pack(films, size, cache, progress)


def _files(films: Sequence[Film]) -> dict[str, list[Path]]:
    """Returns the files of every part of a record, without the parts there are not."""
    parts = {
        "image": [film.image for film in films],
        "lung": [film.lung_mask for film in films],
        "infection": [film.infection_mask for film in films],
        "found_lung": [film.found_lung for film in films],
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
    """Returns the shape of one film's part, uint8."""
    return (size, size) if name == "image" else (-(-(size**2) // 8),)


def _bytes(name: str, n: int, size: int) -> int:
    return n * int(np.prod(_row(name, size)))


def _write(
    films: Sequence[Film],
    size: int,
    copies: Mapping[str, Path],
    progress: Progress | None,
) -> None:
    with contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context(_Growing(path, (len(films), *_row(name, size))))
            for name, path in copies.items()
        }
        read = functools.partial(_encode, size=size, wanted=copies)
        for records in read_all(films, read, progress):
            for name, file in files.items():
                file.append(np.stack([record[name] for record in records]))


def _encode(film: Film, size: int, wanted: Mapping[str, Path]) -> Record:
    if "image" in wanted:
        record = read_film(film, size)
    else:  # its size is all that is asked of the film
        record = read_masks(film, size, film_shape=decode(film.image).shape)
    return {k: v if k == "image" else np.packbits(v) for k, v in record.items()}


class _Growing:
    """A .npy file of uint8, written from front to back and renamed once it is whole.

    Not through a memory map, where a full disk is a signal and not an error.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]):
        self._path = path
        descriptor, name = tempfile.mkstemp(prefix=_HALF, dir=path.parent)
        self._half, self._file = Path(name), os.fdopen(descriptor, "wb")
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, values: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(values).data)

    def __enter__(self) -> "_Growing":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
                os.chmod(self._half, MODE)
                self._half.replace(self._path)
        finally:
            self._half.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the disk is full: said already
                self._file.close()


def _remove_abandoned(cache: Path) -> None:
    for path in cache.glob(f"{_HALF}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _DAY:
                path.unlink()
