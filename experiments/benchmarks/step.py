"""How fast a train step and a forward pass are, beside the machine and beside PyTorch.

  python -m experiments.benchmarks.step --config=configs/lung.py

The batch lies on the device already: only the network, its loss and its optimizer are
measured, as `train/loop.py` compiles them. Both sides take turns, --rounds times.
Printed are images a second, XLA's own count of the step's operations and what share
of the rate of a matrix product (of the same run, in the same dtype) it reaches, memory,
the time to compile, and the time from the start of a process to the end of its first
step, with an empty and with a filled cache of compiled programs.

  … --sweep --widths=16,32 --sizes=128,256 --batches=8,16 --dtypes=float32,bfloat16

measures every combination, each in a process of its own, and draws them (--plot).

torch is no dependency of covjax: `pip install -e '.[bench]'`; or `--peer_python` names
the Python of another environment that has it; or `--peer=none`.

The last line is a JSON object; "ratio" is covjax's images a second in training over
those of the peer, null without one.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves the peer room
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from covjax.config import flatten
from covjax.models import conv3x3
from experiments.benchmarks.bare_steps import BareSteps, Kind
from experiments.benchmarks.peer import Peer, PeerError
from experiments.benchmarks.spread import print_spread
from experiments.benchmarks.step_profile import profile
from experiments.benchmarks.step_sweep import sweep

# What torch_step.py has built in; its transposed convolutions are the same map.
PEER_KNOWS = {
    "data.roi_as": "cut",
    "loss.dice": 1.0,
    "loss.bce": 0.0,
    "loss.focal": 0.0,
    "loss.tversky": 0.0,
    "loss.batch_dice": False,
    "loss.empty_weight": 1.0,
    "model.intensity": "unit",
    "model.residual": False,
    "model.presence_head": False,
    "model.deep_supervision": 0,
    "optim.average": "none",
    "model.norm": "batch",
    "model.dropout": 0.0,
    "model.remat": False,
    "optim.clip_norm": 1.0,
}
PEER_SCRIPT = Path(__file__).with_name("torch_step.py")


def matmul_rate(dtype: str) -> float:
    """Returns the operations a second of a large matrix product on one device.

    Args:
      dtype: of the factors.
    """
    n = 1024 if jax.default_backend() == "cpu" else 8192
    # Random, as a chip is faster on numbers that are all the same; their products stay
    # as large as they are.
    factor = jax.random.normal(jax.random.key(0), (n, n)) / n**0.5
    factor = factor.astype(dtype)
    product = jax.jit(jnp.matmul)
    times = []
    for _ in range(6):  # the first compiles
        start = time.perf_counter()
        result = factor
        for _ in range(10):
            result = product(result, factor)
        result.block_until_ready()
        times.append(time.perf_counter() - start)
    return 10 * 2 * n**3 / min(times[1:])


def time_to_first_step() -> dict[str, float]:
    """Returns the seconds from a process's start to the end of its first step.

    Returns:
      "cold": with an empty cache of compiled programs; "warm": with what that left.
    """
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
        command = [sys.executable, "-m", "experiments.benchmarks.step"]
        seconds = {}
        for name in ("cold", "warm"):
            start = time.perf_counter()
            subprocess.run(
                [*command, *sys.argv[1:], "--first_step"],
                env=environment,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            seconds[name] = time.perf_counter() - start
    return seconds


def compare(
    config: ml_collections.ConfigDict, steps: BareSteps, peer: Peer | None
) -> dict[str, list[float]]:
    """Times both sides in turns.

    Returns:
      "train", "infer" and, with a peer, "train_peer", "infer_peer": images a second
      of every round.
    """
    batch, count = config.train.batch_size, _STEPS.value

    def peer_rate(kind: Kind, n: int) -> float:
        assert peer
        told = peer.ask(kind=kind, steps=n)
        if "failed" in told:
            raise PeerError(told["failed"])
        return batch * n / told["seconds"]

    sides = {"": steps.run} | ({"_peer": peer_rate} if peer else {})
    rates: dict[str, list[float]] = {}
    for kind in ("train", "infer"):
        for run in sides.values():
            run(kind, 2)  # compiles, allocates
        for _ in range(_ROUNDS.value):
            for name, run in sides.items():
                rates.setdefault(kind + name, []).append(run(kind, count))
    return rates


def measure(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Measures one configuration, prints it, and returns its figures."""
    model, dtype = config.model, config.model.dtype
    found: dict[str, Any] = {
        "width": model.width,
        "image_size": config.data.image_size,
        "batch": config.train.batch_size,
        "dtype": dtype,
        "upsample": model.upsample,
    }
    first = time_to_first_step() if _START.value else {}
    found |= {
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
    }
    print(", ".join(f"{k} {v}" for k, v in found.items()))
    peer = _start_peer(config)
    if peer:
        found["peer"] = peer.about
        print("peer: " + ", ".join(f"{k} {v}" for k, v in peer.about.items()))
    steps = BareSteps(config)
    steps.run("train", 2)
    planned, peak = steps.memory()
    try:
        rates = compare(config, steps, peer)
    except PeerError as error:
        print(f"the peer failed: {error}")
        found["peer_failed"], peer = str(error), None
        rates = compare(config, steps, None)
    if peer:
        peer.close()
    products = matmul_rate(dtype)
    train = float(np.median(rates["train"]))
    of_image = steps.flop()
    flops = train * of_image / jax.device_count()
    print()
    print_spread("images/s", rates)
    if peer:
        ratios = {
            kind: [
                a / b for a, b in zip(rates[kind], rates[f"{kind}_peer"], strict=True)
            ]
            for kind in ("train", "infer")
        }
        print_spread("covjax over PyTorch", ratios)
        found |= {f"ratios_{kind}": values for kind, values in ratios.items()}
    print(f"\n  operations of a step      {of_image / 1e9:8.1f} GFLOP an image")
    print(f"  rate of a device          {flops / 1e12:8.3f} TFLOP/s")
    print(f"  matrix product, {dtype:10}{products / 1e12:8.3f} TFLOP/s")
    print(f"  share                     {flops / products:8.1%}")
    print(f"  memory, planned by XLA    {planned / 2**30:8.2f} GiB a device")
    if peak is not None:
        print(f"  memory, peak of training  {peak / 2**30:8.2f} GiB")
    print(f"  compilation of the step   {steps.compile_s:8.1f} s")
    for name, seconds in first.items():
        print(f"  first step, {name} cache    {seconds:8.1f} s")
    if _PROFILE.value:
        spent = profile(lambda: steps.run("train", 1), steps.program())
        print("\nmilliseconds of a step, of all threads together")
        for task, milliseconds in spent.items():
            print(f"  {task:44}{milliseconds:8.0f}")
        found["profile_ms"] = spent
    return found | {
        "ratio": float(np.median(found["ratios_train"])) if peer else None,
        **{f"{k}_images_per_s": float(np.median(v)) for k, v in rates.items()},
        "gflop_per_image": of_image / 1e9,
        "tflops": flops / 1e12,
        "matmul_tflops": products / 1e12,
        "share": flops / products,
        "memory_bytes": planned,
        "peak_memory_bytes": peak,
        "compile_s": steps.compile_s,
        **{f"first_step_{name}_s": seconds for name, seconds in first.items()},
    }


