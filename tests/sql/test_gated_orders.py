"""Cycles that the lock order rules out, each tried with the interleaving that would close it (docs/lock-order.md)."""

from __future__ import annotations

from typing import Any

from tests.fixtures.clock import Clock
from tests.fixtures.gates import Gate, Running
from tests.fixtures.postgres import Connect
from tests.sql.driver import Queue


def _without_waiting(call: Running[Any]) -> Any:
    """What the call returns; it must not wait for anybody on the way."""
    while not call.done:
        assert call.blockers() == [], "it waits for another transaction"
    return call.result()


def test_two_tasks_that_wait_for_each_other_can_be_cancelled_at_once(q: Queue, connect: Connect, gate: Gate) -> None:
    """Whoever locks the task first and its waiter second holds what the other wants: a deadlock, not a wait."""
    one, two = q.hold(2)
    q.awaits_tasks([one, two], ["s", "s"], [(q.id, two.task_id), (q.id, one.task_id)])
    first, second = sorted((one.task_id, two.task_id))
    user = connect(autocommit=False)
    user.execute("select 1 from absurd.live where task_id = %s for update", (first,))
    calls = [gate(lambda c, t=t: q.on(c).cancel(t)).wait_until_blocked() for t in (first, second)]  # type: ignore[misc]

    user.rollback()

    for call in calls:
        call.result()
    assert [q.states(task_id)[0] for task_id in (first, second)] == ["cancelled", "cancelled"]


def test_a_cleanup_steps_around_an_event_that_an_open_transaction_emits_anew(
    q: Queue, connect: Connect, gate: Gate, clock: Clock
) -> None:
    """Cleanup goes by age, emits go by name: had cleanup to wait for the younger, it would hold the older meanwhile."""
    q.emit("b is older")
    clock.advance(q.conn, 1)
    q.emit("a is younger")
    emitter, cleaner = connect(autocommit=False), connect()
    for conn in (emitter, cleaner):
        clock.set(conn, clock.advance(q.conn, 60))
    assert q.on(emitter).emits([("a is younger", 2)], mode="next") == "o"

    cleaning = gate(lambda c: q.on(c).call("cleanup_events", 0)[0]["cleanup_events"], cleaner)
    assert _without_waiting(cleaning) == 1

    assert q.on(emitter).emits([("b is older", 2)], mode="next") == "o"
    emitter.commit()
    assert {row["event_name"]: row["payload"] for row in q.view("e")} == {"a is younger": 2, "b is older": 2}


def test_a_cleanup_steps_around_a_task_that_an_open_transaction_retries(
    q: Queue, connect: Connect, gate: Gate, clock: Clock
) -> None:
    run = q.start(max_attempts=1)
    q.fail(run["run_id"])
    retrier, cleaner = connect(autocommit=False), connect()
    clock.advance(cleaner, 60)
    q.on(retrier).retry(run["task_id"])

    cleaning = gate(lambda c: q.on(c).call("cleanup_tasks", 0)[0]["cleanup_tasks"], cleaner)
    assert _without_waiting(cleaning) == 0

    retrier.commit()
    assert q.states(run["task_id"]) == ("pending", ["failed", "pending"])


def test_an_emit_waits_for_an_array_of_waits_on_a_name_that_is_known(q: Queue, connect: Connect, gate: Gate) -> None:
    """Somebody waits for the name already, so the new wait inserts no row that would hold the emit up by itself."""
    earlier, late = q.hold(2)
    q.awaits([earlier], ["s"], ["paid"])
    awaiter = connect(autocommit=False)
    assert [row["status"] for row in q.on(awaiter).awaits([late], ["s"], ["paid"])] == ["s"]

    emitting = gate(lambda c: q.on(c).emit("paid", 7)).wait_until_blocked()
    assert emitting.blockers() == [awaiter.info.backend_pid]
    awaiter.commit()
    emitting.result()

    assert [q.checkpoints(run.task_id) for run in (earlier, late)] == [{"s": 7}, {"s": 7}]
    assert q.waits() == []
