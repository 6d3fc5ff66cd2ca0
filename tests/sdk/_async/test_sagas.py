"""Compensations: what was done is undone, last first, when a task fails for good or is cancelled, and only then."""

from __future__ import annotations

from typing import Any

import pytest

from absurd import AsyncAbsurd, ConfigError, InvalidOption, NonRetryableError, RetryRefused, StepNameError
from tests.fixtures.postgres import Connection
from tests.sdk._async import _compat
from tests.sdk._async.conftest import Driver
from tests.sdk.conftest import Rows

NOW = {"kind": "none"}


def book(app: AsyncAbsurd, done: list[Any], errors: list[Exception], **options: Any) -> None:
    """A trip: flight, hotel, an approval, a payment that raises what `errors` holds, one a call; and what undoes them."""

    @app.register_task("trip", saga=True, default_retry_strategy=NOW, **options)
    async def trip(params: Any, ctx: Any) -> str:
        def pay() -> str:
            if errors:
                raise errors.pop(0)
            done.append("pay")
            return "paid"

        flight = await ctx.step("flight", lambda: done.append("flight") or "F1", undo="cancel-flight")
        await ctx.step("hotel", lambda: done.append("hotel") or {"id": "H7"}, undo="cancel-hotel")
        if params.get("approval"):
            await ctx.await_event("approved")
        await ctx.step("pay", pay, undo="refund")
        return f"{flight}: booked"

    for name in ("cancel-flight", "cancel-hotel", "refund"):

        @app.register_task(name, default_retry_strategy=NOW)
        async def undo(params: Any, ctx: Any) -> None:
            done.append((ctx.task_name, params["value"], params["kept"]))


async def companion(conn: Connection, drive: Driver) -> Any:
    """How the one companion there is ended."""
    ((task_id,),) = conn.execute("select task_id from absurd.tasks where task_name = '$undo:trip'").fetchall()
    return await drive.end({"task_id": task_id})


async def test_a_task_that_completes_undoes_nothing(app: AsyncAbsurd, conn: Connection, drive: Driver) -> None:
    done: list[Any] = []
    book(app, done, [])
    assert await drive.result(await app.spawn("trip", {})) == "F1: booked"
    assert (await companion(conn, drive)).result == {"task": "completed", "undone": []}
    assert done == ["flight", "hotel", "pay"]


async def test_a_task_that_fails_for_good_is_undone_in_reverse(
    app: AsyncAbsurd, conn: Connection, drive: Driver
) -> None:
    """The step that was begun and not kept, too: nobody knows whether it took effect."""
    done: list[Any] = []
    book(app, done, [OSError("card"), OSError("card")], default_max_attempts=2)
    await drive.failure(await app.spawn("trip", {"guest": "Ada"}))
    assert (await companion(conn, drive)).result == {"task": "failed", "undone": ["pay", "hotel", "flight"]}
    undone = [("refund", None, False), ("cancel-hotel", {"id": "H7"}, True), ("cancel-flight", "F1", True)]
    assert done == ["flight", "hotel", *undone]


async def test_steps_side_by_side_are_undone_once(app: AsyncAbsurd, conn: Connection, drive: Driver) -> None:
    """Neither finds a companion; there is one all the same."""
    undone: list[str] = []

    @app.register_task("take-back")
    async def back(params: Any, ctx: Any) -> None:
        undone.append(params["step"])

    @app.register_task("trip", saga=True, default_max_attempts=1)
    async def trip(params: Any, ctx: Any) -> None:
        async def book(name: str) -> None:
            await ctx.step(name, lambda: 1, undo="take-back")

        await _compat.together(lambda: book("flight"), lambda: book("hotel"))
        raise NonRetryableError("no")

    await drive.failure(await app.spawn("trip", {}))
    assert sorted((await companion(conn, drive)).result["undone"]) == ["flight", "hotel"]
    assert sorted(undone) == ["flight", "hotel"]


async def test_a_task_that_is_to_be_tried_again_is_not_undone(
    app: AsyncAbsurd, conn: Connection, drive: Driver
) -> None:
    done: list[Any] = []
    book(app, done, [OSError("card")], default_max_attempts=2)
    assert await drive.result(await app.spawn("trip", {})) == "F1: booked"
    assert (await companion(conn, drive)).result == {"task": "completed", "undone": []}


