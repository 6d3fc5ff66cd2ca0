"""Every way a run can stand, made through the engine: the rows of the verdict tables."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import NamedTuple

from tests.sql.driver import Queue, Row, run_of, unknown_run


class Run(NamedTuple):
    """A run, and the claim number under which it was last claimed (1 where it never was)."""

    task_id: uuid.UUID
    run_id: uuid.UUID
    claim_no: int = 1

    @property
    def row(self) -> Row:
        return {"task_id": self.task_id, "run_id": self.run_id}


def _of(row: Row) -> Run:
    return Run(row["task_id"], row["run_id"])


def running(q: Queue) -> Run:
    return _of(q.start())


def pending(q: Queue) -> Run:
    return _of(q.spawn())


def asleep(q: Queue) -> Run:
    run = _of(q.start())
    q.call("schedule_run", run.run_id, q.value("select absurd.current_time() + interval '1 hour'"))
    return run


def waiting(q: Queue) -> Run:
    run = _of(q.start())
    q.await_event(run.row, "never", "some wait")
    return run


def woken(q: Queue) -> Run:
    run = _of(q.start())
    q.await_event(run.row, "came", "some wait")
    q.emit("came", 1)
    return run


def completed(q: Queue) -> Run:
    run = _of(q.start())
    q.complete(run.run_id, "done")
    return run


def failed(q: Queue) -> Run:
    run = _of(q.start(max_attempts=1))
    q.fail(run.run_id)
    return run


def retried(q: Queue) -> Run:
    run = _of(q.start())
    q.fail(run.run_id)
    return run


def retried_and_running(q: Queue) -> Run:
    run = retried(q)
    q.claim(timeout=60)
    return run


def retried_by_hand(q: Queue) -> Run:
    run = failed(q)
    q.retry(run.task_id)
    return run


def retried_then_completed(q: Queue) -> Run:
    run = retried_and_running(q)
    q.complete(run_of(run.task_id, 2))
    return run


def retried_then_cancelled(q: Queue) -> Run:
    run = retried_and_running(q)
    q.cancel(run.task_id)
    return run


def failed_past_its_duration(q: Queue) -> Run:
    run = _of(q.start(cancellation={"max_duration": 3600}, retry_strategy={"kind": "fixed", "base_seconds": 7200}))
    q.fail(run.run_id)
    return run


def cancelled(q: Queue) -> Run:
    run = _of(q.start())
    q.cancel(run.task_id)
    return run


def cancelled_before_its_start(q: Queue) -> Run:
    run = _of(q.spawn())
    q.cancel(run.task_id)
    return run


def unknown(q: Queue) -> Run:
    run_id = unknown_run()
    return Run(uuid.UUID(int=run_id.int - 1), run_id)


def attempt_zero(q: Queue) -> Run:
    task_id = q.start()["task_id"]
    return Run(task_id, task_id)


def attempt_to_come(q: Queue) -> Run:
    task_id = q.start()["task_id"]
    return Run(task_id, run_of(task_id, 2))


def cleaned_up(q: Queue) -> Run:
    run = completed(q)
    q.conn.execute("set absurd.fake_now = '2100-01-01'")
    assert q.call("cleanup_tasks", 0) == [{"cleanup_tasks": 1}]
    q.conn.execute("set absurd.fake_now = default")
    return run


def of_another_queue(q: Queue) -> Run:
    return _of(q.named(f"not {q.name}").start())


SITUATIONS: dict[str, Callable[[Queue], Run]] = {
    make.__name__: make
    for make in (
        running, pending, asleep, waiting, woken, completed, failed, retried, retried_and_running, retried_by_hand,
        retried_then_completed, retried_then_cancelled, failed_past_its_duration, cancelled, cancelled_before_its_start,
        unknown, attempt_zero, attempt_to_come, cleaned_up, of_another_queue,
    )
}  # fmt: skip
