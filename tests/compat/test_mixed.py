"""A released client and our own package on one queue, at the same time and one after the other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from tests.compat.conftest import RELEASED, AbsurdCtl, StartClient

pytestmark = pytest.mark.compat

LATER = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
PAIRS = [pair for theirs in RELEASED for pair in ((theirs, "absurd-async"), ("absurd-async", theirs))]


@pytest.mark.parametrize("theirs", RELEASED)
@pytest.mark.parametrize("ours", ["absurd", "absurd-async"])
def test_two_workers_of_different_clients_share_a_queue(client: StartClient, theirs: str, ours: str) -> None:
    workers = [client(theirs), client(ours)]
    callers = [client(theirs), client(ours)]
    callers[0].call("create_queue")
    for worker in workers:
        worker.post("start", concurrency=2, claim_timeout=30)
        worker.wait_for("started")
    orders = [str(number) for number in range(20)]
    deeds = [("spawn", order) for order in orders]
    deeds += [("payment", order) for order in orders] + [("delivery", order) for order in orders]
    Random(7).shuffle(deeds)
    tasks = {}
    for number, (what, order) in enumerate(deeds):
        caller = callers[number % 2]
        if what == "spawn":
            tasks[order] = caller.call("spawn", task="order", params={"order": order, "sku": "cup"})["task_id"]
        else:
            caller.call("emit", event=f"{what}:{order}", payload={what: order})
    for number, order in enumerate(orders):
        ended = callers[number % 2].call("await_result", task_id=tasks[order], timeout=20)
        assert ended["result"] == {
            "reserved": {"sku": "cup", "qty": 1},
            "payment": {"payment": order},
            "parcel": f"parcel-{order}",
            "delivery": {"delivery": order},
        }
    for worker in workers:
        worker.stop()
    both = workers[0].notes + workers[1].notes
    assert (both["reserve"], both["ship"]) == (20, 20), "no step ran twice"


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_one_takes_over_what_the_other_was_killed_in(client: StartClient, first: str, second: str) -> None:
    victim, heir = client(first), client(second)
    victim.call("create_queue")
    victim.call("emit", event="payment:7", payload=12)
    spawned = heir.call("spawn", task="order", params={"order": "7", "sku": "pan", "hold": True})
    victim.post("work", claim_timeout=60)
    victim.wait_for("ship")
    victim.kill()
    heir.call("clock", at=LATER)
    heir.post("work")
    heir.wait_for("ship")
    heir.release()
    heir.answer()
    heir.call("emit", event="delivery:7", payload=13)
    heir.call("work")
    ended = heir.call("result", task_id=spawned["task_id"])
    assert (ended["state"], ended["result"]["payment"], ended["result"]["delivery"]) == ("completed", 12, 13)
    assert (victim.notes, heir.notes) == ({"reserve": 1, "ship": 1}, {"ship": 1})


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_one_retries_what_failed_at_the_other(
    client: StartClient, first: str, second: str, absurdctl: AbsurdCtl
) -> None:
    one, other = client(first), client(second)
    one.call("create_queue")
    spawned = one.call("spawn", task="flaky", params={}, max_attempts=1)
    one.call("work")
    assert "status=failed" in absurdctl("list-tasks", "-q", "orders").stdout
    other.call("heal")
    other.call("retry", task_id=spawned["task_id"])
    other.call("work")
    assert one.call("result", task_id=spawned["task_id"])["result"] == "charged"
    assert (one.notes, other.notes) == ({"prepare": 1, "charge": 1}, {"charge": 1})


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_one_cancels_what_runs_at_the_other(client: StartClient, first: str, second: str) -> None:
    one, other = client(first), client(second)
    one.call("create_queue")
    spawned = other.call("spawn", task="holder", params={})
    one.post("work")
    one.wait_for("holding")
    other.call("cancel", task_id=spawned["task_id"])
    one.release()
    one.answer()
    assert one.call("result", task_id=spawned["task_id"])["state"] == "cancelled"
    assert other.call("claim") == []
