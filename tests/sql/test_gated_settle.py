"""Ends of runs against each other: complete, fail, cancel, checkpoint, lease; each pair in both orders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.fixtures.clock import Clock
from tests.fixtures.gates import Gate, Running
from tests.fixtures.postgres import Connect, Connection
from tests.sql.driver import Claim, Queue, Row, refused, run_of

ENDS: dict[str, Callable[[Queue, Row], Any]] = {
    "complete": lambda q, run: q.complete(run["run_id"], "done"),
    "fail": lambda q, run: q.fail(run["run_id"]),
    "cancel": lambda q, run: q.cancel(run["task_id"]),
}
STATES = {"complete": "completed", "fail": "failed", "cancel": "cancelled"}
#: (first, second): the SQLSTATE the second gets; None: it is a no-op.
SECOND = {
    ("complete", "fail"): "P0001",
    ("complete", "cancel"): None,
    ("complete", "complete"): "P0001",
    ("fail", "complete"): "AB002",
    ("fail", "cancel"): None,
    ("fail", "fail"): "AB002",
    ("cancel", "complete"): "AB001",
    ("cancel", "fail"): "AB001",
    ("cancel", "cancel"): None,
}


@pytest.mark.parametrize(("first", "second"), SECOND)
def test_the_first_of_two_ends_counts_and_the_second_is_told(
    q: Queue, connect: Connect, gate: Gate, first: str, second: str
) -> None:
    run = q.start(max_attempts=1)
    holder = connect(autocommit=False)
    ENDS[first](q.on(holder), run)

    ending = gate(lambda c: ENDS[second](q.on(c), run)).wait_until_blocked()
    assert ending.blockers() == [holder.info.backend_pid]
    holder.commit()

    expected = SECOND[first, second]
    if expected is None:
        ending.result()
    else:
        with refused(expected):
            ending.result()
    assert q.states(run["task_id"]) == (STATES[first], [STATES[first]])


@pytest.mark.parametrize(("first", "second"), SECOND)
def test_the_second_of_two_ends_counts_when_the_first_is_rolled_back(
    q: Queue, connect: Connect, gate: Gate, first: str, second: str
) -> None:
    run = q.start(max_attempts=1)
    holder = connect(autocommit=False)
    ENDS[first](q.on(holder), run)

    ending = gate(lambda c: ENDS[second](q.on(c), run)).wait_until_blocked()
    holder.rollback()
    ending.result()

    assert q.states(run["task_id"]) == (STATES[second], [STATES[second]])


def test_a_cancel_that_waited_for_a_retried_failure_cancels_the_next_attempt(
    q: Queue, connect: Connect, gate: Gate
) -> None:
    run = q.start(max_attempts=2)
    failing = connect(autocommit=False)
    q.on(failing).fail(run["run_id"])

    cancelling = gate(lambda c: q.on(c).cancel(run["task_id"])).wait_until_blocked()
    failing.commit()
    cancelling.result()

    assert q.states(run["task_id"]) == ("cancelled", ["failed", "cancelled"])


# ---------------------------------------------------------------- what never waits


def test_a_claim_passes_a_run_somebody_holds_and_takes_the_others(q: Queue, connect: Connect, clock: Clock) -> None:
    """W21: neither the sweep of an expired lease nor that of a deadline may wait for a lock."""
    expired, late, ready = q.start(), q.spawn(cancellation={"max_delay": 1}), q.spawn()
    user = connect(autocommit=False)
    user.execute(
        "select 1 from absurd.live where task_id = any(%s) for update", ([expired["task_id"], late["task_id"]],)
    )
    clock.advance(q.conn, 61)
    q.conn.execute("set statement_timeout = '10s'")

    assert [c["task_id"] for c in q.claim(qty=10)] == [ready["task_id"]]

    user.rollback()
    assert [c["attempt"] for c in q.claim(qty=10)] == [2], "the lease's turn came, and the deadline's"
    assert q.states(late["task_id"]) == ("cancelled", ["cancelled"])


def test_array_verbs_answer_busy_for_the_run_somebody_holds_and_serve_the_rest(q: Queue, connect: Connect) -> None:
    """49 leases must not end because one task's row is held in an open transaction."""
    claims = q.hold(50)
    user = connect(autocommit=False)
    user.execute("select 1 from absurd.live where task_id = %s for update", (claims[17].task_id,))
    expected = "o" * 17 + "b" + "o" * 32

    assert q.letters("extend_claims", claims, tail=", 60") == expected
    steps = ("text", ["s"] * 50), ("jsonb", [1] * 50)
    assert q.letters("set_checkpoints", claims, *steps) == expected
    assert q.letters("complete_runs", claims, ("jsonb", [None] * 50)) == expected
    user.rollback()
    assert q.letters("complete_runs", claims, ("jsonb", [None] * 50)) == "r" * 17 + "o" + "r" * 32


