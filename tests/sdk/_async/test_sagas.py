"""Compensations: what was done is undone, last first, when a task fails for good or is cancelled, and only then."""

from __future__ import annotations

from typing import Any

import pytest

from absurd import AsyncAbsurd, ConfigError, NonRetryableError
from tests.fixtures.postgres import Connection
from tests.sdk._async.conftest import Driver
from tests.sdk.conftest import Rows


def book(app: AsyncAbsurd, done: list[str], errors: list[Exception], **options: Any) -> None:
    """A trip: flight, hotel, an approval, a payment that raises what `errors` holds, one a call."""

    @app.register_task("trip", saga=True, default_retry_strategy={"kind": "none"}, **options)
    async def trip(params: Any, ctx: Any) -> str:
        def pay() -> str:
            if errors:
                raise errors.pop(0)
            done.append("pay")
            return "paid"

        flight = await ctx.step(
            "flight", lambda: done.append("flight") or "F1", undo=lambda n: done.append(f"undo {n}")
        )
        nights = 2
        await ctx.step(
            "hotel",
            lambda: done.append("hotel") or {"id": "H7"},
            undo=lambda h: done.append(f"undo {h['id']}x{nights}"),
        )
        if params.get("approval"):
            await ctx.await_event("approved")
        await ctx.step("pay", pay, undo=lambda _: done.append("undo pay"))
        return f"{flight}: booked"


async def companion(app: AsyncAbsurd, conn: Connection, drive: Driver) -> Any:
    """How the one companion there is ended."""
    ((task_id,),) = conn.execute("select task_id from absurd.tasks where task_name = '$undo:trip'").fetchall()
    snapshot = await drive.end({"task_id": task_id})
    assert snapshot.state == "completed", snapshot.failure
    return snapshot.result


async def test_a_task_that_completes_undoes_nothing(app: AsyncAbsurd, conn: Connection, drive: Driver) -> None:
    done: list[str] = []
    book(app, done, [])
    assert await drive.result(await app.spawn("trip", {})) == "F1: booked"
    assert await companion(app, conn, drive) == {"task": "completed", "undone": []}
    assert done == ["flight", "hotel", "pay"]


async def test_a_task_that_fails_for_good_is_undone_in_reverse(
    app: AsyncAbsurd, conn: Connection, drive: Driver
) -> None:
    done: list[str] = []
    book(app, done, [OSError("card"), OSError("card")], default_max_attempts=2)
    await drive.failure(await app.spawn("trip", {}))
    assert await companion(app, conn, drive) == {"task": "failed", "undone": ["hotel", "flight"]}
    assert done == ["flight", "hotel", "undo H7x2", "undo F1"]


async def test_a_task_that_is_to_be_tried_again_is_not_undone(
    app: AsyncAbsurd, conn: Connection, drive: Driver
) -> None:
    done: list[str] = []
    book(app, done, [OSError("card")], default_max_attempts=2)
    assert await drive.result(await app.spawn("trip", {})) == "F1: booked"
    assert await companion(app, conn, drive) == {"task": "completed", "undone": []}


async def test_a_task_that_is_cancelled_while_it_waits_is_undone(
    app: AsyncAbsurd, conn: Connection, drive: Driver
) -> None:
    done: list[str] = []
    book(app, done, [])
    spawned = await app.spawn("trip", {"approval": True})
    await drive.rest(spawned)
    await app.cancel_task(spawned["task_id"])
    assert await companion(app, conn, drive) == {"task": "cancelled", "undone": ["hotel", "flight"]}
    assert done == ["flight", "hotel", "undo H7x2", "undo F1"]


async def test_a_compensation_that_fails_is_tried_until_it_works(
    app: AsyncAbsurd, conn: Connection, drive: Driver
) -> None:
    tries: list[str] = []

    @app.register_task("trip", saga=True)
    async def trip(params: Any, ctx: Any) -> None:
        def undo(value: Any) -> None:
            tries.append(value)
            if len(tries) < 8:
                raise OSError("the airline does not answer")

        await ctx.step("flight", lambda: "F1", undo=undo)
        raise NonRetryableError("no seats")

    app._registry.get("$undo:trip").default_retry_strategy.update(kind="none")  # type: ignore[union-attr]
    await drive.failure(await app.spawn("trip", {}))
    assert await companion(app, conn, drive) == {"task": "failed", "undone": ["flight"]}
    assert tries == ["F1"] * 8


