"""The ASGI application: routes, errors, one answer as HTML or JSON."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

import psycopg
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route

from absurd import AbsurdError, embedded
from habitat_lite import actions, assets, guard, pages, twins
from habitat_lite.live import Feed
from habitat_lite.source import Source, TooSlow


def create_app(
    url: str | None = None, *, read_only: bool = False, allowed_hosts: Sequence[str] = ("*",), path_prefix: str = ""
) -> Starlette:
    """The pages of one database, as an ASGI application to run or to mount.

    `url`: default `ABSURD_DATABASE_URL`; `embedded:` starts the private Postgres. `read_only`: no action is offered or taken.
    `allowed_hosts`: what a request's Host may be, names and networks of addresses (`["localhost", "10.0.0.0/8"]` keeps pages
    of other sites from asking through a name of theirs); `path_prefix`: where it lives when nothing mounts it, as `/ops`.
    """
    guard.hosts_of(allowed_hosts)  # what makes no sense is said now, not to the first who asks
    source = Source(_conninfo(url), read_only=read_only)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await source.close()

    routes: list[Any] = [
        *twins.routes(),  # before the pages: ID.json is no id
        *pages.routes(),
        *actions.routes(),
        Route("/health", _health),
        *assets.routes(),
    ]
    prefix = path_prefix.rstrip("/")
    app = Starlette(
        routes=[Mount(prefix, routes=routes)] if prefix else routes,
        lifespan=lifespan,
        middleware=[
            Middleware(guard.SafeHeaders),
            Middleware(guard.KnownHosts, names=list(allowed_hosts)),
            Middleware(guard.OwnPages),
            Middleware(GZipMiddleware, minimum_size=2000),
        ],
        exception_handlers={
            Exception: _failed,
            AbsurdError: _failed,
            psycopg.Error: _failed,
            TooSlow: _failed,
            guard.Refused: _failed,
            404: _missing,
        },
    )
    app.state.source = source
    app.state.feeds = {kind: Feed(source.pulse) for kind in pages.KINDS}
    return app


def _conninfo(url: str | None) -> str:
    given = (
        url or os.environ.get("ABSURD_DATABASE_URL") or os.environ.get("PGDATABASE") or "postgresql://localhost/absurd"
    )
    if embedded.is_embedded_url(given):
        return embedded.resolve(given)
    return given if "=" in given or "://" in given else f"dbname={given}"


async def _health(request: Request) -> Response:
    return JSONResponse({"ok": True})


async def _missing(request: Request, error: Exception) -> Response:
    return await _told(request, 404, "There is no such page", "It may have been moved, or cleaned up.")


async def _failed(request: Request, error: Exception) -> Response:
    code, title = 500, "Something went wrong"
    if isinstance(error, guard.Refused):
        code, title = 403, "Refused"
    elif isinstance(error, TooSlow):
        code, title = 504, "The database took too long"
    elif isinstance(error, psycopg.DataError):
        code, title = 400, "The database cannot read that"
    elif isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        code, title = 403, "The database only reads here: it is a replica, or set so"
    elif isinstance(error, psycopg.errors.InsufficientPrivilege):
        code, title = 403, "The database does not allow that to the role of this page"
    elif isinstance(error, AbsurdError):
        code, title = _CODES.get(type(error).__name__, (400, "That cannot be done"))
    return await _told(request, code, title, str(error))


_CODES = {
    "ConnectionLost": (503, "The database cannot be reached"),
    "SchemaMissing": (503, "The Absurd schema is missing here, or out of date"),
    "QueueNotFound": (404, "There is no such queue"),
    "TaskNotFound": (404, "There is no such task"),
    "TaskTerminal": (409, "It has ended already"),
    "RetryRefused": (409, "It cannot be tried again"),
}


async def _told(request: Request, code: int, title: str, text: str) -> Response:
    response: Response
    if request.url.path.endswith(".json"):
        response = JSONResponse({"error": title, "message": text}, status_code=code)
    else:
        again = code >= 500 and request.method in ("GET", "HEAD")
        page = pages.rendered(request, "error.html", "", {"title": title, "text": text, "again": again})
        response = HTMLResponse(page, status_code=code)
    guard.make_safe(response.headers)  # what nobody expected is told outside of every middleware
    return response
