"""The pages without a browser: an application on this test's database, asked in this process."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from habitat_lite import create_app
from tests.cli.engine import Engine
from tests.fixtures.postgres import Connection

HERE = "http://localhost:8080"


class Site:
    """An application and somebody who looks at it, with the cookies of a browser."""

    def __init__(self, app: Any, inner: Starlette, prefix: str = "") -> None:
        self.inner, self.prefix = inner, prefix
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url=HERE, follow_redirects=False
        )

    async def get(self, path: str, **more: Any) -> httpx.Response:
        return await self.client.get(self.prefix + path, **more)

    async def page(self, path: str) -> str:
        """A page that is there."""
        answer = await self.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text

    async def json(self, path: str) -> Any:
        answer = await self.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def token(self, path: str = "/") -> str:
        """The token in the page, which comes with its cookie."""
        found = re.search(r'name="form-token" content="([^"]+)"', await self.page(path))
        assert found is not None
        return found[1]

    async def send(self, path: str, *, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        """A form as the page sends it."""
        given = {"form_token": await self.token(), "back": "/", **fields}
        return await self.client.post(self.prefix + path, data=given, headers={"origin": HERE, **(headers or {})})


MakeSite = Callable[..., Site]


@pytest.fixture
async def make_site(database_url: str) -> AsyncIterator[MakeSite]:
    """`make_site(read_only=..., path_prefix=..., url=...)`."""
    async with AsyncExitStack() as stack:

        def make(url: str | None = None, within: Callable[[Starlette], Any] | None = None, **options: Any) -> Site:
            inner = create_app(url or database_url, **options)
            stack.push_async_callback(inner.state.source.close)
            site = Site(within(inner) if within else inner, inner, options.get("path_prefix", ""))
            stack.push_async_callback(site.client.aclose)
            return site

        yield make


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    """The application as it comes."""
    return make_site()


@pytest.fixture
def engine(conn: Connection) -> Engine:
    """The engine on queue `orders`."""
    return Engine(conn)
