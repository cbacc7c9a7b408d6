"""What the page's server answers to whoever is not its page."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import UploadFile

from covjax.app import decoding, gate, server, uploads, viewer
from covjax.app.gate import Gate
from covjax.app.upload_folder import private_folder
from covjax.app.uploads import Upload, Uploads
from hostile_client import (
    HOST,
    TOKEN,
    Client,
    draw_png,
    drop_event,
    files_of,
    serve_page,
)
from processes import wait_until
from slow_decoders import read_in_time

# Gradio's and its libraries' own.
pytestmark = pytest.mark.filterwarnings("ignore")

MALFORMED = (400, "not a request of the page")
PATIENT = "patient-mueller"  # never in the log


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with serve_page(tmp_path_factory.mktemp("uploads")) as served:
        yield served


def gate_of(client: Client) -> Gate:
    return client.page._app.app._app  # headers, hosts, access, gate


def held(client: Client) -> dict[str, Upload]:
    return gate_of(client)._uploads._waiting


def cookie_of(client: Client, **headers: str) -> str:
    answer = client.ask("GET", f"/?token={TOKEN}", token="", **headers)
    assert answer.status == 303 and answer.headers["location"] == "/"
    return answer.headers["set-cookie"].partition(";")[0]


def test_only_the_token_opens_the_page(client):
    for token, path in (("", "/"), ("wrong", "/"), ("", "/?token=wrong"), ("é", "/")):
        answer = client.ask("GET", path, token=token)
        assert answer.status == 403 and "printed" in answer.text
        assert "set-cookie" not in answer.headers and TOKEN not in answer.text
    assert client.ask("GET", "/").status == 200
    told = client.ask("GET", f"/?token={TOKEN}", token="").headers["set-cookie"]
    assert told.startswith(f"covjax-{client.port}=")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(told.split("; "))
    assert "Secure" not in told and TOKEN not in told
    told = client.ask("GET", f"/?token={TOKEN}", X_Forwarded_Proto="https").headers
    assert "Secure" in told["set-cookie"]


def test_a_cookie_stands_for_the_token_and_cannot_be_made_up(client):
    cookie = cookie_of(client)
    assert client.ask("GET", "/", token="", Cookie=cookie).status == 200
    name, _, value = cookie.partition("=")
    browser, _, signature = value.partition(".")
    for forged in (
        f"{name}=x{browser}.{signature}", f"{name}={browser}.", f"{name}={browser}",
        f"{name}=.", f"covjax-1={value}", f"{name}=.{signature}",
    ):  # fmt: skip
        assert client.ask("GET", "/", token="", Cookie=forged).status == 403
    # A second page of one browser does not take the images from the first.
    assert cookie_of(client, Cookie=cookie) == cookie
    assert cookie_of(client) != cookie


@pytest.mark.parametrize(
    ("host", "status"),
    [(HOST, 200), (f"{HOST}:443", 200), ("localhost", 200), ("[::1]:7860", 200)]
    + [("evil.example", 400), (f"{HOST}.evil.example", 400), ("", 400)],
)
def test_a_name_that_is_not_ours_is_refused(client, host, status):
    assert client.ask("GET", "/", Host=host).status == status


def test_pages_of_other_sites_are_refused(client):
    here = f"http://127.0.0.1:{client.port}"
    path = "/theme.css"
    answer = client.ask("GET", path, Origin=here, Sec_Fetch_Site="same-origin")
    assert answer.status == 200
    for foreign in ("http://localhost:8888", "http://127.0.0.1", "null", "https://a.b"):
        answer = client.ask("GET", path, Origin=foreign)
        assert answer.status == 403
        assert not [h for h in answer.headers if h.startswith("access-control")]
        asked = {"Access_Control_Request_Method": "POST", "Origin": foreign}
        assert client.ask("OPTIONS", "/gradio_api/queue/join", **asked).status == 403
    for site in ("cross-site", "same-site"):
        assert client.ask("GET", path, Sec_Fetch_Site=site).status == 403
        # A link may lead to the page, which a browser then asks for without its cookie.
        follows = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": "navigate"}
        answer = client.ask("GET", "/", token="", **follows)
        assert answer.status == 200 and 'http-equiv="refresh"' in answer.text
        assert client.ask("POST", "/", token="", **follows).status == 403
        assert client.ask("GET", path, token="", **follows).status == 403


def test_answers_tell_browsers_what_not_to_do(client):
    for path, token in (("/", TOKEN), ("/", ""), ("/nowhere", TOKEN)):
        headers = client.ask("GET", path, token=token).headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


GET = (
    "config", "docs", "openapi.json", "monitoring", "logout", "manifest.json",
    "pwa_icon", "robots.txt", "svelte/x", "custom_component/1/client/component/x.js",
    "static/../../../routes.py", "assets/..%2f..%2fx", "assets//etc/hostname",
    "gradio_api/info", "gradio_api/app_id", "gradio_api/user", "gradio_api/token",
    "gradio_api/queue/status", "gradio_api/runs", "gradio_api/file=/etc/hostname",
    "gradio_api/file=/nowhere", "gradio_api/file/etc/hostname",
    "gradio_api/proxy=http://127.0.0.1", "gradio_api/stream/a/b/1/playlist.m3u8",
    "gradio_api/startup-events", "gradio_api/deep_link", "gradio_api/dev/reload",
    "gradio_api/heartbeat/A", "gradio_api/heartbeat/a.b", "gradio_api/call/x/y",
    "gradio_api/mcp", "gradio_api/vibe-code", "gradio_api/openapi.json",
)  # fmt: skip
POST = (
    "", "login", "gradio_api/run/x", "gradio_api/api/x", "gradio_api/call/x",
    "gradio_api/call/v2/x", "gradio_api/reset", "gradio_api/cancel",
    "gradio_api/component_server", "gradio_api/process_recording",
    "gradio_api/stream/x", "gradio_api/vibe-edit", "gradio_api/upload/",
    "gradio_api/queue/join/", "gradio_api/run-history/connect",
)  # fmt: skip


def test_only_what_the_page_asks_for_is_answered(client):
    for path in GET:
        assert client.ask("GET", f"/{path}")[:2] == (404, "not found"), path
    for path in POST:
        assert client.ask("POST", f"/{path}", b"{}")[:2] == (404, "not found"), path
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert client.ask(method, "/").status == 404
    assert client.ask("GET", "/theme.css").status == 200
    # What a link could ask for is dropped, and so is another address of the page.
    page = client.ask("GET", "/?deep_link=x", X_Forwarded_Host="evil.example")
    assert page.status == 200 and "evil.example" not in page.text
    assert '"deep_link_state": "none"' in page.text.replace('":"', '": "')


def test_an_upload_is_shown_once_and_leaves_nothing(client, capfd):
    with client.open_page() as session:
        (name,) = json.loads(client.upload((f"../{PATIENT}.png", draw_png())).text)
        # Neither where it lies nor how it is called is part of its name.
        assert len(name) == 32 and int(name, 16) >= 0
        assert not client.files()
        done = client.drop(files_of(name), session)
        assert "data:image/jpeg" in done and f"{PATIENT}.png" in done
        assert not held(client) and not client.files()
        again = client.drop(files_of(name), session)
        assert "no longer kept" in again and "data:image" not in again
    assert capfd.readouterr() == ("", "")


def test_no_path_is_opened_whoever_asks_for_it(client, tmp_path, capfd):
    image = tmp_path / f"{PATIENT}.png"
    image.write_bytes(draw_png())
    empty = tmp_path / "empty"
    empty.mkdir()
    link = client.folder / "link.png"
    link.symlink_to(image)
    paths = [
        str(image), str(tmp_path / "missing.png"), str(link), str(client.folder),
        "/dev/zero", "/dev/stdin", "/proc/self/environ", str(empty / "x.png"), "",
        f"{client.folder}/../{image}", "http://127.0.0.1:9/a.png", "a" * 32 + "/",
        f"file://{image}", "https://huggingface.co/a.png", "\0", "A" * 32, "a" * 33,
    ]  # fmt: skip
    with client.open_page() as session:
        for path in paths:
            for others in ({}, {"is_stream": True}, {"url": str(image)}):
                answer = client.join(drop_event(files_of(path, **others), session))
                assert answer[:2] == MALFORMED, path  # the same for all
        # One that could be a name is looked up, and not found; what else is said of it
        # is not looked at.
        done = client.drop(files_of("0" * 32, url=str(image), path2=1), session)
        assert "no longer kept" in done and "data:image" not in done
        for control in (1, 2, 3):
            event = drop_event([], session)
            event["data"][control] = files_of(str(image))[0]
            assert client.join(event)[:2] == MALFORMED
    link.unlink()
    assert image.exists() and empty.exists() and not client.files()
    assert capfd.readouterr() == ("", "")


def test_gradio_itself_opens_no_file_that_nobody_uploaded(client, tmp_path):
    from gradio.context import LocalContext
    from gradio.exceptions import InvalidPathError
    from gradio.processing_utils import move_files_to_cache

    inner: Any = gate_of(client)._app
    blocks = inner.routes[-1].app.blocks
    (slider, *_) = (b for b in blocks.blocks.values() if type(b).__name__ == "Slider")
    (tmp_path / "a.png").write_bytes(draw_png())
    given = files_of(str(tmp_path / "a.png"))
    before = LocalContext.blocks.set(blocks)
    try:
        with pytest.raises(InvalidPathError):
            move_files_to_cache(given, slider, check_in_upload_folder=True)
    finally:
        LocalContext.blocks.reset(before)


EVENT = json.dumps(drop_event([], "abc")).encode()
BODIES = {
    "cut": b'{"data": ["%s' % PATIENT.encode(),
    "list": b"[]",
    "empty": b"",
    "deep": b"[" * 100_000,
    "deep data": EVENT.replace(b"[[]", b"[" + b"[" * 60_000),
    "nan": EVENT.replace(b"0.35", b"NaN"),
    "infinite": EVENT.replace(b"0.35", b"1e999"),
    "huge": EVENT.replace(b"0.35", b"9" * 4000),
    "huger": EVENT.replace(b"0.35", b"9" * 5000),
    "no utf-8": EVENT.replace(b"Overlay", b"\xff\xfe"),
    "word": EVENT.replace(b"Overlay alone", f"/srv/{PATIENT}".encode()),
    "number": EVENT.replace(b"0.35", f'"/srv/{PATIENT}"'.encode()),
    "true": EVENT.replace(b"0.35", b"true"),
    "files": EVENT.replace(b"[[]", f'[["/srv/{PATIENT}"]'.encode()),
    "one file": EVENT.replace(b"[[]", b'[{"path": "%s"}' % (b"0" * 32)),
    "many files": EVENT.replace(
        b"[[]", json.dumps([files_of("0" * 32) * 101]).encode()[:-1]
    ),
    "less": EVENT.replace(b"0.35, ", b""),
    "more": EVENT.replace(b"0.35", b"0.35, 0.35"),
    "no data": b'{"fn_index": 0, "session_hash": "abc"}',
    "event": EVENT.replace(b'"fn_index": 0', b'"fn_index": 99'),
    "negative": EVENT.replace(b'"fn_index": 0', b'"fn_index": -1'),
    "event's name": EVENT.replace(b'"fn_index": 0', b'"fn_index": "0"'),
    "session": EVENT.replace(b"abc", b"../abc"),
    "no session": EVENT.replace(b'"abc"', b"null"),
    "long": EVENT + b" " * 200_000,
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_malformed_request_is_refused_and_not_quoted(client, body, capfd):
    with client.open_page("abc"):
        assert client.join(body)[:2] == MALFORMED
    assert capfd.readouterr() == ("", "")


def test_answers_of_no_page_are_none(client, capfd):
    for query in ("", "?session_hash=", f"?session_hash=../{PATIENT}", f"?x={PATIENT}"):
        answer = client.ask("GET", f"/gradio_api/queue/data{query}")
        assert answer[:2] == (404, "not found")
    assert capfd.readouterr() == ("", "")


def test_malformed_uploads_are_refused_and_not_quoted(client, capfd):
    for kind in ("", "multipart/form-data", "text/plain", "multipart/form-data; b=x"):
        answer = client.ask(
            "POST", "/gradio_api/upload", PATIENT.encode(), Content_Type=kind
        )
        assert answer[:2] == (400, "not an upload of the page")
    assert client.upload((f'{PATIENT}"\r\nX: y', b"x")).status in (200, 400)
    held(client).clear()
    assert capfd.readouterr() == ("", "")


def test_bytes_are_bounded_in_a_file_in_a_request_and_in_all(client, monkeypatch):
    written = []
    write = UploadFile.write

    async def count(self: UploadFile, data: bytes) -> None:
        written.append(len(data))
        await write(self, data)

    monkeypatch.setattr(UploadFile, "write", count)
    monkeypatch.setattr(uploads, "MOST_BYTES", 200_000)
    monkeypatch.setattr(uploads, "MOST_OF_REQUEST", 500_000)
    monkeypatch.setattr(uploads, "MOST_OF_SERVER", 900_000)
    answer = client.upload(("a", bytes(200_001)))
    assert answer.status == 413 and sum(written) <= 200_000 and not held(client)
    written.clear()
    parts = [(f"{k}", bytes(100_000)) for k in range(20)]
    answer = client.upload(*parts)
    assert answer.status == 413 and sum(written) <= 500_000 and not held(client)
    assert client.upload(*parts[:4]).status == client.upload(*parts[:4]).status == 200
    answer = client.upload(*parts[:2])  # 1,000,000 with what waits
    assert answer.status == 413 and "try later" in answer.text
    assert len(held(client)) == 8
    held(client).clear()
    assert client.upload(*parts[:2]).status == 200
    held(client).clear()


def test_files_and_uploads_are_bounded_in_number(client, monkeypatch):
    answer = client.upload(*[("a", b"")] * 101)
    assert answer[:2] == (413, "more than 100 files at a time")
    assert client.upload(*[("a", b"")] * 100).status == 200
    assert client.upload(*[("a", b"")] * 100).status == 200
    assert client.upload(("a", b"")).status == 413 and len(held(client)) == 200
    held(client).clear()
    monkeypatch.setattr(uploads, "MOST_ARRIVING", 1)
    with socket.create_connection(("127.0.0.1", client.port)) as slow:
        slow.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9"
            b"\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Authorization: Bearer " + TOKEN.encode() + b"\r\n\r\n--b"
        )
        assert wait_until(lambda: len(gate_of(client)._uploads._arriving) == 1)
        assert client.upload(("a", b"")).status == 503
    assert wait_until(lambda: not gate_of(client)._uploads._arriving)


def test_who_says_nothing_is_hung_up_on(client, monkeypatch):
    monkeypatch.setattr(server, "HEAD", 0.1)
    monkeypatch.setattr(uploads, "_PAUSE", 0.1)
    monkeypatch.setattr(gate, "_SOON", 0.1)
    for said in (b"", b"GET / HTTP/1.1\r\nHost: "):
        with socket.create_connection(("127.0.0.1", client.port), 60) as slow:
            slow.sendall(said)
            assert slow.recv(100) == b""
    for path in ("upload", "queue/join"):
        with socket.create_connection(("127.0.0.1", client.port), 60) as slow:
            slow.sendall(
                f"POST /gradio_api/{path} HTTP/1.1\r\nHost: localhost\r\n"
                f"Authorization: Bearer {TOKEN}\r\nContent-Length: 9\r\n"
                "Content-Type: multipart/form-data; boundary=b\r\n\r\n-".encode()
            )
            assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_a_full_disk_is_told_and_survived(client, monkeypatch):
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"/tmp/{PATIENT}")

    with client.open_page() as session, monkeypatch.context() as patch:
        (name,) = json.loads(client.upload(("a.png", draw_png())).text)
        patch.setattr(uploads.tempfile, "NamedTemporaryFile", full)
        done = client.drop(files_of(name), session)
        assert "the disk of the server is full" in done and PATIENT not in done
        patch.setattr(UploadFile, "write", full)
        answer = client.upload(("a.png", draw_png()))
        assert answer.status == 507 and answer.text.startswith("the disk of the server")
    assert client.upload(("a.png", b"x")).status == 200
    held(client).clear()


def test_the_log_tells_where_and_not_what_went_wrong(client, monkeypatch, capfd):
    def read(*_: Any) -> str:
        raise RuntimeError(f"/srv/{PATIENT}.png")

    monkeypatch.setattr(viewer.Viewer, "read", read)
    with client.open_page() as session:
        done = client.drop([], session)
    assert '"success":false' in done and "This failed." in done
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("covjax: unforeseen: RuntimeError (page.py:")
    assert err.count("\n") == 1 and PATIENT not in err + done


def test_a_page_is_a_connection_and_others_are_bounded(client, monkeypatch):
    assert client.join(drop_event([], "never")).status == 409
    monkeypatch.setattr(gate, "MOST_PAGES", 1)
    with client.open_page() as session:
        assert client.ask("GET", "/gradio_api/heartbeat/other").status == 503
        (name,) = json.loads(client.upload(("a.png", draw_png())).text)
        client.drop(files_of(name), session)
        (waits,) = json.loads(client.upload(("b.png", b"x")).text)
        gate_of(client)._uploads.claim([waits], "script", f"script.{session}")
    # It is closed: what it showed, and had asked for, is gone.
    assert wait_until(lambda: not held(client))
    assert client.join(drop_event([], session)).status == 409


def test_a_page_that_fetches_no_answer_gets_no_more(client, monkeypatch):
    monkeypatch.setattr("covjax.app.page._MOST_ANSWERS", 5)
    queue = gate_of(client)._app.routes[-1].app.blocks._queue
    statuses = []
    with client.open_page() as session:
        data = [0, 0.35, 0.3, "Overlay alone"]  # the image that is shown, and how
        event = {"data": data, "fn_index": 4, "session_hash": session}
        for _ in range(4):  # each with at least three answers
            statuses.append(client.join(event).status)
            assert wait_until(lambda: not len(queue) and not any(queue.active_jobs))
    assert statuses[0] == 200 and statuses[-1] == 429


def test_a_slow_image_of_one_does_not_keep_another_waiting(
    client, tmp_path, monkeypatch
):
    monkeypatch.setattr(decoding, "read_radiograph", read_in_time)
    go = tmp_path / "go"
    files = [("slow.png", f"wait {go}".encode()), ("a.png", draw_png())]
    slow, quick = json.loads(client.upload(*files).text)
    with client.open_page() as one, client.open_page() as other:
        assert client.join(drop_event(files_of(slow), one)).status == 200
        assert wait_until(lambda: slow not in held(client))
        assert "data:image" in client.drop(files_of(quick), other)
        go.touch()
        path = f"/gradio_api/queue/data?session_hash={one}"
        assert "slow.png: cannot be read" in client.ask("GET", path).text


def test_one_browser_cannot_reach_what_another_has(client):
    anna, bert = cookie_of(client), cookie_of(client)
    asked: dict[str, Any] = {"token": "", "Cookie": anna}
    (name,) = json.loads(client.upload(("a.png", draw_png()), **asked).text)
    with client.open_page("page", Authorization="", Cookie=bert) as session:
        asked["Cookie"] = bert
        assert "no longer kept" in client.drop(files_of(name), session, **asked)
        asked["Cookie"] = anna  # who has no page of this name open
        assert client.join(drop_event([], session), **asked).status == 409
        with client.open_page("page", Authorization="", Cookie=anna):
            assert "data:image" in client.drop(files_of(name), session, **asked)
        # The page that bears the same name elsewhere is still open.
        asked["Cookie"] = bert
        assert client.join(drop_event([], session), **asked).status == 200


def test_uploads_are_swept_by_a_clock_that_nobody_sets(tmp_path, monkeypatch):
    kept = Uploads(tmp_path)
    files = [(name, open(os.devnull, "rb"), 0) for name in "abc"]
    lost, waits, other = kept.add(files, "anna")
    kept.claim([waits], "anna", "anna.1")
    kept.claim([other], "bert", "bert.1")  # it is not his
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e9)
    kept.sweep()
    assert len(kept._waiting) == 3
    later = time.monotonic() + 601
    monkeypatch.setattr(uploads.time, "monotonic", lambda: later)
    kept.sweep()
    assert list(kept._waiting) == [waits]  # what waits in the queue stays
    assert [file.closed for _, file, _ in files] == [True, False, True]
    assert kept.take(waits, "bert.1") is None and kept.take(lost, "anna.1") is None
    kept.forget("anna.1")
    assert not kept._waiting and files[1][1].closed


KILLED = """
import os, signal, tempfile
from covjax.app.upload_folder import private_folder
with private_folder() as folder:
    (folder / "left.png").write_bytes(b"x")
    print(folder, flush=True)
    signal.pause()
"""


def test_the_folder_of_a_killed_server_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / ".lock").touch()
    (tmp_path / "covjax-app-link").symlink_to(target)
    shared = tmp_path / "covjax-app-shared"  # no server makes one that others can open
    shared.mkdir(mode=0o755)
    (shared / ".lock").touch()
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED], env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    left = Path(process.stdout.readline().strip())
    with private_folder() as folder:
        assert left.exists() and folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert left.exists()
    with private_folder():
        assert not left.exists()
    assert (target / ".lock").exists() and shared.exists()
