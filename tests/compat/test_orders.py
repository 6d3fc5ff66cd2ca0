"""The order flow through each third-party client: spawn, step, payment, step, delivery, result."""

from __future__ import annotations

from typing import Any

import pytest

from tests.compat.conftest import KINDS, AbsurdCtl, StartClient

pytestmark = pytest.mark.compat

PARAMS = {"order": "42", "sku": "teapot"}
PAYMENT = {"amount": 1250, "currency": "EUR", "note": '10 € "off"'}
DELIVERY = {"courier": "bike", "signed": True}
RESULT: dict[str, Any] = {
    "reserved": {"sku": "teapot", "qty": 1},
    "payment": PAYMENT,
    "parcel": "parcel-42",
    "delivery": DELIVERY,
}


def test_an_order_whose_events_come_while_it_waits(client: StartClient, kind: str) -> None:
    worker, sender = client(kind), client("python")
    sender.call("create_queue")
    spawned = worker.call("spawn", task="order", params=PARAMS)
    assert (worker.call("result", task_id=spawned["task_id"]))["state"] == "pending"
    worker.call("work")
    assert worker.call("result", task_id=spawned["task_id"])["state"] == "sleeping"
    sender.call("emit", event="payment:42", payload=PAYMENT)
    worker.call("work")
    assert worker.notes == {"reserve": 1, "ship": 1}
    sender.call("emit", event="delivery:42", payload=DELIVERY)
    worker.call("work")
    assert worker.call("result", task_id=spawned["task_id"]) == {
        "state": "completed", "result": RESULT, "failure": None,
    }  # fmt: skip
    assert worker.notes == {"reserve": 1, "ship": 1}, "no step ran twice"


def test_an_order_whose_events_came_before_the_spawn(client: StartClient, kind: str) -> None:
    worker, sender = client(kind), client("node" if kind != "node" else "python")
    worker.call("create_queue")
    sender.call("emit", event="delivery:42", payload=DELIVERY)
    sender.call("emit", event="payment:42", payload=PAYMENT)
    sender.call("emit", event="payment:42", payload={"amount": 0})
    spawned = worker.call("spawn", task="order", params=PARAMS)
    worker.call("work")
    assert worker.call("result", task_id=spawned["task_id"])["result"] == RESULT, "the first emit of a name wins"
    assert worker.notes == {"reserve": 1, "ship": 1}


def test_an_order_whose_second_event_comes_first(client: StartClient, kind: str, absurdctl: AbsurdCtl) -> None:
    worker = client(kind)
    worker.call("create_queue")
    spawned = worker.call("spawn", task="order", params=PARAMS)
    worker.call("work")
    absurdctl("emit-event", "delivery:42", "-q", "orders", "-P", "courier=bike", "-P", "signed:=true")
    worker.call("work")
    assert worker.call("result", task_id=spawned["task_id"])["state"] == "sleeping", "nobody waits for it yet"
    worker.call("emit", event="payment:42", payload=PAYMENT)
    worker.call("work")
    assert worker.call("result", task_id=spawned["task_id"])["result"] == RESULT


def test_a_started_worker_takes_many_orders_through(client: StartClient, kind: str) -> None:
    worker, caller = client(kind), client(kind)
    caller.call("create_queue")
    worker.post("start", concurrency=4, claim_timeout=30)
    worker.wait_for("started")
    numbers = [str(number) for number in range(12)]
    tasks = {}
    for number in numbers:
        if int(number) % 3 == 0:
            caller.call("emit", event=f"payment:{number}", payload=PAYMENT)
        tasks[number] = caller.call("spawn", task="order", params={"order": number, "sku": "teapot"})["task_id"]
        if int(number) % 3 == 1:
            caller.call("emit", event=f"delivery:{number}", payload=DELIVERY)
    for number in reversed(numbers):
        caller.call("emit", event=f"delivery:{number}", payload=DELIVERY)
        caller.call("emit", event=f"payment:{number}", payload=PAYMENT)
    for number, task_id in tasks.items():
        ended = caller.call("await_result", task_id=task_id, timeout=20)
        assert ended["state"] == "completed"
        assert ended["result"] == RESULT | {"parcel": f"parcel-{number}"}
    worker.stop()
    assert worker.notes == {"started": 1, "reserve": 12, "ship": 12}


@pytest.mark.parametrize("second", KINDS)
def test_an_order_begun_by_one_client_and_finished_by_another(client: StartClient, kind: str, second: str) -> None:
    one, other = client(kind), client(second)
    one.call("create_queue")
    spawned = one.call("spawn", task="order", params=PARAMS)
    one.call("work")
    other.call("emit", event="payment:42", payload=PAYMENT)
    other.call("work")
    one.call("emit", event="delivery:42", payload=DELIVERY)
    one.call("work")
    assert other.call("result", task_id=spawned["task_id"])["result"] == RESULT
    assert (one.notes, other.notes) == ({"reserve": 1}, {"ship": 1})


def test_every_kind_of_step_keeps_its_value(client: StartClient, kind: str, conn: Any) -> None:
    worker = client(kind)
    worker.call("create_queue")
    spawned = worker.call("spawn", task="steps", params=None, headers={"trace": "a b", "depth": {"n": 1}})
    worker.call("work")
    assert worker.call("result", task_id=spawned["task_id"])["result"] == {
        "again": [0, 1, 2],
        "halves": {"halves": 2},
        "values": [None, True, 1.5, "ü"],
        "headers": {"trace": "a b", "depth": {"n": 1}},
    }
    names = conn.execute(
        'select checkpoint_name from absurd."c_orders" order by updated_at, checkpoint_name'
    ).fetchall()
    assert sorted(name for (name,) in names) == ["again", "again#2", "again#3", "decorated", "two halves"]
    assert conn.execute('select event_name, payload from absurd."e_orders"').fetchall() == [
        ("inside", {"task": spawned["task_id"]})
    ]


def test_a_parent_waits_for_a_child_on_another_queue(client: StartClient, kind: str) -> None:
    parents, children, caller = client(kind, "parents"), client(kind, "children"), client(kind, "parents")
    parents.call("create_queue")
    children.call("create_queue")
    child = children.call("spawn", task="steps", params={})
    parent = caller.call("spawn", task="parent", params={"child": child["task_id"], "queue": "children"})
    parents.post("start")
    parents.wait_for("waiting for the child")  # the released SDKs keep a slot polling, ours suspends
    children.post("start")
    ended = caller.call("await_result", task_id=parent["task_id"], timeout=20)
    assert ended["result"]["state"] == "completed"
    assert ended["result"]["result"]["again"] == [0, 1, 2]
    parents.stop()
    children.stop()
