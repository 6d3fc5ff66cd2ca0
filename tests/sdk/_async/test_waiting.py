"""Sleeping and waiting for events: suspended, woken, and the outcome durable."""

from __future__ import annotations

import builtins
import datetime as dt
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pydantic
import pytest

from absurd import AsyncAbsurd, InvalidOption, StepError, TimeoutError, ValidationFailed
from tests.sdk._async.conftest import LEASE, Driver
from tests.sdk.conftest import Rows

MOMENT = 0.02
NOON = dt.datetime(2030, 1, 1, 12, tzinfo=dt.UTC)


class Crash(Exception):
    """What a test's handler raises where a process would die."""


class Payment(pydantic.BaseModel):
    cents: int
    by: str


class FakeTime:
    """A client on one borrowed connection whose clock the test moves."""

    def __init__(self, conn: psycopg.AsyncConnection[Any], app: AsyncAbsurd) -> None:
        self.conn = conn
        self.app = app

    async def at(self, moment: dt.datetime) -> None:
        """Stop the engine's clock at a moment."""
        await self.conn.execute("select set_config('absurd.fake_now', %s, false)", (moment.isoformat(),))

    async def work(self, spawned: Any) -> str:
        """Run what is due; how the task stands then."""
        await self.app.work_batch("batch", LEASE, 10)
        snapshot = await self.app.fetch_task_result(spawned["task_id"])
        assert snapshot is not None
        return snapshot.state


