"""Where the tests run: eight virtual CPU devices, no network, parsed flags.

jax reads `JAX_PLATFORMS` when it is imported and `XLA_FLAGS` when it first looks for
devices. pytest imports this file before any test file, so this is the place for both.
"""

import atexit
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from absl import flags

DEVICES = 8

# Other flags stay. Another number of devices, which the shell may have set for a run,
# goes: XLA would take the last one, and a reader of the variable should see only one.
_others = re.sub(
    r"--xla_force_host_platform_device_count=\S*", "", os.environ.get("XLA_FLAGS", "")
)
os.environ["XLA_FLAGS"] = " ".join(
    [*_others.split(), f"--xla_force_host_platform_device_count={DEVICES}"]
    # Tiny networks take longer to compile than to run; sums are rounded otherwise.
    + ["--xla_backend_optimization_level=0"]
)
# An accelerator would bring its own number of devices and its own rounding.
os.environ["JAX_PLATFORMS"] = "cpu"
# These would override the number of devices, the dtypes or the compilation.
for _name in ("JAX_NUM_CPU_DEVICES", "JAX_ENABLE_X64", "JAX_DISABLE_JIT"):
    os.environ.pop(_name, None)
# These would put colours and bars into what is printed, where no terminal is.
for _name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(_name, None)
# Images decoded once are kept there; tests keep theirs to themselves.
os.environ["COVJAX_CACHE"] = tempfile.mkdtemp(prefix="covjax-tests-")
atexit.register(shutil.rmtree, os.environ["COVJAX_CACHE"], ignore_errors=True)
# Programs are compiled once for all processes of the tests: pytest's own, which are
# started with this environment, and the command lines that the tests start.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _compiled = tempfile.mkdtemp(prefix="covjax-tests-")
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
# albumentations asks the network for its newest version when it is imported.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

# Grain reads absl flags before it starts workers, and refuses flags that no absl app
# has parsed.
flags.FLAGS.mark_as_parsed()

if "jax" in sys.modules:  # a pytest plugin was faster
    sys.modules["jax"].config.update("jax_platforms", "cpu")


@pytest.fixture(scope="session")
def devices() -> list:
    """The virtual devices; fails if something made fewer of them before."""
    import jax

    found = jax.devices()
    assert len(found) == DEVICES, f"{found}: jax looked for devices before conftest.py"
    return found


# A quiet browser: no sandbox (root has none), no GPU, no calls home.
BROWSER = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A Chromium without a window, for the tests marked `browser`."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.fail("no chromium: install it, or name one by CHROMIUM=/path/to/it")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=[*BROWSER])
        yield launched
        launched.close()
