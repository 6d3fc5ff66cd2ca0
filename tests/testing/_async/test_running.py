"""Running tasks in the test's own flow, to where they wait, or to the end."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from absurd import AsyncAbsurd, AsyncTaskContext, ConfigError, QueueNotFound, TaskNotFound
from absurd.testing import drain, run_to_wait
from absurd.testing._async.clock import FakeClock
from absurd.testing._async.session import client


async def test_a_task_stands_at_its_sleep_then_at_its_wait_then_at_its_end(app: AsyncAbsurd, fake: FakeClock) -> None:
    @app.register_task("order")
    async def order(params: Any, ctx: AsyncTaskContext) -> Any:
        await ctx.step("reserve", lambda: "reserved")
        await ctx.sleep_for("cool down", 60)
        return await ctx.await_event("paid", timeout=3600)

    task = await app.spawn("order")
    asleep = await run_to_wait(app, task)
    assert (asleep.state, asleep.step, asleep.until) == ("sleeping", "cool down", fake.now + timedelta(seconds=60))
    assert (asleep.task_name, asleep.event, asleep.ended) == ("order", None, False)
    assert asleep.steps["reserve"] == "reserved"

    fake.advance(60)
    waiting = await run_to_wait(app, task["task_id"])
    assert (waiting.event, waiting.step) == ("paid", "$awaitEvent:paid")
    assert waiting.until == fake.now + timedelta(hours=1)

    await app.emit_event("paid", {"amount": 5})
    ended = await run_to_wait(app, str(task["task_id"]))
    assert (ended.state, ended.result, ended.ended, ended.until) == ("completed", {"amount": 5}, True, None)
    assert ended.steps["$awaitEvent:paid"] == {"amount": 5}


async def test_a_task_that_waits_for_another_says_for_which(app: AsyncAbsurd) -> None:
    @app.register_task("parent")
    async def parent(params: Any, ctx: AsyncTaskContext) -> Any:
        child = await ctx.spawn("child", queue="kit")
        return (await ctx.await_task_result(child["task_id"])).result

    standing = await run_to_wait(app, await app.spawn("parent"))
    assert standing.state == "sleeping"
    assert standing.event is None
    assert str(standing.awaits) == standing.steps["$spawn:child"]["task_id"]


async def test_attempts_that_are_due_at_once_are_all_run_and_a_pause_is_a_wait(
    app: AsyncAbsurd, fake: FakeClock
) -> None:
    @app.register_task("flaky", default_max_attempts=3, default_retry_strategy={"kind": "none"})
    async def flaky(params: Any, ctx: AsyncTaskContext) -> int:
        if ctx.attempt < 3:
            raise ValueError(f"attempt {ctx.attempt}")
        return ctx.attempt

    @app.register_task("slow", default_max_attempts=2, default_retry_strategy={"kind": "fixed", "base_seconds": 30})
    async def slow(params: Any, ctx: AsyncTaskContext) -> None:
        raise ValueError("again")

    assert (await run_to_wait(app, await app.spawn("flaky"))).result == 3
    task = await app.spawn("slow")
    paused = await run_to_wait(app, task)
    assert (paused.state, paused.attempt, paused.until) == ("sleeping", 2, fake.now + timedelta(seconds=30))
    assert paused.failure["message"] == "again"
    fake.advance(30)
    failed = await run_to_wait(app, task)
    assert (failed.state, failed.failure["name"], failed.ended) == ("failed", "ValueError", True)


async def test_a_task_that_somebody_else_runs_is_left_to_them(app: AsyncAbsurd, fake: FakeClock) -> None:
    app.register_task("held")(_nothing)
    task = await app.spawn("held")
    await app.claim_tasks(1, 50)
    standing = await run_to_wait(app, task)
    assert (standing.state, standing.until) == ("running", fake.now + timedelta(seconds=50))


async def test_what_cannot_be_run_is_refused_with_the_reason(app: AsyncAbsurd, database_url: str) -> None:
    with pytest.raises(TaskNotFound):
        await run_to_wait(app, uuid.uuid4())
    task = await app.spawn("stranger", queue="kit")
    with pytest.raises(ConfigError, match="not registered"):
        await run_to_wait(app, task)
    lost = client(database_url, "nowhere")
    with pytest.raises(QueueNotFound, match="create_queue"):
        await drain(lost)
    await lost.close()
    with pytest.raises(ConfigError, match=r"testing\.client"):
        await drain(AsyncAbsurd(database_url, "kit"))


async def test_a_test_client_wants_one_connection_in_autocommit(database_url: str) -> None:
    conn = await psycopg.AsyncConnection.connect(database_url)
    with pytest.raises(ConfigError, match="autocommit"):
        client(conn, "kit")
    await conn.close()
    with pytest.raises(ConfigError, match="tasks_of"):
        client(database_url, tasks_of="app")  # type: ignore[arg-type]


async def test_a_queue_is_drained_of_what_is_due_and_no_more(app: AsyncAbsurd, fake: FakeClock) -> None:
    @app.register_task("sleeper")
    async def sleeper(params: Any, ctx: AsyncTaskContext) -> None:
        await ctx.sleep_for("nap", 60)

    @app.register_task("broken", default_max_attempts=1)
    async def broken(params: Any, ctx: AsyncTaskContext) -> None:
        raise ValueError("no")

    for _ in range(3):
        await app.spawn("sleeper")
    await app.spawn("broken")
    await app.spawn("stranger", queue="kit")
    first = await drain(app)
    assert (first.runs, first.outcomes, first.moves) == (4, {"suspended": 3, "failed": 1}, 0)
    assert first.left == {"sleeping": 3, "pending": 1}
    start = fake.now
    rest = await drain(app, advance=True)
    assert (rest.runs, rest.outcomes, rest.moves, rest.left) == (3, {"completed": 3}, 1, {"pending": 1})
    assert fake.now == start + timedelta(seconds=60)


async def test_draining_serves_every_queue_of_the_clients_tasks(app: AsyncAbsurd) -> None:
    await app.create_queue("side")
    app.register_task("main")(_nothing)
    app.register_task("aside", queue="side")(_nothing)
    await app.spawn("main")
    await app.spawn("aside")
    assert (await drain(app)).outcomes == {"completed": 2}


async def test_a_queue_that_never_comes_to_an_end_is_an_error_that_names_the_culprit(
    app: AsyncAbsurd, fake: FakeClock
) -> None:
    @app.register_task("hydra")
    async def hydra(params: Any, ctx: AsyncTaskContext) -> None:
        await ctx.spawn("hydra")

    @app.register_task("clockwork")
    async def clockwork(params: Any, ctx: AsyncTaskContext) -> None:
        for number in range(1000):
            await ctx.sleep_for(f"tick {number}", 1)

    await app.spawn("hydra")
    with pytest.raises(AssertionError, match='does not come to an end: after 20 runs \\("hydra" 20 times\\)'):
        await drain(app, max_tasks=20)
    await app.purge_queue()
    await app.spawn("clockwork")
    assert (await drain(app, max_tasks=20)).runs == 1
    with pytest.raises(AssertionError, match='"clockwork"'):
        await drain(app, max_tasks=20, advance=True)


async def test_exactly_as_many_runs_as_allowed_are_no_error(app: AsyncAbsurd) -> None:
    app.register_task("once")(_nothing)
    await app.spawn("once")
    await app.spawn("once")
    assert (await drain(app, max_tasks=2)).runs == 2


async def test_only_a_client_with_a_clock_can_be_drained_of_what_is_yet_to_come(app: AsyncAbsurd) -> None:
    with pytest.raises(ConfigError, match="FakeClock"):
        await drain(app, advance=True)


async def test_the_tasks_of_an_application_run_on_a_test_client(database_url: str) -> None:
    production = AsyncAbsurd("postgresql://nowhere.invalid/none", "shop", default_max_attempts=2)

    @production.register_task("greet")
    async def greet(params: Any, ctx: AsyncTaskContext) -> str:
        return f"hello {params['name']}"

    async with client(database_url, tasks_of=production) as app:
        await app.create_queue()
        assert await app.list_queues() == ["shop"]
        assert (await run_to_wait(app, await app.spawn("greet", {"name": "ada"}))).result == "hello ada"
    assert production.queue_name == "shop"


async def _nothing(params: Any, ctx: AsyncTaskContext) -> None:
    return None
