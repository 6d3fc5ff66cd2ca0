"""A crash at every commit: tasks that survive all of them, and tasks that do not and are caught."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

import pytest

from absurd import AsyncAbsurd, AsyncTaskContext, ConfigError, InvalidOption, NonRetryableError, TimeoutError
from absurd._async.batchwork import DirectWriter
from absurd._db.batch import Answer, Checkpoint
from absurd.testing import Effects, crash_everywhere
from absurd.testing._async.clock import FakeClock
from absurd.testing._async.session import session_of
from tests.fixtures.postgres import Connection
from tests.sdk._async import _compat

ROWS = "select entry, count(*) from ledger group by 1"


@pytest.fixture
def ledger(conn: Connection) -> Connection:
    """A table without any key: what a task writes twice is there twice."""
    conn.execute("create table ledger (entry text)")
    return conn


async def test_a_task_of_every_kind_of_commit_survives_a_crash_at_each(
    app: AsyncAbsurd, fake: FakeClock, effects: Effects, ledger: Connection
) -> None:
    @app.register_task("order")
    async def order(params: Any, ctx: AsyncTaskContext) -> Any:
        await ctx.step("charge", lambda: effects.note("charge"))
        await ctx.sleep_for("cool down", 3600)
        paid = await ctx.await_event(f"paid:{params['id']}")
        async with ctx.transaction("book") as tx:
            await tx.execute("insert into ledger values ('booked')")
            await tx.emit_event("booked")
            tx.result = "page 1"
        await ctx.emit_event("shipped", paid)
        await ctx.heartbeat()
        child = await ctx.spawn("invoice", {"paid": paid})
        invoice = await ctx.await_task_result(child["task_id"])
        return {"page": tx.result, "invoice": invoice.result, "run": str(ctx.run_id), "child": str(child["task_id"])}

    @app.register_task("invoice")
    async def invoice(params: Any, ctx: AsyncTaskContext) -> Any:
        return await ctx.step("write", lambda: params["paid"])

    def counts() -> dict[str, int]:
        return {**effects(), **dict(ledger.execute(ROWS).fetchall())}

    report = await crash_everywhere(app, "order", {"id": 7}, events={"paid:*": 9.5}, effects=counts)

    assert [str(boundary) for boundary in report.boundaries] == [
        'checkpoint "charge"',
        'sleep "cool down"',
        'wait "$awaitEvent:paid:7"',
        'transaction "book"',
        'emit "shipped"',
        "heartbeat",
        "spawn",
        'checkpoint "$spawn:invoice"',
        'wait "$awaitTaskResult:<id>"',
        'emit "shipped" (number 2)',
        "heartbeat (number 2)",
        "completion",
    ]
    assert report.runs == 2 + 3 * len(report.boundaries)
    assert (report.state, report.result["invoice"]) == ("completed", 9.5)
    assert await app.list_queues() == ["kit"]
    assert ledger.execute("select count(*) from absurd.tasks").fetchone() == (0,)


async def test_the_matrix_without_the_double_worker_is_two_runs_a_commit(app: AsyncAbsurd) -> None:
    @app.register_task("one")
    async def one(params: Any, ctx: AsyncTaskContext) -> Any:
        return await ctx.step("a", lambda: 1)

    report = await crash_everywhere(app, "one", double_worker=False)
    assert (len(report.boundaries), report.runs) == (2, 6)


async def test_branches_side_by_side_survive_and_are_named_by_their_step(app: AsyncAbsurd, effects: Effects) -> None:
    @app.register_task("fan")
    async def fan(params: Any, ctx: AsyncTaskContext) -> Any:
        def act(name: str) -> Any:
            return lambda: effects.note(name)

        await ctx.gather({name: act(name) for name in "abcd"}, limit=2)
        return await ctx.step("sum", lambda: effects.note("sum") or 4)

    report = await crash_everywhere(app, "fan", effects=effects)
    assert {str(each) for each in report.boundaries} == {
        *(f'checkpoint "{name}"' for name in ("a", "b", "c", "d", "sum")),
        "completion",
    }
    assert report.runs == 2 + 2 * 4 + 3 * 2  # a branch is not made to come late


async def test_a_wait_whose_event_is_not_given_runs_into_its_timeout_and_one_without_is_an_error(
    app: AsyncAbsurd,
) -> None:
    @app.register_task("patient")
    async def patient(params: Any, ctx: AsyncTaskContext) -> str:
        try:
            return str(await ctx.await_event("bell", timeout=params))
        except TimeoutError:
            return "nobody rang"

    assert (await crash_everywhere(app, "patient", 60)).result == "nobody rang"
    with pytest.raises(AssertionError, match='waits for the event "bell": give it'):
        await crash_everywhere(app, "patient", None)
    await app.purge_queue()
    assert (await crash_everywhere(app, "patient", None, events={"bell": "ding"})).result == "ding"


async def test_a_failure_must_be_the_same_failure(app: AsyncAbsurd) -> None:
    @app.register_task("doomed", default_retry_strategy={"kind": "none"})
    async def doomed(params: Any, ctx: AsyncTaskContext) -> None:
        await ctx.step("a", lambda: 1)
        raise ValueError("as always")

    assert (await crash_everywhere(app, "doomed", max_attempts=3)).state == "failed"


async def test_each_crash_is_one_and_what_it_repeats_is_what_a_crash_repeats(
    app: AsyncAbsurd, fake: FakeClock, effects: Effects
) -> None:
    @app.register_task("mail")
    async def mail(params: Any, ctx: AsyncTaskContext) -> None:
        await ctx.step("send", lambda: effects.note("sent"))

    ends: list[int] = []
    starts = []

    def reset() -> None:
        ends.append(effects["sent"])
        starts.append(fake.now)

    await crash_everywhere(app, "mail", effects=effects, reset=reset)
    # twice undisturbed; the step: before, after, late; the end: the same
    assert [*ends[1:], effects["sent"]] == [1, 1, 2, 1, 2, 1, 1, 1]
    assert len(set(starts)) == 1
    assert fake.now > starts[0]


async def test_a_branch_may_repeat_its_effect_though_another_has_committed_since(
    app: AsyncAbsurd, effects: Effects, conn: Connection
) -> None:
    def first_is_kept() -> bool:
        witness: Any = session_of(app).witness
        question = "select from absurd.checkpoints where name = 'first'"
        return witness is None or witness.dead or conn.execute(question).rowcount > 0

    async def second() -> None:
        effects.note("second")
        await _compat.until(first_is_kept)

    @app.register_task("fan")
    async def fan(params: Any, ctx: AsyncTaskContext) -> None:
        await ctx.gather({"first": lambda: effects.note("first"), "second": second})

    await crash_everywhere(app, "fan", effects=effects)


async def test_what_is_written_inside_a_transaction_commits_with_it_and_not_by_itself(app: AsyncAbsurd) -> None:
    app.register_task("child")(_one_step)

    @app.register_task("outer")
    async def outer(params: Any, ctx: AsyncTaskContext) -> None:
        async with ctx.transaction("all of it") as tx:
            if not tx.done:
                await app.spawn("child")
                await ctx.step("a step", lambda: 1)
                async with ctx.transaction("a part"):
                    pass

    report = await crash_everywhere(app, "outer")
    assert [str(each) for each in report.boundaries] == ['transaction "all of it"', "completion"]


async def test_whoever_waits_again_for_an_event_is_given_it_again(app: AsyncAbsurd) -> None:
    @app.register_task("listener")
    async def listener(params: Any, ctx: AsyncTaskContext) -> Any:
        first = await ctx.await_event("tick", "one")
        return [first, await ctx.await_event("tick", "two", since="task_start")]

    assert (await crash_everywhere(app, "listener", events={"t*": 3})).result == [3, 3]


async def test_what_a_dead_worker_still_writes_does_not_arrive(app: AsyncAbsurd) -> None:
    """Whoever swallows the end of his run goes on: nothing of that is kept."""

    @app.register_task("stubborn")
    async def stubborn(params: Any, ctx: AsyncTaskContext) -> list[int]:
        kept = []
        for number in range(3):
            try:
                kept.append(await ctx.step(f"step {number}", lambda: ctx.attempt))
            except BaseException:
                if number == 2:
                    raise
        return kept

    results: list[list[int]] = []

    def length(result: list[int]) -> int:
        results.append(result)
        return len(result)

    await crash_everywhere(app, "stubborn", key=length, double_worker=False)
    assert len(results) == 2 + 2 * 4
    assert all(result == sorted(result) for result in results), results
    assert [1, 2, 2] in results


async def test_a_saga_that_fails_takes_each_step_back_wherever_it_was_crashed(
    app: AsyncAbsurd, effects: Effects
) -> None:
    @app.register_task("trip", saga=True)
    async def trip(params: Any, ctx: AsyncTaskContext) -> None:
        await ctx.step("hotel", lambda: effects.note("hotel"), undo="no hotel")
        await ctx.step("car", lambda: effects.note("car"), undo="no car")
        raise NonRetryableError("no flight")

    @app.register_task("no hotel")
    async def no_hotel(params: Any, ctx: AsyncTaskContext) -> None:
        effects.note("no hotel")

    @app.register_task("no car")
    async def no_car(params: Any, ctx: AsyncTaskContext) -> None:
        effects.note("no car")

    report = await crash_everywhere(app, "trip", effects=effects)
    assert report.state == "failed"
    assert effects() == {"hotel": 1, "car": 1, "no hotel": 1, "no car": 1}


# -- what must be caught -----------------------------------------------------------------------------------------------


async def test_an_effect_outside_a_step_is_caught(app: AsyncAbsurd, effects: Effects) -> None:
    @app.register_task("careless")
    async def careless(params: Any, ctx: AsyncTaskContext) -> None:
        effects.note("mail")
        await ctx.step("a", lambda: 1)

    with pytest.raises(AssertionError) as caught:
        await crash_everywhere(app, "careless", effects=effects)
    assert str(caught.value) == (
        'task "careless" does not survive a crash just after the commit of checkpoint "a":\n'
        '  - effect "mail" happened 2 times, not 1'
    )


async def test_an_effect_before_the_first_commit_may_come_again_and_that_is_all(
    app: AsyncAbsurd, effects: Effects
) -> None:
    @app.register_task("plain")
    async def plain(params: Any, ctx: AsyncTaskContext) -> None:
        await ctx.step("mail", lambda: effects.note("mail"))

    await crash_everywhere(app, "plain", effects=effects)


async def test_rows_written_beside_a_step_and_not_in_its_transaction_may_come_again_those_in_it_may_not(
    app: AsyncAbsurd, ledger: Connection
) -> None:
    @app.register_task("booking")
    async def booking(params: Any, ctx: AsyncTaskContext) -> None:
        await ctx.step("plain", lambda: ledger.execute("insert into ledger values ('plain')").rowcount)
        async with ctx.transaction("exact") as tx:
            await tx.execute("insert into ledger values ('exact')")

    @app.register_task("beside")
    async def beside(params: Any, ctx: AsyncTaskContext) -> None:
        async with ctx.transaction("exact") as tx:
            if not tx.done:  # on another connection: it does not commit with the step
                ledger.execute("insert into ledger values ('beside')")

    @app.register_task("unguarded")
    async def unguarded(params: Any, ctx: AsyncTaskContext) -> None:
        async with ctx.transaction("exact"):
            ledger.execute("insert into ledger values ('beside')")

    await crash_everywhere(app, "booking", effects=ROWS)
    await crash_everywhere(app, "beside", effects=ROWS)  # once more at most, like any plain step
    with pytest.raises(AssertionError, match='just after the commit of transaction "exact":\n  - effect "beside"'):
        await crash_everywhere(app, "unguarded", effects=ROWS)


async def test_a_result_that_differs_on_replay_is_caught(app: AsyncAbsurd) -> None:
    @app.register_task("forgetful")
    async def forgetful(params: Any, ctx: AsyncTaskContext) -> int:
        seen: list[int] = []
        await ctx.step("a", lambda: seen.append(1))
        return len(seen)

    with pytest.raises(AssertionError) as caught:
        await crash_everywhere(app, "forgetful")
    assert str(caught.value) == (
        'task "forgetful" does not survive a crash just after the commit of checkpoint "a":\n  - result is 0, not 1'
    )


async def test_a_result_that_differs_without_any_crash_is_told_apart_and_can_be_left_out(app: AsyncAbsurd) -> None:
    @app.register_task("random")
    async def random(params: Any, ctx: AsyncTaskContext) -> Any:
        return {"token": await ctx.step("token", lambda: str(uuid.uuid4())), "status": "ok"}

    with pytest.raises(AssertionError, match="two undisturbed runs differ:\n  - result is"):
        await crash_everywhere(app, "random")
    await app.purge_queue()
    await crash_everywhere(app, "random", key=lambda result: result["status"])


async def test_a_task_that_takes_another_way_each_time_is_caught(app: AsyncAbsurd) -> None:
    numbers = itertools.count()

    @app.register_task("wanderer")
    async def wanderer(params: Any, ctx: AsyncTaskContext) -> None:
        await ctx.step(f"way {next(numbers)}", lambda: 1)

    with pytest.raises(
        AssertionError,
        match='takes another way each time it runs: a crash just before the commit of checkpoint "way 0"',
    ):
        await crash_everywhere(app, "wanderer")


async def test_an_event_that_depends_on_the_attempt_is_caught(app: AsyncAbsurd) -> None:
    @app.register_task("shouter")
    async def shouter(params: Any, ctx: AsyncTaskContext) -> None:
        await ctx.emit_event(f"attempt {ctx.attempt}", ctx.attempt)

    with pytest.raises(AssertionError, match='event "attempt 2" was emitted, and is not in the undisturbed run'):
        await crash_everywhere(app, "shouter")


async def test_a_payload_that_depends_on_the_attempt_is_caught(app: AsyncAbsurd) -> None:
    @app.register_task("teller")
    async def teller(params: Any, ctx: AsyncTaskContext) -> None:
        await ctx.emit_event("told", ctx.attempt, mode="next")

    with pytest.raises(AssertionError, match='event "told" carries 2, not 1'):
        await crash_everywhere(app, "teller")


async def test_a_task_with_one_attempt_does_not_survive_a_crash_and_is_told_why(app: AsyncAbsurd) -> None:
    app.register_task("single", default_max_attempts=1)(_one_step)
    with pytest.raises(AssertionError, match=r"state is failed, not completed: \$ClaimTimeout .* raise max_attempts"):
        await crash_everywhere(app, "single")
    await app.purge_queue()
    await crash_everywhere(app, "single", max_attempts=2)


async def test_a_task_spawned_outside_a_step_is_an_effect_that_comes_again(app: AsyncAbsurd) -> None:
    app.register_task("child")(_one_step)

    @app.register_task("breeder")
    async def breeder(params: Any, ctx: AsyncTaskContext) -> None:
        await app.spawn("child")
        await ctx.step("a", lambda: 1)

    with pytest.raises(AssertionError, match='just after the commit of spawn:\n  - effect "spawn of child" happened 2'):
        await crash_everywhere(app, "breeder")


async def test_effects_after_a_worker_was_told_that_its_run_is_lost_are_caught(
    app: AsyncAbsurd, effects: Effects
) -> None:
    @app.register_task("deaf")
    async def deaf(params: Any, ctx: AsyncTaskContext) -> None:
        try:
            await ctx.step("a", lambda: 1)
        except BaseException:
            effects.note("goes on")
            effects.note("goes on")
            raise

    with pytest.raises(AssertionError, match=r'another worker taking over .* "a":\n  - effect "goes on" happened 2'):
        await crash_everywhere(app, "deaf", effects=effects)


# -- the kit itself: what it says must be so ---------------------------------------------------------------------------


async def test_a_write_of_a_late_worker_that_the_engine_takes_is_caught(
    app: AsyncAbsurd, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.register_task("one")(_one_step)

    async def accepting(self: Any, row: Any) -> Any:
        answer = await write(self, row)
        return answer._replace(letter="o")

    write = DirectWriter.write
    monkeypatch.setattr(DirectWriter, "write", accepting)
    with pytest.raises(AssertionError, match='checkpoint "a" of a worker was accepted after another had taken'):
        await crash_everywhere(app, "one")


async def test_a_checkpoint_that_is_not_kept_is_noticed(
    app: AsyncAbsurd, effects: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.register_task("pay")
    async def pay(params: Any, ctx: AsyncTaskContext) -> None:
        await ctx.step("charge", lambda: effects.note("charge"))
        await ctx.step("ship", lambda: effects.note("ship"))

    write = DirectWriter.write

    async def losing(self: Any, row: Any) -> Any:
        return Answer("o") if isinstance(row, Checkpoint) and row.name == "charge" else await write(self, row)

    monkeypatch.setattr(DirectWriter, "write", losing)
    with pytest.raises(AssertionError, match='just after the commit of checkpoint "charge":\n  - effect "charge"'):
        await crash_everywhere(app, "pay", effects=effects)


async def test_what_the_kit_cannot_do_is_refused_before_anything_runs(app: AsyncAbsurd, database_url: str) -> None:
    with pytest.raises(ConfigError, match="not registered"):
        await crash_everywhere(app, "unknown")
    app.register_task("one")(_one_step)
    with pytest.raises(InvalidOption, match="claim_timeout must be > 0"):
        await crash_everywhere(app, "one", claim_timeout=0)
    await app.emit_event("left over")
    with pytest.raises(ConfigError, match='queue "kit" holds tasks or events'):
        await crash_everywhere(app, "one")
    async with AsyncAbsurd(database_url, "kit") as plain:
        plain.register_task("one")(_one_step)
        with pytest.raises(ConfigError, match=r"testing\.client"):
            await crash_everywhere(plain, "one")


async def test_the_world_is_put_back_before_each_run_and_hooks_are_kept(app: AsyncAbsurd, ledger: Connection) -> None:
    ledger.execute("alter table ledger add primary key (entry)")
    wrapped = []

    @app.register_task("booking")
    async def booking(params: Any, ctx: AsyncTaskContext) -> None:
        async with ctx.transaction("exact") as tx:
            await tx.execute("insert into ledger values ('exact')")

    def wrap(ctx: Any, execute: Any) -> Any:
        wrapped.append(ctx.attempt)
        return execute()

    app._hooks = {"wrap_task_execution": wrap}
    resets: list[Any] = []
    report = await crash_everywhere(
        app, "booking", reset=lambda: resets.append(ledger.execute("delete from ledger")), effects=ROWS
    )
    assert len(resets) == report.runs
    assert set(wrapped) == {1, 2}
    assert session_of(app).witness is None


async def _one_step(params: Any, ctx: AsyncTaskContext) -> Any:
    return await ctx.step("a", lambda: 1)
