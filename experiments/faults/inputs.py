"""Shows hundreds of broken data sets to the check that comes before a run's first step.

  python -m experiments.faults.inputs [--only=TEXT] [--commands=12]

Each set (experiments/faults/corpus.py) is looked at as `covjax.train` does, in a child
process with a limit of memory and of time. It has to be read as it was meant (pixels
are compared with those of another decoder, or of the arithmetic of the fault), or be
refused in one or two lines that name the file; nothing else may be printed. Some sets
then go through the real command, which has to end with status 2, without a traceback
and without a run's folder. The last line is a JSON object of counts; exit status 1 if
a set fails.
"""

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covjax import parallel
from covjax.data.covidqu import SPLITS, Sample
from covjax.data.pipeline import make_reader
from covjax.data.source import find_samples
from covjax.errors import UsageError
from covjax.train.sample_manifest import choose_samples
from experiments.faults.corpus import SIDE, Case, Whole, make_cases, make_whole

BATCH = 100  # sets a child looks at
SECONDS = 60.0  # for one set, on a machine that others use; it takes a fraction of one
MEMORY = 2**29  # bytes that a set may take beside what the process held before
LINES = 2  # of a refusal

Outcome = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all sets; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.faults.inputs")
    parser.add_argument("--only", default="", help="text in the names of the sets")
    parser.add_argument("--commands", type=int, default=12, help="(%(default)s)")
    parser.add_argument("--look", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if flags.look:
        look_at_all(flags.look)
        return 0
    began = time.monotonic()
    if not os.geteuid():
        print("root reads files of any mode: a folder stands in for a forbidden file")
    with tempfile.TemporaryDirectory() as work:
        whole = make_whole(Path(work) / "whole")
        cases = [case for case in make_cases(whole) if flags.only in case.name]
        counts = {"sets": len(cases), "read right": 0, "one line": 0}
        most, failures, refused = 0, [], []
        for start in range(0, len(cases), BATCH):
            some = cases[start : start + BATCH]
            for case, outcome in look_apart(whole, some, Path(work) / f"at-{start}"):
                verdict = judge(whole, case, outcome)
                most = max(most, outcome.get("memory", 0))
                if verdict in counts:
                    counts[verdict] += 1
                else:
                    failures.append(f"{case.name}: {verdict}")
                    print(failures[-1], flush=True)
                if verdict == "one line":
                    refused.append(case)
        step = max(1, len(refused) // flags.commands) if flags.commands else 0
        started = refused[::step][: flags.commands] if step else []
        for case in started:
            verdict = run_command(whole, case, Path(work) / "command")
            if verdict:
                failures.append(f"{case.name}, the command: {verdict}")
                print(failures[-1], flush=True)
    counts |= {"commands": len(started), "failures": len(failures)}
    counts |= {"most memory, MiB": most >> 20}
    counts |= {"seconds": round(time.monotonic() - began)}
    print(json.dumps(counts))
    return 1 if failures or not cases else 0


def look_apart(
    whole: Whole, cases: Sequence[Case], work: Path
) -> list[tuple[Case, Outcome]]:
    """Returns what a child process finds in some sets; a new one follows on a fall."""
    outcomes: dict[int, Outcome] = {}
    for k, case in enumerate(cases):
        root = work / str(k) / "SET"
        shutil.copytree(whole.root, root)
        case.make(root)
    while len(outcomes) < len(cases):
        left = [k for k in range(len(cases)) if k not in outcomes]
        (work / "left.json").write_text(json.dumps(left))
        before = len(outcomes)
        said = _start_child(work)
        for k in left:
            path = work / str(k) / "outcome.json"
            if path.exists():
                outcomes[k] = json.loads(path.read_text())
        if len(outcomes) < len(cases) and len(outcomes) - before < len(left):
            fallen = next(k for k in left if k not in outcomes)
            printed = work / str(fallen) / "printed"
            last = printed.read_text(errors="replace") if printed.exists() else ""
            outcomes[fallen] = {"fell": f"{said} {last[-500:]}"}
    for k, outcome in outcomes.items():
        if "images" in outcome:
            arrays = np.load(work / str(k) / "read.npz")
            outcome["arrays"] = {name: arrays[name] for name in arrays.files}
    shutil.rmtree(work)
    return [(case, outcomes[k]) for k, case in enumerate(cases)]


def _start_child(work: Path) -> str:
    """Runs `look_at_all` in a process of its own; returns how it ended."""
    # What is limited is room for addresses, of which each thread's allocator would
    # reserve 64 MiB that it never uses.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "1"}
    environment.pop("XLA_FLAGS", None)
    command = [sys.executable, "-m", "experiments.faults.inputs", f"--look={work}"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace",
    )  # fmt: skip
    # Watched by what it has finished, as each set has its own time.
    finished, since = -1, time.monotonic()
    while process.poll() is None:
        now = len(list(work.glob("*/outcome.json")))
        if now != finished:
            finished, since = now, time.monotonic()
        if time.monotonic() - since > SECONDS:
            process.kill()
            process.communicate()
            return f"no end after {SECONDS:.0f} s"
        time.sleep(0.1)
    said, _ = process.communicate()
    return f"the process ended with {process.returncode}: {said[-300:]}"


def look_at_all(work: Path) -> None:
    """Looks at the sets that are left, one after another, under a limit of memory."""
    # Threads and libraries that a first look starts are not the sets' own.
    parallel.process()
    look(make_config(work / "none"), work / "run")
    for k in json.loads((work / "left.json").read_text()):
        folder = work / str(k)
        with (folder / "printed").open("wb") as printed:
            kept = os.dup(1), os.dup(2)
            for stream in (1, 2):
                os.dup2(printed.fileno(), stream)
            before, held = _status("VmRSS"), _status("VmSize")
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, hard))
            try:
                outcome, arrays = look(make_config(folder / "SET"), folder / "run")
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                for stream, old in zip((1, 2), kept, strict=True):
                    os.dup2(old, stream)
                    os.close(old)
        outcome["memory"] = max(0, _status("VmHWM") - before)
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
        outcome["printed"] = (folder / "printed").read_text(errors="replace")
        np.savez(folder / "read.npz", **arrays)  # pyright: ignore[reportArgumentType]
        draft = folder / "draft.json"
        draft.write_text(json.dumps(outcome))
        draft.rename(folder / "outcome.json")


