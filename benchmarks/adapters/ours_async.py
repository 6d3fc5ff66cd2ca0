"""This package, asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg

from absurd import AsyncAbsurd, schema
from benchmarks.adapters.protocol import QUEUE, System, event_of, main


class OursAsync(System):
    """AsyncAbsurd; options: concurrency."""

    async def install(self) -> None:
        with psycopg.connect(self.url) as conn:
            schema.install(conn)
        await self.open()
        await self.client.create_queue()
        await self.close()

    async def open(self) -> None:
        self.client = AsyncAbsurd(self.url, queue_name=QUEUE)
        await self.client.list_queues()

    async def close(self) -> None:
        await self.client.close()

    async def spawn(self, kind: str, params: dict[str, Any]) -> None:
        await self.client.spawn(kind, params, queue=QUEUE)

    async def spawn_bulk(self, kind: str, many: list[dict[str, Any]]) -> None:
        await self.client.spawn_many({"task_name": kind, "params": one, "queue": QUEUE} for one in many)

    async def emit(self, name: str) -> None:
        await self.client.emit_event(name, {"ok": True})

    async def emit_bulk(self, names: list[str]) -> None:
        await self.client.emit_many([(name, {"ok": True}) for name in names])

    async def create_queue(self, name: str) -> None:
        await self.client.create_queue(name)

    async def open_worker(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.client = AsyncAbsurd(self.url, queue_name=QUEUE)
        hits, held = self.hits, asyncio.Event()
        self.held = held

        async def answer() -> dict[str, bool]:
            return {"ok": True}

        @self.client.register_task("noop")
        async def noop(params: Any, ctx: Any) -> Any:
            hits.hit()
            return {"ok": True}

        @self.client.register_task("steps")
        async def steps(params: Any, ctx: Any) -> Any:
            for name in ("one", "two", "three"):
                await ctx.step(name, answer)
            hits.hit()
            return {"ok": True}

        @self.client.register_task("mark")
        async def mark(params: Any, ctx: Any) -> Any:
            hits.mark(params["n"])

        @self.client.register_task("wait")
        async def wait(params: Any, ctx: Any) -> Any:
            await ctx.await_event(event_of(params))
            hits.mark(params["n"])
            return {"ok": True}

        @self.client.register_task("hold")
        async def hold(params: Any, ctx: Any) -> Any:
            hits.hit()
            await held.wait()

    async def work(self, began: Callable[[], None]) -> None:
        began()
        await self.client.start_worker(concurrency=self.options["concurrency"])

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.held.set)
        self.loop.call_soon_threadsafe(self.client.stop_worker)


if __name__ == "__main__":
    main(OursAsync)
