"""Await and emit: latches, wake-ups, timeouts that last (contract, section 9; design, durable timeout)."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg.types.json import Jsonb

from tests.fixtures.clock import Clock
from tests.fixtures.gates import Gate
from tests.fixtures.postgres import Connect
from tests.sql.driver import INFINITY, Queue, Row, after, refused, run_of
from tests.sql.situations import SITUATIONS

SUSPEND = (True, None)
TIMED_OUT = (False, None)


def events(q: Queue) -> dict[str, Any]:
    return {e["event_name"]: e["payload"] for e in q.view("e", "payload is not null")}


def reclaim(q: Queue) -> Row:
    (run,) = q.claim(timeout=60)
    return run


# ---------------------------------------------------------------- waiting


@pytest.mark.parametrize(("timeout", "due"), [(None, INFINITY), (5, after(5)), (0, after(0))])
def test_a_run_that_must_wait_sleeps_with_a_wait(noon: Queue, clock: Clock, timeout: int | None, due: Any) -> None:
    run = noon.start()
    task, row = noon.task(run["task_id"]), noon.run(run["run_id"])
    assert noon.await_event(run, "e", "step", timeout) == SUSPEND

    assert noon.run(run["run_id"]) == row | {
        "state": "sleeping",
        "claimed_by": None,
        "claim_expires_at": None,
        "available_at": due,
        "wake_event": "e",
    }
    assert noon.task(run["task_id"]) == task | {"state": "sleeping"}
    assert noon.waits() == [
        {
            "task_id": run["task_id"],
            "run_id": run["run_id"],
            "step_name": "step",
            "event_name": "e",
            "timeout_at": None if timeout is None else due,
            "created_at": after(0),
        }
    ]
    assert events(noon) == {}


def test_the_timeout_of_a_wait_may_be_left_out(q: Queue) -> None:
    run = q.start()
    assert q.call("await_event", run["task_id"], run["run_id"], "s", "e") == [{"should_suspend": True, "payload": None}]


@pytest.mark.parametrize("name", [None, "", "  "])
def test_a_wait_and_an_emit_need_the_name_of_an_event(q: Queue, name: str | None) -> None:
    run = q.start()
    with refused("P0001", "event_name must be provided"):
        q.await_event(run, name)
    with refused("P0001", "event_name must be provided"):
        q.call("emit_event", name)
    assert q.view("e") == q.waits() == []


def test_a_wait_needs_a_step_and_no_negative_timeout(q: Queue) -> None:
    run = q.start()
    with refused("P0001", "timeout must be non-negative"):
        q.await_event(run, "e", timeout=-1)
    with refused("P0001", "step_name must be provided"):
        q.await_event(run, "e", " ")
    assert q.view("e") == q.waits() == []


def test_a_refused_wait_leaves_no_trace_of_its_event(q: Queue) -> None:
    run = SITUATIONS["cancelled"](q)
    with refused("AB001"):
        q.await_event(run.row, "e")
    assert q.view("e") == []


def test_a_run_cannot_wait_for_another_task(q: Queue) -> None:
    """W8."""
    mine, other = q.start(), q.start()
    with refused("P0001", f'Run "{mine["run_id"]}" does not belong to task "{other["task_id"]}"'):
        q.await_event({"task_id": other["task_id"], "run_id": mine["run_id"]}, "e")
    assert [q.states(r["task_id"])[0] for r in (mine, other)] == ["running", "running"]


@pytest.mark.parametrize("situation", ["completed", "failed", "cancelled", "asleep", "pending"])
def test_a_stored_answer_is_given_whatever_became_of_the_run(q: Queue, situation: str) -> None:
    run = SITUATIONS[situation](q)
    q.conn.execute(
        "insert into absurd.checkpoints (queue_id, task_id, name, state, attempt) values (%s, %s, 'wait', '7', 1)",
        (q.id, run.task_id),
    )
    assert q.await_event(run.row, "e") == (False, "7")
    assert q.view("e", "event_name = 'e'") == []


# ---------------------------------------------------------------- emitting


def test_an_emit_wakes_who_waits_and_stores_the_payload(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    noon.await_event(run, "e", "step", 3600)
    row = noon.run(run["run_id"])
    clock.set(noon.conn, after(1))
    noon.emit("e", {"n": 1})

    assert noon.run(run["run_id"]) == row | {
        "state": "pending",
        "available_at": after(1),
        "wake_event": None,
        "event_payload": {"n": 1},
    }
    assert noon.task(run["task_id"])["state"] == "pending"
    assert noon.waits() == []
    assert noon.view("e") == [{"event_name": "e", "payload": {"n": 1}, "emitted_at": after(1)}]
    assert noon.view("c") == [
        {
            "task_id": run["task_id"],
            "checkpoint_name": "step",
            "state": {"n": 1},
            "status": "committed",
            "owner_run_id": run["run_id"],
            "updated_at": after(1),
        }
    ]
    woken = reclaim(noon)
    assert (woken["run_id"], woken["attempt"]) == (run["run_id"], 1)
    assert (woken["wake_event"], woken["event_payload"]) == (None, {"n": 1})
    assert noon.await_event(woken, "e", "step") == (False, '{"n": 1}')


def test_an_emit_wakes_all_who_wait_for_just_that_name(q: Queue) -> None:
    runs = [q.start() for _ in range(4)]
    for run, event in zip(runs, ("e", "e", "other", "e"), strict=True):
        q.await_event(run, event)
    q.emit("e", 5)
    woken = q.claim(qty=9)
    assert {r["run_id"] for r in woken} == {runs[i]["run_id"] for i in (0, 1, 3)}
    assert [r["event_payload"] for r in woken] == [5, 5, 5]
    assert [w["event_name"] for w in q.waits()] == ["other"]


def test_the_first_emit_of_a_name_wins(noon: Queue, clock: Clock) -> None:
    noon.emit("e", 1)
    clock.set(noon.conn, after(1))
    noon.emit("e", 2)
    noon.emit("e", 2)
    assert noon.view("e") == [{"event_name": "e", "payload": 1, "emitted_at": after(0)}]
    run = noon.start()
    assert noon.await_event(run, "e") == (False, "1")


def test_an_event_without_a_payload_is_json_null(q: Queue) -> None:
    run = q.start()
    q.await_event(run, "e")
    q.call("emit_event", "e")
    q.call("emit_event", "f", None)
    assert q.rows("select payload::text from absurd.e_q") == [{"payload": "null"}] * 2
    assert q.await_event(reclaim(q), "e") == (False, "null")


def test_a_wait_for_an_event_of_long_ago_is_answered_at_once(noon: Queue, clock: Clock) -> None:
    noon.emit("e", "old")
    clock.set(noon.conn, after(86400))
    run = noon.start()
    assert noon.await_event(run, "e", "step", 5) == (False, '"old"')
    assert noon.checkpoints(run["task_id"]) == {"step": "old"}
    assert noon.states(run["task_id"])[0] == "running"
    assert noon.run(run["run_id"])["claim_expires_at"] == after(86460)


def test_an_answer_from_the_event_clears_what_woke_the_run_before(q: Queue) -> None:
    run = q.start()
    q.await_event(run, "e", "one")
    q.emit("e", 1)
    q.emit("f", 2)
    run = reclaim(q)
    assert q.run(run["run_id"])["event_payload"] == 1
    assert q.await_event(run, "f", "two") == (False, "2")
    assert q.run(run["run_id"])["event_payload"] is None


def test_a_new_wait_clears_what_woke_the_run_before(q: Queue) -> None:
    run = q.start()
    q.await_event(run, "e", "one")
    q.emit("e", 1)
    assert q.await_event(reclaim(q), "f", "two") == SUSPEND
    row = q.run(run["run_id"])
    assert (row["wake_event"], row["event_payload"]) == ("f", None)


def test_events_are_per_queue(q: Queue) -> None:
    run = q.start()
    q.await_event(run, "e")
    other = q.named("other")
    other.emit("e", 1)
    assert q.states(run["task_id"])[0] == "sleeping"
    assert events(q) == {}


def test_a_later_attempt_finds_the_payload_in_its_checkpoint(q: Queue) -> None:
    run = q.start()
    q.await_event(run, "e")
    q.emit("e", 1)
    run = reclaim(q)
    q.fail(run["run_id"])
    assert q.await_event(reclaim(q), "e") == (False, "1")


def test_an_emit_that_rolled_back_never_happened(q: Queue) -> None:
    run = q.start()
    q.await_event(run, "e")
    with q.conn.transaction(force_rollback=True):
        q.emit("e", 1)
    assert q.states(run["task_id"])[0] == "sleeping"
    q.emit("e", 2)
    assert reclaim(q)["event_payload"] == 2


# ---------------------------------------------------------------- timeouts


def test_a_wait_that_timed_out_says_so_to_the_claim_and_to_the_run(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    noon.await_event(run, "e", "step", 5)
    clock.set(noon.conn, after(4.999999))
    assert noon.claim() == []
    clock.set(noon.conn, after(5))
    woken = reclaim(noon)

    assert (woken["run_id"], woken["wake_event"], woken["event_payload"]) == (run["run_id"], "e", None)
    assert noon.waits() == []
    assert noon.run(run["run_id"])["wake_event"] == "e"
    assert noon.await_event(woken, "e", "step", 5) == TIMED_OUT
    assert noon.run(run["run_id"])["wake_event"] is None
    assert noon.await_event(woken, "e", "step", 5) == TIMED_OUT
    assert noon.states(run["task_id"])[0] == "running"


def test_a_timeout_is_hidden_from_the_readers_of_checkpoints(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    noon.await_event(run, "e", "step", 5)
    clock.set(noon.conn, after(5))
    reclaim(noon)
    assert noon.view("c") == []
    assert noon.call("get_task_checkpoint_state", run["task_id"], "step", True) == []
    assert noon.call("get_task_checkpoint_states", run["task_id"], run["run_id"]) == []


def test_a_timeout_lasts_over_a_crash_and_an_event_that_comes_late(noon: Queue, clock: Clock) -> None:
    """W3, U4: the next attempt takes the branch the first one took."""
    run = noon.start()
    noon.await_event(run, "e", "step", 5)
    clock.set(noon.conn, after(5))
    run = reclaim(noon)
    assert noon.await_event(run, "e", "step", 5) == TIMED_OUT
    noon.checkpoint(run, "send-reminder", "sent")
    noon.fail(run["run_id"])
    noon.emit("e", "late")

    again = reclaim(noon)
    assert again["attempt"] == 2
    assert noon.await_event(again, "e", "step", 5) == TIMED_OUT
    assert noon.checkpoints(run["task_id"]) == {"send-reminder": "sent"}


def test_a_timeout_of_a_run_that_died_before_it_asked_lasts_too(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    noon.await_event(run, "e", "step", 5)
    clock.set(noon.conn, after(5))
    reclaim(noon)
    clock.set(noon.conn, after(65))
    noon.emit("e", "late")
    again = reclaim(noon)
    assert again["attempt"] == 2
    assert noon.await_event(again, "e", "step", 5) == TIMED_OUT


def test_a_second_wait_for_the_same_event_after_a_timeout_waits(noon: Queue, clock: Clock) -> None:
    """W4."""
    run = noon.start()
    noon.await_event(run, "e", "one", 5)
    clock.set(noon.conn, after(5))
    run = reclaim(noon)
    assert noon.await_event(run, "e", "two", 3600) == SUSPEND
    assert [(w["step_name"], w["timeout_at"]) for w in noon.waits()] == [("two", after(3605))]
    noon.emit("e", 1)
    run = reclaim(noon)
    assert noon.await_event(run, "e", "two") == (False, "1")
    assert noon.await_event(run, "e", "one") == TIMED_OUT


def test_an_emit_takes_a_wait_away_that_timed_out_and_does_not_wake_it(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    noon.await_event(run, "e", "step", 5)
    clock.set(noon.conn, after(5))
    noon.emit("e", "too late")
    assert noon.waits() == []
    row = noon.run(run["run_id"])
    assert (row["state"], row["wake_event"], row["available_at"]) == ("sleeping", "e", after(5))
    woken = reclaim(noon)
    assert (woken["wake_event"], woken["event_payload"]) == ("e", None)
    assert noon.await_event(woken, "e", "step", 5) == TIMED_OUT


def test_an_emit_a_microsecond_before_the_timeout_wakes(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    noon.await_event(run, "e", "step", 5)
    clock.set(noon.conn, after(4.999999))
    noon.emit("e", "in time")
    clock.set(noon.conn, after(5))
    assert noon.await_event(reclaim(noon), "e", "step", 5) == (False, '"in time"')


def test_a_timeout_of_nothing_is_over_at_once(noon: Queue) -> None:
    run = noon.start()
    assert noon.await_event(run, "e", "step", 0) == SUSPEND
    assert noon.await_event(reclaim(noon), "e", "step", 0) == TIMED_OUT


def test_a_task_retried_while_it_waits_registers_a_fresh_wait(noon: Queue) -> None:
    run = noon.start()
    noon.await_event(run, "e", "step", 5)
    noon.fail(run["run_id"])
    again = reclaim(noon)
    assert noon.await_event(again, "e", "step", 7) == SUSPEND
    assert [(w["run_id"], w["timeout_at"]) for w in noon.waits()] == [(run_of(run["task_id"], 2), after(7))]


# ---------------------------------------------------------------- two sessions


def test_an_emit_behind_a_wait_under_way_wakes_it(q: Queue, connect: Connect, gate: Gate) -> None:
    run = q.start()
    waiting = q.on(connect(autocommit=False))
    assert waiting.await_event(run, "e") == SUSPEND
    emitting = gate(lambda c: q.on(c).emit("e", 1)).wait_until_blocked()
    waiting.conn.commit()
    emitting.result()
    assert reclaim(q)["event_payload"] == 1


def test_an_emit_waits_for_an_await_that_is_held_up_itself(q: Queue, connect: Connect, gate: Gate) -> None:
    """The contract's own case: the await hangs on a row it is about to write, the emit must not pass it by."""
    run = q.start()
    holder = q.on(connect(autocommit=False))
    holder.rows("select * from absurd.live for update")
    waiting = gate(lambda c: q.on(c).await_event(run, "e")).wait_until_blocked()
    emitting = gate(lambda c: q.on(c).emit("e", 1)).wait_until_blocked()
    holder.conn.commit()
    assert waiting.result() == SUSPEND
    emitting.result()
    assert reclaim(q)["event_payload"] == 1
    assert q.waits() == []


