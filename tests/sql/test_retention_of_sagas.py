"""Retention and sagas: what a companion has still to read stays, and nothing else does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.fixtures.clock import Clock
from tests.fixtures.postgres import Databases
from tests.sql.driver import Queue, Row, after
from tests.sql.statistics import fill, reads


def saga(q: Queue, how: str = "failed", **options: Any) -> tuple[UUID, UUID]:
    """A task with a step to undo that has ended, and its companion, spawned with these options, which nobody has claimed."""
    run = q.start(max_attempts=1)
    task_id = run["task_id"]
    key = f"$undo:{task_id}"
    companion = q.spawn("$undo:work", {"task_id": str(task_id)}, idempotency_key=key, **options)["task_id"]
    q.checkpoint(run, "$undo", {"task_id": str(companion)})
    end(q, run, how)
    return task_id, companion


def end(q: Queue, run: Row, how: str) -> None:
    if how == "completed":
        q.complete(run["run_id"])
    elif how == "failed":
        q.fail(run["run_id"])
    else:
        q.cancel(run["task_id"])


def cleanup(q: Queue, limit: int = 1000) -> int:
    return int(q.call("cleanup_tasks", 0, limit)[0]["cleanup_tasks"])


def left(q: Queue) -> set[UUID]:
    return {t["task_id"] for t in q.view("t")}


@pytest.mark.parametrize("how", ["completed", "failed", "cancelled"])
def test_a_task_stays_until_its_companion_has_ended(noon: Queue, clock: Clock, how: str) -> None:
    task_id, companion = saga(noon, how)
    clock.set(noon.conn, after(1e8))
    assert cleanup(noon) == 0, "the companion is pending"
    (run,) = noon.claim(timeout=60)
    assert cleanup(noon) == 0, "the companion runs"
    noon.await_event(run, "never")
    assert cleanup(noon) == 0, "the companion sleeps"
    assert left(noon) == {task_id, companion}

    noon.emit("never")
    (run,) = noon.claim(timeout=60)
    noon.complete(run["run_id"])
    assert cleanup(noon) == 1
    assert left(noon) == {companion}
    clock.set(noon.conn, after(1e8 + 1))
    assert cleanup(noon) == 1
    assert noon.rows("select * from absurd.checkpoints") == noon.rows("select * from absurd.idempotency_keys") == []


@pytest.mark.parametrize("how", ["failed", "cancelled"])
def test_a_companion_that_has_ended_in_any_way_holds_nothing_back(noon: Queue, clock: Clock, how: str) -> None:
    saga(noon)
    (run,) = noon.rows("select task_id, absurd.run_id_of(task_id, 1) as run_id from absurd.live")
    if how == "failed":
        noon.conn.execute("update absurd.tasks set max_attempts = 1")
        noon.claim(timeout=60)
    end(noon, run, how)
    clock.set(noon.conn, after(1))
    assert cleanup(noon) == 2
    assert left(noon) == set()


def test_later_tasks_go_past_those_that_stay(noon: Queue, clock: Clock) -> None:
    stay = {task_id for _ in range(3) for task_id in saga(noon, delay_seconds=3600)}
    later = []
    for second in range(1, 6):
        clock.set(noon.conn, after(second))
        run = noon.start(max_attempts=1)
        end(noon, run, "completed")
        later.append(run["task_id"])
    clock.set(noon.conn, after(60))
    assert cleanup(noon, 2) == 2
    assert left(noon) == stay | set(later[2:]), "the oldest went first"
    assert cleanup(noon, 2) == 2
    assert cleanup(noon, 2) == 1
    assert cleanup(noon, 2) == 0
    assert left(noon) == stay


def test_every_way_of_cleaning_up_spares_it(noon: Queue, clock: Clock) -> None:
    saga(noon)
    noon.policy(cleanup_ttl="1 hour")
    clock.set(noon.conn, after(3601))
    nothing = [{"queue_name": "q", "tasks_deleted": 0, "events_deleted": 0}]
    assert noon.rows("select * from absurd.cleanup_all_queues()") == nothing
    assert noon.rows("select * from absurd.housekeep(array[%s])", (noon.id,)) == nothing
    assert noon.call("purge_queue") == [{"purge_queue": 2}], "whatever their state"


@pytest.mark.parametrize("state", [None, "x", {"task_id": 7}, ["x"]])
def test_a_step_that_only_has_the_name_holds_nothing_back(noon: Queue, clock: Clock, state: Any) -> None:
    run = noon.start()
    noon.checkpoint(run, "$undo", state)
    noon.complete(run["run_id"])
    clock.set(noon.conn, after(1))
    assert cleanup(noon) == 1


def test_a_companion_in_another_queue_of_that_name_is_another_ones(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    noon.checkpoint(run, "$undo", {})
    noon.complete(run["run_id"])
    noon.named("other").spawn(idempotency_key=f"$undo:{run['task_id']}")
    clock.set(noon.conn, after(1))
    assert cleanup(noon) == 1


# ---------------------------------------------------------------- what it costs

STORED = 5_000


@pytest.fixture
def stored(databases: Databases, schema_template: str) -> Iterator[Queue]:
    """Many ended tasks, half of them spared sagas, among many others; the plans were made while there were none."""
    with databases.fresh(schema_template) as name, psycopg.connect(databases.url(name), autocommit=True) as conn:
        for table in ("tasks", "live", "attempts", "checkpoints", "idempotency_keys"):
            conn.execute(f"alter table absurd.{table} set (autovacuum_enabled = off)")
        q = Queue(conn).named("q")
        saga(q)
        cleanup(q)
        q.call("purge_queue")
        fill(conn, "q", STORED, "leased")
        conn.execute(
            "insert into absurd.checkpoints (queue_id, task_id, name, state, attempt)"
            " select queue_id, task_id, unnest(array['$undo', 'a']), '1', 1 from filling"
        )
        conn.execute("create temp table companions as select * from filling")
        fill(conn, "q", STORED, "finished")
        conn.execute(
            "insert into absurd.checkpoints (queue_id, task_id, name, state, attempt)"
            " select queue_id, task_id, 'a', '1', 1 from filling"
        )
        yield q


def test_a_queue_without_sagas_reads_no_row_more(stored: Queue) -> None:
    found = reads(stored.conn, "select absurd.cleanup_tasks('q', 0, 100)")
    assert found.answer == [(100,)]
    assert found.sequential == []
    assert found.rows.keys() & {"live", "idempotency_keys"} == set()
    assert found.rows["checkpoints"] <= 2 * 100, found.rows
    assert found.total <= 6 * 100 + 10, found.rows


def test_a_spared_task_costs_a_row_of_each_table_on_the_way_to_its_companion(stored: Queue) -> None:
    stored.conn.execute(
        "insert into absurd.checkpoints (queue_id, task_id, name, state, attempt)"
        " select queue_id, task_id, '$undo', '1', 1 from filling where n > %s",  # the oldest
        (STORED - 500,),
    )
    stored.conn.execute(
        "insert into absurd.idempotency_keys (queue_id, idempotency_key, task_id)"
        " select f.queue_id, '$undo:' || f.task_id, c.task_id from filling f join companions c using (n) where n > %s",
        (STORED - 500,),
    )
    found = reads(stored.conn, "select absurd.cleanup_tasks('q', 0, 100)")
    assert found.answer == [(100,)]
    assert found.sequential == []
    assert found.rows["live"] == found.rows["idempotency_keys"] == 500
    assert found.total <= 5 * 500 + 6 * 100 + 10, found.rows
