"""The database goes away under a worker: it says so, comes back, finishes everything."""

from __future__ import annotations

import pytest

from absurd import embedded
from tests.fixtures.servers import OwnServer
from tests.worker.conftest import Queue, Start
from tests.worker.process import WorkerProcess

PARTS = ["claimer", "committer", "lease keeper"]


def restart(own_server: OwnServer, own_q: Queue, mode: embedded.StopMode, worker: WorkerProcess) -> None:
    """Down, noticed, up."""
    mark = worker.mark
    own_server.stop(mode)
    worker.wait(after=mark, signal="connection.lost")
    own_server.start()
    own_q.reconnect(own_server.url)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_w20_an_idle_worker_survives_a_restart(
    own_server: OwnServer, own_q: Queue, start: Start, mode: embedded.StopMode
) -> None:
    worker = start(patch={"claimer.IDLE_POLL": 1000}).ready()
    restart(own_server, own_q, mode, worker)
    worker.wait(after=worker.index(signal="connection.restored", what="claimer"), signal="worker.idle")
    task = own_q.spawn(["say", "ran"])  # told, not polled: it registered again
    own_q.wait_ended(worker, task)
    worker.wait_log("connection of the claimer lost")
    worker.wait_log("connection of the claimer restored")
    assert worker.stop() == 0


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_busy_worker_survives_a_restart(
    own_server: OwnServer, own_q: Queue, start: Start, mode: embedded.StopMode, file_gate
) -> None:
    gate = file_gate("gate")
    step = ["step", "one", [["say", "in one"], ["gate", str(gate)]]]
    tasks = [own_q.spawn(step, ["step", "two", []], ["returns", number]) for number in range(4)]
    worker = start(slots=4, lease=2)
    worker.wait_many(4, said="in one")
    restart(own_server, own_q, mode, worker)
    gate.open()
    own_q.wait_ended(worker, *tasks)
    assert [own_q.task(task)[:2] for task in tasks] == [("completed", number) for number in range(4)]
    assert len(worker.said(said="in one")) == 4, "no step ran twice"
    assert worker.stop() == 0


def test_a_step_whose_commit_found_no_database_returns_once_it_is_back(
    own_server: OwnServer, own_q: Queue, start: Start, file_gate
) -> None:
    gate = file_gate("gate")
    task = own_q.spawn(["step", "one", [["say", "in one"], ["gate", str(gate)]]], ["say", "after one"], ["returns", 1])
    worker = start(lease=600)
    worker.wait(said="in one")
    own_server.stop("immediate")
    gate.open()
    worker.wait(signal="connection.lost", what="committer")
    assert not worker.said(said="after one")
    own_server.start()
    own_q.reconnect(own_server.url)
    own_q.wait_ended(worker, task)
    assert own_q.runs(task) == [(1, "completed")]
    assert len(worker.said(said="in one")) == 1


def test_w20_an_idle_worker_survives_the_end_of_each_of_its_connections(q: Queue, start: Start) -> None:
    worker = start(patch={"claimer.IDLE_POLL": 1000}, lease=0.3)
    warm_up(q, worker)
    for backend in backends(q):
        q.conn.execute("select pg_terminate_backend(%s)", (backend,))
        task = q.spawn(["step", "one", []], ["lasts", 0.2])
        q.wait_ended(worker, task)
        assert q.runs(task) == [(1, "completed")]
    worker.wait_until(
        lambda: {line["what"] for line in worker.said(signal="connection.lost")} == set(PARTS), "all three"
    )
    assert worker.stop() == 0


def test_a_busy_worker_survives_the_end_of_all_its_connections_again_and_again(
    q: Queue, start: Start, file_gate
) -> None:
    gate = file_gate("gate")
    worker = start(slots=2, lease=2)
    warm_up(q, worker)
    held = q.spawn(["step", "one", [["say", "in one"], ["gate", str(gate)]]], ["returns", 1])
    worker.wait(said="in one")
    flood = []
    for _ in range(5):
        flood += [q.spawn(["step", "a", []], ["step", "b", []], ["returns", 1]) for _ in range(20)]
        for backend in backends(q):
            q.conn.execute("select pg_terminate_backend(%s)", (backend,))
        q.wait_ended(worker, flood[-1])
    gate.open()
    q.wait_ended(worker, held, *flood)
    assert {q.state(task) for task in (held, *flood)} == {"completed"}
    assert len(worker.said(said="in one")) == 1
    assert worker.stop() == 0


def test_a_step_the_server_dies_of_fails_its_own_task_and_no_other(q: Queue, start: Start) -> None:
    q.conn.execute(
        """create function public.die() returns trigger language plpgsql as $$
           begin perform pg_terminate_backend(pg_backend_pid()); perform pg_sleep(60); return new; end $$;
           create trigger die before insert on absurd.checkpoints
             for each row when (new.name = 'poison') execute function public.die()"""
    )
    poison = q.spawn(["step", "poison", []], ["returns", 1])
    healthy = [q.spawn(["step", "one", []], ["returns", 1]) for _ in range(20)]
    worker = start(slots=21)
    q.wait_ended(worker, poison, *healthy)
    assert q.state(poison) == "failed"
    assert q.task(poison)[2]["name"] == "ConnectionLost"
    assert {q.state(task) for task in healthy} == {"completed"}
    assert worker.stop() == 0


def warm_up(q: Queue, worker: WorkerProcess) -> None:
    """One task long enough that committer and keeper have connected, too."""
    task = q.spawn(["step", "one", []], ["lasts", 0.9])
    q.wait_ended(worker, task)
    worker.wait_until(lambda: len(backends(q)) >= 2, "its connections")


def backends(q: Queue) -> list[int]:
    """The worker's own backends, and those of its client's pool."""
    rows = q.conn.execute(
        "select pid from pg_stat_activity where datname = current_database() and application_name = 'absurd'"
    ).fetchall()
    return [row[0] for row in rows]
