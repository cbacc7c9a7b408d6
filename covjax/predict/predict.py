"""Finds lungs and infection on images of your own, which need no masks.

  python -m covjax.predict PATH … --out=DIR [--lung=RUN] [--infection=RUN]

PATH is an image (PNG, JPEG, TIFF, WebP, BMP, DICOM), a folder of them or a pattern; RUN
a run's folder, a checkpoint or a file of weights (*.safetensors); where none is named,
the weights in covjax/pretrained. --infection=none finds lungs alone. DIR gets, for each
image and at its size, lungs/NAME.png and infection/NAME.png (0 and 255),
overlays/NAME.jpg to look at and, of DICOM, seg/NAME.dcm; and predictions.csv, a row an
image. The same command again goes on where it stopped. Several processes share the
images as in covjax.main (--coordinator, --num_processes, --process_id). For research:
not a medical device.

Exit status: 0; 2 if something is wrong with what was given, or an image could not be
read (each is told in a line, and the others are done); 1 anything else; 130, 143 a
signal.
"""

import argparse
import dataclasses
import importlib.metadata
import itertools
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from covjax import parallel
from covjax.data.decode_limits import IMAGE_LIMITS, count_readers
from covjax.data.image_io import shown
from covjax.errors import DataError
from covjax.export.load_model import read_network, read_stages, shipped_network
from covjax.predict.inputs import Input, find_inputs
from covjax.predict.postprocess import Seen
from covjax.predict.resume import is_done, remove_outputs
from covjax.predict.segmenter import Segmenter
from covjax.predict.table import (
    ABOUT,
    Additions,
    Row,
    claim,
    in_order,
    read_rows,
    write_table,
)
from covjax.predict.worker_tasks import finish_image, read_sample
from covjax.predict.writer import make_row
from covjax.runtime import distributed
from covjax.runtime.compilation_cache import keep_compiled
from covjax.runtime.cores import count_cores
from covjax.runtime.exit_messages import tell
from covjax.runtime.files import HALF
from covjax.runtime.progress import progress_bar
from covjax.runtime.signals import Interrupted, raise_signals
from covjax.runtime.worker_process import Worker, WorkerDied, Workers
from covjax.train import run_folder

NONE = "none"  # in place of a run of stage 2
_BATCH = 4  # images of a device, on a CPU, where more are no faster
_BATCH_ACCELERATED = 32
IN_FLIGHT = 2  # batches, so that one is computed while masks of another are made

A = TypeVar("A")


@dataclasses.dataclass(frozen=True)
class QueuedImage:
    """An image that was read, or why it was not.

    Attributes:
      asked: which file it is.
      worker: the process that has it.
      squares: what the networks are shown; None if it cannot be read.
      sha256: of its file; "" if it cannot be read.
      error: one line; "" if it was read.
      seen: what the networks made of it.
    """

    asked: Input
    worker: Worker
    squares: tuple[np.ndarray, ...] | None = None
    sha256: str = ""
    error: str = ""
    seen: Seen | None = None


def predict(
    inputs: Sequence[Input], out: Path, segmenter: Segmenter, about: dict[str, Any]
) -> tuple[int, int]:
    """Writes what a segmenter finds on some images.

    Args:
      inputs: the images.
      out: folder of the outputs, new or of the same networks.
      segmenter: the networks.
      about: what tells these networks from others, for predictions.json.

    Returns:
      How many images there are, and how many of them could not be read.

    Raises:
      UsageError: if the folder holds something else.
      OSError: if it cannot be written any more; what is whole stays.
    """
    with run_folder.hold(out, flag="--out"):
        if parallel.is_main():
            _prepare(out, about)
        parallel.wait_for_all()
        done = read_rows(out)
        _check_names(inputs, out, done)
        rank, world = parallel.process()
        left = _find_left(inputs, out, done)
        if parallel.is_main():
            _forget(inputs, left, out, done)
            if len(left) < len(inputs):
                print(
                    f"{len(inputs) - len(left):,} of {len(inputs):,} images were done"
                )
        parallel.wait_for_all()
        _predict_some(left[rank::world], out, segmenter)
        parallel.wait_for_all()
        rows = read_rows(out)
        if parallel.is_main():
            write_table(out, in_order(rows, [one.name for one in inputs]))
    failed = sum(bool(rows[one.name]["error"]) for one in inputs)
    return len(inputs), failed


