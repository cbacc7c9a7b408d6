"""Checks a copy of COVID-QU-Ex, or another set, before anything is trained on it.

  python -m covjax.data.audit ROOT [--json FILE]

Prints the counts (beside the published ones, unless a table laid the set out), the
files that cannot be used, the masks that are not what they should be, and the images
that stand in two splits, byte for byte or nearly. Nothing is changed. Exit status: 0 if
the audit was completed, whatever it found; 2 if there is nothing to audit, or the
report cannot be written.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from covjax.data import covidqu
from covjax.data.audit import near_duplicates
from covjax.data.audit.checks import (
    KINDS,
    Entry,
    Finding,
    Reading,
    list_entries,
    read_entry,
)
from covjax.data.audit.leakage import Place, find_leaks
from covjax.data.image_io import shown
from covjax.data.integrity import Readers
from covjax.errors import DataError, UsageError
from covjax.runtime.files import cache_folder, write_whole
from covjax.runtime.private import private_folder
from covjax.runtime.progress import progress_bar
from covjax.runtime.strict_json import read_json

# Images that the study reports, by tree and split, in the order of `covidqu.CLASSES`.
PUBLISHED = {
    "lung": {
        "Train": (7658, 7208, 6849),
        "Val": (1903, 1802, 1712),
        "Test": (2395, 2253, 2140),
    },
    "infection": {
        "Train": (1864, 932, 932),
        "Val": (466, 233, 233),
        "Test": (583, 292, 291),
    },
}
_FORMAT = 1  # of what is found; part of the name under which it is cached
LISTED = 12  # lines of a list on the terminal; the JSON holds all


def audit(
    root: Path, progress: Callable[[int, int], object] | None = None
) -> dict[str, Any]:
    """Reads every image and mask of both trees and tells what it found.

    Args:
      root: the folder of the data, as `covidqu.find_tree` takes it.
      progress: called with (images read, images in all) after every image.

    Returns:
      What `--json` writes, the same on every run:
        "root", "phantom" (synthetic images?);
        "trees": by task (only those found): "folder", and "images" and "published",
          both by split and class; "published" is None for another set, which a table
          laid out;
        "files": by kind (`KINDS`) a list of {"path": below root, ...};
        "identical", "near": {"pairs": [{"parts": two "task/split", "pairs": n,
          "leak": bool}], "across_splits": groups of images in more than one split}; a
          group is {"images": names} or {"first": names, "second": names,
          "correlation": r}, where all the names of a list are the same picture;
        "seen_before": by part ("task/split"), how many of its images have a twin
          ("identical", "near") in an earlier split of the same tree or, for
          infection, of the lung tree: those were seen before they are scored.

    Raises:
      DataError: if neither tree is there.
    """
    trees, errors = {}, []
    another = covidqu.is_from_table(root)
    entries: list[Entry] = []
    found: list[Finding] = []
    for task in covidqu.TASKS:
        try:
            folder = covidqu.find_tree(root, task)
        except DataError as error:
            errors.append(str(error))
            continue
        listed, faults = list_entries(folder, task)
        entries += listed
        found += faults
        trees[task] = {
            "folder": _below(root, folder),
            "images": _count(listed),
            "published": None if another else _published(task),
        }
    if not trees:
        raise DataError("\n".join(errors))

    pictures: dict[bytes, list[Place]] = {}
    thumbnails = []
    for done, (entry, reading) in enumerate(_read_all(entries), start=1):
        found += reading.findings
        if reading.digest is not None:
            if reading.digest not in pictures:
                pictures[reading.digest] = []
                thumbnails.append(reading.thumbnail)
            pictures[reading.digest].append(entry.place)
        if progress:
            progress(done, len(entries))

    side = near_duplicates.SIDE
    stack = np.array(thumbnails, np.uint8).reshape(-1, side, side)
    near = near_duplicates.find_near_duplicates(stack)

    files: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for kind, what in found:
        files[kind].append({**what, "path": _below(root, what["path"])})
    return {
        "root": str(root),
        "phantom": covidqu.is_phantom(root),
        "trees": trees,
        "files": files,
        **find_leaks(list(pictures.values()), near),
    }


def _published(task: str) -> dict[str, dict[str, int]]:
    return {
        split: dict(zip(covidqu.CLASSES, samples, strict=True))
        for split, samples in PUBLISHED[task].items()
    }


def _count(entries: list[Entry]) -> dict[str, dict[str, int]]:
    counts = collections.Counter(
        (entry.place.split, entry.place.label) for entry in entries
    )
    return {
        split: {label: counts[split, label] for label in covidqu.CLASSES}
        for split in covidqu.SPLITS
    }


def _read_all(entries: list[Entry]) -> Iterator[tuple[Entry, Reading]]:
    """Reads side by side; yields in order."""
    with Readers() as readers:
        outcomes = readers.map(read_entry, entries)
        for entry, outcome in zip(entries, outcomes, strict=True):
            if isinstance(outcome, DataError):  # beyond the limits of a worker
                reason = str(outcome).removeprefix(f"{shown(entry.image)}: ")
                found = {"path": entry.image, "reason": reason}
                outcome = Reading([("unreadable", found)])
            yield entry, outcome


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def format_report(findings: dict[str, Any]) -> str:
    """Returns what `audit` found as text of some 40 lines; long lists are cut."""
    published = any(tree["published"] for tree in findings["trees"].values())
    name = "COVID-QU-Ex" if published else "A set that a table laid out,"
    lines = [f"{name} in {findings['root']}"]
    if findings["phantom"]:
        lines.append("A phantom set: synthetic images, nobody's chest.")
    for task in covidqu.TASKS:
        lines += ["", *_format_counts(task, findings)]
    lines += ["", "Files and masks"]
    for kind, title in KINDS.items():
        found = findings["files"][kind]
        lines.append(f"  {len(found):6,}  {title}")
        lines += _cut([_describe(what) for what in found])
    for kind, title in (("identical", "Identical"), ("near", "Near-identical")):
        lines += ["", *_format_twins(title, findings[kind])]
    lines += [
        "",
        "Images seen in an earlier split, or by stage 1, before they are scored",
    ]
    for part, seen in findings["seen_before"].items():
        samples = findings["trees"][part.split("/")[0]]["images"][part.split("/")[1]]
        counts = f"{seen['identical']:,} identical, {seen['near']:,} near-identical"
        lines.append(f"  {part}: {counts}, of {sum(samples.values()):,}")
    if not findings["seen_before"]:
        lines.append("  none")
    return "\n".join(lines)


def _format_counts(task: str, findings: dict[str, Any]) -> list[str]:
    tree = findings["trees"].get(task)
    if tree is None:
        return [f"{covidqu.TREES[task]}: not there"]
    titles = (*covidqu.CLASSES, "all")
    head = "".join(f"{title:>18}" for title in titles)
    if tree["published"] is None:
        lines = [f"{tree['folder']}: images", f"  {'':5}{head}"]
        for split, samples in tree["images"].items():
            have = [*samples.values()]
            row = "".join(f"{n:>18,}" for n in [*have, sum(have)])
            lines.append(f"  {split:5}{row}")
        return lines
    lines = [f"{tree['folder']}: images / published", f"  {'':5}{head}"]
    for split in covidqu.SPLITS:
        have, told = (
            [*of[split].values()] for of in (tree["images"], tree["published"])
        )
        cells = zip([*have, sum(have)], [*told, sum(told)], strict=True)
        row = "".join(f"{f'{n:,} / {of:,}':>18}" for n, of in cells)
        # Phantoms are as many as their maker wanted.
        note = "" if have == told or findings["phantom"] else "  differs"
        lines.append(f"  {split:5}{row}{note}")
    return lines


def _describe(what: dict[str, Any]) -> str:
    rest = ", ".join(f"{key} {value}" for key, value in what.items() if key != "path")
    return f"{what['path']}" + (f" ({rest})" if rest else "")


def _format_twins(title: str, twins: dict[str, Any]) -> list[str]:
    lines = [f"{title} images, pairs"]
    for row in twins["pairs"]:
        a, b = row["parts"]
        note = "  leak" if row["leak"] else ""
        lines.append(f"  {row['pairs']:6,}  {a} - {b}{note}")
    if not twins["pairs"]:
        lines.append("       0")
    groups = [
        " = ".join(group["images"])
        if "images" in group
        else f"{group['correlation']:.3f}  {' = '.join(group['first'])}"
        f" ~ {' = '.join(group['second'])}"
        for group in twins["across_splits"]
    ]
    if groups:
        lines.append(f"  across splits, {len(groups):,} different:")
    return lines + _cut(groups)


def _cut(items: list[str]) -> list[str]:
    lines = [f"          {item}" for item in items[:LISTED]]
    if len(items) > LISTED:
        lines.append(f"          and {len(items) - LISTED:,} more: --json lists them")
    return lines


def main(argv: list[str] | None = None) -> int:
    """Runs the audit as a command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m covjax.data.audit",
        description="Checks a copy of COVID-QU-Ex before anything is trained on it.",
    )
    parser.add_argument("root", type=Path, help="folder of the data")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings")
    arguments = parser.parse_args(argv)
    try:
        if not arguments.root.is_dir():
            raise DataError(f"{arguments.root}: no such folder")
        # Told before the reading, not minutes after it.
        if arguments.json and not arguments.json.parent.is_dir():
            raise UsageError(f"--json: {arguments.json.parent}: no such folder")
        findings = audit_with_bar(arguments.root)
        print(format_report(findings))
        if arguments.json:
            _write_json(arguments.json, findings)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def audit_with_bar(root: Path) -> dict[str, Any]:
    """Returns what `audit` finds; a terminal shows how far it is."""
    with progress_bar("reading images") as progress:
        return audit(root, progress)


