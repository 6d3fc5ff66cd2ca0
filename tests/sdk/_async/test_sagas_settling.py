"""What is still under way when its task is ended from outside is undone a claim timeout later; what retention leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from absurd import AsyncAbsurd, NonRetryableError
from tests.fixtures.postgres import Connection
from tests.sdk._async import _compat
from tests.sdk._async.conftest import LEASE, Driver
from tests.sdk.conftest import Rows

CANCELLED = "select absurd.cancel_task('main', %s)"
#: The last attempt's lease runs out, and somebody notices.
EXPIRED = """
    with expired as (
      update absurd.live set due_at = absurd.current_time(), lease_until = absurd.current_time()
       where task_id = %s returning queue_id)
    select queue_id from expired"""
TIDIED = "select absurd.tidy_queue(absurd.queue_id_of('main'), absurd.current_time(), 1)"
#: The time the companion gives has passed.
PASSED = """
    with moved as (
      update absurd.checkpoints set state = to_jsonb(absurd.current_time()) where name = 'settle' returning task_id)
    update absurd.live l set due_at = absurd.current_time() from moved m where l.task_id = m.task_id and l.state = 's'"""


def ends_while_it_books(app: AsyncAbsurd, world: list[Any], end: Callable[[Any], None]) -> None:
    """A trip that is ended from outside while it books its hotel; and what cancels the hotel."""

    @app.register_task("trip", saga=True, default_max_attempts=1)
    async def trip(params: Any, ctx: Any) -> None:
        await ctx.step("flight", lambda: "F1", undo="cancel-flight")
        await ctx.step("hotel", lambda: end(ctx.task_id), undo="cancel-hotel")

    for name in ("cancel-flight", "cancel-hotel"):

        @app.register_task(name)
        async def undo(params: Any, ctx: Any) -> None:
            world.append((params["step"], params["kept"]))


async def companion(app: AsyncAbsurd, conn: Connection, drive: Driver) -> Any:
    """How the one companion there is ended."""
    ((task_id,),) = conn.execute("select task_id from absurd.tasks where task_name = '$undo:trip'").fetchall()
    return await drive.end({"task_id": task_id})


async def settles(app: AsyncAbsurd, drive: Driver, rows: Rows, world: list[Any]) -> None:
    """Work until the companion gives time, or does not."""
    if drive.batch:
        for _ in range(6):
            await app.work_batch("batch", LEASE, 10)
    else:
        await _compat.until(lambda: world or rows("select state from absurd.checkpoints where name = 'settle'"))


def pass_time(conn: Connection) -> None:
    """The time the companion gives is over."""
    assert conn.execute(PASSED).rowcount == 1
    conn.execute("select absurd.wake('main')")


@pytest.mark.parametrize("ended", ["cancelled", "failed"])
async def test_a_step_under_way_when_its_task_was_ended_from_outside_is_undone_a_claim_timeout_later(
    app: AsyncAbsurd, conn: Connection, drive: Driver, rows: Rows, ended: str
) -> None:
    world: list[Any] = []

    def end(task_id: Any) -> None:
        if ended == "cancelled":
            conn.execute(CANCELLED, (task_id,))
        else:
            with conn.transaction():
                conn.execute(EXPIRED, (task_id,))
                conn.execute(TIDIED)

    ends_while_it_books(app, world, end)
    spawned = await app.spawn("trip", {})
    assert (await drive.end(spawned)).state == ended
    await settles(app, drive, rows, world)
    assert world == []
    record = "select (state->>'settle')::float, updated_at from absurd.checkpoints where name = 'record'"
    ((seconds, recorded),) = rows(record)
    ((until, due),) = rows(
        "select (c.state #>> '{}')::timestamptz, l.due_at from absurd.checkpoints c join absurd.live l using (task_id)"
        " where c.name = 'settle'"
    )
    assert seconds == LEASE
    assert (due - recorded).total_seconds() >= LEASE
    assert due == until
    pass_time(conn)
    assert (await companion(app, conn, drive)).result == {"task": ended, "undone": ["hotel", "flight"]}
    assert world == [("hotel", False), ("flight", True)]


async def test_a_step_that_takes_effect_after_the_end_of_its_task_is_undone_after_that(
    app: AsyncAbsurd, conn: Connection, rows: Rows
) -> None:
    world: list[Any] = []

    @app.register_task("trip", saga=True)
    async def trip(params: Any, ctx: Any) -> None:
        async def book() -> None:
            await app.cancel_task(ctx.task_id)
            settling = "select state from absurd.checkpoints where name = 'settle'"
            await _compat.until(
                lambda: world or rows(settling)
            )  # the companion knows of the end, this handler does not
            world.append("booked")

        await ctx.step("hotel", book, undo="cancel-hotel")

    @app.register_task("cancel-hotel")
    async def cancel(params: Any, ctx: Any) -> None:
        world.append(("undone", params["kept"]))

    async with _compat.working(app, claim_timeout=LEASE, concurrency=4):
        await app.spawn("trip", {})
        await _compat.until(lambda: "booked" in world)
        assert world == ["booked"]
        pass_time(conn)
        (task_id,) = rows("select task_id from absurd.tasks where task_name = '$undo:trip'")
        assert (await app.await_task_result(task_id, _compat.DEADLINE)).result["undone"] == ["hotel"]
    assert world == ["booked", ("undone", False)]


@pytest.mark.parametrize("kept", [True, False])
async def test_no_time_is_given_when_all_is_kept_or_the_handler_itself_ended_the_task(
    app: AsyncAbsurd, conn: Connection, drive: Driver, rows: Rows, kept: bool
) -> None:
    world: list[Any] = []

    def end(task_id: Any) -> None:
        if not kept:
            raise NonRetryableError("no room")

    ends_while_it_books(app, world, end)
    registered = app._registry.get("trip")
    assert registered is not None

    @app.register_task("trip", saga=True, default_max_attempts=1)
    async def trip(params: Any, ctx: Any) -> None:
        await registered.handler(params, ctx)
        await ctx.await_event("never")

    spawned = await app.spawn("trip", {})
    if kept:
        await drive.rest(spawned)
        await app.cancel_task(spawned["task_id"])
    await drive.end(spawned)
    await companion(app, conn, drive)
    assert world == [("hotel", kept), ("flight", True)]
    assert rows("select state ? 'settle' from absurd.checkpoints where name = 'record'") == [False]


async def test_a_record_that_an_earlier_release_made_is_undone_as_that_would(
    app: AsyncAbsurd, conn: Connection, drive: Driver, rows: Rows
) -> None:
    """It has no `settle`; so a companion under way does not meet a step that was not there."""
    world: list[Any] = []
    ends_while_it_books(app, world, lambda task_id: conn.execute(CANCELLED, (task_id,)) and None)
    await drive.end(await app.spawn("trip", {}))
    await settles(app, drive, rows, world)
    with conn.transaction():
        pass_time(conn)
        conn.execute("update absurd.checkpoints set state = state - 'settle' where name = 'record'")
        conn.execute("delete from absurd.checkpoints where name = 'settle'")
    assert (await companion(app, conn, drive)).result["undone"] == ["hotel", "flight"]
    assert rows("select name from absurd.checkpoints where name = 'settle'") == []


# -- retention ---------------------------------------------------------------------------------------------------------


def waits_for_payment(app: AsyncAbsurd, world: list[Any]) -> None:
    """A trip with a flight to cancel, that waits."""

    @app.register_task("trip", saga=True)
    async def trip(params: Any, ctx: Any) -> None:
        await ctx.step("flight", lambda: "F1", undo="cancel-flight")
        await ctx.await_event("paid")

    @app.register_task("cancel-flight")
    async def cancel(params: Any, ctx: Any) -> None:
        world.append(params["value"])


async def test_retention_takes_no_task_that_is_still_to_be_undone(
    app: AsyncAbsurd, conn: Connection, drive: Driver, rows: Rows
) -> None:
    world: list[Any] = []
    waits_for_payment(app, world)
    spawned = await app.spawn("trip", {})
    await drive.rest(spawned)
    with conn.transaction():
        conn.execute(CANCELLED, (spawned["task_id"],))
        conn.execute("select set_config('absurd.fake_now', (now() + interval '1 day')::text, true)")
        conn.execute("select absurd.cleanup_tasks('main', 0)")
    conn.execute("select absurd.wake('main')")
    assert (await companion(app, conn, drive)).result == {"task": "cancelled", "undone": ["flight"]}
    assert world == ["F1"]
    with conn.transaction():
        conn.execute("select set_config('absurd.fake_now', (now() + interval '1 day')::text, true)")
        assert rows("select absurd.cleanup_tasks('main', 0)") == [3]


@pytest.mark.parametrize("claimed", [True, False], ids=["it waits", "it has not begun"])
async def test_a_companion_whose_task_is_gone_gives_up_at_once(
    app: AsyncAbsurd, conn: Connection, rows: Rows, claimed: bool
) -> None:
    """No further attempt would find it. Retention does not do that; somebody with SQL may."""
    waits_for_payment(app, [])
    spawned = await app.spawn("trip", {})
    await app.work_batch("batch", LEASE, 1)
    if claimed:
        await app.work_batch("batch", LEASE, 10)
    conn.execute(CANCELLED, (spawned["task_id"],))
    conn.execute("select absurd.delete_tasks(absurd.queue_id_of('main'), array[%s::uuid])", (spawned["task_id"],))
    await app.work_batch("batch", LEASE, 10)
    ((state, attempt, message),) = rows("select task_state, attempt, failure->>'message' from absurd.attempts")
    assert (state, attempt) == ("f", 1)
    assert message == f'task "{spawned["task_id"]}" was deleted before it was undone'
