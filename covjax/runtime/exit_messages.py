"""What a program says when it fails: a line where the user can help, else a traceback.

Beside covjax's own failures these are memory that does not suffice, on a device or on
the host, a disk that is full, and another process of the run that has gone.
"""

import re
import signal
import sys
import traceback
from collections.abc import Iterator

import jax

from covjax.errors import STORAGE, Failure, StorageError, printable, reason
from covjax.runtime import distributed
from covjax.runtime.signals import Interrupted

OUT_OF_MEMORY = (
    "out of memory ({}). Lower config.train.batch_size, config.data.image_size or"
    " config.model.width, or set config.model.remat=True;\nwith augment.where='device',"
    " data.cache='' keeps the images off the device; on the host, lower data.workers"
    " and"
    " data.prefetch"
)
# What the errors of collectives and of the service behind them have in common.
_WORKER_ENDED = "Worker process was terminated unexpectedly"  # says Grain
_OF_OTHERS = ("gloo", "nccl", "peer", "coordination", "barrier", "unavailable")


def tell(error: BaseException, program: str = "covjax") -> int:
    """Says on stderr what went wrong; returns the exit status."""
    if isinstance(error, KeyboardInterrupt):  # the second one, after `Interrupted`
        error = Interrupted(signal.SIGINT, "interrupted; what is whole stays")
    known = isinstance(error, Failure | Interrupted)
    failure = error if known else explained(error)
    if failure is None:
        traceback.print_exception(error)
        return 1
    if not (distributed.silent and str(failure) == distributed.LOST):
        print(printable(f"{program}: {failure}"), file=sys.stderr)
    return failure.exit_status


def explained(error: BaseException) -> Failure | None:
    """Returns a failure that says what the user can do about an error of the machine.

    None for any other error. An error counts if it, or one that led to it, is of memory
    or storage or, in a run of several processes, of another process.
    """
    for cause in _causes(error):
        said = str(cause)
        # XLA's errors come as RuntimeError or ValueError; their texts are what is sure.
        on_device = "RESOURCE_EXHAUSTED" in said
        if on_device or isinstance(cause, MemoryError):
            where = "of a device" if on_device else "of the host"
            first = said.partition("\n")[0].removeprefix("RESOURCE_EXHAUSTED: ")
            return Failure(
                OUT_OF_MEMORY.format(f"{where}: {first}" if first else where)
            )
        if _WORKER_ENDED in said:
            return Failure(
                f"a process that loads images was ended from outside ({_code(said)}):"
                " by the system for memory, if it is signal 9 (lower data.workers or"
                " data.prefetch), by a disk that fails, if it is 7 (move data.cache)."
                " The same command goes on from the newest checkpoint"
            )
        if isinstance(cause, OSError) and cause.errno in STORAGE:
            return StorageError(
                f"{cause.filename or 'a file'}: {reason(cause)}. What is whole stays;"
                " with that mended, the same command goes on"
            )
        if jax.distributed.is_initialized():
            if any(word in said.lower() for word in _OF_OTHERS):
                return Failure(distributed.LOST)
    return None


def _code(said: str) -> str:
    """Returns "signal 9" for Grain's "… with exit code -9. …"."""
    found = re.search(r"exit code (-?\d+)", said)
    code = int(found[1]) if found else 0
    return f"signal {-code}" if code < 0 else f"exit status {code}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
