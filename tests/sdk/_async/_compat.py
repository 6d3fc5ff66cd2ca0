"""What tests of the two worlds need and cannot share, on asyncio. The sync twin has the same names on threads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import psycopg

from absurd import Absurd, AsyncAbsurd, telemetry

DEADLINE = 20.0
Plain = Absurd
Awaited = AsyncAbsurd


def foreign_connection() -> Any:
    """A connection this world cannot use; it was never opened."""
    return object.__new__(psycopg.Connection)


class Signals:
    """Everything the engine signalled since it was made."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self._changed = asyncio.Event()
        self.end = telemetry.listen(self._hear)

    def _hear(self, name: str, fields: dict[str, Any]) -> None:
        self.seen.append((name, fields))
        self._changed.set()

    def count(self, name: str, **fields: Any) -> int:
        """How often a signal with these fields came."""
        return sum(seen == name and fields.items() <= had.items() for seen, had in self.seen)

    async def until(self, name: str, count: int = 1, **fields: Any) -> None:
        """Wait until a signal with these fields has come `count` times."""
        async with asyncio.timeout(DEADLINE):
            while self.count(name, **fields) < count:
                self._changed.clear()
                await self._changed.wait()


@contextlib.asynccontextmanager
async def working(app: AsyncAbsurd, **options: Any) -> AsyncIterator[None]:
    """A worker of this client in this process, stopped at the end; what it raises is raised."""
    signals = Signals()
    given = {"handle_signals": False, "housekeeping": False, **options}
    worker = asyncio.create_task(app.start_worker(**given))
    started = asyncio.create_task(signals.until("worker.started"))
    try:
        await asyncio.wait((worker, started), return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        yield
    finally:
        signals.end()
        app.stop_worker()
        await asyncio.wait_for(worker, DEADLINE)


async def together(*calls: Callable[[], Awaitable[Any]]) -> list[Any]:
    """The results of calls made at the same time."""
    return list(await asyncio.wait_for(asyncio.gather(*(call() for call in calls)), DEADLINE))


def barrier(parties: int) -> Callable[[Any], Awaitable[Any]]:
    """A function that gives its argument back once so many have called it."""
    meeting = asyncio.Barrier(parties)

    async def meet(item: Any) -> Any:
        await asyncio.wait_for(meeting.wait(), DEADLINE)
        return item

    return meet


async def breathe() -> None:
    """Let whoever else is ready go on."""
    for _ in range(5):
        await asyncio.sleep(0)


async def until(happened: Callable[[], Any]) -> None:
    """Ask again and again, while the others work."""
    deadline = time.monotonic() + DEADLINE
    while not happened():
        assert time.monotonic() < deadline
        await asyncio.sleep(0)


async def in_child(call: Callable[[], Coroutine[Any, Any, Any]]) -> str:
    """What a call returns, as text, in a forked child; or what it raised."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(DEADLINE))  # a child that hangs dies
        try:
            answer = str(asyncio.run(call()))
        except BaseException as error:
            answer = repr(error)
        os.write(writing, answer.encode())
        os._exit(0)  # and with nothing of the test runner's
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    return told
