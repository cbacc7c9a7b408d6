"""Compiled programs, kept for the next run: it starts in seconds instead of minutes."""

import os
import platform
from pathlib import Path

import jax


def keep_compiled() -> None:
    """Tells JAX to keep what it compiles, unless the user told it where or not to.

    In `$COVJAX_CACHE/xla/<host>`, else in `~/.cache/covjax/xla/<host>`: a program for
    one machine's processor may not run on another that shares the home.
    JAX_COMPILATION_CACHE_DIR names another folder; empty, it turns this off.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = Path(os.environ.get("COVJAX_CACHE", "") or "~/.cache/covjax")
    try:
        folder = cache.expanduser() / "xla" / platform.node()
    except RuntimeError:  # there is no home: then nothing is kept
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
