"""Whether two runs came to the same, and whether every file of one is whole."""

import collections
import csv
import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from PIL import Image

from covjax.errors import UsageError
from covjax.runtime.checksums import NAME, check_digests

# Names of a checkpoint that are of the moment at which it was written.
_OF_THE_MOMENT = {"fingerprint"}


def compare_runs(first: Path, second: Path) -> list[str]:
    """Compares what two runs of one config left.

    Returns:
      What differs, a line each: numbers of the log, bits of the checkpoints, results
      and operating points.
    """
    faults = []
    logs = [(run / "metrics.jsonl").read_text() for run in (first, second)]
    if logs[0] != logs[1]:
        faults.append(f"{second}: metrics.jsonl differs")
    steps = [
        sorted(p.name for p in (run / "checkpoints").iterdir() if p.name.isdecimal())
        for run in (first, second)
    ]
    if steps[0] != steps[1]:
        return [*faults, f"{second}: checkpoints {steps[1]} instead of {steps[0]}"]
    for step in steps[0]:
        a, b = (read_state(run / "checkpoints" / step) for run in (first, second))
        if a.keys() != b.keys():
            faults.append(f"{second}: checkpoint {step} has other leaves")
            continue
        faults += [
            f"{second}: checkpoint {step}: {leaf} differs"
            for leaf in a
            if a[leaf].dtype != b[leaf].dtype or not np.array_equal(a[leaf], b[leaf])
        ]
    names = [
        sorted(p.name for p in (run / "results").iterdir()) for run in (first, second)
    ]
    if names[0] != names[1]:
        faults.append(f"{second}: results {names[1]} instead of {names[0]}")
    for name in sorted({*names[0]} & {*names[1]}):
        a, b = (_read_result(run / "results" / name) for run in (first, second))
        if a != b:
            faults.append(f"{second}: results/{name} differs")
    a, b = (_read_result(run / "operating_points.json") for run in (first, second))
    if a != b:
        faults.append(f"{second}: operating_points.json differs")
    return faults


def read_state(checkpoint: Path) -> dict[str, np.ndarray]:
    """Reads every leaf of a checkpoint, by its path in the tree."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(checkpoint / "state")
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def find_torn(run: Path) -> list[str]:
    """Reads every file of a run that has ended.

    Returns:
      What is half-written, left over or written twice, a line each.
    """
    faults = []
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        try:
            _read(path)
        except Exception as error:  # each reader has its own kinds
            faults.append(f"{path}: torn: {error!r}")
    for path in run.rglob("*"):
        if path.name.endswith(".half") or ".orbax-checkpoint-tmp" in path.name:
            faults.append(f"{path}: left over")
    for folder in (run / "checkpoints").iterdir():
        try:
            check_digests(folder)
            if not (folder / NAME).exists():
                faults.append(f"{folder}: no digests")
        except UsageError as error:
            faults.append(str(error))
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    seen = collections.Counter((line["step"], line["split"]) for line in lines)
    faults += [f"{run}: {key} stands {n} times" for key, n in seen.items() if n > 1]
    return faults


def _read(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".jsonl":
        for line in path.read_text().splitlines():
            json.loads(line)
    elif path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
    elif path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
    elif path.suffix == ".csv":
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
        assert {len(row) for row in rows} == {len(rows[0])}
    elif path.suffix == ".html":
        assert path.read_text().rstrip().endswith("</html>")


def _read_result(path: Path) -> Any:
    """Reads a result, without what is of the moment at which it was written."""
    if path.suffix == ".json":
        return _without_moments(json.loads(path.read_text()))
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: arrays[name].tobytes() for name in arrays.files}
    return path.read_bytes()


def _without_moments(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            k: _without_moments(v) for k, v in value.items() if k not in _OF_THE_MOMENT
        }
    return value
