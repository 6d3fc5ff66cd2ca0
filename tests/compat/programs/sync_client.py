"""A Python SDK, sync (which one, the second argument says): requests on stdin, answers and notes on stdout."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from importlib import import_module
from typing import Any

import psycopg

sdk = import_module(sys.argv[2])
connection = psycopg.connect(os.environ["ABSURD_DATABASE_URL"], autocommit=True)
app = sdk.Absurd(connection, queue_name=sys.argv[1])
healthy = False


def say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line, default=str) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    say({"note": text})


def hold(text: str) -> None:
    note(text)
    sys.stdin.readline()


# ---------------------------------------------------------------- the tasks


@app.register_task("order")
def order(params: Any, ctx: Any) -> Any:
    number = params["order"]

    def reserve() -> Any:
        note("reserve")
        return {"sku": params["sku"], "qty": 1}

    def ship() -> Any:
        if params.get("hold"):
            hold("ship")
        else:
            note("ship")
        return f"parcel-{number}"

    reserved = ctx.step("reserve", reserve)
    payment = ctx.await_event(f"payment:{number}")
    parcel = ctx.step("ship", ship)
    delivery = ctx.await_event(f"delivery:{number}")
    return {"reserved": reserved, "payment": payment, "parcel": parcel, "delivery": delivery}


@app.register_task("flaky")
def flaky(params: Any, ctx: Any) -> Any:
    def charge() -> Any:
        note("charge")
        if not healthy:
            raise RuntimeError("card declined")
        return "charged"

    ctx.step("prepare", lambda: note("prepare"))
    return ctx.step("charge", charge)


@app.register_task("waiter")
def waiter(params: Any, ctx: Any) -> Any:
    try:
        payload = ctx.await_event(params["event"], timeout=params.get("timeout"))
    except sdk.TimeoutError as error:
        payload = {"timed out": str(error)}
    note("answered")
    if params.get("then_fail") and not healthy:
        raise RuntimeError("failed after the wait")
    return payload


@app.register_task("sleeper")
def sleeper(params: Any, ctx: Any) -> Any:
    note("asleep")
    ctx.sleep_for("nap", params["seconds"])
    note("awake")
    return "rested"


@app.register_task("holder")
def holder(params: Any, ctx: Any) -> Any:
    hold("holding")
    ctx.step("after", lambda: note("after"))
    return "held"


@app.register_task("steps")
def steps(params: Any, ctx: Any) -> Any:
    again = [ctx.step("again", lambda n=n: n) for n in range(3)]
    handle = ctx.begin_step("two halves")
    halves = ctx.complete_step(handle, {"halves": 2})

    @ctx.run_step("decorated")
    def decorated() -> Any:
        return [None, True, 1.5, "ü"]

    ctx.heartbeat()
    ctx.heartbeat(60)
    ctx.emit_event("inside", {"task": str(ctx.task_id)})
    return {"again": again, "halves": halves, "values": decorated, "headers": ctx.headers}


@app.register_task("parent")
def parent(params: Any, ctx: Any) -> Any:
    note("waiting for the child")
    child = ctx.await_task_result(params["child"], queue_name=params["queue"], timeout=20)
    return {"state": child.state, "result": child.result}


# ---------------------------------------------------------------- the calls


def snapshot(found: Any) -> Any:
    return found and {"state": found.state, "result": found.result, "failure": found.failure}


def heal() -> None:
    global healthy
    healthy = True


def clock(at: str | None) -> None:
    connection.execute("select set_config('absurd.fake_now', %s, false)", (at or "",))


def start(**options: Any) -> None:
    own = sdk.Absurd(os.environ["ABSURD_DATABASE_URL"], queue_name=sys.argv[1])
    for name, handler in TASKS.items():
        own.register_task(name)(handler)
    signal.signal(signal.SIGTERM, lambda *_: own.stop_worker())
    note("started")
    own.start_worker(poll_interval=0.02, **options)
    own.close()


TASKS = {"order": order, "flaky": flaky, "waiter": waiter, "sleeper": sleeper, "steps": steps, "parent": parent}
CALLS = {
    "create_queue": lambda name=None, **options: app.create_queue(name, **options),
    "drop_queue": lambda name: app.drop_queue(name),
    "list_queues": lambda: app.list_queues(),
    "get_policy": lambda name=None: app.get_queue_policy(name),
    "set_policy": lambda name=None, **options: app.set_queue_policy(name, **options),
    "spawn": lambda task, params, **options: app.spawn(task, params, **options),
    "emit": lambda event, payload=None: app.emit_event(event, payload),
    "result": lambda task_id: snapshot(app.fetch_task_result(task_id)),
    "await_result": lambda task_id, timeout: snapshot(app.await_task_result(task_id, timeout=timeout)),
    "cancel": lambda task_id: app.cancel_task(task_id),
    "retry": lambda task_id, **options: app.retry_task(task_id, **options),
    "claim": lambda **options: app.claim_tasks(**options),
    "work": lambda **options: app.work_batch(**options),
    "start": start,
    "clock": clock,
    "heal": heal,
}


def main() -> None:
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        try:
            say({"answer": CALLS[request["call"]](**request["args"])})
        except Exception as error:
            traceback.print_exc()
            code = getattr(error, "sqlstate", None)
            say({"error": {"name": type(error).__name__, "message": str(error), "code": code}})
    connection.close()


main()
