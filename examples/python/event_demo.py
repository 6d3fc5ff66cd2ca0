"""An order that waits for the outside world.

    python event_demo.py spawn order-12345     put an order into the queue
    python event_demo.py                       work on the orders in the queue

An order reserves inventory, waits for `payment.confirmed:<order>`, ships, waits for `shipment.delivered:<order>` and
is done. Both events come from other processes (`send_event.py`). Kill this worker wherever you like and start it
again: the order goes on behind its last commit.

The database is ABSURD_DATABASE_URL, else the one of docker-compose.yml; `embedded:` is a private Postgres.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import psycopg

from absurd import Absurd, AbsurdError, TaskContext, embedded, schema

DATABASE_URL = os.environ.get("ABSURD_DATABASE_URL") or "postgresql://absurd:absurd@localhost:5432/absurd"
QUEUE = "examples"

app = Absurd(DATABASE_URL, queue_name=QUEUE)
wishes: dict[str, Any] = {"payment_timeout": None, "with_feedback": False, "cancellable": False}
"""What the flags of this worker ask for, where an order does not say."""


# ------------------------------------------------------------------------------------------------- the order


# A worker that dies costs its order one attempt; an order should outlive many of them.
@app.register_task("order-fulfillment", default_max_attempts=50)
def fulfil_order(params: dict[str, Any], ctx: TaskContext) -> dict[str, Any]:
    """From reservation to delivery. Runs from the top after every wake-up; what is committed is not done again."""
    order = {**wishes, **params}
    order_id = order["order_id"]
    say(ctx, f"📦 Starting order fulfillment for order: {order_id}")
    watcher = None
    if order["cancellable"]:
        watcher = ctx.spawn("order-cancellation", {"order_id": order_id, "order_task": str(ctx.task_id)})
    reserve_inventory(ctx, order_id)

    payment = wait_for_payment(ctx, order_id, order["payment_timeout"])
    if payment is None:
        release_inventory(ctx, order_id)
        say(ctx, f"✗ Order {order_id} cancelled: no payment")
        return {"order_id": order_id, "status": "cancelled", "reason": "no payment"}
    say(ctx, f"✓ Payment confirmed: {in_order(payment, 'amount', 'method')}")

    if watcher is not None:
        # The last moment to cancel. Either this ends the watcher, or the watcher was first and has cancelled this
        # task, and then the step's checkpoint is refused and the handler gets no further.
        ctx.step("close-cancellation", lambda: app.cancel_task(watcher["task_id"]))
    shipment = ctx.step("ship-order", lambda: ship_order(order_id))

    delivered = f"shipment.delivered:{order_id}"
    say(ctx, f"⏳ Waiting for delivery: {delivered}")
    delivery = ctx.await_event(delivered)
    say(ctx, f"✓ Delivery confirmed: {in_order(delivery, 'timestamp', 'location')}")

    result = {"order_id": order_id, "status": "completed", "tracking_number": shipment["tracking_number"]}
    if order["with_feedback"]:
        feedback = f"customer.feedback:{order_id}"
        say(ctx, f"⏳ Waiting for customer feedback: {feedback}")
        result["feedback"] = ctx.await_event(feedback)
        say(ctx, f"✓ Customer feedback: {in_order(result['feedback'], 'rating', 'comment')}")
    say(ctx, f"🎉 Order {order_id} completed successfully!")
    return result


def reserve_inventory(ctx: TaskContext, order_id: str) -> None:
    """Row and checkpoint in one commit: however often workers die, the reservation stands once."""
    with ctx.transaction("reserve-inventory") as tx:
        if not tx.done:
            tx.execute(NOTE_EFFECT, (order_id, "inventory reserved", os.getpid()))
            tx.result = {
                "items": ["widget-A", "gadget-B"],
                "warehouse": "US-EAST-1",
                "reserved_at": "2025-01-01T10:00:00Z",
            }
            print(f"✓ Inventory reserved: {tx.result}", flush=True)


def wait_for_payment(ctx: TaskContext, order_id: str, timeout: float | None) -> Any:
    """The payment; with a timeout, a reminder when it has passed, and None when it has passed again."""
    paid = f"payment.confirmed:{order_id}"
    say(ctx, f"⏳ Waiting for payment confirmation: {paid}")
    try:
        return ctx.await_event(paid, timeout=timeout)
    except TimeoutError:  # durable: in every later run of this handler it is raised here again, at once
        ctx.step("send-reminder", lambda: remind(order_id, timeout))
    say(ctx, f"⏳ Waiting for payment confirmation: {paid}")
    try:
        return ctx.await_event(paid, "payment after reminder", timeout=timeout)
    except TimeoutError:
        return None


def ship_order(order_id: str) -> dict[str, Any]:
    """A plain step: whoever ships is outside our transaction, so a crash before the checkpoint ships again."""
    with psycopg.connect(conninfo()) as warehouse:
        warehouse.execute(NOTE_EFFECT, (order_id, "order shipped", os.getpid()))
    shipment = {"tracking_number": f"1Z999{order_id}", "carrier": "UPS", "shipped_at": "2025-01-01T12:00:00Z"}
    print(f"✓ Order shipped: {shipment}", flush=True)
    return shipment


def remind(order_id: str, timeout: float | None) -> dict[str, Any]:
    """Pretend to write to the customer."""
    print(f"📧 No payment within {timeout:g} s, reminder sent for order: {order_id}", flush=True)
    return {"reminded": order_id}


def release_inventory(ctx: TaskContext, order_id: str) -> None:
    """The compensation, once, like the reservation."""
    with ctx.transaction("release-inventory") as tx:
        if not tx.done:
            tx.execute(NOTE_EFFECT, (order_id, "inventory released", os.getpid()))
            print(f"↩ Inventory released: {order_id}", flush=True)


@app.register_task("order-cancellation", default_max_attempts=50)
def cancel_order(params: dict[str, Any], ctx: TaskContext) -> dict[str, Any]:
    """The companion of a cancellable order: waits for `order.cancelled:<order>` in its place.

    One handler waits for one event at a time, so the second event gets a task of its own. Cancelling the order and
    releasing its inventory are one transaction, fenced by this task's run: when the order has closed its doors
    (`close-cancellation`) the whole of it is refused, else both have happened.
    """
    order_id = params["order_id"]
    ctx.await_event(f"order.cancelled:{order_id}")
    with ctx.transaction("cancel-and-release") as tx:
        if not tx.done:
            app.bind(tx.connection).cancel_task(params["order_task"])
            released = tx.execute(RELEASE_IF_RESERVED, {"order": order_id, "pid": os.getpid()}).rowcount
            tx.result = {"order_id": order_id, "released": released}
            print(f"✗ Order {order_id} cancelled, reservations released: {released}", flush=True)
    return dict(tx.result)


# ------------------------------------------------------------------------------------------------- output and database

# What really happened, one row each time it happened: no unique key hides a repetition.
CREATE_EFFECTS = """
    create table if not exists demo_effects (
        order_id text not null, step text not null, at timestamptz not null default clock_timestamp(), pid integer not null)
