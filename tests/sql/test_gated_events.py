"""Await against emit, cleanup and claim, interleaved on purpose at each lock they share (docs/lock-order.md)."""

from __future__ import annotations

import pytest

from tests.fixtures.clock import Clock
from tests.fixtures.gates import Gate
from tests.fixtures.postgres import Connect
from tests.sql.driver import Queue


def test_an_emit_waits_for_a_wait_being_registered_and_then_wakes_it(q: Queue, connect: Connect, gate: Gate) -> None:
    run = q.start()
    awaiter = connect(autocommit=False)
    assert q.on(awaiter).await_event(run, "paid") == (True, None)

    emitting = gate(lambda c: q.on(c).emit("paid", 7)).wait_until_blocked()
    assert emitting.blockers() == [awaiter.info.backend_pid]
    awaiter.commit()
    emitting.result()

    (resumed,) = q.claim()
    assert (resumed["run_id"], resumed["wake_event"], resumed["event_payload"]) == (run["run_id"], None, 7)
    assert q.waits() == []


def test_an_emit_finds_no_wait_when_the_registration_is_rolled_back(q: Queue, connect: Connect, gate: Gate) -> None:
    run = q.start()
    awaiter = connect(autocommit=False)
    q.on(awaiter).await_event(run, "paid")

    emitting = gate(lambda c: q.on(c).emit("paid", 7)).wait_until_blocked()
    awaiter.rollback()
    emitting.result()

    assert q.run(run["run_id"])["state"] == "running"
    assert q.await_event(run, "paid") == (False, "7")


@pytest.mark.parametrize("known", [False, True], ids=["new name", "existing sentinel"])
def test_an_await_waits_for_an_emit_in_flight_and_gets_its_payload(
    q: Queue, connect: Connect, gate: Gate, known: bool
) -> None:
    if known:
        q.await_event(q.start(), "paid")
    run = q.start()
    emitter = connect(autocommit=False)
    q.on(emitter).emit("paid", 7)

    awaiting = gate(lambda c: q.on(c).await_event(run, "paid")).wait_until_blocked()
    assert awaiting.blockers() == [emitter.info.backend_pid]
    emitter.commit()

    assert awaiting.result() == (False, "7")
    assert q.checkpoints(run["task_id"]) == {"wait": 7}


def test_of_two_awaits_at_once_one_says_that_the_event_was_taken(q: Queue, connect: Connect, gate: Gate) -> None:
    """Two that hold the row at once would each leave it to the other, and workers would keep the event for ever."""
    q.emit("paid", 7)
    runs = [q.start(), q.start()]
    holder = connect(autocommit=False)
    holder.execute("select from absurd.live for update")
    awaits = [gate(lambda c, run=run: q.on(c).await_event(run, "paid")).wait_until_blocked() for run in runs]
    holder.rollback()
    assert [each.result() for each in awaits] == [(False, "7")] * 2
    assert q.rows("select taken_at is not null as taken from absurd.events") == [{"taken": True}]


def test_an_emit_that_was_held_up_is_recorded_after_what_came_before_its_wait(
    q: Queue, connect: Connect, gate: Gate
) -> None:
    run, other = q.start(), q.start()
    q.rows("select absurd.add_sentinels(%s, '{paid}')", (q.id,))
    holder = connect(autocommit=False)
    q.on(holder).await_event(other, "paid")
    emitting = gate(lambda c: q.on(c).emit("paid", 7)).wait_until_blocked()
    q.checkpoint(run, "packed", 1)
    assert q.await_event(run, "paid") == (True, None)
    holder.commit()
    emitting.result()
    (history,) = q.call("task_history", run["task_id"])
    assert history["steps"] == ["packed", "wait"]


@pytest.mark.parametrize("known", [False, True], ids=["new name", "existing sentinel"])
def test_an_await_sleeps_when_the_emit_in_flight_is_rolled_back(
    q: Queue, connect: Connect, gate: Gate, known: bool
) -> None:
    if known:
        q.await_event(q.start(), "paid")
    run = q.start()
    emitter = connect(autocommit=False)
    q.on(emitter).emit("paid", 7)

    awaiting = gate(lambda c: q.on(c).await_event(run, "paid")).wait_until_blocked()
    emitter.rollback()

    assert awaiting.result() == (True, None)
    q.emit("paid", 8)
    assert q.checkpoints(run["task_id"]) == {"wait": 8}


