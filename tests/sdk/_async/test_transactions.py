"""`ctx.transaction`: the user's rows and the checkpoint, one commit or none."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from absurd import AsyncAbsurd, NotSerializable, StepError
from absurd._async import _compat as world
from tests.fixtures.clock import Clock
from tests.fixtures.postgres import Connection
from tests.sdk._async import _compat
from tests.sdk._async.conftest import Driver
from tests.sdk.conftest import Rows

WRITE = "insert into ledger values (%s)"


class Crash(Exception):
    """What a test's handler raises where a process would die."""


async def test_rows_and_checkpoint_commit_once_however_often_the_handler_runs(
    app: AsyncAbsurd, drive: Driver, rows: Rows, ledger: str
) -> None:
    seen: list[tuple[bool, Any]] = []

    @app.register_task("books")
    async def books(params: Any, ctx: Any) -> Any:
        async with ctx.transaction("book") as tx:
            before = tx.done
            cursor = await tx.execute(WRITE, ("booked",))
            assert cursor.rowcount == (0 if tx.done else 1)
            if not tx.done:
                tx.result = {2: "b", 1: ("a",)}
        seen.append((before, tx.result))
        if ctx.attempt < 3:
            raise Crash
        return tx.result

    assert await drive.result(await app.spawn("books", {})) == {"1": ["a"], "2": "b"}
    assert rows("select entry from ledger") == ["booked"]
    assert seen == [(False, {"1": ["a"], "2": "b"}), (True, {"1": ["a"], "2": "b"}), (True, {"1": ["a"], "2": "b"})]


async def test_an_exception_rolls_back_rows_spawns_emits_and_checkpoint(
    app: AsyncAbsurd, drive: Driver, rows: Rows, ledger: str
) -> None:
    @app.register_task("child")
    async def child(params: Any, ctx: Any) -> None:
        """Ends at once."""

    @app.register_task("books")
    async def books(params: Any, ctx: Any) -> Any:
        async with ctx.transaction("book") as tx:
            await tx.execute(WRITE, (f"attempt {ctx.attempt}",))
            await tx.spawn("child", {"attempt": ctx.attempt})
            assert await tx.emit_event("booked", ctx.attempt) is True
            if ctx.attempt == 1:
                raise Crash
        return tx.result

    spawned = await app.spawn("books", {})
    assert await drive.result(spawned) is None
    assert rows("select entry from ledger") == ["attempt 2"]
    assert rows("select params from absurd.tasks where task_name = 'child'") == [{"attempt": 2}]
    assert rows("select payload from absurd.events") == [2]
    assert rows("select name, attempt from absurd.checkpoints where task_id = %s", spawned["task_id"]) == [("book", 2)]


async def test_a_spawn_in_a_transaction_is_invisible_until_its_commit(
    app: AsyncAbsurd, drive: Driver, rows: Rows
) -> None:
    @app.register_task("books")
    async def books(params: Any, ctx: Any) -> Any:
        async with ctx.transaction("book") as tx:
            child = await tx.spawn("other", {}, queue="main")
            found = rows("select from absurd.tasks where task_id = %s", child["task_id"])
            assert found == []
            tx.result = child
        return len(rows("select from absurd.tasks where task_id = %s", child["task_id"]))

    assert await drive.result(await app.spawn("books", {})) == 1


async def test_in_a_done_transaction_nothing_has_an_effect(
    app: AsyncAbsurd, drive: Driver, rows: Rows, ledger: str
) -> None:
    @app.register_task("books")
    async def books(params: Any, ctx: Any) -> Any:
        async with ctx.transaction("book") as tx:
            if not tx.done:
                tx.result = (await (await tx.connection.execute("select 7")).fetchone())[0]
            else:
                cursor = await tx.execute(WRITE, ("twice",))
                assert (cursor.rowcount, await cursor.fetchone(), await cursor.fetchall()) == (0, None, [])
                assert await tx.spawn("child", {}, queue="main") is None
                assert await tx.emit_event("booked") is False
                with pytest.raises(StepError, match=r'step "book" has committed before: guard the block'):
                    tx.connection  # noqa: B018
        if ctx.attempt == 1:
            raise Crash
        return tx.result

    assert await drive.result(await app.spawn("books", {})) == 7
    assert rows("select from ledger") == rows("select from absurd.events") == []


