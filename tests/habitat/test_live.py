"""Pages that follow what happens: what is asked of the database, what is sent to the browsers, and when nothing is.

Time is told by the steps of a feed: each of its waits ends when the test says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from absurd import ConnectionLost, TaskNotFound
from habitat_lite import live
from habitat_lite.live import TICK, Browser, Feed, print_of, stream
from habitat_lite.source import TooSlow
from tests.cli.engine import Engine
from tests.habitat.conftest import MakeSite, Site


class Clock:
    """A sleep that ends when the test lets a second pass. Knows how many questions were asked in which second."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: dict[float, int] = {}
        self._sleeping: list[tuple[float, asyncio.Future[None]]] = []

    async def sleep(self, seconds: float) -> None:
        waking: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleeping.append((self.now + seconds, waking))
        await waking

    def note(self, questions: int = 1) -> None:
        self.asked[self.now] = self.asked.get(self.now, 0) + questions

    async def second(self, settled: Callable[[], bool] = lambda: True) -> None:
        """Let a second pass, and whatever it sets off happen."""
        for _ in range(5):
            await asyncio.sleep(0)  # who has just begun waits from now on
        self.now += TICK
        for due, waking in list(self._sleeping):
            if due <= self.now and not waking.done():
                waking.set_result(None)
        self._sleeping = [each for each in self._sleeping if not each[1].done()]
        async with asyncio.timeout(20):
            for _ in range(20):
                await asyncio.sleep(0)
            while not (self._sleeping and settled()):
                await asyncio.sleep(0.001)


class World:
    """A database of one number, and pages that show it."""

    def __init__(self, clock: Clock, questions: int = 1) -> None:
        self.clock, self.questions = clock, questions
        self.number = 0
        self.error: Exception | None = None

    async def pulse(self) -> str:
        self.clock.note()
        if self.error is not None:
            raise self.error
        return str(self.number)

    def page(self, name: str, error: Exception | None = None) -> Callable[[], Awaitable[tuple[str, int]]]:
        async def render() -> tuple[str, int]:
            self.clock.note(self.questions)
            if error is not None:
                raise error
            return f"{name} {self.number}", self.questions

        return render


@pytest.fixture
def clock() -> Clock:
    return Clock()


def got(browser: Browser) -> str | None:
    """The page it gets, if any."""
    return browser.take()[1]


def told(browser: Browser) -> str | None:
    """How things stand, if that is new to it."""
    return browser.take()[0]


def most_a_second(clock: Clock) -> float:
    """Questions in the worst stretch of the run, per second that it took."""
    seconds = sorted(clock.asked)
    worst = 0.0
    for first in seconds:
        for last in seconds:
            if last >= first:
                asked = sum(count for at, count in clock.asked.items() if first <= at <= last)
                # what an answer of several questions asks at once is waited for afterwards
                worst = max(worst, (asked - 1) / (last - first + TICK))
    return worst


# -- how much is asked -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("addresses", [1, 7, 50])
@pytest.mark.parametrize("questions", [1, 2])
@pytest.mark.parametrize("busy", [True, False])
async def test_fifty_browsers_ask_at_most_one_question_a_second_and_kind(
    clock: Clock, addresses: int, questions: int, busy: bool
) -> None:
    world = World(clock, questions)
    feed = Feed(world.pulse, clock.sleep)
    with contextlib.ExitStack() as stack:
        for number in range(50):
            name = f"page {number % addresses}"
            stack.enter_context(feed.watch(name, world.page(name)))
        await asyncio.sleep(0)
        for _ in range(200):
            world.number += busy
            await clock.second()
    assert sum(clock.asked.values()) <= 200 + questions
    assert most_a_second(clock) <= 1
    assert max(clock.asked.values()) <= questions


async def test_as_long_as_nothing_is_committed_only_that_is_asked(clock: Clock) -> None:
    world = World(clock)
    feed = Feed(world.pulse, clock.sleep)
    rendered = 0

    async def render() -> tuple[str, int]:
        nonlocal rendered
        rendered += 1
        return "page", 1

    with feed.watch("a", render), feed.watch("a", render), feed.watch("b", render):
        for _ in range(50):
            await clock.second()
    assert rendered == 2  # each address once, to know what it looks like


async def test_browsers_of_one_address_share_its_answer_and_others_get_their_own(clock: Clock) -> None:
    world = World(clock)
    feed = Feed(world.pulse, clock.sleep)
    with (
        feed.watch("a", world.page("a")) as one,
        feed.watch("a", world.page("a")) as two,
        feed.watch("b", world.page("b")) as other,
    ):
        for _ in range(3):
            await clock.second()
        assert (got(one), got(two), got(other)) == ("a 0", "a 0", "b 0")
        world.number = 1
        for _ in range(3):
            await clock.second()
        assert (got(one), got(two), got(other)) == ("a 1", "a 1", "b 1")
    assert most_a_second(clock) <= 1


