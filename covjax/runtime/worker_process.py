"""Processes that work for this one; they load what they are asked for, and no more.

Threads share one interpreter: where work is many small steps of Python, ten of them are
no faster than one. `concurrent.futures` has processes too, but each loads the program
that started it first, with jax, and waits for ever if that is killed.

What is asked and answered travels by pickle, through pipes that nobody else has; no
file is read so.
"""

import concurrent.futures
import contextlib
import dataclasses
import math
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

from covjax.runtime.signals import NUMBERS

T = TypeVar("T")

# Its modules are found where ours are.
_PROGRAM = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer);"
    "from covjax.runtime.worker_process import serve; serve(int(sys.argv[1]))"
)
_BEGUN = b"b"  # told when a request was taken in, before its answer


class WorkerDied(Exception):
    """A process ended before it answered; the text tells how."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds on one request. A request that exceeds one ends its worker process.

    What a process with limits prints is discarded.

    Attributes:
      seconds: CPU time of all threads of the process; enforced in whole seconds,
        rounded up.
      wall: wall-clock seconds from when the process has taken in the request to its
        answer. As many again are allowed to start the process and take it in.
      memory: bytes that the request may add to what the process holds when it begins.
        The function sees a MemoryError, or what its libraries make of a failed
        allocation. Linux only.
    """

    seconds: float
    wall: float
    memory: int


class Worker:
    """One process, which does one thing after the other; started when first asked.

    It gets no SIGINT and no SIGTERM, and ends when its input does: also if this process
    is killed. One that died is started anew for what is asked next.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        """Starts nothing yet.

        Args:
          limits: of each request; None: none.
        """
        self._limits = limits
        self._killed = False  # by us, after the wall-clock limit
        self._ended = False  # by `kill`
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: BinaryIO | None = None
        # A process inherits what the thread that starts it holds back.
        self._thread = concurrent.futures.ThreadPoolExecutor(
            1, initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, NUMBERS)
        )

    def submit(
        self, function: Callable[..., T], *args: Any
    ) -> concurrent.futures.Future[T]:
        """Asks for what a function returns.

        The future raises what the function raised, or pickle of its answer, with the
        traceback from there as a note; a RuntimeError that tells of it, if it cannot be
        pickled; or `WorkerDied`.

        Args:
          function: at the top of a module.
          args: of it; they can be pickled.
        """
        return self._thread.submit(self._ask, function, args)

    def cancel(self) -> None:
        """Begins nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def kill(self) -> None:
        """Ends the process at once, and begins nothing more."""
        self.cancel()
        self._ended = True
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """Ends the process, once it has done what it is at."""
        self._thread.shutdown(cancel_futures=True)
        self._end()

    def _ask(self, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        content = pickle.dumps((function, args), pickle.HIGHEST_PROTOCOL)
        if not self._begin(content):
            self._end()  # it had died, or was stopped, while nothing was asked
            if not self._begin(content):
                raise WorkerDied(self._end())
        with self._kill_late():
            return self._read_answer()

    def _read_answer(self) -> Any:
        assert self._answers is not None
        try:
            answer, error = pickle.load(self._answers)
        except (EOFError, pickle.UnpicklingError):
            raise WorkerDied(self._end()) from None
        if error is not None:
            raise error
        return answer

    @contextlib.contextmanager
    def _kill_late(self) -> Iterator[None]:
        """Kills the process if it is not done within the wall-clock limit."""
        if self._limits is None:
            yield
            return
        self._killed = False
        timer = threading.Timer(self._limits.wall, self._kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def _kill(self) -> None:
        if (process := self._process) is not None:
            self._killed = True
            process.kill()

    def _begin(self, content: bytes) -> bool:
        """Asks; returns whether it was taken in."""
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        assert self._answers is not None
        with self._kill_late():
            try:
                self._process.stdin.write(content)
                self._process.stdin.flush()
            except BrokenPipeError:
                return False
            return self._answers.read(1) == _BEGUN

    def _start(self) -> None:
        read, write = os.pipe()
        self._answers = os.fdopen(read, "rb")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, str(write)],
                stdin=subprocess.PIPE, stdout=2, pass_fds=[write],
            )  # fmt: skip
        finally:
            os.close(write)
        if self._ended:  # `kill` found no process
            self._process.kill()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # told when it is asked
            self._process.stdin.write(pickle.dumps(sys.path))
            self._process.stdin.write(pickle.dumps(self._limits))

    def _end(self) -> str:
        """Ends the process, if there is one; returns how it ended, for a user."""
        process = self._process
        if self._answers is not None:
            self._answers.close()
        if process is None:
            return "had ended"
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it had not taken in
            process.stdin.close()
        killed = self._killed
        with self._kill_late():  # one that is stopped would never end
            status = process.wait()
        self._process = None
        return _how(status, killed, self._limits)