def audit_once(root: Path) -> dict[str, Any]:
    """Returns what `audit` finds; files that were audited before are not read again.

    The findings lie in covjax's cache, under a hash of the path, length and time of
    change of every file below `root`.

    Args:
      root: the folder of the data.

    Raises:
      DataError: if no tree is there.
    """
    path = None
    with contextlib.suppress(UsageError, RuntimeError, OSError):
        folder = cache_folder() / "audits"
        private_folder(folder)
        path = folder / f"{_hash_files(root)}.json"
        with contextlib.suppress(ValueError):  # not whole
            found = read_json(path, finite=False)
            if isinstance(found, dict):
                return found | {"root": str(root)}
    print(f"\nauditing the images of {root}", flush=True)
    found = audit_with_bar(root)
    if path is not None:
        with contextlib.suppress(OSError):  # the next run audits again
            write_whole(path, json.dumps(found) + "\n")
    return found


def _hash_files(root: Path) -> str:
    """Returns a hash of all files below a folder as they are now."""
    digest = hashlib.sha256(f"{_FORMAT}\n".encode())
    for folder, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):  # a link to nothing
                told = os.stat(path)
                below = os.path.relpath(path, root)
                state = f"{below}\0{told.st_size}\0{told.st_mtime_ns}\n"
                digest.update(os.fsencode(state))
    return digest.hexdigest()[:32]


def _write_json(path: Path, findings: dict[str, Any]) -> None:
    try:
        write_whole(path, json.dumps(findings, indent=1) + "\n")
    except OSError as error:
        raise UsageError(f"--json: {path}: {error.strerror}") from None
