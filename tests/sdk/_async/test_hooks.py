"""Hooks: what they are given, what they may change, and that they may be of either kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from absurd import AsyncAbsurd, InvalidOption
from absurd.types import AbsurdHooks
from tests.fixtures.postgres import Connection
from tests.sdk._async import _compat
from tests.sdk.conftest import Rows

Hooked = Callable[[AbsurdHooks], AsyncAbsurd]


@pytest.fixture
async def hooked(app: AsyncAbsurd, database_url: str) -> AsyncIterator[Hooked]:
    """Makes clients with hooks."""
    made: list[AsyncAbsurd] = []

    def make(hooks: AbsurdHooks) -> AsyncAbsurd:
        made.append(AsyncAbsurd(database_url, "main", hooks=hooks))
        return made[-1]

    yield make
    for client in made:
        await client.close()


async def test_before_spawn_is_given_what_the_call_said_and_decides(hooked: Hooked, rows: Rows) -> None:
    given: list[Any] = []

    def before(task_name: str, params: Any, options: Any) -> Any:
        given.append((task_name, params, dict(options)))
        return {**options, "headers": {"trace": "x"}, "max_attempts": 3}

    app = hooked({"before_spawn": before})
    await app.spawn("a", {"n": 1}, queue="main", priority=4)
    await app.spawn_many([{"task_name": "b", "params": 2, "queue": "main"}])
    assert given == [("a", {"n": 1}, {"queue": "main", "priority": 4}), ("b", 2, {"queue": "main"})]
    assert rows("select headers, max_attempts, priority from absurd.tasks order by task_name") == [
        ({"trace": "x"}, 3, 4),
        ({"trace": "x"}, 3, 0),
    ]


async def test_before_spawn_may_await(hooked: Hooked, rows: Rows) -> None:
    async def before(task_name: str, params: Any, options: Any) -> Any:
        return {**options, "queue": "main"}

    await hooked({"before_spawn": before}).spawn("a", {})
    assert rows("select task_name from absurd.tasks") == ["a"]


async def test_before_spawn_may_refuse(hooked: Hooked, rows: Rows) -> None:
    def before(task_name: str, params: Any, options: Any) -> Any:
        raise PermissionError("not today")

    with pytest.raises(PermissionError, match="not today"):
        await hooked({"before_spawn": before}).spawn("a", {}, queue="main")
    with pytest.raises(InvalidOption, match="max_attempts"):
        await hooked({"before_spawn": lambda *_: {"max_attempts": 0, "queue": "main"}}).spawn("a", {})
    assert rows("select from absurd.tasks") == []


async def test_before_spawn_sees_spawns_of_handlers_too(hooked: Hooked, rows: Rows) -> None:
    seen: list[str] = []

    def before(task_name: str, params: Any, options: Any) -> Any:
        seen.append(task_name)
        return options

    app = hooked({"before_spawn": before})

    @app.register_task("parent")
    async def parent(params: Any, ctx: Any) -> None:
        await ctx.spawn("child", {})
        async with ctx.transaction("book") as tx:
            await tx.spawn("other", {}, queue="main")

    await app.spawn("parent", {})
    await app.work_batch()
    assert seen == ["parent", "child", "other"]


async def test_execution_is_wrapped_around_the_handler_and_keeps_its_value(hooked: Hooked) -> None:
    order: list[Any] = []

    async def wrap(ctx: Any, execute: Any) -> Any:
        order.append(("before", ctx.attempt))
        value = await execute()
        order.append(("after", value))
        return {"wrapped": value}

    app = hooked({"wrap_task_execution": wrap})

    @app.register_task("a")
    async def handler(params: Any, ctx: Any) -> str:
        order.append("handler")
        return "value"

    spawned = await app.spawn("a", {})
    async with _compat.working(app):
        assert (await app.await_task_result(spawned["task_id"], 20)).result == {"wrapped": "value"}
    assert order == [("before", 1), "handler", ("after", "value")]


async def test_a_wrapper_sees_suspensions_and_failures_pass(hooked: Hooked, conn: Connection) -> None:
    seen: list[str] = []

    async def wrap(ctx: Any, execute: Any) -> Any:
        try:
            return await execute()
        except BaseException as error:
            seen.append(type(error).__name__)
            raise

    app = hooked({"wrap_task_execution": wrap})

    @app.register_task("a", default_max_attempts=1)
    async def handler(params: Any, ctx: Any) -> None:
        await ctx.await_event("go")
        raise ValueError("broken")

    spawned = await app.spawn("a", {})
    await app.work_batch()
    await app.emit_event("go")
    await app.work_batch()
    assert seen == ["SuspendTask", "ValueError"]
    snapshot = await app.fetch_task_result(spawned["task_id"])
    assert snapshot is not None
    assert (snapshot.state, snapshot.failure["message"]) == ("failed", "broken")


async def test_a_wrapper_that_fails_fails_the_task(hooked: Hooked) -> None:
    def wrap(ctx: Any, execute: Any) -> Any:
        raise RuntimeError("the wrapper broke")

    app = hooked({"wrap_task_execution": wrap})

    @app.register_task("a", default_max_attempts=1)
    async def handler(params: Any, ctx: Any) -> None:
        """Never called."""

    spawned = await app.spawn("a", {})
    await app.work_batch()
    snapshot = await app.fetch_task_result(spawned["task_id"])
    assert snapshot is not None
    assert snapshot.failure["message"] == "the wrapper broke"
