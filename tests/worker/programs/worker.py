"""A worker process of the tests: `python worker.py '<settings as JSON>'`.

Its tasks do what their params say (see `OPS`), so a test reads in one place. Everything it does is a line of JSON on stdout:
the engine's signals as `{"signal": name, ...}`, what handlers say as `{"said": text, ...}`. Log lines go to stderr.

One interpreter serves both worlds: what a context call returns is awaited when it can be, and in the sync world the
coroutine that results never waits, so `drive` runs it to its end.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import logging
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from absurd import Absurd, AsyncAbsurd, telemetry

SETTINGS = json.loads(sys.argv[1])
ASYNC = SETTINGS["world"] == "async"
_printing = threading.Lock()


def tell(**fields: Any) -> None:
    with _printing:
        sys.stdout.write(json.dumps(fields, default=str) + "\n")
        sys.stdout.flush()


class Odd(BaseException):
    """Neither an Exception nor one of ours."""


class Mute(BaseException):
    def __str__(self) -> str:
        raise Odd("no text either")


async def resolved(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def drive(steps: Any) -> Any:
    """The value of a coroutine that never waits."""
    try:
        steps.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("a sync handler waited")


async def pause() -> None:
    if ASYNC:
        await asyncio.sleep(0.01)
    else:
        time.sleep(0.01)


async def until_exists(path: str) -> None:
    while not Path(path).exists():
        await pause()


def recurse() -> None:
    recurse()


class Handler:
    """One run: interprets a list of operations."""

    def __init__(self, params: Any, ctx: Any) -> None:
        self.params, self.ctx = params, ctx
        self.result: Any = None

    async def perform(self, operations: list[list[Any]]) -> Any:
        for name, *arguments in operations:
            await getattr(self, "op_" + name)(*arguments)
        return self.result

    async def op_say(self, text: str) -> None:
        tell(said=text, attempt=self.ctx.attempt, task_id=self.ctx.task_id, pid=os.getpid())

    async def op_gate(self, path: str) -> None:
        """Until the test makes a file."""
        await until_exists(path)

    async def op_step(self, name: str, operations: list[list[Any]]) -> None:
        async def inside() -> Any:
            await self.perform(operations)
            return name

        await resolved(self.ctx.step(name, inside if ASYNC else lambda: drive(inside())))

    async def op_busy(self, seconds: float) -> None:
        """A handler that lets nothing else run in an event loop."""
        time.sleep(seconds)

    async def op_lasts(self, seconds: float) -> None:
        """Work that takes a while: tests about leases need real time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await pause()

    async def op_sleep(self, name: str, seconds: float) -> None:
        await resolved(self.ctx.sleep_for(name, seconds))

    async def op_await(self, event: str, timeout: float | None = None) -> None:
        try:
            self.result = await resolved(self.ctx.await_event(event, timeout=timeout))
        except TimeoutError:
            self.result = "timed out"

    async def op_emit(self, event: str, payload: Any = None) -> None:
        await resolved(self.ctx.emit_event(event, payload))

    async def op_child(self, task: str, operations: list[list[Any]], queue: str) -> None:
        child = await resolved(self.ctx.spawn(task, {"do": operations}, queue=queue))
        ended = await resolved(self.ctx.await_task_result(child["task_id"], queue))
        self.result = ["child", ended.state, ended.result]

    async def op_swallow(self, operations: list[list[Any]]) -> None:
        """A handler that catches what is not meant for it."""
        try:
            await self.perform(operations)
        except BaseException as error:
            tell(said="swallowed " + type(error).__name__)

    async def op_returns(self, what: Any) -> None:
        odd = {"socket": socket.socket, "huge": lambda: "x" * 17_000_000, "nul": lambda: "a\0b"}
        self.result = odd[what]() if what in odd else what

    async def op_fails(self, how: str) -> None:
        if how == "nul":
            raise ValueError("a\0b \ud800")
        if how == "once" and self.ctx.attempt > 1:
            return
        if how == "exit":
            sys.exit(3)
        if how == "base":
            raise Odd("odd")
        if how == "mute":
            raise Mute
        if how == "recursion":
            recurse()
        if how == "interrupt":
            raise KeyboardInterrupt
        if how == "cancelled":
            raise asyncio.CancelledError
        if how == "stop":
            raise GeneratorExit
        raise RuntimeError(how)


async def async_handler(params: Any, ctx: Any) -> Any:
    return await Handler(params, ctx).perform(params["do"])


def sync_handler(params: Any, ctx: Any) -> Any:
    return drive(Handler(params, ctx).perform(params["do"]))


def make_client() -> Any:
    app = (AsyncAbsurd if ASYNC else Absurd)(SETTINGS["url"], SETTINGS["queues"][0])
    for queue in SETTINGS["queues"]:
        for name in SETTINGS.get("tasks", ["work"]):
            known = name if queue == app.queue_name else f"{name}@{queue}"
            app.register_task(known, queue=queue, default_max_attempts=SETTINGS.get("attempts", 1))(
                async_handler if ASYNC else sync_handler
            )
    return app


def patch() -> None:
    """`patch`: {"claimer.IDLE_POLL": 1000, ...}, names in the room of this world."""
    for place, value in SETTINGS.get("patch", {}).items():
        module, name = place.split(".")
        found = importlib.import_module(f"absurd.{'_async' if ASYNC else '_sync'}.{module}")
        assert hasattr(found, name), place
        setattr(found, name, value)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    telemetry.listen(lambda name, fields: tell(signal=name, **fields))
    patch()
    app = make_client()
    settings = {"queues": SETTINGS["queues"], **SETTINGS.get("worker", {})}
    if ASYNC:

        async def work() -> None:
            async with app:
                await app.start_worker(**settings)

        asyncio.run(work())
    else:
        with app:
            app.start_worker(**settings)
    tell(said="end of program")


if __name__ == "__main__":
    main()
