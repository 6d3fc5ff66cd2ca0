"""What keeps the pages from doing harm: headers, one token for every form, hosts that may ask."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from urllib.parse import parse_qsl, quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from absurd import ConfigError

COOKIE = "habitat_form"
FIELD = "form_token"
LARGEST_FORM = 1_000_000
LARGEST_FIELDS = 20

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


#: networks of addresses, as names in `KnownHosts`: nobody can have a name of theirs lead to an address without its being seen
ANY_ADDRESS = ("0.0.0.0/0", "::/0")


def hosts_of(names: Sequence[str]) -> tuple[set[str], list[IPv4Network | IPv6Network]]:
    """The names as a Host says them, without a port, and the networks among them. ConfigError for what is neither."""
    known: set[str] = set()
    networks: list[IPv4Network | IPv6Network] = []
    for given in names:
        name = given.lower().partition("://")[2].rstrip("/") if "://" in given else given.lower()
        try:
            if "/" in name:
                networks.append(ip_network(name, strict=False))
            else:
                known.add(_host(f"[{name}]" if name.count(":") > 1 and not name.startswith("[") else name))
        except ValueError:
            raise ConfigError(
                f"{given!r} is neither a host name nor a network of addresses", hint="as ops.example.com or 10.0.0.0/8"
            ) from None
        if not name or any(each.isspace() for each in name):
            raise ConfigError(f"{given!r} is no host name", hint="as ops.example.com, or 10.0.0.0/8")
    return known, networks


def _host(given: str) -> str:
    """What stands before the port."""
    name = "".join(given.partition("]")[:2]) if given.startswith("[") else given.partition(":")[0]
    return name.removesuffix(".")


class KnownHosts:
    """Middleware: a request by a name that is not ours is refused, so that no page of another site can ask through a name of
    its own that leads here. A name may be a network of addresses, as `10.0.0.0/8`; `*` is any name."""

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app = app
        self._names, self._networks = hosts_of(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or "*" in self._names or self._known(Headers(scope=scope).get("host", "")):
            await self._app(scope, receive, send)
            return
        text = "This page does not go by that name. If the name is yours, say `habitat run --allow-host NAME`.\n"
        await PlainTextResponse(text, status_code=400)(scope, receive, send)

    def _known(self, given: str) -> bool:
        name = _host(given.lower())
        if name in self._names:
            return True
        try:
            address = ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
        except ValueError:
            return False
        return any(address in network for network in self._networks)


class OwnPages:
    """Middleware: what a page of another site asks of us behind its visitor's back is refused before anything is asked of the
    database: images, scripts, frames, fetches, streams. A link that somebody follows is not. Forms have `form_of`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] != "POST" and _of_another_site(Headers(scope=scope)):
            text = "Another site may lead here by a link, and by nothing else.\n"
            await PlainTextResponse(text, status_code=403)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _of_another_site(headers: Headers) -> bool:
    """Fetch Metadata (W3C), which a page cannot set; of browsers that send none, at least the origin where they send that."""
    site = headers.get("sec-fetch-site")
    if site is None:
        origin = headers.get("origin")
        return origin is not None and not _same_place(origin, headers.get("host", ""))
    if site in ("same-origin", "none"):
        return False
    ahead = "prefetch" in headers.get("sec-purpose", "")
    return (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest", "document"), ahead) != (
        "navigate", "document", False,
    )  # fmt: skip


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


def refuse_other_sites(request: Request) -> None:
    """Raises Refused for what a page of another site asks, in whatever way."""
    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise Refused("this came from another site")


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
    refuse_other_sites(request)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_FORM:
            raise Refused(f"a form may hold {LARGEST_FORM} bytes")
    try:
        fields = dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=LARGEST_FIELDS))
    except ValueError:
        raise Refused(f"a form may hold {LARGEST_FIELDS} fields") from None
    given, cookie = fields.pop(FIELD, ""), request.cookies.get(COOKIE, "")
    if not cookie or not hmac.compare_digest(given.encode(), cookie.encode()):
        raise Refused("this form is out of date, or did not come from this page: load the page again")
    return fields
