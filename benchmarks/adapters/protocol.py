"""What every adapter shares: JSON lines with the harness, the timed loops, counters. Standard library only.

    harness  -> {"role": "spawn", "url": ..., "options": {...}, "n": 3000}     the first line
    adapter  -> {"event": "ready"}               connected, handlers registered, nothing timed so far
    harness  -> {"go": true}
    adapter  -> {"event": "began", "at": ..., "cpu": ...}      workers only: the loop starts
    adapter  -> {"event": "done", "began": ..., "ended": ..., "cpu": ..., ...}
    harness  -> {"stop": true}                   workers only: answers "done" afterwards

Moments are `time.monotonic()`, one clock for all processes of a machine; cpu is seconds of this process and its
ended children. A worker counts the handlers it has finished in a shared file, so that counting costs the server nothing.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import mmap
import os
import random
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

QUEUE = "bench"
KINDS = ("noop", "steps", "wait", "mark", "hold")
_TICK = 0.005


def payload(number: int) -> dict[str, Any]:
    """About 40 bytes of params."""
    return {"n": number, "note": "some forty bytes of params"}


def event_of(params: dict[str, Any]) -> str:
    """The event a `wait` task waits for: the one it was given, or its own."""
    return str(params.get("event") or f"event-{params['n']}")


def cpu_seconds() -> float:
    """User and system time of this process, its threads and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def say(**fields: Any) -> None:
    """Write one line to the harness."""
    sys.stdout.write(json.dumps(fields, default=str) + "\n")
    sys.stdout.flush()


