"""Compiled programs are kept where the user has them kept."""

import os
from pathlib import Path

import jax
import pytest

from covjax.system.compilation import keep_compiled

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


@pytest.mark.parametrize("named", ["", "/elsewhere"])
def test_the_variable_of_jax_wins(monkeypatch, tmp_path, named):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", named)
    monkeypatch.setenv("COVJAX_CACHE", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", named or None)  # as at its import
    keep_compiled()
    assert kept_in() == (named or None)


def test_without_a_folder_to_write_to_nothing_is_kept(monkeypatch, tmp_path):
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


@pytest.mark.parametrize(("named", "kept"), [(None, 0.1), ("3", 3.0)])
def test_networks_that_compile_in_less_than_a_second_are_kept(monkeypatch, named, kept):
    name = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    monkeypatch.delenv(name, raising=False)
    if named is not None:
        monkeypatch.setenv(name, named)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    jax.config.update(_LEAST, float(named or 1))  # as at its import
    keep_compiled()
    assert jax.config.values[_LEAST] == kept
