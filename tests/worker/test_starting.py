"""What a worker says when it cannot start, and queues that come and go under it."""

from __future__ import annotations

from tests.worker.conftest import Queue, Start


def test_a_missing_schema_names_the_command_that_installs_it(empty_database_url: str, start: Start) -> None:
    worker = start(url=empty_database_url)
    assert worker.exit_code() == 1
    worker.wait_log("SchemaMissing")
    worker.wait_log("absurdctl init")


def test_a_missing_queue_names_the_command_that_creates_it(q: Queue, start: Start) -> None:
    worker = start(queues=["nowhere"])
    assert worker.exit_code() == 1
    worker.wait_log('Queue "nowhere" does not exist')
    worker.wait_log("absurdctl create-queue nowhere")


def test_a_wrong_url_fails_at_once_and_hides_the_password(start: Start) -> None:
    worker = start(url="postgresql://me:geheim@127.0.0.1:1/nothing")
    assert worker.exit_code() == 1
    worker.wait_log("ConnectionLost: cannot connect to the database")
    assert "geheim" not in worker.log


def test_w12_a_lease_of_zero_is_refused(q: Queue, start: Start) -> None:
    worker = start(lease=0)
    assert worker.exit_code() == 1
    worker.wait_log("ConfigError: claim_timeout must be > 0")


def test_a_queue_that_is_dropped_and_made_anew_is_served_again(q: Queue, start: Start) -> None:
    worker = start(patch={"claimer.IDLE_POLL": 0.2, "claimer.RESOLVE_EVERY": 0.1}).ready()
    q.conn.execute("select absurd.drop_queue('q')")
    worker.wait_log('queue "q" no longer exists')
    q.conn.execute("select absurd.create_queue('q')")
    task = q.spawn(["say", "anew"])
    q.wait_ended(worker, task)
    assert worker.log.count("no longer exists") == 1
    assert worker.stop() == 0


def test_a_queue_dropped_while_its_task_runs_takes_the_task_along(q: Queue, start: Start, file_gate) -> None:
    gate = file_gate("gate")
    q.spawn(["say", "began"], ["step", "one", [["gate", str(gate)]]], ["say", "past one"])
    worker = start(patch={"claimer.IDLE_POLL": 0.2, "claimer.RESOLVE_EVERY": 0.1})
    worker.wait(said="began")
    q.conn.execute("select absurd.drop_queue('q')")
    q.conn.execute("select absurd.purge_dropped_queues(1000)")
    gate.open()
    worker.wait(signal="run.ended")
    q.conn.execute("select absurd.create_queue('q')")
    q.wait_ended(worker, q.spawn(["returns", 1]))
    assert worker.stop() == 0
