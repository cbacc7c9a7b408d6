"""What a run says while it trains: metrics.jsonl, TensorBoard, a progress bar."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from covjax.runtime.files import write_whole
from covjax.runtime.strict_json import parse_json
from covjax.train.tensorboard import Events

METRICS = "metrics.jsonl"


class RunLog:
    """Writes a run's numbers as they come, and shows where it stands.

    On a terminal, a bar shows loss, images a second and time left; elsewhere a line
    an epoch does. A silent log (another process than the first) does nothing.

    Attributes:
      dropped: steps before `start` whose updates were dropped; a silent log does not
        know them.
    """

    def __init__(
        self, workdir: Path, *, start: int, total: int, batch_size: int, silent: bool
    ):
        """Opens the logs; what an earlier attempt wrote beyond `start` is dropped.

        TensorBoard's events are written anew from the lines that stay: a process that
        was killed may have left half of one.

        Args:
          workdir: the run's folder.
          start: step that the run goes on from.
          total: steps of the whole run.
          batch_size: images a step, over all devices.
          silent: whether to write and show nothing.
        """
        self._silent = silent
        self._batch_size = batch_size
        self.dropped = list[int]()
        if silent:
            return
        kept = [line for line in read_metrics(workdir) if line["step"] <= start]
        self.dropped = [line["step"] for line in kept if "dropped" in line]
        self._path = workdir / METRICS
        write_whole(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._events = Events(workdir)
        for line in kept:
            self._events.add(line)
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._bar = self._progress.add_task(
            "train", total=total, completed=start, note=""
        )
        self._since, self._from = time.perf_counter(), start

    def __enter__(self) -> "RunLog":
        """Starts the bar."""
        if not self._silent:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the bar and closes the files."""
        if not self._silent:
            self._progress.stop()
            self._events.close()

    def say(self, text: str) -> None:
        """Prints above the bar."""
        if not self._silent:
            self._console.print(text, markup=False)

    def advance(self, step: int, loss: float) -> None:
        """Moves the bar to a step."""
        if not self._silent:
            note = f"loss {loss:.4f}  {self.images_per_second(step):.0f} images/s"
            self._progress.update(self._bar, completed=step, note=note)

    def restart_clock(self, step: int) -> None:
        """Counts images a second from here: what came before was not training."""
        self._since, self._from = time.perf_counter(), step

    def images_per_second(self, step: int) -> float:
        """Returns the mean rate since the clock was last started."""
        seconds = time.perf_counter() - self._since
        return (step - self._from) * self._batch_size / seconds if seconds else 0.0

    def write(self, step: int, split: str, numbers: Mapping[str, float | None]) -> None:
        """Writes a line of metrics.jsonl, and TensorBoard's events.

        Args:
          step: after which the numbers hold.
          split: "train" or "val".
          numbers: names → values; None where there is none.
        """
        if self._silent:
            return
        line = {"step": step, "split": split} | dict(numbers)
        with self._path.open("a") as out:
            out.write(json.dumps(line) + "\n")
        self._events.add(line)


def read_metrics(workdir: Path) -> list[dict]:
    """Returns the lines of a run's metrics.jsonl; a torn last line is left out."""
    path = workdir / METRICS
    if not path.exists():
        return []
    lines = []
    for line in path.read_bytes().splitlines():
        try:
            numbers = parse_json(line, finite=False)
            _ = numbers["step"] + 0, numbers["split"] + ""
            lines.append(numbers)
        # The process was killed while it wrote this line.
        except (ValueError, LookupError, TypeError):
            break
    return lines
