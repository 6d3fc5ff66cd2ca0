"""Replay safety: new work never comes before what is recorded, unless the task says that it may."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import pytest

from absurd import AsyncAbsurd
from tests.fixtures.postgres import Connection
from tests.sdk._async import _compat
from tests.sdk._async.conftest import Driver
from tests.sdk.conftest import Rows


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


async def refused(drive: Driver, rows: Rows, spawned: Any) -> Any:
    """Run it once, under code that does not fit; what is recorded of that. The attempt is not burnt."""
    await drive.once(spawned, "snoozed")
    (attempt,) = rows("select attempt from absurd.live where task_id = %s", spawned["task_id"])
    assert attempt == spawned["attempt"]
    (recorded,) = rows(
        "select state from absurd.checkpoints where task_id = %s and name = '$refused'", spawned["task_id"]
    )
    return recorded


async def test_a_new_step_before_a_recorded_one_is_refused_and_does_not_run(
    app: AsyncAbsurd, drive: Driver, rows: Rows
) -> None:
    ran: list[str] = []
    spawned = await deployed(app, drive, ["pack", "ship"], ["pack", "insure", "ship"], ran)
    told = await refused(drive, rows, spawned)
    assert (told["expected"], told["found"]) == (["ship", "$awaitEvent:go"], "insure")
    assert 'expected "ship" and 1 more, found "insure"' in told["message"]
    assert "strict_replay=False" in told["message"]
    assert ran == []


async def test_a_task_goes_on_when_code_comes_that_fits(
    app: AsyncAbsurd, drive: Driver, rows: Rows, conn: Connection
) -> None:
    ran: list[str] = []
    spawned = await deployed(app, drive, ["pack", "ship"], ["wrap", "pack", "ship"], ran)
    await refused(drive, rows, spawned)
    register(app, ["pack", "ship"], ran)
    due = "update absurd.live set due_at = absurd.current_time() where task_id = %s and state = 's'"
    while not conn.execute(due, (spawned["task_id"],)).rowcount:
        await app.list_queues()  # the worker hands it back after it has told of it
    conn.execute("select absurd.wake('main')")
    assert await drive.result(spawned) == "done"
    assert ran == []


async def test_a_handler_that_catches_the_refusal_does_not_go_on(app: AsyncAbsurd, drive: Driver, rows: Rows) -> None:
    ran: list[str] = []
    new = [False]

    @app.register_task("stubborn", default_max_attempts=1)
    async def stubborn(params: Any, ctx: Any) -> str:
        if new[0]:
            with contextlib.suppress(Exception):
                await ctx.step("optional", lambda: ran.append("optional"))
            with contextlib.suppress(Exception):
                await ctx.step("other", lambda: ran.append("other"))
            return "done all the same"
        await ctx.step("pack", lambda: 1)
        return await ctx.await_event("go")

    spawned = await app.spawn("stubborn", {})
    await drive.rest(spawned)
    new[0] = True
    await app.emit_event("go")
    assert (await refused(drive, rows, spawned))["found"] == "optional"
    assert ran == []


async def test_the_step_expected_is_the_one_that_was_committed_first(
    app: AsyncAbsurd, drive: Driver, rows: Rows
) -> None:
    ran: list[str] = []
    spawned = await deployed(app, drive, ["zebra", "ape", "bee"], ["cow", "zebra", "ape", "bee"], ran)
    assert 'expected "zebra" and 3 more, found "cow"' in (await refused(drive, rows, spawned))["message"]


async def test_a_step_that_was_renamed_is_refused(app: AsyncAbsurd, drive: Driver, rows: Rows) -> None:
    ran: list[str] = []
    spawned = await deployed(app, drive, ["pack"], ["wrap"], ran)
    assert (await refused(drive, rows, spawned))["found"] == "wrap"
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


def walk_of(app: AsyncAbsurd, ran: list[str], *names: str) -> None:
    """A task of these steps, of which "wait" awaits an event and "timed" one that does not come."""

    @app.register_task("walk", default_max_attempts=1)
    async def walk(params: Any, ctx: Any) -> str:
        for name in names:
            if name == "wait":
                await ctx.await_event("go", "wait")
            elif name == "timed":
                with contextlib.suppress(TimeoutError):
                    await ctx.await_event("never", "timed", timeout=3600)
            else:
                await ctx.step(name, functools.partial(ran.append, name))
        return "done"


async def time_passes(app: AsyncAbsurd, conn: Connection, spawned: Any) -> None:
    """The wait that the task sleeps in runs out."""
    conn.execute("update absurd.waits set timeout_at = absurd.current_time() where task_id = %s", (spawned["task_id"],))
    conn.execute("update absurd.live set due_at = absurd.current_time() where task_id = %s", (spawned["task_id"],))
    conn.execute("select absurd.wake('main')")


async def test_a_new_step_before_a_wait_that_timed_out_is_refused(
    app: AsyncAbsurd, drive: Driver, rows: Rows, conn: Connection
) -> None:
    ran: list[str] = []
    walk_of(app, ran, "pack", "timed", "wait")
    spawned = await app.spawn("walk", {})
    await drive.rest(spawned)
    ran.clear()
    walk_of(app, ran, "pack", "insure", "timed", "wait")
    await time_passes(app, conn, spawned)
    told = await refused(drive, rows, spawned)
    assert (told["expected"], told["found"]) == (["timed"], "insure")
    assert ran == []


@pytest.mark.parametrize("after", [("pack", "timed", "ship"), ("timed", "pack", "ship"), ("pack", "ship")])
async def test_a_task_that_goes_on_after_a_wait_that_timed_out_is_not_refused(
    app: AsyncAbsurd, drive: Driver, conn: Connection, after: tuple[str, ...]
) -> None:
    """Nor one whose new code asks for that wait earlier, or no more."""
    ran: list[str] = []
    walk_of(app, ran, "pack", "timed", "ship", "wait")
    spawned = await app.spawn("walk", {})
    await drive.rest(spawned)
    await time_passes(app, conn, spawned)
    await drive.rest(spawned, 2)
    ran.clear()
    walk_of(app, ran, *after, "wait", "thank")
    await app.emit_event("go")
    assert await drive.result(spawned) == "done"
    assert ran == ["thank"]


async def test_the_recorded_order_is_that_of_the_commits_timeouts_among_them(
    app: AsyncAbsurd, drive: Driver, conn: Connection
) -> None:
    """Also where a clock that stands gives all of them one moment."""
    walk_of(app, [], "zebra", "timed", "ape", "wait")
    spawned = await app.spawn("walk", {})
    await drive.rest(spawned)
    await time_passes(app, conn, spawned)
    await drive.rest(spawned, 2)
    for _ in range(2):
        history = await app.fetch_history(spawned["task_id"])
        assert history is not None
        assert (history.steps, history.step_attempts) == (["zebra", "timed", "ape"], [1, 1, 1])
        assert (sorted(history.checkpoints), history.timeouts) == (["ape", "zebra"], ["timed"])
        assert (await app.check_replay(history)).step == "wait"
        for name in history.steps:
            conn.execute("update absurd.checkpoints set updated_at = 'epoch' where name = %s", (name,))


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (("notify", "reserve", "charge-card"), ["charge", "wait"]),
        (("wait", "reserve", "charge-card", "notify"), ["charge", "notify"]),
    ],
)
async def test_a_step_that_moved_up_hides_none_that_was_renamed(
    app: AsyncAbsurd, drive: Driver, rows: Rows, after: tuple[str, ...], expected: list[str]
) -> None:
    ran: list[str] = []
    walk_of(app, ran, "reserve", "charge", "notify", "wait")
    spawned = await app.spawn("walk", {})
    await drive.rest(spawned)
    ran.clear()
    walk_of(app, ran, *after)
    await app.emit_event("go")
    history = await app.fetch_history(spawned["task_id"])
    assert history is not None
    assert f'expected "{expected[0]}"' in (await app.check_replay(history)).why
    told = await refused(drive, rows, spawned)
    assert (told["expected"], told["found"]) == (expected, "charge-card")
    assert ran == []


async def test_steps_side_by_side_say_nothing_of_the_order(app: AsyncAbsurd, drive: Driver) -> None:
    """They are recorded in the order in which they end: what was left out between others was so on purpose."""

    def release(before: tuple[str, ...], abreast: tuple[str, ...], later: tuple[str, ...]) -> None:
        @app.register_task("mixed", default_max_attempts=1)
        async def mixed(params: Any, ctx: Any) -> str:
            for name in before:
                await ctx.step(name, lambda: 1)
            await ctx.gather(dict.fromkeys(abreast, lambda: 1), limit=1)
            await ctx.await_event("go")
            for name in later:
                await ctx.step(name, lambda: 1)
            return "done"

    release(("legacy", "pack"), ("left", "right"), ())
    spawned = await app.spawn("mixed", {})
    await drive.rest(spawned)
    release(("pack",), ("right", "left"), ("ship",))
    await app.emit_event("go")
    assert await drive.result(spawned) == "done"


async def test_a_task_may_opt_out(app: AsyncAbsurd, drive: Driver) -> None:
    ran: list[str] = []
    spawned = await deployed(app, drive, ["pack", "ship"], ["insure", "pack", "ship"], ran, strict_replay=False)
    assert await drive.result(spawned) == "done"
    assert ran == ["insure"]


async def test_a_sleep_a_wait_a_spawn_and_a_transaction_are_refused_like_steps(
    app: AsyncAbsurd, drive: Driver, rows: Rows
) -> None:
    asked: list[Any] = [
        lambda ctx: ctx.sleep_for("nap", 1),
        lambda ctx: ctx.await_event("other"),
        lambda ctx: ctx.spawn("walk", {}),
        lambda ctx: ctx.run_transaction("pay", lambda tx: None),
        lambda ctx: ctx.gather({"left": lambda: 1, "right": lambda: 2}),
        lambda ctx: ctx.begin_step("open"),
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
        assert (await refused(drive, rows, spawned))["expected"][0] == "pack"


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


async def test_an_attempt_may_take_another_way_than_the_one_before(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("anew", default_max_attempts=2, default_retry_strategy={"kind": "none"})
    async def anew(params: Any, ctx: Any) -> Any:
        await ctx.step(f"lock for attempt {ctx.attempt}", lambda: 1)
        if ctx.attempt == 1:
            raise OSError("once more")
        return ctx.attempt

    assert await drive.result(await app.spawn("anew", {})) == 2


async def test_steps_inside_steps_have_no_order(app: AsyncAbsurd, drive: Driver) -> None:
    broken = [True]

    @app.register_task("nested", default_max_attempts=1)
    async def nested(params: Any, ctx: Any) -> Any:
        async def outer() -> Any:
            value = await ctx.step("inner", lambda: 1)
            if broken:
                broken.clear()
                raise OSError("after the inner one")
            return value

        with contextlib.suppress(OSError):
            await ctx.step("outer", outer)
        return await ctx.await_event("go")

    spawned = await app.spawn("nested", {})
    await drive.rest(spawned)
    await app.emit_event("go", "done")
    assert await drive.result(spawned) == "done"


async def test_children_side_by_side_can_be_waited_for(app: AsyncAbsurd, drive: Driver) -> None:
    @app.register_task("child")
    async def child(params: Any, ctx: Any) -> Any:
        return params * 2

    @app.register_task("parent", default_max_attempts=1)
    async def parent(params: Any, ctx: Any) -> Any:
        async def one(number: int) -> Any:
            spawned = await ctx.spawn("child", number, step_name=f"spawn {number}")
            return (await ctx.await_task_result(spawned["task_id"], step_name=f"wait {number}")).result

        return await ctx.map("double", one, [1, 2])

    assert await drive.result(await app.spawn("parent", {})) == [2, 4]


class Meeting:
    """Lets the first two writes of a run go on once both have begun; `begun` are the names of all."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._meet = _compat.barrier(2)
        self.begun: list[str] = []

    async def write(self, row: Any) -> Any:
        self.begun.append(row.name)
        if len(self.begun) <= 2:
            await self._meet(row)
        return await self._writer.write(row)


