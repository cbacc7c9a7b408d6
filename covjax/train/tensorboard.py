"""TensorBoard's events of a run, written in the thread that trains.

A writer with a thread of its own would meet a full disk where nobody hears of it.
"""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

_PATIENCE = 30  # seconds until what was written can be seen


class Events:
    """One file of events, which replaces those that a folder holds."""

    def __init__(self, folder: Path):
        """Removes the events of earlier attempts, of which half may be missing."""
        for path in folder.glob("events.out.tfevents.*"):
            path.unlink()
        self._writer = EventsWriter(str(folder / "events"))
        self._flushed = time.monotonic()

    def add(self, line: Mapping[str, Any]) -> None:
        """Adds a line of metrics.jsonl: "step", "split" and numbers, None for none.

        Raises:
          OSError: if it cannot be written.
        """
        for name, value in line.items():
            if name not in ("step", "split") and value is not None:
                # Its classes are made when it is imported, unseen by pyright.
                event = event_pb2.Event(  # type: ignore[attr-defined]
                    wall_time=time.time(),
                    step=line["step"],
                    summary=scalar(f"{line['split']}/{name}", value),
                )
                self._writer.write_event(event)
        if time.monotonic() - self._flushed > _PATIENCE:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes the rest; of a full disk, metrics.jsonl has told already."""
        with contextlib.suppress(OSError):
            self._writer.close()
