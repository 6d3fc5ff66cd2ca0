"""The guide's next steps: a timeout with a reminder, a third event, a cancellation event."""

from __future__ import annotations

import random

import pytest

from absurd import Absurd
from tests.examples import order
from tests.examples.conftest import OpenTerminal, Run
from tests.examples.nursery import Nursery
from tests.examples.order import Connection
from tests.examples.test_transcripts import T2

ORDER = "order-12345"
LINES = order.transcript(ORDER)
STARTED, RESERVED, WAITING, PAID = LINES[:4]
REMINDED = f"📧 No payment within 0.2 s, reminder sent for order: {ORDER}"
RELEASED = f"↩ Inventory released: {ORDER}"
GIVEN_UP = f"✗ Order {ORDER} cancelled: no payment"


def spawn(app: Absurd, name: str = ORDER, **wishes: object) -> str:
    """An order with wishes; its task."""
    return str(app.spawn("order-fulfillment", {"order_id": name, **wishes}, queue="examples")["task_id"])


def test_without_payment_the_worker_reminds_once_then_cancels(
    run: Run, terminal: OpenTerminal, conn: Connection, app: Absurd
) -> None:
    task = run("event_demo.py", "spawn", ORDER).stdout.split("Task ID: ")[1].split()[0]
    worker = terminal("--payment-timeout", "0.2")
    after = "\n".join([REMINDED, WAITING, RELEASED, GIVEN_UP]) + "\n"

    assert worker.shows(T2) == T2
    assert worker.shows(after) == after
    assert app.await_task_result(task, timeout=20).result["status"] == "cancelled"
    assert worker.close() == ("", "")
    assert order.effects(conn, "inventory reserved") == order.effects(conn, "inventory released") == {ORDER: 1}
    assert order.effects(conn, "order shipped") == {}


def test_a_payment_after_the_reminder_is_in_time(app: Absurd, nursery: Nursery) -> None:
    spawn(app, payment_timeout=0.2)
    worker = nursery.start()
    printed = worker.until("📧")
    app.emit_many(order.events(ORDER))
    worker.go()

    assert printed + worker.until("🎉") == [*LINES[:3], REMINDED, WAITING, *LINES[3:]]
    worker.go()
    worker.stop()


def test_a_timeout_is_not_waited_for_again_when_a_worker_dies(app: Absurd, nursery: Nursery) -> None:
    spawn(app, payment_timeout=0.2)
    first = nursery.start()
    first.until("📧")
    first.kill()
    app.emit_many(order.events(ORDER))  # too late for the first wait, whose end is decided

    second = nursery.start()
    assert second.until("🎉") == [REMINDED, WAITING, *LINES[3:]]
    second.go()
    second.stop()


def test_with_feedback_the_order_waits_for_a_third_event(run: Run, terminal: OpenTerminal, app: Absurd) -> None:
    run("event_demo.py", "spawn", ORDER, "--with-feedback")
    app.emit_many(order.events(ORDER))
    worker = terminal()
    waiting = f"⏳ Waiting for customer feedback: customer.feedback:{ORDER}"
    worker.shows(T2)
    before = "\n".join([*LINES[3:7], waiting]) + "\n"
    assert worker.shows(before) == before

    app.emit_event(f"customer.feedback:{ORDER}", {"comment": "fast", "rating": 5})

    after = f"✓ Customer feedback: {{'rating': 5, 'comment': 'fast'}}\n{LINES[7]}\n"
    assert worker.shows(after) == after
    assert worker.close() == ("", "")


def test_a_cancellation_before_the_payment_releases_the_inventory_once(
    app: Absurd, nursery: Nursery, conn: Connection
) -> None:
    task = spawn(app, cancellable=True)
    worker = nursery.start()
    worker.until("⏳ Waiting for payment")
    worker.go()

    app.emit_event(f"order.cancelled:{ORDER}", {"by": "customer"})
    assert worker.until("✗") == [f"✗ Order {ORDER} cancelled, reservations released: 1"]
    worker.go()

    assert app.await_task_result(task, timeout=20).state == "cancelled"
    app.emit_many(order.events(ORDER))
    worker.stop()
    assert order.effects(conn, "inventory released") == {ORDER: 1}
    assert order.effects(conn, "order shipped") == {}
    assert order.violations(conn) == []


def test_a_cancellation_after_shipping_is_too_late(app: Absurd, nursery: Nursery, conn: Connection) -> None:
    task = spawn(app, cancellable=True)
    (paid, payment), delivered = order.events(ORDER)
    app.emit_event(paid, payment)
    worker = nursery.start()
    worker.until("⏳ Waiting for delivery")
    worker.go()
    app.emit_event(f"order.cancelled:{ORDER}")
    app.emit_event(*delivered)

    assert worker.until("🎉") == LINES[6:]
    worker.go()
    assert app.await_task_result(task, timeout=20).result == order.result(ORDER)
    worker.stop()
    assert order.effects(conn, "inventory released") == {}
    assert conn.execute("select count(*) from absurd.live").fetchone() == (0,)  # the companion has ended too


@pytest.mark.timeout(120)
def test_however_payment_and_cancellation_race_an_order_is_shipped_or_released(
    app: Absurd, nursery: Nursery, conn: Connection
) -> None:
    orders = [f"order-{number}" for number in range(40)]
    tasks = {name: spawn(app, name, cancellable=True) for name in orders}
    events = {name: [*order.events(name), (f"order.cancelled:{name}", None)] for name in orders}
    workers = [nursery.start(), nursery.start()]
    for worker in workers:
        worker.run_freely()
    while _asleep(conn) < 2 * len(orders):  # each order, and who waits for its cancellation
        conn.execute("select 1")
    # one is cancelled before it is paid, one paid before anybody cancels; for the others it is a race
    early, paid = orders[:2]
    app.emit_event(*events[early][-1])
    app.await_task_result(tasks[early], timeout=60)
    app.emit_many(events[paid][:-1])
    app.await_task_result(tasks[paid], timeout=60)
    late = [event for name in orders for event in events[name]]
    random.Random(7).shuffle(late)
    for event in late:
        app.emit_event(*event)  # type: ignore[arg-type]
    ended = {name: app.await_task_result(task, timeout=60).state for name, task in tasks.items()}
    for worker in workers:
        worker.stop()

    reserved, released, shipped = (
        order.effects(conn, step) for step in ("inventory reserved", "inventory released", "order shipped")
    )
    for name, state in ended.items():
        happened = (reserved.get(name, 0), released.get(name, 0), shipped.get(name, 0))
        allowed = {"completed": [(1, 0, 1)], "cancelled": [(1, 1, 0), (0, 0, 0)]}
        assert happened in allowed[state], (name, state, happened)
    assert (ended[early], ended[paid]) == ("cancelled", "completed")
    assert order.violations(conn) == []


def _asleep(conn: Connection) -> int:
    row = conn.execute("select count(*) from absurd.live where state = 's'").fetchone()
    assert row is not None
    return int(row[0])