class Hits:
    """How many handlers got to their point, and when each marked number did.

    Handlers append to lists, which is atomic; one thread alone publishes the length. (Many threads writing a number
    each can write an older one last.)
    """

    def __init__(self, path: str | None) -> None:
        self._hits: list[None] = []
        self.marks: dict[int, float] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        if path is not None:
            with open(path, "r+b") as file:
                self._shared = mmap.mmap(file.fileno(), 8)
            self._thread = threading.Thread(target=self._publish, daemon=True)
            self._thread.start()

    def hit(self) -> None:
        """One more."""
        self._hits.append(None)

    def mark(self, number: int) -> None:
        """One more, and remember when."""
        self.marks[number] = time.monotonic()
        self._hits.append(None)

    def close(self) -> None:
        """Publish the last count."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _publish(self) -> None:
        while True:
            last = self._ended.wait(_TICK)
            self._shared[0:8] = len(self._hits).to_bytes(8, "little")
            if last:
                return


class System:
    """What an adapter implements; a role it leaves out cannot be asked for. Every method may be `async def`."""

    def __init__(self, url: str, options: dict[str, Any], hits: Hits) -> None:
        self.url, self.options, self.hits = url, options, hits
        self.stopping = threading.Event()

    def install(self) -> Any:
        """Install the schema and make the queue, in an empty database."""
        raise NotImplementedError

    def open(self) -> Any:
        """Connect, for a producer."""
        raise NotImplementedError

    def close(self) -> Any:
        """Close what `open` or `open_worker` opened."""

    def spawn(self, kind: str, params: dict[str, Any]) -> Any:
        """Create one task by the single call of the system."""
        raise NotImplementedError

    def spawn_bulk(self, kind: str, many: list[dict[str, Any]]) -> Any:
        """Create many by the bulk call; without one, by single calls in one transaction."""
        raise NotImplementedError

    def emit(self, name: str) -> Any:
        """Emit one event."""
        raise NotImplementedError

    def emit_bulk(self, names: list[str]) -> Any:
        """Emit many by one call."""
        raise NotImplementedError

    def create_queue(self, name: str) -> Any:
        """Create one queue."""
        raise NotImplementedError

    def open_worker(self) -> Any:
        """Register handlers, connect where that can be apart from the loop."""

    def work(self, began: Callable[[], None]) -> Any:
        """Call `began`, run the worker loop until `stop` is called."""
        raise NotImplementedError

    def stop(self) -> None:
        """Make `work` return. Called in another thread."""
        raise NotImplementedError


async def settle(value: Any) -> Any:
    """The value, awaited when it can be."""
    return await value if inspect.isawaitable(value) else value


class Roles:
    """The timed loops, once for sync and async systems alike."""

    def __init__(self, system: System, job: dict[str, Any], lines: Iterator[str]) -> None:
        self.system, self.job, self.lines = system, job, lines
        self.n = int(job.get("n", 0))
        self.kind = str(job.get("kind", "noop"))
        # A sync system is never run inside an event loop: it must not pay for one, and some refuse to.
        self.is_async = any(
            inspect.iscoroutinefunction(getattr(system, name)) for name in ("open", "spawn", "work", "install")
        )

    def run(self) -> None:
        """Play the role of the job."""
        body = self._body()
        if self.is_async:
            asyncio.run(body)
        else:
            drive(body)

    async def _body(self) -> None:
        role = self.job["role"]
        if role == "install":
            await settle(self.system.install())
            say(event="done")
        elif role == "work":
            await self._work()
        else:
            await self._produce(role)

    async def _produce(self, role: str) -> None:
        await settle(self.system.open())
        timed = getattr(self, f"_do_{role}")
        await self._warm_up(role)
        say(event="ready")
        next(self.lines)
        times: list[float] = []
        cpu, began = cpu_seconds(), time.monotonic()
        await timed(times)
        ended, cpu = time.monotonic(), cpu_seconds() - cpu
        say(event="done", began=began, ended=ended, cpu=cpu, times=times)
        await settle(self.system.close())

    async def _warm_up(self, role: str) -> None:
        # Ten calls: names are resolved and statements prepared (psycopg does that after five) before the clock runs.
        for number in range(10):
            if role in ("spawn", "spawn_concurrent"):
                await settle(self.system.spawn("noop", payload(number)))
            elif role == "emit":
                await settle(self.system.emit(f"warm-{os.getpid()}-{number}"))

    @property
    def _numbers(self) -> range:
        first = int(self.job.get("first", 0))
        return range(first, first + self.n)

    def _chunks(self) -> Iterator[range]:
        numbers, every = self._numbers, int(self.job.get("every", 1))
        return (numbers[start : start + every] for start in range(0, len(numbers), every))

    async def _do_spawn(self, _: list[float]) -> None:
        for number in self._numbers:
            await settle(self.system.spawn(self.kind, payload(number)))

    async def _do_spawn_bulk(self, _: list[float]) -> None:
        more = self.job.get("params", {})
        for chunk in self._chunks():
            await settle(self.system.spawn_bulk(self.kind, [payload(number) | more for number in chunk]))

    async def _do_spawn_concurrent(self, _: list[float]) -> None:
        left = iter(self._numbers)

        async def caller() -> None:
            for number in left:
                await self.system.spawn(self.kind, payload(number))

        await asyncio.gather(*(caller() for _ in range(int(self.job["callers"]))))

    async def _do_spaced(self, times: list[float]) -> None:
        gaps = random.Random(self.job.get("seed", 0))
        for number in self._numbers:
            pause = gaps.uniform(0.02, 0.08)
            if self.is_async:
                await asyncio.sleep(pause)
            else:
                time.sleep(pause)
            if self.job["verb"] == "emit":
                await settle(self.system.emit(f"event-{number}"))
            else:
                await settle(self.system.spawn(self.kind, payload(number)))
            times.append(time.monotonic())

    async def _do_emit(self, _: list[float]) -> None:
        for number in self._numbers:
            await settle(self.system.emit(f"event-{number}"))

    async def _do_emit_bulk(self, _: list[float]) -> None:
        for chunk in self._chunks():
            await settle(self.system.emit_bulk([f"event-{number}" for number in chunk]))

    async def _do_create_queues(self, _: list[float]) -> None:
        for number in self._numbers:
            await settle(self.system.create_queue(f"queue_{number}"))

    async def _work(self) -> None:
        await settle(self.system.open_worker())
        say(event="ready")
        next(self.lines)
        # Workers may take SIGTERM for themselves, which only a main thread can: the reading happens beside it.
        threading.Thread(target=self._await_stop, daemon=True).start()
        await settle(self.system.work(lambda: say(event="began", at=time.monotonic(), cpu=cpu_seconds())))
        self.system.hits.close()
        say(event="done", cpu=cpu_seconds(), marks=self.system.hits.marks)
        await settle(self.system.close())

    def _await_stop(self) -> None:
        next(self.lines, None)
        self.system.stopping.set()
        self.system.stop()


def drive(body: Any) -> None:
    """Run a coroutine that never really waits, without an event loop."""
    try:
        body.send(None)
    except StopIteration:
        return
    raise RuntimeError("a sync adapter awaited something")


def main(kind: type[System]) -> None:
    """Serve one job from stdin."""
    lines = iter(sys.stdin.readline, "")
    job = json.loads(next(lines))
    hits = Hits(job.get("counter"))
    Roles(kind(job["url"], job.get("options", {}), hits), job, lines).run()
    sys.stdout.flush()
    # Threads of a client that outlive it (pools, listeners) must not keep the process.
    os._exit(0)
