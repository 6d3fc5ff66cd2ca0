"""Steps: run once, kept, given back equal; names never meet."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple

import pydantic
import pytest

from absurd import AsyncAbsurd, NotSerializable, StepNameError, ValidationFailed, ValueTooLarge
from absurd._async import _compat as world
from absurd._core import codec
from tests.sdk._async.conftest import Driver
from tests.sdk.conftest import Rows


class Colour(Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Line:
    sku: str
    at: dt.date


class Receipt(pydantic.BaseModel):
    number: int
    total: Decimal
    paid_at: dt.datetime


class Crash(Exception):
    """What a test's handler raises where a process would die."""


VALUES: list[Any] = [
    None,
    False,
    0,
    -0.0,
    1e16,
    0.1,
    12345678901234567890,
    "",
    "ü \u2028 '\" \\",
    [],
    {},
    {1: (1, 2)},
    {"b": 1, "aa": 2, "a": {"z": 1, "y": None}},
    {True: "yes", None: "no"},
    {3, 1, 2},
    (1, [2, (3,)]),
    Point(1, 2),
    Line("x", dt.date(2026, 1, 2)),
    Colour.RED,
    Decimal("1.10"),
    uuid.UUID(int=7),
    dt.datetime(2026, 1, 2, 3, 4, 5, 6, dt.UTC),
    Receipt(number=1, total=Decimal("9.90"), paid_at=dt.datetime(2026, 1, 2, tzinfo=dt.UTC)),
]


async def test_w13_a_steps_value_is_the_same_the_first_time_and_on_replay(app: AsyncAbsurd, drive: Driver) -> None:
    calls: list[int] = []
    executions: list[list[Any]] = []

    @app.register_task("values")
    async def values(params: Any, ctx: Any) -> None:
        got = []
        for index, value in enumerate(VALUES):

            def effect(index: int = index, value: Any = value) -> Any:
                calls.append(index)
                return value

            got.append(await ctx.step(f"v{index}", effect))
        executions.append(got)
        if ctx.attempt == 1:
            raise Crash

    await drive.result(await app.spawn("values", {}))
    first, replayed = executions
    for index, (before, after) in enumerate(zip(first, replayed, strict=True)):
        assert repr(before) == repr(after), f"value {index}: equal also in type and order of keys"
        assert repr(before) == repr(codec.roundtrip(codec.encode(VALUES[index])))
    assert calls == list(range(len(VALUES))), "each step ran once"


async def test_a_step_returns_its_model_on_the_first_run_and_on_replay(app: AsyncAbsurd, drive: Driver) -> None:
    executions: list[Any] = []

    @app.register_task("model")
    async def model(params: Any, ctx: Any) -> None:
        told = {"number": 7, "total": "1.50", "paid_at": "2026-01-02T00:00:00Z"}
        typed = await ctx.step("charge", lambda: told, returns=Receipt)
        plain = await ctx.step("plain", lambda: typed)
        executions.append((typed, plain))
        if ctx.attempt == 1:
            raise Crash

    await drive.result(await app.spawn("model", {}))
    expected = Receipt(number=7, total=Decimal("1.50"), paid_at=dt.datetime(2026, 1, 2, tzinfo=dt.UTC))
    assert [typed for typed, _ in executions] == [expected, expected]
    assert executions[0][1] == executions[1][1] == {"number": 7, "total": "1.50", "paid_at": "2026-01-02T00:00:00Z"}


