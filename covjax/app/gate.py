"""What may be asked: what the page itself asks for, checked before Gradio reads it.

Gradio offers far more routes than the page needs, opens files that a client names, and
prints what it cannot read. So nothing reaches it but the routes listed here, and of a
request's body no more than the values of the page's own controls.
"""

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response

from covjax.app.access import BROWSER
from covjax.app.uploads import MOST_FILES, Uploads

Check = Callable[[Any], Any]  # returns a value that a control may have, or raises

MOST_PAGES = 32  # open at a time
_MOST_BYTES = 2**17  # of a body that is no upload
_SOON = 15.0  # seconds in which such a body comes
_API = "/gradio_api"
_EXACT = ("/", "/favicon.ico", "/theme.css")
_STATIC = re.compile(r"/(?:assets|static)/[\w@.-]+(?:/[\w@.-]+)*")
_HEARTBEAT = re.compile(_API + r"/heartbeat/([a-z0-9]{1,40})")
_SESSION = re.compile(r"[a-z0-9]{1,40}")
_UPLOAD = re.compile(r"[0-9a-f]{32}")
# By these, Gradio would take the address of the page from whoever asks.
_DROPPED = {b"origin", b"x-forwarded-host", b"x-gradio-server"}

_MALFORMED = PlainTextResponse("not a request of the page", 400)
_NOT_FOUND = PlainTextResponse("not found", 404)


class Gate:
    """Passes on to Gradio what the page asks for; answers uploads itself."""

    def __init__(
        self,
        app: Any,
        checks: Mapping[int, Sequence[Check]],
        uploads: Uploads,
        is_behind: Callable[[str], bool],
        closed: Callable[[str], Any],
    ):
        """Takes what stands behind it.

        Args:
          app: Gradio's ASGI application.
          checks: number of an event → a check for each value that comes with it.
          uploads: of this server.
          is_behind: tells whether a page does not fetch its answers.
          closed: is awaited with the session of a page that was closed.
        """
        self._app, self._checks, self._uploads = app, checks, uploads
        self._is_behind, self._closed = is_behind, closed
        self._open: dict[str, int] = {}  # connections of each page

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers a request, or passes it on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        kept = [one for one in scope["headers"] if one[0] not in _DROPPED]
        inner = scope | {"headers": kept, "query_string": b""}
        path = scope["path"]
        if scope["method"] == "POST":
            answer = await self._post(path, scope, receive)
            if isinstance(answer, bytes):
                again = _then(answer, receive)
                return await self._app(_with_body(inner, answer), again, send)
            return await answer(scope, receive, send)
        if scope["method"] not in ("GET", "HEAD"):
            return await _NOT_FOUND(scope, receive, send)
        if found := _HEARTBEAT.fullmatch(path):
            session = f"{scope[BROWSER]}.{found[1]}"
            inner["path"] = f"{_API}/heartbeat/{session}"
            return await self._keep_open(session, inner, receive, send)
        if path == f"{_API}/queue/data":
            session = _session_asked_for(scope)
            if session not in self._open:
                return await _NOT_FOUND(scope, receive, send)
            inner["query_string"] = f"session_hash={session}".encode()
            return await self._app(inner, receive, send)
        if path == f"{_API}/upload_progress":  # there is nothing to be told of it
            done = Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")
            return await done(scope, receive, send)
        if path in _EXACT or (_STATIC.fullmatch(path) and ".." not in path):
            return await self._app(inner, receive, send)
        await _NOT_FOUND(scope, receive, send)

    async def _post(self, path: str, scope: Any, receive: Any) -> bytes | Response:
        """Returns the answer, or the body that is passed on."""
        request = Request(scope, receive)
        if path == f"{_API}/upload":
            return await self._uploads.receive(request)
        if path != f"{_API}/queue/join":
            return _NOT_FOUND
        try:
            async with asyncio.timeout(_SOON):
                body = await _read_body(request)
            event = read_event(body, self._checks)
        except TimeoutError:
            return PlainTextResponse("the request took too long", 408)
        except (ValueError, RecursionError, ClientDisconnect):
            return _MALFORMED
        session = f"{scope[BROWSER]}.{event['session_hash']}"
        if session not in self._open:
            return PlainTextResponse("the page was closed: open it again", 409)
        if self._is_behind(session):
            return PlainTextResponse("too many answers wait to be fetched", 429)
        for value in event["data"]:
            if isinstance(value, list):
                self._uploads.claim(value, scope[BROWSER], session)
        return json.dumps(event | {"session_hash": session}).encode()

    async def _keep_open(
        self, session: str, scope: Any, receive: Any, send: Any
    ) -> None:
        if session not in self._open and len(self._open) >= MOST_PAGES:
            busy = PlainTextResponse(f"{MOST_PAGES} pages are open: try later", 503)
            return await busy(scope, receive, send)
        self._open[session] = self._open.get(session, 0) + 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open[session] -= 1
            if not self._open[session]:
                del self._open[session]
                await self._closed(session)


