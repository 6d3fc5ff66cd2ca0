"""Claiming by hand and `work_batch`: the contract's way of running tasks without a worker."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest

from absurd import AsyncAbsurd, ConfigError, TaskResultSnapshot
from absurd._async import _compat as world
from absurd._async import keeper
from tests.fixtures.clock import Clock
from tests.fixtures.postgres import Connection
from tests.sdk._async import _compat
from tests.sdk.conftest import Rows


async def nothing(params: Any, ctx: Any) -> None:
    """A handler."""


async def test_a_claimed_task_tells_all_a_runner_needs(app: AsyncAbsurd) -> None:
    strategy: Any = {"kind": "fixed", "base_seconds": 1}
    spawned = await app.spawn("a", {"n": 1}, queue="main", headers={"h": 1}, retry_strategy=strategy, max_attempts=3)
    (claimed,) = await app.claim_tasks(5, 30, "me")
    assert claimed == {
        "run_id": spawned["run_id"],
        "task_id": spawned["task_id"],
        "task_name": "a",
        "attempt": 1,
        "params": {"n": 1},
        "retry_strategy": strategy,
        "max_attempts": 3,
        "headers": {"h": 1},
        "wake_event": None,
        "event_payload": None,
    }
    assert isinstance(claimed["run_id"], uuid.UUID)
    assert await app.claim_tasks() == []


async def test_w12_a_claim_without_a_lease_is_refused(app: AsyncAbsurd) -> None:
    leases: list[Any] = [0, -1, float("nan"), "1", None, 2**31]
    for lease in leases:
        with pytest.raises(ConfigError, match=r"claim_timeout must be (>|<=) "):
            await app.claim_tasks(claim_timeout=lease)
        with pytest.raises(ConfigError, match=r"claim_timeout must be (>|<=) "):
            await app.work_batch(claim_timeout=lease)


async def test_a_lease_of_a_fraction_is_rounded_up(app: AsyncAbsurd, rows: Rows) -> None:
    await app.spawn("a", {}, queue="main")
    fraction: Any = 0.5
    assert len(await app.claim_tasks(claim_timeout=fraction)) == 1
    assert rows("select lease_until - started_at = interval '1 s' from absurd.live") == [True]


async def test_a_batch_runs_one_after_the_other_in_order_and_no_more_than_its_size(app: AsyncAbsurd) -> None:
    ran: list[Any] = []

    @app.register_task("n")
    async def n(params: Any, ctx: Any) -> None:
        ran.append(("in", params))
        await ctx.step("pause", lambda: world.sleep(0))
        ran.append(("out", params))

    await app.spawn_many([{"task_name": "n", "params": n} for n in range(4)])
    await app.work_batch(batch_size=3)
    assert ran == [(way, n) for n in range(3) for way in ("in", "out")]
    await app.work_batch(batch_size=3)
    assert len(ran) == 8
    await app.work_batch(batch_size=3)


async def test_a_batch_says_who_works_and_for_how_long(app: AsyncAbsurd, rows: Rows) -> None:
    seen: list[Any] = []

    @app.register_task("a")
    async def handler(params: Any, ctx: Any) -> None:
        seen.extend(rows("select claimed_by, lease_until - started_at < interval '31 s' from absurd.live"))

    await app.spawn("a", {})
    await app.work_batch("me", 30)
    assert seen == [("me", True)]


async def test_an_unknown_task_is_put_off_without_burning_its_attempt(app: AsyncAbsurd, rows: Rows) -> None:
    spawned = await app.spawn("unknown", {}, queue="main")
    app.register_task("known")(nothing)
    await app.work_batch(batch_size=5)
    ((state, attempt, wait),) = rows(
        "select state::text, attempt, extract(epoch from due_at - started_at)::float from absurd.live"
    )
    assert (state, attempt) == ("s", 1)
    assert 15 <= wait <= 31
    assert rows("select from absurd.attempts") == []
    assert await app.fetch_task_result(spawned["task_id"]) == TaskResultSnapshot("sleeping")


async def test_unknown_tasks_are_put_off_by_different_but_stable_times(app: AsyncAbsurd, rows: Rows) -> None:
    await app.spawn_many([{"task_name": "unknown", "queue": "main"} for _ in range(20)])
    await app.work_batch(batch_size=20)
    waits = rows("select round(extract(epoch from due_at - started_at), 1)::float from absurd.live")
    assert len(set(waits)) > 10
    assert all(15 <= wait <= 30.1 for wait in waits)


async def test_a_worker_leaves_unknown_tasks_to_others(app: AsyncAbsurd, rows: Rows, signals: _compat.Signals) -> None:
    app.register_task("known")(nothing)
    await app.spawn("unknown", {}, queue="main")
    known = await app.spawn("known", {})
    async with _compat.working(app):
        await app.await_task_result(known["task_id"], 20)
    assert signals.count("run.started") == 1
    assert rows("select state::text, claim_no from absurd.live") == [("p", 0)]


async def test_a_worker_that_claims_ahead_keeps_the_order_of_priority(app: AsyncAbsurd) -> None:
    ran: list[int] = []

    @app.register_task("n")
    async def n(params: Any, ctx: Any) -> None:
        ran.append(params)

    # priorities 0 1 2 0 1 2 ..., so that the order of spawning is never the order of running
    requests = [{"task_name": "n", "params": n, "priority": n % 3} for n in range(60)]
    spawned = await app.spawn_many(requests)  # type: ignore[arg-type]
    async with _compat.working(app):
        await app.await_task_result(spawned[57]["task_id"], 20)
    assert ran == sorted(range(60), key=lambda n: (-(n % 3), n))


async def test_a_task_registered_for_another_queue_fails_saying_so(app: AsyncAbsurd) -> None:
    await app.create_queue("other")
    spawned = await app.spawn("lost", {}, queue="main", max_attempts=1)
    app.register_task("lost", queue="other")(nothing)
    await app.work_batch()
    snapshot = await app.fetch_task_result(spawned["task_id"])
    assert snapshot is not None
    assert snapshot.state == "failed"
    assert snapshot.failure["message"] == "Misconfigured task (queue mismatch)"


async def test_w10_leases_of_a_batch_are_renewed_while_its_tasks_queue(
    app: AsyncAbsurd, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed = world.Event()
    real = keeper.Keeper._renew_some
    ran: list[Any] = []

    async def noted(self: Any, queue_id: int, held: Any) -> None:
        await real(self, queue_id, held)
        assert len(held) == 2, "the one that runs and the one that waits"
        renewed.set()

    monkeypatch.setattr(keeper.Keeper, "_renew_some", noted)
    left = "select extract(epoch from lease_until - absurd.current_time())::float from absurd.live order by task_id"

    @app.register_task("long")
    async def long(params: Any, ctx: Any) -> None:
        if params == 0:
            before = rows(left)
            assert await renewed.wait(20)
            ran.append([after > 0 for after in rows(left)] + [len(before)])

    await app.spawn_many([{"task_name": "long", "params": n} for n in range(2)])
    await app.work_batch(claim_timeout=1, batch_size=2)
    assert ran == [[True, True, 2]]
    assert rows("select count(*)::int from absurd.attempts where state = 'c'") == [2]


async def test_a_task_cancelled_while_its_batch_runs_is_not_begun(app: AsyncAbsurd) -> None:
    ran: list[int] = []
    spawned: list[Any] = []

    @app.register_task("n")
    async def n(params: Any, ctx: Any) -> None:
        ran.append(params)
        if params == 0:
            await app.cancel_task(spawned[1]["task_id"])

    spawned += await app.spawn_many([{"task_name": "n", "params": n} for n in range(2)])
    await app.work_batch(batch_size=2)
    assert (await app.fetch_task_result(spawned[1]["task_id"])) == TaskResultSnapshot("cancelled")
    assert (await app.fetch_task_result(spawned[0]["task_id"])) == TaskResultSnapshot("completed")


async def test_a_batch_on_a_lent_connection_rolls_back_with_its_caller(
    app: AsyncAbsurd, database_url: str, rows: Rows
) -> None:
    spawned = await app.spawn("a", {}, queue="main")
    async with await psycopg.AsyncConnection.connect(database_url) as lent:
        bound = app.bind(lent)

        @app.register_task("a")
        async def handler(params: Any, ctx: Any) -> str:
            await ctx.step("one", lambda: 1)
            return "done"

        await bound.work_batch()
        assert await bound.fetch_task_result(spawned["task_id"]) == TaskResultSnapshot("completed", "done")
        await lent.rollback()
    assert await app.fetch_task_result(spawned["task_id"]) == TaskResultSnapshot("pending")
    assert rows("select from absurd.checkpoints") == []


async def test_a_batch_obeys_the_engines_clock_on_a_lent_connection(
    app: AsyncAbsurd, database_url: str, conn: Connection, clock: Clock
) -> None:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as lent:
        bound = app.bind(lent)
        app.register_task("a")(nothing)
        spawned = await bound.spawn("a", {}, delay=3600)
        await bound.work_batch()
        assert await app.fetch_task_result(spawned["task_id"]) == TaskResultSnapshot("pending")
        now = clock.advance(conn, 3601)
        await lent.execute("select set_config('absurd.fake_now', %s, false)", (now.isoformat(),))
        await bound.work_batch()
        assert await app.fetch_task_result(spawned["task_id"]) == TaskResultSnapshot("completed")