"""
NOTE_EFFECT = "insert into demo_effects (order_id, step, pid) values (%s, %s, %s)"
RELEASE_IF_RESERVED = """
    insert into demo_effects (order_id, step, pid) select %(order)s, 'inventory released', %(pid)s
     where exists (select from demo_effects where order_id = %(order)s and step = 'inventory reserved')
"""


def say(ctx: TaskContext, line: str) -> None:
    """Print, but not again what an earlier run of the handler printed before its commit."""
    if not ctx.is_replaying:
        print(line, flush=True)


def in_order(payload: Any, *keys: str) -> Any:
    """A payload with these keys first: jsonb, where it comes from, keeps no order of keys."""
    if not isinstance(payload, dict):
        return payload
    known = {key: payload[key] for key in keys if key in payload}
    return {**known, **payload}


def conninfo() -> str:
    """What psycopg connects to."""
    return embedded.resolve(DATABASE_URL) if embedded.is_embedded_url(DATABASE_URL) else DATABASE_URL


def prepare() -> None:
    """Schema, queue and the demo's table, each where it is absent."""
    with psycopg.connect(conninfo()) as conn:
        if schema.installed_version(conn) is None:
            print("Installing the absurd schema, which this database does not have yet", file=sys.stderr, flush=True)
            schema.install(conn)
        conn.execute("select pg_advisory_xact_lock(hashtext('demo_effects'))")  # `if not exists` alone can race
        conn.execute(CREATE_EFFECTS)
    app.create_queue()


