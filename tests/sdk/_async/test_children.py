"""A task that spawns and waits for another: suspended meanwhile, on one queue or two."""

from __future__ import annotations

from typing import Any

import pytest

from absurd import AsyncAbsurd, InvalidOption, QueueNotFound, TaskNotFound, TaskResultSnapshot, TimeoutError
from absurd._db import batch
from tests.sdk._async import _compat
from tests.sdk._async.conftest import LEASE, Driver
from tests.sdk.conftest import Rows


class Crash(Exception):
    """What a test's handler raises where a process would die."""


async def test_parent_and_child_share_one_slot(app: AsyncAbsurd, drive: Driver) -> None:
    order: list[str] = []

    @app.register_task("child")
    async def child(params: Any, ctx: Any) -> Any:
        order.append("child")
        return {"doubled": params * 2}

    @app.register_task("parent")
    async def parent(params: Any, ctx: Any) -> Any:
        order.append("parent")
        spawned = await ctx.spawn("child", 21)
        ended = await ctx.await_task_result(spawned["task_id"])
        assert ended == TaskResultSnapshot("completed", {"doubled": 42})
        return ended.result["doubled"]

    assert await drive.result(await app.spawn("parent", {})) == 42
    assert order == ["parent", "child", "parent"]


async def test_a_wait_for_a_task_that_has_ended_does_not_suspend(app: AsyncAbsurd, drive: Driver) -> None:
    executions: list[int] = []

    @app.register_task("child")
    async def child(params: Any, ctx: Any) -> str:
        return "early"

    @app.register_task("parent")
    async def parent(params: Any, ctx: Any) -> Any:
        executions.append(1)
        return (await ctx.await_task_result(params)).result

    early = await app.spawn("child", {})
    await drive.result(early)
    assert await drive.result(await app.spawn("parent", str(early["task_id"]))) == "early"
    assert executions == [1]


async def test_a_failed_and_a_cancelled_child_are_results_too_and_stay_so(app: AsyncAbsurd, drive: Driver) -> None:
    seen: list[Any] = []

    @app.register_task("fails", default_max_attempts=1)
    async def fails(params: Any, ctx: Any) -> None:
        raise Crash("broken")

    @app.register_task("parent")
    async def parent(params: Any, ctx: Any) -> None:
        failing = await ctx.spawn("fails", {})
        stopped = await ctx.spawn("fails", {}, delay=3600)
        await ctx.step("cancel", lambda: app.cancel_task(stopped["task_id"]))
        seen.append([await ctx.await_task_result(one["task_id"]) for one in (failing, stopped)])
        if len(seen) == 1:
            raise Crash

    await drive.result(await app.spawn("parent", {}))
    assert len(seen) == 2
    for failed, cancelled in seen:
        assert (failed.state, failed.result) == ("failed", None)
        assert (failed.failure["name"], failed.failure["message"]) == ("Crash", "broken")
        assert cancelled == TaskResultSnapshot("cancelled")


async def test_the_wait_for_a_child_can_time_out_for_good(app: AsyncAbsurd, drive: Driver) -> None:
    told: list[str] = []

    @app.register_task("slow")
    async def slow(params: Any, ctx: Any) -> None:
        """Never started."""

    @app.register_task("parent")
    async def parent(params: Any, ctx: Any) -> None:
        child = await ctx.spawn("slow", {}, delay=3600)
        try:
            await ctx.await_task_result(child["task_id"], timeout=0.02)
        except TimeoutError as error:
            told.append(str(error).replace(str(child["task_id"]), "ID"))
        await ctx.step("cancel", lambda: app.cancel_task(child["task_id"]))
        if ctx.attempt == 1:
            raise Crash

    await drive.result(await app.spawn("parent", {}))
    assert told == ['Timed out waiting for task "ID"'] * 2


