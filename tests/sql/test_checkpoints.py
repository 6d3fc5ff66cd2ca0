"""Checkpoints: who may write one, who sees it (contract, section 8)."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg.types.json import Jsonb

from tests.fixtures.clock import Clock
from tests.fixtures.gates import Gate
from tests.fixtures.postgres import Connect
from tests.sql.driver import Queue, Row, after, refused, run_of
from tests.sql.situations import SITUATIONS


def read(q: Queue, run: Row, step: str, *pending: bool | None) -> list[Row]:
    return q.call("get_task_checkpoint_state", run["task_id"], step, *pending)


def seen(q: Queue, run: Row) -> list[tuple[str, Any]]:
    rows = q.call("get_task_checkpoint_states", run["task_id"], run["run_id"])
    return [(row["checkpoint_name"], row["state"]) for row in rows]


# ---------------------------------------------------------------- writing


def test_a_checkpoint_is_kept_with_its_owner_and_moment(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    clock.set(noon.conn, after(1.5))
    noon.checkpoint(run, "a b", {"n": [1, None]})
    row = {
        "checkpoint_name": "a b",
        "state": {"n": [1, None]},
        "status": "committed",
        "owner_run_id": run["run_id"],
        "updated_at": after(1.5),
    }
    assert read(noon, run, "a b") == [row]
    assert noon.call("get_task_checkpoint_states", run["task_id"], run["run_id"]) == [row]
    assert noon.view("c") == [{"task_id": run["task_id"]} | row]
    assert noon.run(run["run_id"])["claim_expires_at"] == after(60)


def test_writing_again_replaces_the_state(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    noon.checkpoint(run, "a", 1)
    clock.set(noon.conn, after(1))
    noon.checkpoint(run, "a", 2)
    (row,) = read(noon, run, "a")
    assert (row["state"], row["updated_at"]) == (2, after(1))


@pytest.mark.parametrize("step", [None, "", "   "])
def test_a_checkpoint_needs_a_name(q: Queue, step: str | None) -> None:
    run = q.start()
    with refused("P0001", "step_name must be provided"):
        q.checkpoint(run, step, 1)


@pytest.mark.parametrize(("extend_by", "ends"), [(None, 60), (0, 60), (-5, 60), (90, 100), (5, 15)])
def test_a_checkpoint_may_renew_the_lease(noon: Queue, clock: Clock, extend_by: int | None, ends: float) -> None:
    run = noon.start()
    clock.set(noon.conn, after(10))
    noon.checkpoint(run, "a", 1, extend_by)
    assert noon.run(run["run_id"])["claim_expires_at"] == after(ends)


def test_the_last_argument_of_a_checkpoint_may_be_left_out(q: Queue) -> None:
    run = q.start()
    q.call("set_task_checkpoint_state", run["task_id"], "a", Jsonb(1), run["run_id"])
    assert q.checkpoints(run["task_id"]) == {"a": 1}


def test_a_checkpoint_gives_no_lease_to_a_run_without(noon: Queue) -> None:
    run = noon.spawn()
    noon.claim(timeout=0)
    noon.checkpoint(run, "a", 1, 90)
    assert noon.run(run["run_id"])["claim_expires_at"] is None
    noon.complete(run["run_id"])


def test_a_lease_shortened_by_a_checkpoint_is_noticed(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    noon.checkpoint(run, "a", 1, 1)
    clock.set(noon.conn, after(1))
    assert noon.claim()[0]["attempt"] == 2


def test_a_null_state_is_json_null(q: Queue) -> None:
    run = q.start()
    q.checkpoint(run, "a", None)
    assert q.rows("select state::text from absurd.c_q") == [{"state": "null"}]


@pytest.mark.parametrize("situation", ["failed", "retried_and_running", "retried_then_cancelled", "cancelled"])
def test_a_dead_run_writes_nothing_and_renews_nothing(q: Queue, situation: str) -> None:
    run = SITUATIONS[situation](q)
    leases = [r["claim_expires_at"] for r in q.view("r", "true order by run_id")]
    with refused("AB001" if "cancelled" in situation else "AB002"):
        q.checkpoint(run.row, "a", 1, 3600)
    assert q.checkpoints(run.task_id) == {}
    assert [r["claim_expires_at"] for r in q.view("r", "true order by run_id")] == leases


def test_a_checkpoint_of_another_tasks_run_is_refused(q: Queue) -> None:
    """W8."""
    mine, other = q.start(), q.start()
    with refused("P0001", f'Run "{mine["run_id"]}" does not belong to task "{other["task_id"]}" in queue "q"'):
        q.checkpoint({"task_id": other["task_id"], "run_id": mine["run_id"]}, "a", 1)
    assert q.view("c") == []


@pytest.mark.parametrize("situation", ["completed", "asleep", "woken", "pending"])
def test_a_checkpoint_of_a_run_that_does_not_run_is_refused(q: Queue, situation: str) -> None:
    """W8."""
    run = SITUATIONS[situation](q)
    before = q.view("c")
    with refused("P0001", "is not currently running"):
        q.checkpoint(run.row, "a", 1)
    assert q.view("c") == before


def test_a_stale_attempt_does_not_overwrite_a_newer_one(q: Queue, connect: Connect, gate: Gate) -> None:
    """W5: the old attempt's write arrives while the new attempt's is under way."""
    old = q.start()
    q.checkpoint(old, "a", "old")
    session = q.on(connect(autocommit=False))
    session.fail(old["run_id"])
    (new,) = session.claim("w2")
    session.checkpoint(new, "a", "new")
    late = gate(lambda c: q.on(c).checkpoint(old, "a", "stale")).wait_until_blocked()
    session.conn.commit()
    with refused("AB002"):
        late.result()
    (row,) = read(q, new, "a")
    assert (row["state"], row["owner_run_id"]) == ("new", new["run_id"])


def test_a_newer_attempt_takes_a_checkpoint_over(q: Queue) -> None:
    old = q.start()
    q.checkpoint(old, "a", "old")
    q.fail(old["run_id"])
    (new,) = q.claim()
    q.checkpoint(new, "a", "new")
    (row,) = read(q, new, "a")
    assert (row["state"], row["owner_run_id"]) == ("new", new["run_id"])


@pytest.mark.parametrize(("verb", "sqlstate"), [("cancel", "AB001"), ("fail", "AB002")])
def test_a_checkpoint_behind_the_end_of_its_run_leaves_no_orphan(
    q: Queue, connect: Connect, gate: Gate, verb: str, sqlstate: str
) -> None:
    run = q.start(max_attempts=1)
    ending = q.on(connect(autocommit=False))
    getattr(ending, verb)(run["task_id"] if verb == "cancel" else run["run_id"])
    late = gate(lambda c: q.on(c).checkpoint(run, "late", 1)).wait_until_blocked()
    ending.conn.commit()
    with refused(sqlstate):
        late.result()
    assert q.view("c") == []


def test_two_checkpoints_of_one_run_at_once_are_both_kept(q: Queue, connect: Connect, gate: Gate) -> None:
    run = q.start()
    first = q.on(connect(autocommit=False))
    first.checkpoint(run, "a", 1)
    second = gate(lambda c: q.on(c).checkpoint(run, "b", 2)).wait_until_blocked()
    first.conn.commit()
    second.result()
    assert q.checkpoints(run["task_id"]) == {"a": 1, "b": 2}


# ---------------------------------------------------------------- reading


def test_a_checkpoint_that_is_not_there_has_no_row(q: Queue) -> None:
    run = q.start()
    assert read(q, run, "a") == read(q, {"task_id": run["run_id"]}, "a") == []
    assert seen(q, run) == []


@pytest.mark.parametrize("pending", [(), (None,), (False,)])
def test_a_pending_checkpoint_is_hidden_unless_asked_for(q: Queue, pending: tuple[Any, ...]) -> None:
    run = q.start()
    q.checkpoint(run, "a", 1)
    q.conn.execute("update absurd.c_q set status = 'pending'")
    assert read(q, run, "a", *pending) == []
    assert seen(q, run) == []
    (row,) = read(q, run, "a", True)
    assert (row["state"], row["status"]) == (1, "pending")
    q.checkpoint(run, "a", 2)
    assert seen(q, run) == [("a", 2)]


def test_checkpoints_come_oldest_first(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    for i, step in enumerate(["c", "a", "b", "c"]):
        clock.set(noon.conn, after(i))
        noon.checkpoint(run, step, i)
    assert seen(noon, run) == [("a", 1), ("b", 2), ("c", 3)]


def test_a_run_sees_what_it_and_earlier_attempts_wrote(q: Queue) -> None:
    first = q.start()
    q.checkpoint(first, "one", 1)
    q.fail(first["run_id"])
    (second,) = q.claim()
    q.checkpoint(second, "two", 2)
    assert seen(q, second) == [("one", 1), ("two", 2)]
    assert seen(q, first) == [("one", 1)]


@pytest.mark.parametrize("situation", ["unknown", "attempt_zero", "attempt_to_come", "cleaned_up", "of_another_queue"])
def test_the_checkpoints_of_a_run_that_is_not_there_cannot_be_read(q: Queue, situation: str) -> None:
    run = SITUATIONS[situation](q)
    with refused("P0001", f'Run "{run.run_id}" not found in queue "q"'):
        seen(q, run.row)


def test_the_checkpoints_of_a_task_cannot_be_read_by_another_tasks_run(q: Queue) -> None:
    mine, other = q.start(), q.start()
    with refused("P0001", f'Run "{mine["run_id"]}" does not belong to task "{other["task_id"]}" in queue "q"'):
        seen(q, {"task_id": other["task_id"], "run_id": mine["run_id"]})


def test_the_checkpoints_of_an_ended_task_can_be_read(q: Queue) -> None:
    run = q.start()
    q.checkpoint(run, "a", 1)
    q.complete(run["run_id"])
    assert seen(q, run) == [("a", 1)]
    assert read(q, run, "a")[0]["owner_run_id"] == run_of(run["task_id"], 1)


def test_reading_checkpoints_waits_for_nobody(q: Queue, connect: Connect) -> None:
    run = q.start()
    writing = q.on(connect(autocommit=False))
    writing.checkpoint(run, "a", 1)
    assert seen(q, run) == read(q, run, "a") == []
    writing.conn.commit()
    assert seen(q, run) == [("a", 1)]
