"""Workers delete what has grown old, by the queue's policy: one worker at a time, in batches."""

from __future__ import annotations

import uuid

from tests.worker.conftest import Queue, Start


def _old_task(q: Queue) -> uuid.UUID:
    task = q.spawn(["returns", 1])
    q.conn.execute("select absurd.cancel_task('q', %s)", (task,))
    q.conn.execute("update absurd.attempts set finished_at = now() - interval '1 year' where task_id = %s", (task,))
    return task


def _policy(q: Queue, **policy: object) -> None:
    import json

    q.conn.execute("select absurd.set_queue_policy('q', %s::jsonb)", (json.dumps(policy),))


def _count(q: Queue, table: str) -> int:
    row = q.conn.execute(f"select count(*) from absurd.{table}").fetchone()
    assert row is not None
    return int(row[0])


def test_old_tasks_go_young_ones_and_untaken_events_stay(q: Queue, start: Start) -> None:
    _policy(q, cleanup_ttl="1 day")
    for _ in range(3):
        _old_task(q)
    young = q.spawn(["await", "taken"])
    q.conn.execute("select absurd.emit_event('q', 'taken', '1')")
    q.conn.execute("select absurd.emit_event('q', 'untaken', '2')")
    worker = start(housekeeping=True, lease=0.3, patch={"keeper.HOUSEKEEPING_EVERY": 0.5})
    q.wait_ended(worker, young)
    q.conn.execute("update absurd.events set emitted_at = now() - interval '1 year'")
    worker.wait_until(lambda: _count(q, "events") == 1 and _count(q, "tasks") == 1, "the deletion")
    assert q.conn.execute("select event_name from absurd.events").fetchall() == [("untaken",)]
    assert q.state(young) == "completed"
    worker.wait_log('housekeeping of queue "q": ')


def test_more_than_one_batch_goes_in_one_round(q: Queue, start: Start) -> None:
    _policy(q, cleanup_ttl="1 day", cleanup_limit=2)
    for _ in range(7):
        _old_task(q)
    worker = start(housekeeping=True, lease=1)  # the next round would be in a minute
    worker.wait_until(lambda: _count(q, "tasks") == 0, "the deletion")
    assert max(line["tasks"] for line in worker.said(signal="housekeeping.done")) == 2


def test_one_worker_at_a_time_keeps_the_house(q: Queue, start: Start) -> None:
    _policy(q, cleanup_ttl="1 day")
    workers = [start(housekeeping=True, lease=0.3).ready() for _ in range(2)]
    workers[0].wait_until(
        lambda: any(worker.said(signal="housekeeping.done") for worker in workers), "somebody's housekeeping"
    )
    for worker in workers:  # several beats of both
        task = q.spawn(["lasts", 0.5])
        q.wait_ended(worker, task)
    assert sum(len(worker.said(signal="housekeeping.done")) for worker in workers) == 1


def test_housekeeping_can_be_turned_off(q: Queue, start: Start) -> None:
    _policy(q, cleanup_ttl="1 day")
    _old_task(q)
    worker = start(housekeeping=False, lease=0.3, patch={"keeper.HOUSEKEEPING_EVERY": 0.1})
    q.wait_ended(worker, q.spawn(["lasts", 1]))  # several beats
    assert _count(q, "tasks") == 2
    assert not worker.said(signal="housekeeping.done")
