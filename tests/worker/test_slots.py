"""Slots, order and queues."""

from __future__ import annotations

from tests.worker.conftest import Queue, Start


def test_w24_short_tasks_do_not_wait_for_a_long_one(q: Queue, start: Start, file_gate) -> None:
    gate = file_gate("gate")
    long = q.spawn(["gate", str(gate)], ["say", "long ended"], priority=1)
    short = [q.spawn(["say", f"short {number}"]) for number in range(10)]
    worker = start(slots=2)
    q.wait_ended(worker, *short)  # the long one ends only when all short ones have
    assert q.state(long) == "running"
    gate.open()
    q.wait_ended(worker, long)


def test_a_long_task_among_prefetched_ones_holds_up_nobody(q: Queue, start: Start, file_gate) -> None:
    """The same once the worker claims ahead."""
    worker = start(slots=2)
    q.wait_ended(worker, *[q.spawn(["returns", 0]) for _ in range(30)])
    test_gate = file_gate("gate")
    with q.conn.transaction():
        long = q.spawn(["gate", str(test_gate)], priority=1)
        short = [q.spawn(["returns", 0]) for _ in range(40)]
    q.wait_ended(worker, *short)
    assert q.state(long) == "running"
    test_gate.open()
    q.wait_ended(worker, long)


def test_parent_and_child_share_one_queue_and_one_slot(q: Queue, start: Start) -> None:
    parent = q.spawn(["child", "work", [["returns", "from below"]], "q"])
    worker = start(slots=1)
    q.wait_ended(worker, parent)
    assert q.task(parent)[1] == ["child", "completed", "from below"]


def test_parent_and_child_on_two_queues_of_one_worker(q: Queue, start: Start) -> None:
    Queue(q.conn, "other")
    parent = q.spawn(["child", "work@other", [["returns", 2]], "other"])
    worker = start(queues=["q", "other"], slots=1, patch={"claimer.IDLE_POLL": 1000})
    q.wait_ended(worker, parent)
    assert q.task(parent)[1] == ["child", "completed", 2]


def test_parent_and_child_on_two_queues_of_two_workers(q: Queue, start: Start) -> None:
    Queue(q.conn, "other")
    above = start(queues=["q"], slots=1, patch={"claimer.IDLE_POLL": 1000}).ready()
    below = start(queues=["other"], slots=1, patch={"claimer.IDLE_POLL": 1000}, tasks=["below"]).ready()
    parent = q.spawn(["child", "below", [["fails", "badly"]], "other"])
    q.wait_ended(above, parent)
    assert q.task(parent)[1][:2] == ["child", "failed"]
    assert below.said(signal="run.ended", outcome="failed")


def test_priority_comes_first_then_the_run_at_order(q: Queue, start: Start) -> None:
    row = q.conn.execute("select t + '0.3 s', t + '0.2 s', t + '0.1 s' from absurd.current_time() t").fetchone()
    assert row is not None
    for text, at in zip(["fourth", "third", "second"], row, strict=True):
        q.spawn(["say", text], start_at=str(at))
    q.spawn(["say", "last"], priority=-1)
    q.spawn(["say", "first"], priority=5)
    q.conn.execute("select pg_sleep_until(%s)", (row[0],))  # all of them are due now, by the engine's clock
    worker = start(slots=1)
    worker.wait(said="last")
    said = [line["said"] for line in worker.said() if "said" in line]
    assert said == ["first", "second", "third", "fourth", "last"]


def test_a_full_queue_does_not_starve_its_neighbour(q: Queue, start: Start) -> None:
    other = Queue(q.conn, "other")
    full = [q.spawn(["say", "full"]) for _ in range(200)]
    few = [other.spawn(["say", "few"], task="work@other") for _ in range(5)]
    worker = start(queues=["q", "other"], slots=1, batch_size=1)
    q.wait_ended(worker, *full[-1:])
    order = [line["said"] for line in worker.said() if "said" in line]
    assert order.index("full") < 3
    assert [other.state(task) for task in few] == ["completed"] * 5
    assert len([text for text in order[:20] if text == "few"]) == 5


def test_w17_tasks_of_unknown_names_are_left_to_others_and_the_worker_says_so(q: Queue, start: Start) -> None:
    unknown = [q.spawn(["returns", 1], task="invoice") for _ in range(3)]
    known = q.spawn(["returns", 2])
    worker = start(housekeeping=True, lease=0.3, patch={"keeper.UNSERVED_AFTER": 0})
    line = worker.wait(signal="tasks.unserved")
    assert (line["queue"], line["names"]) == ("q", ["invoice"])
    worker.wait_log('of names this worker does not serve: "invoice" (3)')
    q.wait_ended(worker, known)
    assert [q.runs(task) for task in unknown] == [[(1, "pending")]] * 3, "never claimed"
    other = start(tasks=["invoice"])
    q.wait_ended(other, *unknown)
