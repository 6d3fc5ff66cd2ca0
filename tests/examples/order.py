"""The order of the guide: its events, its transcript, and questions about what it left in the database."""

from __future__ import annotations

from typing import Any

import psycopg

Connection = psycopg.Connection[tuple[Any, ...]]

PAYMENT = {"amount": 99.99, "method": "credit_card"}
DELIVERY = {"timestamp": "2025-01-02T15:00:00Z", "location": "Customer doorstep"}


def transcript(order: str) -> list[str]:
    """What workers print for an order, apart from the banner: T2, T4 and T6 of the guide."""
    return [
        f"📦 Starting order fulfillment for order: {order}",
        "✓ Inventory reserved: {'items': ['widget-A', 'gadget-B'], 'warehouse': 'US-EAST-1', "
        "'reserved_at': '2025-01-01T10:00:00Z'}",
        f"⏳ Waiting for payment confirmation: payment.confirmed:{order}",
        "✓ Payment confirmed: {'amount': 99.99, 'method': 'credit_card'}",
        f"✓ Order shipped: {{'tracking_number': '1Z999{order}', 'carrier': 'UPS', "
        "'shipped_at': '2025-01-01T12:00:00Z'}",
        f"⏳ Waiting for delivery: shipment.delivered:{order}",
        "✓ Delivery confirmed: {'timestamp': '2025-01-02T15:00:00Z', 'location': 'Customer doorstep'}",
        f"🎉 Order {order} completed successfully!",
    ]


def events(order: str) -> list[tuple[str, dict[str, Any]]]:
    """Its two events."""
    return [(f"payment.confirmed:{order}", PAYMENT), (f"shipment.delivered:{order}", DELIVERY)]


def result(order: str) -> dict[str, Any]:
    """What the finished task returns."""
    return {"order_id": order, "status": "completed", "tracking_number": f"1Z999{order}"}


def effects(conn: Connection, step: str) -> dict[str, int]:
    """order -> how often the step's effect happened."""
    question = "select order_id, count(*) from demo_effects where step = %s group by 1"
    return dict(conn.execute(question, (step,)).fetchall())


def violations(conn: Connection) -> list[tuple[Any, ...]]:
    """What the engine finds wrong with itself."""
    return conn.execute("select * from absurd.check_invariants('examples')").fetchall()