async def test_who_comes_later_gets_what_is_known_without_a_question(clock: Clock) -> None:
    world = World(clock)
    feed = Feed(world.pulse, clock.sleep)
    with feed.watch("a", world.page("a")):
        await clock.second()
        await clock.second()
        before = sum(clock.asked.values())
        with feed.watch("a", world.page("a")) as late:
            assert got(late) == "a 0"
        assert sum(clock.asked.values()) == before


async def test_who_comes_with_a_newer_page_is_not_sent_back_to_the_one_that_is_known(clock: Clock) -> None:
    world = World(clock)
    feed = Feed(world.pulse, clock.sleep)
    with feed.watch("a", world.page("a")):
        await clock.second()
        await clock.second()
        world.number = 1  # and the next browser has loaded it so
        with feed.watch("a", world.page("a"), print_of("a 1")) as late:
            assert got(late) is None
            await clock.second()
            await clock.second()
            assert got(late) == "a 1"
        # loaded before that, and nothing happens now
        with feed.watch("a", world.page("a"), print_of("a 0")) as stale:
            await clock.second()
            await clock.second()
            assert got(stale) == "a 1"
    assert most_a_second(clock) <= 1


async def test_a_slow_browser_gets_the_newest_only(clock: Clock) -> None:
    world = World(clock)
    feed = Feed(world.pulse, clock.sleep)
    with feed.watch("a", world.page("a")) as news:
        for number in range(5):
            world.number = number
            await clock.second()
            await clock.second()
        assert (got(news), got(news)) == ("a 4", None)


async def test_when_nobody_looks_nothing_is_asked(clock: Clock) -> None:
    world = World(clock)
    feed = Feed(world.pulse, clock.sleep)
    with feed.watch("a", world.page("a")):
        await clock.second()
    before = sum(clock.asked.values())
    clock.now += 100
    for _, waking in clock._sleeping:
        if not waking.done():
            waking.set_result(None)
    for _ in range(50):
        await asyncio.sleep(0)
    assert sum(clock.asked.values()) == before
    with feed.watch("a", world.page("a")) as news:  # and it begins anew
        await asyncio.sleep(0)
        await clock.second()
        await clock.second()
        assert got(news) == "a 0"


async def test_a_database_that_went_away_is_found_again(clock: Clock) -> None:
    world = World(clock)
    feed = Feed(world.pulse, clock.sleep)
    with feed.watch("a", world.page("a")) as news:
        world.error = ConnectionLost()
        for _ in range(5):
            await clock.second()
        assert got(news) is None
        world.error = None
        await clock.second()
        await clock.second()
        assert got(news) == "a 0"
    assert most_a_second(clock) <= 1


@pytest.mark.parametrize(
    "error", [ConnectionLost(), TooSlow("5 s"), psycopg.OperationalError("gone"), ValueError("odd")]
)
async def test_browsers_are_told_once_that_the_database_cannot_be_asked_and_once_that_it_can(
    clock: Clock, error: Exception
) -> None:
    world = World(clock)
    feed = Feed(world.pulse, clock.sleep)
    with feed.watch("a", world.page("a")) as one, feed.watch("b", world.page("b")) as two:
        assert told(one) is None  # nothing is known yet
        for _ in range(4):
            await clock.second()
        assert (told(one), told(two)) == ("live", "live")
        world.error = error
        await clock.second()
        assert (told(one), told(two)) == ("lost", "lost")
        await clock.second()
        assert (told(one), told(two)) == (None, None)
        with feed.watch("a", world.page("a")) as late, feed.watch("c", world.page("c")) as new:
            assert (told(late), told(new)) == ("lost", "lost")  # at once
        world.error = None
        await clock.second()
        assert (told(one), told(two)) == ("live", "live")
        await clock.second()
        assert (told(one), told(two)) == (None, None)
    assert most_a_second(clock) <= 1


async def test_a_page_whose_own_question_finds_no_database_is_told_so(clock: Clock) -> None:
    world = World(clock)
    feed = Feed(world.pulse, clock.sleep)
    with feed.watch("a", world.page("a", ConnectionLost())) as one:
        for _ in range(3):
            await clock.second()
        assert told(one) == "lost"


async def test_who_was_told_of_a_loss_that_passed_before_it_listened_hears_nothing(clock: Clock) -> None:
    world = World(clock)
    feed = Feed(world.pulse, clock.sleep)
    with feed.watch("a", world.page("a")) as slow:
        for _ in range(3):
            await clock.second()
        assert told(slow) == "live"
        world.error = ConnectionLost()
        await clock.second()
        world.error = None
        await clock.second()
        assert told(slow) is None


