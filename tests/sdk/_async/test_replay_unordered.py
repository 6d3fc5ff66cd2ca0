"""Tasks whose code has not changed are never refused: what has no order says so before anything of it is recorded."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from absurd import AsyncAbsurd, StepNameError
from absurd._db import batch
from tests.sdk._async import _compat
from tests.sdk._async.conftest import Driver
from tests.sdk.conftest import Rows

NOW = {"kind": "none"}


async def woken(app: AsyncAbsurd, drive: Driver, spawned: Any) -> Any:
    """Let the task sleep, wake it; its result."""
    await drive.rest(spawned)
    await app.emit_event("go", "done")
    return await drive.result(spawned)


def down() -> None:
    raise OSError("down")


async def fails_and_is_caught(ctx: Any) -> Any:
    with contextlib.suppress(OSError):
        await ctx.step("coupon", down)
    await ctx.step("charge", lambda: 2)
    return await ctx.await_event("go")


async def test_an_attempt_on_another_way_marks_what_it_leaves_out(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("anew", default_max_attempts=2, default_retry_strategy=NOW)
    async def anew(params: Any, ctx: Any) -> Any:
        await ctx.step(f"open in attempt {ctx.attempt}", lambda: 1)
        if ctx.attempt == 1:
            raise OSError("once more")
        return await fails_and_is_caught(ctx)

    assert await woken(app, drive, await app.spawn("anew", {})) == "done"


async def test_a_task_that_is_not_judged_marks_what_it_leaves_out(app: AsyncAbsurd, drive: Driver) -> None:
    """Or it could never be judged again."""

    def register(*, strict_replay: bool) -> None:
        @app.register_task("lenient", default_max_attempts=1, strict_replay=strict_replay)
        async def lenient(params: Any, ctx: Any) -> Any:
            return await fails_and_is_caught(ctx)

    register(strict_replay=False)
    spawned = await app.spawn("lenient", {})
    await drive.rest(spawned)
    register(strict_replay=True)
    await app.emit_event("go", "done")
    assert await drive.result(spawned) == "done"


async def test_of_calls_side_by_side_none_is_the_handlers_own(app: AsyncAbsurd, drive: Driver) -> None:
    """Which of them calls first is chance."""
    runs: list[int] = []

    @app.register_task("abreast", default_max_attempts=1)
    async def abreast(params: Any, ctx: Any) -> Any:
        async def left() -> Any:
            await ctx.step("left", lambda: 1)
            return await ctx.await_event("go")

        async def right() -> Any:
            return await ctx.step("right", lambda: 2)

        runs.append(1)
        order: list[Callable[[], Awaitable[Any]]] = [left, right] if len(runs) == 1 else [right, left]
        return [(await _compat.together(call))[0] for call in order]

    assert await woken(app, drive, await app.spawn("abreast", {})) == [2, "done"]


class Failing:
    """Raises at the first write of a kind."""

    def __init__(self, writer: Any, kind: type, failed: list[str]) -> None:
        self._writer, self._kind, self._failed = writer, kind, failed

    async def write(self, row: Any) -> Any:
        if isinstance(row, self._kind) and not self._failed:
            self._failed.append("once")
            raise OSError("the network is down")
        return await self._writer.write(row)


@pytest.mark.parametrize("kind", [batch.Emit, batch.Extend])
async def test_an_emit_or_a_heartbeat_that_fails_leaves_no_order(app: AsyncAbsurd, drive: Driver, kind: type) -> None:
    failed: list[str] = []

    @app.register_task("tell", default_max_attempts=1)
    async def tell(params: Any, ctx: Any) -> Any:
        ctx._writer = Failing(ctx._writer, kind, failed)
        try:
            await ctx.emit_event("begun")
            await ctx.heartbeat()
        except OSError:
            await ctx.step("tell by mail", lambda: 1)
        else:
            await ctx.step("told", lambda: 1)
        return await ctx.await_event("go")

    assert await woken(app, drive, await app.spawn("tell", {})) == "done"
    assert failed


async def test_a_sleep_that_is_over_at_once_leaves_no_gap(app: AsyncAbsurd, drive: Driver, rows: Rows) -> None:
    @app.register_task("brief", default_max_attempts=1)
    async def brief(params: Any, ctx: Any) -> Any:
        await ctx.sleep_for("no time", 0)
        return await ctx.step("after", lambda: 1)

    spawned = await app.spawn("brief", {})
    assert await drive.result(spawned) == 1
    assert rows(
        "select count(*) from absurd.checkpoints where task_id = %s and name like '$%%'", spawned["task_id"]
    ) == [0]


async def test_a_step_that_was_done_may_go_where_later_ones_stay(app: AsyncAbsurd, drive: Driver) -> None:
    def register(*before: str) -> None:
        @app.register_task("shorter", default_max_attempts=1)
        async def shorter(params: Any, ctx: Any) -> Any:
            for name in before:
                await ctx.step(name, lambda: 1)
            await ctx.await_event("go")
            return await ctx.step("ship", lambda: "shipped")

    register("legacy")
    spawned = await app.spawn("shorter", {})
    await drive.rest(spawned)
    register()
    await app.emit_event("go")
    assert await drive.result(spawned) == "shipped"


async def test_names_of_the_engines_own_are_refused(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("named", default_max_attempts=1)
    async def named(params: Any, ctx: Any) -> Any:
        refused = []
        for name in ("$unordered", "$refused", "$undo", "$undo:hotel"):
            try:
                await ctx.step(name, lambda: 1)
            except StepNameError as error:
                refused.append("give the step another" in str(error))
        return refused

    assert await drive.result(await app.spawn("named", {})) == [True] * 4


# [async-only
async def test_a_group_of_steps_that_is_cut_short_leaves_no_order(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("impatient", default_max_attempts=1)
    async def impatient(params: Any, ctx: Any) -> Any:
        try:
            async with asyncio.timeout(0.01):
                await ctx.gather({"fast provider": asyncio.Event().wait})
        except TimeoutError:
            await ctx.step("other provider", lambda: 2)
        return await ctx.await_event("go")

    assert await woken(app, drive, await app.spawn("impatient", {})) == "done"


def eagerly(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> Any:
    """What asyncio.eager_task_factory of Python 3.12 does: the task begins before anybody has it."""
    begin: list[Any] = []
    schedule, around = loop.call_soon, asyncio.current_task(loop)
    loop.call_soon = lambda callback, *_, **__: begin.append(callback)  # type: ignore[method-assign, assignment]
    try:
        task = asyncio.tasks._PyTask(coro, loop=loop)  # type: ignore[attr-defined]
    finally:
        loop.call_soon = schedule  # type: ignore[method-assign]
    if around is not None:
        asyncio.tasks._leave_task(loop, around)
    try:
        contextvars.copy_context().run(task._Task__step)
    finally:
        if around is not None:
            asyncio.tasks._enter_task(loop, around)
    return task


async def test_a_handler_begun_by_an_eager_task_factory_has_an_order(
    app: AsyncAbsurd, drive: Driver, rows: Rows
) -> None:
    @app.register_task("eager", default_max_attempts=1)
    async def eager(params: Any, ctx: Any) -> Any:
        await ctx.step("first", lambda: 1)
        return await ctx.step("second", lambda: 2)

    loop = asyncio.get_running_loop()
    loop.set_task_factory(getattr(asyncio, "eager_task_factory", eagerly))
    try:
        spawned = await app.spawn("eager", {})
        assert await drive.result(spawned) == 2
    finally:
        loop.set_task_factory(None)
    names = rows("select name from absurd.checkpoints where task_id = %s order by updated_at", spawned["task_id"])
    assert names == ["first", "second"]


async def test_a_wait_in_a_task_group_suspends(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("grouped", default_max_attempts=1)
    async def grouped(params: Any, ctx: Any) -> Any:
        async with asyncio.TaskGroup() as group:
            event = group.create_task(ctx.await_event("go"))
        return event.result()

    assert await woken(app, drive, await app.spawn("grouped", {})) == "done"


# ]
