"""Several processes as one run: how they find each other, and how one leaves.

JAX's own ending suits a run that went well: each process waits for all. One that fails
must not wait, or it would keep the others from noticing; and where another has failed,
JAX aborts this process from C++, past every `except`. A companion says the line then.
"""

import atexit
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import jax
from jax._src.clusters import ClusterEnv  # no public name tells what JAX would find

from covjax.errors import UsageError

LOST = (
    "another process of the run has stopped, or this one was killed. Start all of them"
    " again with the same command: they go on from the newest checkpoint"
)
_APART = (
    "the processes of the run did not find each other: start all of them, each with"
    " --coordinator=HOST:PORT, a free port of the first that all reach,"
    " --num_processes=N and --process_id=I"
)
_HEARTBEAT = 40  # seconds without a sign of life after which a process counts as dead
_A_DAY = 24 * 3600  # one may write the report while the others have nothing to do
_PATIENCE = 5  # seconds that a process that fails gives the others to fail as well
_CLUSTERS = ("slurm", "ompi", "gcetpu", "gketpu")  # JAX's names of what it finds itself

# Its input ends when the process has gone, however it went; the last thing that it was
# told is what is to be said then, and nothing if that is nothing.
_COMPANION = """
import signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
last = sys.stdin.buffer.read().decode().splitlines()[-1]
if last:
    print("covjax:", last, file=sys.stderr)
"""
_companion: subprocess.Popen[bytes] | None = None
silent = False  # whether it was said why this process ends


def join(coordinator: str | None, count: int | None, rank: int | None) -> None:
    """Makes this process one of several, where there are several.

    By hand, with all three arguments; or, with none, where JAX finds a cluster (SLURM,
    a TPU pod, Open MPI) in which the job has more than one process. To be called before
    anything asks for devices.

    Args:
      coordinator: "HOST:PORT" of the process of rank 0, a free port there.
      count: how many processes the run has.
      rank: of this one, from 0.

    Raises:
      UsageError: if only some are given, one cannot be, or the others are not found.
    """
    given = {"coordinator": coordinator, "num_processes": count, "process_id": rank}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if not missing:
        _check(**given)
        if rank == 0:
            _check_free(coordinator)
    elif len(missing) < len(given):
        raise UsageError(
            f"{' and '.join(missing)}: missing; processes that are started by hand need"
            " all of --coordinator=HOST:PORT --num_processes=N --process_id=I"
        )
    try:
        cluster = _find_cluster() if missing else "deactivate"
        if cluster is None:
            return
        _accompany()
        jax.distributed.initialize(
            coordinator, count, rank,
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_A_DAY,
            cluster_detection_method=cluster,
            local_device_ids=_own_devices(),
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        why = str(error).partition("\n")[0]
        _let_say("")
        raise UsageError(f"{_APART} ({why})") from None
    # JAX notes SIGTERM for itself, and would have it end nothing but a training loop.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    _let_say(LOST)
    atexit.register(_end_in_order)


def leave(status: int) -> None:
    """Ends a process: if it failed and is one of several, without waiting for them.

    Unless the others fail as well, at the same place: then all end in order.

    Where it failed, the interpreter is not taken down. A thread that decodes an image
    would be unwound through the C++ that it is in, which aborts the process (before
    Python 3.14).
    """
    if status == 0:
        sys.exit()
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        if not jax.distributed.is_initialized():
            atexit._run_exitfuncs()
        else:
            _let_say("")
            ending = threading.Thread(target=jax.distributed.shutdown, daemon=True)
            ending.start()
            ending.join(_PATIENCE)
    finally:  # also if it is interrupted while it waits
        os._exit(status)


def be_silent() -> None:
    """Has nothing more said of other processes: why all of them end is known."""
    global silent
    silent = True
    _let_say("")


def abandon(status: int) -> None:
    """Ends a process from any of its threads, whatever the others are at."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _check(*, coordinator: str, num_processes: int, process_id: int) -> None:
    parts = re.fullmatch(r".+:(\d+)", coordinator)
    if parts is None or int(parts[1]) > 65535:
        raise UsageError(f"--coordinator={coordinator}: not HOST:PORT")
    if num_processes < 1:
        raise UsageError(f"--num_processes={num_processes}: must be at least 1")
    if not 0 <= process_id < num_processes:
        raise UsageError(
            f"--process_id={process_id}: must be from 0 to {num_processes - 1}"
            f" (--num_processes={num_processes})"
        )


def _check_free(coordinator: str | None) -> None:
    """Refuses a port that is taken, of which JAX's service would die."""
    port = int(str(coordinator).rpartition(":")[2])
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise UsageError(f"--coordinator={coordinator}: port {port}: {error}") from None


def _find_cluster() -> str | None:
    """Returns JAX's name of the cluster that this job of several processes runs on.

    A job of one process is none: JAX would take all of its GPUs but one away.
    """
    for kind in ClusterEnv._cluster_types:
        if kind.name in _CLUSTERS and kind.is_env_present():
            return kind.name if kind.get_process_count() > 1 else None
    return None


def _own_devices() -> list[int] | None:
    """Returns what JAX is to be told of this process's devices: nothing, or all.

    Told nothing, it takes one GPU a process under SLURM and Open MPI. That is right for
    several processes on a machine, and leaves GPUs idle where there is one.
    """
    told = os.environ
    tasks, nodes = told.get("SLURM_NTASKS"), told.get("SLURM_STEP_NUM_NODES")
    alone = told.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1" or (tasks and tasks == nodes)
    return [] if alone and "JAX_LOCAL_DEVICE_IDS" not in told else None


def _accompany() -> None:
    """Starts the process that speaks for this one, should it be ended from without."""
    global _companion
    command = [sys.executable, "-I", "-S", "-c", _COMPANION]
    _companion = subprocess.Popen(command, stdin=subprocess.PIPE)
    _let_say(_APART)


def _end_in_order() -> None:
    """Waits until all processes have come here."""
    jax.distributed.shutdown()
    _let_say("")


def _let_say(words: str) -> None:
    """Tells the companion what to say if this process ends now."""
    if _companion is not None and _companion.stdin is not None:
        _companion.stdin.write(f"{words}\n".encode())
        _companion.stdin.flush()
