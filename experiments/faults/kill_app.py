"""Kills `covjax.app` while it starts and while it reads images that were dropped.

  python -m experiments.faults.kill_app [--kills=6] [--seed=0]

The next start has to work, and to remove what the killed process left in the folder for
temporary files. At the end one more reads the images, ends by SIGTERM and leaves no
file at all. Ends with a line of JSON; status 1 if anything else happens.
"""

import argparse
import collections
import contextlib
import functools
import http.client
import io
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from covjax.data.phantom.drawing import make_phantom
from experiments.faults.killed import PATIENCE, environment, finish
from experiments.faults.small_weights import write_weights

IMAGES = 4  # of a drop
TOKEN = "a-token-of-the-faults"
_BOUNDARY = "b0undary"


def main(argv: list[str] | None = None) -> int:
    """Runs it all; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.faults.kill_app")
    parser.add_argument("--kills", type=int, default=6, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    rng, kills, faults = np.random.default_rng(given.seed), collections.Counter(), []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="covjax-kill_app-") as folder:
        cwd = Path(folder)
        write_weights(cwd)
        (cwd / "tmp").mkdir()
        while kills.total() < given.kills and not faults:
            kills[_kill(cwd, rng)] += 1
        faults += _read_and_end(cwd)
    for fault in faults:
        print(fault)
    told = {"survived": kills.total(), "at": dict(kills), "faults": len(faults)}
    told["seconds"] = round(time.monotonic() - began)
    print(json.dumps({"kill_app": told}))
    return int(bool(faults))


def start(cwd: Path) -> subprocess.Popen[bytes]:
    """Starts the app on a free port, with a folder of its own for temporary files."""
    told = {"TMPDIR": str(cwd / "tmp"), "COVJAX_APP_TOKEN": TOKEN}
    files = ("--lung=lung.safetensors", "--infection=infection.safetensors")
    with (cwd / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "covjax.app", *files, "--port=0"], cwd=cwd,
            env=environment(cwd) | told, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def wait_for_port(cwd: Path, process: subprocess.Popen[bytes]) -> int:
    """Returns the port once the app listens.

    Raises:
      RuntimeError: if it ends before, or takes too long.
    """
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if found := re.search(r"http://[^/]*:(\d+)/", _said(cwd)):
            return int(found[1])
        time.sleep(0.01)
    finish(process, 0)
    raise RuntimeError(f"does not start: {_said(cwd)[-1500:]}")


def _kill(cwd: Path, rng: np.random.Generator) -> str:
    """Starts the app and kills it; returns at which moment.

    Half of the times its workers are killed with it; else they have to end themselves.
    """
    process, alone = start(cwd), rng.random() < 0.5
    moment = str(rng.choice(["at the start", "while it reads"], p=[0.3, 0.7]))
    if moment == "at the start":
        time.sleep(rng.uniform(0, 8))
    else:
        port, session = wait_for_port(cwd, process), secrets.token_hex(5)
        with contextlib.closing(_open_page(port, session)):
            _drop(port, session)
            time.sleep(rng.uniform(0, 1))
    (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
    process.wait()
    return moment


def _read_and_end(cwd: Path) -> list[str]:
    process = start(cwd)
    try:
        port, session = wait_for_port(cwd, process), secrets.token_hex(5)
    except RuntimeError as error:
        return [str(error)]
    folders = list((cwd / "tmp").glob("covjax-*"))
    faults = [f"{len(folders)} folders, not 1"] if len(folders) != 1 else []
    with contextlib.closing(_open_page(port, session)):
        _drop(port, session)
        path = f"/gradio_api/queue/data?session_hash={session}"
        answer = _ask(port, "GET", path)
    if '"success":true' not in answer.replace(" ", ""):
        faults.append(f"does not read: {answer[-500:]}")
    process.send_signal(signal.SIGTERM)
    if (status := finish(process)) != 128 + signal.SIGTERM:
        faults.append(f"status {status}: {_said(cwd)[-1500:]}")
    left = [path for path in (cwd / "tmp").rglob("*") if path.is_file()]
    return faults + [f"{path} was left" for path in left]


def _open_page(port: int, session: str) -> http.client.HTTPConnection:
    """Returns the connection that an open page keeps; without it, it counts as gone."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    path = f"/gradio_api/heartbeat/{session}"
    connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"})
    connection.getresponse()
    return connection


def _drop(port: int, session: str) -> None:
    """Uploads images and asks for them to be read, as the page does."""
    head = 'Content-Disposition: form-data; name="files"; filename="{}.png"\r\n\r\n'
    body = b"".join(
        f"--{_BOUNDARY}\r\n{head.format(k)}".encode() + content + b"\r\n"
        for k, content in enumerate(_images())
    )
    kind = f"multipart/form-data; boundary={_BOUNDARY}"
    body += f"--{_BOUNDARY}--\r\n".encode()
    paths = json.loads(_ask(port, "POST", "/gradio_api/upload", body, kind))
    meta = {"meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}
    data: list[Any] = [[{"path": path} | meta for path in paths]]
    data += [0.35, 0.3, "Overlay alone"]
    event = {"data": data, "fn_index": 0, "session_hash": session}
    body = json.dumps(event).encode()
    _ask(port, "POST", "/gradio_api/queue/join", body, "application/json")


@functools.cache
def _images() -> list[bytes]:
    rng, contents = np.random.default_rng(0), []
    for _ in range(IMAGES):
        file = io.BytesIO()
        image = make_phantom("COVID-19", rng, 1500)["image"]
        Image.fromarray(image).save(file, "PNG")
        contents.append(file.getvalue())
    return contents


def _ask(port: int, method: str, path: str, body: bytes = b"", kind: str = "") -> str:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    headers |= {"Content-Type": kind} if kind else {}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        said = answer.read().decode()
        if answer.status != 200:
            raise RuntimeError(f"{method} {path}: {answer.status} {said[:300]}")
        return said


def _said(cwd: Path) -> str:
    return (cwd / "log").read_text(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
