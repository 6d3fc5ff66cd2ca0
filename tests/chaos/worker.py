"""A worker process of the chaos suite: `python -m tests.chaos.worker '<settings as JSON>'`.

Its one task, `journey`: three plain steps, a wait for an event, a transactional step; now and then a nap. Every effect is
written down where no unique key could hide a second one: a plain step's in a file outside the database (and the first
step's also as a row, on a connection that is not the worker's), the transactional step's as a row of its transaction.

The journal is a file, too: one line for each execution that began or ended, written before anything else happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import logging
import os
import random
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import psycopg_pool

from absurd import Absurd, AsyncAbsurd, telemetry

EFFECT = "insert into chaos.effects (task_id, step, attempt, token, worker) values (%s, %s, %s, %s, %s)"
MOVE = "insert into chaos.moves (task_id, attempt, token, worker) values (%s, %s, %s, %s)"
LONG = 0.01  # share of steps that take longer than the lease
POOL_TIMEOUT = 5.0


class Lines:
    """A file that many processes append whole lines to."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, *fields: Any) -> None:
        os.write(self._descriptor, (json.dumps(fields, default=str) + "\n").encode())


class Journey:
    """What both worlds share: settings, and where things are written down."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.lease: float = settings["lease"]
        folder = Path(settings["folder"])
        self.worker, self.url, self.queues = settings["worker_id"], settings["url"], settings["queues"]
        self.slots = settings["slots"]
        self._effects = Lines(str(folder / "effects"))
        self._journal = Lines(str(folder / "journal"))
        self._up = folder / "up" / self.worker
        self._chance = random.Random()

    def listen(self, name: str, fields: dict[str, Any]) -> None:
        if name == "run.started":
            self._journal.write("started", self.worker, fields["task_id"], fields["attempt"])
        elif name == "run.ended":
            self._journal.write(fields["outcome"], self.worker, fields["task_id"], fields["attempt"])
        elif name == "worker.started":
            self._up.touch()

    def effect(self, ctx: Any, step: str) -> str:
        """Write down that a plain step has had its effect; its token."""
        token = uuid.uuid4().hex[:12]
        self._effects.write(ctx.task_id, step, ctx.attempt, token, self.worker)
        return token

    def row(self, ctx: Any, step: str, token: str) -> tuple[Any, ...]:
        return (ctx.task_id, step, ctx.attempt, token, self.worker)

    def result(self, ctx: Any, n: int, event: Any, tokens: list[str], charge: str) -> dict[str, Any]:
        """What was done, and by whom: the engine has to say the same."""
        done = {"n": n, "event": event, "tokens": tokens, "charge": charge}
        return {**done, "attempt": ctx.attempt, "worker": self.worker}

    def pause(self) -> float:
        """Seconds that a step takes: mostly a tenth, so that a good many are under way at a time; a few outlast the lease."""
        if self._chance.random() < LONG:
            return self._chance.uniform(1.2, 1.8) * self.lease
        return 0.4 * self._chance.random() ** 2

    def options(self) -> dict[str, Any]:
        return {
            "worker_id": self.worker,
            "claim_timeout": self.lease,
            "concurrency": self.slots,
            "queues": self.queues,
        }

    def pool(self, kind: Any) -> Any:
        how = {"autocommit": True, "application_name": "effects"}
        return kind(self.url, min_size=1, max_size=4, timeout=POOL_TIMEOUT, open=False, kwargs=how)


def work_async(here: Journey) -> None:
    async def work() -> None:
        async with AsyncAbsurd(here.url, here.queues[0]) as app, here.pool(psycopg_pool.AsyncConnectionPool) as pool:

            async def journey(params: Any, ctx: Any) -> Any:
                async def reserve() -> str:
                    await asyncio.sleep(here.pause())
                    token = here.effect(ctx, "reserve")
                    async with pool.connection() as conn:
                        await conn.execute(EFFECT, here.row(ctx, "reserve", token))
                    return token

                async def plain(step: str) -> str:
                    await asyncio.sleep(here.pause())
                    token = here.effect(ctx, step)
                    await asyncio.sleep(here.pause() / 3)
                    return token

                tokens = [await ctx.step("reserve", reserve)]
                event = await ctx.await_event(params["event"], timeout=params.get("timeout"))
                async with ctx.transaction("charge") as tx:
                    if not tx.done:
                        tx.result = uuid.uuid4().hex[:12]
                        await tx.execute(MOVE, (ctx.task_id, ctx.attempt, tx.result, here.worker))
                if params.get("nap"):
                    await ctx.sleep_for("nap", params["nap"])
                tokens += [await ctx.step(step, lambda step=step: plain(step)) for step in ("pack", "ship")]
                return here.result(ctx, params["n"], event, tokens, tx.result)

            for queue in here.queues:
                app.register_task(name_in(here, queue), queue=queue)(journey)
            await app.start_worker(**here.options())

    asyncio.run(work())


def work_sync(here: Journey) -> None:
    with Absurd(here.url, here.queues[0]) as app, here.pool(psycopg_pool.ConnectionPool) as pool:

        def journey(params: Any, ctx: Any) -> Any:
            def reserve() -> str:
                time.sleep(here.pause())
                token = here.effect(ctx, "reserve")
                with pool.connection() as conn:
                    conn.execute(EFFECT, here.row(ctx, "reserve", token))
                return token

            def plain(step: str) -> str:
                time.sleep(here.pause())
                token = here.effect(ctx, step)
                time.sleep(here.pause() / 3)
                return token

            tokens = [ctx.step("reserve", reserve)]
            event = ctx.await_event(params["event"], timeout=params.get("timeout"))
            with ctx.transaction("charge") as tx:
                if not tx.done:
                    tx.result = uuid.uuid4().hex[:12]
                    tx.execute(MOVE, (ctx.task_id, ctx.attempt, tx.result, here.worker))
            if params.get("nap"):
                ctx.sleep_for("nap", params["nap"])
            tokens += [ctx.step(step, lambda step=step: plain(step)) for step in ("pack", "ship")]
            return here.result(ctx, params["n"], event, tokens, tx.result)

        for queue in here.queues:
            app.register_task(name_in(here, queue), queue=queue)(journey)
        app.start_worker(**here.options())


def name_in(here: Journey, queue: str) -> str:
    """The task's name in a queue: a registration belongs to one queue."""
    return "journey" if queue == here.queues[0] else f"journey@{queue}"


