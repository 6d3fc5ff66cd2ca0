"""Queues, policies, idempotency keys, claims and errors, through each third-party client."""

from __future__ import annotations

from typing import Any

import pytest

from tests.compat.clients import ClientError
from tests.compat.conftest import StartClient

pytestmark = pytest.mark.compat


def test_queues_are_made_listed_and_dropped(client: StartClient, kind: str) -> None:
    caller = client(kind)
    assert caller.call("list_queues") == []
    for name in ("orders", 'Über "queue" 1', "orders"):
        caller.call("create_queue", name=name)
    assert sorted(caller.call("list_queues")) == ["orders", 'Über "queue" 1']
    caller.call("spawn", task="steps", params={})
    caller.call("drop_queue", name="orders")
    caller.call("drop_queue", name="orders")
    assert caller.call("list_queues") == ['Über "queue" 1']
    caller.call("create_queue")
    assert caller.call("claim") == [], "nothing of the dropped queue is in the new one"


def test_a_queue_policy_is_written_and_read(client: StartClient, kind: str) -> None:
    caller = client(kind)
    assert caller.call("get_policy") is None
    caller.call("create_queue", cleanup_ttl="35 days", cleanup_limit=17)
    policy = caller.call("get_policy")
    assert policy["queue_name"] == "orders"
    assert policy["storage_mode"] == "unpartitioned"
    assert policy["cleanup_limit"] == 17
    assert policy["cleanup_ttl"] == ("35 days" if kind == "node" else "35 days, 0:00:00")
    caller.call("set_policy", partition_lookahead="42 days", detach_mode="empty", detach_min_age="90 minutes")
    policy = caller.call("get_policy")
    assert policy["detach_mode"] == "empty"
    assert policy["partition_lookahead"] == ("42 days" if kind == "node" else "42 days, 0:00:00")
    assert policy["detach_min_age"] == ("01:30:00" if kind == "node" else "1:30:00")
    assert policy["cleanup_limit"] == 17, "what was not given stays"
    with pytest.raises(ClientError, match="cleanup_limit"):
        caller.call("set_policy", cleanup_limit=0)


def test_a_partitioned_queue_is_refused_with_a_hint(client: StartClient, kind: str) -> None:
    caller = client(kind)
    with pytest.raises(ClientError) as refused:
        caller.call("create_queue", name="weekly", storage_mode="partitioned")
    assert refused.value.code == "0A000"
    assert caller.call("list_queues") == []


def test_an_idempotency_key_gives_the_same_task(client: StartClient, kind: str) -> None:
    one, other = client(kind), client("node" if kind != "node" else "python")
    one.call("create_queue")
    first = one.call("spawn", task="flaky", params={"n": 1}, idempotency_key="order 42", max_attempts=2)
    second = other.call("spawn", task="steps", params={"n": 2}, idempotency_key="order 42")
    assert {name: second[name] for name in ("task_id", "run_id", "attempt")} == {
        name: first[name] for name in ("task_id", "run_id", "attempt")
    }
    created = {kind: first, "node" if kind != "node" else "python": second}["node"]["created"]
    assert created is (kind == "node"), "TypeScript sees whether it was new"
    one.call("work")
    third = one.call("spawn", task="flaky", params={}, idempotency_key="order 42")
    assert (third["task_id"], third["attempt"]) == (first["task_id"], 2), "its newest attempt"
    assert third["run_id"] != first["run_id"]
    assert one.call("spawn", task="flaky", params={}, idempotency_key="order 43")["task_id"] != first["task_id"]


def test_a_claim_hands_out_everything_a_worker_needs(client: StartClient, kind: str) -> None:
    caller = client(kind)
    caller.call("create_queue")
    spawned: Any = caller.call(
        "spawn",
        task="steps",
        params={"deep": [{"n": 1.5}], "text": 'it\'s \\ "quoted"'},
        headers={"trace": "x"},
        max_attempts=7,
        retry_strategy={"kind": "fixed", "base_seconds": 5},
    )
    caller.call("spawn", task="steps", params=None)
    claimed, other = caller.call("claim", batch_size=5, claim_timeout=10, worker_id="me")
    assert claimed == {
        "task_id": spawned["task_id"],
        "run_id": spawned["run_id"],
        "attempt": 1,
        "task_name": "steps",
        "params": {"deep": [{"n": 1.5}], "text": 'it\'s \\ "quoted"'},
        "retry_strategy": {"kind": "fixed", "base_seconds": 5},
        "max_attempts": 7,
        "headers": {"trace": "x"},
        "wake_event": None,
        "event_payload": None,
    }
    assert (other["params"], other["headers"], other["max_attempts"]) == (None, None, 5)
    assert caller.call("claim") == []


def test_an_unknown_queue_is_an_undefined_table(client: StartClient, kind: str) -> None:
    caller = client(kind)
    for method, args in {
        "spawn": {"task": "steps", "params": {}},
        "emit": {"event": "e"},
        "claim": {},
        "cancel": {"task_id": "01890000-0000-7000-8000-000000000000"},
    }.items():
        with pytest.raises(ClientError) as refused:
            caller.call(method, **args)
        assert refused.value.code == "42P01", method


def test_an_unknown_task_is_nothing_or_not_found(client: StartClient, kind: str) -> None:
    caller = client(kind)
    caller.call("create_queue")
    unknown = "01890000-0000-7000-8000-000000000000"
    assert caller.call("result", task_id=unknown) is None
    with pytest.raises(ClientError, match=f'Task "{unknown}" not found'):
        caller.call("cancel", task_id=unknown)
