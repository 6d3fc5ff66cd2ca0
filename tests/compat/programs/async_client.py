"""A Python SDK, async (which one, the second argument says): requests on stdin, answers and notes on stdout."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import traceback
from importlib import import_module
from typing import Any

import psycopg

sdk = import_module(sys.argv[2])
healthy = False


def say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line, default=str) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    say({"note": text})


async def read_line() -> str:
    return await asyncio.to_thread(sys.stdin.readline)


async def hold(text: str) -> None:
    note(text)
    await read_line()


async def value(of: Any = None) -> Any:
    return of


# ---------------------------------------------------------------- the tasks


async def order(params: Any, ctx: Any) -> Any:
    number = params["order"]

    async def reserve() -> Any:
        note("reserve")
        return {"sku": params["sku"], "qty": 1}

    async def ship() -> Any:
        if params.get("hold"):
            await hold("ship")
        else:
            note("ship")
        return f"parcel-{number}"

    reserved = await ctx.step("reserve", reserve)
    payment = await ctx.await_event(f"payment:{number}")
    parcel = await ctx.step("ship", ship)
    delivery = await ctx.await_event(f"delivery:{number}")
    return {"reserved": reserved, "payment": payment, "parcel": parcel, "delivery": delivery}


async def flaky(params: Any, ctx: Any) -> Any:
    async def charge() -> Any:
        note("charge")
        if not healthy:
            raise RuntimeError("card declined")
        return "charged"

    await ctx.step("prepare", lambda: value(note("prepare")))
    return await ctx.step("charge", charge)


async def waiter(params: Any, ctx: Any) -> Any:
    try:
        payload = await ctx.await_event(params["event"], timeout=params.get("timeout"))
    except sdk.TimeoutError as error:
        payload = {"timed out": str(error)}
    note("answered")
    if params.get("then_fail") and not healthy:
        raise RuntimeError("failed after the wait")
    return payload


async def sleeper(params: Any, ctx: Any) -> Any:
    note("asleep")
    await ctx.sleep_for("nap", params["seconds"])
    note("awake")
    return "rested"


async def holder(params: Any, ctx: Any) -> Any:
    await hold("holding")
    await ctx.step("after", lambda: value(note("after")))
    return "held"


async def steps(params: Any, ctx: Any) -> Any:
    again = [await ctx.step("again", lambda n=n: value(n)) for n in range(3)]
    handle = await ctx.begin_step("two halves")
    halves = await ctx.complete_step(handle, {"halves": 2})
    values = await ctx.step("decorated", lambda: value([None, True, 1.5, "ü"]))
    await ctx.heartbeat()
    await ctx.heartbeat(60)
    await ctx.emit_event("inside", {"task": str(ctx.task_id)})
    return {"again": again, "halves": halves, "values": values, "headers": ctx.headers}


async def parent(params: Any, ctx: Any) -> Any:
    note("waiting for the child")
    child = await ctx.await_task_result(params["child"], queue_name=params["queue"], timeout=20)
    return {"state": child.state, "result": child.result}


TASKS = (order, flaky, waiter, sleeper, holder, steps, parent)


def register(app: Any) -> Any:
    for handler in TASKS:
        app.register_task(handler.__name__)(handler)
    return app


# ---------------------------------------------------------------- the calls


def snapshot(found: Any) -> Any:
    return found and {"state": found.state, "result": found.result, "failure": found.failure}


class Calls:
    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self.connection = connection
        self.app = register(sdk.AsyncAbsurd(connection, queue_name=sys.argv[1]))

    async def create_queue(self, name: str | None = None, **options: Any) -> Any:
        return await self.app.create_queue(name, **options)

    async def drop_queue(self, name: str) -> Any:
        return await self.app.drop_queue(name)

    async def list_queues(self) -> Any:
        return await self.app.list_queues()

    async def get_policy(self, name: str | None = None) -> Any:
        return await self.app.get_queue_policy(name)

    async def set_policy(self, name: str | None = None, **options: Any) -> Any:
        return await self.app.set_queue_policy(name, **options)

    async def spawn(self, task: str, params: Any, **options: Any) -> Any:
        return await self.app.spawn(task, params, **options)

    async def emit(self, event: str, payload: Any = None) -> Any:
        return await self.app.emit_event(event, payload)

    async def result(self, task_id: str) -> Any:
        return snapshot(await self.app.fetch_task_result(task_id))

    async def await_result(self, task_id: str, timeout: float) -> Any:
        return snapshot(await self.app.await_task_result(task_id, timeout=timeout))

    async def cancel(self, task_id: str) -> Any:
        return await self.app.cancel_task(task_id)

    async def retry(self, task_id: str, **options: Any) -> Any:
        return await self.app.retry_task(task_id, **options)

    async def claim(self, **options: Any) -> Any:
        return await self.app.claim_tasks(**options)

    async def work(self, **options: Any) -> Any:
        return await self.app.work_batch(**options)

    async def start(self, **options: Any) -> None:
        own = register(sdk.AsyncAbsurd(os.environ["ABSURD_DATABASE_URL"], queue_name=sys.argv[1]))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, own.stop_worker)
        note("started")
        await own.start_worker(poll_interval=0.02, **options)
        await own.close()

    async def clock(self, at: str | None) -> None:
        await self.connection.execute("select set_config('absurd.fake_now', %s, false)", (at or "",))

    async def heal(self) -> None:
        global healthy
        healthy = True


async def main() -> None:
    connection = await psycopg.AsyncConnection.connect(os.environ["ABSURD_DATABASE_URL"], autocommit=True)
    calls = Calls(connection)
    while line := await read_line():
        request = json.loads(line)
        try:
            say({"answer": await getattr(calls, request["call"])(**request["args"])})
        except Exception as error:
            traceback.print_exc()
            code = getattr(error, "sqlstate", None)
            say({"error": {"name": type(error).__name__, "message": str(error), "code": code}})
    await connection.close()


asyncio.run(main())
