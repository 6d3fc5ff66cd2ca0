"""The same ideas with types: models go in and come out, on the first run and on every later one.

    python typed_order.py

`mypy --strict` knows that `stock` is a Reservation and `payment` a Payment; at run time pydantic holds params, step
values and payloads against their models, and a wrong field is refused where it enters, with its name in the message.
"""

from __future__ import annotations

import os
import uuid
from decimal import Decimal

import psycopg
from pydantic import BaseModel

from absurd import Absurd, TaskContext, ValidationFailed, embedded, schema

DATABASE_URL = os.environ.get("ABSURD_DATABASE_URL") or "postgresql://absurd:absurd@localhost:5432/absurd"


class Order(BaseModel):
    """What a task is spawned with."""

    order_id: str
    items: list[str]


class Reservation(BaseModel):
    """What the inventory answers."""

    items: list[str]
    warehouse: str


class Payment(BaseModel):
    """What the payment event carries."""

    amount: Decimal
    method: str


class Receipt(BaseModel):
    """What the task returns."""

    order_id: str
    warehouse: str
    paid: Decimal


app = Absurd(DATABASE_URL, queue_name="typed-orders")


@app.register_task("typed-order", params=Order, result=Receipt)
def typed_order(order: Order, ctx: TaskContext) -> Receipt:
    """Reserve, wait for the money, give a receipt."""
    stock = ctx.step("reserve", lambda: reserve(order.items), returns=Reservation)
    payment = ctx.await_event(f"payment.confirmed:{order.order_id}", returns=Payment)
    return Receipt(order_id=order.order_id, warehouse=stock.warehouse, paid=payment.amount)


def reserve(items: list[str]) -> Reservation:
    """Pretend to ask a warehouse."""
    return Reservation(items=items, warehouse="US-EAST-1")


def prepare() -> None:
    """Schema and queue, where they are absent."""
    url = embedded.resolve(DATABASE_URL) if embedded.is_embedded_url(DATABASE_URL) else DATABASE_URL
    with psycopg.connect(url) as conn:
        if schema.installed_version(conn) is None:
            schema.install(conn)
    app.create_queue()


def main() -> None:
    """One order from spawn to receipt, and one that is refused."""
    prepare()
    order_id = f"order-{uuid.uuid4().hex[:8]}"
    try:
        app.spawn("typed-order", {"order_id": order_id, "items": "widget-A"})
    except ValidationFailed as error:
        print(f"Refused at spawn: {' '.join(str(error).split())}")
    task = app.spawn("typed-order", Order(order_id=order_id, items=["widget-A", "gadget-B"]))
    app.work_batch()  # runs until it waits for the event
    app.emit_event(f"payment.confirmed:{order_id}", Payment(amount=Decimal("99.99"), method="credit_card"))
    app.work_batch()  # runs to its end
    receipt = Receipt.model_validate(app.await_task_result(task["task_id"], timeout=10).result)
    print(f"Receipt: {receipt.paid} paid, ships from {receipt.warehouse}")
    app.close()


if __name__ == "__main__":
    main()
