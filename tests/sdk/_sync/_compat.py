"""What tests of the two worlds need and cannot share, on threads. The async twin has the same names on asyncio."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import psycopg

from absurd import Absurd, AsyncAbsurd, telemetry

DEADLINE = 20.0
Plain = Absurd
Awaited = AsyncAbsurd


def foreign_connection() -> Any:
    """A connection this world cannot use; it was never opened."""
    return object.__new__(psycopg.AsyncConnection)


class Signals:
    """Everything the engine signalled since it was made."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self._changed = threading.Condition()
        self.end = telemetry.listen(self._hear)

    def _hear(self, name: str, fields: dict[str, Any]) -> None:
        with self._changed:
            self.seen.append((name, fields))
            self._changed.notify_all()

    def count(self, name: str, **fields: Any) -> int:
        """How often a signal with these fields came."""
        return sum(seen == name and fields.items() <= had.items() for seen, had in tuple(self.seen))

    def until(self, name: str, count: int = 1, **fields: Any) -> None:
        """Wait until a signal with these fields has come `count` times."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.count(name, **fields) >= count, DEADLINE):
                raise TimeoutError(f"{name} {fields} did not come {count} times: {self.seen}")


@contextlib.contextmanager
def working(app: Absurd, **options: Any) -> Iterator[None]:
    """A worker of this client in this process, stopped at the end; what it raises is raised."""
    given = {"handle_signals": False, "housekeeping": False, **options}
    started: Future[None] = Future()
    end = telemetry.listen(lambda name, _: started.set_result(None) if name == "worker.started" else None)
    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(app.start_worker, **given)
        try:
            wait((worker, started), DEADLINE, FIRST_COMPLETED)
            end()
            yield
        finally:
            end()
            app.stop_worker()
            worker.result(DEADLINE)


def together(*calls: Callable[[], Any]) -> list[Any]:
    """The results of calls made at the same time."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(DEADLINE) for future in [pool.submit(call) for call in calls]]


def barrier(parties: int) -> Callable[[Any], Any]:
    """A function that gives its argument back once so many have called it."""
    meeting = threading.Barrier(parties)

    def meet(item: Any) -> Any:
        meeting.wait(DEADLINE)
        return item

    return meet


def breathe() -> None:
    """Let whoever else is ready go on."""
    time.sleep(0)


def until(happened: Callable[[], Any]) -> None:
    """Ask again and again, while the others work."""
    deadline = time.monotonic() + DEADLINE
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0)


def in_child(call: Callable[[], Any]) -> str:
    """What a call returns, as text, in a forked child; or what it raised."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(DEADLINE))  # a child that hangs dies
        try:
            answer = str(call())
        except BaseException as error:
            answer = repr(error)
        os.write(writing, answer.encode())
        os._exit(0)  # and with nothing of the test runner's
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    return told