async def test_a_task_that_is_cancelled_while_it_waits_is_undone(
    app: AsyncAbsurd, conn: Connection, drive: Driver
) -> None:
    done: list[Any] = []
    book(app, done, [])
    spawned = await app.spawn("trip", {"approval": True})
    await drive.rest(spawned)
    await app.cancel_task(spawned["task_id"])
    assert (await companion(conn, drive)).result == {"task": "cancelled", "undone": ["hotel", "flight"]}


async def test_a_task_whose_lease_ran_out_for_the_last_time_is_undone(
    app: AsyncAbsurd, conn: Connection, drive: Driver
) -> None:
    done: list[Any] = []
    book(app, done, [], default_max_attempts=1)
    spawned = await app.spawn("trip", {"approval": True})
    await drive.rest(spawned)
    with conn.transaction():  # before another worker sees that it is due, one has taken it and died
        conn.execute("select absurd.emit_event('main', 'approved', 'null')")
        died = conn.execute(
            "update absurd.live set state = 'r', claimed_by = 'dead', claim_no = claim_no + 1, due_at = absurd.current_time(),"
            " lease_until = absurd.current_time() - interval '1 s', started_at = absurd.current_time() where task_id = %s",
            (spawned["task_id"],),
        )
    assert died.rowcount == 1
    assert (await drive.failure(spawned))["name"] == "$ClaimTimeout"
    assert (await companion(conn, drive)).result["undone"] == ["hotel", "flight"]


async def test_the_undo_gets_what_the_task_was_asked_for(app: AsyncAbsurd, conn: Connection, drive: Driver) -> None:
    given: list[Any] = []
    book(app, [], [NonRetryableError("card")])

    @app.register_task("refund")
    async def refund(params: Any, ctx: Any) -> None:
        given.append((params, ctx.headers))

    spawned = await app.spawn("trip", {"guest": "Ada"}, headers={"tenant": "t1"})
    await drive.failure(spawned)
    await companion(conn, drive)
    ((params, headers),) = given
    assert headers == {"tenant": "t1"}
    assert params == {
        "step": "pay",
        "task": "refund",
        "kept": False,
        "value": None,
        "task_id": str(spawned["task_id"]),
        "task_name": "trip",
        "params": {"guest": "Ada"},
    }


async def test_an_undo_that_fails_is_tried_until_it_works(app: AsyncAbsurd, conn: Connection, drive: Driver) -> None:
    tries: list[int] = []
    book(app, [], [NonRetryableError("card")])

    @app.register_task("cancel-hotel", default_retry_strategy=NOW)
    async def cancel_hotel(params: Any, ctx: Any) -> None:
        tries.append(ctx.attempt)
        if len(tries) < 8:
            raise OSError("the hotel does not answer")

    await drive.failure(await app.spawn("trip", {}))
    assert (await companion(conn, drive)).result["undone"] == ["pay", "hotel", "flight"]
    assert tries == list(range(1, 9))


async def test_an_undo_that_fails_for_good_stops_no_other(app: AsyncAbsurd, conn: Connection, drive: Driver) -> None:
    done: list[Any] = []
    book(app, done, [NonRetryableError("card")])

    @app.register_task("cancel-hotel")
    async def cancel_hotel(params: Any, ctx: Any) -> None:
        raise NonRetryableError("the hotel has closed")

    await drive.failure(await app.spawn("trip", {}))
    ended = await companion(conn, drive)
    assert (ended.state, ended.failure["message"]) == ("failed", "not undone: hotel; undone: pay, flight")
    assert done[-1] == ("cancel-flight", "F1", True)


async def test_a_retry_in_place_of_an_undone_task_is_refused(app: AsyncAbsurd, conn: Connection, drive: Driver) -> None:
    done: list[Any] = []
    book(app, done, [NonRetryableError("card")])
    spawned = await app.spawn("trip", {})
    await drive.failure(spawned)
    with pytest.raises(RetryRefused, match="undone"):
        await app.retry_task(spawned["task_id"], max_attempts=9)
    copy = await app.retry_task(spawned["task_id"], spawn_new=True)
    assert await drive.result(copy) == "F1: booked"


