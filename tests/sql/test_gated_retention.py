"""Cleanup, retry, cancel and purge against each other and against work that goes on."""

from __future__ import annotations

import uuid

import pytest

from tests.fixtures.clock import Clock
from tests.fixtures.gates import Gate
from tests.fixtures.postgres import Connect
from tests.sql.driver import Queue, refused


def _failed(q: Queue, clock: Clock, **options: object) -> uuid.UUID:
    """A task that failed a minute ago, by the clock of q's connection."""
    run = q.start(max_attempts=1, **options)
    q.fail(run["run_id"])
    clock.advance(q.conn, 60)
    task_id: uuid.UUID = run["task_id"]
    return task_id


def _names(q: Queue) -> list[str]:
    """The names of the queue's events, sentinels included."""
    query = "select event_name from absurd.events where queue_id = %s order by 1"
    return [row["event_name"] for row in q.rows(query, (q.id,))]


def test_one_of_two_retries_wins_and_the_other_is_told(q: Queue, connect: Connect, gate: Gate, clock: Clock) -> None:
    task_id = _failed(q, clock)
    first = connect(autocommit=False)
    assert q.on(first).retry(task_id)["attempt"] == 2

    second = gate(lambda c: q.on(c).retry(task_id)).wait_until_blocked()
    first.commit()

    with refused("P0001", "is not currently failed"):
        second.result()
    assert q.states(task_id) == ("pending", ["failed", "pending"])


def test_the_second_retry_wins_when_the_first_is_rolled_back(
    q: Queue, connect: Connect, gate: Gate, clock: Clock
) -> None:
    task_id = _failed(q, clock)
    first = connect(autocommit=False)
    q.on(first).retry(task_id)

    second = gate(lambda c: q.on(c).retry(task_id)).wait_until_blocked()
    first.rollback()

    assert second.result()["attempt"] == 2
    assert q.states(task_id) == ("pending", ["failed", "pending"])


def test_a_cleanup_passes_the_task_that_is_being_retried(q: Queue, connect: Connect, clock: Clock) -> None:
    kept, gone = _failed(q, clock), _failed(q, clock)
    retrier = connect(autocommit=False)
    q.on(retrier).retry(kept)

    assert q.call("cleanup_tasks", 0)[0]["cleanup_tasks"] == 1
    retrier.commit()

    assert q.states(kept) == ("pending", ["failed", "pending"])
    assert q.view("t", "task_id = %s", gone) == []


def test_a_retry_that_waits_for_a_cleanup_finds_nothing_to_retry(
    q: Queue, connect: Connect, gate: Gate, clock: Clock
) -> None:
    task_id = _failed(q, clock)
    cleaner = connect(autocommit=False)
    clock.advance(cleaner, 60)
    assert q.on(cleaner).call("cleanup_tasks", 0)[0]["cleanup_tasks"] == 1

    retrying = gate(lambda c: q.on(c).retry(task_id)).wait_until_blocked()
    cleaner.commit()

    with refused("P0001"):
        retrying.result()
    assert q.view("t") == q.view("r") == []


@pytest.mark.parametrize("commits", [True, False], ids=["retry commits", "retry rolls back"])
def test_retry_cleanup_and_cancel_of_one_task_by_three_sessions(
    q: Queue, connect: Connect, gate: Gate, clock: Clock, commits: bool
) -> None:
    task_id = _failed(q, clock)
    retrier = connect(autocommit=False)
    q.on(retrier).retry(task_id)

    # the failed task is all that others see: cancelling it is a no-op, cleaning it up must not wait
    gate(lambda c: q.on(c).cancel(task_id)).result()
    assert q.call("cleanup_tasks", 0)[0]["cleanup_tasks"] == 0
    rival = gate(lambda c: q.on(c).retry(task_id)).wait_until_blocked()
    if commits:
        retrier.commit()
        with refused("P0001"):
            rival.result()
    else:
        retrier.rollback()
        assert rival.result()["attempt"] == 2
    q.cancel(task_id)

    assert q.states(task_id) == ("cancelled", ["failed", "cancelled"])
    clock.advance(q.conn, 60)
    assert q.call("cleanup_tasks", 0)[0]["cleanup_tasks"] == 1
    assert q.view("r") == []