def _prepare(out: Path, about: dict[str, Any]) -> None:
    if not (out / ABOUT).exists() and not run_folder.is_free(out, ABOUT):
        raise DataError(
            f"--out={out} holds files that are no predictions: give another"
        )
    claim(out, about)
    for half in out.rglob(f".*{HALF}"):  # of a process that was killed
        half.unlink(missing_ok=True)  # its worker may be about to rename it


def _check_names(inputs: Sequence[Input], out: Path, done: dict[str, Row]) -> None:
    """Refuses images whose outputs would take the place of another image's."""
    for one in inputs:
        other = done[one.name]["file"] if one.name in done else shown(one.path)
        if other != shown(one.path):
            raise DataError(
                f"--out={out} holds {shown(one.name)} of {other}, not of"
                f" {shown(one.path)}: give another, or the path as it was given before"
            )


def _find_left(inputs: Sequence[Input], out: Path, done: dict[str, Row]) -> list[Input]:
    """Returns the images that are still to be done; all processes get the same."""
    found = np.zeros(len(inputs), np.uint8)
    if parallel.is_main():
        with (
            _Threads(count_cores()) as threads,
            progress_bar("comparing with what is done") as progress,
        ):
            checks = threads.map(lambda x: is_done(x, out, done.get(x.name)), inputs)
            for k, whether in enumerate(checks):
                found[k] = whether
                progress(k + 1, len(inputs))
    found = parallel.from_main(found)
    return [one for one, whether in zip(inputs, found, strict=True) if not whether]


def _forget(
    inputs: Sequence[Input], left: Sequence[Input], out: Path, done: dict[str, Row]
) -> None:
    """Drops rows of images that are to be done again, or are called otherwise now.

    Else the row of before would be taken for that of the new outputs, if they were
    written and this process then killed; or for the newer one, if another had added it.
    """
    again = {one.name for one in left}
    names = {shown(one.path): one.name for one in inputs}
    kept = [
        row
        for name, row in done.items()
        if name not in again and names.get(row["file"], name) == name
    ]
    if len(kept) < len(done):
        write_table(out, kept)


def _predict_some(inputs: Sequence[Input], out: Path, segmenter: Segmenter) -> None:
    """Reads, asks and writes side by side: each step while the next waits for it."""
    if not inputs:
        return
    size = batch_size(len(inputs))
    with (
        Workers(min(len(inputs), count_readers()), IMAGE_LIMITS) as workers,
        _Threads(IN_FLIGHT) as asking,
        Additions(out, parallel.process()[0]) as additions,
        progress_bar("finding lungs and infection") as progress,
    ):
        radiographs = _read(inputs, segmenter, workers, size)
        seen = _look(radiographs, segmenter, asking, size)
        for done, (asked, row) in enumerate(_finish(seen, out, segmenter, size), 1):
            if row["error"]:
                remove_outputs(out, asked)  # they would be of another file, or torn
                print(f"covjax: {row['error']}", file=sys.stderr)
            additions.add(row)
            progress(done, len(inputs))


def _read(
    inputs: Sequence[Input], segmenter: Segmenter, workers: Workers, ahead: int
) -> Iterator[QueuedImage]:
    def begin() -> Iterator[tuple[Input, Worker, Future[Any]]]:
        for k, one in enumerate(inputs):
            worker = workers[k]
            yield one, worker, worker.submit(read_sample, one, segmenter.sides)

    for one, worker, future in _ahead(begin(), ahead):
        try:
            read = future.result()
        except WorkerDied as died:
            read = f"{shown(one.path)}: the process that read it {died}"
        if isinstance(read, str):
            yield QueuedImage(one, worker, error=read)
        else:
            yield QueuedImage(one, worker, *read)


def _look(
    radiographs: Iterable[QueuedImage],
    segmenter: Segmenter,
    asking: "_Threads",
    size: int,
) -> Iterator[QueuedImage]:
    looking = (
        asking.submit(_look_at_batch, batch, segmenter, size)
        for batch in _batches(radiographs, size)
    )
    for future in _ahead(looking, IN_FLIGHT):
        yield from future.result()