async def test_run_transaction_runs_its_function_once(app: AsyncAbsurd, drive: Driver, rows: Rows, ledger: str) -> None:
    @app.register_task("books")
    async def books(params: Any, ctx: Any) -> Any:
        async def book(tx: Any) -> Any:
            await tx.execute(WRITE, ("one",))
            return ("kept", ctx.attempt)

        value = await ctx.run_transaction("book", book)
        if ctx.attempt == 1:
            raise Crash
        return value

    assert await drive.result(await app.spawn("books", {})) == ["kept", 1]
    assert rows("select entry from ledger") == ["one"]


async def test_equal_transaction_names_count(app: AsyncAbsurd, drive: Driver, rows: Rows, ledger: str) -> None:
    @app.register_task("books")
    async def books(params: Any, ctx: Any) -> None:
        for n in range(2):
            async with ctx.transaction("book") as tx:
                await tx.execute(WRITE, (str(n),))
        if ctx.attempt == 1:
            raise Crash

    spawned = await app.spawn("books", {})
    await drive.result(spawned)
    assert rows("select entry from ledger order by 1") == ["0", "1"]
    assert rows("select name from absurd.checkpoints where task_id = %s order by 1", spawned["task_id"]) == [
        "book",
        "book#2",
    ]


async def test_a_result_that_cannot_be_kept_rolls_the_rows_back(
    app: AsyncAbsurd, drive: Driver, rows: Rows, ledger: str
) -> None:
    @app.register_task("books")
    async def books(params: Any, ctx: Any) -> None:
        async def book(tx: Any) -> Any:
            await tx.execute(WRITE, ("gone",))
            return object()

        with pytest.raises(NotSerializable, match='result of step "book"'):
            await ctx.run_transaction("book", book)

    await drive.result(await app.spawn("books", {}))
    assert rows("select from ledger") == []


async def test_an_error_of_the_users_sql_comes_out_as_it_is(
    app: AsyncAbsurd, drive: Driver, rows: Rows, ledger: str
) -> None:
    @app.register_task("books")
    async def books(params: Any, ctx: Any) -> str:
        async def book(tx: Any) -> None:
            await tx.execute(WRITE, ("gone",))
            await tx.execute("insert into nowhere values (1)")

        with pytest.raises(psycopg.errors.UndefinedTable):
            await ctx.run_transaction("book", book)
        return "went on"

    assert await drive.result(await app.spawn("books", {})) == "went on"
    assert rows("select from ledger") == []


async def test_a_run_that_lost_its_lease_commits_nothing(
    app: AsyncAbsurd, drive: Driver, rows: Rows, conn: Connection, clock: Clock, ledger: str
) -> None:
    passed: list[str] = []

    @app.register_task("books", default_max_attempts=1)
    async def books(params: Any, ctx: Any) -> None:
        async with ctx.transaction("book") as tx:
            await tx.execute(WRITE, ("too late",))
            clock.advance(conn, 3600)
            while (
                conn.execute("select from absurd.attempts").fetchone() is None
            ):  # its keeper may hold the row just now
                conn.execute("select absurd.claim_task('main', 'another', 60, 1)")
            clock.release(conn)
        passed.append("after")

    assert (await drive.failure(await app.spawn("books", {})))["name"] == "$ClaimTimeout"
    assert rows("select from ledger") == rows("select from absurd.checkpoints") == passed == []


async def test_a_task_cancelled_inside_a_transaction_commits_nothing(
    app: AsyncAbsurd, drive: Driver, rows: Rows, conn: Connection, ledger: str
) -> None:
    passed: list[str] = []

    @app.register_task("books")
    async def books(params: Any, ctx: Any) -> None:
        async with ctx.transaction("book") as tx:
            await tx.execute(WRITE, ("too late",))
            conn.execute("select absurd.cancel_task('main', %s)", (ctx.task_id,))
        passed.append("after")

    assert (await drive.end(await app.spawn("books", {}))).state == "cancelled"
    assert rows("select from ledger") == rows("select from absurd.checkpoints") == passed == []