async def test_a_step_that_was_undone_is_not_undone_twice(app: AsyncAbsurd, conn: Connection, drive: Driver) -> None:
    undone: list[str] = []

    @app.register_task("trip", saga=True)
    async def trip(params: Any, ctx: Any) -> None:
        def cancel_flight(value: Any) -> None:
            undone.append("flight")
            if undone.count("flight") == 1:
                raise OSError("once more")

        await ctx.step("flight", lambda: "F1", undo=cancel_flight)
        await ctx.step("hotel", lambda: "H7", undo=lambda _: undone.append("hotel"))
        raise NonRetryableError("no money")

    app._registry.get("$undo:trip").default_retry_strategy.update(kind="none")  # type: ignore[union-attr]
    await drive.failure(await app.spawn("trip", {}))
    await companion(app, conn, drive)
    assert undone == ["hotel", "flight", "flight"]


async def test_a_retry_of_an_undone_task_is_refused(app: AsyncAbsurd, conn: Connection, drive: Driver) -> None:
    done: list[str] = []
    book(app, done, [NonRetryableError("card")])
    spawned = await app.spawn("trip", {})
    await drive.failure(spawned)
    await companion(app, conn, drive)
    await app.retry_task(spawned["task_id"], max_attempts=9)
    failure = await drive.failure(spawned)
    assert failure["name"] == "Compensated"
    assert "spawn a new task" in failure["message"]
    assert "pay" not in done


async def test_a_caught_failure_on_the_way_hides_no_compensation(
    app: AsyncAbsurd, conn: Connection, drive: Driver
) -> None:
    """The steps after it are found by failing there again, with an error of the same class."""
    undone: list[str] = []

    @app.register_task("trip", saga=True)
    async def trip(params: Any, ctx: Any) -> None:
        def train() -> None:
            raise OSError("on strike")

        try:
            await ctx.step("train", train)
        except OSError:
            await ctx.step("bus", lambda: "B1", undo=undone.append)
        raise NonRetryableError("no money")

    await drive.failure(await app.spawn("trip", {}))
    assert await companion(app, conn, drive) == {"task": "failed", "undone": ["bus"]}
    assert undone == ["B1"]


async def test_code_that_cannot_find_the_way_back_says_so_and_waits(
    app: AsyncAbsurd, conn: Connection, drive: Driver
) -> None:
    done: list[str] = []
    book(app, done, [])
    spawned = await app.spawn("trip", {"approval": True})
    await drive.rest(spawned)
    (recorded,) = conn.execute("select count(*) from absurd.checkpoints where task_id = %s", (spawned["task_id"],))
    assert recorded == (3,), "the companion, the flight and the hotel"

    @app.register_task("trip", saga=True)
    async def trip(params: Any, ctx: Any) -> None:
        await ctx.step("boat", lambda: 1, undo=lambda _: None)

    app._registry.get("$undo:trip").default_retry_strategy.update(kind="none")  # type: ignore[union-attr]
    ((task_id,),) = conn.execute("select task_id from absurd.tasks where task_name = '$undo:trip'").fetchall()
    await app.cancel_task(spawned["task_id"])
    await drive.once({"task_id": task_id}, "failed")
    book(app, done, [])
    assert await companion(app, conn, drive) == {"task": "cancelled", "undone": ["hotel", "flight"]}


async def test_undo_needs_a_task_that_says_so(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("plain", default_max_attempts=1)
    async def plain(params: Any, ctx: Any) -> None:
        with pytest.raises(ConfigError, match="saga=True"):
            await ctx.step("flight", lambda: 1, undo=lambda _: None)

    await drive.end(await app.spawn("plain", {}))


async def test_a_transactional_step_is_undone_too(
    app: AsyncAbsurd, conn: Connection, drive: Driver, rows: Rows, ledger: str
) -> None:
    @app.register_task("trip", saga=True)
    async def trip(params: Any, ctx: Any) -> None:
        async def reserve(tx: Any) -> str:
            await tx.execute("insert into ledger values ('reserved')")
            return "R1"

        async def release(number: Any) -> None:
            conn.execute("insert into ledger values (%s)", (f"released {number}",))

        await ctx.run_transaction("reserve", reserve, undo=release)
        raise NonRetryableError("no money")

    await drive.failure(await app.spawn("trip", {}))
    assert await companion(app, conn, drive) == {"task": "failed", "undone": ["reserve"]}
    assert rows("select entry from ledger order by entry") == ["released R1", "reserved"]
