"""What keeps the pages from doing harm: headers, one token for every form, hosts that may ask."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from urllib.parse import parse_qsl, quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "habitat_form"
FIELD = "form_token"
LARGEST_FORM = 1_000_000

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Refused(Exception):
    """A form that did not come from one of our pages."""


def make_safe(headers: MutableHeaders) -> None:
    """Give an answer the headers above, where it says nothing else."""
    for name, value in _HEADERS.items():
        headers.setdefault(name, value)
    headers.setdefault("cache-control", "no-store")


class SafeHeaders:
    """Middleware: every answer carries the headers above."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                make_safe(MutableHeaders(scope=message))
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


class KnownHosts:
    """Middleware: a request by a name that is not ours is refused, so that no page of another site can ask through a name of
    its own that leads here. `*` is any name."""

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app, self._names = app, {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or "*" in self._names or self._named(scope):
            await self._app(scope, receive, send)
            return
        text = "This page is not known by that name. Behind a proxy, say `habitat run --allow-host NAME`.\n"
        await PlainTextResponse(text, status_code=400)(scope, receive, send)

    def _named(self, scope: Scope) -> bool:
        given = Headers(scope=scope).get("host", "").lower()
        name = given.partition("]")[0] + "]" if given.startswith("[") else given.partition(":")[0]
        return name in self._names


def token_of(request: Request) -> str:
    """The token of this browser: what its cookie holds, or a new one."""
    known = request.cookies.get(COOKIE, "")
    if len(known) != 43:
        known = getattr(request.state, "form_token", None) or secrets.token_urlsafe(32)
    request.state.form_token = known
    return str(known)


def remember(request: Request, response: Response) -> None:
    """Give the browser its token, if it has none yet."""
    token = getattr(request.state, "form_token", None)
    if token and request.cookies.get(COOKIE) != token:
        path = quote(request.scope.get("root_path", "")) or "/"  # as browsers compare it
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, token, path=path, httponly=True, samesite="lax", secure=secure)


def _same_place(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc == host
    except ValueError:
        return False


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a form sent by one of our pages. Raises Refused for any other.

    Double submit: the cookie, which no other site can read, set or have sent with a form, must equal the field; and if the
    browser says where the request comes from, it must be here.
    """
    origin = request.headers.get("origin")
    if origin is not None and not _same_place(origin, request.headers.get("host", "")):
        raise Refused(
            "this form came from another site; behind a proxy, it must hand on the name and port of the browser as Host"
        )
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Refused("this form came from another site")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_FORM:
            raise Refused(f"a form may hold {LARGEST_FORM} bytes")
    fields = dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
    given, cookie = fields.pop(FIELD, ""), request.cookies.get(COOKIE, "")
    if not cookie or not hmac.compare_digest(given.encode(), cookie.encode()):
        raise Refused("this form is out of date, or did not come from this page: load the page again")
    return fields