def read_event(body: bytes, checks: Mapping[int, Sequence[Check]]) -> dict[str, Any]:
    """Returns what a control asks for, of which nothing but known values is kept.

    Args:
      body: JSON, as the page sends it.
      checks: number of an event → a check for each value that comes with it.

    Raises:
      ValueError, RecursionError: if the page would not send it.
    """
    given = json.loads(body)
    if not isinstance(given, dict):
        raise ValueError
    number, session = given.get("fn_index"), given.get("session_hash")
    data = given.get("data")
    if type(number) is not int or number not in checks or not isinstance(data, list):
        raise ValueError
    if not isinstance(session, str) or not _SESSION.fullmatch(session):
        raise ValueError
    pairs = zip(data, checks[number], strict=True)
    values = [check(value) for value, check in pairs]
    return {"fn_index": number, "session_hash": session, "data": values}


def read_number(value: Any) -> float | None:
    """Takes a number, or none for an empty field.

    Raises:
      ValueError: if it is neither.
    """
    if value is None or (type(value) in (int, float) and abs(value) <= 1e6):
        return value
    raise ValueError


def read_choice(among: Sequence[str]) -> Check:
    """Returns a check that takes one of some words."""

    def check(value: Any) -> str:
        if isinstance(value, str) and value in among:
            return value
        raise ValueError

    return check


def read_index(value: Any) -> int | None:
    """Takes the number of an image, or none.

    Raises:
      ValueError: if it is neither.
    """
    if value is None or (type(value) is int and 0 <= value < MOST_FILES):
        return value
    raise ValueError


def read_uploads(value: Any) -> list[str]:
    """Takes files as Gradio's page has them; returns the names of the uploads alone.

    Raises:
      ValueError: if one is not named as uploads are here. A path never is.
    """
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > MOST_FILES:
        raise ValueError
    return [_name_of(one) for one in value]


def _name_of(file: Any) -> str:
    name = file.get("path") if isinstance(file, dict) else None
    if isinstance(name, str) and _UPLOAD.fullmatch(name):
        return name
    raise ValueError


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BYTES:
            raise ValueError
    return bytes(body)


def _session_asked_for(scope: Any) -> str:
    """Returns the session of a query, of the browser that asks; another is none."""
    query = parse_qs(scope["query_string"].decode("latin-1"))
    given = query.get("session_hash", [""])[0]
    return f"{scope[BROWSER]}.{given if _SESSION.fullmatch(given) else ''}"


def _with_body(scope: Any, body: bytes) -> Any:
    headers = [
        one
        for one in scope["headers"]
        if one[0] not in (b"content-length", b"transfer-encoding", b"content-type")
    ]
    headers.append((b"content-length", str(len(body)).encode()))
    headers.append((b"content-type", b"application/json"))
    return scope | {"headers": headers}


def _then(body: bytes, receive: Any) -> Any:
    """Returns an ASGI `receive` that gives a body, then what else comes."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def give() -> Any:
        return next(messages, None) or await receive()

    return give