def test_an_emit_of_the_next_payload_wakes_the_wait_it_had_to_let_by(q: Queue, connect: Connect, gate: Gate) -> None:
    q.emit("tick", 1)
    (claim,) = q.hold()
    awaiter = connect(autocommit=False)
    since = q.value("select absurd.current_time()")
    assert q.on(awaiter).awaits([claim], ["s"], ["tick"], since=[since])[0]["status"] == "s"

    emitting = gate(lambda c: q.on(c).emits([("tick", 2)], "next")).wait_until_blocked()
    awaiter.commit()

    assert emitting.result() == "o"
    assert q.checkpoints(claim.task_id) == {"s": 2}
    assert q.task(claim.task_id)["state"] == "pending"


def test_two_emits_of_one_name_give_it_the_first_payload(q: Queue, connect: Connect, gate: Gate) -> None:
    run = q.start()
    q.await_event(run, "paid")
    first = connect(autocommit=False)
    q.on(first).emit("paid", "first")

    second = gate(lambda c: q.on(c).emits([("paid", "second")])).wait_until_blocked()
    first.commit()

    assert second.result() == "x"
    assert q.checkpoints(run["task_id"]) == {"wait": "first"}


def test_the_second_of_two_emits_counts_when_the_first_is_rolled_back(q: Queue, connect: Connect, gate: Gate) -> None:
    run = q.start()
    q.await_event(run, "paid")
    first = connect(autocommit=False)
    q.on(first).emit("paid", "first")

    second = gate(lambda c: q.on(c).emits([("paid", "second")])).wait_until_blocked()
    first.rollback()

    assert second.result() == "o"
    assert q.checkpoints(run["task_id"]) == {"wait": "second"}


@pytest.mark.parametrize("known", [False, True], ids=["new name", "existing sentinel"])
def test_an_array_of_awaits_answers_busy_for_the_name_an_open_transaction_emits(
    q: Queue, connect: Connect, known: bool
) -> None:
    if known:
        q.await_event(q.start(), "paid")
    claims = q.hold(3)
    emitter = connect(autocommit=False)
    q.on(emitter).emit("paid", 7)

    found = q.awaits(claims, ["s"] * 3, ["apart", "paid", "elsewhere"])
    assert [row["status"] for row in found] == ["s", "b", "s"]
    assert q.run(claims[1].run_id)["state"] == "running"

    emitter.commit()
    (again,) = q.awaits(claims[1:2], ["s"], ["paid"])
    assert (again["status"], again["payload"]) == ("a", 7)


def test_an_array_of_awaits_answers_busy_for_a_run_that_somebody_holds(q: Queue, connect: Connect) -> None:
    claims = q.hold(2)
    user = connect(autocommit=False)
    user.execute("select 1 from absurd.live where task_id = %s for update", (claims[0].task_id,))

    found = q.awaits(claims, ["s", "s"], ["one", "two"])

    assert [row["status"] for row in found] == ["b", "s"]


def test_an_array_of_emits_does_not_cross_an_array_of_emits_in_the_other_order(
    q: Queue, connect: Connect, gate: Gate
) -> None:
    claims = q.hold(2)
    q.awaits(claims, ["s", "s"], ["a", "b"])
    user = connect(autocommit=False)
    user.execute("select 1 from absurd.events where event_name = 'a' for share")

    one = gate(lambda c: q.on(c).emits([("a", 1), ("b", 1)])).wait_until_blocked()
    two = gate(lambda c: q.on(c).emits([("b", 2), ("a", 2)])).wait_until_blocked()
    user.commit()

    assert {one.result(), two.result()} == {"oo", "xx"}
    assert len({str(q.checkpoints(claim.task_id)) for claim in claims}) == 1


