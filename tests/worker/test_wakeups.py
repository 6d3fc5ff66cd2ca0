"""An idle worker hears of every task. The fallback poll is set to 1,000 s, so only the protocol can wake it."""

from __future__ import annotations

import psycopg
import pytest

from tests.fixtures.postgres import Connect
from tests.fixtures.proxy import Proxy
from tests.worker.conftest import Queue, Start

ONLY_PROTOCOL = {"claimer.IDLE_POLL": 1000, "claimer.RESOLVE_EVERY": 1000}


def test_a_spawn_wakes_an_idle_worker(q: Queue, start: Start) -> None:
    worker = start(patch=ONLY_PROTOCOL).ready()
    for number in range(20):
        mark = worker.mark
        q.spawn(["say", f"task {number}"])
        worker.wait(after=mark, said=f"task {number}")
        worker.wait(after=mark, signal="worker.idle")


def test_a_task_whose_transaction_was_open_before_the_worker_went_idle_is_heard_of(
    q: Queue, start: Start, connect: Connect
) -> None:
    with connect(autocommit=False) as spawner:
        q.spawn(["say", "ran"], conn=spawner)  # looked for idle workers: there are none yet
        worker = start(patch=ONLY_PROTOCOL).started()
        wait_registered(q, worker)
        assert not worker.said(signal="worker.idle"), "it must not sleep while that transaction is open"
        spawner.commit()
    worker.wait(said="ran")


def test_a_spawner_that_looked_while_the_registration_was_committing_is_waited_for(
    q: Queue, start: Start, connect: Connect
) -> None:
    """Its transaction id is the newest of all, so no snapshot's xmax lies above it."""
    q.conn.execute(
        """create function public.wait_at_commit() returns trigger language plpgsql as $$
           begin perform pg_advisory_xact_lock(1); return null; end $$;
           create constraint trigger wait_at_commit after insert on absurd.idle deferrable initially deferred
             for each row execute function public.wait_at_commit()"""
    )
    with connect(autocommit=False) as spawner, connect() as holder:
        holder.execute("select pg_advisory_lock(1)")
        worker = start(patch=ONLY_PROTOCOL).started()
        worker.wait_until(lambda: _waits_for_advisory_lock(q), "its registration")
        q.spawn(["say", "ran"], conn=spawner)  # sees no idle row yet
        holder.execute("select pg_advisory_unlock(1)")
        wait_registered(q, worker)
        q.conn.execute("select 1 from absurd.idle")
        worker.wait_until(lambda: _claims_after_registration(q), "a claim after it")
        assert not worker.said(signal="worker.idle"), "it must not sleep while that transaction is open"
        spawner.commit()
    worker.wait(said="ran")


def _waits_for_advisory_lock(q: Queue) -> bool:
    return q.conn.execute("select 1 from pg_locks where locktype = 'advisory' and not granted").fetchone() is not None


def _claims_after_registration(q: Queue) -> bool:
    """Whether the worker's connection has claimed since its idle row was committed."""
    question = (
        "select 1 from pg_stat_activity where datname = current_database() and query ~ 'claim_tasks' and state = 'idle'"
        " and query_start > (select idle_at from absurd.idle)"
    )
    return q.conn.execute(question).fetchone() is not None


def test_a_task_is_heard_of_while_another_transaction_holds_the_idle_row(
    q: Queue, start: Start, connect: Connect
) -> None:
    worker = start(patch=ONLY_PROTOCOL, slots=2).ready()
    with connect(autocommit=False) as holder:
        q.spawn(["say", "held"], conn=holder)  # takes the idle row and stays open
        q.spawn(["say", "free"])
        worker.wait(said="free")
        assert not worker.said(said="held")
        holder.commit()
        worker.wait(said="held")


def test_a_worker_is_found_again_after_the_spawner_rolled_back(q: Queue, start: Start, connect: Connect) -> None:
    worker = start(patch=ONLY_PROTOCOL).ready()
    with connect(autocommit=False) as spawner:
        nothing = q.spawn(["say", "never"], conn=spawner)
        spawner.execute("select absurd.emit_event('q', 'nobody', '1')")
        spawner.rollback()
    assert q.conn.execute("select count(*) from absurd.idle").fetchone() == (1,)
    q.spawn(["say", "ran"])
    worker.wait(said="ran")
    assert not worker.said(said="never")
    assert q.conn.execute("select * from absurd.get_task_result('q', %s)", (nothing,)).fetchall() == []


def test_a_cancellation_that_rolls_back_leaves_the_task_alone(q: Queue, start: Start, connect: Connect) -> None:
    task = q.spawn(["sleep", "nap", 0.5], ["returns", 1])
    with connect(autocommit=False) as canceller:
        canceller.execute("select absurd.cancel_task('q', %s)", (task,))
        canceller.rollback()
    worker = start(patch=ONLY_PROTOCOL)
    q.wait_ended(worker, task)
    assert q.task(task)[:2] == ("completed", 1)