def test_a_wait_behind_an_emit_under_way_is_answered(q: Queue, connect: Connect, gate: Gate) -> None:
    run = q.start()
    emitting = q.on(connect(autocommit=False))
    emitting.emit("e", 1)
    waiting = gate(lambda c: q.on(c).await_event(run, "e")).wait_until_blocked()
    emitting.conn.commit()
    assert waiting.result() == (False, "1")


def test_of_two_emits_at_once_the_first_wins(q: Queue, connect: Connect, gate: Gate) -> None:
    first = q.on(connect(autocommit=False))
    first.emit("e", 1)
    second = gate(lambda c: q.on(c).emit("e", 2)).wait_until_blocked()
    first.conn.commit()
    second.result()
    assert events(q) == {"e": 1}


def test_an_emit_that_meets_the_claim_of_a_timeout_leaves_the_timeout(
    noon: Queue, clock: Clock, connect: Connect, gate: Gate
) -> None:
    run = noon.start()
    noon.await_event(run, "e", "step", 5)
    claiming = noon.on(connect(autocommit=False))
    clock.set(claiming.conn, after(5))
    woken = reclaim(claiming)
    emitting = gate(lambda c: noon.on(c).emit("e", 1)).wait_until_blocked()
    claiming.conn.commit()
    emitting.result()
    assert noon.await_event(woken, "e", "step") == TIMED_OUT
    assert noon.states(run["task_id"])[0] == "running"


@pytest.mark.parametrize("event", [" ", "", None])
def test_an_emit_that_is_not_as_usual_is_left_to_the_long_way(q: Queue, event: str | None) -> None:
    assert q.value("select absurd.emit_one(%s, %s, '1')", (q.name, event)) is None
    assert q.value("select absurd.emit_one('nowhere', 'e', '1')") is None
    assert q.value("select count(*) from absurd.events") == 0


def test_the_short_way_of_an_emit_says_whether_it_was_the_first(q: Queue) -> None:
    assert [q.value("select absurd.emit_one(%s, 'e', %s)", (q.name, Jsonb(n))) for n in (1, 2)] == ["o", "x"]
    assert q.value("select payload from absurd.events") == 1
