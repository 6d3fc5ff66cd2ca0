"""Asking for a task's result, waiting for it, cancelling and retrying."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest
import uuid_utils

from absurd import (
    AsyncAbsurd,
    InvalidOption,
    QueueNotFound,
    RetryRefused,
    TaskNotFound,
    TaskResultSnapshot,
    TimeoutError,
)
from absurd._async import _compat as world
from absurd._async import session as session_module
from absurd._async import watch
from absurd._db import procedures
from tests.fixtures.postgres import Connection
from tests.sdk._async import _compat
from tests.sdk._async.conftest import Driver
from tests.sdk.conftest import Rows

UNKNOWN = "01900000-0000-7000-8000-000000010000"


async def _complete(app: AsyncAbsurd, conn: Connection, result: str) -> None:
    (claimed,) = await app.claim_tasks()
    conn.execute("select absurd.complete_run('main', %s, %s)", (claimed["run_id"], result))


async def test_a_result_is_fetched_in_every_state(app: AsyncAbsurd, conn: Connection) -> None:
    spawned = await app.spawn("a", {}, queue="main")
    ids = (spawned["task_id"], str(spawned["task_id"]), uuid_utils.UUID(str(spawned["task_id"])))
    for task_id in ids:
        assert await app.fetch_task_result(task_id) == TaskResultSnapshot("pending")
    await _complete(app, conn, '{"n": 1}')
    assert await app.fetch_task_result(ids[1]) == TaskResultSnapshot("completed", {"n": 1})
    assert await app.fetch_task_result(UNKNOWN) is None
    await app.create_queue("other")
    assert await app.fetch_task_result(ids[1], "other") is None
    with pytest.raises(QueueNotFound):
        await app.fetch_task_result(UNKNOWN, "nowhere")
    with pytest.raises(InvalidOption, match="'seven' is no id"):
        await app.fetch_task_result("seven")


def test_a_snapshot_knows_whether_its_task_has_ended() -> None:
    assert [TaskResultSnapshot(state).finished for state in ("completed", "failed", "cancelled")] == [True] * 3  # type: ignore[arg-type]
    assert [TaskResultSnapshot(state).finished for state in ("pending", "running", "sleeping")] == [False] * 3  # type: ignore[arg-type]


async def test_a_task_that_has_ended_is_awaited_without_waiting(app: AsyncAbsurd, conn: Connection) -> None:
    spawned = await app.spawn("a", {}, queue="main")
    await _complete(app, conn, "7")
    assert await app.await_task_result(str(spawned["task_id"]), timeout=0) == TaskResultSnapshot("completed", 7)


async def test_an_awaited_task_that_is_unknown_is_an_error(app: AsyncAbsurd) -> None:
    with pytest.raises(TaskNotFound, match=f'Task "{UNKNOWN}" not found in queue "main"'):
        await app.await_task_result(UNKNOWN, timeout=20)


async def test_waiting_for_a_task_ends_with_its_timeout_and_leaves_no_watcher(app: AsyncAbsurd) -> None:
    spawned = await app.spawn("a", {}, queue="main")
    for timeout in (0, 0.05, -1):
        with pytest.raises(TimeoutError, match=f'Timed out waiting for task "{spawned["task_id"]}"'):
            await app.await_task_result(spawned["task_id"], timeout=timeout)


async def test_what_is_no_timeout_is_refused_by_name(app: AsyncAbsurd) -> None:
    timeouts: list[Any] = [float("nan"), "1", [1]]
    for timeout in timeouts:
        with pytest.raises(InvalidOption, match="timeout must be seconds >= 0"):
            await app.await_task_result(UNKNOWN, timeout=timeout)


@pytest.mark.parametrize("end", ["complete", "fail", "cancel"])
async def test_the_end_of_an_awaited_task_is_told_and_not_polled_for(
    app: AsyncAbsurd, conn: Connection, rows: Rows, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(watch, "FALLBACK_POLL", 3600.0)
    spawned = await app.spawn("a", {}, queue="main", max_attempts=1)
    (claimed,) = await app.claim_tasks()
    listening = world.Event()
    looks: list[str] = []
    real = session_module.execute

    async def counted(connection: Any, call: Any, **options: Any) -> Any:
        if "get_task_result" in call.sql:
            looks.append(call.sql)
        return await real(connection, call, **options)

    async def watched(connection: Any, call: Any, **options: Any) -> Any:
        answer = await real(connection, call, **options)
        listening.set()
        return answer

    monkeypatch.setattr(session_module, "execute", counted)
    monkeypatch.setattr(watch, "execute", watched)

    async def finish() -> None:
        assert await listening.wait(20)
        listening_now = (
            "select count(*)::int from pg_stat_activity where query like 'listen%%' or query like '%%watch_task%%'"
        )
        assert rows(listening_now.replace("select count", "select count"))[0] >= 1
        if end == "complete":
            conn.execute("select absurd.complete_run('main', %s, '1')", (claimed["run_id"],))
        elif end == "fail":
            conn.execute("select absurd.fail_run('main', %s, '{}')", (claimed["run_id"],))
        else:
            conn.execute("select absurd.cancel_task('main', %s)", (spawned["task_id"],))

    ended, _ = await _compat.together(lambda: app.await_task_result(spawned["task_id"]), finish)
    assert ended.state == {"complete": "completed", "fail": "failed", "cancel": "cancelled"}[end]
    assert len(looks) <= 3, "before listening, after registering, after the notification"
    assert rows("select count(*)::int from absurd.watchers") == [0]


async def test_more_waits_than_listeners_all_end(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("n")
    async def n(params: Any, ctx: Any) -> Any:
        await ctx.await_event("go")
        return params

    spawned = await app.spawn_many([{"task_name": "n", "params": n} for n in range(watch.LISTENERS + 2)])
    for one in spawned:
        await drive.rest(one)

    async def finish() -> None:
        await app.emit_event("go")
        for one in spawned:
            await drive.end(one)

    waits = [lambda one=one: app.await_task_result(one["task_id"], 20) for one in spawned]
    ended = await _compat.together(*waits, finish)
    assert [one.result for one in ended[:-1]] == list(range(len(spawned)))


async def test_on_a_lent_connection_a_wait_polls(app: AsyncAbsurd, database_url: str, conn: Connection) -> None:
    spawned = await app.spawn("a", {}, queue="main")
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as lent:
        with pytest.raises(TimeoutError):
            await app.bind(lent).await_task_result(spawned["task_id"], timeout=0.01)
        await _complete(app, conn, "1")
        assert (await app.bind(lent).await_task_result(spawned["task_id"])).result == 1


async def test_a_wait_goes_on_when_the_connection_that_listens_is_lost(
    app: AsyncAbsurd, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "FALLBACK_POLL", 3600.0)
    spawned = await app.spawn("a", {}, queue="main")
    listening = world.Event()
    real = session_module.execute

    async def watched(connection: Any, call: Any, **options: Any) -> Any:
        answer = await real(connection, call, **options)
        listening.set()
        return answer

    monkeypatch.setattr(watch, "execute", watched)

    async def lose_and_finish() -> None:
        assert await listening.wait(20)
        conn.execute("select pg_terminate_backend(pid) from pg_stat_activity"
                     " where datname = current_database() and query like '%absurd.watch_task(%'"
                     " and pid <> pg_backend_pid()")  # fmt: skip
        await _complete(app, conn, "1")

    ended, _ = await _compat.together(lambda: app.await_task_result(spawned["task_id"]), lose_and_finish)
    assert ended == TaskResultSnapshot("completed", 1)


@pytest.mark.parametrize("timeout", [None, 0.1])
async def test_a_wait_that_polls_outlasts_a_database_that_is_away_until_its_deadline(
    app: AsyncAbsurd, conn: Connection, monkeypatch: pytest.MonkeyPatch, timeout: float | None
) -> None:
    monkeypatch.setattr(watch, "LISTENERS", 0)
    spawned = await app.spawn("a", {}, queue="main")
    await _complete(app, conn, "1")
    looks: list[int] = []
    real = session_module.execute

    async def away(connection: Any, call: Any, **options: Any) -> Any:
        looks.append(1)
        if len(looks) > 1 and (timeout is not None or len(looks) < 6):
            raise psycopg.OperationalError("the server is away")
        if len(looks) == 1:
            return ("running", None, None)
        return await real(connection, call, **options)

    async with AsyncAbsurd(app._session.conninfo(), "main") as client:
        monkeypatch.setattr(session_module, "execute", away)
        if timeout is None:
            assert await client.await_task_result(spawned["task_id"]) == TaskResultSnapshot("completed", 1)
        else:
            with pytest.raises(TimeoutError, match="Timed out waiting for task"):
                await client.await_task_result(spawned["task_id"], timeout)
        assert len(looks) >= 3


# -- cancelling and retrying -------------------------------------------------------------------------------------------


async def test_a_cancelled_task_ends_at_once_and_for_good(app: AsyncAbsurd) -> None:
    spawned = await app.spawn("a", {}, queue="main")
    await app.cancel_task(str(spawned["task_id"]))
    await app.cancel_task(spawned["task_id"])
    assert await app.fetch_task_result(spawned["task_id"]) == TaskResultSnapshot("cancelled")
    assert await app.claim_tasks() == []


async def test_cancelling_what_has_ended_changes_nothing(app: AsyncAbsurd, conn: Connection) -> None:
    spawned = await app.spawn("a", {}, queue="main")
    await _complete(app, conn, "1")
    await app.cancel_task(spawned["task_id"])
    assert await app.fetch_task_result(spawned["task_id"]) == TaskResultSnapshot("completed", 1)


async def test_cancelling_an_unknown_task_or_queue_is_an_error(app: AsyncAbsurd) -> None:
    with pytest.raises(TaskNotFound):
        await app.cancel_task(UNKNOWN)
    with pytest.raises(QueueNotFound):
        await app.cancel_task(UNKNOWN, "nowhere")


async def test_a_failed_task_is_retried_with_its_checkpoints_kept(app: AsyncAbsurd, drive: Driver) -> None:
    ran: list[str] = []

    @app.register_task("fails", default_max_attempts=1)
    async def fails(params: Any, ctx: Any) -> Any:
        await ctx.step("once", lambda: ran.append("once"))
        if ctx.attempt == 1:
            raise ValueError
        return ctx.attempt

    spawned = await app.spawn("fails", {})
    await drive.failure(spawned)
    retried = await app.retry_task(str(spawned["task_id"]))
    assert list(retried) == ["task_id", "run_id", "attempt", "created"]
    assert (retried["task_id"], retried["attempt"], retried["created"]) == (spawned["task_id"], 2, False)
    assert isinstance(retried["run_id"], uuid.UUID)
    assert await drive.result(spawned) == 2
    assert ran == ["once"]


async def test_a_failed_task_is_retried_as_a_copy(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("fails", default_max_attempts=1)
    async def fails(params: Any, ctx: Any) -> None:
        raise ValueError(params)

    spawned = await app.spawn("fails", "again")
    await drive.failure(spawned)
    copy = await app.retry_task(spawned["task_id"], spawn_new=True)
    assert copy["task_id"] != spawned["task_id"]
    assert (copy["attempt"], copy["created"]) == (1, True)
    assert (await drive.failure(copy))["message"] == "again"


async def test_a_retry_that_is_not_possible_says_why(app: AsyncAbsurd, conn: Connection) -> None:
    with pytest.raises(TaskNotFound):
        await app.retry_task(UNKNOWN)
    spawned = await app.spawn("a", {}, queue="main", max_attempts=2)
    limits: list[Any] = [0, -1, "x", 1.5]
    for limit in limits:
        with pytest.raises(InvalidOption, match="max_attempts must be"):
            await app.retry_task(spawned["task_id"], max_attempts=limit)
    with pytest.raises(RetryRefused, match="not currently failed"):
        await app.retry_task(spawned["task_id"])
    for _ in range(2):
        (claimed,) = await app.claim_tasks()
        conn.execute("select absurd.fail_run('main', %s, '{}')", (claimed["run_id"],))
    with pytest.raises(RetryRefused, match="greater than current attempts"):
        await app.retry_task(spawned["task_id"], max_attempts=2)
    assert (await app.retry_task(spawned["task_id"], max_attempts=3))["attempt"] == 3


def test_only_calls_that_change_nothing_twice_are_repeated() -> None:
    task_id = uuid.UUID(UNKNOWN)
    rows: Any = ("main", ["a"], ["{}"], [None], [None], ["{}"])
    assert procedures.spawn_tasks(*rows, [task_id]).repeatable
    assert not procedures.spawn_tasks(*rows, None).repeatable
    assert not procedures.claim_task("main", "w", 1, 1).repeatable
    assert not procedures.retry_task("main", task_id, "{}", False).repeatable
    assert procedures.emit_events("main", ["a"], ["1"], "latch").repeatable