def test_sleeps_timeouts_and_retries_due_sooner_than_the_worker_planned_to_wake_are_not_late(
    q: Queue, start: Start
) -> None:
    worker = start(patch=ONLY_PROTOCOL).ready()
    nap = q.spawn(["sleep", "nap", 0.3], ["returns", "slept"])
    wait = q.spawn(["await", "never", 0.3])
    retry = q.spawn(
        ["fails", "once"], ["returns", "again"], max_attempts=2, retry_strategy={"kind": "fixed", "base_seconds": 0.3}
    )
    q.wait_ended(worker, nap, wait, retry)
    assert [q.task(task)[1] for task in (nap, wait, retry)] == ["slept", "timed out", "again"]


def test_a_retry_that_is_written_after_the_worker_went_idle_is_not_late(q: Queue, start: Start, proxy: Proxy) -> None:
    worker = start(url=proxy.url, patch=ONLY_PROTOCOL, lease=3600).ready()
    stalled = proxy.stall("fail_runs")
    task = q.spawn(
        ["fails", "once"], ["returns", 1], max_attempts=2, retry_strategy={"kind": "fixed", "base_seconds": 0.3}
    )
    stalled.wait()
    worker.wait(after=worker.index(signal="task.claimed"), signal="worker.idle")
    stalled.release()
    q.wait_ended(worker, task)
    assert q.runs(task) == [(1, "failed"), (2, "completed")]


def test_runs_suspended_by_one_worker_are_resumed_by_another(q: Queue, start: Start) -> None:
    sleeper = q.spawn(["sleep", "nap", 0.5], ["returns", "slept"])
    waiter = q.spawn(["await", "parcel"])
    first = start(patch=ONLY_PROTOCOL)
    first.wait_many(2, signal="run.ended", outcome="suspended")
    second = start(patch=ONLY_PROTOCOL).ready()
    assert first.stop() == 0
    q.conn.execute("select absurd.emit_event('q', 'parcel', '7')")
    q.wait_ended(second, sleeper, waiter)
    assert [q.task(sleeper)[1], q.task(waiter)[1]] == ["slept", 7]
    assert q.attempts(sleeper) == 1


def test_an_emit_wakes_a_worker_that_is_idle(q: Queue, start: Start) -> None:
    task = q.spawn(["await", "parcel"])
    worker = start(patch=ONLY_PROTOCOL)
    worker.wait(after=worker.index(signal="batch.sent"), signal="worker.idle")
    q.conn.execute("select absurd.emit_event('q', 'parcel', '7')")
    q.wait_ended(worker, task)


def test_a_busy_worker_does_not_take_the_notification_meant_for_an_idle_one(
    q: Queue, start: Start, conn: psycopg.Connection[tuple[object, ...]], file_gate
) -> None:
    other = Queue(conn, "other")
    gate = file_gate("gate")
    busy = start(queues=["q", "other"], patch=ONLY_PROTOCOL).ready()
    q.spawn(["say", "busy"], ["gate", str(gate)])
    busy.wait(said="busy")
    idle = start(queues=["other"], patch=ONLY_PROTOCOL, tasks=["elsewhere"]).ready()
    busy.wait_until(lambda: idle_rows(q) == 1, "one idle row")
    other.spawn(["say", "ran"], task="elsewhere")
    idle.wait(said="ran")
    gate.open()


def test_a_notification_that_arrives_together_with_an_empty_claim_is_heard(
    q: Queue, start: Start, proxy: Proxy
) -> None:
    held = proxy.hold("claim_tasks", skip=1)  # the claim after the registration
    worker = start(url=proxy.url, patch=ONLY_PROTOCOL)
    held.wait("Z")  # it found nothing; the worker does not know yet
    q.spawn(["say", "ran"])
    held.wait("A")
    held.release()  # the answer and the notification in one packet
    worker.wait(said="ran")


def test_an_emit_that_rolls_back_wakes_nobody_and_the_next_one_does(q: Queue, start: Start, connect: Connect) -> None:
    task = q.spawn(["await", "parcel"])
    worker = start(patch=ONLY_PROTOCOL)
    worker.wait(signal="run.ended", outcome="suspended")
    with connect(autocommit=False) as emitter:
        emitter.execute("select absurd.emit_event('q', 'parcel', '1')")
        emitter.rollback()
    assert q.state(task) == "sleeping"
    q.conn.execute("select absurd.emit_event('q', 'parcel', '2')")
    q.wait_ended(worker, task)
    assert q.task(task)[1] == 2


@pytest.mark.stress
def test_thousand_spawns_next_to_an_idle_worker_are_all_heard_of(q: Queue, start: Start) -> None:
    worker = start(patch=ONLY_PROTOCOL).ready()
    for number in range(1000):
        q.spawn(["say", f"task {number}"])
        worker.wait(said=f"task {number}")


def idle_rows(q: Queue) -> int:
    row = q.conn.execute("select count(*) from absurd.idle").fetchone()
    assert row is not None
    return int(row[0])


def wait_registered(q: Queue, worker: object) -> None:
    """Until the worker has committed its idle row."""
    worker.wait_until(lambda: idle_rows(q) == 1, "its idle row")  # type: ignore[attr-defined]
