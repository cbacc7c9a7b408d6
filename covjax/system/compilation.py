"""Compiled programs, kept for the next run, whose first step comes sooner."""

import hashlib
import os
import platform
from pathlib import Path

import jax

from covjax.system.files import cache_folder


def keep_compiled() -> None:
    """Tells JAX to keep what it compiles, unless the user told it where or not to.

    In the folder `xla/<processor>` of covjax's cache: a program for one machine's
    processor may not run on another that shares the home. The variable
    JAX_COMPILATION_CACHE_DIR names another folder; empty, it turns this off. What
    compiles in less than a tenth of a second is left out, or in less than
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS.
    """
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # JAX leaves out what takes less than a second, as networks on a CPU do.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = cache_folder() / "xla" / _processor()
        folder.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError):  # it only costs the time to compile anew
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))


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
