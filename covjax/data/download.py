"""Gets COVID-QU-Ex from Kaggle, and says how covjax is pointed at it.

  python -m covjax.data.download [DEST]

Without DEST the set goes where kagglehub keeps its downloads. Needs the extra
`covjax[download]`. Exit status: 0 if the set is there; 2 if not, with what to do.
"""

import argparse
import importlib
import shlex
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path

from covjax.data import covidqu
from covjax.errors import DataError, UsageError

HANDLE = "anasmohammedtahir/covidqu"
PAGE = f"https://www.kaggle.com/datasets/{HANDLE}"
SERVER = "https://api.kaggle.com"
PATIENCE = 10  # seconds for a first answer of the server
BY_HAND = (
    f"Get it by hand from {PAGE}, unpack it, and set COVJAX_DATA to the folder that"
    f" holds '{covidqu.TREES['infection']}'."
)


def download(dest: Path | None = None) -> Path:
    """Gets the set, unless it lies in `dest` already.

    Args:
      dest: new or empty folder for it; None for kagglehub's own cache, where a
        download that was cut off is taken up again.

    Returns:
      The folder of the data, as `config.data.root` takes it.

    Raises:
      UsageError: if kagglehub is not installed or `dest` holds other things.
      DataError: if Kaggle cannot be reached or refuses, or sends another set.
    """
    if dest is not None and _has_tree(dest):
        print(f"{dest}: the set lies there already, nothing was downloaded")
        return dest
    if dest is not None and dest.exists() and (dest.is_file() or any(dest.iterdir())):
        raise UsageError(f"{dest}: neither empty nor a COVID-QU-Ex; name a new folder")
    try:
        kagglehub = importlib.import_module("kagglehub")
    except ImportError:
        raise UsageError(
            f"kagglehub is not installed: pip install 'covjax[download]'\n{BY_HAND}"
        ) from None
    _knock()
    try:
        where = {} if dest is None else {"output_dir": str(dest)}
        root = Path(kagglehub.dataset_download(HANDLE, **where))
    except Exception as error:  # kagglehub, requests, zipfile: each has its own kinds
        raise DataError(
            f"kagglehub got no {HANDLE}: {_first_line(error)}\n{BY_HAND}"
        ) from None
    if not _has_tree(root):
        raise DataError(
            f"{root}: what Kaggle sent holds neither of the two trees\n{BY_HAND}"
        )
    return root


def _has_tree(root: Path) -> bool:
    for task in covidqu.TASKS:
        try:
            covidqu.find_tree(root, task)
        except DataError:
            continue
        return True
    return False


def _knock() -> None:
    """Asks the server for any answer, as kagglehub sets no time limit on its own.

    Behind a firewall that swallows packets it would hang for minutes.
    """
    request = urllib.request.Request(SERVER, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=PATIENCE).close()
    except urllib.error.HTTPError as error:
        error.close()  # it does answer; what it thinks of HEAD does not matter
    except OSError as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return  # it answers; kagglehub may know other certificates than Python
        raise DataError(f"{SERVER} cannot be reached: {reason}\n{BY_HAND}") from None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def main(argv: list[str] | None = None) -> int:
    """Runs the download as a command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m covjax.data.download",
        description=f"Gets COVID-QU-Ex ({PAGE}) through kagglehub.",
    )
    parser.add_argument("dest", nargs="?", type=Path, metavar="DEST")
    dest = parser.parse_args(argv).dest
    try:
        root = download(dest).resolve()
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"COVID-QU-Ex lies in {root}")
    print(f"export COVJAX_DATA={shlex.quote(str(root))}")
    print(f"python -m covjax.data.audit {shlex.quote(str(root))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