def test_cleanup_leaves_the_sentinel_of_a_wait_being_registered(q: Queue, connect: Connect) -> None:
    """W6: the sentinel taken away between the await's look and its wait would lose the wake-up for ever."""
    first = q.start()
    q.await_event(first, "paid")
    q.cancel(first["task_id"])  # the sentinel stays, nobody waits
    run = q.start()
    awaiter = connect(autocommit=False)
    q.on(awaiter).await_event(run, "paid")

    assert q.call("cleanup_events", 0)[0]["cleanup_events"] == 0
    assert q.value("select count(*) from absurd.events") == 1
    awaiter.commit()
    q.emit("paid", 7)

    assert q.task(run["task_id"])["state"] == "pending"


def test_an_await_makes_its_sentinel_anew_when_cleanup_took_it_meanwhile(
    q: Queue, connect: Connect, gate: Gate
) -> None:
    first = q.start()
    q.await_event(first, "paid")
    q.cancel(first["task_id"])
    run = q.start()
    cleaner = connect(autocommit=False)
    q.on(cleaner).call("cleanup_events", 0)

    awaiting = gate(lambda c: q.on(c).await_event(run, "paid")).wait_until_blocked()
    cleaner.commit()
    assert awaiting.result() == (True, None)
    q.emit("paid", 7)

    assert q.task(run["task_id"])["state"] == "pending"


def test_an_emit_and_a_cleanup_of_the_sentinel_lose_nothing(q: Queue, connect: Connect, gate: Gate) -> None:
    first = q.start()
    q.await_event(first, "paid")
    q.cancel(first["task_id"])
    cleaner = connect(autocommit=False)
    q.on(cleaner).call("cleanup_events", 0)

    emitting = gate(lambda c: q.on(c).emit("paid", 7)).wait_until_blocked()
    cleaner.commit()
    emitting.result()

    assert q.await_event(q.start(), "paid") == (False, "7")


def test_an_emit_waits_for_a_claim_that_resumes_a_wait_at_its_timeout(
    q: Queue, connect: Connect, gate: Gate, clock: Clock
) -> None:
    """A claim takes the run, then its wait; an emit that took them the other way round would close a cycle."""
    run = q.start()
    q.await_event(run, "paid", timeout=60)
    claimer = connect(autocommit=False)
    clock.advance(claimer, 60)
    (resumed,) = q.on(claimer).claim()
    assert (resumed["run_id"], resumed["wake_event"]) == (run["run_id"], "paid")

    emitting = gate(lambda c: q.on(c).emit("paid", 7)).wait_until_blocked()
    assert emitting.blockers() == [claimer.info.backend_pid]
    claimer.commit()
    emitting.result()

    assert q.run(run["run_id"])["state"] == "running"
    assert q.await_event(run, "paid") == (False, None), "the outcome of this wait is its timeout, for ever"
    assert q.await_event(run, "paid", step="another") == (False, "7")


def test_a_claim_at_the_timeout_passes_a_run_that_an_emit_is_waking(q: Queue, connect: Connect, clock: Clock) -> None:
    run = q.start()
    q.await_event(run, "paid", timeout=60)
    emitter = connect(autocommit=False)
    q.on(emitter).emit("paid", 7)
    clock.advance(q.conn, 60)

    assert q.claim() == []
    emitter.commit()

    assert q.claim()[0]["event_payload"] == 7


def test_an_emit_waits_for_a_cancel_of_its_waiter(q: Queue, connect: Connect, gate: Gate) -> None:
    run = q.start()
    q.await_event(run, "paid")
    canceller = connect(autocommit=False)
    q.on(canceller).cancel(run["task_id"])

    emitting = gate(lambda c: q.on(c).emit("paid", 7)).wait_until_blocked()
    canceller.commit()
    emitting.result()

    assert q.states(run["task_id"]) == ("cancelled", ["cancelled"])
    assert q.checkpoints(run["task_id"]) == {}


def test_a_cancel_waits_for_an_emit_to_its_task(q: Queue, connect: Connect, gate: Gate) -> None:
    run = q.start()
    q.await_event(run, "paid")
    emitter = connect(autocommit=False)
    q.on(emitter).emit("paid", 7)

    cancelling = gate(lambda c: q.on(c).cancel(run["task_id"])).wait_until_blocked()
    emitter.commit()
    cancelling.result()

    assert q.states(run["task_id"]) == ("cancelled", ["cancelled"])
    assert q.checkpoints(run["task_id"]) == {"wait": 7}
