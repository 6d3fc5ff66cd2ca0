"""Pattern 1, events for one task: put what the task is about into the event's name.

    $ python patterns/per_task.py
    order A was paid with 10
    order B was paid with 20

Two orders wait for a payment; each gets its own, though B is paid first.
"""

from __future__ import annotations

import uuid
from typing import Any

from absurd import TaskContext
from database import open_app

app = open_app("pattern-per-task")


@app.register_task("pay")
def pay(params: dict[str, Any], ctx: TaskContext) -> int:
    """Only `payment.confirmed:<this order>` wakes this task."""
    payment = ctx.await_event(f"payment.confirmed:{params['order_id']}")
    return int(payment["amount"])


def main() -> None:
    """Two orders, paid the other way round."""
    run = uuid.uuid4().hex[:8]  # order ids are used once, or last time's payment would count
    tasks = {name: app.spawn("pay", {"order_id": f"{name}-{run}"}) for name in ("A", "B")}
    app.work_batch(batch_size=2)
    app.emit_event(f"payment.confirmed:B-{run}", {"amount": 20})
    app.emit_event(f"payment.confirmed:A-{run}", {"amount": 10})
    app.work_batch(batch_size=2)
    for name, task in tasks.items():
        print(f"order {name} was paid with {app.await_task_result(task['task_id'], timeout=10).result}")
    app.close()


if __name__ == "__main__":
    main()
