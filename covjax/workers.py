"""Processes that work for this one; they load what they are asked for, and no more.

Threads share one interpreter: where work is many small steps of Python, ten of them are
no faster than one. `concurrent.futures` has processes too, but each loads the program
that started it first, with jax, and waits for ever if that is killed.
"""

import concurrent.futures
import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from covjax.interrupt import NUMBERS

T = TypeVar("T")

# Its modules are found where ours are.
_PROGRAM = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer);"
    "from covjax.workers import serve; serve()"
)


class WorkerDied(Exception):
    """A process ended before it answered; the text tells how."""


class Worker:
    """One process, which does one thing after the other; started when first asked.

    It gets no SIGINT and no SIGTERM, and ends when its input does: also if this process
    is killed. One that died is started anew for what is asked next.
    """

    def __init__(self) -> None:
        """Starts nothing yet."""
        self._process: subprocess.Popen[bytes] | None = None
        # A process inherits what the thread that starts it holds back.
        self._thread = concurrent.futures.ThreadPoolExecutor(
            1, initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, NUMBERS)
        )

    def submit(
        self, function: Callable[..., T], *args: Any
    ) -> concurrent.futures.Future[T]:
        """Asks for what a function returns; both travel by pickle.

        The future raises what the function raised, or `WorkerDied`.

        Args:
          function: at the top of a module.
          args: of it.
        """
        return self._thread.submit(self._ask, function, args)

    def cancel(self) -> None:
        """Begins nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Ends the process, once it has done what it is at."""
        self._thread.shutdown(cancel_futures=True)
        if self._process is not None:
            self._end(self._process)

    def _ask(self, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        content = pickle.dumps((function, args), pickle.HIGHEST_PROTOCOL)
        process = self._process = self._process or _start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(content)
            process.stdin.flush()
            answer, error = pickle.load(process.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):
            raise WorkerDied(_how(self._end(process))) from None
        if error is not None:
            raise error
        return answer

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        self._process = None
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # what it had not taken in
            process.stdin.close()
        process.stdout.close()
        return process.wait()


class Workers:
    """Some processes; in a `with`, which ends them."""

    def __init__(self, count: int):
        """Takes how many there are."""
        self._workers = [Worker() for _ in range(count)]

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


def _start() -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # told by whoever asks
        process.stdin.write(pickle.dumps(sys.path))
    return process


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    return f"ended by signal {-status} ({signal.strsignal(-status)})"


def serve() -> None:
    """Answers, in a process of its own, until nothing more can be asked."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed is no answer
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            function, args = pickle.load(sys.stdin.buffer)
            try:
                answer = function(*args), None
            except Exception as error:
                answer = None, error
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
    os._exit(0)  # the rest of an answer would have nowhere to go