def shift_clock(seconds: float) -> None:
    """Let this process believe that it is later, or earlier: all of Python's wall clocks; the monotonic one cannot jump."""
    if not seconds:
        return
    real_time, real_ns, real = time.time, time.time_ns, datetime.datetime

    class Kind(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, real)

    class Shifted(real, metaclass=Kind):  # type: ignore[misc, valid-type]
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return real.now(tz) + datetime.timedelta(seconds=seconds)

        @classmethod
        def utcnow(cls) -> datetime.datetime:
            return real.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(seconds=seconds)

    time.time = lambda: real_time() + seconds
    time.time_ns = lambda: real_ns() + int(seconds * 1e9)
    for name, module in list(sys.modules.items()):
        if name.startswith("absurd") and getattr(module, "datetime", None) is real:
            module.datetime = Shifted  # type: ignore[attr-defined]


def end_with_parent() -> None:
    """Leave when whoever started us is gone: stdin is a pipe that nobody writes to."""
    os.read(0, 1)
    os._exit(1)


def main() -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    settings = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    shift_clock(settings["shift"])
    here = Journey(settings)
    telemetry.listen(here.listen)
    with contextlib.suppress(KeyboardInterrupt):
        (work_async if settings["world"] == "async" else work_sync)(here)


if __name__ == "__main__":
    main()
