"""Cancel, retry, and how a task stands (contract, sections 5 and 7)."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg.types.json import Jsonb

from tests.fixtures.clock import Clock
from tests.fixtures.gates import Gate
from tests.fixtures.postgres import Connect
from tests.sql.driver import Queue, Row, after, minted, refused, run_of
from tests.sql.situations import SITUATIONS


def failed_task(q: Queue, attempts: int = 1, **options: Any) -> Row:
    """A task that used up its attempts."""
    spawned = q.spawn(**options | {"max_attempts": attempts})
    for attempt in range(1, attempts + 1):
        q.claim(timeout=60)
        q.fail(run_of(spawned["task_id"], attempt), {"name": f"Boom{attempt}"})
    return spawned


# ---------------------------------------------------------------- cancel


@pytest.mark.parametrize("situation", ["pending", "running", "asleep", "waiting", "woken"])
def test_an_unfinished_task_is_cancelled_with_its_live_run(q: Queue, situation: str) -> None:
    run = SITUATIONS[situation](q)
    before = q.run(run.run_id)
    q.cancel(run.task_id)

    row, task = q.run(run.run_id), q.task(run.task_id)
    assert (task["state"], row["state"]) == ("cancelled", "cancelled")
    assert task["cancelled_at"] is not None
    assert (row["claimed_by"], row["claim_expires_at"]) == (None, None)
    assert (row["failed_at"], row["completed_at"], row["created_at"]) == (None, None, before["created_at"])
    assert q.waits() == []
    assert q.claim() == []
    assert q.result(run.task_id) == {
        "task_id": run.task_id,
        "state": "cancelled",
        "result": None,
        "failure_reason": None,
    }


def test_the_moment_of_a_cancellation_is_kept(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    clock.set(noon.conn, after(1))
    noon.cancel(run["task_id"])
    clock.set(noon.conn, after(2))
    noon.cancel(run["task_id"])
    assert noon.task(run["task_id"])["cancelled_at"] == after(1)


def test_runs_that_ended_before_keep_their_state(q: Queue) -> None:
    run = q.start()
    q.fail(run["run_id"], {"name": "Boom"})
    q.cancel(run["task_id"])
    assert q.states(run["task_id"]) == ("cancelled", ["failed", "cancelled"])
    assert q.run(run["run_id"])["failure_reason"] == {"name": "Boom"}


@pytest.mark.parametrize("situation", ["completed", "failed", "failed_past_its_duration", "retried_then_completed"])
def test_cancelling_what_has_ended_changes_nothing(q: Queue, situation: str) -> None:
    run = SITUATIONS[situation](q)
    before = q.view("t"), q.view("r")
    q.cancel(run.task_id)
    assert (q.view("t"), q.view("r")) == before


@pytest.mark.parametrize("situation", ["unknown", "cleaned_up", "of_another_queue"])
def test_a_task_that_is_not_there_cannot_be_cancelled(q: Queue, situation: str) -> None:
    run = SITUATIONS[situation](q)
    with refused("P0001", f'Task "{run.task_id}" not found in queue "q"'):
        q.cancel(run.task_id)


def test_a_run_id_is_no_task_id(q: Queue) -> None:
    run = q.start()
    with refused("P0001", f'Task "{run["run_id"]}" not found in queue "q"'):
        q.cancel(run["run_id"])
    assert q.states(run["task_id"])[0] == "running"


@pytest.mark.parametrize(("verb", "ended"), [("complete", "completed"), ("fail", "failed")])
def test_a_cancellation_behind_the_end_of_a_run_leaves_it_ended(
    q: Queue, connect: Connect, gate: Gate, verb: str, ended: str
) -> None:
    run = q.start(max_attempts=1)
    holder = q.on(connect(autocommit=False))
    holder.rows("select * from absurd.live where task_id = %s for update", (run["task_id"],))
    cancelling = gate(lambda c: q.on(c).cancel(run["task_id"])).wait_until_blocked()
    getattr(holder, verb)(run["run_id"])
    holder.conn.commit()
    cancelling.result()
    assert q.states(run["task_id"]) == (ended, [ended])


def test_a_cancellation_behind_a_retry_cancels_the_new_run(q: Queue, connect: Connect, gate: Gate) -> None:
    run = q.start()
    failing = q.on(connect(autocommit=False))
    failing.fail(run["run_id"])
    cancelling = gate(lambda c: q.on(c).cancel(run["task_id"])).wait_until_blocked()
    failing.conn.commit()
    cancelling.result()
    assert q.states(run["task_id"]) == ("cancelled", ["failed", "cancelled"])


def test_two_cancellations_at_once_are_one(q: Queue, connect: Connect, gate: Gate) -> None:
    run = q.start()
    first = q.on(connect(autocommit=False))
    first.cancel(run["task_id"])
    second = gate(lambda c: q.on(c).cancel(run["task_id"])).wait_until_blocked()
    first.conn.commit()
    second.result()
    assert q.states(run["task_id"]) == ("cancelled", ["cancelled"])


# ---------------------------------------------------------------- retry in place


def test_a_failed_task_gets_another_run_and_one_more_attempt(noon: Queue, clock: Clock) -> None:
    run = failed_task(noon, attempts=2)
    task = noon.task(run["task_id"])
    clock.set(noon.conn, after(10))
    again = noon.retry(run["task_id"])

    third = run_of(run["task_id"], 3)
    assert again == {"task_id": run["task_id"], "run_id": third, "attempt": 3, "created": False}
    assert noon.task(run["task_id"]) == task | {
        "state": "pending",
        "attempts": 3,
        "max_attempts": 3,
        "last_attempt_run": third,
    }
    assert noon.states(run["task_id"]) == ("pending", ["failed", "failed", "pending"])
    row = noon.run(third)
    assert (row["available_at"], row["created_at"], row["started_at"]) == (after(10), after(10), None)
    assert noon.result(run["task_id"])["failure_reason"] is None
    (claimed,) = noon.claim()
    assert (claimed["run_id"], claimed["max_attempts"]) == (third, 3)
    noon.fail(third)
    assert noon.task(run["task_id"])["state"] == "failed"


def test_a_retried_task_keeps_its_checkpoints_and_its_first_start(noon: Queue, clock: Clock) -> None:
    run = noon.start(max_attempts=1)
    noon.checkpoint(run, "a", 1)
    noon.fail(run["run_id"])
    clock.set(noon.conn, after(10))
    noon.retry(run["task_id"])
    (again,) = noon.claim()
    assert noon.checkpoints(run["task_id"]) == {"a": 1}
    seen = noon.call("get_task_checkpoint_states", run["task_id"], again["run_id"])
    assert [c["checkpoint_name"] for c in seen] == ["a"]
    assert noon.task(run["task_id"])["first_started_at"] < after(10)


def test_a_given_limit_replaces_the_old_one(q: Queue) -> None:
    run = failed_task(q)
    q.retry(run["task_id"], max_attempts=4)
    assert q.task(run["task_id"])["max_attempts"] == 4


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_attempts": 0}, "max_attempts must be >= 1"),
        ({"max_attempts": 0, "spawn_new": True}, "max_attempts must be >= 1"),
        ({"max_attempts": 1}, "max_attempts (1) must be greater than current attempts (2)"),
        ({"max_attempts": 2}, "max_attempts (2) must be greater than current attempts (2)"),
    ],
)
def test_a_limit_that_leaves_no_attempt_is_refused(q: Queue, options: dict[str, Any], text: str) -> None:
    run = failed_task(q, attempts=2)
    with refused("P0001", text):
        q.retry(run["task_id"], **options)
    assert q.states(run["task_id"]) == ("failed", ["failed", "failed"])


@pytest.mark.parametrize("options", [{}, {"spawn_new": True}])
@pytest.mark.parametrize(
    "situation", ["pending", "running", "asleep", "waiting", "completed", "cancelled", "failed_past_its_duration"]
)
def test_only_a_failed_task_can_be_retried(q: Queue, situation: str, options: dict[str, Any]) -> None:
    run = SITUATIONS[situation](q)
    with refused("P0001", f'Task "{run.task_id}" is not currently failed in queue "q"'):
        q.retry(run.task_id, **options)
    assert len(q.view("t")) == 1


@pytest.mark.parametrize("situation", ["unknown", "cleaned_up", "of_another_queue"])
def test_a_task_that_is_not_there_cannot_be_retried(q: Queue, situation: str) -> None:
    run = SITUATIONS[situation](q)
    with refused("P0001", f'Task "{run.task_id}" not found in queue "q"'):
        q.retry(run.task_id)


def test_options_of_a_retry_may_be_left_out(q: Queue) -> None:
    run = failed_task(q)
    assert q.call("retry_task", run["task_id"])[0]["attempt"] == 2


def test_retrying_twice_is_refused(q: Queue) -> None:
    run = failed_task(q)
    q.retry(run["task_id"])
    with refused("P0001", "is not currently failed"):
        q.retry(run["task_id"])
    assert q.states(run["task_id"]) == ("pending", ["failed", "pending"])


def test_of_two_retries_at_once_one_is_refused(q: Queue, connect: Connect, gate: Gate) -> None:
    run = failed_task(q)
    first = q.on(connect(autocommit=False))
    first.retry(run["task_id"])
    second = gate(lambda c: q.on(c).retry(run["task_id"])).wait_until_blocked()
    first.conn.commit()
    with refused("P0001", "is not currently failed"):
        second.result()
    assert q.states(run["task_id"]) == ("pending", ["failed", "pending"])


def test_cleanup_passes_by_a_task_that_is_being_retried(q: Queue, connect: Connect, clock: Clock) -> None:
    run = failed_task(q)
    retrying = q.on(connect(autocommit=False))
    retrying.retry(run["task_id"])
    clock.advance(q.conn, 3600)
    assert q.call("cleanup_tasks", 0) == [{"cleanup_tasks": 0}]
    retrying.conn.commit()
    assert q.call("cleanup_tasks", 0) == [{"cleanup_tasks": 0}]
    assert q.states(run["task_id"]) == ("pending", ["failed", "pending"])


def test_a_retry_behind_a_cleanup_finds_nothing(q: Queue, connect: Connect, clock: Clock, gate: Gate) -> None:
    run = failed_task(q)
    cleaning = q.on(connect(autocommit=False))
    clock.advance(cleaning.conn, 3600)
    cleaning.conn.commit()
    clock.advance(cleaning.conn, 3600)
    assert cleaning.call("cleanup_tasks", 0) == [{"cleanup_tasks": 1}]
    second = gate(lambda c: q.on(c).retry(run["task_id"])).wait_until_blocked()
    cleaning.conn.commit()
    with refused("P0001"):
        second.result()
    assert q.view("r") == []


def test_a_retried_task_past_its_duration_is_cancelled_by_the_next_claim(noon: Queue, clock: Clock) -> None:
    run = noon.start(max_attempts=1, cancellation={"max_duration": 100})
    noon.fail(run["run_id"])
    clock.set(noon.conn, after(500))
    noon.retry(run["task_id"])
    assert noon.claim() == []
    assert noon.states(run["task_id"]) == ("cancelled", ["failed", "cancelled"])


# ---------------------------------------------------------------- retry as a copy


def test_a_copy_takes_the_request_and_nothing_else(q: Queue) -> None:
    request = {
        "headers": {"h": [1]},
        "retry_strategy": {"kind": "none"},
        "cancellation": {"max_duration": 3600},
    }
    run = q.start(task_name="greet", params={"n": 1}, max_attempts=1, idempotency_key="k", **request)
    q.checkpoint(run, "a", 1)
    q.fail(run["run_id"])
    old = q.task(run["task_id"])
    copy = q.retry(run["task_id"], spawn_new=True)

    assert (copy["attempt"], copy["created"]) == (1, True)
    assert copy["task_id"] != run["task_id"]
    new = q.task(copy["task_id"])
    assert {k: new[k] for k in request} == request
    assert (new["task_name"], new["params"], new["max_attempts"]) == ("greet", {"n": 1}, 1)
    assert (new["idempotency_key"], new["state"]) == (None, "pending")
    assert q.checkpoints(copy["task_id"]) == {}
    assert q.task(run["task_id"]) == old


def test_a_copy_may_have_a_limit_of_its_own(q: Queue) -> None:
    run = failed_task(q)
    copy = q.retry(run["task_id"], spawn_new=True, max_attempts=9)
    assert q.task(copy["task_id"])["max_attempts"] == 9


def test_a_copy_of_an_unlimited_task_is_unlimited_whatever_the_queue_says(q: Queue) -> None:
    run = q.start()
    final = ("jsonb", [{}]), ("timestamptz", [None]), ("bool", [True])
    assert q.letters("fail_runs", [(run["run_id"], None)], *final) == "o"
    assert q.task(run["task_id"])["state"] == "failed"
    q.policy(default_max_attempts=3)
    copy = q.retry(run["task_id"], spawn_new=True)
    assert q.task(copy["task_id"])["max_attempts"] is None


def test_two_copies_are_two_tasks_unless_their_id_is_given(q: Queue) -> None:
    run = failed_task(q)
    assert q.retry(run["task_id"], spawn_new=True)["task_id"] != q.retry(run["task_id"], spawn_new=True)["task_id"]

    mine = minted()
    options = {"spawn_new": True, "task_id": str(mine)}
    first, again = (q.call("retry_task", run["task_id"], options)[0] for _ in range(2))
    assert (first["task_id"], first["created"], again["task_id"], again["created"]) == (mine, True, mine, False)


# ---------------------------------------------------------------- get_task_result


@pytest.mark.parametrize(
    ("situation", "state", "result", "reason"),
    [
        ("pending", "pending", None, None),
        ("running", "running", None, None),
        ("asleep", "sleeping", None, None),
        ("waiting", "sleeping", None, None),
        ("woken", "pending", None, None),
        ("completed", "completed", "done", None),
        ("failed", "failed", None, {"name": "Boom"}),
        ("retried", "pending", None, None),
        ("retried_by_hand", "pending", None, None),
        ("retried_then_completed", "completed", None, None),
        ("failed_past_its_duration", "cancelled", None, None),
        ("cancelled", "cancelled", None, None),
    ],
)
def test_how_a_task_stands(q: Queue, situation: str, state: str, result: Any, reason: Any) -> None:
    run = SITUATIONS[situation](q)
    expected = {"task_id": run.task_id, "state": state, "result": result, "failure_reason": reason}
    assert q.result(run.task_id) == expected
    assert q.result(run.task_id) == expected


@pytest.mark.parametrize("situation", ["unknown", "cleaned_up", "of_another_queue"])
def test_a_task_that_is_not_there_has_no_row(q: Queue, situation: str) -> None:
    assert q.call("get_task_result", SITUATIONS[situation](q).task_id) == []


def test_a_null_result_is_json_null(q: Queue) -> None:
    run = q.start()
    q.call("complete_run", run["run_id"], Jsonb(None))
    assert q.rows("select result::text from absurd.get_task_result('q', %s)", (run["task_id"],)) == [{"result": "null"}]


def test_reading_a_result_waits_for_nobody(q: Queue, connect: Connect) -> None:
    run = q.start()
    holder = q.on(connect(autocommit=False))
    holder.complete(run["run_id"], 1)
    assert q.result(run["task_id"])["state"] == "running"
    holder.conn.commit()
    assert q.result(run["task_id"])["state"] == "completed"


def test_policies_are_enforced_without_a_claim_a_hundred_at_a_time(noon: Queue, clock: Clock) -> None:
    running = noon.start(cancellation={"max_duration": 1})
    for _ in range(120):
        noon.spawn(cancellation={"max_delay": 1})
    fine = noon.spawn(cancellation={"max_delay": 100})
    clock.set(noon.conn, after(60))
    enforce = "select absurd.enforce_policies(%s)"
    assert [noon.value(enforce, ([noon.id, 99],)) for _ in range(3)] == [100, 21, 0]
    assert noon.task(running["task_id"])["state"] == "cancelled"
    assert noon.task(fine["task_id"])["state"] == "pending"


def test_enforcing_policies_passes_by_what_somebody_holds(noon: Queue, clock: Clock, connect: Connect) -> None:
    held, free = (noon.spawn(cancellation={"max_delay": 1})["task_id"] for _ in range(2))
    clock.set(noon.conn, after(60))
    with connect(autocommit=False) as other:
        other.execute("select 1 from absurd.live where task_id = %s for update", (held,))
        assert noon.value("select absurd.enforce_policies(%s)", ([noon.id],)) == 1
    assert noon.task(free)["state"] == "cancelled"
    assert noon.value("select absurd.enforce_policies(%s)", ([noon.id],)) == 1
