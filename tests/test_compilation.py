"""Compiled programs are kept where the user has them kept."""

import platform
from pathlib import Path

import jax
import pytest

from covjax.compilation import keep_compiled


@pytest.fixture(autouse=True)
def untouched():
    """JAX's own setting, as it was."""
    before = jax.config.jax_compilation_cache_dir  # pyright: ignore
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def kept_in() -> str | None:
    return jax.config.jax_compilation_cache_dir  # pyright: ignore


def test_programs_lie_in_the_cache_of_covjax(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("COVJAX_CACHE", str(tmp_path))
    keep_compiled()
    assert kept_in() == str(tmp_path / "xla" / platform.node())
    monkeypatch.setenv("COVJAX_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    keep_compiled()
    expected = tmp_path / "home" / ".cache" / "covjax" / "xla" / platform.node()
    assert kept_in() == str(expected)


@pytest.mark.parametrize("named", ["", "/elsewhere"])
def test_the_variable_of_jax_wins(monkeypatch, tmp_path, named):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", named)
    monkeypatch.setenv("COVJAX_CACHE", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", named or None)  # as at its import
    keep_compiled()
    assert kept_in() == (named or None)


def test_without_a_home_nothing_is_kept(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("COVJAX_CACHE")

    def no_home(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    jax.config.update("jax_compilation_cache_dir", None)
    keep_compiled()
    assert kept_in() is None
