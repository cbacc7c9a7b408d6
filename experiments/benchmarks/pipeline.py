"""How fast training batches come, beside a PyTorch DataLoader on the same images.

  python -m experiments.benchmarks.pipeline --config=configs/infection.py

Images a second of the whole way: decoding, augmentation, cut to the region, batching
and transfer to the device; by threads and workers, from PNG and from packed copies. The
peer (torch_loader.py, in a process of its own) reads the same PNGs with OpenCV, has the
same transforms of Albumentations in one Compose, and gives batches of the same content.
The sides take turns, several rounds of them; while one is timed, the other sleeps. Each
turn starts anew: the time to its first batch, in which workers start, stands apart and
is not in the rate. The best setting of each side counts, by its median.

torch is no dependency of covjax: `pip install -e '.[bench]'`; or `--peer_python` names
the Python of another environment, which needs torch, numpy, opencv-python-headless and
albumentations; or `--peer=none`.

The last line is a JSON object; "ratio" is covjax from PNG over the peer: above 1,
covjax is faster.
"""

import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves the peer room
import albumentations
import cv2
import jax
import ml_collections
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from covjax import parallel
from covjax.data.augment import Augment
from covjax.data.augment_params import strengths_of
from covjax.data.covidqu import Sample
from covjax.data.pipeline import (
    ReadBatch,
    finish,
    make_reader,
    make_region,
    make_train_dataset,
    record_seed,
)
from covjax.data.source import find_samples
from experiments.benchmarks.peer import Peer, PeerError

PEER_SCRIPT = Path(__file__).with_name("torch_loader.py")
STAGES = ("decode", "augment", "cut and batch", "transfer")


class Setting(NamedTuple):
    """One way of loading; threads are covjax's alone."""

    side: str  # "png" and "packed" are covjax, "torch" is the peer
    threads: int
    workers: int


class Turn(NamedTuple):
    """What one turn gave."""

    rate: float  # images a second
    first_s: float  # seconds to the first batch


def take_turn(
    config: ml_collections.ConfigDict,
    samples: list[Sample],
    setting: Setting,
    batches: int,
) -> Turn:
    """Starts covjax's pipeline, waits for its first batch and times those that follow.

    Args:
      config: the whole config.
      samples: the training split.
      setting: overrides threads, workers and, for "png", the packed copies.
      batches: how many are timed.
    """
    config = _with(config, setting)
    start = time.perf_counter()
    # So many steps that, to the end of the turn, as much work waits as at its start.
    dataset = make_train_dataset(samples, config=config, steps=range(batches + 1000))
    batches_here = iter(dataset)
    try:
        batches_there = iter(parallel.prefetch(batches_here))
        jax.block_until_ready(next(batches_there))
        first = time.perf_counter()
        for _ in range(batches):
            jax.block_until_ready(next(batches_there))
        seconds = time.perf_counter() - first
    finally:
        batches_here.close()
    return Turn(batches * config.train.batch_size / seconds, first - start)


def time_stages(
    config: ml_collections.ConfigDict, samples: list[Sample], side: str
) -> dict[str, float]:
    """Returns the seconds that each stage takes for one image, one after another.

    Args:
      config: the whole config.
      samples: whole batches of them.
      side: "png" or "packed".
    """
    config = _with(config, Setting(side, 1, 0))
    data, batch_size = config.data, config.train.batch_size
    read, region = make_reader(samples, data), make_region(data)
    augment = Augment(**strengths_of(config.augment))
    augment(read(0), 0)  # makes its Compose
    spent: dict[str, float] = dict.fromkeys(STAGES, 0.0)
    for indices in np.arange(len(samples)).reshape(-1, batch_size).tolist():
        times = [time.perf_counter()]
        records = [read(i) for i in indices]
        times.append(time.perf_counter())
        seeds = [record_seed(config.seed, 0, i) for i in indices]
        records = [augment(*pair) for pair in zip(records, seeds, strict=True)]
        times.append(time.perf_counter())
        batch = ReadBatch(
            lambda k, records=records: finish(records[k], data.task, region, k)
        )(range(batch_size))
        times.append(time.perf_counter())
        jax.block_until_ready(next(iter(parallel.prefetch([batch]))))
        times.append(time.perf_counter())
        for name, seconds in zip(STAGES, np.diff(times), strict=True):
            spent[name] += float(seconds) / len(samples)
    return spent