# ------------------------------------------------------------------------------------------------- commands


def main() -> int:
    """Run the command; 0, or 1 with one line on stderr when the database cannot be used."""
    options = read_arguments()
    try:
        prepare()
        print("Absurd Event-Driven Workflow Demo\n" + "=" * 70)
        print(f"✓ Queue '{QUEUE}' ready\n")
        if options.command:
            spawn(options.command[1], options)
        else:
            work(options)
    except (AbsurdError, psycopg.Error) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        print("Start one with `docker compose up -d`, or set ABSURD_DATABASE_URL=embedded:", file=sys.stderr)
        return 1
    finally:
        app.close()
    return 0


def spawn(order_id: str, options: argparse.Namespace) -> None:
    """Put an order into the queue and say what to do next."""
    wanted = {name: value for name in wishes if (value := getattr(options, name))}
    spawned = app.spawn("order-fulfillment", {"order_id": order_id, **wanted})
    pay, deliver = '{"amount": 99.99, "method": "credit_card"}', '{"timestamp": "2025-01-02T15:00:00Z"}'
    send = "uv run python python/send_event.py"
    print("This demo shows an order fulfillment workflow that waits for events.\n")
    print("✓ Spawned order fulfillment task:")
    print(f"  Order ID: {order_id}\n  Task ID: {spawned['task_id']}\n  Run ID: {spawned['run_id']}\n")
    print("Next steps:")
    print("  1. Start the worker:    uv run python python/event_demo.py")
    print(f"  2. Send payment event:  {send} payment.confirmed:{order_id} --payload '{pay}'")
    print(f"  3. Send delivery event: {send} shipment.delivered:{order_id} --payload '{deliver}'")


def work(options: argparse.Namespace) -> None:
    """Work on orders until told to stop (Ctrl-C)."""
    wishes.update({name: getattr(options, name) for name in wishes})
    print("Starting worker to process orders...\nThe worker will pause when waiting for events.\n")
    print("To send events, run in another terminal:")
    print("  uv run python python/send_event.py <event-name> --payload '<json>'\n")
    print("-" * 70, flush=True)
    app.start_worker(claim_timeout=options.claim_timeout, concurrency=4)


def seconds(text: str) -> float:
    """A duration above zero."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError(text)
    return number


def read_arguments() -> argparse.Namespace:
    """The command line."""
    usage = "%(prog)s [spawn ORDER] [options]"
    parser = argparse.ArgumentParser(description="Spawn an order, or work on the orders in the queue.", usage=usage)
    parser.add_argument("command", nargs="*", help="spawn ORDER; without it: be a worker")
    parser.add_argument("--payment-timeout", type=seconds, help="remind after this long, cancel after twice as long")
    parser.add_argument("--with-feedback", action="store_true", help="wait for customer.feedback:<order> at the end")
    parser.add_argument("--cancellable", action="store_true", help="heed order.cancelled:<order> until it ships")
    parser.add_argument("--claim-timeout", type=seconds, default=120, help="how long a dead worker keeps orders (120)")
    options = parser.parse_args()
    if options.command and (len(options.command) != 2 or options.command[0] != "spawn"):
        parser.error(f"unknown command {' '.join(options.command)!r}: say `spawn ORDER`, or nothing to be a worker")
    return options


if __name__ == "__main__":
    sys.exit(main())
