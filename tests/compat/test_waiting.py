"""Timeouts and sleeps, through each third-party client."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.compat.conftest import OURS, StartClient
from tests.fixtures.postgres import Connection

pytestmark = pytest.mark.compat

LATER = (datetime.now(UTC) + timedelta(hours=1)).isoformat()


def test_a_wait_ends_with_its_timeout(client: StartClient, kind: str) -> None:
    worker = client(kind)
    worker.call("create_queue")
    spawned = worker.call("spawn", task="waiter", params={"event": "answer", "timeout": 30})
    worker.call("work")
    worker.call("work")
    assert worker.notes["answered"] == 0, "it is not due yet"
    worker.call("clock", at=LATER)
    worker.call("work")
    ended = worker.call("result", task_id=spawned["task_id"])
    assert ended["result"] == {"timed out": 'Timed out waiting for event "answer"'}


def test_an_event_in_time_beats_the_timeout(client: StartClient, kind: str) -> None:
    worker, sender = client(kind), client("python")
    worker.call("create_queue")
    spawned = worker.call("spawn", task="waiter", params={"event": "answer", "timeout": 30})
    worker.call("work")
    sender.call("emit", event="answer", payload=[1, "two"])
    worker.call("clock", at=LATER)
    worker.call("work")
    assert worker.call("result", task_id=spawned["task_id"])["result"] == [1, "two"]


def test_an_event_without_a_payload_is_not_a_timeout(client: StartClient, kind: str) -> None:
    worker, sender = client(kind), client(kind)
    worker.call("create_queue")
    spawned = worker.call("spawn", task="waiter", params={"event": "ping", "timeout": 30})
    worker.call("work")
    sender.call("emit", event="ping")
    worker.call("work")
    ended = worker.call("result", task_id=spawned["task_id"])
    assert (ended["state"], ended["result"]) == ("completed", None)


def test_a_wait_whose_attempt_failed_afterwards_keeps_its_outcome(client: StartClient, kind: str) -> None:
    worker = client(kind)
    worker.call("create_queue")
    spawned = worker.call(
        "spawn", task="waiter", params={"event": "answer", "timeout": 30, "then_fail": True}, max_attempts=1
    )
    worker.call("work")
    worker.call("clock", at=LATER)
    worker.call("work")
    assert worker.call("result", task_id=spawned["task_id"])["state"] == "failed"
    worker.call("emit", event="answer", payload="too late")
    worker.call("heal")
    worker.call("retry", task_id=spawned["task_id"])
    worker.call("work")
    ended = worker.call("result", task_id=spawned["task_id"])
    # Known difference: the outcome lasts. The released SDKs know a timeout only in the attempt it woke.
    outcome = {"timed out": 'Timed out waiting for event "answer"'} if kind in OURS else None
    assert ended == {"state": "completed", "result": outcome, "failure": None}


def test_a_sleeper_wakes_up_by_itself_and_once(client: StartClient, kind: str) -> None:
    worker, caller = client(kind), client(kind)
    worker.call("create_queue")
    spawned = worker.call("spawn", task="sleeper", params={"seconds": 0.2})
    worker.call("work")
    assert worker.notes == {"asleep": 1}
    worker.post("start")
    assert caller.call("await_result", task_id=spawned["task_id"], timeout=20)["result"] == "rested"
    worker.stop()
    assert worker.notes == {"started": 1, "asleep": 2, "awake": 1}


def test_a_long_sleep_is_due_at_its_moment(client: StartClient, kind: str, conn: Connection) -> None:
    worker = client(kind)
    worker.call("create_queue")
    worker.call("spawn", task="sleeper", params={"seconds": 86400})
    worker.call("work")
    row = conn.execute(
        """select r.state, r.available_at - r.started_at between '23:59'::interval and '24:01'::interval, r.attempt,
                  c.checkpoint_name, jsonb_typeof(c.state)
           from absurd."r_orders" r join absurd."c_orders" c using (task_id)"""
    ).fetchone()
    assert row == ("sleeping", True, 1, "nap", "string")


def test_a_task_nobody_registered_is_put_off_without_an_attempt(
    client: StartClient, kind: str, conn: Connection
) -> None:
    worker = client(kind)
    worker.call("create_queue")
    worker.call("spawn", task="of-another-worker", params={}, queue="orders")
    worker.call("work")
    row = conn.execute(
        """select state, attempt, failure_reason, available_at > absurd.current_time() + interval '10 s'
           from absurd."r_orders" """
    ).fetchone()
    assert row == ("sleeping", 1, None, True)
