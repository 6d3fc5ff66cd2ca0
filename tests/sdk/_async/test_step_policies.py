"""Steps that are tried again, take too long, run side by side; and what a handler may raise about its next attempt."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from absurd import AsyncAbsurd, InvalidOption, NonRetryableError, RetryAfter, Snooze, TimeoutError
from tests.sdk._async import _compat
from tests.sdk._async.conftest import Driver
from tests.sdk.conftest import Rows


async def test_a_step_is_tried_as_often_as_it_says_within_one_attempt(app: AsyncAbsurd, drive: Driver) -> None:
    tries: list[int] = []

    @app.register_task("flaky", default_max_attempts=1)
    async def flaky(params: Any, ctx: Any) -> Any:
        def call() -> str:
            tries.append(ctx.attempt)
            if len(tries) < 3:
                raise OSError("not yet")
            return "third time"

        return await ctx.step("call", call, max_attempts=3, retry_strategy={"kind": "none"})

    assert await drive.result(await app.spawn("flaky", {})) == "third time"
    assert tries == [1, 1, 1]


async def test_the_last_error_of_a_step_is_the_tasks(app: AsyncAbsurd, drive: Driver) -> None:
    tries: list[str] = []

    @app.register_task("broken", default_max_attempts=1)
    async def broken(params: Any, ctx: Any) -> None:
        def call() -> None:
            tries.append("try")
            raise OSError(f"number {len(tries)}")

        await ctx.step("call", call, max_attempts=2)

    failure = await drive.failure(await app.spawn("broken", {}))
    assert (failure["name"], failure["message"]) == ("OSError", "number 2")


@pytest.mark.parametrize("error", [NonRetryableError("no use"), RetryAfter(301)], ids=["final", "too late for a step"])
async def test_some_errors_end_the_tries_of_a_step(app: AsyncAbsurd, drive: Driver, error: Exception) -> None:
    tries: list[str] = []

    @app.register_task("broken", default_max_attempts=1)
    async def broken(params: Any, ctx: Any) -> None:
        def call() -> None:
            tries.append("try")
            raise error

        await ctx.step("call", call, max_attempts=9)

    assert (await drive.failure(await app.spawn("broken", {})))["name"] == type(error).__name__
    assert tries == ["try"]


@pytest.mark.parametrize(
    "policy",
    [
        {"max_attempts": 0},
        {"max_attempts": "3"},
        {"retry_strategy": {"kind": "often"}},
        {"retry_strategy": {"kind": "fixed", "base_seconds": -1}},
        {"retry_strategy": {"kind": "fixed", "jitter": 2}},
        {"max_attempts": 3, "retry_strategy": {"kind": "fixed", "base_seconds": 301}},
        {"timeout": -1},
    ],
)
async def test_a_policy_that_is_none_is_refused_before_the_step_runs(
    app: AsyncAbsurd, drive: Driver, policy: Any
) -> None:
    ran: list[str] = []

    @app.register_task("odd", default_max_attempts=1)
    async def odd(params: Any, ctx: Any) -> None:
        await ctx.step("call", lambda: ran.append("ran"), **policy)

    assert (await drive.failure(await app.spawn("odd", {})))["name"] == InvalidOption.__name__
    assert ran == []


# [async-only
async def test_a_step_that_takes_too_long_is_stopped_and_tried_again(app: AsyncAbsurd, drive: Driver) -> None:
    import asyncio

    tries: list[str] = []

    @app.register_task("slow", default_max_attempts=1)
    async def slow(params: Any, ctx: Any) -> Any:
        async def call() -> str:
            tries.append("try")
            if len(tries) == 1:
                await asyncio.Event().wait()
            return "quick"

        with pytest.raises(TimeoutError, match="nothing to wait for"):
            await ctx.step("own", _own_timeout, timeout=60)
        return await ctx.step("call", call, max_attempts=2, timeout=0.05)

    assert await drive.result(await app.spawn("slow", {})) == "quick"


async def _own_timeout() -> None:
    raise TimeoutError("nothing to wait for")


# ]
# SYNC-ONLY: def test_a_timeout_is_refused_where_a_step_is_a_thread(app: Absurd, drive: Driver) -> None:
# SYNC-ONLY:     @app.register_task("slow", default_max_attempts=1)
# SYNC-ONLY:     def slow(params: Any, ctx: Any) -> None:
# SYNC-ONLY:         with pytest.raises(InvalidOption, match="cannot be stopped"):
# SYNC-ONLY:             ctx.step("call", lambda: 1, timeout=1)
# SYNC-ONLY:
# SYNC-ONLY:     assert drive.result(app.spawn("slow", {})) is None


async def test_steps_side_by_side_are_kept_each_for_itself(app: AsyncAbsurd, drive: Driver, rows: Rows) -> None:
    ran: list[str] = []

    @app.register_task("trip", default_max_attempts=2)
    async def trip(params: Any, ctx: Any) -> Any:
        def book(what: str) -> str:
            ran.append(what)
            if what == "hotel" and ran.count("hotel") == 1:
                raise OSError("full")
            return f"{what} booked"

        steps = {what: lambda what=what: book(what) for what in ("flight", "hotel", "car")}
        return await ctx.gather(steps)

    spawned = await app.spawn("trip", {})
    booked = {"flight": "flight booked", "hotel": "hotel booked", "car": "car booked"}
    assert await drive.result(spawned) == booked
    assert sorted(ran) == ["car", "flight", "hotel", "hotel"], "what was kept ran again"
    assert dict(rows("select name, state from absurd.checkpoints")) == booked


async def test_steps_side_by_side_meet(app: AsyncAbsurd, drive: Driver) -> None:
    """Each waits until all have begun, so they can only end together."""

    @app.register_task("meeting", default_max_attempts=1)
    async def meeting(params: Any, ctx: Any) -> Any:
        meet = _compat.barrier(3)
        return await ctx.map("guest", meet, ["a", "b", "c"], limit=3)

    assert await drive.result(await app.spawn("meeting", {})) == ["a", "b", "c"]


async def test_no_more_steps_than_the_limit_run_at_a_time(app: AsyncAbsurd, drive: Driver) -> None:
    running: list[int] = []
    most: list[int] = []

    @app.register_task("many", default_max_attempts=1)
    async def many(params: Any, ctx: Any) -> Any:
        async def call(number: int) -> int:
            running.append(number)
            most.append(len(running))
            await _compat.breathe()
            running.remove(number)
            return number * 2

        return await ctx.map("double", call, range(10), limit=2)

    assert await drive.result(await app.spawn("many", {})) == [n * 2 for n in range(10)]
    assert max(most) <= 2


async def test_nothing_to_do_side_by_side_is_done(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("none", default_max_attempts=1)
    async def none(params: Any, ctx: Any) -> Any:
        return [await ctx.gather({}), await ctx.map("x", str, [])]

    assert await drive.result(await app.spawn("none", {})) == [{}, []]


async def test_an_error_that_no_attempt_can_mend_is_the_last(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("hopeless", default_max_attempts=9)
    async def hopeless(params: Any, ctx: Any) -> None:
        raise NonRetryableError("the card is stolen")

    spawned = await app.spawn("hopeless", {})
    assert (await drive.failure(spawned))["message"] == "the card is stolen"
    snapshot = await app.fetch_task_result(spawned["task_id"])
    assert snapshot is not None
    assert snapshot.state == "failed"


async def test_retry_after_beats_the_strategy(app: AsyncAbsurd, drive: Driver, rows: Rows) -> None:
    @app.register_task("limited", default_max_attempts=2, default_retry_strategy={"kind": "fixed", "base_seconds": 5})
    async def limited(params: Any, ctx: Any) -> None:
        raise RetryAfter(dt.timedelta(hours=2), "429")

    await drive.once(await app.spawn("limited", {}), "failed")
    await _compat.until(lambda: rows("select from absurd.live where state = 's'"))
    (wait,) = rows("select extract(epoch from due_at - created_at)::float from absurd.live")
    assert wait == 7200


async def test_a_snooze_burns_no_attempt(app: AsyncAbsurd, drive: Driver, rows: Rows) -> None:
    seen: list[int] = []

    @app.register_task("later", default_max_attempts=1)
    async def later(params: Any, ctx: Any) -> str:
        seen.append(ctx.attempt)
        if len(seen) < 3:
            raise Snooze(0)
        return "now"

    assert await drive.result(await app.spawn("later", {})) == "now"
    assert seen == [1, 1, 1]
    assert rows("select attempt from absurd.attempts") == [1]


@pytest.mark.parametrize("delay", [-1, float("inf"), float("nan"), "5", None])
async def test_a_delay_that_is_none_is_refused(delay: Any) -> None:
    for kind in (RetryAfter, Snooze):
        with pytest.raises(ValueError, match="delay must be"):
            kind(delay)
