"""A page in the browser for films of your own: lungs, and COVID-19 infection in them.

  python -m covjax.app [--lung=RUN] [--infection=RUN] [--host=127.0.0.1] [--port=7860]

Research use only: not a medical device. RUN is a run's folder, a checkpoint or a file
of weights (*.safetensors); by default those that come with covjax. The page is served
to this machine alone, unless --host says otherwise. Ctrl-C ends it. docs/app.md tells
what it shows and what it keeps. Exit status: 2 if it cannot start, else 130 or 143, as
a signal ends it.
"""

import argparse
import contextlib
import importlib.util
import ipaddress
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from covjax import parallel
from covjax.errors import UsageError, reason
from covjax.films.segmenter import Segmenter
from covjax.networks import read_stages
from covjax.system.compilation import keep_compiled
from covjax.system.interrupt import Interrupted, raise_signals
from covjax.system.last_words import tell

_UNREAD = 600  # seconds that an upload may lie about unread


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m covjax.app", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--lung", default="", metavar="RUN", help="finds the lungs")
    parser.add_argument("--infection", default="", metavar="RUN", help="of stage 2")
    parser.add_argument(
        "--host", default="127.0.0.1", help="default: this machine alone"
    )
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one")
    given = parser.parse_args(arguments)
    parallel.keep_to_the_host()  # a training may have the accelerators
    keep_compiled()
    try:
        with raise_signals(), _ending_with_the_terminal():
            serve(given.lung, given.infection, given.host, given.port)
    except Interrupted as ended:  # the way that it is meant to end
        print("covjax: ended; no film is kept", file=sys.stderr)
        return ended.exit_status
    except (Exception, KeyboardInterrupt) as error:
        return tell(error)
    return 0


def serve(lung: str, infection: str, host: str, port: int) -> None:
    """Serves the page until a signal comes.

    Args:
      lung: what finds the lungs, as `networks.read_stages` takes it.
      infection: what finds infection, likewise.
      host: whom to listen to: a name or number of this machine.
      port: where; 0: where it is free.

    Raises:
      UsageError: if Gradio is not installed, the port is taken, or the weights are no
        such weights.
      Interrupted: by the signal that ended it.
    """
    _check_gradio()
    with _listen(host, port) as listening, _private_folder():
        segmenter = Segmenter(*read_stages(lung, infection))
        # Gradio reads the environment when it is imported, and is not always there.
        from covjax.app.page import make_app

        app = make_app(segmenter)
        at, number = listening.getsockname()[:2]
        if not ipaddress.ip_address(at).is_loopback:
            print(
                f"covjax: --host={host}: anybody who can reach this machine can use the"
                " page, and nothing is encrypted",
                file=sys.stderr,
            )
        name = f"[{host}]" if ":" in host else host
        print(f"covjax: http://{name}:{number}/ (Ctrl-C ends it)", flush=True)
        _run(app, listening)


def _check_gradio() -> None:
    if importlib.util.find_spec("gradio") is None:
        raise UsageError("the page needs Gradio: pip install 'covjax[app]'")


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise UsageError(f"--port={port}: from 0, a free one, to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        where = f"--host={host} --port={port}"
        raise UsageError(
            f"{where}: cannot listen there ({reason(error)}); another --port, or"
            " --port=0 for a free one"
        ) from None


@contextlib.contextmanager
def _ending_with_the_terminal() -> Iterator[None]:
    """While entered, a terminal that is closed ends the page as SIGTERM does.

    By itself SIGHUP would end the process at once, and leave uploads where they are.
    Where it is to be ignored (`nohup`), it is.
    """
    before = signal.getsignal(signal.SIGHUP)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@contextlib.contextmanager
def _private_folder() -> Iterator[None]:
    """While entered, uploads are kept in a folder that nobody else may look into.

    Gradio reads where to keep them, and that it is to tell nobody of its use, when it
    is imported.
    """
    with tempfile.TemporaryDirectory(prefix="covjax-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        tempfile.tempdir = folder  # for whatever else is written on the way
        ended = threading.Event()
        threading.Thread(target=_sweep, args=(Path(folder), ended), daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            tempfile.tempdir = None


def _sweep(folder: Path, ended: threading.Event) -> None:
    while not ended.wait(_UNREAD / 10):
        delete_older(folder, time.time() - _UNREAD)


def delete_older(folder: Path, than: float) -> None:
    """Deletes the files of a folder, and of all in it, that were last written before.

    An upload that was broken off, or too large, is read by nobody.

    Args:
      folder: of the uploads.
      than: seconds since the epoch.
    """
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another was faster
            if path.is_file() and path.stat().st_mtime < than:
                path.unlink()


def _run(app: Any, listening: socket.socket) -> None:
    import uvicorn

    # No line a request: it would tell the names of files. Pages that are open keep a
    # connection, which would not end by itself.
    config = uvicorn.Config(
        app, log_level="critical", access_log=False, timeout_graceful_shutdown=1
    )
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    sys.exit(main())