@pytest.mark.parametrize(
    ("verb", "columns", "tail"),
    [
        ("fail_runs", (("jsonb", [{}]),), ""),
        ("schedule_runs", (("timestamptz", [None]), ("float8", [60.0])), ""),
        ("extend_claims", (), ", 60"),
    ],
)
def test_an_array_of_one_answers_busy_too(
    q: Queue, connect: Connect, verb: str, columns: tuple[Any, ...], tail: str
) -> None:
    claims = q.hold(1)
    user = connect(autocommit=False)
    user.execute("select 1 from absurd.live where task_id = %s for update", (claims[0].task_id,))

    assert q.letters(verb, claims, *columns, tail=tail) == "b"
    assert q.cancels([claims[0].task_id]) == "b"


# ---------------------------------------------------------------- checkpoints


def test_a_dead_attempt_can_neither_overwrite_nor_add_a_checkpoint(q: Queue, connect: Connect, gate: Gate) -> None:
    """W5: attempt 1's call was under way when it failed and attempt 2 wrote."""
    first = q.start(max_attempts=2)
    other = connect(autocommit=False)
    q.on(other).fail(first["run_id"])

    late = gate(lambda c: q.on(c).checkpoint(first, "s", "old")).wait_until_blocked()
    (second,) = q.on(other).claim()
    q.on(other).checkpoint(second, "s", "new")
    other.commit()

    with refused("AB002"):
        late.result()
    with refused("AB002"):
        q.checkpoint(first, "never seen before", "old")
    assert q.checkpoints(first["task_id"]) == {"s": "new"}


@pytest.mark.parametrize("end", ["cancel", "complete"])
def test_a_checkpoint_that_waits_for_the_end_of_its_run_is_not_written(
    q: Queue, connect: Connect, gate: Gate, end: str
) -> None:
    run = q.start()
    holder = connect(autocommit=False)
    ENDS[end](q.on(holder), run)

    writing = gate(lambda c: q.on(c).checkpoint(run, "s", 1)).wait_until_blocked()
    holder.commit()

    with refused("AB001" if end == "cancel" else "P0001"):
        writing.result()
    assert q.checkpoints(run["task_id"]) == {}


def test_a_cancel_waits_for_a_checkpoint_and_cleanup_then_takes_both(q: Queue, connect: Connect, gate: Gate) -> None:
    run = q.start()
    writer = connect(autocommit=False)
    q.on(writer).checkpoint(run, "s", 1)

    cancelling = gate(lambda c: q.on(c).cancel(run["task_id"])).wait_until_blocked()
    writer.commit()
    cancelling.result()
    assert q.checkpoints(run["task_id"]) == {"s": 1}

    assert q.call("cleanup_tasks", 0)[0]["cleanup_tasks"] == 1
    assert q.value("select count(*) from absurd.checkpoints") == 0


def test_a_checkpoint_that_waits_while_its_task_is_cancelled_and_cleaned_up_leaves_no_orphan(
    q: Queue, connect: Connect, gate: Gate, clock: Clock
) -> None:
    run = q.start()
    holder = connect(autocommit=False)
    q.on(holder).cancel(run["task_id"])

    writing = gate(lambda c: q.on(c).checkpoint(run, "s", 1)).wait_until_blocked()
    clock.advance(holder, 60)
    assert q.on(holder).call("cleanup_tasks", 0)[0]["cleanup_tasks"] == 1
    holder.commit()

    with refused("P0001", "not found for checkpoint"):
        writing.result()
    assert q.value("select count(*) from absurd.checkpoints") == 0


# ---------------------------------------------------------------- a parent and its child


def _family(q: Queue, timeout: float | None = None) -> tuple[Claim, Claim]:
    """A parent asleep until its running child ends."""
    parent, child = q.hold(2)
    (answer,) = q.awaits_tasks([parent], ["child"], [(q.id, child.task_id)], [timeout])
    assert answer["status"] == "s"
    return parent, child