def _look_at_batch(
    radiographs: list[QueuedImage], segmenter: Segmenter, size: int
) -> list[QueuedImage]:
    """Asks the networks about the images of a batch that could be read."""
    shown = [
        radiograph.squares
        for radiograph in radiographs
        if radiograph.squares is not None
    ]
    if not shown:
        return radiographs
    padding = [shown[-1]] * (size - len(shown))  # one program for all batches
    seen = iter(segmenter.look_at_squares(shown + padding))
    return [
        radiograph
        if radiograph.squares is None
        else dataclasses.replace(radiograph, seen=next(seen))
        for radiograph in radiographs
    ]


def _finish(
    radiographs: Iterable[QueuedImage], out: Path, segmenter: Segmenter, ahead: int
) -> Iterator[tuple[Input, Row]]:
    def begin(radiograph: QueuedImage) -> Future[Row] | None:
        if radiograph.seen is None:
            return None
        told = (
            radiograph.asked,
            radiograph.seen,
            out,
            segmenter.points,
            segmenter.origin,
        )
        return radiograph.worker.submit(finish_image, *told, radiograph.sha256)

    for radiograph, row in _ahead(
        ((radiograph, begin(radiograph)) for radiograph in radiographs), ahead
    ):
        try:
            told = (
                row.result()
                if row
                else make_row(radiograph.asked, error=radiograph.error)
            )
        except WorkerDied as died:
            error = f"the process that wrote its masks {died}"
            told = make_row(
                radiograph.asked, error=f"{shown(radiograph.asked.path)}: {error}"
            )
        yield radiograph.asked, told


def batch_size(radiographs: int) -> int:
    """Returns how many images the networks see at once; the last batch is filled up.

    Args:
      radiographs: that there are, at least 1; of one image, a batch of one for each
        device.
    """
    devices = parallel.local_devices()
    most = _BATCH_ACCELERATED if parallel.is_accelerated() else _BATCH
    return devices * min(most, -(-radiographs // devices))


class _Threads(ThreadPoolExecutor):
    """Threads that, once their `with` is left, begin nothing more."""

    def __exit__(self, *_: object) -> None:
        self.shutdown(cancel_futures=True)


def _ahead(begun: Iterable[A], count: int) -> Iterator[A]:
    """Yields what is begun, in its order, when so many more have been begun."""
    waiting: deque[A] = deque()
    for one in begun:
        waiting.append(one)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def _batches(items: Iterable[A], size: int) -> Iterator[list[A]]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def _images(count: int) -> str:
    return f"{count:,} image{'s' * (count != 1)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m covjax.predict",
        description=(__doc__ or "").partition("\n")[0],
        epilog="For research: not a medical device.",
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="image, folder, pattern"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--lung", default="", metavar="RUN", help="finds the lungs")
    parser.add_argument(
        "--infection", default="", metavar="RUN", help="finds infection; or none"
    )
    parser.add_argument("--coordinator", help="HOST:PORT of process 0")
    parser.add_argument("--num_processes", type=int, help="how many there are")
    parser.add_argument("--process_id", type=int, help="which this is, from 0")
    return parser


def _main(arguments: Sequence[str] | None) -> int:
    given = _parser().parse_args(arguments)
    keep_compiled()
    distributed.join(given.coordinator, given.num_processes, given.process_id)
    inputs = find_inputs(given.paths, leave_out=given.out)
    if given.infection != NONE:
        stages = read_stages(given.lung, given.infection)
    else:
        only = given.lung
        stages = (read_network(only) if only else shipped_network("lung"),)
    segmenter = Segmenter(*stages)
    if parallel.is_main():
        of_phantoms = " (PHANTOM weights, of no use to a patient)"
        told = [f"{one.trained.run}{of_phantoms * one.phantom}" for one in stages]
        print(f"{_images(len(inputs))}; {' and '.join(told)}")
        for remark in segmenter.remarks:
            print(f"note: {remark}")
    about = {
        "covjax": importlib.metadata.version("covjax"),
        "phantom": segmenter.origin.phantom,
        "networks": list(segmenter.origin.fingerprints.values()),
        "operating_points": [
            dataclasses.asdict(point)
            for point in (segmenter.points.lung, segmenter.points.infection)
            if point is not None
        ],
    }
    count, failed = predict(inputs, given.out, segmenter, about)
    if parallel.is_main():
        print(f"{count - failed:,} of {_images(count)}: {given.out}")
    return 2 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    try:
        with raise_signals():
            return _main(arguments)
    except (Exception, Interrupted, KeyboardInterrupt) as error:
        return tell(error)
