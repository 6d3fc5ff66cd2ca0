"""The views t_ r_ c_ e_ w_: what clients and tools read directly (contract, sections 2 and 13)."""

from __future__ import annotations

import psycopg
import pytest

from absurd import schema
from tests.fixtures.clock import Clock
from tests.fixtures.postgres import Connect
from tests.sql.driver import INFINITY, Queue, after, run_of
from tests.sql.situations import SITUATIONS


def test_the_whole_life_of_a_task_stands_in_the_views(noon: Queue, clock: Clock) -> None:
    run = noon.start(task_name="life")
    noon.checkpoint(run, "a", 1)
    clock.set(noon.conn, after(1))
    noon.await_event(run, "e", "w", 100)
    clock.set(noon.conn, after(2))
    noon.emit("e", "x")
    (run,) = noon.claim("w2", 60)
    clock.set(noon.conn, after(3))
    noon.fail(run["run_id"], {"name": "Boom"})
    clock.set(noon.conn, after(4))
    (run,) = noon.claim("w3", 60)
    clock.set(noon.conn, after(5))
    noon.complete(run["run_id"], "done")

    first, second = noon.view("r", "true order by run_id")
    assert (first["state"], first["claimed_by"], first["started_at"], first["failed_at"]) == (
        "failed",
        "w2",
        after(2),
        after(3),
    )
    assert (first["wake_event"], first["event_payload"], first["created_at"]) == (None, "x", after(0))
    assert (second["state"], second["started_at"], second["completed_at"], second["created_at"]) == (
        "completed", after(4), after(5), after(3),
    )  # fmt: skip
    (task,) = noon.view("t")
    assert (task["attempts"], task["last_attempt_run"]) == (2, second["run_id"])
    assert (task["first_started_at"], task["enqueue_at"]) == (after(0), after(0))
    owners = {c["checkpoint_name"]: c["owner_run_id"] for c in noon.view("c")}
    assert owners == {"a": first["run_id"], "w": first["run_id"]}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_run_has_one_row_whatever_happens_to_it(own_queue: Queue, situation: str) -> None:
    q = own_queue
    SITUATIONS[situation](q)
    runs = q.view("r")
    assert len({r["run_id"] for r in runs}) == len(runs)
    for task in q.view("t"):
        mine = [r for r in runs if r["task_id"] == task["task_id"]]
        assert sorted(r["attempt"] for r in mine) == list(range(1, task["attempts"] + 1))
        assert task["last_attempt_run"] == run_of(task["task_id"], task["attempts"])
        unfinished = [r["state"] for r in mine if r["state"] in ("pending", "running", "sleeping")]
        assert unfinished == ([task["state"]] if task["state"] in ("pending", "running", "sleeping") else [])


def test_each_queue_has_its_own_views(q: Queue) -> None:
    other = q.named("other")
    run = other.start()
    other.checkpoint(run, "a", 1)
    other.emit("e")
    other.await_event(run, "f")
    assert [len(other.view(prefix)) for prefix in "trcew"] == [1, 1, 1, 1, 1]
    assert [q.view(prefix) for prefix in "trcew"] == [[]] * 5


def test_a_run_nobody_will_wake_is_available_at_infinity(q: Queue) -> None:
    run = q.start()
    q.await_event(run, "e")
    assert q.run(run["run_id"])["available_at"] == INFINITY
    assert q.value("select nullif(available_at, 'infinity') from absurd.r_q") is None


def test_events_that_only_have_waiters_are_not_shown(q: Queue) -> None:
    q.await_event(q.start(), "e")
    assert q.view("e") == []
    q.emit("e")
    assert len(q.view("e", "payload is not null")) == 1


def test_lists_ordered_by_run_id_are_ordered_by_time(noon: Queue, clock: Clock) -> None:
    spawned = []
    for i in range(5):
        clock.set(noon.conn, after(i))
        spawned.append(noon.spawn()["run_id"])
    assert [r["run_id"] for r in noon.view("r", "true order by run_id desc")] == spawned[::-1]


def test_checkpoints_can_be_hidden_through_their_view(q: Queue) -> None:
    run = q.start()
    q.checkpoint(run, "a", 1)
    q.conn.execute("update absurd.c_q set status = 'pending' where checkpoint_name = 'a'")
    assert q.view("c")[0]["status"] == "pending"
    assert q.call("get_task_checkpoint_state", run["task_id"], "a") == []


@pytest.mark.parametrize("view", ["t_q", "r_q"])
def test_tasks_and_runs_cannot_be_written_through_their_views(q: Queue, view: str) -> None:
    q.start()
    with pytest.raises(psycopg.Error) as caught:
        q.conn.execute(f"update absurd.{view} set state = 'failed'")  # type: ignore[arg-type, unused-ignore]
    assert caught.value.sqlstate in ("55000", "0A000")


def test_an_upgrade_keeps_the_views_of_every_queue(q: Queue, connect: Connect) -> None:
    run = q.named("other").start()
    schema.install(connect())
    assert Queue(q.conn, "other").task(run["task_id"])["state"] == "running"
    assert q.view("t") == []
