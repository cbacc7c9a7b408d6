"""What grows with the devices and with the images, and what does not.

  python -m experiments.benchmarks.growth --config=configs/infection.py:phantom

*Devices*: images a second of a train step at the config's batch, shared by 1, 2, 4, …
devices (of a CPU, virtual ones, which share its cores), with the time to compile and
the loss after three steps, which must not change. *Images*: for --images phantoms, the
seconds to decode them once; of a later run, to list the largest set, to open the packed
copies and to have the first batch; images a second of the pipeline; and the memory of
the host that belongs to the process alone (what the system caches of the packed copies
is not counted).

Each row is a process of its own. The last line is a JSON object; "ratio" is the time
to open the packed copies of the smallest set over that of the largest.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from covjax.data.pipeline import make_reader, make_train_dataset
from covjax.data.source import find_samples
from covjax.train.device_input import loading_workers
from experiments.benchmarks.bare_steps import BareSteps


def measure_devices(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the figures of a step on this process's devices."""
    steps = BareSteps(config)
    steps.run("train", 3)
    return {
        "devices": jax.device_count(),
        "compile_s": steps.compile_s,
        "loss": steps.loss,
        "images_per_s": steps.run("train", _STEPS.value),
    }


def measure_images(config: ml_collections.ConfigDict, n: int) -> dict[str, Any]:
    """Returns the figures of the first `n` images of the config's set."""
    find_samples(config)  # makes the phantoms, if need be
    start = time.perf_counter()
    samples = find_samples(config)[1]["Train"][:n]
    listed = time.perf_counter()
    make_reader(samples, config.data)
    opened = time.perf_counter()
    batches = iter(
        make_train_dataset(
            samples,
            config=config,
            steps=range(1 + _BATCHES.value),
            workers=loading_workers(config),
        )
    )
    next(batches)
    first = time.perf_counter()
    for _ in range(_BATCHES.value):
        next(batches)
    rate = _BATCHES.value * config.train.batch_size / (time.perf_counter() - first)
    return {
        "images": len(samples),
        "list_s": listed - start,  # of the whole folder, whatever `n` is
        "open_s": opened - listed,
        "first_batch_s": first - opened,
        "images_per_s": rate,
        "own_memory_mb": _own_memory() / 1e6,
    }


def _own_memory() -> int:
    """Returns the bytes that are this process's alone: no files, mapped (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (int(s.split()[1]) for s in lines if s.startswith("RssAnon:"))
    return 1024 * kilobytes


def _run_row(row: str, n: int, *options: str, **environment: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "experiments.benchmarks.growth", *sys.argv[1:]]
    run = subprocess.run(
        [*command, f"--row={row}", f"--n={n}", *options],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


def _grow_devices(counts: list[int]) -> list[dict[str, Any]]:
    rows = []
    print("devices    images/s   compile s   loss after 3 steps")
    for n in counts:
        virtual = f"--xla_force_host_platform_device_count={n}"
        others = os.environ.get("XLA_FLAGS", "")
        row = _run_row("devices", n, XLA_FLAGS=f"{others} {virtual}")
        if row["devices"] != n:
            continue  # accelerators there are as many as there are
        rows.append(row)
        print(f"{n:7}{row['images_per_s']:12.1f}{row['compile_s']:12.1f}", end="")
        print(f"{row['loss']:21.6f}", flush=True)
    return rows


def _grow_images(sizes: list[int], side: int) -> list[dict[str, Any]]:
    phantoms = f"--config.data.phantom_images=({max(sizes)},1,1)"
    print(f"\nPHANTOM images, {side} px: packed copies")
    print("  images  decode s  list s  open s  first batch s  images/s  own memory MB")
    rows = []
    for n in sizes:
        with tempfile.TemporaryDirectory() as cache:
            options = (phantoms, f"--config.data.cache={cache}")
            first = _run_row("images", n, *options)
            row = _run_row("images", n, *options) | {"decode_s": first["open_s"]}
        rows.append(row)
        print(f"{n:7}{row['decode_s']:10.1f}{row['list_s']:8.2f}", end="")
        print(f"{row['open_s']:8.2f}", end="")
        print(f"{row['first_batch_s']:15.2f}{row['images_per_s']:10.0f}", end="")
        print(f"{row['own_memory_mb']:15.0f}", flush=True)
    return rows


def _main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    config = _CONFIG.value
    if config is None:
        sys.exit("--config is missing, for example --config=configs/lung.py:phantom")
    if _ROW.value == "devices":
        print(json.dumps(measure_devices(config)))
    elif _ROW.value == "images":
        print(json.dumps(measure_images(config, _N.value)))
    else:
        counts = [int(n) for n in _DEVICES.value]
        for n in counts:
            if config.train.batch_size % n:
                sys.exit(
                    f"config.train.batch_size = {config.train.batch_size}: must be"
                    f" divisible by {n} devices"
                )
        devices = _grow_devices(counts)
        sizes = sorted(int(n) for n in _SAMPLES.value)
        samples = _grow_images(sizes, config.data.image_size)
        ratio = samples[0]["open_s"] / samples[-1]["open_s"] if samples else None
        print(json.dumps({"ratio": ratio, "devices": devices, "images": samples}))


# Here, since names of flags are those of the whole process.
if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
    _DEVICES = flags.DEFINE_list("devices", ["1", "2", "4", "8"], "Numbers of devices")
    _SAMPLES = flags.DEFINE_list(
        "images", ["1000", "4000", "16000", "34000"], "Set sizes"
    )
    _STEPS = flags.DEFINE_integer("steps", 10, "Steps that are timed")
    _BATCHES = flags.DEFINE_integer("batches", 100, "Batches that are timed")
    _ROW = flags.DEFINE_enum("row", None, ["devices", "images"], "Only measure one row")
    _N = flags.DEFINE_integer("n", 0, "Devices, or images, of the row")
    app.run(_main)
