"""A wait is answered in several statements: what others do between two of them must not make up an answer.

No lock holds an array verb there, so the function is made anew with a gate before one of its statements.
"""

from __future__ import annotations

import pytest

from tests.fixtures.gates import Gate
from tests.fixtures.postgres import Connect, Connection
from tests.sql.driver import Queue

GATE = 4711


def gated(conn: Connection, function: str, statement: str) -> None:
    """Let calls of a function wait, before a statement of it, for whoever holds the gate."""
    row = conn.execute("select pg_get_functiondef(%s::regproc)", (f"absurd.{function}",)).fetchone()
    assert row is not None
    assert row[0].count(statement) == 1
    conn.execute(row[0].replace(statement, f"perform pg_advisory_xact_lock_shared({GATE}); {statement}"))
    conn.execute("select pg_advisory_lock(%s)", (GATE,))


@pytest.mark.parametrize("somebody", ["waits for the next one", "comes meanwhile"])
def test_an_event_that_retention_takes_away_meanwhile_is_no_answer(
    q: Queue, connect: Connect, gate: Gate, somebody: str
) -> None:
    """Its name is a sentinel then, without a payload: none was emitted, so none may be recorded."""
    run, other = q.hold(2)
    q.emit("paid", 7)
    if somebody == "waits for the next one":
        assert q.awaits([other], ["wait"], ["paid"], since=["infinity"])[0]["status"] == "s"
    keeper = connect()
    gated(keeper, "await_events", "h := absurd.hold_runs(p_queue_id, p_run_ids, p_claim_nos, false)")
    awaiting = gate(lambda c: q.on(c).awaits([run], ["wait"], ["paid"])).wait_until_blocked()

    assert q.call("cleanup_events", 0)[0]["cleanup_events"] == 1
    if somebody == "comes meanwhile":
        q.rows("select absurd.add_sentinels(%s, '{paid}')", (q.id,))
    keeper.execute("select pg_advisory_unlock(%s)", (GATE,))

    (answer,) = awaiting.result()
    assert (answer["status"], answer["payload"]) == ("b", None)
    assert q.checkpoints(run.task_id) == {}
    assert q.awaits([run], ["wait"], ["paid"])[0]["status"] == "s"


def test_a_failed_task_that_is_retried_meanwhile_is_not_unknown(q: Queue, connect: Connect, gate: Gate) -> None:
    (run,), (child,) = q.hold(), q.hold(max_attempts=1)
    q.fail(child.run_id)
    keeper = connect()
    gated(keeper, "await_tasks", "with input as materialized (\n    select p_queue_id as queue_id")
    awaited = [(q.id, child.task_id)]
    awaiting = gate(lambda c: q.on(c).awaits_tasks([run], ["wait"], awaited)).wait_until_blocked()

    q.retry(child.task_id)
    keeper.execute("select pg_advisory_unlock(%s)", (GATE,))

    assert [each["status"] for each in awaiting.result()] == ["b"]
    assert [each["status"] for each in q.awaits_tasks([run], ["wait"], awaited)] == ["s"]
