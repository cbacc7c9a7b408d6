"""Files that are written whole or not at all."""

import os
import tempfile
from pathlib import Path

# What `open` would give a new file; mkstemp lets nobody else read.
_UMASK = os.umask(0)
os.umask(_UMASK)
MODE = 0o666 & ~_UMASK


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file under a temporary name beside it, then renames it.

    Whoever reads `path` finds what was there before or all of what is new, even if
    this process is killed. Missing folders are made.

    Raises:
      OSError: if the folder cannot be written; what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, MODE)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