async def test_a_value_that_is_no_such_model_fails_naming_step_and_field(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("wrong")
    async def wrong(params: Any, ctx: Any) -> None:
        with pytest.raises(ValidationFailed, match=r'step "charge" does not match Receipt: number'):
            await ctx.step("charge", lambda: {"number": "x", "total": 1, "paid_at": 0}, returns=Receipt)

    await drive.result(await app.spawn("wrong", {}))


async def test_steps_may_be_plain_functions_or_coroutines(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("kinds")
    async def kinds(params: Any, ctx: Any) -> Any:
        async def slow() -> str:
            await world.sleep(0)
            return "slow"

        return [await ctx.step("plain", lambda: "plain"), await ctx.step("slow", slow)]

    assert await drive.result(await app.spawn("kinds", {})) == ["plain", "slow"]


async def test_w14_equal_names_count_and_never_take_each_others_values(
    app: AsyncAbsurd, drive: Driver, rows: Rows
) -> None:
    executions: list[list[Any]] = []

    @app.register_task("names")
    async def names(params: Any, ctx: Any) -> None:
        got = []
        for index, name in enumerate(["a", "a#2", "a", "a", "a#2", "b"]):
            got.append(await ctx.step(name, lambda index=index: index))
        executions.append(got)
        if ctx.attempt == 1:
            raise Crash

    spawned = await app.spawn("names", {})
    await drive.result(spawned)
    assert executions == [[0, 1, 2, 3, 4, 5]] * 2
    kept = rows("select name from absurd.checkpoints where task_id = %s order by name", spawned["task_id"])
    assert len(kept) == len(set(kept)) == 6
    assert kept[:2] == ["a", "a#2"]


async def test_a_bad_step_name_is_refused_before_the_step_runs(app: AsyncAbsurd, drive: Driver) -> None:
    ran: list[int] = []
    names: list[Any] = ["", "  ", "x" * 1025, "nul\0", "half \ud800", 7, None]

    @app.register_task("bad-name")
    async def bad_name(params: Any, ctx: Any) -> None:
        for name in names:
            with pytest.raises(StepNameError):
                await ctx.step(name, lambda: ran.append(1))

    await drive.result(await app.spawn("bad-name", {}))
    assert ran == []


async def test_begin_and_complete_step_are_a_step_in_two_halves(app: AsyncAbsurd, drive: Driver) -> None:
    handles: list[Any] = []

    @app.register_task("halves")
    async def halves(params: Any, ctx: Any) -> Any:
        first = await ctx.begin_step("open")
        second = await ctx.begin_step("open")
        handles.append((first, second))
        value = await ctx.complete_step(first, (ctx.attempt, 1))
        if ctx.attempt == 1:
            raise Crash
        return [value, await ctx.complete_step(second, "late")]

    assert await drive.result(await app.spawn("halves", {})) == [[1, 1], "late"]
    (first, second), (again, open_still) = handles
    assert (first.name, first.checkpoint_name, first.done, first.state) == ("open", "open", False, None)
    assert (second.name, second.checkpoint_name) == ("open", "open#2")
    assert (again.done, again.state) == (True, [1, 1])
    assert not open_still.done


# SYNC-ONLY: def test_run_step_puts_the_value_in_the_place_of_the_name(app: Absurd, drive: Driver, rows: Rows) -> None:
# SYNC-ONLY:     @app.register_task("decorated")
# SYNC-ONLY:     def decorated(params: Any, ctx: Any) -> Any:
# SYNC-ONLY:         @ctx.run_step
# SYNC-ONLY:         def bare() -> Any:
# SYNC-ONLY:             return (1,)
# SYNC-ONLY:
# SYNC-ONLY:         @ctx.run_step()
# SYNC-ONLY:         def called() -> Any:
# SYNC-ONLY:             return 2
# SYNC-ONLY:
# SYNC-ONLY:         @ctx.run_step("a name")
# SYNC-ONLY:         def named() -> Any:
# SYNC-ONLY:             return 3
# SYNC-ONLY:
# SYNC-ONLY:         return [bare, called, named]
# SYNC-ONLY:
# SYNC-ONLY:     spawned = app.spawn("decorated", {})
# SYNC-ONLY:     assert drive.result(spawned) == [[1], 2, 3]
# SYNC-ONLY:     kept = rows("select name from absurd.checkpoints where task_id = %s order by name", spawned["task_id"])
# SYNC-ONLY:     assert kept == ["a name", "bare", "called"]
# [async-only
async def test_run_step_is_for_plain_functions_only(app: AsyncAbsurd) -> None:
    from absurd import AsyncTaskContext

    assert not hasattr(AsyncTaskContext, "run_step")


# ]


async def test_a_value_that_json_cannot_hold_is_refused_with_its_place_and_nothing_is_kept(
    app: AsyncAbsurd, drive: Driver, rows: Rows
) -> None:
    @app.register_task("unstorable")
    async def unstorable(params: Any, ctx: Any) -> Any:
        for value in (object(), {"a": [float("nan")]}, "nul \0", "half \ud800", b"bytes"):
            with pytest.raises(NotSerializable, match=r'value of step "s'):
                await ctx.step("s", lambda value=value: value)
        with pytest.raises(ValueTooLarge, match="at most 16 MiB"):
            await ctx.step("s", lambda: "x" * (16 * 2**20))
        return await ctx.step("fine", lambda: 1)

    spawned = await app.spawn("unstorable", {})
    assert await drive.result(spawned) == 1
    assert rows("select name from absurd.checkpoints where task_id = %s order by name", spawned["task_id"]) == [
        "$unordered",
        "fine",
    ]


async def test_w15_a_spawn_inside_a_step_gives_ids_that_can_be_used_again(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("child")
    async def child(params: Any, ctx: Any) -> Any:
        return "child"

    @app.register_task("parent")
    async def parent(params: Any, ctx: Any) -> Any:
        spawned = await ctx.step("spawn", lambda: app.spawn("child", {}))
        return (await ctx.await_task_result(spawned["task_id"])).result

    assert await drive.result(await app.spawn("parent", {})) == "child"


async def test_is_replaying_ends_where_new_ground_begins(app: AsyncAbsurd, drive: Driver) -> None:
    seen: list[list[bool]] = []

    @app.register_task("replay")
    async def replay(params: Any, ctx: Any) -> None:
        now = [ctx.is_replaying]
        await ctx.step("one", lambda: 1)
        now.append(ctx.is_replaying)
        await ctx.step("two", lambda: 2)
        now.append(ctx.is_replaying)
        seen.append(now)
        if ctx.attempt == 1:
            raise Crash
        await ctx.step("three", lambda: 3)

    await drive.result(await app.spawn("replay", {}))
    assert seen == [[False, False, False], [True, True, False]]


async def test_an_exception_in_a_step_keeps_nothing_and_the_next_attempt_runs_it_again(
    app: AsyncAbsurd, drive: Driver
) -> None:
    tries: list[int] = []

    @app.register_task("flaky")
    async def flaky(params: Any, ctx: Any) -> Any:
        def work() -> str:
            tries.append(ctx.attempt)
            if ctx.attempt < 3:
                raise Crash("not yet")
            return "done"

        return await ctx.step("work", work)

    assert await drive.result(await app.spawn("flaky", {})) == "done"
    assert tries == [1, 2, 3]
