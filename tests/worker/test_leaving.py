"""SIGTERM and SIGINT: finish or hand back at once, no attempt burnt, exit code 0; the second signal leaves immediately."""

from __future__ import annotations

import signal

import pytest

from tests.fixtures.proxy import Proxy
from tests.worker.conftest import Queue, Start

ONLY_PROTOCOL = {"claimer.IDLE_POLL": 1000, "claimer.RESOLVE_EVERY": 1000}
HOUR = 3600


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_task_is_handed_over_at_the_end_of_its_step(
    q: Queue, start: Start, file_gate, number: signal.Signals
) -> None:
    gate = file_gate("gate")
    task = q.spawn(
        ["say", "began"],
        ["step", "one", [["gate", str(gate)], ["say", "in one"]]],
        ["step", "two", [["say", "in two"]]],
    )
    first = start(lease=HOUR, drain_timeout=20)
    first.wait(said="began")
    second = start(lease=HOUR, patch=ONLY_PROTOCOL).ready()
    first.send(number)
    first.wait(signal="worker.draining")
    gate.open()
    assert first.exit_code() == 0
    second.wait(said="in two")
    q.wait_ended(second, task)
    assert first.said(said="in one")
    assert not first.said(said="in two")
    assert not second.said(said="in one"), "the step had committed"
    assert q.runs(task) == [(1, "completed")]
    assert first.said(said="end of program")


def test_a_step_longer_than_the_drain_is_handed_back(q: Queue, start: Start, file_gate) -> None:
    gate = file_gate("gate")
    task = q.spawn(["step", "one", [["say", "in one"], ["gate", str(gate)]]])
    first = start(lease=HOUR, drain_timeout=0.2)
    first.wait(said="in one")
    second = start(lease=HOUR, patch=ONLY_PROTOCOL).ready()
    assert first.stop() == 0
    second.wait(said="in one")
    gate.open()
    q.wait_ended(second, task)
    assert q.runs(task) == [(1, "completed")]


def test_a_task_that_ends_during_the_drain_is_completed_by_its_worker(q: Queue, start: Start, file_gate) -> None:
    gate = file_gate("gate")
    task = q.spawn(["say", "began"], ["gate", str(gate)], ["returns", 5])
    worker = start(lease=HOUR, drain_timeout=20)
    worker.wait(said="began")
    worker.send(signal.SIGTERM)
    worker.wait(signal="worker.draining")
    gate.open()
    assert worker.exit_code() == 0
    assert q.task(task)[:2] == ("completed", 5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_leaves_immediately(q: Queue, start: Start, number: signal.Signals, file_gate) -> None:
    q.spawn(["say", "began"], ["gate", str(file_gate("never"))])
    worker = start(lease=HOUR, drain_timeout=HOUR)
    worker.wait(said="began")
    worker.send(number)
    worker.wait(signal="worker.draining")
    worker.send(number)
    assert worker.exit_code() == 128 + number
    assert not worker.said(signal="worker.stopped")


def test_an_idle_worker_leaves_at_once_and_takes_its_idle_row_along(q: Queue, start: Start) -> None:
    worker = start().ready()
    assert worker.stop() == 0
    assert q.conn.execute("select count(*) from absurd.idle").fetchone() == (0,)


def test_what_was_claimed_ahead_is_handed_back(q: Queue, start: Start, file_gate) -> None:
    quick = [q.spawn(["returns", 0]) for _ in range(30)]
    worker = start(lease=HOUR, drain_timeout=20)
    q.wait_ended(worker, *quick)  # it has learnt that handlers are short
    gate = file_gate("gate")
    with q.conn.transaction():
        q.spawn(["say", "began"], ["gate", str(gate)], priority=1)
        behind = [q.spawn(["returns", 0]) for _ in range(20)]
    worker.wait(said="began")
    worker.send(signal.SIGTERM)
    worker.wait(signal="worker.draining")
    # before the slot is free: the draining is said a moment before the buffer is closed
    worker.wait_until(
        lambda: all(q.state(task) in ("sleeping", "pending") for task in behind), "what it claimed ahead is handed back"
    )
    gate.open()
    assert worker.exit_code() == 0
    claimed = sum(line["count"] for line in worker.said(signal="task.claimed"))
    assert claimed > 31, "nothing was claimed ahead: the test shows nothing"
    assert {q.state(task) for task in behind} <= {"sleeping", "pending"}
    other = start(lease=HOUR)
    q.wait_ended(other, *behind)
    assert {q.attempts(task) for task in behind} == {1}


def test_what_was_claimed_ahead_of_a_long_task_goes_to_an_idle_worker(q: Queue, start: Start, file_gate) -> None:
    quick = [q.spawn(["returns", 0]) for _ in range(30)]
    worker = start(lease=HOUR)
    q.wait_ended(worker, *quick)
    gate = file_gate("gate")
    with q.conn.transaction():
        q.spawn(["say", "began"], ["gate", str(gate)], priority=1)
        behind = [q.spawn(["returns", 0]) for _ in range(20)]
    worker.wait(said="began")
    helper = start(lease=HOUR, patch=ONLY_PROTOCOL)
    q.wait_ended(helper, *behind)
    assert not worker.said(signal="run.ended", task_id=str(behind[0]))
    gate.open()


def test_a_worker_leaves_while_the_database_is_away(own_server, own_q: Queue, start: Start) -> None:
    worker = start(drain_timeout=0.2).ready()
    own_server.stop("immediate")
    worker.wait(signal="connection.lost")
    try:
        assert worker.stop() == 0
    finally:
        own_server.start()
        own_q.reconnect(own_server.url)


def test_tasks_whose_claim_is_on_its_way_when_the_worker_leaves_are_handed_back(
    q: Queue, start: Start, proxy: Proxy
) -> None:
    worker = start(url=proxy.url, lease=HOUR, slots=3).ready()
    held = proxy.hold("claim_tasks")
    tasks = [q.spawn(["returns", 1]) for _ in range(3)]
    held.wait("Z")  # claimed, and the worker does not know it yet
    worker.send(signal.SIGTERM)
    worker.wait(signal="worker.draining")
    held.release()
    assert worker.exit_code() == 0
    other = start(lease=HOUR)
    q.wait_ended(other, *tasks)
    assert {tuple(q.runs(task)) for task in tasks} == {((1, "completed"),)}


def test_a_worker_that_lost_a_part_of_itself_hands_back_its_tasks_and_fails(q: Queue, start: Start, file_gate) -> None:
    """A worker without its keeper, committer or claimer would sit on its tasks."""
    gate = file_gate("gate")
    task = q.spawn(["say", "began"], ["gate", str(gate)], ["step", "one", []])
    broken = start(lease=1, drain_timeout=0.2, patch={"keeper.EXTEND_ROWS": 0})  # its first beat raises ValueError
    broken.wait(said="began")
    broken.wait_log("a part of the worker failed")
    assert broken.exit_code() == 1
    broken.wait_log("ValueError")
    gate.open()
    other = start(lease=HOUR)
    q.wait_ended(other, task)
    assert q.runs(task) == [(1, "completed")]