async def test_nothing_is_recorded_while_the_mark_is_on_its_way(app: AsyncAbsurd, drive: Driver) -> None:
    """Or an attempt that ends just then leaves a record that looks like an order."""
    seen: list[Meeting] = []

    @app.register_task("abreast", default_max_attempts=1)
    async def abreast(params: Any, ctx: Any) -> Any:
        ctx._writer = Meeting(ctx._writer)
        seen.append(ctx._writer)

        async def one(number: int) -> Any:
            return await ctx.step(f"inner {number}", lambda: number)

        return await ctx.map("outer", one, [1, 2])

    assert await drive.result(await app.spawn("abreast", {})) == [1, 2]
    assert seen[0].begun[:2] == ["$unordered", "$unordered"]


async def test_tasks_that_began_before_there_were_marks_are_not_judged(
    app: AsyncAbsurd, drive: Driver, conn: Connection
) -> None:
    """What an earlier release recorded of them does not tell which step failed and was caught."""
    ran: list[str] = []
    register(app, ["fallback"], ran)
    spawned = await app.spawn("walk", {})
    await drive.rest(spawned)
    conn.execute(
        "update absurd.tasks set enqueue_at = enqueue_at - interval '1 year' where task_id = %s", (spawned["task_id"],)
    )
    register(app, ["first", "fallback"], ran)
    await app.emit_event("go", "done")
    assert await drive.result(spawned) == "done"


async def test_a_record_with_a_gap_is_marked_once_and_only_then(app: AsyncAbsurd, drive: Driver, rows: Rows) -> None:
    @app.register_task("marked", default_max_attempts=1)
    async def marked(params: Any, ctx: Any) -> None:
        def fail() -> None:
            raise OSError("down")

        await ctx.step("before", lambda: 1)
        for number in range(params):
            with contextlib.suppress(OSError):
                await ctx.step(f"failing {number}", fail)
            await ctx.step(f"after {number}", lambda: 1)

    plain, gaps = await app.spawn("marked", 0), await app.spawn("marked", 2)
    await drive.result(plain)
    await drive.result(gaps)
    query = "select count(*) from absurd.checkpoints where task_id = %s and name like '$%%'"
    assert (rows(query, plain["task_id"]), rows(query, gaps["task_id"])) == ([0], [1])


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
