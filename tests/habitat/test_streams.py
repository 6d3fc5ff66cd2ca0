"""Live pages of the application: what a browser that listens gets, and what that asks of the database."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from absurd import ConnectionLost
from habitat_lite.live import Feed, print_of
from tests.cli.engine import Engine
from tests.habitat.conftest import MakeSite, Site
from tests.habitat.seconds import Clock


class Listener:
    """A browser that listens to a live page of the application."""

    def __init__(self, site: Site, path: str, seen: str = "") -> None:
        self.status = 0
        self.type = ""
        self.parts: asyncio.Queue[str] = asyncio.Queue()
        self.states: asyncio.Queue[str] = asyncio.Queue()
        self._gone = asyncio.Event()
        raw, _, query = path.partition("?")
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
            "path": raw, "raw_path": raw.encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(b"host", b"localhost:8080"), (b"last-event-id", seen.encode()), (b"accept-encoding", b"gzip")],
        }  # fmt: skip
        self._job = asyncio.create_task(site.inner(scope, self._receive, self._send))
        self._first = True

    async def _receive(self) -> dict[str, Any]:
        if self._first:
            self._first = False
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.type = dict(message["headers"]).get(b"content-type", b"").decode()
        elif message.get("body"):
            said = message["body"].decode()
            states = said.startswith("event: state\n")
            (self.states if states else self.parts).put_nowait(said)

    async def leave(self) -> None:
        self._gone.set()
        await asyncio.wait_for(self._job, 20)


@contextlib.asynccontextmanager
async def listening(site: Site, path: str, seen: str = "") -> AsyncIterator[Listener]:
    listener = Listener(site, path, seen)
    try:
        assert (await asyncio.wait_for(listener.parts.get(), 20)).startswith("retry:")
        yield listener
    finally:
        await listener.leave()


def seen_of(page: str) -> str:
    return page.split('data-seen="', 1)[1].split('"', 1)[0]


def live_of(page: str) -> str:
    return page.split('data-live="', 1)[1].split('"', 1)[0].replace("&amp;", "&")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(make_site: MakeSite, clock: Clock, database_url: str) -> Site:
    """The application with the clock of the test in its feeds, to which all this happened half a minute ago."""
    now = (datetime.now(UTC) + timedelta(seconds=25)).isoformat()
    site = make_site(make_conninfo(database_url, options=f"-c absurd.fake_now={now}"))
    source = site.inner.state.source
    for kind in site.inner.state.feeds:
        site.inner.state.feeds[kind] = Feed(source.pulse, clock.sleep)
    return site


async def test_a_page_changes_when_its_task_does_and_not_before(timed: Site, clock: Clock, engine: Engine) -> None:
    task = engine.spawn()
    run = engine.claim()
    engine.wait(run, "e")
    page = await timed.page(f"/tasks/{task}?queue=orders&said=retried")
    assert live_of(page) == f"/live/tasks/{task}?queue=orders"
    feed, source = timed.inner.state.feeds["task"], timed.inner.state.source
    async with listening(timed, live_of(page), seen_of(page)) as listener:
        assert (listener.status, listener.type) == (200, "text/event-stream; charset=utf-8")
        address = next(iter(feed._watched.values()))
        source.forget()
        await clock.second()
        await clock.second(lambda: address.mark is not None)
        assert listener.parts.empty()  # it looks as it did
        engine.emit("e", {"amount": 7})
        source.forget()
        await clock.second()
        source.forget()
        await clock.second(lambda: not listener.parts.empty())
        said = listener.parts.get_nowait()
    name, data = said.removeprefix("id: ").split("\ndata: ", 1)
    content = json.loads(data)
    assert name == print_of(content) == seen_of(await timed.page(f"/tasks/{task}?queue=orders"))
    assert "It is due since" in content
    assert "<html" not in content
    assert not feed._watched


async def test_what_is_streamed_holds_nobodys_token_and_leads_back_to_the_page(
    timed: Site, clock: Clock, engine: Engine
) -> None:
    task = engine.spawn()
    engine.wait(engine.claim(), "e")
    token = await timed.token()
    page = await timed.page(f"/tasks/{task}")
    async with listening(timed, live_of(page)) as listener:
        await clock.second()
        await clock.second(lambda: not listener.parts.empty())
        content = json.loads(listener.parts.get_nowait().split("data: ", 1)[1])
    assert token not in content
    assert 'name="form_token" value=""' in content
    assert f'name="back" value="/tasks/{task}"' in content


async def test_fifty_browsers_at_the_application_ask_the_database_once_a_second(
    timed: Site, clock: Clock, engine: Engine
) -> None:
    tasks = [engine.spawn() for _ in range(10)]
    source = timed.inner.state.source
    await timed.page("/tasks")
    asked = source.asked
    async with contextlib.AsyncExitStack() as stack:
        for number in range(50):
            await stack.enter_async_context(listening(timed, f"/live/tasks/{tasks[number % 10]}"))
        assert source.asked == asked  # to listen asks nothing
        for seconds in range(1, 31):
            engine.spawn()  # something is committed every second
            source.forget()
            await clock.second()
            assert source.asked - asked <= seconds
    assert source.asked - asked >= 15  # and it does ask


async def test_every_kind_of_page_is_live(timed: Site, clock: Clock, engine: Engine) -> None:
    task = engine.spawn()
    engine.wait(engine.claim(), "e")
    for path in ("/", "/tasks?state=sleeping", "/events", "/waits?event=e*", f"/tasks/{task}"):
        page = await timed.page(path)
        async with listening(timed, live_of(page)) as listener:
            timed.inner.state.source.forget()
            await clock.second()
            await clock.second(lambda: not listener.parts.empty())
            content = json.loads(listener.parts.get_nowait().split("data: ", 1)[1])
        assert print_of(content) == seen_of(page), path
        assert content.strip() in page.replace((await timed.token()), ""), path


async def test_a_page_that_is_none_sends_nothing_but_that(timed: Site, clock: Clock, engine: Engine) -> None:
    async with listening(timed, "/live/tasks/nonsense") as listener:
        for _ in range(3):
            await clock.second()
        assert listener.parts.empty()
        assert await asyncio.wait_for(listener.states.get(), 20) == "event: state\ndata: stale\n\n"


async def test_a_database_that_refuses_is_told_to_who_looks(
    timed: Site, clock: Clock, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = timed.inner.state.source

    async def refuse(_: object) -> None:
        raise ConnectionLost("no connection")

    async with listening(timed, "/live/tasks") as listener:

        async def heard() -> str:
            while listener.states.empty():
                source.forget()
                await clock.second()
            return listener.states.get_nowait()

        assert await heard() == "event: state\ndata: live\n\n"
        with monkeypatch.context() as patch:
            patch.setattr(source, "_run", refuse)
            assert await heard() == "event: state\ndata: lost\n\n"
        assert await heard() == "event: state\ndata: live\n\n"


async def test_answers_are_shared_by_all_who_ask_within_a_second(site: Site, engine: Engine) -> None:
    await site.page("/waits")
    source = site.inner.state.source
    asked = source.asked
    await asyncio.gather(*(site.page("/tasks") for _ in range(50)))
    assert (
        source.asked - asked <= 3 * 2
    )  # the list, the names of queues and their size; a slow machine may need a second
