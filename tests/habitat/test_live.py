"""Pages that follow what happens: what is asked of the database, what is sent to the browsers, and when nothing is.

Time is told by the steps of a feed: each of its waits ends when the test says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable

import psycopg
import pytest

from absurd import ConnectionLost, TaskNotFound
from habitat_lite import live
from habitat_lite.live import Browser, Feed, print_of, stream
from habitat_lite.source import TooSlow
from tests.habitat.seconds import Clock, most_a_second


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