def test_the_end_of_a_child_waits_for_its_parents_registration(q: Queue, connect: Connect, gate: Gate) -> None:
    parent, child = q.hold(2)
    awaiter = connect(autocommit=False)
    q.on(awaiter).awaits_tasks([parent], ["child"], [(q.id, child.task_id)])

    ending = gate(lambda c: q.on(c).complete(child.run_id, 5)).wait_until_blocked()
    awaiter.commit()
    ending.result()

    assert q.task(parent.task_id)["state"] == "pending"
    assert q.checkpoints(parent.task_id) == {"child": {"state": "completed", "result": 5}}


def test_an_await_of_a_child_that_is_ending_answers_busy_and_then_its_outcome(q: Queue, connect: Connect) -> None:
    parent, child = q.hold(2)
    ending = connect(autocommit=False)
    q.on(ending).complete(child.run_id, 5)

    assert q.awaits_tasks([parent], ["child"], [(q.id, child.task_id)])[0]["status"] == "b"
    ending.commit()

    (answer,) = q.awaits_tasks([parent], ["child"], [(q.id, child.task_id)])
    assert (answer["status"], answer["payload"]) == ("a", {"state": "completed", "result": 5})


def test_the_end_of_a_child_waits_for_the_cancel_of_its_parent(q: Queue, connect: Connect, gate: Gate) -> None:
    parent, child = _family(q)
    canceller = connect(autocommit=False)
    q.on(canceller).cancel(parent.task_id)

    ending = gate(lambda c: q.on(c).complete(child.run_id)).wait_until_blocked()
    canceller.commit()
    ending.result()

    assert q.states(parent.task_id)[0] == "cancelled"
    assert q.states(child.task_id)[0] == "completed"


def test_the_cancel_of_a_parent_waits_for_the_end_of_its_child(q: Queue, connect: Connect, gate: Gate) -> None:
    parent, child = _family(q)
    ending = connect(autocommit=False)
    q.on(ending).fail(child.run_id)
    q.on(ending).cancel(child.task_id)

    cancelling = gate(lambda c: q.on(c).cancel(parent.task_id)).wait_until_blocked()
    ending.commit()
    cancelling.result()

    assert q.states(parent.task_id)[0] == "cancelled"
    assert q.checkpoints(parent.task_id) == {"child": {"state": "cancelled"}}


def test_an_array_of_ends_leaves_the_child_whose_parent_somebody_holds(q: Queue, connect: Connect) -> None:
    parent, child = _family(q)
    user = connect(autocommit=False)
    user.execute("select 1 from absurd.live where task_id = %s for update", (parent.task_id,))

    assert q.letters("complete_runs", [child], ("jsonb", [1])) == "b"
    user.rollback()
    assert q.letters("complete_runs", [child], ("jsonb", [1])) == "o"
    assert q.task(parent.task_id)["state"] == "pending"


def test_a_lease_that_ran_out_waits_for_nobody_though_its_parent_is_held(
    q: Queue, connect: Connect, clock: Clock
) -> None:
    parent, child = _family(q)
    others = [q.start() for _ in range(2)]
    user = connect(autocommit=False)
    user.execute("select 1 from absurd.live where task_id = %s for update", (parent.task_id,))
    clock.advance(q.conn, 61)

    again = {c["task_id"] for _ in range(2) for c in q.claim(qty=1)}

    assert again == {other["task_id"] for other in others}, "the child is left for later, the others are not"
    user.rollback()
    assert [c["task_id"] for c in q.claim(qty=1)] == [child.task_id]


def test_a_parent_that_a_claim_resumes_at_its_timeout_is_left_alone_by_the_childs_end(
    q: Queue, connect: Connect, gate: Gate, clock: Clock
) -> None:
    parent, child = _family(q, timeout=30)
    claimer = connect(autocommit=False)
    clock.advance(claimer, 30)
    (resumed,) = q.on(claimer).claim()
    assert resumed["task_id"] == parent.task_id

    ending = gate(lambda c: q.on(c).complete(child.run_id)).wait_until_blocked()
    claimer.commit()
    ending.result()

    assert q.states(parent.task_id) == ("running", ["running"])
    assert q.waits() == []


def test_a_claim_at_the_timeout_passes_the_parent_a_childs_end_is_waking(
    q: Queue, connect: Connect, clock: Clock
) -> None:
    _, child = _family(q, timeout=30)
    ending = connect(autocommit=False)
    q.on(ending).complete(child.run_id, 5)
    clock.advance(q.conn, 30)

    assert q.claim() == []
    ending.commit()

    assert q.claim()[0]["event_payload"] == {"state": "completed", "result": 5}


