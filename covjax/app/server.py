"""The server behind the page: bounded in connections and in patience."""

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS = 200
HEAD = 10.0  # seconds in which a request has to say what it asks for


def make_server(app: Any) -> uvicorn.Server:
    """Returns a server of an ASGI application, to be run on a socket."""
    # No line a request: it would tell the names of files. Pages that are open keep a
    # connection, which would not end by itself.
    config = uvicorn.Config(
        app, http=_Impatient, ws="none", log_level="critical", access_log=False,
        proxy_headers=False, server_header=False, limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    return uvicorn.Server(config)


class _Impatient(H11Protocol):
    """Closes a connection on which the head of a request does not come in time.

    uvicorn would wait for it for ever.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._late is None:
            self._late = self.loop.call_later(HEAD, self.transport.close)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