def _with(
    config: ml_collections.ConfigDict, setting: Setting
) -> ml_collections.ConfigDict:
    config = config.copy_and_resolve_references()
    config.data.threads, config.data.workers = setting.threads, setting.workers
    if setting.side == "png":
        config.data.cache = ""
    return config


def _start_peer(
    config: ml_collections.ConfigDict, samples: list[Sample]
) -> Peer | None:
    """Starts the peer; says so in one line if it cannot be had."""
    if _PEER.value == "none":
        return None
    data, augment = config.data, config.augment
    cut = data.roi in ("none", "truth") and data.roi_as == "cut" and not data.roi_dilate
    if not cut or augment.gamma_prob or augment.noise_prob:
        sys.exit(
            "the peer knows config.data.roi 'none' and 'truth', cut and without"
            " roi_dilate, and no config.augment.gamma_prob and noise_prob"
        )
    paths = [
        {
            "image": sample.image,
            "lung": sample.lung_mask,
            "infection": sample.infection_mask,
        }
        for sample in samples
    ]
    try:
        return Peer(
            _PEER_PYTHON.value,
            PEER_SCRIPT,
            samples=[{k: str(v) for k, v in sample.items() if v} for sample in paths],
            cut=config.data.roi == "truth",
            augment=strengths_of(config.augment),
            batch=config.train.batch_size,
            gpu=jax.default_backend() == "gpu",
        )
    except PeerError as error:
        print(f"no peer ({error}): pip install -e '.[bench]', or see --peer_python")
        return None


def _settings(with_peer: bool) -> list[Setting]:
    """Returns the settings of one round, those of the sides mixed evenly."""
    doubled = itertools.takewhile(
        lambda n: n <= (os.cpu_count() or 1), (2**k for k in itertools.count())
    )
    workers = [int(n) for n in _WORKERS.value or [0, *doubled]]
    threads = [int(n) for n in _THREADS.value]
    sides = [
        [Setting(side, *pair) for pair in itertools.product(threads, workers)]
        for side in ("png", "packed")
    ]
    if with_peer:
        sides.append([Setting("torch", 0, n) for n in workers])
    placed = [
        ((k + 0.5) / len(side), setting)
        for side in sides
        for k, setting in enumerate(side)
    ]
    return [setting for _, setting in sorted(placed, key=lambda pair: pair[0])]


def _best(turns: dict[Setting, list[Turn]], side: str) -> Setting:
    return max(
        (setting for setting in turns if setting.side == side),
        key=lambda setting: np.median([turn.rate for turn in turns[setting]]),
    )


def _ratios(turns: dict[Setting, list[Turn]], side: str) -> list[float]:
    """Returns, round by round, the best setting of a side over the peer's best."""
    ours, theirs = turns[_best(turns, side)], turns[_best(turns, "torch")]
    return [a.rate / b.rate for a, b in zip(ours, theirs, strict=True)]


def _print_stages(stages: dict[str, dict[str, float]]) -> None:
    print("\nmicroseconds an image, one after another in one thread")
    print(f"  {'':8}" + "".join(f"{name:>20}" for name in (*STAGES, "together")))
    for side, spent in stages.items():
        together = sum(spent.values())
        cells = [f"{1e6 * s:.0f} ({s / together:.0%})" for s in spent.values()]
        row = "".join(f"{cell:>20}" for cell in (*cells, f"{1e6 * together:.0f}"))
        print(f"  {side:8}{row}")


def _print_turns(turns: dict[Setting, list[Turn]]) -> None:
    print("\nimages/s                          min   median      max   first batch, s")
    for setting in sorted(turns):
        of_setting = turns[setting]
        low, middle, high = np.percentile([t.rate for t in of_setting], (0, 50, 100))
        threads = f"{setting.threads} threads" if setting.threads else ""
        mark = "best" if setting == _best(turns, setting.side) else ""
        first = np.median([turn.first_s for turn in of_setting])
        print(
            f"  {setting.side:8}{setting.workers:3} workers {threads:10}"
            f"{low:9.0f}{middle:9.0f}{high:9.0f}{first:12.2f}  {mark}"
        )


