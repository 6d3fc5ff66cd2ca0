"""Retention: cleanup, housekeeping, purging (contract, section 10)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from tests.fixtures.clock import Clock
from tests.fixtures.gates import Gate
from tests.fixtures.postgres import Connect
from tests.sql.driver import NOON, Queue, Row, after, refused, run_of


def cleanup(q: Queue, what: str, *args: Any) -> int:
    (row,) = q.call(f"cleanup_{what}", *args)
    return int(row[f"cleanup_{what}"])


def ended(q: Queue, how: str) -> Row:
    run = q.start(max_attempts=1)
    if how == "completed":
        q.complete(run["run_id"])
    elif how == "failed":
        q.fail(run["run_id"])
    else:
        q.cancel(run["task_id"])
    return run


def names(q: Queue) -> set[str]:
    return {e["event_name"] for e in q.view("e")}


# ---------------------------------------------------------------- tasks


@pytest.mark.parametrize("how", ["completed", "failed", "cancelled"])
def test_a_task_goes_when_it_ended_longer_ago_than_the_ttl(noon: Queue, clock: Clock, how: str) -> None:
    clock.set(noon.conn, after(-5000))
    spawned = noon.spawn(max_attempts=1)
    noon.claim(timeout=86400)
    clock.set(noon.conn, NOON)
    if how == "completed":
        noon.complete(spawned["run_id"])
    elif how == "failed":
        noon.fail(spawned["run_id"])
    else:
        noon.cancel(spawned["task_id"])
    clock.set(noon.conn, after(100))
    assert cleanup(noon, "tasks", 100) == 0
    clock.set(noon.conn, after(100.000001))
    assert cleanup(noon, "tasks", 100) == 1
    assert cleanup(noon, "tasks", 100) == 0
    assert noon.view("t") == noon.view("r") == []


def test_all_that_hangs_on_a_task_goes_with_it(noon: Queue, clock: Clock) -> None:
    run = noon.start(max_attempts=2, idempotency_key="k")
    noon.checkpoint(run, "a", 1)
    noon.await_event(run, "e", "w", 1)
    clock.set(noon.conn, after(1))
    noon.claim()
    noon.fail(run["run_id"])
    noon.claim()
    noon.complete(run_of(run["task_id"], 2))
    kept = noon.start()
    noon.checkpoint(kept, "b", 2)
    clock.set(noon.conn, after(10))

    assert cleanup(noon, "tasks", 0) == 1
    assert [t["task_id"] for t in noon.view("t")] == [kept["task_id"]]
    assert [r["task_id"] for r in noon.view("r")] == [kept["task_id"]]
    assert noon.rows("select name from absurd.checkpoints") == [{"name": "b"}]
    assert noon.rows("select * from absurd.idempotency_keys") == []


def test_cleanup_frees_the_idempotency_key(noon: Queue, clock: Clock) -> None:
    run = noon.start(idempotency_key="k")
    noon.complete(run["run_id"])
    clock.set(noon.conn, after(1))
    assert not noon.spawn(idempotency_key="k")["created"]
    cleanup(noon, "tasks", 0)
    assert noon.spawn(idempotency_key="k")["created"]


def test_unfinished_tasks_stay_however_old_they_are(noon: Queue, clock: Clock) -> None:
    noon.start()
    noon.await_event(noon.start(), "e")
    noon.fail(noon.start()["run_id"])
    noon.spawn()
    clock.set(noon.conn, after(1e8))
    assert cleanup(noon, "tasks", 0) == 0
    assert len(noon.view("t")) == 4


def test_the_oldest_tasks_go_first_and_no_more_than_asked(noon: Queue, clock: Clock) -> None:
    runs = []
    for i in range(5):
        clock.set(noon.conn, after(i))
        runs.append(ended(noon, ["completed", "failed", "cancelled"][i % 3]))
    clock.set(noon.conn, after(100))
    assert cleanup(noon, "tasks", 0, 2) == 2
    assert {t["task_id"] for t in noon.view("t")} == {r["task_id"] for r in runs[2:]}
    assert cleanup(noon, "tasks", 0, 0) == 0
    assert cleanup(noon, "tasks", 0, None) == 3


def test_cleanup_keeps_to_its_queue(noon: Queue, clock: Clock) -> None:
    other = noon.named("other")
    ended(other, "completed")
    other.emit("e")
    clock.set(noon.conn, after(10))
    assert (cleanup(noon, "tasks", 0), cleanup(noon, "events", 0)) == (0, 0)
    assert (cleanup(other, "tasks", 0), cleanup(other, "events", 0)) == (1, 1)


@pytest.mark.parametrize("what", ["tasks", "events"])
@pytest.mark.parametrize("ttl", [None, -1])
def test_a_ttl_is_not_negative(q: Queue, what: str, ttl: int | None) -> None:
    with refused("P0001", "TTL must be a non-negative number of seconds"):
        cleanup(q, what, ttl)


def test_two_cleanups_at_once_share_the_work(noon: Queue, clock: Clock, connect: Connect) -> None:
    for _ in range(3):
        ended(noon, "completed")
        noon.emit(f"e{len(names(noon))}")
    clock.set(noon.conn, after(10))
    first = noon.on(connect(autocommit=False))
    clock.set(first.conn, after(10))
    assert (cleanup(first, "tasks", 0, 2), cleanup(first, "events", 0, 2)) == (2, 2)
    assert (cleanup(noon, "tasks", 0), cleanup(noon, "events", 0)) == (1, 1)
    first.conn.commit()
    assert noon.view("t") == noon.view("e") == []


# ---------------------------------------------------------------- events


def test_an_event_goes_when_it_was_emitted_longer_ago_than_the_ttl(noon: Queue, clock: Clock) -> None:
    noon.emit("e")
    clock.set(noon.conn, after(100))
    assert cleanup(noon, "events", 100) == 0
    clock.set(noon.conn, after(100.000001))
    assert cleanup(noon, "events", 100) == 1
    assert cleanup(noon, "events", 100) == 0
    assert noon.view("e") == []


def test_the_oldest_events_go_first_and_no_more_than_asked(noon: Queue, clock: Clock) -> None:
    for i in range(5):
        clock.set(noon.conn, after(i))
        noon.emit(f"e{i}")
    clock.set(noon.conn, after(100))
    assert cleanup(noon, "events", 0, 2) == 2
    assert names(noon) == {"e2", "e3", "e4"}
    assert cleanup(noon, "events", 0, 0) == 0
    assert cleanup(noon, "events", 0, None) == 3


def test_a_name_can_be_emitted_again_after_its_cleanup(noon: Queue, clock: Clock) -> None:
    noon.emit("e", 1)
    clock.set(noon.conn, after(1))
    cleanup(noon, "events", 0)
    run = noon.start()
    assert noon.await_event(run, "e") == (True, None)
    noon.emit("e", 2)
    assert noon.claim()[0]["event_payload"] == 2


def test_the_row_somebody_waits_on_is_neither_deleted_nor_counted(noon: Queue, clock: Clock) -> None:
    """W7."""
    run = noon.start()
    noon.await_event(run, "e")
    noon.emit("old")
    clock.set(noon.conn, after(86400 * 365))
    assert cleanup(noon, "events", 0, 1) == 1
    assert cleanup(noon, "events", 0) == 0
    assert noon.rows("select event_name from absurd.events") == [{"event_name": "e"}]
    assert noon.violations() == []
    noon.emit("e", 1)
    assert noon.claim()[0]["event_payload"] == 1


def test_the_row_nobody_waits_on_any_more_goes_without_being_counted(noon: Queue) -> None:
    """W7."""
    run = noon.start()
    noon.await_event(run, "e")
    noon.cancel(run["task_id"])
    sentinels = "select event_name from absurd.events where emitted_at is null"
    assert noon.rows(sentinels) == [{"event_name": "e"}]
    assert noon.view("e") == []
    assert cleanup(noon, "events", 86400) == 0
    assert noon.rows(sentinels) == []


def test_a_cleanup_between_the_steps_of_an_await_loses_no_wake_up(
    q: Queue, connect: Connect, gate: Gate, clock: Clock
) -> None:
    """W6: the sentinel is there, the await is about to register, cleanup and an emit come in between."""
    first = q.start()
    q.await_event(first, "e")
    q.cancel(first["task_id"])
    run = q.start()
    holder = connect(autocommit=False)
    holder.execute("select 1 from absurd.live where task_id = %s for update", (run["task_id"],))
    waiting = gate(lambda c: q.on(c).await_event(run, "e")).wait_until_blocked()
    assert cleanup(q, "events", 0) == 0
    emitting = gate(lambda c: q.on(c).emit("e", 1)).wait_until_blocked()
    holder.rollback()
    assert waiting.result() == (True, None)
    emitting.result()
    assert q.claim()[0]["event_payload"] == 1


def test_an_await_that_finds_its_sentinel_cleaned_up_makes_another(q: Queue, connect: Connect, gate: Gate) -> None:
    """W6, the other way round: cleanup holds the sentinel when the await comes for it."""
    first = q.start()
    q.await_event(first, "e")
    q.cancel(first["task_id"])
    run = q.start()
    cleaning = q.on(connect(autocommit=False))
    cleanup(cleaning, "events", 0)
    waiting = gate(lambda c: q.on(c).await_event(run, "e")).wait_until_blocked()
    cleaning.conn.commit()
    assert waiting.result() == (True, None)
    q.emit("e", 1)
    assert q.claim()[0]["event_payload"] == 1


# ---------------------------------------------------------------- all queues


def test_all_queues_are_cleaned_by_their_policies_in_the_order_of_their_names(noon: Queue, clock: Clock) -> None:
    queues = [noon.named(name) for name in ("b", "a", "c")]
    for queue in queues:
        for i in range(3):
            ended(queue, "completed")
            queue.emit(f"e{i}")
    queues[0].policy(cleanup_ttl="1 hour", cleanup_limit=2)
    queues[1].policy(cleanup_ttl="3 hours")
    queues[2].policy(cleanup_ttl="1 hour")
    clock.set(noon.conn, after(7200))

    def rows(*args: Any) -> list[tuple[Any, ...]]:
        marks = ", ".join(["%s"] * len(args))
        return noon.conn.execute(f"select * from absurd.cleanup_all_queues({marks})", args).fetchall()  # type: ignore[arg-type, unused-ignore]

    assert rows() == [("a", 0, 0), ("b", 2, 2), ("c", 3, 3), ("q", 0, 0)]
    assert rows(None) == [("a", 0, 0), ("b", 1, 1), ("c", 0, 0), ("q", 0, 0)]
    clock.set(noon.conn, after(10801))
    assert rows("a") == [("a", 3, 3)]


def test_cleaning_an_unknown_queue_is_refused(conn) -> None:
    with refused("P0001", 'Queue "q" does not exist'):
        conn.execute("select * from absurd.cleanup_all_queues('q')")
    assert conn.execute("select * from absurd.cleanup_all_queues()").fetchall() == []


def test_housekeeping_spares_events_that_no_task_has_received(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    noon.await_event(run, "woke somebody")
    noon.emit("woke somebody")
    noon.emit("answered somebody")
    noon.emit("untaken")
    (run,) = noon.claim(timeout=86400)
    noon.await_event(run, "answered somebody", "two")
    noon.complete(run["run_id"])
    noon.policy(cleanup_ttl="1 hour")
    clock.set(noon.conn, after(3601))
    question = "select * from absurd.housekeep(array[absurd.queue_id_of('q'), -1])"
    assert noon.rows(question) == [{"queue_name": "q", "tasks_deleted": 1, "events_deleted": 2}]
    assert noon.rows(question) == [{"queue_name": "q", "tasks_deleted": 0, "events_deleted": 0}]
    assert names(noon) == {"untaken"}
    assert cleanup(noon, "events", 0) == 1


def test_a_run_that_is_over_takes_no_event(noon: Queue, clock: Clock) -> None:
    """Or housekeeping takes it away before the next attempt, which then waits for ever."""
    (over,) = noon.hold(1)
    noon.emit("go")
    noon.fail(over.run_id, retry_at=after(7200))
    answers = noon.awaits([over, (uuid4(), 1)], ["s", "s"], ["go", "go"])
    assert [row["payload"] for row in answers] == [None, None]
    noon.policy(cleanup_ttl="1 hour")
    clock.set(noon.conn, after(7201))
    assert noon.rows("select * from absurd.housekeep(array[%s])", (noon.id,))[0]["events_deleted"] == 0
    (again,) = noon.claim()
    noon.await_event(again, "go")
    assert noon.view("c")


def test_a_name_emitted_again_is_untaken_again(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    noon.emits([("e", 1)])
    noon.await_event(run, "e")
    noon.emits([("e", 2)], "next")
    noon.policy(cleanup_ttl="1 hour")
    clock.set(noon.conn, after(3601))
    noon.rows("select * from absurd.housekeep(array[%s])", (noon.id,))
    assert names(noon) == {"e"}
    noon.complete(run["run_id"])


# ---------------------------------------------------------------- purge


def test_purging_empties_a_queue_and_keeps_it(q: Queue) -> None:
    q.policy(cleanup_limit=7)
    q.spawn(idempotency_key="k")
    q.await_event(q.claim()[0], "e")
    q.complete(q.start()["run_id"])
    q.emit("f")
    other = q.named("other")
    kept = other.spawn()
    assert q.call("purge_queue") == [{"purge_queue": 2}]
    assert [q.view(prefix) for prefix in "trcew"] == [[], [], [], [], []]
    assert q.spawn(idempotency_key="k")["created"]
    assert q.call("get_queue_policy")[0]["cleanup_limit"] == 7
    assert other.task(kept["task_id"])["state"] == "pending"


def test_purging_leaves_what_somebody_holds_for_the_next_call(q: Queue, connect: Connect) -> None:
    held, gone = q.start(), q.start()
    holder = connect(autocommit=False)
    holder.execute("select 1 from absurd.live where task_id = %s for update", (held["task_id"],))
    assert q.call("purge_queue") == [{"purge_queue": 1}]
    assert [t["task_id"] for t in q.view("t")] == [held["task_id"]] != [gone["task_id"]]
    holder.rollback()
    assert q.call("purge_queue") == [{"purge_queue": 1}]


def test_the_rows_of_a_dropped_queue_go_with_the_next_cleanups_and_the_tombstone_later(q: Queue) -> None:
    q.start()
    q.spawn(idempotency_key="k")
    q.emit("e")
    old = q.id
    q.call("drop_queue")
    tables = ("tasks", "live", "attempts", "events")

    def left() -> dict[str, int]:
        return {t: q.value(f"select count(*) from absurd.{t} where queue_id = %s", (old,)) for t in tables}

    assert left()["tasks"] == 2
    q.rows("select * from absurd.cleanup_all_queues()")
    assert left() == dict.fromkeys(tables, 0)
    assert q.rows("select queue_name from absurd.dropped_queues") == [{"queue_name": "q"}]
    q.conn.execute("update absurd.dropped_queues set dropped_at = dropped_at - %s", (timedelta(minutes=11),))
    assert q.rows("select absurd.purge_dropped_queues(10) as n") == [{"n": 0}]
    assert q.rows("select * from absurd.dropped_queues") == []
    assert q.value("select count(*) from absurd.idempotency_keys") == 0
