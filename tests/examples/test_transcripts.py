"""The guide's six transcripts, byte for byte but for ids, from the programs as people run them."""

from __future__ import annotations

import json
import re
from itertools import permutations

import pytest

from absurd import Absurd
from tests.examples import order
from tests.examples.conftest import OpenTerminal, Run
from tests.examples.nursery import Nursery
from tests.examples.order import Connection

ORDER = "order-12345"
LINES = order.transcript(ORDER)
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

BANNER = """\
Absurd Event-Driven Workflow Demo
======================================================================
✓ Queue 'examples' ready

"""
T1 = f"""{BANNER}\
This demo shows an order fulfillment workflow that waits for events.

✓ Spawned order fulfillment task:
  Order ID: order-12345
  Task ID: <uuid7>
  Run ID: <uuid7>

Next steps:
  1. Start the worker:    uv run python python/event_demo.py
  2. Send payment event:  uv run python python/send_event.py payment.confirmed:order-12345 --payload \
'{{"amount": 99.99, "method": "credit_card"}}'
  3. Send delivery event: uv run python python/send_event.py shipment.delivered:order-12345 --payload \
'{{"timestamp": "2025-01-02T15:00:00Z"}}'
"""
T2 = f"""{BANNER}\
Starting worker to process orders...
The worker will pause when waiting for events.

To send events, run in another terminal:
  uv run python python/send_event.py <event-name> --payload '<json>'

----------------------------------------------------------------------
📦 Starting order fulfillment for order: order-12345
✓ Inventory reserved: {{'items': ['widget-A', 'gadget-B'], 'warehouse': 'US-EAST-1', \
'reserved_at': '2025-01-01T10:00:00Z'}}
⏳ Waiting for payment confirmation: payment.confirmed:order-12345
"""
T3 = """\
Emitting event to queue 'examples':
  Event name: payment.confirmed:order-12345
  Payload: {
  "amount": 99.99,
  "method": "credit_card"
}
✓ Event emitted successfully!

If a task was waiting for this event, it will now resume.
"""
T4 = """\
✓ Payment confirmed: {'amount': 99.99, 'method': 'credit_card'}
✓ Order shipped: {'tracking_number': '1Z999order-12345', 'carrier': 'UPS', 'shipped_at': '2025-01-01T12:00:00Z'}
⏳ Waiting for delivery: shipment.delivered:order-12345
"""
T5 = """\
Emitting event to queue 'examples':
  Event name: shipment.delivered:order-12345
  Payload: {
  "timestamp": "2025-01-02T15:00:00Z",
  "location": "Customer doorstep"
}
✓ Event emitted successfully!

If a task was waiting for this event, it will now resume.
"""
T6 = """\
✓ Delivery confirmed: {'timestamp': '2025-01-02T15:00:00Z', 'location': 'Customer doorstep'}
🎉 Order order-12345 completed successfully!
"""


def test_the_six_transcripts_are_those_of_the_guide(run: Run, terminal: OpenTerminal) -> None:
    spawned = run("event_demo.py", "spawn", ORDER)
    worker = terminal()
    second = worker.shows(T2)
    third = run("send_event.py", f"payment.confirmed:{ORDER}", "--payload", json.dumps(order.PAYMENT))
    fourth = worker.shows(T4)
    fifth = run("send_event.py", f"shipment.delivered:{ORDER}", "--payload", json.dumps(order.DELIVERY))
    sixth = worker.shows(T6)
    rest, errors = worker.close()

    assert len(UUID7.findall(spawned.stdout)) == 2
    assert UUID7.sub("<uuid7>", spawned.stdout) == T1
    assert (second, fourth, sixth) == (T2, T4, T6)
    assert (third.stdout, fifth.stdout) == (T3, T5)
    assert rest == "", "lines were printed again"
    assert (spawned.stderr, third.stderr, errors) == ("", "", "")


@pytest.mark.parametrize("sequence", list(permutations(["pay", "deliver", "spawn"])), ids="-".join)
def test_the_order_of_events_does_not_matter(sequence: tuple[str, ...], app: Absurd, nursery: Nursery) -> None:
    """Before the worker starts, in every order; while it works, see the test above and that of a hundred orders."""
    paid, delivered = order.events(ORDER)
    acts = {
        "pay": lambda: app.emit_event(*paid),
        "deliver": lambda: app.emit_event(*delivered),
        "spawn": lambda: app.spawn("order-fulfillment", {"order_id": ORDER}, queue="examples"),
    }
    for act in sequence:
        acts[act]()
    worker = nursery.start()

    assert worker.until("🎉") == LINES
    worker.go()
    worker.stop()


def test_delivery_before_payment_while_the_worker_waits_changes_nothing(app: Absurd, nursery: Nursery) -> None:
    paid, delivered = order.events(ORDER)
    task = app.spawn("order-fulfillment", {"order_id": ORDER}, queue="examples")["task_id"]
    worker = nursery.start()
    printed = worker.until("⏳ Waiting for payment")
    app.emit_event(*delivered)
    worker.go()
    app.emit_event(*paid)

    assert printed + worker.until("🎉") == LINES
    worker.go()
    assert app.await_task_result(task, timeout=20).result == order.result(ORDER)
    worker.stop()


def test_two_orders_do_not_mix(app: Absurd, nursery: Nursery, conn: Connection) -> None:
    orders = ("order-1", "order-2")
    tasks = [app.spawn("order-fulfillment", {"order_id": name}, queue="examples")["task_id"] for name in orders]
    app.emit_many([event for name in orders for event in order.events(name)])
    worker = nursery.start()
    printed: list[str] = []
    while sum(line.startswith("🎉") for line in printed) < len(orders):
        place = worker.next()
        assert place is not None
        printed.extend([place.line] if place.line else [])
        worker.go()

    expected = [line for name in orders for line in order.transcript(name)]
    assert sorted(printed) == sorted(expected)
    results = [app.await_task_result(task, timeout=20).result for task in tasks]
    assert results == [order.result(name) for name in orders]
    worker.stop()
