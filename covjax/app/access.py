"""Who may use the page: whoever has its token, from a page of the same address.

`/?token=…` sets a cookie and redirects to `/`, so that the token leaves the address
bar. The cookie holds a random name of the browser, signed with the token: two browsers
do not see each other's images. Scripts send `Authorization: Bearer TOKEN`.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)

BROWSER = "covjax.browser"  # key of an ASGI scope: who asks
_SCRIPT = "script"  # who asks with the token itself

# Scripts, styles and pictures of this server alone: the browser refuses all else.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self' data: blob: 'unsafe-inline'"
    " 'unsafe-eval'; object-src 'none'; base-uri 'self'; form-action 'self';"
    " frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_NO_TOKEN = (
    "covjax: open the address that was printed when the page was started: it ends in"
    " ?token= and a token."
)
_FOREIGN = "covjax: another site may not use this page."
# A cookie of SameSite=Strict is not sent when a link of another site is followed; it is
# when this page asks again.
_AGAIN = '<!doctype html><title>covjax</title><meta http-equiv="refresh" content="0">'


def guard(app: Any, *, token: str, cookie: str, hosts: Sequence[str]) -> Any:
    """Returns an ASGI application that only those with the token can use.

    Args:
      app: the ASGI application; it finds who asks in `scope[BROWSER]`.
      token: the secret.
      cookie: name of the cookie; those of two ports of one host must differ.
      hosts: names by which the server may be addressed, without ports. Any other is
        refused: a foreign site could have made its own name point here.
    """
    access = Access(app, token, cookie)
    return _WithHeaders(TrustedHostMiddleware(access, hosts, www_redirect=False))


class Access:
    """Answers whoever may not use the page, and passes on what the others ask."""

    def __init__(self, app: Any, token: str, cookie: str):
        """Takes the ASGI application behind it, the secret and the cookie's name."""
        self._app, self._token, self._cookie = app, token, cookie

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes a request on, with who asks, or refuses it."""
        if scope["type"] != "http":  # the server's own start and end
            return await self._app(scope, receive, send)
        request = Request(scope)
        browser = self._browser(request)
        answer = self._refuse(request, browser)
        if answer is not None:
            return await answer(scope, receive, send)
        await self._app(scope | {BROWSER: browser}, receive, send)

    def _refuse(self, request: Request, browser: str | None) -> Response | None:
        foreign = _is_foreign(request.headers)
        opens = request.method == "GET" and request.scope["path"] == "/"
        follows = opens and request.headers.get("sec-fetch-mode") == "navigate"
        if foreign and not follows:
            return PlainTextResponse(_FOREIGN, 403)
        if opens and "token" in request.query_params:
            return self._admit(request, browser)
        if browser is None:
            if foreign:
                return HTMLResponse(_AGAIN)
            return PlainTextResponse(_NO_TOKEN, 403)
        return None

    def _admit(self, request: Request, browser: str | None) -> Response:
        if not _same(request.query_params["token"], self._token):
            return PlainTextResponse(_NO_TOKEN, 403)
        if browser in (None, _SCRIPT):  # else another page of it is open
            browser = secrets.token_hex(16)
        response = RedirectResponse("/", 303)
        encrypted = request.headers.get("x-forwarded-proto", request.url.scheme)
        response.set_cookie(
            self._cookie, f"{browser}.{self._sign(browser)}", httponly=True,
            samesite="strict", secure=encrypted == "https",
        )  # fmt: skip
        return response

    def _browser(self, request: Request) -> str | None:
        """Returns who asks; None if the token is not known there."""
        browser, _, signature = request.cookies.get(self._cookie, "").partition(".")
        if browser and _same(signature, self._sign(browser)):
            return browser
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _same(given, self._token):
            return _SCRIPT
        return None

    def _sign(self, browser: str) -> str:
        return hmac.new(
            self._token.encode(), browser.encode(), hashlib.sha256
        ).hexdigest()


class _WithHeaders:
    """Adds the headers that tell a browser what not to do with an answer."""

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def add(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                if not scope["path"].startswith(("/assets/", "/static/")):
                    headers["Cache-Control"] = "no-store"
            await send(message)

        await self._app(scope, receive, add)


def _is_foreign(headers: Headers) -> bool:
    """Tells whether a page of another site asks; a script that is none says nothing."""
    origin = headers.get("origin")
    here = headers.get("host", "").lower()
    if origin is not None and origin.lower().partition("://")[2] != here:
        return True
    return headers.get("sec-fetch-site", "none") not in ("none", "same-origin")


def _same(given: str, secret: str) -> bool:
    """Compares in a time that tells nothing about how much of it is right."""
    return secrets.compare_digest(given.encode("utf-8", "replace"), secret.encode())