class Workers:
    """Some processes; in a `with`, which ends them."""

    def __init__(self, count: int, limits: Limits | None = None):
        """Takes how many there are, and the limits of each request to one of them."""
        self._workers = [Worker(limits) for _ in range(count)]

    def __getitem__(self, number: int) -> Worker:
        """Returns one of them, whatever the number: over and over the same."""
        return self._workers[number % len(self._workers)]

    def __enter__(self) -> "Workers":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends all, once each has done what it is at."""
        for worker in self._workers:
            worker.cancel()
        for worker in self._workers:
            worker.close()


def _how(status: int, killed: bool, limits: Limits | None) -> str:
    """Returns how a process ended; its sentence begins with the process.

    Args:
      status: as `Popen.wait` returns it.
      killed: whether we killed it, after the wall-clock limit.
      limits: of its requests.
    """
    if limits and killed and status == -signal.SIGKILL:
        return f"took more than {limits.wall:g} s"
    if limits and status == -signal.SIGXCPU:
        return f"took more than {limits.seconds:g} s of CPU time"
    if status == -signal.SIGKILL:
        return "was killed (signal 9), as a system does that has no memory left"
    if status >= 0:
        return f"ended with status {status}"
    how = f"ended by signal {-status} ({signal.strsignal(-status)})"
    if limits and status == -signal.SIGABRT:  # some libraries know no other way
        how += f", perhaps as it needed more than {_size(limits.memory)}"
    return how


def _size(count: int) -> str:
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


def serve(answers: int) -> None:
    """Answers, in a process of its own, until nothing more can be asked.

    Args:
      answers: where they go, a file descriptor.
    """
    limits = pickle.load(sys.stdin.buffer)
    # A core file would hold what the process had read.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limits is not None:
        _discard_output()
    with os.fdopen(answers, "wb") as file:
        while True:
            try:
                function, args = pickle.load(sys.stdin.buffer)
            except (EOFError, pickle.UnpicklingError):  # whoever asks has gone
                return
            try:
                file.write(_BEGUN)
                file.flush()
                try:
                    with _limited(limits):
                        content = _answer(function, args)
                except MemoryError:  # to tell of another one
                    content = pickle.dumps((None, MemoryError()))
                file.write(content)
                file.flush()
            except BrokenPipeError:
                os._exit(0)  # closing the file would write again


def _discard_output() -> None:
    """Sends what this process prints to the null device.

    A C library may print many lines about one file, which are no part of an answer.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    for standard in (1, 2):
        os.dup2(null, standard)
    os.close(null)


def _answer(function: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps((function(*args), None), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))
        try:
            content = pickle.dumps((None, error))
            pickle.loads(content)  # not all that can be pickled can be read again
        except Exception:
            told = RuntimeError(f"{type(error).__name__}: {error}")
            told.add_note(error.__notes__[-1])
            content = pickle.dumps((None, told))
        return content


@contextlib.contextmanager
def _limited(limits: Limits | None) -> Iterator[None]:
    """While entered, this process may use so much CPU time and memory, and no more."""
    if limits is None:
        yield
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(used.ru_utime + used.ru_stime + limits.seconds)
    before = [_limit(resource.RLIMIT_CPU, seconds)]
    held = _held()
    if held is not None:
        before.append(_limit(resource.RLIMIT_DATA, held + limits.memory))
    try:
        yield
    finally:
        for which, both in before:
            resource.setrlimit(which, both)


def _limit(which: int, most: int) -> tuple[int, tuple[int, int]]:
    """Sets a soft limit, at most the hard one; returns which, and both of before."""
    soft, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(which, (most, hard))
    return which, (soft, hard)


def _held() -> int | None:
    """Returns the bytes that count for RLIMIT_DATA; None where that limits nothing.

    Private memory that can be written to, and is not a file's. Linux counts it so since
    4.7; the reserves of malloc for other threads are not in it, as in RLIMIT_AS.
    """
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[5]) * resource.getpagesize()
    except OSError:  # macOS
        return None