async def test_a_task_cannot_wait_for_itself_nor_for_an_unknown_one(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("lost")
    async def lost(params: Any, ctx: Any) -> None:
        for own in (ctx.task_id, str(ctx.task_id)):
            with pytest.raises(ValueError, match="a task cannot wait for itself"):
                await ctx.await_task_result(own)
        unknown = "01900000-0000-7000-8000-000000010000"
        with pytest.raises(TaskNotFound, match=f'Task "{unknown}" not found in queue "main"'):
            await ctx.await_task_result(unknown)
        with pytest.raises(InvalidOption, match="is no id"):
            await ctx.await_task_result("seven")
        with pytest.raises(QueueNotFound, match="nowhere"):
            await ctx.await_task_result(unknown, "nowhere")

    await drive.result(await app.spawn("lost", {}))


async def test_waits_for_tasks_have_default_names(app: AsyncAbsurd, drive: Driver, rows: Rows) -> None:
    @app.register_task("child")
    async def child(params: Any, ctx: Any) -> None:
        """Ends at once."""

    @app.register_task("parent")
    async def parent(params: Any, ctx: Any) -> str:
        one = await ctx.spawn("child")
        two = await ctx.spawn("child", step_name="second")
        await ctx.await_task_result(one["task_id"])
        await ctx.await_task_result(two["task_id"], step_name="both")
        return str(one["task_id"])

    spawned = await app.spawn("parent", {})
    child_id = await drive.result(spawned)
    assert rows("select name from absurd.checkpoints where task_id = %s order by name", spawned["task_id"]) == [
        f"$awaitTaskResult:{child_id}",
        "$spawn:child",
        "both",
        "second",
    ]


async def test_a_child_is_spawned_once_however_often_its_parent_runs(
    app: AsyncAbsurd, drive: Driver, rows: Rows
) -> None:
    results: list[Any] = []

    @app.register_task("child")
    async def child(params: Any, ctx: Any) -> None:
        """Ends at once."""

    @app.register_task("parent")
    async def parent(params: Any, ctx: Any) -> None:
        results.append([await ctx.spawn("child", {}) for _ in range(2)])
        if ctx.attempt < 3:
            raise Crash

    await drive.result(await app.spawn("parent", {}))
    assert len(rows("select from absurd.tasks where task_name = 'child'")) == 2
    assert results[0] == results[1] == results[2], "ids, attempt and whether it was new, equal on replay"
    assert all(one["created"] for one in results[0])


async def test_a_child_is_spawned_once_when_its_parent_dies_before_the_steps_commit(
    app: AsyncAbsurd, drive: Driver, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.register_task("child")
    async def child(params: Any, ctx: Any) -> None:
        """Ends at once."""

    @app.register_task("parent")
    async def parent(params: Any, ctx: Any) -> Any:
        if ctx.attempt == 1:

            class Dying:
                async def write(self, row: batch.Write) -> Any:
                    raise Crash("dead before the commit")

            ctx._writer = Dying()
        return (await ctx.spawn("child", {}))["created"]

    assert await drive.result(await app.spawn("parent", {})) is False, "the second attempt found it"
    assert len(rows("select from absurd.tasks where task_name = 'child'")) == 1


async def test_a_child_goes_to_its_own_queue_and_is_awaited_there(app: AsyncAbsurd, database_url: str) -> None:
    await app.create_queue("other")

    @app.register_task("child", queue="other")
    async def child(params: Any, ctx: Any) -> str:
        return str(ctx.queue_name)

    @app.register_task("parent")
    async def parent(params: Any, ctx: Any) -> Any:
        registered = await ctx.spawn("child")
        with pytest.raises(TaskNotFound, match='in queue "main"'):
            await ctx.await_task_result(registered["task_id"], step_name="wrong queue")
        return (await ctx.await_task_result(registered["task_id"], "other")).result

    async with _compat.working(app, queues=["main", "other"], claim_timeout=LEASE):
        spawned = await app.spawn("parent", {})
        assert (await app.await_task_result(spawned["task_id"], 20)).result == "other"


async def test_a_client_that_does_not_know_the_child_spawns_it_in_the_parents_queue(
    app: AsyncAbsurd, drive: Driver, rows: Rows
) -> None:
    await app.create_queue("other")

    @app.register_task("parent")
    async def parent(params: Any, ctx: Any) -> None:
        await ctx.spawn("foreign", {})
        await ctx.spawn("foreign", {}, queue="other", priority=3, headers={"a": 1})

    await drive.result(await app.spawn("parent", {}))
    assert rows(
        "select queue_name, priority, headers from absurd.tasks join absurd.queues using (queue_id)"
        " where task_name = 'foreign' order by 1"
    ) == [("main", 0, None), ("other", 3, {"a": 1})]
