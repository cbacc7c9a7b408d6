"""The cache of compiled programs, by which the first step of the next run is faster."""

import hashlib
import os
import platform
import sys
from pathlib import Path

import jax
from jax._src import compilation_cache
from jax._src.lru_cache import LRUCache

from covjax.errors import UsageError, reason
from covjax.runtime.files import cache_folder
from covjax.runtime.private import check_private_programs, private_folder

_DIGEST = 32  # bytes, in front of each entry


def keep_compiled() -> None:
    """Turns on JAX's compilation cache, unless the user turned it off.

    It lies in the folder `xla/<processor>` of covjax's cache: a program compiled for
    one processor may not run on another that shares the home. The variable
    JAX_COMPILATION_CACHE_DIR names another folder; empty, it turns the cache off.
    Programs that compile in less than a tenth of a second are left out, or in less
    than JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS.

    The cache holds native code. A folder that another user could have changed is not
    used, and a line on stderr says so.
    """
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # JAX leaves out what takes less than a second, as networks on a CPU do.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    try:
        folder = _own_folder() if named is None else _check_named(named)
    except (RuntimeError, UsageError, OSError) as error:
        folder = None
        _say(error)
    if named is not None and folder is None:
        jax.config.update("jax_compilation_cache_dir", None)
    elif folder is not None:
        jax.config.update("jax_compilation_cache_dir", folder)
        # What JAX makes its cache of; the same in 0.10 to 0.12, and no API.
        compilation_cache.LRUCache = CheckedCache  # pyright: ignore


def _say(error: Exception) -> None:
    why = str(error)
    if isinstance(error, OSError):
        why = f"{error.filename}: {reason(error)}"
    print(f"covjax: compiled programs are not kept: {why}", file=sys.stderr)


def _own_folder() -> str:
    folder = cache_folder() / "xla" / _processor()
    private_folder(folder.parent)
    private_folder(folder)
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{folder} is read-only")
    return str(folder)


def _check_named(named: str) -> str | None:
    """Returns a folder that the user named; None if it is empty."""
    if not named or "://" in named:  # in a bucket, whose rights are not known here
        return named or None
    if not os.path.exists(named):
        private_folder(Path(named))
    check_private_programs(Path(named))
    return named


class CheckedCache(LRUCache):
    """JAX's cache, with a digest in front of each entry.

    JAX warns of a damaged entry in each run and never replaces it. Here a damaged one
    is deleted: JAX compiles again and writes a new one. An entry that cannot be read or
    written is told once; the program is then compiled without the cache.
    """

    _told = False

    def get(self, key: str) -> bytes | None:
        """Returns an entry; None if it is missing or damaged."""
        name = _checked(key)
        try:
            entry = super().get(name)
        except OSError as error:
            self._tell(error)
            return None
        if entry is None:
            return None
        digest, content = entry[:_DIGEST], entry[_DIGEST:]
        if _digest_of(content) == digest:
            return content
        self._remove(name)
        return None

    def put(self, key: str, value: bytes) -> None:
        """Writes an entry, unless it exists."""
        name = _checked(key)
        try:
            super().put(name, _digest_of(value) + value)
        except OSError as error:
            self._remove(name)  # what was half-written
            self._tell(error)

    def _remove(self, name: str) -> None:
        try:
            (self.path / f"{name}-cache").unlink(missing_ok=True)
        except OSError as error:
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            _say(OSError(error.errno, error.strerror, str(self.path)))


def _checked(key: str) -> str:
    """Returns the name of an entry, which JAX alone does not look for."""
    return f"{key}-checked"


def _digest_of(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _processor() -> str:
    """Returns a name for this machine's processor and all that it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = [platform.processor()]
    able = sorted(
        {s for s in lines if s.startswith(("flags", "Features", "model name"))}
    )
    name = hashlib.sha256("\n".join(able or lines[:1]).encode()).hexdigest()[:8]
    return f"{platform.machine()}-{name}"