async def test_a_task_that_was_deleted_before_it_was_undone_is_no_success(
    app: AsyncAbsurd, conn: Connection, drive: Driver
) -> None:
    """The companion's own record of what there is to undo outlives the task's."""
    book(app, [], [NonRetryableError("card")])
    spawned = await app.spawn("trip", {})
    await drive.failure(spawned)
    ended = await companion(conn, drive)
    conn.execute("delete from absurd.checkpoints where task_id = %s", (spawned["task_id"],))
    assert ended.result["undone"] == ["pay", "hotel", "flight"]


async def test_a_saga_keeps_its_order(app: AsyncAbsurd, drive: Driver, rows: Rows) -> None:
    done: list[Any] = []
    book(app, done, [])
    spawned = await app.spawn("trip", {"approval": True})
    await drive.rest(spawned)
    names = rows("select name from absurd.checkpoints where task_id = %s", spawned["task_id"])
    assert sorted(names) == ["$undo", "$undo:flight", "$undo:hotel", "flight", "hotel"]

    @app.register_task("trip", saga=True)
    async def trip(params: Any, ctx: Any) -> None:
        await ctx.step("seat", lambda: done.append("seat"), undo="cancel-flight")

    await app.emit_event("approved")
    for _ in range(4):  # the companion takes its turns, too
        await drive.once(spawned, "snoozed")
    assert rows("select state->>'found' from absurd.checkpoints where name = '$refused'") == ["seat"]
    assert "seat" not in done


async def test_an_undo_in_another_queue_is_waited_for(app: AsyncAbsurd, conn: Connection, drive: Driver) -> None:
    done: list[Any] = []
    book(app, done, [NonRetryableError("card")])
    await app.create_queue("money")

    @app.register_task("refund", queue="money")
    async def refund(params: Any, ctx: Any) -> None:
        done.append("refunded elsewhere")

    await drive.failure(await app.spawn("trip", {}))
    other = AsyncAbsurd(app._session.conninfo(), "money")
    other._registry = app._registry
    while "refunded elsewhere" not in done:
        await app.work_batch("batch", 60)
        await other.work_batch("elsewhere", 60)
    await other.close()
    assert (await companion(conn, drive)).result["undone"] == ["pay", "hotel", "flight"]


@pytest.mark.parametrize(
    ("options", "undo", "name", "error"),
    [
        ({}, "cancel", "flight", ConfigError),
        ({"saga": True}, lambda value: None, "flight", InvalidOption),
        ({"saga": True}, "cancel", "f" * 1001, StepNameError),
    ],
    ids=["no saga", "a function", "a long name"],
)
async def test_what_cannot_be_undone_is_refused_before_it_is_done(
    app: AsyncAbsurd, drive: Driver, options: Any, undo: Any, name: str, error: type[Exception]
) -> None:
    ran: list[str] = []

    @app.register_task("plain", default_max_attempts=1, **options)
    async def plain(params: Any, ctx: Any) -> None:
        with pytest.raises(error):
            await ctx.step(name, lambda: ran.append("ran"), undo=undo)

    assert (await drive.end(await app.spawn("plain", {}))).state == "completed"
    assert ran == []


async def test_a_transactional_step_is_undone_too(
    app: AsyncAbsurd, conn: Connection, drive: Driver, rows: Rows, ledger: str
) -> None:
    @app.register_task("trip", saga=True)
    async def trip(params: Any, ctx: Any) -> None:
        async def reserve(tx: Any) -> str:
            await tx.execute("insert into ledger values ('reserved')")
            return "R1"

        await ctx.run_transaction("reserve", reserve, undo="release")
        raise NonRetryableError("no money")

    @app.register_task("release")
    async def release(params: Any, ctx: Any) -> None:
        async with ctx.transaction("release") as tx:
            await tx.execute("insert into ledger values (%s)", (f"released {params['value']}",))

    await drive.failure(await app.spawn("trip", {}))
    assert (await companion(conn, drive)).result == {"task": "failed", "undone": ["reserve"]}
    assert rows("select entry from ledger order by entry") == ["released R1", "reserved"]
