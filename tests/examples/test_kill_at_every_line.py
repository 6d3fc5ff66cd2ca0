"""Kill -9 at every line of the transcript, and while the order sleeps; a second worker goes on where commits ended."""

from __future__ import annotations

import pytest

from absurd import Absurd
from tests.examples import order
from tests.examples.nursery import Nursery
from tests.examples.order import Connection

ORDER = "order-12345"
LINES = order.transcript(ORDER)
# Index of the line after which the first worker dies -> index of the first line the second one prints. A line comes
# again exactly when its worker died before the commit that follows it.
RESUMES = {0: 0, 1: 0, 2: 2, 3: 3, 4: 3, 5: 5, 6: 6, 7: 6}


@pytest.mark.parametrize("killed_after", RESUMES)
def test_killed_after_a_line_the_order_ends_the_same(
    killed_after: int, app: Absurd, nursery: Nursery, conn: Connection
) -> None:
    app.emit_many(order.events(ORDER))
    task = app.spawn("order-fulfillment", {"order_id": ORDER}, queue="examples")["task_id"]
    first = nursery.start()
    printed = first.until(LINES[killed_after])

    first.kill()
    second = nursery.start()
    again = second.until("🎉")
    second.go()

    assert printed == LINES[: killed_after + 1]
    assert again == LINES[RESUMES[killed_after] :]
    assert app.await_task_result(task, timeout=20).result == order.result(ORDER)
    assert order.effects(conn, "inventory reserved") == {ORDER: 1}
    assert order.effects(conn, "order shipped") == {ORDER: 2 if killed_after == 4 else 1}
    second.stop()
    assert order.violations(conn) == []


@pytest.mark.parametrize("waits_for", [0, 1])
def test_killed_while_the_order_sleeps_no_line_comes_again(
    waits_for: int, app: Absurd, nursery: Nursery, conn: Connection
) -> None:
    task = app.spawn("order-fulfillment", {"order_id": ORDER}, queue="examples")["task_id"]
    (paid, payment), (delivered, delivery) = order.events(ORDER)
    if waits_for == 1:
        app.emit_event(paid, payment)
    first = nursery.start()
    printed = first.until("⏳ Waiting for delivery" if waits_for else "⏳ Waiting for payment")
    first.go()
    while app.fetch_task_result(task).state != "sleeping":  # type: ignore[union-attr]
        conn.execute("select pg_sleep(0.01)")

    first.kill()
    app.emit_many([(paid, payment), (delivered, delivery)])
    second = nursery.start()
    again = second.until("🎉")
    second.go()

    assert printed + again == LINES
    assert app.await_task_result(task, timeout=20).result == order.result(ORDER)
    assert order.effects(conn, "inventory reserved") == order.effects(conn, "order shipped") == {ORDER: 1}
    second.stop()
    assert order.violations(conn) == []
