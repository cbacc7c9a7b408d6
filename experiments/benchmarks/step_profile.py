"""What a step spends its time on, from the profiler of JAX."""

import collections
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
from jax.profiler import ProfileData

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = ", re.MULTILINE)
_PATH = re.compile(r"op_name=\"([^\"]+)\"")  # within the network
_HOLDERS = ("while", "call", "conditional")
_TASKS = (  # the first that is found in a path
    ("kernel_gradient", "gradients with respect to kernels"),
    ("conv_general_dilated", "convolutions, forward and back"),
    ("upsample", "going up"),
    ("norm", "norms"),
    ("", "all else"),
)


def profile(run: Callable[[], object], program: str) -> dict[str, float]:
    """Returns the milliseconds of all threads by what they worked on.

    For a CPU, whose events bear the names of the program's instructions; a GPU's are
    named by kernel, and none is found.

    Args:
      run: takes one step, and waits for it.
      program: the compiled step's text, which says where its instructions come from.
    """
    paths = _paths(program)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (trace,) = Path(folder).rglob("*.xplane.pb")
        data = ProfileData.from_file(str(trace))
    spent: collections.Counter[str] = collections.Counter()
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                # A loop or a call holds others, which are counted themselves.
                if event.name.startswith(_HOLDERS):
                    continue
                if event.name in paths:
                    spent[task_of(paths[event.name])] += event.duration_ns / 1e6
    return dict(spent.most_common())


def _paths(program: str) -> dict[str, str]:
    """Returns the instructions of a program → where each comes from; "" if unknown."""
    paths = {}
    for line in program.splitlines():
        if name := _INSTRUCTION.match(line):
            path = _PATH.search(line)
            paths[name[1]] = path[1] if path else ""
    return paths


def task_of(path: str) -> str:
    """Returns what an instruction does, from its path in the network."""
    if not path:
        return "XLA's own (layouts, and what lost its name)"
    return next(task for part, task in _TASKS if part in path)
