"""A page's server in this process, and a client that sends it whatever it likes."""

import asyncio
import contextlib
import http.client
import io
import json
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from covjax.app import __main__ as app
from drawn_segmenter import drawn
from processes import wait_until
from tiny_networks import make_image

TOKEN = "a-token-of-the-tests"
HOST = "images.hospital.example"
_BOUNDARY = "b0undary"


class Answer(NamedTuple):
    """Of a server."""

    status: int
    text: str
    headers: dict[str, str]


class Client:
    """One browser, or a script, that talks to a server."""

    def __init__(self, port: int, folder: Path, page: Any):
        """Takes where the server listens, keeps its files, and what it serves."""
        self.port, self.folder, self.page = port, folder, page

    def files(self) -> list[Path]:
        """Returns what the server has left on the disk."""
        return [path for path in self.folder.rglob("*") if path.is_file()]

    def ask(
        self, method: str, path: str, body: Any = None, *, token: str = TOKEN,
        **headers: str,
    ) -> Answer:  # fmt: skip
        """Asks; a keyword is a header, `_` for `-`; without a token if it is ""."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            sent["Authorization"] = f"Bearer {token}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            told = dict(answer.getheaders())
            return Answer(answer.status, answer.read().decode(), told)

    def upload(self, *files: tuple[str, bytes], **headers: str) -> Answer:
        body = b"".join(
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="files"; '
            f'filename="{name}"\r\n\r\n'.encode()
            + content
            + b"\r\n"
            for name, content in files
        )
        return self.ask(
            "POST", "/gradio_api/upload", body + f"--{_BOUNDARY}--\r\n".encode(),
            Content_Type=f"multipart/form-data; boundary={_BOUNDARY}", **headers,
        )  # fmt: skip

    @contextlib.contextmanager
    def open_page(self, session: str = "", **headers: str) -> Iterator[str]:
        """While entered, a page is open: yields its session."""
        session = session or secrets.token_hex(5)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            sent = {"Authorization": f"Bearer {TOKEN}"} | headers
            path = f"/gradio_api/heartbeat/{session}"
            connection.request("GET", path, headers=sent)
            answer = connection.getresponse()
            assert answer.status == 200
            yield session
            answer.close()

    def join(self, event: Any, **headers: str) -> Answer:
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        kind = {"Content_Type": "application/json"}
        return self.ask("POST", "/gradio_api/queue/join", body, **kind | headers)

    def drop(self, files: Any, session: str, **headers: str) -> str:
        """Asks for files to be read; returns the message that tells what came of it."""
        assert self.join(drop_event(files, session), **headers).status == 200
        path = f"/gradio_api/queue/data?session_hash={session}"
        lines = self.ask("GET", path, **headers).text.splitlines()
        (done,) = [line for line in lines if "process_completed" in line]
        return done


def drop_event(files: Any, session: str) -> dict[str, Any]:
    """Returns what the page sends when files are dropped: its first event."""
    data = [files, 0.35, 0.3, "Overlay alone"]
    return {"data": data, "fn_index": 0, "session_hash": session}


def files_of(*paths: str, **others: Any) -> list[dict[str, Any]]:
    """Returns files as Gradio's page names them."""
    meta = {"meta": {"_type": "gradio.FileData"}}
    return [{"path": path, "orig_name": "a.png"} | meta | others for path in paths]


def draw_png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(make_image()).save(file, "PNG")
    return file.getvalue()


@contextlib.contextmanager
def serve_page(folder: Path) -> Iterator[Client]:
    """While entered, a page is served to this machine."""
    from covjax.app.server import make_server

    with contextlib.ExitStack() as stack:
        stack.enter_context(app._kept_in(folder))
        listening = stack.enter_context(app._listen("127.0.0.1", 0))
        port = listening.getsockname()[1]
        hosts = app._hosts("127.0.0.1", [HOST])

        async def make() -> Any:  # else Gradio makes an event loop, and leaves it open
            made = app.make_page(drawn(), folder, TOKEN, hosts, port)
            return stack.enter_context(made)

        page = asyncio.run(make())
        server = make_server(page)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        assert wait_until(lambda: server.started)
        yield Client(port, folder, page)
        server.should_exit = True
        thread.join()