def test_the_cancels_of_two_tasks_that_wait_for_each_other_do_not_cross(q: Queue, connect: Connect, gate: Gate) -> None:
    one, two = q.hold(2)
    q.awaits_tasks([one, two], ["s", "s"], [(q.id, two.task_id), (q.id, one.task_id)])
    first, second = sorted((one.task_id, two.task_id))
    user = connect(autocommit=False)
    user.execute("select 1 from absurd.live where task_id = %s for update", (first,))

    calls = [gate(lambda c, t=t: q.on(c).cancel(t)).wait_until_blocked() for t in (first, second)]  # type: ignore[misc]
    free = connect().execute("select count(*) from absurd.live where task_id = %s", (second,))
    assert free.fetchone() == (1,)
    skipped = connect().execute("select 1 from absurd.live where task_id = %s for update skip locked", (second,))
    assert skipped.fetchone() == (1,), "whoever waits for the first row does not hold the second"
    user.rollback()
    for call in calls:
        call.result()

    assert {q.states(t)[0] for t in (first, second)} == {"cancelled"}


def test_a_child_whose_waiters_change_while_its_end_waits_still_wakes_them_all(
    q: Queue, connect: Connect, gate: Gate
) -> None:
    """The end looks who waits, waits for the rows, and must look again: somebody came in between, and is held, too."""
    parent, child = _family(q)
    (late,) = q.hold()
    user, awaiter = connect(autocommit=False), connect(autocommit=False)
    # what await_tasks writes, by hand: it would not start while the user holds the row, and this must
    user.execute("select 1 from absurd.live where task_id = %s for key share", (late.task_id,))
    awaiter.execute("update absurd.live set awaited = true where task_id = %s", (child.task_id,))
    awaiter.execute(
        """insert into absurd.waits (queue_id, task_id, step_name, attempt, event_name, awaited_queue_id, awaited_task_id)
           values (%(q)s, %(late)s, 's', 1, 'x', %(q)s, %(child)s)""",
        {"q": q.id, "late": late.task_id, "child": child.task_id},
    )
    awaiter.execute(
        """update absurd.live set state = 's', due_at = null, lease_until = null, claimed_by = null, wake_event = 'x',
           wake_step = 's' where task_id = %s""",
        (late.task_id,),
    )

    ending = gate(lambda c: q.on(c).complete(child.run_id, 5)).wait_until_blocked()
    assert ending.blockers() == [awaiter.info.backend_pid]
    awaiter.commit()
    _until_blocked_by(ending, user)
    user.rollback()
    ending.result()

    assert {q.task(t.task_id)["state"] for t in (parent, late)} == {"pending"}
    assert q.waits() == []


def _until_blocked_by(call: Running[Any], holder: Connection) -> None:
    """The call has gone on from its former lock to the one this connection holds; it fails when it ended instead."""
    while holder.info.backend_pid not in call.blockers():
        assert not call.done, call.result()


def test_a_run_handed_to_another_worker_is_not_put_to_sleep_by_the_repeat_of_a_lost_reply(
    q: Queue, clock: Clock
) -> None:
    (lost,) = q.hold()
    asleep = ("timestamptz", [None]), ("float8", [10.0])
    assert q.letters("schedule_runs", [lost], *asleep) == "o"
    clock.advance(q.conn, 10)
    (other,) = q.claims(1, worker="w2")

    assert q.letters("schedule_runs", [lost], *asleep) == "l"
    assert q.run(run_of(other["task_id"], other["attempt"]))["claimed_by"] == "w2"


def test_a_run_twice_in_one_batch_ends_or_sleeps_once(q: Queue) -> None:
    (failing, waiting) = q.hold(2, max_attempts=2)

    assert q.letters("fail_runs", [failing, failing], ("jsonb", [{"n": 1}, {"n": 2}])) == "fo"
    found = q.awaits([waiting, waiting], ["one", "two"], ["e1", "e2"])

    assert q.states(failing.task_id) == ("pending", ["failed", "pending"])
    assert q.run(failing.run_id)["failure_reason"] == {"n": 2}
    assert [row["status"] for row in found] == ["r", "s"]
    assert [w["event_name"] for w in q.waits()] == ["e2"]