def test_two_cleanups_share_the_work_without_waiting(q: Queue, connect: Connect, clock: Clock) -> None:
    for _ in range(4):
        _failed(q, clock)
    first = connect(autocommit=False)
    clock.set(first, clock.now(q.conn))

    assert q.on(first).call("cleanup_tasks", 0, 2)[0]["cleanup_tasks"] == 2
    assert q.call("cleanup_tasks", 0)[0]["cleanup_tasks"] == 2
    first.commit()

    assert q.view("t") == []


def test_a_purge_leaves_what_an_open_transaction_holds_and_takes_it_the_next_time(
    q: Queue, connect: Connect, clock: Clock
) -> None:
    retried = _failed(q, clock)
    held, child, parent, free = q.hold(4)
    q.cancel(free.task_id)
    q.awaits_tasks([parent], ["s"], [(q.id, child.task_id)])
    asleep = q.start()
    q.await_event(asleep, "paid")
    user = connect(autocommit=False)
    for task_id in (held.task_id, parent.task_id, asleep["task_id"]):
        user.execute("select 1 from absurd.live where task_id = %s for update", (task_id,))
    q.on(user).retry(retried)
    q.conn.execute("set statement_timeout = '10s'")

    assert q.call("purge_queue")[0]["purge_queue"] == 1, "one of six is free: a child's end needs its parent"
    assert _names(q) == ["paid"], "somebody still waits for it"
    user.commit()
    assert q.states(retried) == ("pending", ["failed", "pending"])
    q.emit("paid")
    assert q.task(asleep["task_id"])["state"] == "pending"

    assert q.call("purge_queue")[0]["purge_queue"] == 5
    for prefix in "trcw":
        assert q.view(prefix) == []
    assert _names(q) == []


def test_a_retention_run_does_not_fail_because_a_queue_is_dropped_meanwhile(
    q: Queue, connect: Connect, gate: Gate, clock: Clock
) -> None:
    doomed, last = q.named("doomed"), q.named("z")
    for queue in (q, doomed, last):
        queue.policy(cleanup_ttl="1 second")
        _failed(queue, clock)
    # a lock on the table that cleanup writes last stops it in the first of the three queues, by name: "doomed"
    stopper, now = connect(autocommit=False), clock.now(q.conn)
    stopper.execute("lock table absurd.idempotency_keys in share mode")

    def clean(c):  # type: ignore[no-untyped-def]
        clock.set(c, now)
        return c.execute("select queue_name, tasks_deleted from absurd.cleanup_all_queues()").fetchall()

    cleaning = gate(clean).wait_until_blocked()
    connect().execute("select absurd.drop_queue('z')")
    stopper.commit()

    assert cleaning.result() == [("doomed", 1), ("q", 1), ("z", 1)]


def test_two_cleanups_of_events_look_at_each_sentinel_once_and_never_wait(q: Queue, connect: Connect) -> None:
    runs = [q.start() for _ in range(6)]
    for number, run in enumerate(runs):
        q.await_event(run, f"event-{number}")
    for run in runs[::2]:
        q.cancel(run["task_id"])
    first = connect(autocommit=False)
    q.on(first).call("cleanup_events", 0, 4)
    q.conn.execute("set statement_timeout = '10s'")

    q.call("cleanup_events", 0, 4)  # the round is the other's: nothing, at once
    first.commit()
    q.call("cleanup_events", 0, 4)

    assert _names(q) == ["event-1", "event-3", "event-5"]


def test_an_old_event_that_a_task_waits_for_anew_becomes_a_sentinel(q: Queue, connect: Connect, clock: Clock) -> None:
    q.emit("tick", 1)
    clock.advance(q.conn, 60)
    (claim,) = q.hold()
    awaiter = connect(autocommit=False)
    assert q.on(awaiter).awaits([claim], ["s"], ["tick"], since=[clock.now(q.conn)])[0]["status"] == "s"

    assert q.call("cleanup_events", 1)[0]["cleanup_events"] == 0, "its row is held while the wait is registered"
    awaiter.commit()
    assert q.call("cleanup_events", 1)[0]["cleanup_events"] == 1
    assert q.view("e") == []
    assert _names(q) == ["tick"]

    q.emit("tick", 2)
    assert q.checkpoints(claim.task_id) == {"s": 2}
