"""Claim: order, leases, the sweep, cancellation policies (contract, section 6)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fixtures.clock import Clock
from tests.fixtures.postgres import Connect
from tests.sql.driver import NOON, Queue, Row, after, run_of

DELAYED = {"kind": "fixed", "base_seconds": 60}


def task_ids(rows: list[Row]) -> list[Any]:
    return [row["task_id"] for row in rows]


def fails(q: Queue) -> list[Row]:
    return q.view("r", "state = 'failed' order by claim_expires_at")


def test_a_claim_hands_out_the_task_and_shows_in_both_rows(noon: Queue, clock: Clock) -> None:
    spawned = noon.spawn(
        "greet", {"n": 1}, headers={"h": 1}, retry_strategy={"kind": "fixed", "base_seconds": 5}, max_attempts=3
    )
    before = noon.run(spawned["run_id"])
    clock.set(noon.conn, after(2.5))
    (claimed,) = noon.claim("w7", 30)

    assert claimed == {
        "run_id": spawned["run_id"],
        "task_id": spawned["task_id"],
        "attempt": 1,
        "task_name": "greet",
        "params": {"n": 1},
        "retry_strategy": {"kind": "fixed", "base_seconds": 5},
        "max_attempts": 3,
        "headers": {"h": 1},
        "wake_event": None,
        "event_payload": None,
    }
    assert noon.run(spawned["run_id"]) == before | {
        "state": "running",
        "claimed_by": "w7",
        "claim_expires_at": after(32.5),
        "started_at": after(2.5),
        "available_at": after(2.5),
    }
    task = noon.task(spawned["task_id"])
    assert (task["state"], task["attempts"], task["first_started_at"]) == ("running", 1, after(2.5))
    assert task["last_attempt_run"] == spawned["run_id"]
    assert noon.claim() == []


@pytest.mark.parametrize(("worker", "shown"), [("", "worker"), ("  ", "worker"), (None, "worker"), ("w", "w")])
def test_a_worker_without_a_name_is_called_worker(q: Queue, worker: str, shown: str) -> None:
    run = q.spawn()["run_id"]
    q.claim(worker)
    assert q.run(run)["claimed_by"] == shown


@pytest.mark.parametrize(("timeout", "lease"), [(None, 30), (1, 1), (86400, 86400)])
def test_a_lease_ends_after_the_timeout(noon: Queue, timeout: int | None, lease: int) -> None:
    run = noon.spawn()["run_id"]
    noon.claim(timeout=timeout)
    assert noon.run(run)["claim_expires_at"] == after(lease)


def test_the_timeout_and_the_quantity_have_defaults(noon: Queue) -> None:
    noon.spawn()
    noon.spawn()
    (claimed,) = noon.call("claim_task", "w")
    assert noon.run(claimed["run_id"])["claim_expires_at"] == after(30)


@pytest.mark.parametrize("timeout", [0, -5])
def test_a_claim_without_a_lease_is_never_swept(noon: Queue, clock: Clock, timeout: int) -> None:
    run = noon.spawn()["run_id"]
    noon.claim(timeout=timeout)
    clock.set(noon.conn, after(1e8))

    assert noon.claim() == []
    assert noon.run(run)["claim_expires_at"] is None
    noon.complete(run)


@pytest.mark.parametrize(("qty", "count"), [(None, 1), (0, 1), (-3, 1), (1, 1), (2, 2), (3, 3), (50, 3)])
def test_at_most_the_asked_number_is_claimed(q: Queue, qty: int | None, count: int) -> None:
    for _ in range(3):
        q.spawn()
    assert len(q.claim(qty=qty)) == count


def test_claims_stay_in_their_queue(q: Queue) -> None:
    q.spawn()
    assert q.named("other").claim(qty=9) == []


# ---------------------------------------------------------------- order


def test_what_is_available_longest_is_claimed_first(noon: Queue, clock: Clock) -> None:
    spawned = [noon.spawn(delay_seconds=delay)["task_id"] for delay in (3, 1, 2)]
    clock.set(noon.conn, after(3))
    assert [noon.claim()[0]["task_id"] for _ in spawned] == [spawned[i] for i in (1, 2, 0)]


def test_what_is_available_at_the_same_moment_is_claimed_in_the_order_of_its_ids(noon: Queue) -> None:
    rows = noon.spawns(["t"] * 30)
    order = sorted(row["task_id"] for row in rows)
    assert task_ids(noon.claim(qty=10)) == order[:10]
    assert task_ids(noon.claim(qty=50)) == order[10:]


def test_the_answer_is_in_the_order_of_run_ids(noon: Queue, clock: Clock) -> None:
    late = noon.spawn(delay_seconds=5)["task_id"]
    clock.set(noon.conn, after(1))
    early = noon.spawn()["task_id"]
    clock.set(noon.conn, after(5))
    assert task_ids(noon.claim(qty=2)) == sorted([late, early]) == [late, early]


def test_a_sleeping_run_is_due_at_its_very_instant(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    noon.schedule(run["run_id"], after(10))
    clock.set(noon.conn, after(9.999999))
    assert noon.claim() == []
    clock.set(noon.conn, after(10))
    assert [r["run_id"] for r in noon.claim()] == [run["run_id"]]


def test_a_resumed_run_keeps_its_attempt_and_its_first_start(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    noon.schedule(run["run_id"], after(10))
    clock.set(noon.conn, after(20))
    (again,) = noon.claim("w2")

    assert (again["run_id"], again["attempt"]) == (run["run_id"], 1)
    task, row = noon.task(run["task_id"]), noon.run(run["run_id"])
    assert (task["attempts"], task["first_started_at"]) == (1, NOON)
    assert (row["started_at"], row["created_at"]) == (after(20), NOON)


# ---------------------------------------------------------------- two workers


def test_two_workers_at_once_get_different_tasks(q: Queue, connect: Connect) -> None:
    spawned = [q.spawn()["task_id"] for _ in range(4)]
    first = q.on(connect(autocommit=False))
    mine = task_ids(first.claim(qty=2))
    yours = task_ids(q.claim(qty=5))
    first.conn.commit()
    assert (set(mine), set(yours)) == (set(spawned[:2]), set(spawned[2:]))


def test_a_run_somebody_holds_does_not_hold_up_the_claim_of_others(noon: Queue, connect: Connect, clock: Clock) -> None:
    """W21: neither the sweep of leases nor that of cancellations waits."""
    doomed, expired = noon.spawn(cancellation={"max_duration": 5}), noon.spawn()
    noon.claim(qty=2, timeout=5)
    for _ in range(3):
        noon.spawn()
    holder = connect(autocommit=False)
    holder.execute("select 1 from absurd.live where task_id = any(%s) for update", (task_ids([doomed, expired]),))
    clock.set(noon.conn, after(60))

    assert len(noon.claim(qty=10)) == 3
    assert [noon.states(row["task_id"])[0] for row in (doomed, expired)] == ["running", "running"]
    holder.rollback()
    noon.claim(qty=10)
    assert [noon.states(row["task_id"]) for row in (doomed, expired)] == [
        ("cancelled", ["cancelled"]),
        ("running", ["failed", "running"]),
    ]


# ---------------------------------------------------------------- the sweep of leases


def test_a_lease_that_ran_out_fails_the_run_with_the_reason_and_keeps_the_claim_on_it(
    noon: Queue, clock: Clock
) -> None:
    spawned = noon.spawn()
    noon.claim("w7", 30)
    clock.set(noon.conn, after(29.999999))
    assert noon.claim() == []
    clock.set(noon.conn, after(30))
    (again,) = noon.claim("w8", 10)

    assert again["run_id"] == run_of(spawned["task_id"], 2)
    assert again["attempt"] == 2
    failed = noon.run(spawned["run_id"])
    message = failed["failure_reason"].pop("message")
    assert isinstance(message, str)
    assert "w7" in message
    expired_at = failed["failure_reason"].pop("claimExpiredAt")
    assert noon.value("select %s::timestamptz", (expired_at,)) == after(30)
    assert failed["failure_reason"] == {"name": "$ClaimTimeout", "workerId": "w7", "attempt": 1}
    assert failed["state"] == "failed"
    assert failed["failed_at"] == after(30)
    assert (failed["claimed_by"], failed["claim_expires_at"]) == ("w7", after(30))
    assert (failed["started_at"], failed["available_at"]) == (NOON, NOON)
    task = noon.task(spawned["task_id"])
    assert (task["state"], task["attempts"], task["first_started_at"]) == ("running", 2, NOON)
    assert task["last_attempt_run"] == again["run_id"]
    assert noon.run(again["run_id"])["created_at"] == after(30)


@pytest.mark.parametrize("qty", [1, 2])
@pytest.mark.parametrize("strategy", [None, DELAYED], ids=["immediate retry", "delayed retry"])
def test_one_claim_sweeps_at_most_its_quantity_oldest_first(
    noon: Queue, clock: Clock, qty: int, strategy: dict[str, Any] | None
) -> None:
    for i in range(5):
        clock.set(noon.conn, after(i))
        noon.spawn(retry_strategy=strategy)
        noon.claim(timeout=30)
    clock.set(noon.conn, after(100))

    claimed = noon.claim(qty=qty)
    assert [r["claim_expires_at"] for r in fails(noon)] == [after(30 + i) for i in range(qty)]
    if strategy is None:
        assert [r["attempt"] for r in claimed] == [2] * qty
    else:
        assert claimed == []
        retries = noon.view("r", "attempt = 2")
        assert [(r["state"], r["available_at"]) for r in retries] == [("sleeping", after(160))] * qty
    noon.claim(qty=qty)
    assert len(fails(noon)) == min(2 * qty, 5)


def test_ready_work_is_claimed_beside_the_sweep(noon: Queue, clock: Clock) -> None:
    for _ in range(3):
        noon.spawn(retry_strategy=DELAYED)
    noon.claim(qty=3, timeout=5)
    ready = noon.spawn()
    clock.set(noon.conn, after(5))
    assert task_ids(noon.claim()) == [ready["task_id"]]
    assert len(fails(noon)) == 1


def test_a_renewed_lease_is_not_swept_at_its_old_end(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    other = noon.start()
    noon.extend(run["run_id"], 600)
    clock.set(noon.conn, after(60))
    assert [r["run_id"] for r in noon.claim(qty=2)] == [run_of(other["task_id"], 2)]
    assert noon.run(run["run_id"])["state"] == "running"

    clock.set(noon.conn, after(600))
    assert run_of(run["task_id"], 2) in [r["run_id"] for r in noon.claim(qty=2)]


def test_a_lease_that_ran_out_is_found_behind_renewed_ones(noon: Queue, clock: Clock) -> None:
    renewed = [noon.start()["run_id"] for _ in range(12)]
    clock.set(noon.conn, after(1))
    expired = noon.start()
    clock.set(noon.conn, after(2))
    for run_id in renewed:
        noon.extend(run_id, 600)
    clock.set(noon.conn, after(61))
    assert [r["run_id"] for r in noon.claim()] == [run_of(expired["task_id"], 2)]


def test_the_sweep_ends_a_task_without_attempts(noon: Queue, clock: Clock) -> None:
    run = noon.start(max_attempts=1)
    clock.set(noon.conn, after(60))
    assert noon.claim() == []
    assert noon.states(run["task_id"]) == ("failed", ["failed"])
    assert noon.result(run["task_id"])["failure_reason"]["name"] == "$ClaimTimeout"


# ---------------------------------------------------------------- cancellation policies


def test_a_task_not_started_in_time_is_cancelled_at_the_very_instant(noon: Queue, clock: Clock) -> None:
    spawned = noon.spawn(cancellation={"max_delay": 10})
    clock.set(noon.conn, after(9.999999))
    assert noon.states(spawned["task_id"])[0] == "pending"
    clock.set(noon.conn, after(10))

    assert noon.claim() == []
    assert noon.states(spawned["task_id"]) == ("cancelled", ["cancelled"])
    assert noon.task(spawned["task_id"])["cancelled_at"] == after(10)


def test_a_task_started_in_time_is_not_cancelled_for_its_delay(noon: Queue, clock: Clock) -> None:
    run = noon.start(cancellation={"max_delay": 10})
    clock.set(noon.conn, after(20))
    assert noon.claim() == []
    noon.complete(run["run_id"])


def test_the_delay_is_counted_from_the_asked_start(noon: Queue, clock: Clock) -> None:
    spawned = noon.spawn(cancellation={"max_delay": 10}, delay_seconds=100)
    clock.set(noon.conn, after(105))
    assert task_ids(noon.claim()) == [spawned["task_id"]]


@pytest.mark.parametrize("state", ["running", "sleeping", "waiting", "pending again"])
def test_a_task_past_its_duration_is_cancelled_whatever_it_does(noon: Queue, clock: Clock, state: str) -> None:
    run = noon.start(cancellation={"max_duration": 10})
    if state == "sleeping":
        noon.schedule(run["run_id"], after(3600))
    elif state == "waiting":
        assert noon.await_event(run, "e") == (True, None)
    elif state == "pending again":
        noon.fail(run["run_id"])
    last = noon.task(run["task_id"])["last_attempt_run"]
    clock.set(noon.conn, after(10))

    assert noon.claim(qty=5) == []
    task, row = noon.task(run["task_id"]), noon.run(last)
    assert (task["state"], task["cancelled_at"]) == ("cancelled", after(10))
    assert (row["state"], row["claimed_by"], row["claim_expires_at"]) == ("cancelled", None, None)
    assert noon.waits() == []


def test_the_duration_runs_from_the_first_start_over_all_attempts(noon: Queue, clock: Clock) -> None:
    clock.set(noon.conn, after(0))
    spawned = noon.spawn(cancellation={"max_duration": 100})
    clock.set(noon.conn, after(50))
    (run,) = noon.claim()
    clock.set(noon.conn, after(90))
    noon.fail(run["run_id"])
    noon.claim(timeout=3600)
    clock.set(noon.conn, after(149))
    assert noon.claim() == []
    assert noon.states(spawned["task_id"])[0] == "running"
    clock.set(noon.conn, after(150))
    noon.claim()
    assert noon.states(spawned["task_id"]) == ("cancelled", ["failed", "cancelled"])


def test_cancellation_wins_over_a_lease_that_ends_at_the_same_instant(noon: Queue, clock: Clock) -> None:
    run = noon.start(cancellation={"max_duration": 60})
    clock.set(noon.conn, after(60))
    assert noon.claim() == []
    assert noon.states(run["task_id"]) == ("cancelled", ["cancelled"])


def test_cancellation_wins_over_a_start_that_falls_due_at_the_same_instant(noon: Queue, clock: Clock) -> None:
    run = noon.start(cancellation={"max_duration": 10})
    noon.schedule(run["run_id"], after(10))
    clock.set(noon.conn, after(10))
    assert noon.claim() == []
    assert noon.states(run["task_id"]) == ("cancelled", ["cancelled"])


def test_a_task_past_its_deadline_is_cancelled_though_it_lies_behind_a_backlog(noon: Queue, clock: Clock) -> None:
    noon.spawns(["t"] * 500)
    doomed = noon.spawn(cancellation={"max_delay": 1}, priority=-5)
    clock.set(noon.conn, after(1))
    assert len(noon.claim()) == 1
    assert noon.states(doomed["task_id"])[0] == "cancelled"


def test_one_claim_cancels_a_hundred_at_most_and_hands_out_none_of_the_rest(noon: Queue, clock: Clock) -> None:
    """W22: a storm of cancellations is taken in bites; a task past its deadline starts in none of them."""
    noon.spawns(["t"] * 250, spec=[1] * 250, specs=[{"cancellation": {"max_delay": 1}}])
    fine = noon.spawn()
    clock.set(noon.conn, after(1))
    cancelled = []
    claimed = noon.claim(qty=10)
    for _ in range(3):
        cancelled.append(len(noon.view("t", "state = 'cancelled'")))
        claimed += noon.claim(qty=10)

    assert cancelled == [100, 200, 250]
    assert task_ids(claimed) == [fine["task_id"]]