def _status(field: str) -> int:
    """Returns a field of this process's status, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def make_config(root: Path) -> Any:
    """Returns the config of a training on a set; every second number has a cache."""
    from configs import infection

    config = infection.get_config("phantom")
    config.data.phantom_images, config.data.root = (), str(root)
    config.data.image_size = SIDE
    # Half of the sets are packed, half are read and dropped.
    packed = root.parent.name.isdecimal() and int(root.parent.name) % 2
    config.data.cache = str(root.parent / "cache") if packed else ""
    return config


def look(config: Any, workdir: Path) -> tuple[Outcome, dict[str, np.ndarray]]:
    """Returns what the check before a run finds, and the images that it lets pass."""
    arrays = {}
    try:
        samples = find_samples(config)[1]
        samples = choose_samples(
            config, workdir, samples, SPLITS, training=True
        ).samples
        names = []
        for split in SPLITS:
            read = make_reader(samples[split], config.data)
            for k, sample in enumerate(samples[split]):
                for part, array in read(k).items():
                    arrays[f"{len(names)}-{part}"] = array
                names.append(_key(sample))
        return {"images": names}, arrays
    except UsageError as error:
        return {"refused": str(error), "kind": type(error).__name__}, {}
    except BaseException as error:
        return {"raised": repr(error)[:300]}, {}


def _key(sample: Sample) -> str:
    return f"{sample.split}/{sample.label}/{sample.name}"


def judge(whole: Whole, case: Case, outcome: Outcome) -> str:
    """Returns "read right", "one line", or what is wrong with an outcome."""
    if "fell" in outcome:
        return outcome["fell"]
    if "raised" in outcome:
        return f"raised {outcome['raised']}"
    # libtiff says for itself what it stumbles over, from where nothing stops it.
    printed = re.sub(r"^\w+Decode\w*: .*\n", "", outcome["printed"], flags=re.MULTILINE)
    if printed:
        return f"printed {printed[:300]!r}"
    if "refused" in outcome:
        said = outcome["refused"]
        if case.must == "read":
            return f"refused, and could be read: {said}"
        if len(said.splitlines()) > LINES:  # whatever a terminal takes for their end
            return f"more than {LINES} lines: {said!r}"
        return "one line" if case.named in said else f"names not {case.named}: {said}"
    if case.must == "refuse":
        return "read, and should be refused"
    meant = {
        k: r for k, r in (whole.samples | dict(case.meant)).items() if r is not None
    }
    if set(outcome["images"]) != set(meant):
        return f"other images: {sorted(set(outcome['images']) ^ set(meant))}"
    for k, name in enumerate(outcome["images"]):
        for part, array in meant[name].items():
            read = outcome["arrays"][f"{k}-{part}"]
            near = case.near if part == "image" else 0
            if read.shape != (SIDE, SIDE) or read.dtype != np.uint8:
                return f"{name}, {part}: {read.dtype} {read.shape}"
            if array is None:
                continue
            off = np.abs(read.astype(int) - array).max()
            if off > near:
                return f"{name}, {part}: off by {off} levels"
    return "read right"


def run_command(whole: Whole, case: Case, work: Path) -> str:
    """Starts a training on a broken set; returns what is wrong with its end, or ""."""
    work.mkdir()
    try:
        shutil.copytree(whole.root, work / "SET")
        case.make(work / "SET")
        command = [
            sys.executable, "-m", "covjax.main",
            "--config=configs/infection.py:phantom",
            "--config.data.phantom_images=()", f"--config.data.root={work / 'SET'}",
            f"--config.data.image_size={SIDE}", "--config.train.batch_size=2",
            "--config.model.width=4", "--config.model.depth=2",
            f"--workdir={work / 'run'}",
        ]  # fmt: skip
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "COVJAX_CACHE": str(work / "cache"),
        }
        environment.pop("XLA_FLAGS", None)
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=180
        )
        lines = ended.stderr.splitlines()
        if ended.returncode != 2:
            return f"status {ended.returncode}: {ended.stderr[-300:]}"
        if len(lines) > LINES or not ended.stderr.startswith("covjax: "):
            return f"said {ended.stderr[-300:]!r}"
        if case.named not in ended.stderr:
            return f"names not {case.named}: {ended.stderr}"
        return f"{work / 'run'} is left" if (work / "run").exists() else ""
    except subprocess.TimeoutExpired:
        return "no end after 180 s"
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    sys.exit(main())
