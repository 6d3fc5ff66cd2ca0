"""A run that has ended is gone: nothing of it waits for the cyclic garbage collector, which would cost more than the run."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from absurd import AsyncAbsurd, AsyncTaskContext
from tests.sdk._async import _compat
from tests.sdk._async.conftest import Driver

NOW = {"kind": "none"}


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Nobody looks for circles meanwhile."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def contexts() -> list[Any]:
    """What handlers got and is still there."""
    return [each for each in gc.get_objects() if isinstance(each, AsyncTaskContext)]


async def returns(params: Any, ctx: Any) -> Any:
    return 1


async def steps(params: Any, ctx: Any) -> Any:
    return [await ctx.step("one", lambda: 1), await ctx.step("two", lambda: 2)]


async def gathers(params: Any, ctx: Any) -> Any:
    return await ctx.gather({"one": lambda: 1, "two": lambda: 2})


async def fails(params: Any, ctx: Any) -> Any:
    await ctx.step("down", lambda: 1 / 0)


async def fails_once(params: Any, ctx: Any) -> Any:
    await ctx.step("one", lambda: 1)
    return 1 / (ctx.attempt - 1)


async def sleeps(params: Any, ctx: Any) -> Any:
    await ctx.sleep_for("nap", 0.001)


async def times_out(params: Any, ctx: Any) -> Any:
    with contextlib.suppress(TimeoutError):
        await ctx.await_event("never", timeout=0.001)


@pytest.mark.parametrize("handler", [returns, steps, gathers, fails, fails_once, sleeps, times_out])
async def test_the_context_of_a_run_that_ended_is_gone(
    app: AsyncAbsurd, drive: Driver, handler: Callable[[Any, Any], Awaitable[Any]]
) -> None:
    app.register_task("t", default_max_attempts=2, default_retry_strategy=NOW)(handler)
    with uncollected():
        for _ in range(3):
            await drive.end(await app.spawn("t", {}))
        await _compat.until(lambda: not contexts())