def _start_peer(config: ml_collections.ConfigDict) -> Peer | None:
    """Starts the peer; says so in one line if it cannot be had."""
    if _PEER.value == "none":
        return None
    fields = flatten(config)
    for name, known in PEER_KNOWS.items():
        if fields[name] != known:
            sys.exit(f"the peer knows config.{name} = {known!r} alone; or --peer=none")
    if jax.device_count() > 1:
        sys.exit(
            f"the peer has one device, covjax {jax.device_count()}; or --peer=none"
        )
    settings = {
        "width": config.model.width,
        "depth": config.model.depth,
        "image_size": config.data.image_size,
        "batch": config.train.batch_size,
        "dtype": config.model.dtype,
    }
    try:
        return Peer(_PEER_PYTHON.value, PEER_SCRIPT, **settings)
    except PeerError as error:
        print(f"no peer ({error}): pip install -e '.[bench]', or see --peer_python")
        return None


def _main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    config = _CONFIG.value
    if config is None:
        sys.exit("--config is missing, for example --config=configs/lung.py:laptop")
    if _DERIVED.value:
        conv3x3.kernel_gradient = conv3x3.kernel_gradient_of_xla
    if _FIRST.value:
        BareSteps(config).run("train", 1)
        return
    if _SWEEP.value:
        fields = {
            "model.width": _WIDTHS.value,
            "data.image_size": _SIZES.value,
            "train.batch_size": _BATCHES.value,
            "model.dtype": _DTYPES.value,
        }
        found = sweep(fields, Path(_PLOT.value) if _PLOT.value else None)
    else:
        found = measure(config)
    print(json.dumps(found))


# Here, since names of flags are those of the whole process.
if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
    _PEER = flags.DEFINE_enum(
        "peer", "torch", ["torch", "none"], "Whom to compare with"
    )
    _PEER_PYTHON = flags.DEFINE_string(
        "peer_python", sys.executable, "Python with torch"
    )
    _ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each side")
    _STEPS = flags.DEFINE_integer("steps", 5, "Steps of a turn")
    _START = flags.DEFINE_boolean("start", True, "Measure the time to the first step")
    _FIRST = flags.DEFINE_boolean("first_step", False, "Only take one step, and end")
    _PROFILE = flags.DEFINE_boolean(
        "profile", False, "Say what a step's time goes to, on a CPU"
    )
    _DERIVED = flags.DEFINE_boolean(
        "derived", False, "Take the gradients of kernels as XLA derives them (on a CPU)"
    )
    _SWEEP = flags.DEFINE_boolean("sweep", False, "Measure every combination of …")
    _WIDTHS = flags.DEFINE_list("widths", [], "… config.model.width")
    _SIZES = flags.DEFINE_list("sizes", [], "… config.data.image_size")
    _BATCHES = flags.DEFINE_list("batches", [], "… config.train.batch_size")
    _DTYPES = flags.DEFINE_list("dtypes", [], "… config.model.dtype")
    _PLOT = flags.DEFINE_string("plot", "", "PNG file for the sweep's picture")
    app.run(_main)
