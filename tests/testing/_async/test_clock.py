"""The clock stands still until it is moved, and knows what comes next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from absurd import AsyncAbsurd, AsyncTaskContext, ConfigError, InvalidOption, TimeoutError
from absurd._db.call import Call, scalar
from absurd.testing import Clock, drain, run_to_wait
from absurd.testing._async.clock import FakeClock
from absurd.testing._async.session import client, session_of
from tests.fixtures.postgres import Connection

START = datetime(2030, 1, 1, 9, tzinfo=UTC)


async def engine_now(app: AsyncAbsurd) -> Any:
    return await session_of(app).run(Call("select absurd.current_time()", (), scalar))


async def test_the_engine_sees_what_the_clock_shows_and_nothing_moves_it_but_the_test(app: AsyncAbsurd) -> None:
    clock = FakeClock(app, START)
    assert await engine_now(app) == await engine_now(app) == clock.now == START
    assert clock.advance(90) == START + timedelta(seconds=90)
    assert clock.advance(timedelta(days=1)) == await engine_now(app)
    assert clock.move_to(START + timedelta(days=2)) == await engine_now(app)


@pytest.mark.parametrize("by", [-1, "1", float("nan"), float("inf"), timedelta(seconds=-1)])
def test_a_clock_takes_only_durations_that_a_calendar_can_hold(by: Any) -> None:
    clock = Clock(START)
    with pytest.raises(InvalidOption):
        clock.advance(by)
    assert clock.now == START


def test_a_clock_never_goes_back_and_wants_to_know_the_time_zone() -> None:
    clock = Clock(START)
    with pytest.raises(InvalidOption, match="never goes back"):
        clock.move_to(START - timedelta(seconds=1))
    with pytest.raises(InvalidOption, match="time zone"):
        Clock(datetime(2030, 1, 1))


async def test_what_comes_next_is_named_for_each_reason_there_can_be(app: AsyncAbsurd) -> None:
    clock = FakeClock(app, START)

    @app.register_task("sleeper")
    async def sleeper(params: Any, ctx: AsyncTaskContext) -> None:
        await ctx.sleep_for("nap", 15)

    @app.register_task("waiter")
    async def waiter(params: Any, ctx: AsyncTaskContext) -> None:
        await ctx.await_event("bell", "listen", timeout=30)

    @app.register_task("failing", default_max_attempts=2, default_retry_strategy={"kind": "fixed", "base_seconds": 40})
    async def failing(params: Any, ctx: AsyncTaskContext) -> None:
        raise ValueError("no")

    await app.spawn("sleeper", delay=10)
    await app.spawn("waiter")
    await app.spawn("failing")
    await app.spawn("stranger", queue="kit", cancellation={"max_delay": 200})
    await app.spawn("held", queue="kit", priority=1000)
    await app.claim_tasks(1, 50)
    seen = []
    for _ in range(8):
        await drain(app)
        due = await clock.advance_to_next()
        if due is None:
            break
        seen.append(((due.at - START).total_seconds(), due.why, due.task_name, due.step, due.event))
        assert clock.now == due.at
    assert seen == [
        (10, "start", "sleeper", None, None),
        (25, "sleep", "sleeper", "nap", None),
        (30, "timeout", "waiter", "listen", "bell"),
        (40, "retry", "failing", None, None),
        (50, "lease", "held", None, None),
        (200, "cancellation", "stranger", None, None),
    ]


async def test_with_nothing_to_come_the_clock_stays_where_it_is(app: AsyncAbsurd, fake: FakeClock) -> None:
    before = fake.now
    assert await fake.advance_to_next() is None
    assert fake.now == before


async def test_a_sleep_ends_when_the_clock_says_so(app: AsyncAbsurd, fake: FakeClock) -> None:
    @app.register_task("nag")
    async def nag(params: Any, ctx: AsyncTaskContext) -> str:
        await ctx.sleep_for("a week", 7 * 86400)
        return "nagged"

    task = await app.spawn("nag")
    assert (await run_to_wait(app, task)).state == "sleeping"
    fake.advance(7 * 86400 - 1)
    assert (await run_to_wait(app, task)).state == "sleeping"
    fake.advance(1)
    assert (await run_to_wait(app, task)).result == "nagged"


async def test_two_clients_can_share_a_clock(app: AsyncAbsurd, fake: FakeClock, database_url: str) -> None:
    async with client(database_url, "kit", clock=fake) as other:
        fake.advance(86400)
        assert await engine_now(other) == await engine_now(app) == fake.now


async def test_a_transaction_that_rolls_back_does_not_take_the_clock_with_it(app: AsyncAbsurd, fake: FakeClock) -> None:
    @app.register_task("mover", default_max_attempts=1)
    async def mover(params: Any, ctx: AsyncTaskContext) -> None:
        async with ctx.transaction("t"):
            fake.advance(3600)
            await app.fetch_task_result(ctx.task_id)
            raise ValueError("roll back")

    await run_to_wait(app, await app.spawn("mover"))
    assert await engine_now(app) == fake.now


async def test_a_schema_for_production_is_refused_with_the_way_to_one_for_tests(
    app: AsyncAbsurd, conn: Connection
) -> None:
    conn.execute("select absurd.set_fake_clock(false)")
    FakeClock(app, START)
    with pytest.raises(ConfigError, match="--fake-clock"):
        await app.spawn("any", queue="kit")


async def test_a_timeout_is_reached_by_moving_to_what_is_next(app: AsyncAbsurd, fake: FakeClock) -> None:
    @app.register_task("patient")
    async def patient(params: Any, ctx: AsyncTaskContext) -> str:
        try:
            return str(await ctx.await_event("bell", timeout=60))
        except TimeoutError:
            return "nobody rang"

    task = await app.spawn("patient")
    await run_to_wait(app, task)
    due = await fake.advance_to_next()
    assert due is not None
    assert (due.why, due.event, due.task_id) == ("timeout", "bell", task["task_id"])
    assert (await run_to_wait(app, task)).result == "nobody rang"


async def test_a_connection_of_ours_is_closed_with_the_client_and_a_lent_one_is_not(database_url: str) -> None:
    lent = await psycopg.AsyncConnection.connect(database_url, autocommit=True)
    async with client(lent, "kit") as app:
        await app.list_queues()
    assert not lent.closed
    await lent.close()
    made = client(database_url, "kit")
    await made.list_queues()
    opened = session_of(made)._borrowed
    assert opened is not None
    await made.close()
    assert opened.closed
