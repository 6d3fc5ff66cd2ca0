"""What a handler may know and do: its context, its failures, and what nothing it does can break."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Any

import pydantic
import pytest
from typing_extensions import TypedDict  # pydantic takes typing's own from Python 3.12 on

from absurd import (
    AsyncAbsurd,
    AsyncTaskContext,
    CancelledTask,
    ConfigError,
    InvalidOption,
    SuspendTask,
    get_current_context,
)
from absurd._async import _compat as world
from absurd.errors import ControlFlow
from absurd.telemetry import TaskLogFilter
from tests.fixtures.postgres import Connection
from tests.sdk._async import _compat
from tests.sdk._async.conftest import Driver
from tests.sdk.conftest import Rows


class Order(pydantic.BaseModel):
    order_id: int
    items: list[str] = []


class Shape(TypedDict):
    width: int


class Receipt(pydantic.BaseModel):
    total: int


async def test_a_context_knows_its_task_run_attempt_queue_and_headers(app: AsyncAbsurd, drive: Driver) -> None:
    seen: list[Any] = []

    @app.register_task("knows")
    async def knows(params: Any, ctx: Any) -> None:
        seen.append((ctx.task_id, ctx.run_id, ctx.task_name, ctx.attempt, ctx.queue_name, ctx.headers))
        if ctx.attempt == 1:
            raise ValueError

    spawned = await app.spawn("knows", {}, headers={"trace": "x"})
    await drive.result(spawned)
    (first, second) = seen
    assert first == (spawned["task_id"], spawned["run_id"], "knows", 1, "main", {"trace": "x"})
    assert second[3] == 2
    assert second[0] == first[0]
    assert second[1] != first[1]
    assert all(isinstance(one, uuid.UUID) for one in second[:2])


async def test_headers_are_empty_when_none_were_given(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("bare")
    async def bare(params: Any, ctx: Any) -> Any:
        return [ctx.headers, params]

    assert await drive.result(await app.spawn("bare")) == [{}, None]


def test_a_context_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError, match="a task context is made by the worker"):
        AsyncTaskContext()
    with pytest.raises(TypeError, match="a task context is made by the worker"):
        AsyncTaskContext(object(), None, None, None, None, 1.0)


async def test_the_current_context_is_the_handlers_own_and_none_outside(app: AsyncAbsurd) -> None:
    arrived = [world.Event(), world.Event()]
    seen: dict[int, Any] = {}

    @app.register_task("context")
    async def context(params: Any, ctx: Any) -> None:
        assert get_current_context() is ctx
        arrived[params].set()
        assert await arrived[1 - params].wait(20), "both handlers run at once"
        assert get_current_context() is ctx
        seen[params] = await ctx.step("inside", lambda: str(get_current_context().task_id))  # type: ignore[union-attr]

    assert get_current_context() is None
    spawned = [await app.spawn("context", n) for n in range(2)]
    async with _compat.working(app, concurrency=2):
        for one in spawned:
            await app.await_task_result(one["task_id"], 20)
    assert seen == {n: str(one["task_id"]) for n, one in enumerate(spawned)}
    assert get_current_context() is None


async def test_every_log_record_of_a_handler_names_its_run(
    app: AsyncAbsurd, drive: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    own = logging.getLogger("shop")
    caplog.handler.addFilter(TaskLogFilter())

    @app.register_task("logs")
    async def logs(params: Any, ctx: Any) -> None:
        ctx.log.info("by the context", extra={"sku": "x"})
        await ctx.step("step", lambda: own.info("by another logger"))

    with caplog.at_level(logging.INFO):
        own.info("outside")
        spawned = await app.spawn("logs", {})
        await drive.result(spawned)
    found = {record.getMessage(): record for record in caplog.records}
    expected = ("logs", str(spawned["task_id"]), str(spawned["run_id"]), 1)
    for message in ("by the context", "by another logger"):
        record: Any = found[message]
        assert (record.task_name, record.task_id, record.run_id, record.attempt) == expected
    record = found["by the context"]
    assert (record.sku, record.name) == ("x", "absurd")
    outside: Any = found["outside"]
    assert (outside.task_name, outside.task_id, outside.run_id, outside.attempt) == (None,) * 4


# -- params and results ------------------------------------------------------------------------------------------------


async def test_params_are_the_declared_model_and_results_are_held_against_theirs(
    app: AsyncAbsurd, drive: Driver
) -> None:
    @app.register_task("by-keyword", params=Order, result=Receipt)
    async def by_keyword(params: Any, ctx: Any) -> Any:
        assert params == Order(order_id=7, items=["a"])
        return {"total": "12"}

    @app.register_task("by-annotation")
    async def by_annotation(params: Order, ctx: Any) -> int:
        return params.order_id

    @app.register_task("by-shape")
    async def by_shape(params: Shape, ctx: Any) -> int:
        return params["width"] + 1

    assert await drive.result(await app.spawn("by-keyword", {"order_id": "7", "items": ["a"]})) == {"total": 12}
    assert await drive.result(await app.spawn("by-annotation", Order(order_id=8))) == 8
    assert await drive.result(await app.spawn("by-shape", {"width": "3"})) == 4


async def test_wrong_params_from_elsewhere_fail_the_task_for_good_naming_the_field(
    app: AsyncAbsurd, drive: Driver, conn: Connection, rows: Rows
) -> None:
    called: list[int] = []

    @app.register_task("typed", params=Order)
    async def typed(params: Order, ctx: Any) -> None:
        called.append(1)

    sql = "select task_id from absurd.spawn_task('main', 'typed', %s, %s)"
    found = conn.execute(sql, ('{"order_id": "seven"}', '{"max_attempts": 5}')).fetchone()
    assert found is not None
    failure = await drive.failure({"task_id": found[0]})
    assert failure["name"] == "ValidationFailed"
    assert 'params of task "typed" does not match Order: order_id: ' in failure["message"]
    assert called == []
    assert rows("select count(*)::int from absurd.attempts") == [1], "another attempt would find the same params"


async def test_a_wrong_result_fails_the_task_naming_the_field(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("typed", result=Receipt)
    async def typed(params: Any, ctx: Any) -> Any:
        return {"sum": 1}

    failure = await drive.failure(await app.spawn("typed", {}))
    assert 'result of task "typed" does not match Receipt: total: Field required' in failure["message"]


async def test_results_may_be_whatever_a_steps_value_may_be(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("any")
    async def anything(params: Any, ctx: Any) -> Any:
        return {1: (uuid.UUID(int=1), Receipt(total=2)), "set": {3}}

    expected = {"1": [str(uuid.UUID(int=1)), {"total": 2}], "set": [3]}
    assert await drive.result(await app.spawn("any", {})) == expected


# -- failures ----------------------------------------------------------------------------------------------------------


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("even the message breaks")


class Odd(BaseException):
    """Neither an Exception nor control flow."""


def _raises(error: BaseException) -> Any:
    def act() -> Any:
        raise error

    return act


FAILING: list[tuple[Any, str, str]] = [
    (_raises(ValueError("broken")), "ValueError", "broken"),
    (_raises(ValueError("nul \0 and half \ud800")), "ValueError", "nul \ufffd and half \ufffd"),
    (_raises(Unprintable()), "Unprintable", "the message is lost"),
    (_raises(SystemExit(3)), "SystemExit", "3"),
    (_raises(KeyboardInterrupt("stop")), "KeyboardInterrupt", "stop"),
    (_raises(Odd("odd")), "Odd", "odd"),
    (_raises(GeneratorExit("gone")), "GeneratorExit", "gone"),
    (_raises(StopIteration("over")), "", "StopIteration"),
    (_raises(ExceptionGroup("many", [ValueError("one"), KeyError("two")])), "ExceptionGroup", "many"),
    (lambda: object(), "NotSerializable", "result cannot be stored: $ is of type object"),
    (lambda: {"a": [1, float("inf")]}, "NotSerializable", "$.a[1] is inf"),
    (lambda: "nul \0", "NotSerializable", "a NUL character"),
    (lambda: "x" * (16 * 2**20), "ValueTooLarge", "The result is 16.0 MiB"),
    (_raises(asyncio.CancelledError("by the handler itself")), "CancelledError", ""),  # ASYNC-ONLY
]


async def test_whatever_a_handler_raises_or_returns_is_recorded_and_the_next_task_runs(
    app: AsyncAbsurd, drive: Driver
) -> None:
    @app.register_task("fails", default_max_attempts=1)
    async def fails(params: Any, ctx: Any) -> Any:
        return FAILING[params][0]()

    @app.register_task("fine")
    async def fine(params: Any, ctx: Any) -> str:
        return "fine"

    for number, (_, name, message) in enumerate(FAILING):
        failure = await drive.failure(await app.spawn("fails", number))
        assert set(failure) == {"name", "message", "traceback"}
        assert name in failure["name"]
        assert message in failure["message"] + failure["name"] + failure["traceback"]
    assert await drive.result(await app.spawn("fine", {})) == "fine"


async def test_a_failure_carries_the_traceback_of_the_handler(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("fails", default_max_attempts=1)
    async def fails(params: Any, ctx: Any) -> None:
        raise ValueError("broken")

    failure = await drive.failure(await app.spawn("fails", {}))
    assert (failure["name"], failure["message"]) == ("ValueError", "broken")
    assert failure["traceback"].startswith("Traceback (most recent call last):")
    assert "in fails\n" in failure["traceback"]
    assert failure["traceback"].endswith("ValueError: broken\n")


async def test_a_task_is_tried_as_often_as_its_limit_says(app: AsyncAbsurd, drive: Driver, rows: Rows) -> None:
    tried: list[int] = []

    @app.register_task("fails")
    async def fails(params: Any, ctx: Any) -> None:
        tried.append(ctx.attempt)
        raise ValueError(ctx.attempt)

    failure = await drive.failure(await app.spawn("fails", {}, max_attempts=3))
    assert tried == [1, 2, 3]
    assert failure["message"] == "3"


async def test_except_exception_does_not_swallow_what_suspends_a_task(app: AsyncAbsurd, drive: Driver) -> None:
    swallowed: list[BaseException] = []

    @app.register_task("careless")
    async def careless(params: Any, ctx: Any) -> str:
        try:
            await ctx.sleep_for("nap", 0.01)
            await ctx.await_event("go")
        except Exception as error:
            swallowed.append(error)
        return "done"

    spawned = await app.spawn("careless", {})
    await drive.rest(spawned, times=2)
    await app.emit_event("go")
    assert await drive.result(spawned) == "done"
    assert swallowed == []
    assert issubclass(SuspendTask, ControlFlow)
    assert not issubclass(ControlFlow, Exception)


async def test_a_handler_that_swallows_its_suspension_writes_nothing_more(
    app: AsyncAbsurd, drive: Driver, rows: Rows
) -> None:
    calls: list[str] = []

    @app.register_task("stubborn")
    async def stubborn(params: Any, ctx: Any) -> str:
        if not calls:
            calls.append("first")
            with pytest.raises(SuspendTask):
                await ctx.await_event("go")
            return "went on"
        return str(await ctx.await_event("go"))

    spawned = await app.spawn("stubborn", {})
    await drive.once(spawned, "completed")
    snapshot = await app.fetch_task_result(spawned["task_id"])
    assert snapshot is not None
    assert snapshot.state == "sleeping"
    await app.emit_event("go", "woken")
    assert await drive.result(spawned) == "woken"


async def test_a_running_handler_is_told_that_its_task_was_cancelled(app: AsyncAbsurd, drive: Driver) -> None:
    told: list[Any] = []

    @app.register_task("stops")
    async def stops(params: Any, ctx: Any) -> None:
        await app.cancel_task(ctx.task_id)
        try:
            await ctx.step("next", lambda: told.append("ran once more"))
        except CancelledTask as error:
            told.append(error)
            raise
        told.append("not told")

    spawned = await app.spawn("stops", {})
    await drive.once(spawned, "cancelled")
    assert (await drive.end(spawned)).state == "cancelled"
    assert told[0] == "ran once more", "the step ran, its value was refused"
    assert isinstance(told[1], CancelledTask)
    assert len(told) == 2


async def test_a_handler_that_does_not_listen_cannot_complete_a_cancelled_task(
    app: AsyncAbsurd, drive: Driver, rows: Rows
) -> None:
    @app.register_task("deaf")
    async def deaf(params: Any, ctx: Any) -> str:
        await app.cancel_task(ctx.task_id)
        return "done all the same"

    assert (await drive.end(await app.spawn("deaf", {}))).state == "cancelled"
    assert rows("select result from absurd.attempts") == [None]


async def test_the_lease_keeper_tells_a_handler_that_never_asks(app: AsyncAbsurd, signals: _compat.Signals) -> None:
    begun = world.Event()
    told: list[str] = []

    @app.register_task("long")
    async def long(params: Any, ctx: Any) -> None:
        begun.set()
        try:
            while True:
                await world.sleep(0.01)
                await ctx.begin_step("look")
        except (CancelledTask, world.Cancelled):
            told.append("cancelled")
            raise

    async with _compat.working(app, claim_timeout=1):
        spawned = await app.spawn("long", {})
        assert await begun.wait(20)
        await app.cancel_task(spawned["task_id"])
        await signals.until("run.ended", task_id=spawned["task_id"], outcome="cancelled")
    assert told == ["cancelled"]


async def test_a_heartbeat_renews_the_lease(app: AsyncAbsurd, drive: Driver, rows: Rows) -> None:
    left = "select extract(epoch from lease_until - absurd.current_time())::float from absurd.live"

    @app.register_task("beats")
    async def beats(params: Any, ctx: Any) -> Any:
        with pytest.raises(InvalidOption, match=r"must be > 0|must be >= 1|greater than"):
            await ctx.heartbeat(0)
        await ctx.heartbeat(5000)
        by_hand = rows(left)[0]
        await ctx.heartbeat()
        return [by_hand > 4000, rows(left)[0] < 100]

    assert await drive.result(await app.spawn("beats", {})) == [True, True]


async def test_a_lease_ends_after_seconds_above_zero(app: AsyncAbsurd, drive: Driver) -> None:
    refused: list[Any] = [0, -1, 0.0, float("nan"), "60", True]

    @app.register_task("beats")
    async def beats(params: Any, ctx: Any) -> None:
        for seconds in refused:
            with pytest.raises(InvalidOption, match=r"^extend_by must be > 0$"):
                await ctx.heartbeat(seconds)
        with pytest.raises(InvalidOption, match="extend_by must be <= 2147483647 seconds"):
            await ctx.heartbeat(float("inf"))

    await drive.result(await app.spawn("beats", {}))


async def test_a_heartbeat_needs_no_connection_of_the_pool(app: AsyncAbsurd, database_url: str, rows: Rows) -> None:
    left = "select extract(epoch from lease_until - absurd.current_time())::float from absurd.live"
    async with AsyncAbsurd(database_url, "main", pool_size=1) as client:

        @client.register_task("beats")
        async def beats(params: Any, ctx: Any) -> Any:
            async with ctx.transaction("all there is") as tx:
                await ctx.heartbeat(5000)
                tx.result = rows(left)[0] > 4000
            return tx.result

        spawned = await app.spawn("beats", {}, queue="main")
        async with _compat.working(client):
            assert (await app.await_task_result(spawned["task_id"], _compat.DEADLINE)).result is True


async def test_heartbeats_made_together_each_last_as_long_as_asked(app: AsyncAbsurd, rows: Rows) -> None:
    left = "select extract(epoch from lease_until - absurd.current_time())::float from absurd.live where task_id = %s"
    arrived: list[int] = []
    all_here = world.Event()

    @app.register_task("beats")
    async def beats(params: Any, ctx: Any) -> bool:
        arrived.append(params)
        if len(arrived) == 3:
            all_here.set()
        assert await all_here.wait(_compat.DEADLINE)
        await ctx.heartbeat(params)
        return params - 100 < rows(left, ctx.task_id)[0] <= params  # type: ignore[no-any-return]

    spawned = await app.spawn_many([{"task_name": "beats", "params": n} for n in (1000, 2000, 3000)])
    async with _compat.working(app, concurrency=3):
        for one in spawned:
            assert (await app.await_task_result(one["task_id"], _compat.DEADLINE)).result is True


@pytest.mark.parametrize("end", ["cancelled", "failed"])
async def test_a_heartbeat_of_a_run_that_is_over_says_how(
    app: AsyncAbsurd, drive: Driver, conn: Connection, end: str
) -> None:
    told: list[str] = []

    @app.register_task("beats", default_max_attempts=1)
    async def beats(params: Any, ctx: Any) -> None:
        if end == "cancelled":
            conn.execute("select absurd.cancel_task('main', %s)", (ctx.task_id,))
        else:
            conn.execute("select absurd.fail_run('main', %s, '{}')", (ctx.run_id,))
        try:
            await ctx.heartbeat()
        except ControlFlow as error:
            told.append(type(error).__name__)
            raise

    spawned = await app.spawn("beats", {})
    await drive.once(spawned, "cancelled" if end == "cancelled" else "lost")
    assert told == ["CancelledTask" if end == "cancelled" else "FailedTask"]


def test_the_wrong_kind_of_handler_is_refused_at_registration() -> None:
    app = AsyncAbsurd("postgresql://localhost/nowhere", "main")

    async def right(params: Any, ctx: Any) -> None:
        """For this client."""

    wrong: Any = lambda params, ctx: None  # noqa: E731  # ASYNC-ONLY
    # SYNC-ONLY: wrong: Any = type("Call", (), {"__call__": asyncio.sleep})()
    with pytest.raises(ConfigError, match='task "wrong": '):
        app.register_task("wrong")(wrong)
    for name in ("", " "):
        with pytest.raises(ConfigError, match="a task needs a name"):
            app.register_task(name)(right)


def test_registration_returns_the_handler_unchanged() -> None:
    app = AsyncAbsurd("postgresql://localhost/nowhere", "main")

    async def handler(params: Any, ctx: Any) -> None:
        """A handler."""

    assert app.register_task("a")(handler) is handler
    with pytest.raises(ValueError, match="default_max_attempts must be >= 1"):
        app.register_task("a", default_max_attempts=0)(handler)
    with pytest.raises(ValueError, match="too long"):
        app.register_task("a", queue="q" * 58)
