"""Leases in real time: a living worker keeps its tasks, however long they take; a stopped one finds them gone."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from absurd._async.keeper import Keeper, Leases
from tests.worker.conftest import Queue, Start


def test_w09_a_step_three_times_as_long_as_the_lease_runs_once(q: Queue, start: Start) -> None:
    task = q.spawn(["step", "long", [["say", "in long"], ["lasts", 3]]], ["returns", 1], max_attempts=3)
    workers = [start(lease=1), start(lease=1)]
    q.wait_ended(workers[0], task)
    assert sum(len(worker.said(said="in long")) for worker in workers) == 1
    assert q.runs(task) == [(1, "completed")]


def test_a_worker_that_was_stopped_past_its_lease_is_told_and_its_results_are_refused(
    q: Queue, start: Start, file_gate, world: str
) -> None:
    gates = [file_gate("first"), file_gate("second")]
    task = q.spawn(
        ["say", "began"], ["step", "one", [["gate", str(gates[0])], ["say", "went on"]]], ["say", "past one"],
        ["returns", 1], max_attempts=2, retry_strategy={"kind": "none"},
    )  # fmt: skip
    stopped = start(lease=1)
    stopped.wait(said="began")
    stopped.send(signal.SIGSTOP)
    other = start(lease=1)
    other.wait(said="began", attempt=2)
    mark = stopped.mark
    stopped.send(signal.SIGCONT)
    if world == "async":  # cancelled where it waits
        ended = stopped.wait(after=mark, signal="run.ended")
        gates[0].open()
    else:  # a thread notices when it comes back from its step
        stopped.wait_until(lambda: "lease keeper woke" in stopped.log, "its lateness")
        gates[0].open()
        ended = stopped.wait(after=mark, signal="run.ended")
    assert ended["outcome"] == "lost"
    q.wait_ended(other, task)
    assert not stopped.said(said="past one")
    assert q.runs(task) == [(1, "failed"), (2, "completed")]
    fresh = q.spawn(["returns", "alive"])
    other.kill()
    q.wait_ended(stopped, fresh)


def test_a_cancelled_task_tells_its_handler_and_frees_the_slot(q: Queue, start: Start, file_gate, world: str) -> None:
    gate = file_gate("gate")
    task = q.spawn(["say", "began"], ["step", "one", [["gate", str(gate)]]], ["say", "past one"])
    worker = start(lease=1)
    worker.wait(said="began")
    q.conn.execute("select absurd.cancel_task('q', %s)", (task,))
    if world == "sync":
        gate.open()
    assert worker.wait(signal="run.ended")["outcome"] == "cancelled"
    after = q.spawn(["returns", 1])
    q.wait_ended(worker, after)
    assert q.state(task) == "cancelled"
    assert not worker.said(said="past one")


def test_a_cancelled_task_is_stopped_at_its_next_write_before_any_beat(q: Queue, start: Start, file_gate) -> None:
    gate = file_gate("gate")
    task = q.spawn(["say", "began"], ["gate", str(gate)], ["step", "one", []], ["say", "past one"])
    worker = start(lease=3600)
    worker.wait(said="began")
    q.conn.execute("select absurd.cancel_task('q', %s)", (task,))
    gate.open()
    assert worker.wait(signal="run.ended")["outcome"] == "cancelled"
    assert not worker.said(said="past one")


def test_a_killed_workers_task_is_taken_over_when_its_lease_ends(q: Queue, start: Start, file_gate) -> None:
    gate = file_gate("gate")
    task = q.spawn(
        ["step", "one", []], ["say", "began"], ["gate", str(gate)], max_attempts=2, retry_strategy={"kind": "none"}
    )
    first = start(lease=1)
    first.wait(said="began")
    second = start(lease=1, patch={"claimer.IDLE_POLL": 1000}).ready()
    first.kill()
    second.wait(said="began", attempt=2)
    gate.open()
    q.wait_ended(second, task)
    assert q.runs(task) == [(1, "failed"), (2, "completed")]


@pytest.mark.parametrize("world", ["async"])  # threads do not block one another
def test_a_handler_that_blocks_the_loop_is_named(q: Queue, start: Start) -> None:
    task = q.spawn(["busy", 1.2], ["returns", 1])
    worker = start(lease=1)
    worker.wait_log("a handler blocks the worker")
    q.wait_ended(worker, task)


def test_a_finished_run_keeps_its_lease_while_its_end_cannot_be_written(q: Queue, start: Start) -> None:
    q.conn.execute(
        """create table public.disk as select true as is_full;
           create function public.no_room() returns trigger language plpgsql as $$
           begin
             if (select is_full from public.disk) then raise exception 'no room' using errcode = '53100'; end if;
             return new;
           end $$;
           create trigger no_room before insert or update on absurd.attempts
             for each row when (new.state = 'c') execute function public.no_room()"""
    )
    ended = q.spawn(["say", "began"], ["returns", 1], max_attempts=3)
    worker = start(lease=1, slots=2)
    worker.wait_log("writing failed")
    meanwhile = q.spawn(["lasts", 3], ["say", "three leases later"], ["returns", 2])
    other = start(lease=1).started()
    worker.wait_until(
        lambda: bool(worker.said(said="three leases later") or other.said(said="three leases later")), "time has passed"
    )
    q.conn.execute("update public.disk set is_full = false")
    q.wait_ended(worker, ended, meanwhile)
    assert q.runs(ended) == [(1, "completed")]
    assert not other.said(said="began")
    worker.wait_log("writing succeeds again")


class Once:
    """An event that is set at the first look; remembers how long it was to be waited for."""

    def __init__(self) -> None:
        self.waited: list[float] = []

    async def wait(self, seconds: float) -> bool:
        self.waited.append(seconds)
        return True


@pytest.mark.parametrize(("lease", "beat"), [(3, 1), (120, 5), (86400, 5)])
async def test_a_handler_hears_of_its_cancellation_within_5_s_however_long_the_lease(lease: float, beat: float) -> None:
    stopped: Any = Once()
    nothing: Any = None
    await Keeper(nothing, Leases(), stopped, lease=lease, queues={}, names=lambda _: [], housekeeping=False).run()
    assert stopped.waited == [beat]


def test_w11_a_policy_is_enforced_while_every_slot_is_busy(q: Queue, start: Start, file_gate, world: str) -> None:
    gate = file_gate("gate")
    task = q.spawn(["step", "one", [["gate", str(gate)]]], ["say", "past one"], cancellation={"max_duration": 0.2})
    waiting = q.spawn(["returns", 1], cancellation={"max_delay": 0.2})
    worker = start(lease=1, slots=1)
    q.wait_ended(worker, task, waiting)
    if world == "sync":
        gate.open()
    assert worker.wait(signal="run.ended")["outcome"] == "cancelled"
    assert (q.state(task), q.state(waiting)) == ("cancelled", "cancelled")
    assert not worker.said(said="past one")