def _ask_in_turns(
    config: ml_collections.ConfigDict, samples: list[Sample], peer: Peer | None
) -> dict[Setting, list[Turn]]:
    turns: dict[Setting, list[Turn]] = {s: [] for s in _settings(peer is not None)}
    for _ in range(_ROUNDS.value):
        for setting, of_setting in turns.items():
            if setting.side == "torch":
                assert peer
                told = peer.ask(workers=setting.workers, batches=_BATCHES.value)
                of_setting.append(Turn(**told))
            else:
                of_setting.append(take_turn(config, samples, setting, _BATCHES.value))
    return turns


def _main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    config = _CONFIG.value
    if config is None:
        sys.exit("--config is missing, for example --config=configs/infection.py")
    samples = find_samples(config)[1]["Train"]
    batch_size = config.train.batch_size
    parallel.check_batch_size(batch_size)
    if len(samples) < (_BATCHES.value + 1) * batch_size:
        sys.exit(f"--batches: {len(samples)} images are too few, an epoch of the peer")
    found: dict[str, Any] = {
        "devices": jax.device_count(),
        "backend": jax.default_backend(),
        "cores": os.cpu_count(),
        "image_size": config.data.image_size,
        "batch": batch_size,
        "images": len(samples),
        "python": sys.version.split()[0],
        "jax": jax.__version__,
        "opencv": cv2.__version__,
        "albumentations": albumentations.__version__,
    }
    print(", ".join(f"{k} {v}" for k, v in found.items()))
    for sample in samples:  # so that the disk is asked of neither side
        for path in (sample.image, sample.lung_mask, sample.infection_mask):
            if path:
                path.read_bytes()
    peer = _start_peer(config, samples)
    if peer:
        found["peer"] = peer.about
        print("peer: " + ", ".join(f"{k} {v}" for k, v in peer.about.items()))

    some = samples[: 16 * batch_size][: len(samples) // batch_size * batch_size]
    cv2_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    stages = {side: time_stages(config, some, side) for side in ("png", "packed")}
    cv2.setNumThreads(cv2_threads)
    if peer:
        stages["torch"] = peer.ask(stages=len(some))
    _print_stages(stages)
    try:
        turns = _ask_in_turns(config, samples, peer)
    except PeerError as error:
        sys.exit(str(error))
    _print_turns(turns)

    found["stages_us"] = {
        side: {name: round(1e6 * s, 1) for name, s in spent.items()}
        for side, spent in stages.items()
    }
    for side in dict.fromkeys(setting.side for setting in turns):
        best = _best(turns, side)
        rates = [turn.rate for turn in turns[best]]
        found[f"{side}_best"] = {"threads": best.threads, "workers": best.workers}
        found[f"{side}_images_per_s"] = float(np.median(rates))
    if peer:
        peer.close()
        print(f"\nbest of covjax over best of torch   {'min   median      max':>24}")
        for side, goal in (("png", 1.5), ("packed", 3.0)):
            ratios = _ratios(turns, side)
            low, middle, high = min(ratios), float(np.median(ratios)), max(ratios)
            print(f"  from {side:26}{low:9.2f}{middle:9.2f}{high:9.2f}   goal {goal}")
            found[f"ratio_{side}"], found[f"ratios_{side}"] = middle, ratios
    found["ratio"] = found.get("ratio_png")
    print(json.dumps(found))


# Here, since names of flags are those of the whole process.
if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
    _THREADS = flags.DEFINE_list("threads", ["1", "2"], "Of covjax, in each worker")
    _WORKERS = flags.DEFINE_list(
        "workers", None, "Of both sides; default 0, 1, 2, 4, ... up to the cores"
    )
    _BATCHES = flags.DEFINE_integer("batches", 48, "Timed in a turn, after its first")
    _ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each setting")
    _PEER = flags.DEFINE_enum(
        "peer", "torch", ["torch", "none"], "Whom to compare with"
    )
    _PEER_PYTHON = flags.DEFINE_string(
        "peer_python", sys.executable, "Python with torch"
    )
    app.run(_main)
