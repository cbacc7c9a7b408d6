"""A page in the browser for images of your own: lungs, and COVID-19 infection in them.

  python -m covjax.app [--lung=RUN] [--infection=RUN] [--host=127.0.0.1] [--port=7860]
      [--allowed_host=NAME ...]

Research use only: not a medical device. RUN is a run's folder, a checkpoint or a file
of weights (*.safetensors); by default those that come with covjax. The page is served
to this machine alone, unless --host says otherwise, and only to those who open the
printed address: it ends in a token, which is random unless COVJAX_APP_TOKEN sets it.
Ctrl-C ends it. docs/app.md tells what it shows, refuses and keeps. Exit status: 2 if it
cannot start, else 130 or 143, as a signal ends it.
"""

import argparse
import contextlib
import importlib.util
import ipaddress
import logging
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from covjax import parallel
from covjax.app.upload_folder import private_folder
from covjax.errors import UsageError, reason
from covjax.export.load_model import read_stages
from covjax.predict.segmenter import Segmenter
from covjax.runtime.compilation_cache import keep_compiled
from covjax.runtime.exit_messages import tell
from covjax.runtime.signals import Interrupted, raise_signals

TOKEN = "COVJAX_APP_TOKEN"  # never a flag: other users of the machine see those
_SHORTEST = 16  # characters of a token that somebody chose
_IN_ADDRESS = re.compile(r"[A-Za-z0-9._~/=-]+")  # what `?token=` takes as it is
_SWEEP = 30.0  # seconds


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
    parser.add_argument(
        "--allowed_host", action="append", default=[], metavar="NAME",
        help="a further name of this server, as of a proxy; can be repeated",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    parallel.keep_to_the_host()  # a training may have the accelerators
    keep_compiled()
    try:
        with raise_signals(), _ending_with_the_terminal():
            serve(
                given.lung, given.infection, given.host, given.port, given.allowed_host
            )
    except Interrupted as ended:  # the way that it is meant to end
        print("covjax: ended; no image is kept", file=sys.stderr)
        return ended.exit_status
    except (Exception, KeyboardInterrupt) as error:
        return tell(error)
    return 0


def serve(
    lung: str, infection: str, host: str, port: int, allowed: Sequence[str] = ()
) -> None:
    """Serves the page until a signal comes.

    Args:
      lung: what finds the lungs, as `networks.read_stages` takes it.
      infection: what finds infection, likewise.
      host: whom to listen to: a name or number of this machine.
      port: where; 0: where it is free.
      allowed: further names by which browsers may address the page.

    Raises:
      UsageError: if Gradio is not installed, the port is taken, the token is too short,
        or the weights are no such weights.
      Interrupted: by the signal that ended it.
    """
    _check_gradio()
    chosen = _read_token()
    token = chosen or secrets.token_urlsafe(24)
    hosts = _hosts(host, allowed)
    # A library's warning may quote a file. Orbax has logging print to stderr when it
    # is imported; without any handler, Python would print it too.
    logging.basicConfig(handlers=[logging.NullHandler()], force=True)
    with _listen(host, port) as listening, private_folder() as folder, _kept_in(folder):
        segmenter = Segmenter(*read_stages(lung, infection))
        number = listening.getsockname()[1]
        with make_page(segmenter, folder, token, hosts, number) as page:
            # A service's output is kept in a log: its token stays out of it.
            _tell_address(host, listening, f"${TOKEN}" if chosen else token)
            _run(page, listening)


@contextlib.contextmanager
def make_page(
    segmenter: Segmenter, folder: Path, token: str, hosts: Sequence[str], port: int
) -> Iterator[Any]:
    """Yields the page as an ASGI application; while entered, it works.

    Args:
      segmenter: of two stages.
      folder: private, for what is decoded.
      token: that lets somebody in.
      hosts: names by which browsers may address the page.
      port: where it is served.
    """
    # Gradio reads the environment when it is imported, and is not always there.
    from covjax.app.access import guard
    from covjax.app.decoding import Decoder
    from covjax.app.page import make_app
    from covjax.app.uploads import Uploads
    from covjax.app.viewer import Viewer

    uploads = Uploads(folder)
    ended = threading.Event()

    def sweep() -> None:
        while not ended.wait(_SWEEP):
            uploads.sweep()

    threading.Thread(target=sweep, daemon=True).start()
    with contextlib.closing(Decoder(uploads)) as decoder:
        app = make_app(Viewer(segmenter, uploads, decoder), decoder.close)
        try:
            # A browser sends a cookie to every port of a host.
            yield guard(app, token=token, cookie=f"covjax-{port}", hosts=hosts)
        finally:
            ended.set()


def _read_token() -> str | None:
    """Returns the token that somebody chose, and takes it out of the environment.

    Processes that decode what others sent do not inherit it.
    """
    token = os.environ.pop(TOKEN, None)
    if token is not None and len(token) < _SHORTEST:
        raise UsageError(f"{TOKEN}: give at least {_SHORTEST} characters")
    if token is not None and not _IN_ADDRESS.fullmatch(token):
        raise UsageError(f"{TOKEN}: only letters, digits and - _ . ~ / = are allowed")
    return token


def _hosts(host: str, allowed: Sequence[str]) -> list[str]:
    hosts = ["localhost", "127.0.0.1", "[::1]", *allowed]
    for name in allowed:
        if not name or "*" in name or "/" in name or ":" in name.rpartition("]")[2]:
            raise UsageError(
                f"--allowed_host={name}: give a host's name without a port or *"
            )
    if host not in ("0.0.0.0", "::", ""):
        hosts.append(f"[{host}]" if ":" in host else host)
    return hosts


def _tell_address(host: str, listening: socket.socket, token: str) -> None:
    at, number = listening.getsockname()[:2]
    address = ipaddress.ip_address(at)
    if not address.is_loopback:
        print(
            f"covjax: --host={host}: other machines can reach the page, and nothing is"
            " encrypted: whoever listens on the network reads the token and the"
            " images. See docs/app.md for a proxy that encrypts.",
            file=sys.stderr,
        )
    # "localhost" may be another program's on IPv6; 0.0.0.0 and :: are no addresses.
    if address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"
    elif address.is_loopback:
        host = at
    name = f"[{host}]" if ":" in host else host
    print(f"covjax: http://{name}:{number}/?token={token} (Ctrl-C ends it)", flush=True)


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
def _kept_in(folder: Path) -> Iterator[None]:
    """While entered, all temporary files go to a folder.

    Gradio reads where to keep its own, and that it is to tell nobody of its use, when
    it is imported.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = None


def _run(app: Any, listening: socket.socket) -> None:
    from covjax.app.server import make_server

    make_server(app).run(sockets=[listening])


if __name__ == "__main__":
    sys.exit(main())
