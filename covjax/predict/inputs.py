"""Which files a user means: files, folders and patterns, each image once, by a name."""

import dataclasses
import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from covjax.data.covidqu import INFECTION_MASKS, LUNG_MASKS, SUFFIXES
from covjax.data.image_io import shown
from covjax.errors import UsageError
from covjax.predict.dicom.reader import DICOM_SUFFIXES, is_dicom

ABOUT = "predictions.json"  # lies in every folder of outputs
_DIRECTORY = "DICOMDIR"  # of the files on a disc (PS3.10, 8.6): DICOM, and no image
# Ends of lines, and bytes that are no UTF-8: no table can hold these.
_UNTOLD = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")
_NO_IMAGES = {LUNG_MASKS, INFECTION_MASKS}  # folders of the published layout


@dataclasses.dataclass(frozen=True)
class Input:
    """A file that is to be read.

    Attributes:
      path: of the file.
      name: what its outputs are called, with / and without an ending, "ward/image_1":
        below the folder that was given. No other input has it. It is one line of UTF-8:
        what is not, of a path, is escaped.
    """

    path: Path
    name: str


def find_inputs(given: Sequence[str], *, leave_out: Path) -> list[Input]:
    """Finds the images among files, folders and patterns.

    Of a folder, and of all in it, these are images: files with the ending of a picture
    or of DICOM, and DICOM files of any name but DICOMDIR. Hidden files and folders are
    passed over, as are the folders of masks in the published layout, and those of
    outputs. A file that is named itself is always taken.

    Args:
      given: paths, or patterns with *, ?, [] and **.
      leave_out: a folder that is not looked into: that of the outputs.

    Returns:
      Images in the order of what was given, and by name within a folder.

    Raises:
      UsageError: if a path is not there, nothing is found, or two files would have
        outputs of one name.
    """
    leave_out = Path(os.path.realpath(leave_out))
    found: dict[Path, tuple[Path, str]] = {}  # by the place: paths may lead there by ..
    for path in (path for word in given for path in _expand(word)):
        if os.path.isdir(path):  # `Path.is_dir` raises where it may not look
            for radiograph in _walk(path, leave_out):
                told = radiograph, radiograph.relative_to(path).as_posix()
                found.setdefault(_place(radiograph), told)
        elif leave_out not in _place(path).parents:
            found.setdefault(_place(path), (path, path.name))
    if not found:
        raise UsageError(
            f"no images in {', '.join(shown(word) for word in given)}; links to"
            " folders,"
            " and the folder of the outputs, are not looked into"
        )
    return _name(dict(found.values()))


def _place(path: Path) -> Path:
    """Returns where a file lies, or the link to it."""
    return Path(os.path.realpath(path.parent), path.name)


def _expand(word: str) -> list[Path]:
    if os.path.lexists(word):  # also one whose name has a bracket, or begins with ~
        return [Path(word)]
    word = os.path.expanduser(word)
    matches = [word] if os.path.lexists(word) else glob.glob(word, recursive=True)
    if not matches:
        raise UsageError(f"{shown(word)}: no such file or folder")
    return [Path(match) for match in sorted(matches)]


def _walk(folder: Path, leave_out: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UsageError(f"{shown(str(error.filename))}: {error.strerror}")

    place = Path(os.path.realpath(folder))
    if leave_out in (place, *place.parents):
        return
    for at, folders, files in os.walk(folder, onerror=refuse):
        if ABOUT in files and Path(at) != folder:
            folders.clear()
            continue
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in _NO_IMAGES
            and Path(os.path.realpath(Path(at, name))) != leave_out
        )
        for name in sorted(files):
            path = Path(at, name)
            if not name.startswith(".") and _is_image(path):
                yield path


def _is_image(path: Path) -> bool:
    if path.name.upper() == _DIRECTORY:
        return False
    return path.suffix.lower() in SUFFIXES | DICOM_SUFFIXES or is_dicom(path)


def _name(found: dict[Path, str]) -> list[Input]:
    """Names the outputs: without the ending, where that leaves them apart."""
    stems: dict[str, list[Path]] = {}
    for path, name in found.items():
        stems.setdefault(_key(_stem(name)), []).append(path)
    inputs, taken = [], dict[str, Path]()
    for path, name in found.items():
        alone = len(stems[_key(_stem(name))]) == 1
        name = _told(_stem(name) if alone else name)
        other = taken.setdefault(_key(name), path)
        if other != path:
            if path.parent == other.parent:
                way = "some disks know no capitals: rename one, or"
            else:
                way = "give the folder that holds both, or"
            raise UsageError(
                f"{shown(path)} and {shown(other)}: outputs of one name; {way} run them"
                " apart with an --out each"
            )
        inputs.append(Input(path, name))
    return inputs


def _told(name: str) -> str:
    return _UNTOLD.sub(lambda c: c[0].encode("unicode_escape").decode(), name)


def _stem(name: str) -> str:
    """Returns a name without its ending, if it has one that images have."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in SUFFIXES | DICOM_SUFFIXES else name


def _key(name: str) -> str:
    """Returns what two names must not share: some disks know no capitals."""
    return name.casefold()
