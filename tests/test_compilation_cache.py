"""Compiled programs are kept where the user has them kept, and nobody else can go."""

import errno
import os
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import jax
import pytest

from covjax.runtime.compilation_cache import CheckedCache, keep_compiled

_LEAST = "jax_persistent_cache_min_compile_time_secs"


@pytest.fixture(autouse=True)
def untouched():
    """JAX's own settings, as they were."""
    names = "jax_compilation_cache_dir", _LEAST
    before = {name: jax.config.values[name] for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def kept_in() -> str | None:
    return jax.config.jax_compilation_cache_dir  # pyright: ignore


def test_programs_lie_in_the_cache_of_covjax(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("COVJAX_CACHE", str(tmp_path))
    keep_compiled()
    (folder,) = (tmp_path / "xla").iterdir()
    assert kept_in() == str(folder)
    monkeypatch.setenv("COVJAX_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    keep_compiled()
    of_home = tmp_path / "home" / ".cache" / "covjax" / "xla" / folder.name
    assert kept_in() == str(of_home)


def test_another_processor_has_another_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("COVJAX_CACHE", str(tmp_path))
    text = "processor : {}\nmodel name : A\ncpu MHz : {}\nflags : sse2{}\n"
    found = []
    for told in ((0, 2400, ""), (0, 3100, ""), (0, 2400, " avx512f")):
        monkeypatch.setattr(Path, "read_text", lambda _, told=told: text.format(*told))
        keep_compiled()
        found.append(kept_in())
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("name", ["", "elsewhere"])
def test_the_variable_of_jax_wins(monkeypatch, tmp_path, name):
    named = name and str(tmp_path / name)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", named)
    monkeypatch.setenv("COVJAX_CACHE", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", named or None)  # as at its import
    keep_compiled()
    assert kept_in() == (named or None)


def test_without_a_folder_to_write_to_nothing_is_kept(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    (tmp_path / "file").touch()
    monkeypatch.setenv("COVJAX_CACHE", str(tmp_path / "file"))
    keep_compiled()
    monkeypatch.setenv("COVJAX_CACHE", "~nobody-of-this-name/cache")
    keep_compiled()
    monkeypatch.setenv("COVJAX_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)  # read-only
    keep_compiled()
    assert kept_in() is None
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert all(line.startswith("covjax: compiled programs are not") for line in said)


@pytest.mark.parametrize(("named", "kept"), [(None, 0.1), ("3", 3.0)])
def test_networks_that_compile_in_less_than_a_second_are_kept(
    monkeypatch, tmp_path, named, kept
):
    name = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    monkeypatch.delenv(name, raising=False)
    if named is not None:
        monkeypatch.setenv(name, named)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "elsewhere"))
    jax.config.update(_LEAST, float(named or 1))  # as at its import
    keep_compiled()
    assert jax.config.values[_LEAST] == kept


def test_the_folder_is_of_its_owner_alone(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("COVJAX_CACHE", str(tmp_path))
    keep_compiled()
    folder = Path(kept_in() or "")
    folder.chmod(0o755)
    (folder / "entry").touch(mode=0o644)
    keep_compiled()
    modes = {p.stat().st_mode & 0o777 for p in (folder, folder.parent)}
    assert modes == {0o700}
    assert (folder / "entry").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("named", [True, False])
def test_a_folder_that_others_can_change_is_not_used(
    monkeypatch, tmp_path, named, capsys
):
    folder = tmp_path / "cache"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    name = "JAX_COMPILATION_CACHE_DIR" if named else "COVJAX_CACHE"
    monkeypatch.setenv(name, str(folder))
    # As JAX has it when it is imported.
    jax.config.update("jax_compilation_cache_dir", str(folder) if named else None)
    folder.mkdir()
    folder.chmod(0o777)
    keep_compiled()
    assert kept_in() is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"covjax: compiled programs are not kept: every user can write to {folder}"
        f" (chmod o-w {folder})"
    )


def cache_of(folder: Path) -> CheckedCache:
    return CheckedCache(str(folder), max_size=-1)


def test_an_entry_comes_back_as_it_was(tmp_path):
    cache_of(tmp_path).put("key", b"program")
    assert cache_of(tmp_path).get("key") == b"program"
    assert cache_of(tmp_path).get("other") is None


@pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda c: c[:5], lambda _: b"",
                                    lambda c: c[:40] + b"x" + c[41:]])  # fmt: skip
def test_a_damaged_entry_is_deleted_and_written_again(tmp_path, damage):
    cache = cache_of(tmp_path)
    cache.put("key", b"a program of some length")
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert cache.get("key") is None and not path.exists()
    cache.put("key", b"a program of some length")
    assert path.read_bytes() == whole


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_is_said_once_and_leaves_nothing_half(
    tmp_path, monkeypatch, capsys, number
):
    def half(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(number, os.strerror(number))

    cache = cache_of(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(type(cache.path), "write_bytes", half)
        cache.put("a", b"program")
        cache.put("b", b"program")
    assert list(tmp_path.iterdir()) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"not kept: {tmp_path}: {os.strerror(number)}")


RUN = """
import os, signal, sys
import jax, jax.numpy as jnp
from jax._src.path import Path
from covjax.runtime.compilation_cache import keep_compiled

written = []

def write(path, content):  # the second entry by half; then the process is killed
    written.append(path)
    half = len(content) // 2 if len(written) == 2 else len(content)
    with open(path, "wb") as file:
        file.write(content[:half])
    if len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[1:] == ["killed"]:
    type(Path(".")).write_bytes = write
keep_compiled()
print(float(jax.jit(lambda x: (x @ x).sum())(jnp.ones((3, 3)))))
"""


def test_a_kill_and_a_cut_entry_are_mended_by_the_next_run(tmp_path):
    environment = os.environ | {
        "COVJAX_CACHE": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)

    def run(*how: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error::UserWarning", "-c", RUN, *how]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    def whole() -> dict[Path, bool]:
        contents = {p: p.read_bytes() for p in tmp_path.glob("xla/*/*-cache")}
        return {p: c[:32] == sha256(c[32:]).digest() for p, c in contents.items()}

    assert run("killed").returncode == -signal.SIGKILL
    assert sorted(whole().values()) == [False, True]
    for path in whole():
        os.truncate(path, path.stat().st_size // 2)
    mended = run()
    assert (mended.stdout, mended.stderr, mended.returncode) == ("27.0\n", "", 0)
    assert len(whole()) > 1 and all(whole().values())