@pytest.fixture
async def fake(app: AsyncAbsurd, database_url: str) -> AsyncIterator[FakeTime]:
    """Time belongs to the test; it starts at noon."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as conn:
        time = FakeTime(conn, AsyncAbsurd(conn, "main"))
        await time.at(NOON)
        yield time


# -- sleeping ----------------------------------------------------------------------------------------------------------


async def test_a_sleep_suspends_the_task_and_what_came_before_is_not_repeated(app: AsyncAbsurd, drive: Driver) -> None:
    passed: list[str] = []

    @app.register_task("naps")
    async def naps(params: Any, ctx: Any) -> str:
        passed.append("begun")
        await ctx.step("before", lambda: passed.append("before"))
        await ctx.sleep_for("nap", MOMENT)
        await ctx.sleep_for("nap", dt.timedelta(seconds=MOMENT))
        passed.append(f"awake in attempt {ctx.attempt}")
        return "rested"

    assert await drive.result(await app.spawn("naps", {})) == "rested"
    assert passed == ["begun", "before", "begun", "begun", "awake in attempt 1"]


async def test_a_sleep_lasts_as_long_as_the_databases_clock_says(fake: FakeTime) -> None:
    @fake.app.register_task("naps")
    async def naps(params: Any, ctx: Any) -> int:
        await ctx.sleep_for("nap", 3600)
        if ctx.attempt == 1:
            raise Crash
        return int(ctx.attempt)

    spawned = await fake.app.spawn("naps", {})
    assert await fake.work(spawned) == "sleeping"
    await fake.at(NOON + dt.timedelta(seconds=3599.999))
    assert await fake.work(spawned) == "sleeping"
    await fake.at(NOON + dt.timedelta(hours=1))
    assert await fake.work(spawned) == "pending", "it crashed after its sleep"
    assert await fake.work(spawned) == "completed", "the sleep does not begin anew in the next attempt"


async def test_a_sleep_that_an_attempt_cut_short_keeps_its_end(fake: FakeTime, rows: Rows) -> None:
    @fake.app.register_task("naps")
    async def naps(params: Any, ctx: Any) -> None:
        await ctx.sleep_for("nap", 3600)

    spawned = await fake.app.spawn("naps", {})
    assert await fake.work(spawned) == "sleeping"
    await fake.conn.execute("update absurd.live set due_at = %s", (NOON,))
    await fake.at(NOON + dt.timedelta(minutes=1))
    assert await fake.work(spawned) == "sleeping", "woken early it sleeps again"
    assert rows("select due_at from absurd.live") == [NOON + dt.timedelta(hours=1)]


async def test_sleep_until_takes_moments_and_epoch_seconds(fake: FakeTime, rows: Rows) -> None:
    naive = (NOON + dt.timedelta(hours=1)).astimezone().replace(tzinfo=None)
    for wake_at in (NOON + dt.timedelta(hours=1), NOON.timestamp() + 3600, naive):

        @fake.app.register_task("until")
        async def until(params: Any, ctx: Any, wake_at: Any = wake_at) -> None:
            await ctx.sleep_until("nap", wake_at)

        spawned = await fake.app.spawn("until", {})
        assert await fake.work(spawned) == "sleeping"
        assert rows("select due_at from absurd.live where task_id = %s", spawned["task_id"]) == [
            NOON + dt.timedelta(hours=1)
        ]
    await fake.at(NOON + dt.timedelta(hours=1))
    assert await fake.work(spawned) == "completed"


async def test_a_moment_in_the_past_does_not_suspend(app: AsyncAbsurd, drive: Driver) -> None:
    executions: list[int] = []

    @app.register_task("past")
    async def past(params: Any, ctx: Any) -> None:
        executions.append(1)
        await ctx.sleep_until("past", dt.datetime(2000, 1, 1, tzinfo=dt.UTC))
        await ctx.sleep_until("past", 0)
        await ctx.sleep_for("none", 0)

    await drive.result(await app.spawn("past", {}))
    assert executions == [1]


async def test_bad_durations_and_moments_are_refused_by_name(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("bad")
    async def bad(params: Any, ctx: Any) -> None:
        durations: list[Any] = [-1, "1", None, True, float("nan"), dt.timedelta(seconds=-1)]
        for duration in durations:
            with pytest.raises(InvalidOption, match="duration must be seconds >= 0"):
                await ctx.sleep_for("s", duration)
        moments: list[Any] = ["soon", None, True, float("inf"), float("nan")]
        for moment in moments:
            with pytest.raises(InvalidOption, match="wake_at must be"):
                await ctx.sleep_until("s", moment)
        endless: list[Any] = [float("inf"), 1e12, dt.timedelta.max]
        for duration in endless:
            with pytest.raises(InvalidOption, match="duration must be at most 1000 years"):
                await ctx.sleep_for("s", duration)
        for moment in (dt.datetime.max, dt.datetime.max.replace(tzinfo=dt.UTC), 1e11 * 3, 1e300):
            with pytest.raises(InvalidOption, match="before the year 9000"):
                await ctx.sleep_until("s", moment)

    await drive.result(await app.spawn("bad", {}))


async def test_a_step_that_became_a_sleep_says_so(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("changed")
    async def changed(params: Any, ctx: Any) -> None:
        if ctx.attempt == 1:
            await ctx.step("pause", lambda: {"not": "a moment"})
            raise Crash
        with pytest.raises(StepError, match='step "pause" was no sleep when it was kept'):
            await ctx.sleep_for("pause", 1)

    await drive.result(await app.spawn("changed", {}))


# -- events ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [{"cents": 5}, None, [], "", 0, False])
async def test_an_event_emitted_before_does_not_suspend_and_one_emitted_later_wakes(
    app: AsyncAbsurd, drive: Driver, payload: Any
) -> None:
    executions: list[int] = []

    @app.register_task("waits")
    async def waits(params: Any, ctx: Any) -> Any:
        executions.append(1)
        return [await ctx.await_event("early"), await ctx.await_event("late")]

    await app.emit_event("early", payload)
    spawned = await app.spawn("waits", {})
    await drive.rest(spawned)
    assert len(executions) == 1
    await app.emit_event("late", payload)
    assert await drive.result(spawned) == [payload, payload]
    assert len(executions) == 2


async def test_waits_have_default_names_that_count(app: AsyncAbsurd, drive: Driver, rows: Rows) -> None:
    @app.register_task("waits")
    async def waits(params: Any, ctx: Any) -> None:
        await ctx.await_event("paid")
        await ctx.await_event("paid")
        await ctx.await_event("paid", "mine")

    await app.emit_event("paid", 1)
    spawned = await app.spawn("waits", {})
    await drive.result(spawned)
    assert rows("select name from absurd.checkpoints where task_id = %s order by name", spawned["task_id"]) == [
        "$awaitEvent:paid",
        "$awaitEvent:paid#2",
        "mine",
    ]


async def test_an_awaited_payload_is_a_model_on_the_first_run_and_on_replay(app: AsyncAbsurd, drive: Driver) -> None:
    got: list[Any] = []

    @app.register_task("typed")
    async def typed(params: Any, ctx: Any) -> None:
        got.append(await ctx.await_event("paid", returns=Payment))
        got.append(await ctx.await_event("paid", "plain"))
        if ctx.attempt == 1:
            raise Crash
        with pytest.raises(ValidationFailed, match=r'payload of event "bad" does not match Payment: cents: '):
            await ctx.await_event("bad", returns=Payment)

    await app.emit_event("bad", {"cents": "x", "by": "card"})
    await app.emit_event("paid", {"cents": 5, "by": "card"})
    await drive.result(await app.spawn("typed", {}))
    assert got == [Payment(cents=5, by="card"), {"by": "card", "cents": 5}] * 2


async def test_a_timeout_raises_the_builtin_kind_and_names_the_event(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("late")
    async def late(params: Any, ctx: Any) -> str:
        with pytest.raises(builtins.TimeoutError) as caught:
            await ctx.await_event("never", timeout=MOMENT)
        assert isinstance(caught.value, TimeoutError)
        return str(caught.value)

    assert await drive.result(await app.spawn("late", {})) == 'Timed out waiting for event "never"'


async def test_a_timeout_stays_one_in_every_later_attempt_though_the_event_came(
    app: AsyncAbsurd, drive: Driver
) -> None:
    outcomes: list[str] = []

    @app.register_task("branches")
    async def branches(params: Any, ctx: Any) -> None:
        try:
            outcomes.append(await ctx.await_event("reply", timeout=MOMENT))
        except TimeoutError:
            outcomes.append("timeout")
        await app.emit_event("reply", "reply")
        if ctx.attempt < 3:
            raise Crash

    await drive.result(await app.spawn("branches", {}))
    assert outcomes == ["timeout"] * 3


async def test_after_a_timeout_a_second_wait_for_the_event_waits_anew(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("again")
    async def again(params: Any, ctx: Any) -> Any:
        try:
            await ctx.await_event("reply", "first", timeout=MOMENT)
        except TimeoutError:
            return await ctx.await_event("reply", "second", timeout=3600)

    spawned = await app.spawn("again", {})
    await drive.rest(spawned, times=2)
    await app.emit_event("reply", "here")
    assert await drive.result(spawned) == "here"


async def test_a_null_payload_is_no_timeout(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("null")
    async def null(params: Any, ctx: Any) -> Any:
        return [await ctx.await_event("nothing", timeout=3600), "no timeout"]

    spawned = await app.spawn("null", {})
    await drive.rest(spawned)
    await app.emit_event("nothing", None)
    assert await drive.result(spawned) == [None, "no timeout"]


async def test_w18_timeouts_may_be_fractions_and_durations(fake: FakeTime, rows: Rows) -> None:
    for timeout in (0.5, dt.timedelta(seconds=0.5)):

        @fake.app.register_task("half")
        async def half(params: Any, ctx: Any, timeout: Any = timeout) -> None:
            await ctx.await_event("never", timeout=timeout)

        spawned = await fake.app.spawn("half", {})
        assert await fake.work(spawned) == "sleeping"
        assert rows("select due_at from absurd.live where task_id = %s", spawned["task_id"]) == [
            NOON + dt.timedelta(seconds=0.5)
        ]


async def test_since_leaves_out_what_was_emitted_before(app: AsyncAbsurd, drive: Driver) -> None:
    await app.emit_event("news", "yesterday's")

    @app.register_task("reads")
    async def reads(params: Any, ctx: Any) -> Any:
        return [
            await ctx.await_event("news", "ever"),
            await ctx.await_event("news", "fresh", since="task_start"),
            await ctx.await_event("news", "dated", since=dt.datetime(2000, 1, 1, tzinfo=dt.UTC)),
        ]

    spawned = await app.spawn("reads", {})
    await drive.rest(spawned)
    assert await app.emit_event("news", "today's", mode="next")
    assert await drive.result(spawned) == ["yesterday's", "today's", "today's"]


async def test_bad_arguments_of_a_wait_are_refused_by_name(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("bad")
    async def bad(params: Any, ctx: Any) -> None:
        names: list[Any] = ["", " ", None, 7]
        for name in names:
            with pytest.raises(ValueError, match="event_name must be a non-empty string"):
                await ctx.await_event(name)
        timeouts: list[Any] = [-1, "1", float("nan"), True]
        for timeout in timeouts:
            with pytest.raises(InvalidOption, match="timeout must be seconds >= 0"):
                await ctx.await_event("e", timeout=timeout)
        moments: list[Any] = ["yesterday", 7, dt.datetime(2026, 1, 1)]
        for since in moments:
            with pytest.raises(InvalidOption, match="since must be"):
                await ctx.await_event("e", since=since)

    await drive.result(await app.spawn("bad", {}))


async def test_a_handler_emits_in_its_own_queue_and_is_told_whether_it_took_effect(
    app: AsyncAbsurd, drive: Driver, rows: Rows
) -> None:
    @app.register_task("emits")
    async def emits(params: Any, ctx: Any) -> Any:
        with pytest.raises(ValueError, match="event_name must be"):
            await ctx.emit_event("")
        return [
            await ctx.emit_event("done", {"n": 1}),
            await ctx.emit_event("done", {"n": 2}),
            await ctx.emit_event("done", {"n": 3}, mode="next"),
            await ctx.emit_event("bare"),
        ]

    assert await drive.result(await app.spawn("emits", {})) == [True, False, True, True]
    assert rows("select event_name, payload::text from absurd.events order by 1") == [
        ("bare", "null"),
        ("done", '{"n": 3}'),
    ]


async def test_what_makes_no_sense_is_refused_with_an_error_of_ours(app: AsyncAbsurd, drive: Driver) -> None:
    calls: list[Any] = [
        lambda ctx: ctx.sleep_until("x", 10**400),
        lambda ctx: ctx.sleep_until("x", dt.datetime(1, 1, 1)),
        lambda ctx: ctx.spawn("x", {}, idempotency_key="mine"),
        lambda ctx: ctx.gather(0),
    ]
    refusals: list[str] = []

    @app.register_task("senseless", default_max_attempts=1)
    async def senseless(params: Any, ctx: Any) -> None:
        for call in calls:
            try:
                await call(ctx)
            except InvalidOption as error:
                refusals.append(str(error))

    await drive.result(await app.spawn("senseless", {}))
    assert len(refusals) == len(calls)
