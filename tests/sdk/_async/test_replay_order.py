"""Replay safety: new work never comes before what is recorded, unless the task says that it may."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from absurd import AsyncAbsurd
from tests.sdk._async import _compat
from tests.sdk._async.conftest import Driver


def register(app: AsyncAbsurd, steps: list[str], ran: list[str], later: tuple[str, ...] = (), **options: Any) -> None:
    """A task that runs steps of these names, then waits: registered anew, it is the next release."""

    @app.register_task("walk", default_max_attempts=1, **options)
    async def walk(params: Any, ctx: Any) -> Any:
        for name in steps:
            await ctx.step(name, functools.partial(ran.append, name))
        value = await ctx.await_event("go")
        for name in later:
            await ctx.step(name, functools.partial(ran.append, name))
        return value


async def deployed(
    app: AsyncAbsurd, drive: Driver, before: list[str], after: list[str], ran: list[str], **options: Any
) -> Any:
    """A task that went to sleep under one release and is woken under the next."""
    register(app, before, ran)
    spawned = await app.spawn("walk", {})
    await drive.rest(spawned)
    ran.clear()
    register(app, after, ran, **options)
    await app.emit_event("go", "done")
    return spawned


async def test_a_new_step_before_a_recorded_one_is_refused_and_does_not_run(app: AsyncAbsurd, drive: Driver) -> None:
    ran: list[str] = []
    spawned = await deployed(app, drive, ["pack", "ship"], ["pack", "insure", "ship"], ran)
    failure = await drive.failure(spawned)
    assert failure["name"] == "StepOrderChanged"
    assert 'expected "ship" and 1 more, found "insure"' in failure["message"]
    assert "strict_replay=False" in failure["message"]
    assert ran == []


async def test_the_step_expected_is_the_one_that_was_committed_first(app: AsyncAbsurd, drive: Driver) -> None:
    ran: list[str] = []
    spawned = await deployed(app, drive, ["zebra", "ape", "bee"], ["cow", "zebra", "ape", "bee"], ran)
    assert 'expected "zebra" and 3 more, found "cow"' in (await drive.failure(spawned))["message"]


async def test_a_step_that_was_renamed_is_refused(app: AsyncAbsurd, drive: Driver) -> None:
    ran: list[str] = []
    spawned = await deployed(app, drive, ["pack"], ["wrap"], ran)
    assert (await drive.failure(spawned))["name"] == "StepOrderChanged"
    assert ran == []


@pytest.mark.parametrize(
    ("after", "later"),
    [(["pack", "ship"], ()), (["ship", "pack"], ()), (["pack", "ship"], ("thank",)), (["pack"], ())],
    ids=["the same", "all recorded, swapped", "new at the end", "one gone"],
)
async def test_what_does_no_harm_goes_on(
    app: AsyncAbsurd, drive: Driver, after: list[str], later: tuple[str, ...]
) -> None:
    """Values belong to names, not to places."""
    ran: list[str] = []
    spawned = await deployed(app, drive, ["pack", "ship"], after, ran, later=later)
    assert await drive.result(spawned) == "done"
    assert ran == list(later)


async def test_a_task_may_opt_out(app: AsyncAbsurd, drive: Driver) -> None:
    ran: list[str] = []
    spawned = await deployed(app, drive, ["pack", "ship"], ["insure", "pack", "ship"], ran, strict_replay=False)
    assert await drive.result(spawned) == "done"
    assert ran == ["insure"]


async def test_a_sleep_a_wait_a_spawn_and_a_transaction_are_refused_like_steps(app: AsyncAbsurd, drive: Driver) -> None:
    asked: list[Any] = [
        lambda ctx: ctx.sleep_for("nap", 1),
        lambda ctx: ctx.await_event("other"),
        lambda ctx: ctx.spawn("walk", {}),
        lambda ctx: ctx.run_transaction("pay", lambda tx: None),
        lambda ctx: ctx.gather({"left": lambda: 1, "right": lambda: 2}),
    ]

    @app.register_task("shifting", default_max_attempts=1)
    async def shifting(params: Any, ctx: Any) -> Any:
        if asked_now:
            await asked_now[0](ctx)
        await ctx.step("pack", lambda: 1)
        await ctx.await_event(params["wait"])

    for number, call in enumerate(asked):
        asked_now: list[Any] = []
        spawned = await app.spawn("shifting", {"wait": f"go {number}"})
        await drive.rest(spawned)
        asked_now.append(call)
        await app.emit_event(f"go {number}")
        assert (await drive.failure(spawned))["name"] == "StepOrderChanged"


async def test_a_step_that_failed_and_was_caught_may_go_another_way_next_time(app: AsyncAbsurd, drive: Driver) -> None:
    ways: list[str] = []
    broken = [True]

    @app.register_task("careful", default_max_attempts=2, default_retry_strategy={"kind": "none"})
    async def careful(params: Any, ctx: Any) -> str:
        def charge() -> str:
            if broken:
                raise OSError("no answer")
            return "charged"

        try:
            await ctx.step("charge", charge)
        except OSError:
            await ctx.step("tell", lambda: ways.append("told"))
            broken.clear()
            raise
        await ctx.step("ship", lambda: ways.append("shipped"))
        return "done"

    assert await drive.result(await app.spawn("careful", {})) == "done"
    assert ways == ["told", "shipped"]


async def test_a_step_that_fails_again_after_a_wake_up_goes_the_same_way(app: AsyncAbsurd, drive: Driver) -> None:
    tries: list[int] = []

    @app.register_task("fallback", default_max_attempts=1)
    async def fallback(params: Any, ctx: Any) -> Any:
        def first() -> None:
            tries.append(1)
            raise OSError("down")

        try:
            await ctx.step("first", first)
        except OSError:
            await ctx.step("second", lambda: 2)
        return await ctx.await_event("go")

    spawned = await app.spawn("fallback", {})
    await drive.rest(spawned)
    await app.emit_event("go", "done")
    assert await drive.result(spawned) == "done"
    assert tries == [1, 1]


async def test_a_wait_that_timed_out_is_recorded_like_a_step(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("patient", default_max_attempts=1)
    async def patient(params: Any, ctx: Any) -> Any:
        try:
            await ctx.await_event("never", timeout=0)
        except TimeoutError:
            await ctx.step("without", lambda: 1)
        await ctx.sleep_for("nap", 0)
        return await ctx.await_event("go")

    spawned = await app.spawn("patient", {})
    await app.emit_event("go", "done")
    assert await drive.result(spawned) == "done"


async def test_calls_side_by_side_have_no_order(app: AsyncAbsurd, drive: Driver) -> None:
    """The slow one was not kept, the fast one was: it asks first all the same."""
    broken = [True]
    meet = _compat.barrier(2)

    @app.register_task("abreast", default_max_attempts=2, default_retry_strategy={"kind": "none"})
    async def abreast(params: Any, ctx: Any) -> Any:
        async def slow() -> str:
            if broken:
                await meet("slow")
                broken.clear()
                raise OSError("slow and broken")
            return "slow"

        async def fast() -> None:
            first_time = bool(broken)
            await ctx.step("fast", lambda: "fast")
            if first_time:
                await meet("fast")

        return (await _compat.together(lambda: ctx.step("slow", slow), fast))[0]

    assert await drive.result(await app.spawn("abreast", {})) == "slow"
