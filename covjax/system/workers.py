"""Processes that work for this one; they load what they are asked for, and no more.

Threads share one interpreter: where work is many small steps of Python, ten of them are
no faster than one. `concurrent.futures` has processes too, but each loads the program
that started it first, with jax, and waits for ever if that is killed.

What is asked and answered travels by pickle, through pipes that nobody else has; no
file is read so.
"""

import concurrent.futures
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from covjax.system.interrupt import NUMBERS

T = TypeVar("T")

# Its modules are found where ours are.
_PROGRAM = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer);"
    "from covjax.system.workers import serve; serve(int(sys.argv[1]))"
)
_BEGUN = b"b"  # told when a request was taken in, before its answer


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

    def close(self) -> None:
        """Ends the process, once it has done what it is at."""
        self._thread.shutdown(cancel_futures=True)
        self._end()

    def _ask(self, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        content = pickle.dumps((function, args), pickle.HIGHEST_PROTOCOL)
        if not self._begin(content):
            self._end()  # it had died while nothing was asked
            if not self._begin(content):
                raise WorkerDied(_how(self._end()))
        assert self._answers is not None
        try:
            answer, error = pickle.load(self._answers)
        except (EOFError, pickle.UnpicklingError):
            raise WorkerDied(_how(self._end())) from None
        if error is not None:
            raise error
        return answer

    def _begin(self, content: bytes) -> bool:
        """Asks; returns whether it was taken in."""
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        assert self._answers is not None
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
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # told when it is asked
            self._process.stdin.write(pickle.dumps(sys.path))

    def _end(self) -> int:
        """Ends the process, if there is one; returns its exit status."""
        process, self._process = self._process, None
        if self._answers is not None:
            self._answers.close()
        if process is None:
            return 0
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it had not taken in
            process.stdin.close()
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


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    return f"ended by signal {-status} ({signal.strsignal(-status)})"


def serve(answers: int) -> None:
    """Answers, in a process of its own, until nothing more can be asked.

    Args:
      answers: where they go, a file descriptor.
    """
    with os.fdopen(answers, "wb") as file:
        while True:
            try:
                function, args = pickle.load(sys.stdin.buffer)
            except (EOFError, pickle.UnpicklingError):  # whoever asks has gone
                return
            try:
                file.write(_BEGUN)
                file.flush()
                file.write(_answer(function, args))
                file.flush()
            except BrokenPipeError:
                os._exit(0)  # closing the file would write again


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
