"""Failures, retries, cancellations, killed workers and lost leases, through each third-party client."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.compat.clients import ClientError
from tests.compat.conftest import StartClient
from tests.fixtures.postgres import Connection

pytestmark = pytest.mark.compat

PARAMS = {"order": "7", "sku": "kettle"}
LATER = (datetime.now(UTC) + timedelta(hours=1)).isoformat()


def test_a_failed_task_is_retried_in_place_and_keeps_its_checkpoints(client: StartClient, kind: str) -> None:
    worker, caller = client(kind), client(kind)
    worker.call("create_queue")
    spawned = worker.call("spawn", task="flaky", params={}, max_attempts=1)
    worker.call("work")
    failed = worker.call("result", task_id=spawned["task_id"])
    assert (failed["state"], failed["failure"]["message"]) == ("failed", "card declined")
    worker.call("heal")
    retried = caller.call("retry", task_id=spawned["task_id"])
    assert (retried["task_id"], retried["attempt"], retried["created"]) == (spawned["task_id"], 2, False)
    worker.call("work")
    assert worker.call("result", task_id=spawned["task_id"])["result"] == "charged"
    assert worker.notes == {"prepare": 1, "charge": 2}


def test_a_failed_task_is_spawned_anew(client: StartClient, kind: str) -> None:
    worker = client(kind)
    worker.call("create_queue")
    spawned = worker.call("spawn", task="flaky", params={}, max_attempts=1)
    worker.call("work")
    worker.call("heal")
    again = worker.call("retry", task_id=spawned["task_id"], spawn_new=True, max_attempts=3)
    assert again["task_id"] != spawned["task_id"]
    assert (again["attempt"], again["created"]) == (1, True)
    worker.call("work")
    assert worker.call("result", task_id=spawned["task_id"])["state"] == "failed"
    assert worker.call("result", task_id=again["task_id"])["result"] == "charged"
    assert worker.notes == {"prepare": 2, "charge": 2}


def test_a_retry_that_cannot_be_says_why(client: StartClient, kind: str) -> None:
    worker = client(kind)
    worker.call("create_queue")
    spawned = worker.call("spawn", task="flaky", params={}, max_attempts=1)
    with pytest.raises(ClientError, match="is not currently failed in queue"):
        worker.call("retry", task_id=spawned["task_id"])
    worker.call("work")
    with pytest.raises(ClientError, match=r"max_attempts \(1\) must be greater than current attempts \(1\)"):
        worker.call("retry", task_id=spawned["task_id"], max_attempts=1)
    unknown = "01890000-0000-7000-8000-000000000000"
    with pytest.raises(ClientError, match=f'Task "{unknown}" not found in queue "orders"'):
        worker.call("retry", task_id=unknown)


def test_attempts_follow_the_retry_strategy_until_they_are_used_up(
    client: StartClient, kind: str, conn: Connection
) -> None:
    worker = client(kind)
    worker.call("create_queue")
    strategy = {"kind": "exponential", "base_seconds": 10, "factor": 3, "max_seconds": 20}
    spawned = worker.call("spawn", task="flaky", params={}, max_attempts=3, retry_strategy=strategy)
    at = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=1)
    delays = []
    for _ in range(3):
        worker.call("clock", at=at.isoformat())
        worker.call("work")
        row = conn.execute('select state, available_at from absurd."r_orders" order by attempt desc limit 1').fetchone()
        assert row is not None
        delays.append((row[0], (row[1] - at).total_seconds() if row[0] == "sleeping" else None))
        at = row[1]
    assert delays == [("sleeping", 10), ("sleeping", 20), ("failed", None)]
    assert worker.call("result", task_id=spawned["task_id"])["state"] == "failed"
    assert worker.notes == {"prepare": 1, "charge": 3}


def test_a_bad_retry_strategy_is_refused_at_the_spawn(client: StartClient, kind: str) -> None:
    worker = client(kind)
    worker.call("create_queue")
    with pytest.raises(ClientError) as refused:
        worker.call("spawn", task="flaky", params={}, retry_strategy={"kind": "fixed", "base_seconds": -1})
    assert refused.value.code == "AB003"


@pytest.mark.parametrize("state", ["pending", "waiting", "sleeping"])
def test_a_task_that_does_not_run_is_cancelled_for_good(client: StartClient, kind: str, state: str) -> None:
    worker, caller = client(kind), client("node" if kind != "node" else "python")
    worker.call("create_queue")
    spawned = (
        worker.call("spawn", task="sleeper", params={"seconds": 3600})
        if state == "sleeping"
        else worker.call("spawn", task="waiter", params={"event": "never"})
    )
    if state != "pending":
        worker.call("work")
        assert worker.call("result", task_id=spawned["task_id"])["state"] == "sleeping"
    caller.call("cancel", task_id=spawned["task_id"])
    caller.call("cancel", task_id=spawned["task_id"])
    worker.call("emit", event="never", payload=1)
    worker.call("clock", at=LATER)
    worker.call("work")
    assert worker.call("result", task_id=spawned["task_id"])["state"] == "cancelled"
    assert worker.notes["answered"] == worker.notes["awake"] == 0


def test_a_running_task_that_is_cancelled_stops_at_its_next_step(client: StartClient, kind: str) -> None:
    worker, caller = client(kind), client(kind)
    worker.call("create_queue")
    spawned = worker.call("spawn", task="holder", params={})
    worker.post("work")
    worker.wait_for("holding")
    caller.call("cancel", task_id=spawned["task_id"])
    worker.release()
    worker.answer()
    assert worker.call("result", task_id=spawned["task_id"]) == {"state": "cancelled", "result": None, "failure": None}
    retried = worker.call("claim")
    assert retried == []


def test_a_task_nobody_started_in_time_is_cancelled(client: StartClient, kind: str) -> None:
    worker = client(kind)
    worker.call("create_queue")
    spawned = worker.call("spawn", task="flaky", params={}, cancellation={"max_delay": 60, "max_duration": 600})
    worker.call("clock", at=LATER)
    worker.call("work")
    assert worker.call("result", task_id=spawned["task_id"])["state"] == "cancelled"
    assert worker.notes == {}


def test_a_killed_worker_leaves_its_checkpoints_to_the_next(client: StartClient, kind: str) -> None:
    victim, heir = client(kind), client(kind)
    victim.call("create_queue")
    for event in ("payment:7", "delivery:7"):
        victim.call("emit", event=event, payload=event)
    spawned = victim.call("spawn", task="order", params=PARAMS | {"hold": True})
    victim.post("work", claim_timeout=60)
    victim.wait_for("ship")
    victim.kill()
    heir.call("work")
    assert heir.call("result", task_id=spawned["task_id"])["state"] == "running", "the lease of the dead still holds"
    heir.call("clock", at=LATER)
    heir.post("work")
    heir.wait_for("ship")
    heir.release()
    heir.answer()
    assert heir.call("result", task_id=spawned["task_id"])["state"] == "completed"
    assert (victim.notes, heir.notes) == ({"reserve": 1, "ship": 1}, {"ship": 1})


def test_a_worker_that_lost_its_lease_cannot_write_any_more(client: StartClient, kind: str, conn: Connection) -> None:
    slow, heir = client(kind), client(kind)
    slow.call("create_queue")
    spawned = slow.call("spawn", task="holder", params={})
    slow.post("work", worker_id="slow", claim_timeout=60)
    slow.wait_for("holding")
    heir.call("clock", at=LATER)
    heir.post("work", worker_id="heir", claim_timeout=7200)
    heir.wait_for("holding")
    slow.release()
    slow.answer()  # the SDK swallows that the run has failed meanwhile
    assert heir.notes["after"] == 0
    heir.release()
    heir.answer()
    assert heir.call("result", task_id=spawned["task_id"])["result"] == "held"
    runs: list[Any] = conn.execute(
        """select attempt, state, claimed_by, failure_reason ->> 'name' from absurd."r_orders" order by attempt"""
    ).fetchall()
    assert runs == [(1, "failed", "slow", "$ClaimTimeout"), (2, "completed", "heir", None)]
