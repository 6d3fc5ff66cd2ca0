"""What a worker says when it cannot start, what it costs when it is idle, and queues that come and go under it."""

from __future__ import annotations

import psycopg

from tests.fixtures.postgres import Connection
from tests.worker.conftest import Queue, Start


def test_a_missing_schema_names_the_command_that_installs_it(empty_database_url: str, start: Start) -> None:
    worker = start(url=empty_database_url)
    assert worker.exit_code() == 1
    assert "SchemaMissing" in worker.log
    assert "absurdctl init" in worker.log


def test_a_missing_queue_names_the_command_that_creates_it(q: Queue, start: Start) -> None:
    worker = start(queues=["nowhere"])
    assert worker.exit_code() == 1
    assert 'Queue "nowhere" does not exist' in worker.log
    assert "absurdctl create-queue nowhere" in worker.log


def test_a_wrong_url_fails_at_once_and_hides_the_password(start: Start) -> None:
    worker = start(url="postgresql://me:geheim@127.0.0.1:1/nothing")
    assert worker.exit_code() == 1
    assert "ConnectionLost: cannot connect to the database" in worker.log
    assert "geheim" not in worker.log


def test_a_lease_of_zero_is_refused(q: Queue, start: Start) -> None:
    worker = start(lease=0)
    assert worker.exit_code() == 1
    assert "ConfigError: claim_timeout must be > 0" in worker.log


def test_a_queue_that_is_dropped_and_made_anew_is_served_again(q: Queue, start: Start) -> None:
    worker = start(patch={"claimer.IDLE_POLL": 0.2, "claimer.RESOLVE_EVERY": 0.1}).ready()
    q.conn.execute("select absurd.drop_queue('q')")
    worker.wait_log('queue "q" no longer exists')
    q.conn.execute("select absurd.create_queue('q')")
    task = q.spawn(["say", "anew"])
    q.wait_ended(worker, task)
    assert worker.log.count("no longer exists") == 1
    assert worker.stop() == 0


def test_a_queue_dropped_while_its_task_runs_takes_the_task_along(q: Queue, start: Start, file_gate) -> None:
    gate = file_gate("gate")
    q.spawn(["say", "began"], ["step", "one", [["gate", str(gate)]]], ["say", "past one"])
    worker = start(patch={"claimer.IDLE_POLL": 0.2, "claimer.RESOLVE_EVERY": 0.1})
    worker.wait(said="began")
    q.conn.execute("select absurd.drop_queue('q')")
    q.conn.execute("select absurd.purge_dropped_queues(1000)")
    gate.open()
    worker.wait(signal="run.ended")
    q.conn.execute("select absurd.create_queue('q')")
    q.wait_ended(worker, q.spawn(["returns", 1]))
    assert worker.stop() == 0


def test_an_idle_worker_makes_less_than_one_transaction_a_second(q: Queue, start: Start, conn: Connection) -> None:
    """Counted by the server over a stretch that the worker's own fallback polls bound; sleeping tasks cost nothing."""
    for _ in range(20):
        q.spawn(["returns", 1], start_at="2099-01-01T00:00:00Z")
    worker = start(slots=4, housekeeping=True).ready()
    with psycopg.connect(conn.info.dsn, autocommit=True) as watcher:
        before, began = _transactions(watcher)
        polls = len(worker.said(signal="worker.idle"))
        worker.wait_until(lambda: len(worker.said(signal="worker.idle")) >= polls + 2, "two fallback polls")
        after, ended = _transactions(watcher)
    rate = (after - before) / (ended - began)
    print(f"idle: {after - before} transactions in {ended - began:.1f} s, {rate:.2f}/s")
    assert after - before <= 8  # two polls, each a claim, perhaps a look at the queues; our own questions
    assert worker.stop() == 0


def _transactions(watcher: psycopg.Connection[tuple[object, ...]]) -> tuple[int, float]:
    """The transactions of all backends of this database so far, and the server's clock.

    A backend's own count arrives late (a second, or at its end), so the tail of one stretch may fall into the next.
    """
    watcher.execute("select pg_stat_force_next_flush()")
    watcher.execute("select pg_stat_clear_snapshot()")
    row = watcher.execute(
        "select xact_commit + xact_rollback, extract(epoch from clock_timestamp())::float from pg_stat_database"
        " where datname = current_database()"
    ).fetchone()
    assert row is not None
    return int(row[0]), float(row[1])  # type: ignore[call-overload, arg-type]
