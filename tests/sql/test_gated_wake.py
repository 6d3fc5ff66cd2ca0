"""No lost wake-up: who is told when work arrives, whatever overlaps (LISTEN on a real connection)."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.fixtures.postgres import Connect, Connection
from tests.sql.driver import Queue

CHANNEL = "absurd_worker_1"


class Worker:
    """What a worker does to fall asleep, step by step."""

    def __init__(self, q: Queue, conn: Connection, channel: str = CHANNEL) -> None:
        self.q, self.channel = q.on(conn), channel
        conn.execute(f"listen {channel}")
        self._after = 0
        self._heard = 0
        conn.add_notify_handler(self._hear)

    def set_idle(self) -> None:
        """Say that nothing was found; remember which transactions may not have seen it: all with a smaller id than one
        taken after that commit."""
        self.q.conn.execute("set statement_timeout = '10s'")  # no open transaction may hold it up
        self.q.conn.execute("select absurd.set_idle(%s::int[], %s)", ([self.q.id], self.channel))
        self._after = int(self.q.value("select pg_current_xact_id()::text::bigint"))

    def clear_idle(self) -> None:
        self.q.conn.execute("set statement_timeout = '10s'")
        self.q.conn.execute("select absurd.clear_idle(%s::int[], %s)", ([self.q.id], self.channel))

    def claim(self) -> dict[str, Any]:
        return self.q.claims(1)[0]

    def may_sleep(self, answer: dict[str, Any]) -> bool:
        """Every transaction that might have looked before the idle row was there has ended."""
        return bool(answer["snapshot_xmin"] >= self._after)

    def fall_asleep(self) -> None:
        """Claim until it may sleep, as a worker does: transactions of other databases of the server count, too."""
        while not self.may_sleep(answer := self.claim()):
            assert answer["task_id"] is None

    def told(self) -> bool:
        """Whether a message came since the last question. A commit signals the listeners before it is acknowledged, so
        whatever was committed until now arrives with the answer of one more statement."""
        self.q.conn.execute("select 1")
        while self.q.conn.pgconn.notifies():  # what came behind the result, where psycopg looks only the next time
            self._heard += 1
        heard, self._heard = self._heard, 0
        return heard > 0

    def _hear(self, _: psycopg.Notify) -> None:
        self._heard += 1


@pytest.fixture
def worker(q: Queue, connect: Connect) -> Worker:
    return Worker(q, connect())


def test_a_sleeping_worker_is_told_at_the_spawners_commit_and_only_once(q: Queue, worker: Worker) -> None:
    worker.set_idle()
    worker.fall_asleep()

    q.spawn()
    assert worker.told()
    q.spawn()
    assert not worker.told(), "its row was taken: a busy system sends nothing"


def test_a_spawner_that_looked_before_the_idle_row_was_there_keeps_the_worker_awake(
    q: Queue, worker: Worker, connect: Connect
) -> None:
    """The spawn probes before its commit: it sees no row, the worker's claim sees no task, and nobody is told."""
    spawner = connect(autocommit=False)
    q.on(spawner).spawn()
    worker.set_idle()

    nothing = worker.claim()
    assert nothing["task_id"] is None
    assert not worker.may_sleep(nothing), "the spawner's transaction is still open"
    spawner.commit()
    assert not worker.told()

    assert worker.claim()["task_id"] is not None, "the repeated claim decides"


def test_an_emitter_that_looked_before_the_idle_row_was_there_keeps_the_worker_awake(
    q: Queue, worker: Worker, connect: Connect
) -> None:
    q.await_event(q.start(), "paid")
    emitter = connect(autocommit=False)
    q.on(emitter).emit("paid")
    worker.set_idle()

    assert not worker.may_sleep(worker.claim())
    emitter.commit()

    assert worker.claim()["task_id"] is not None


def test_a_worker_may_sleep_once_the_transactions_of_that_moment_have_ended_with_nothing(
    q: Queue, worker: Worker, connect: Connect
) -> None:
    spawner = connect(autocommit=False)
    q.on(spawner).spawn()
    worker.set_idle()
    assert not worker.may_sleep(worker.claim())
    spawner.rollback()

    worker.fall_asleep()
    q.spawn()
    assert worker.told()


def test_somebody_is_told_though_an_open_transaction_has_taken_the_only_idle_row(
    q: Queue, worker: Worker, connect: Connect
) -> None:
    worker.set_idle()
    slow = connect(autocommit=False)
    q.on(slow).spawn()

    q.spawn()

    assert worker.told(), "else nobody would be, until the slow transaction ends"
    slow.rollback()
    q.spawn()
    assert worker.told(), "the rollback gave the idle row back"


def test_a_worker_falls_asleep_again_while_an_open_transaction_holds_its_idle_row(
    q: Queue, worker: Worker, connect: Connect
) -> None:
    worker.set_idle()
    slow = connect(autocommit=False)
    q.on(slow).spawn()

    worker.clear_idle()
    worker.set_idle()
    slow.commit()

    assert worker.told()
    assert worker.claim()["task_id"] is not None


def test_a_worker_whose_idle_row_was_taken_and_not_committed_is_still_found(
    q: Queue, worker: Worker, connect: Connect
) -> None:
    worker.set_idle()
    slow = connect(autocommit=False)
    q.on(slow).spawn()
    worker.set_idle()
    slow.rollback()

    q.spawn()

    assert worker.told()


def test_as_many_workers_are_told_as_there_are_tasks(q: Queue, connect: Connect) -> None:
    workers = [Worker(q, connect(), f"absurd_worker_{n}") for n in range(3)]
    for worker in workers:
        worker.set_idle()

    q.spawns(["t", "t"])

    assert sorted(worker.told() for worker in workers) == [False, True, True]


@pytest.mark.parametrize("how", ["emit", "child", "retry", "reschedule"])
def test_whatever_makes_a_task_ready_tells_a_sleeping_worker(q: Queue, worker: Worker, how: str) -> None:
    first, second = q.hold(2, max_attempts=1)
    if how == "emit":
        q.awaits([first], ["s"], ["paid"])
    elif how == "child":
        q.awaits_tasks([first], ["s"], [(q.id, second.task_id)])
    elif how == "retry":
        q.fail(first.run_id)
    worker.set_idle()
    assert not worker.told()

    if how == "emit":
        q.emit("paid")
    elif how == "child":
        q.complete(second.run_id)
    elif how == "retry":
        q.retry(first.task_id)
    else:
        q.letters("schedule_runs", [first], ("timestamptz", [None]), ("float8", [0.0]))

    assert worker.told()
    assert worker.claim()["task_id"] == first.task_id


def test_an_idle_worker_hears_nothing_of_other_queues(q: Queue, worker: Worker) -> None:
    worker.set_idle()
    q.named("other").spawn()
    assert not worker.told()