async def test_when_somebody_looks_again_after_a_loss_it_is_found_out_anew(clock: Clock) -> None:
    world = World(clock)
    feed = Feed(world.pulse, clock.sleep)
    world.error = ConnectionLost()
    with feed.watch("a", world.page("a")) as one:
        await clock.second()
        assert told(one) == "lost"
    with feed.watch("a", world.page("a")) as other:
        assert told(other) is None


async def test_a_page_that_cannot_be_shown_as_it_is_now_is_told_so_until_it_can(clock: Clock) -> None:
    world = World(clock)
    feed = Feed(world.pulse, clock.sleep)
    error: Exception | None = TaskNotFound("cleaned up")

    async def render() -> tuple[str, int]:
        if error is not None:
            raise error
        return "page", 1

    with feed.watch("a", render) as odd, feed.watch("b", world.page("b")) as other:
        for _ in range(4):
            await clock.second()
        assert (told(odd), told(other)) == ("stale", "live")
        world.error = ConnectionLost()
        await clock.second()
        world.error = None
        assert told(odd) == "lost"
        await clock.second()
        assert told(odd) == "stale"  # the database is back, the page is not
        error, world.number = None, 1
        for _ in range(3):
            await clock.second()
        assert odd.take() == ("live", "page")


async def test_a_loss_is_logged_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    world = World(clock)
    feed = Feed(world.pulse, clock.sleep)
    with feed.watch("a", world.page("a")):
        world.error = ConnectionLost()
        for _ in range(5):
            await clock.second()
        world.error = None
        for _ in range(3):
            await clock.second()
    assert [each.message.partition(":")[0] for each in caplog.records if each.name == "habitat"] == [
        "live pages cannot be refreshed",
        "live pages are refreshed again",
    ]


async def test_a_page_that_has_gone_does_not_hold_up_the_others(clock: Clock) -> None:
    world = World(clock)
    feed = Feed(world.pulse, clock.sleep)
    with (
        feed.watch("gone", world.page("gone", TaskNotFound("gone"))) as gone,
        feed.watch("b", world.page("b")) as other,
    ):
        for _ in range(4):
            await clock.second()
        assert (got(gone), got(other)) == (None, "b 0")


@pytest.mark.parametrize("error", [TooSlow("5 s"), psycopg.DataError("NUL"), ValueError("odd")])
async def test_a_page_that_cannot_be_shown_does_not_hold_up_the_others(clock: Clock, error: Exception) -> None:
    world = World(clock)
    feed = Feed(world.pulse, clock.sleep)
    with feed.watch("odd", world.page("odd", error)) as odd, feed.watch("b", world.page("b")) as other:
        for _ in range(4):
            await clock.second()
        assert (got(odd), got(other)) == (None, "b 0")
    assert most_a_second(clock) <= 1


async def test_who_comes_when_the_last_one_leaves_is_not_forgotten(clock: Clock) -> None:
    world = World(clock)
    feed = Feed(world.pulse, clock.sleep)
    with feed.watch("a", world.page("a")):
        await clock.second()
    with feed.watch("b", world.page("b")) as news:  # the job has not yet heard that it is over
        await clock.second()
        await clock.second()
        assert got(news) == "b 0"


# -- what is sent ----------------------------------------------------------------------------------------------------------


async def test_the_stream_says_what_the_browser_has_not_seen_and_nothing_else(clock: Clock) -> None:
    world = World(clock)
    feed = Feed(world.pulse, clock.sleep)
    sent: list[str] = []

    async def read() -> None:
        async for part in stream(feed, "a", world.page("line one\n\ndata: two"), print_of("line one\n\ndata: two 0")):
            sent.append(part)

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    for _ in range(4):
        await clock.second()
    assert sent == ["retry: 2000\n\n", "event: state\ndata: live\n\n"]
    world.error = ConnectionLost()
    await clock.second()
    world.error = None
    world.number = 1
    await clock.second()
    await clock.second()
    reading.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reading
    page = "line one\n\ndata: two 1"
    assert sent[2:] == [
        "event: state\ndata: lost\n\n",
        "event: state\ndata: live\n\n",
        f"id: {print_of(page)}\ndata: {json.dumps(page)}\n\n",
    ]
    assert not feed._watched


async def test_a_quiet_stream_gives_signs_of_life(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "KEEP_ALIVE", 0)
    parts = stream(Feed(World(clock).pulse, clock.sleep), "a", World(clock).page("a"), "")
    assert [await anext(parts) for _ in range(3)] == ["retry: 2000\n\n", ": still here\n\n", ": still here\n\n"]
    await parts.aclose()  # type: ignore[attr-defined]


# -- the application -------------------------------------------------------------------------------------------------------


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
