"""Complete, fail, schedule: the transitions and what the rows show (contract, sections 3 and 7).

What these verbs answer for a run they cannot write stands in test_verdicts.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from tests.fixtures.clock import Clock
from tests.fixtures.gates import Gate
from tests.fixtures.postgres import Connect
from tests.sql.driver import NOON, Queue, after, refused, run_of

FIXED = {"kind": "fixed", "base_seconds": 60}


def claimed_long(q: Queue, **options: Any) -> dict[str, Any]:
    """A task claimed for a week, so that no sweep interferes."""
    spawned = q.spawn(**options)
    q.claim(timeout=604800)
    return spawned


# ---------------------------------------------------------------- complete


def test_a_completed_run_keeps_its_claim_and_hands_its_result_to_the_task(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    task, row = noon.task(run["task_id"]), noon.run(run["run_id"])
    clock.set(noon.conn, after(1.5))
    noon.complete(run["run_id"], {"answer": [42]})

    assert noon.run(run["run_id"]) == row | {
        "state": "completed",
        "completed_at": after(1.5),
        "result": {"answer": [42]},
    }
    assert (row["claimed_by"], row["claim_expires_at"]) == ("w1", after(60))
    assert noon.task(run["task_id"]) == task | {"state": "completed", "completed_payload": {"answer": [42]}}
    assert noon.result(run["task_id"]) == {
        "task_id": run["task_id"],
        "state": "completed",
        "result": {"answer": [42]},
        "failure_reason": None,
    }
    assert noon.claim() == []


@pytest.mark.parametrize(
    ("call", "stored"),
    [
        ("complete_run('q', %s)", None),
        ("complete_run('q', %s, null)", None),
        ("complete_run('q', %s, 'null')", "null"),
    ],
)
def test_no_result_is_sql_null_and_a_null_result_is_json_null(q: Queue, call: str, stored: str | None) -> None:
    q.conn.execute(f"select absurd.{call}", (q.start()["run_id"],))  # type: ignore[arg-type, unused-ignore]
    assert q.rows("select result::text, completed_payload::text from absurd.r_q join absurd.t_q using (task_id)") == [
        {"result": stored, "completed_payload": stored}
    ]


def test_a_lease_that_ran_out_unnoticed_does_not_matter_to_complete(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    clock.set(noon.conn, after(3600))
    noon.complete(run["run_id"])
    assert noon.states(run["task_id"]) == ("completed", ["completed"])


def test_a_run_completed_after_an_event_has_no_wait_left(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    noon.await_event(run, "e", timeout=5)
    clock.set(noon.conn, after(5))
    (run,) = noon.claim()
    noon.complete(run["run_id"])
    assert noon.waits() == []
    assert noon.run(run["run_id"])["wake_event"] == "e"


def test_completing_twice_is_refused_and_the_first_result_stays(q: Queue) -> None:
    run = q.start()
    q.complete(run["run_id"], 1)
    with refused("P0001", f'Run "{run["run_id"]}" is not currently running in queue "q"'):
        q.complete(run["run_id"], 2)
    assert q.result(run["task_id"])["result"] == 1


def test_of_two_completions_at_once_one_is_refused(q: Queue, connect: Connect, gate: Gate) -> None:
    run = q.start()
    first = q.on(connect(autocommit=False))
    first.complete(run["run_id"], 1)
    second = gate(lambda c: q.on(c).complete(run["run_id"], 2)).wait_until_blocked()
    first.conn.commit()
    with refused("P0001", "is not currently running"):
        second.result()
    assert q.result(run["task_id"])["result"] == 1


def test_a_completion_behind_a_failure_gets_the_failures_answer(q: Queue, connect: Connect, gate: Gate) -> None:
    run = q.start()
    first = q.on(connect(autocommit=False))
    first.fail(run["run_id"])
    second = gate(lambda c: q.on(c).complete(run["run_id"], 2)).wait_until_blocked()
    first.conn.commit()
    with refused("AB002"):
        second.result()
    assert q.states(run["task_id"]) == ("pending", ["failed", "pending"])


# ---------------------------------------------------------------- fail


def test_a_failed_run_keeps_its_claim_and_a_new_run_is_due(noon: Queue, clock: Clock) -> None:
    run = noon.start(max_attempts=2)
    task, row = noon.task(run["task_id"]), noon.run(run["run_id"])
    clock.set(noon.conn, after(1))
    noon.fail(run["run_id"], {"name": "Boom", "message": "ü"})

    second = run_of(run["task_id"], 2)
    assert noon.run(run["run_id"]) == row | {
        "state": "failed",
        "failed_at": after(1),
        "failure_reason": {"name": "Boom", "message": "ü"},
    }
    assert noon.task(run["task_id"]) == task | {"state": "pending", "attempts": 2, "last_attempt_run": second}
    assert noon.run(second) == row | {
        "run_id": second,
        "attempt": 2,
        "state": "pending",
        "claimed_by": None,
        "claim_expires_at": None,
        "available_at": after(1),
        "started_at": None,
        "created_at": after(1),
    }
    assert noon.claim()[0]["run_id"] == second
    assert noon.result(run["task_id"])["failure_reason"] is None


def test_the_last_attempt_fails_the_task(noon: Queue, clock: Clock) -> None:
    run = noon.start(max_attempts=1)
    task = noon.task(run["task_id"])
    clock.set(noon.conn, after(1))
    noon.fail(run["run_id"], {"name": "Boom"})

    assert noon.task(run["task_id"]) == task | {"state": "failed"}
    assert noon.states(run["task_id"]) == ("failed", ["failed"])
    assert noon.result(run["task_id"]) == {
        "task_id": run["task_id"],
        "state": "failed",
        "result": None,
        "failure_reason": {"name": "Boom"},
    }
    assert noon.claim() == []


@pytest.mark.parametrize(("limit", "runs"), [(1, 1), (2, 2), (3, 3), (None, 6)])
def test_a_task_gets_as_many_runs_as_its_limit_allows(q: Queue, limit: int | None, runs: int) -> None:
    task_id = q.spawn(max_attempts=limit)["task_id"]
    for _ in range(5):
        for run in q.claim():
            q.fail(run["run_id"])
    state, states = q.states(task_id)
    assert (state, len(states)) == ("pending" if limit is None else "failed", runs)


@pytest.mark.parametrize(
    ("strategy", "delays"),
    [
        (None, [0, 0, 0]),
        ({"kind": "none"}, [0, 0, 0]),
        ({"kind": "fixed"}, [60, 60, 60]),
        ({"kind": "fixed", "base_seconds": 0.000001}, [0.000001] * 3),
        ({"kind": "exponential"}, [30, 60, 120, 240]),
        ({"kind": "exponential", "base_seconds": 1.25, "factor": 3}, [1.25, 3.75, 11.25, 33.75]),
        ({"kind": "exponential", "base_seconds": 10, "max_seconds": 25}, [10, 20, 25, 25]),
    ],
)
def test_the_next_run_starts_after_the_delay_of_the_strategy(
    noon: Queue, clock: Clock, strategy: Any, delays: list[float]
) -> None:
    task_id = noon.spawn(retry_strategy=strategy)["task_id"]
    now: datetime = NOON
    for attempt, delay in enumerate(delays, 1):
        (run,) = noon.claim(timeout=86400)
        assert run["attempt"] == attempt
        noon.fail(run["run_id"])
        due = after(delay, now)
        following = noon.run(run_of(task_id, attempt + 1))
        assert (following["state"], following["available_at"]) == ("sleeping" if delay else "pending", due)
        assert noon.task(task_id)["state"] == following["state"]
        now = clock.set(noon.conn, due)


@pytest.mark.parametrize(
    ("retry_at", "state", "due"),
    [(after(7.25), "sleeping", after(7.25)), (after(-100), "pending", NOON), (NOON, "pending", NOON)],
)
def test_a_given_retry_time_wins_over_the_strategy_but_is_never_in_the_past(
    noon: Queue, retry_at: datetime, state: str, due: datetime
) -> None:
    run = noon.start(retry_strategy=FIXED)
    noon.fail(run["run_id"], retry_at=retry_at)
    following = noon.run(run_of(run["task_id"], 2))
    assert (following["state"], following["available_at"]) == (state, due)


@pytest.mark.parametrize(("duration", "task_state"), [(60, "cancelled"), (60.000001, "sleeping"), (59.5, "cancelled")])
def test_a_next_start_at_or_past_the_duration_cancels_the_task(
    noon: Queue, clock: Clock, duration: float, task_state: str
) -> None:
    run = claimed_long(noon, retry_strategy=FIXED, cancellation={"max_duration": duration})
    noon.fail(run["run_id"], {"name": "Boom"})

    task = noon.task(run["task_id"])
    failed = noon.run(run["run_id"])
    assert (task["state"], failed["state"], failed["failure_reason"]) == (task_state, "failed", {"name": "Boom"})
    if task_state == "cancelled":
        assert (task["cancelled_at"], task["last_attempt_run"], task["attempts"]) == (NOON, run["run_id"], 1)
        assert len(noon.view("r")) == 1
        assert noon.result(run["task_id"])["failure_reason"] is None
    else:
        assert noon.run(run_of(run["task_id"], 2))["available_at"] == after(60)


def test_no_attempts_left_is_decided_before_the_duration(noon: Queue) -> None:
    run = claimed_long(noon, retry_strategy=FIXED, cancellation={"max_duration": 1}, max_attempts=1)
    noon.fail(run["run_id"])
    assert noon.states(run["task_id"]) == ("failed", ["failed"])


def test_the_duration_of_a_failing_task_counts_from_its_first_start(noon: Queue, clock: Clock) -> None:
    task_id = claimed_long(noon, retry_strategy=FIXED, cancellation={"max_duration": 100})["task_id"]
    clock.set(noon.conn, after(30))
    noon.fail(run_of(task_id, 1))
    clock.set(noon.conn, after(90))
    noon.claim(timeout=3600)
    clock.set(noon.conn, after(95))
    noon.fail(run_of(task_id, 2))
    assert noon.states(task_id) == ("cancelled", ["failed", "failed"])


@pytest.mark.parametrize("sleep", ["timer", "event"])
def test_a_sleeping_run_can_be_failed_and_its_wait_goes(noon: Queue, sleep: str) -> None:
    run = noon.start()
    if sleep == "timer":
        noon.schedule(run["run_id"], after(10))
    else:
        noon.await_event(run, "e")
    noon.fail(run["run_id"])

    row = noon.run(run["run_id"])
    assert (row["state"], row["wake_event"]) == ("failed", None)
    assert noon.states(run["task_id"]) == ("pending", ["failed", "pending"])
    assert noon.waits() == []
    noon.emit("e", 1)
    assert noon.claim()[0]["event_payload"] is None


def test_a_stored_strategy_that_nobody_can_follow_fails_the_task_for_good(q: Queue) -> None:
    run = q.start()
    q.conn.execute("update absurd.tasks set retry_strategy = %s", (Jsonb({"kind": "lunar"}),))
    q.fail(run["run_id"], {"name": "Boom"})
    assert q.states(run["task_id"]) == ("failed", ["failed"])
    assert q.result(run["task_id"])["failure_reason"] == {"name": "Boom"}


def test_failing_twice_is_refused_and_makes_one_new_run(q: Queue) -> None:
    run = q.start()
    q.fail(run["run_id"])
    with refused("AB002", "failed"):
        q.fail(run["run_id"])
    assert q.states(run["task_id"]) == ("pending", ["failed", "pending"])


def test_of_two_failures_at_once_one_is_refused(q: Queue, connect: Connect, gate: Gate) -> None:
    run = q.start()
    first = q.on(connect(autocommit=False))
    first.fail(run["run_id"], {"name": "First"})
    second = gate(lambda c: q.on(c).fail(run["run_id"], {"name": "Second"})).wait_until_blocked()
    first.conn.commit()
    with refused("AB002"):
        second.result()
    assert q.run(run["run_id"])["failure_reason"] == {"name": "First"}


@pytest.mark.expects_violations  # 65,534 earlier runs are not written out
@pytest.mark.parametrize("limit", [None, 100000])
def test_attempt_65535_is_the_last_whatever_the_limit(q: Queue, limit: int | None) -> None:
    run = q.start(max_attempts=limit)
    q.conn.execute("update absurd.live set attempt = 65535")
    q.fail(run_of(run["task_id"], 65535), {"name": "Boom"})

    assert q.task(run["task_id"])["state"] == "failed"
    assert q.result(run["task_id"])["failure_reason"] == {"name": "Boom", "limit": "$AttemptLimit"}
    with refused("P0001", f'Task "{run["task_id"]}" has used its last attempt (65535)'):
        q.retry(run["task_id"])
    assert q.retry(run["task_id"], spawn_new=True)["attempt"] == 1


@pytest.mark.expects_violations
def test_attempt_65535_ended_by_its_lease_is_the_last_too(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    noon.conn.execute("update absurd.live set attempt = 65535")
    clock.set(noon.conn, after(60))
    assert noon.claim() == []
    reason = noon.result(run["task_id"])["failure_reason"]
    assert (reason["name"], reason["limit"]) == ("$ClaimTimeout", "$AttemptLimit")


# ---------------------------------------------------------------- schedule


def test_a_scheduled_run_sleeps_without_a_claim(noon: Queue) -> None:
    run = noon.start()
    task, row = noon.task(run["task_id"]), noon.run(run["run_id"])
    noon.schedule(run["run_id"], after(0.000001))

    assert noon.run(run["run_id"]) == row | {
        "state": "sleeping",
        "claimed_by": None,
        "claim_expires_at": None,
        "available_at": after(0.000001),
    }
    assert noon.task(run["task_id"]) == task | {"state": "sleeping"}


def test_a_run_scheduled_into_the_past_sleeps_and_can_be_claimed_at_once(noon: Queue) -> None:
    run = noon.start()
    noon.schedule(run["run_id"], after(-10))
    assert noon.run(run["run_id"])["state"] == "sleeping"
    assert [r["run_id"] for r in noon.claim()] == [run["run_id"]]


def test_scheduling_forgets_what_woke_the_run(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    noon.await_event(run, "e")
    noon.emit("e", {"n": 1})
    (woken,) = noon.claim()
    assert woken["event_payload"] == {"n": 1}
    noon.schedule(run["run_id"], after(1))
    clock.set(noon.conn, after(1))
    (resumed,) = noon.claim()
    assert (resumed["wake_event"], resumed["event_payload"]) == (None, None)


def test_a_run_cannot_be_scheduled_without_a_moment_or_twice(noon: Queue) -> None:
    run = noon.start()
    with refused("P0001", "wake_at must be provided"):
        noon.call("schedule_run", run["run_id"], None)
    noon.schedule(run["run_id"], after(1))
    with refused("P0001", f'Run "{run["run_id"]}" is not currently running in queue "q"'):
        noon.schedule(run["run_id"], after(2))
    assert noon.run(run["run_id"])["available_at"] == after(1)


def test_a_schedule_behind_a_cancellation_finds_the_run_gone(q: Queue, connect: Connect, gate: Gate) -> None:
    run = q.start()
    first = q.on(connect(autocommit=False))
    first.cancel(run["task_id"])
    second = gate(lambda c: q.on(c).schedule(run["run_id"], NOON)).wait_until_blocked()
    first.conn.commit()
    with refused("P0001", "is not currently running"):
        second.result()


def test_a_failure_may_say_in_how_many_seconds_the_next_attempt_starts(noon: Queue) -> None:
    one, other = noon.hold(2, retry_strategy={"kind": "fixed", "base_seconds": 5})
    noon.array("fail_runs", [one, other], ("jsonb", [{}, {}]), tail=", null, null, array[7200, null]::float8[]")
    assert noon.run(run_of(one.task_id, 2))["available_at"] == after(7200)
    assert noon.run(run_of(other.task_id, 2))["available_at"] == after(5)