async def test_on_a_lent_connection_a_transaction_step_joins_the_callers_transaction(
    app: AsyncAbsurd, database_url: str, rows: Rows, ledger: str
) -> None:
    async with await psycopg.AsyncConnection.connect(database_url) as lent:
        client = AsyncAbsurd(lent, "main")

        @client.register_task("books")
        async def books(params: Any, ctx: Any) -> None:
            async def undo(tx: Any) -> None:
                await tx.execute(WRITE, ("undone",))
                raise Crash

            with pytest.raises(Crash):
                await ctx.run_transaction("undone", undo)
            async with ctx.transaction("book") as tx:
                await tx.execute(WRITE, ("booked",))

        spawned = await client.spawn("books", {})
        await client.work_batch()
        snapshot = await client.fetch_task_result(spawned["task_id"])
        assert snapshot is not None
        assert snapshot.state == "completed"
        assert await (await lent.execute("select entry from ledger")).fetchall() == [("booked",)]
        assert rows("select from ledger") == [], "nobody but the caller commits"
        await lent.rollback()
    assert rows("select from ledger") == rows("select from absurd.tasks") == []


async def test_a_restart_of_the_database_between_two_tasks_burns_no_attempt(
    app: AsyncAbsurd, database_url: str, conn: Connection, rows: Rows, ledger: str
) -> None:
    ours = "from pg_stat_activity where application_name = 'absurd' and datname = current_database()"
    async with AsyncAbsurd(database_url, "main") as client:
        inside: list[str] = []
        full = world.Event()

        @client.register_task("books", default_max_attempts=1)
        async def books(params: Any, ctx: Any) -> None:
            async with ctx.transaction("book") as tx:
                await tx.execute(WRITE, (params,))
                inside.append(params)
                if len(inside) >= 8:
                    full.set()
                assert await full.wait(_compat.DEADLINE)

        async with _compat.working(client, concurrency=8):
            for name in ("warm", "after"):
                # by another client, so that nobody has found the broken connections before the handlers do
                spawned = await app.spawn_many(
                    [{"task_name": "books", "params": name, "queue": "main", "max_attempts": 1} for _ in range(8)]
                )
                for one in spawned:
                    ended = await app.await_task_result(one["task_id"], _compat.DEADLINE)
                    assert ended.state == "completed", ended.failure
                assert rows(f"select count(*)::int {ours}")[0] >= 8, "the pool is warm"
                conn.execute(f"select pg_terminate_backend(pid, 10000) {ours}")
    assert sorted(rows("select entry from ledger")) == ["after"] * 8 + ["warm"] * 8


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
@pytest.mark.parametrize("failures", [2, 99])
async def test_run_transaction_tries_again_what_the_database_asks_to_be_tried_again(
    app: AsyncAbsurd, drive: Driver, rows: Rows, ledger: str, sqlstate: str, failures: int
) -> None:
    calls: list[int] = []

    @app.register_task("books", default_max_attempts=1)
    async def books(params: Any, ctx: Any) -> Any:
        async def book(tx: Any) -> int:
            await tx.execute(WRITE, ("one",))
            calls.append(len(calls))
            if len(calls) <= failures:
                await tx.execute(f"do $$ begin raise exception 'again' using errcode = '{sqlstate}'; end $$")
            return len(calls)

        first = await ctx.run_transaction("book", book)
        async with ctx.transaction("other") as tx:
            await tx.execute(WRITE, ("two",))
        return first

    spawned = await app.spawn("books", {})
    if failures == 2:
        assert await drive.result(spawned) == 3
        assert rows("select entry from ledger order by 1") == ["one", "two"]
        kept = "select name from absurd.checkpoints where task_id = %s order by 1"
        assert rows(kept, spawned["task_id"]) == ["book", "other"], "one step, however often it was tried"
    else:
        assert (await drive.failure(spawned))["message"].startswith("again")
        assert len(calls) == 5
        assert rows("select from ledger") == []


async def test_the_block_of_a_transaction_runs_once_whatever_it_raises(
    app: AsyncAbsurd, drive: Driver, rows: Rows, ledger: str
) -> None:
    calls: list[int] = []

    @app.register_task("books", default_max_attempts=1)
    async def books(params: Any, ctx: Any) -> None:
        async with ctx.transaction("book") as tx:
            calls.append(1)
            await tx.execute("do $$ begin raise exception 'again' using errcode = '40001'; end $$")

    assert (await drive.failure(await app.spawn("books", {})))["message"].startswith("again")
    assert calls == [1]
