"""Lays out images and masks of any folders as the published set, by a table of them.

  python -m covjax.data.from_table TABLE ROOT [--class "pneumonia=Non-COVID"] [--copy]

TABLE is a CSV file with a row per image (docs/data.md, "Another data set"). ROOT, which
is new, empty or laid out by the same table before, gets links to the files, or copies,
and both stages can be trained on it. Every file is read before anything is written.
Stopped half-way, or with a changed table, the same command goes on. Exit status: 0; 2
if the table, a file or ROOT cannot be used.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from covjax.data import covidqu
from covjax.data.audit.checks import check_image
from covjax.data.covidqu import CLASSES, POSITIVE, SPLITS, TREES, Sample
from covjax.data.from_table import link_tree
from covjax.data.from_table.assign_splits import assign_splits
from covjax.data.from_table.table import (
    COLUMNS,
    FEW,
    Fault,
    Faults,
    Row,
    Table,
    read_table,
)
from covjax.data.image_io import shown
from covjax.data.integrity import BadSamples, read_all
from covjax.errors import DataError, UsageError
from covjax.runtime.cores import count_cores
from covjax.runtime.files import write_whole
from covjax.runtime.progress import Progress, progress_bar

_STAGES = {"lung": "stage 1", "infection": "stage 2"}


@dataclasses.dataclass(frozen=True)
class Checked:
    """An image of the table that was read.

    Attributes:
      row: where it stands.
      sample: what it will be called, and its files as the table names them.
      shape: of the image and its masks, (H, W).
      infected: whether there is infection in its mask.
    """

    row: Row
    sample: Sample
    shape: tuple[int, ...]
    infected: bool


@dataclasses.dataclass(frozen=True)
class Laid:
    """What was laid out.

    Attributes:
      samples: all of them, in the table's order.
      split_by: where their splits are from, one line.
      written: number of files that were not there before.
    """

    samples: Sequence[Checked]
    split_by: str
    written: int

    def of(self, task: str) -> list[Checked]:
        """Returns the images of a tree."""
        return [one for one in self.samples if _in_tree(one.row, task)]


def from_table(
    table: Table, root: Path, *, copy: bool = False, progress: Progress | None = None
) -> Laid:
    """Lays out a table's images, once every one of them was read.

    Args:
      table: from `read_table`.
      root: new, empty, or laid out by the same table before.
      copy: whether the files are copied, not linked.
      progress: told how far the reading is.

    Raises:
      DataError: as `layout.lay_out` does; if a stage has no samples in a split;
        `Faults` of images that stand in two rows, that cannot be read or whose masks
        cannot be theirs. Nothing has been written then.
    """
    link_tree.check_root(root, table.path)  # told before the reading, not after it
    digests = _digest_images(table)
    rows, split_by = assign_splits(table.rows, digests)
    _check_splits(table.path, rows)
    samples = [
        _make_image(row, name)
        for row, name in zip(rows, name_images(rows), strict=True)
    ]
    checked = _read_images(table.path, rows, samples, progress)
    written = link_tree.lay_out(root, table.path, _plan(checked, copy))
    _pass_on_phantom(root, samples)
    return Laid(checked, split_by, written)


def _in_tree(row: Row, task: str) -> bool:
    return task == "lung" or row.has_infection_mask


def _digest_images(table: Table) -> dict[Path, bytes]:
    """Returns a hash of each image's bytes.

    Raises:
      Faults: of images that cannot be read, or that are the same.
    """
    faults = []

    def digest(row: Row) -> bytes | None:
        try:
            with row.image.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            said = f"image: {shown(row.image)}: {error.strerror}"
            faults.append(Fault(row.line, said))

    with concurrent.futures.ThreadPoolExecutor(count_cores()) as threads:
        digests = dict(zip(table.rows, threads.map(digest, table.rows), strict=True))
    first: dict[bytes, int] = {}
    for row, found in digests.items():
        if found and (line := first.setdefault(found, row.line)) != row.line:
            said = f"the same image as in line {line}, byte for byte: keep one of them"
            faults.append(Fault(row.line, f"image: {shown(row.image)}: {said}"))
    if faults:
        raise Faults(table.path, faults)
    return {row.image: found for row, found in digests.items() if found}


def _check_splits(path: Path, rows: Sequence[Row]) -> None:
    for task, stage in _STAGES.items():
        have = {row.split for row in rows if _in_tree(row, task)}
        lacking = [split for split in SPLITS if split not in have]
        if have and lacking:
            raise DataError(
                f"{shown(path)}: {stage} has no images in {' nor '.join(lacking)}: it"
                " takes some of each split (column split)"
            )


def name_images(rows: Sequence[Row]) -> list[str]:
    """Returns names without endings, each once in its split and class.

    An image keeps the name of its file; a second one of that name is called name_2, as
    is one that differs in capitals alone, which not every disk tells apart.

    Args:
      rows: with their splits.
    """
    taken, names = set(), []
    for row in rows:
        name, number = row.image.stem, 1
        while (key := (row.split, row.label, name.casefold())) in taken:
            number += 1
            name = f"{row.image.stem}_{number}"
        taken.add(key)
        names.append(name)
    return names


def _make_image(row: Row, name: str) -> Sample:
    return Sample(
        name + row.image.suffix,
        row.label,
        row.split,
        row.image,
        row.lung_mask,
        row.infection_mask,
    )


def _read_images(
    path: Path,
    rows: Sequence[Row],
    samples: Sequence[Sample],
    progress: Progress | None,
) -> list[Checked]:
    row_of = dict(zip(samples, rows, strict=True))
    found: list[tuple[tuple[int, ...], bool]] = []
    try:
        for some in read_all(samples, check_image, progress):
            found += some
    except BadSamples as bad:
        faults = [Fault(row_of[one.sample].line, one.reason) for one in bad.bad]
        raise Faults(path, faults) from None
    return [
        Checked(row, sample, *told)
        for row, sample, told in zip(rows, samples, found, strict=True)
    ]


def _plan(samples: Sequence[Checked], copy: bool) -> dict[str, link_tree.Item]:
    make = functools.cache(link_tree.copy if copy else link_tree.link)
    plan = {}
    for task, tree in TREES.items():
        for one in samples:
            if not _in_tree(one.row, task):
                continue
            sample = one.sample
            stem = os.path.splitext(sample.name)[0]
            folder = f"{tree}/{sample.split}/{sample.label}"
            files = {
                covidqu.IMAGES: sample.image,
                covidqu.LUNG_MASKS: sample.lung_mask,
                covidqu.INFECTION_MASKS: sample.infection_mask,
            }
            for kind in (covidqu.IMAGES, *covidqu.MASK_FOLDERS[task]):
                source = files[kind]
                if source is None:
                    plan[f"{folder}/{kind}/{stem}.png"] = _empty_mask(one.shape)
                else:
                    plan[f"{folder}/{kind}/{stem}{source.suffix}"] = make(source)
    return plan


@functools.cache
def _empty_mask(shape: tuple[int, ...]) -> link_tree.Item:
    file = io.BytesIO()
    Image.fromarray(np.zeros(shape, np.uint8)).save(file, format="PNG")
    return link_tree.drawn(file.getvalue())


def _pass_on_phantom(root: Path, samples: Sequence[Sample]) -> None:
    """Marks the set, if one of its images lies in a set of phantoms."""
    folders = {folder for sample in samples for folder in sample.image.parents}
    for folder in sorted(folders):
        if covidqu.is_phantom(folder) and not covidqu.is_phantom(root):
            told = {"phantom": True, "from": str(folder)}
            try:
                write_whole(root / covidqu.PHANTOM_MARKER, json.dumps(told) + "\n")
            except OSError as error:
                raise DataError(f"{shown(root)}: {error.strerror}") from None


def format_summary(table: Table, root: Path, laid: Laid) -> str:
    """Returns the counts of what was laid out, and the commands that follow."""
    titles = (*CLASSES, "all")
    lines = [
        f"{shown(root)}: {len(laid.samples):,} images ({laid.written:,} files written)",
        f"split: {laid.split_by}",
    ]
    if table.left_aside:
        lines.append(f"columns left aside: {', '.join(map(shown, table.left_aside))}")
    lines += ["", f"{'images':14}" + "".join(f"{title:>11}" for title in titles)]
    for task, stage in _STAGES.items():
        counts = Counter((one.sample.split, one.sample.label) for one in laid.of(task))
        for split in SPLITS if counts else ():
            row = [counts[split, label] for label in CLASSES]
            cells = "".join(f"{n:>11,}" for n in [*row, sum(row)])
            lines.append(f"{f'{stage} {split}':14}{cells}")
    lines += [f"note: {note}" for note in _notes(laid)]
    return "\n".join([*lines, "", *_commands(root, bool(laid.of("infection")))])


def _notes(laid: Laid) -> list[str]:
    of_2 = laid.of("infection")
    notes = []
    if blank := sum(one.sample.label == POSITIVE and not one.infected for one in of_2):
        notes.append(f"{POSITIVE} images with an empty infection mask: {blank:,}")
    if without := len(laid.samples) - len(of_2):
        notes.append(f"images of stage 1 alone, without an infection mask: {without:,}")
    infected = {one.sample.split for one in of_2 if one.infected}
    if of_2 and (lacking := [split for split in SPLITS if split not in infected]):
        # Empty masks would have a Dice of 1 there, and be chosen.
        where = " nor ".join(lacking)
        notes.append(f"no infection in {where}: figures of stage 2 tell nothing")
    return notes


def _commands(root: Path, both: bool) -> list[str]:
    folder = shlex.quote(str(root))
    lines = [
        f"python -m covjax.data.audit {folder}",
        "python -m covjax.main --config=configs/lung.py --workdir=runs/own-lung \\",
        f"  --config.data.root={folder}",
    ]
    if both:
        lines += [
            "python -m covjax.main --config=configs/infection.py"
            " --workdir=runs/own-infection \\",
            f"  --init_from=runs/own-lung --config.data.root={folder}",
        ]
    return lines


def _parse_classes(given: Sequence[str]) -> Mapping[str, str]:
    names: dict[str, str] = {}
    for one in given:
        name, equals, label = (part.strip() for part in one.rpartition("="))
        if not (name and equals):
            raise UsageError(f"--class {one!r}: not of the form NAME=CLASS")
        if names.setdefault(name.casefold(), label) != label:
            raise UsageError(f"--class {one!r}: {names[name.casefold()]} before")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m covjax.data.from_table",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument(
        "table", type=Path, metavar="TABLE", help=f"CSV with {', '.join(COLUMNS)}"
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder to write")
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        default=[],
        metavar="NAME=CLASS",
        help=f"the table's name of one of {', '.join(CLASSES)}; may be repeated",
    )
    parser.add_argument("--copy", action="store_true", help="copies, not links")
    parser.add_argument(
        "--show",
        type=int,
        default=FEW,
        metavar="N",
        help="faults to show (%(default)s)",
    )
    flags = parser.parse_args(arguments)
    try:
        table = read_table(flags.table, _parse_classes(flags.classes))
        with progress_bar("reading images") as progress:
            laid = from_table(table, flags.root, copy=flags.copy, progress=progress)
    except Faults as error:
        print(error.tell(max(1, flags.show)), file=sys.stderr)
        return error.exit_status
    except UsageError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return 130
    print(format_summary(table, flags.root, laid))
    return 0
