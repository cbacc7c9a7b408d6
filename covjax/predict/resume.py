"""Whether an image is done: its file and its outputs are still what its row says.

Contents are compared, and no times: a file may be replaced by an older one, copied
without its times, or written while the clock was wrong.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from covjax.errors import DataError
from covjax.predict.inputs import Input
from covjax.predict.radiograph import digest_file
from covjax.predict.table import Row

LUNGS, INFECTION, OVERLAYS, SEGS = "lungs", "infection", "overlays", "seg"
KINDS = {LUNGS: "png", INFECTION: "png", OVERLAYS: "jpg", SEGS: "dcm"}


def output_path(out: Path, kind: str, one: Input) -> Path:
    """Returns where an output of an image lies, or would lie."""
    return out / kind / f"{one.name}.{KINDS[kind]}"


def digest_outputs(out: Path, one: Input) -> str:
    """Returns the SHA-256 of an image's outputs, one after the other as in `KINDS`.

    Raises:
      OSError: if one of them cannot be read.
    """
    found = hashlib.sha256()
    for kind in KINDS:
        path = output_path(out, kind, one)
        if os.path.isfile(path):
            found.update(path.read_bytes())
    return found.hexdigest()


def is_done(one: Input, out: Path, row: Row | None) -> bool:
    """Returns whether an image need not be read again.

    Args:
      one: the image.
      out: folder of all outputs.
      row: of the image; None: it has none.
    """
    if row is None or row["error"]:
        return False
    try:
        return (
            digest_outputs(out, one) == row["outputs_sha256"]
            and digest_file(one.path) == row["file_sha256"]
        )
    except (OSError, DataError):
        return False


def remove_outputs(out: Path, one: Input, kinds: Iterable[str] = KINDS) -> None:
    """Removes outputs of an image, such as those of a file that has been replaced.

    Raises:
      OSError: if one cannot be removed.
    """
    for kind in kinds:
        path = output_path(out, kind, one)
        if os.path.isfile(path) or os.path.islink(path):
            path.unlink()
