"""Steps that can fail in one process of several: all go on, or all fail, by one line.

A process that raises on its own leaves the others waiting in the next collective. Here
each learns whether the step succeeded everywhere before anybody goes on.
"""

import json
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from flax.serialization import msgpack_restore, msgpack_serialize

from covjax import parallel
from covjax.errors import Failure, UsageError
from covjax.runtime.exit_messages import explained

T = TypeVar("T")
_AT_ONCE = 2**26  # bytes that lie on the devices while they are sent


def on_main(action: Callable[[], T]) -> T:
    """Runs a step in the main process; all get its result, or all fail.

    What is decided by files that may look different from another host (the newest
    checkpoint, a network share that is stale there) is decided once.

    Args:
      action: returns None, numbers, strings, arrays, and lists, tuples and dicts of
        these (the others get lists for tuples); without collectives.

    Raises:
      Exception: in the main process, what `action` raised.
      Failure: in the others, with its text and exit status.
    """
    if jax.process_count() == 1:
        return action()
    sent, error = b"", None
    if parallel.is_main():
        try:
            sent = msgpack_serialize({"result": _as_lists(action())})
        except Exception as raised:  # is raised again below, after the others know
            error = raised
            sent = msgpack_serialize({"failed": _describe(raised)})
    told: Any = msgpack_restore(_broadcast(sent))
    if error is not None:
        raise error
    if "failed" in told:
        raise _failure(told["failed"])
    return told["result"]


def on_main_only(action: Callable[[], T]) -> T | None:
    """Runs a step in the main process, whose result stays there; all fail if it does.

    Returns:
      The result; None in the other processes.

    Raises:
      Exception: as `on_main` does.
    """
    results = list[T]()
    on_main(lambda: results.append(action()))
    return results[0] if results else None


def in_all(action: Callable[[], T]) -> T:
    """Runs a step in every process; all fail if it failed in one.

    Args:
      action: without collectives.

    Raises:
      Exception: what `action` raised here.
      Failure: if it raised in another process only, with the text from there.
    """
    if jax.process_count() == 1:
        return action()
    result, error = None, None
    try:
        result = action()
    except Exception as raised:  # is raised again below, after the others know
        error = raised
    failures = gather_words(_describe(error) if error else "")
    if error is not None:
        raise error
    for failed in filter(None, failures):
        raise _failure(failed)
    return result  # pyright: ignore[reportReturnType]


def gather_words(words: str) -> list[str]:
    """Returns what every process gives, in the order of their ranks."""
    own = np.frombuffer(words.encode(), np.uint8)
    lengths = parallel.gather(np.array([[len(own)]], np.int32))
    padded = np.zeros((1, 1, max(1, int(lengths.max()))), np.uint8)
    padded[0, 0, : len(own)] = own
    return [
        row[:length].tobytes().decode(errors="replace")
        for row, length in zip(parallel.gather(padded), lengths, strict=True)
    ]


def name_process() -> str:
    """Returns what to call this process in a message to all of them."""
    return f"process {jax.process_index()} ({socket.gethostname()})"


def _broadcast(content: bytes) -> bytes:
    """Returns the bytes of the main process, on every process."""
    length = int(parallel.from_main(np.array(len(content), np.int32)))
    data = np.zeros(length, np.uint8)
    if parallel.is_main():
        data = np.frombuffer(content, np.uint8)
    parts = range(0, length, _AT_ONCE)
    return b"".join(parallel.from_main(data[k : k + _AT_ONCE]).tobytes() for k in parts)


def _as_lists(tree: Any) -> Any:
    """Returns a tree without tuples, which msgpack does not know."""
    if isinstance(tree, dict):
        return {name: _as_lists(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_as_lists(value) for value in tree]
    return np.asarray(tree) if isinstance(tree, jax.Array) else tree


def _describe(error: Exception) -> str:
    """Returns an error as JSON: what another process is to say, and its status."""
    failure = error if isinstance(error, Failure) else explained(error)
    if failure is None:
        first = str(error).partition("\n")[0]
        failure = Failure(f"{type(error).__name__}: {first}")
    return json.dumps([f"{name_process()}: {failure}", failure.exit_status])


def _failure(described: str) -> Failure:
    text, status = json.loads(described)
    return UsageError(text) if status == UsageError.exit_status else Failure(text)
