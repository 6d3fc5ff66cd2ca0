"""absurd-sdk, asyncio. Public interface only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
from absurd_sdk import AsyncAbsurd

from benchmarks.adapters.absurd_sdk_sync import install_schema
from benchmarks.adapters.protocol import QUEUE, System, event_of, main


class AbsurdSdkAsync(System):
    """absurd_sdk.AsyncAbsurd; options: everything start_worker takes, and server_bin."""

    async def install(self) -> None:
        install_schema(self.url, self.options["server_bin"])
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
        async with await psycopg.AsyncConnection.connect(self.url) as conn:
            client = AsyncAbsurd(conn, queue_name=QUEUE)
            for one in many:
                await client.spawn(kind, one, queue=QUEUE)

    async def emit(self, name: str) -> None:
        await self.client.emit_event(name, {"ok": True})

    async def open_worker(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.client = AsyncAbsurd(self.url, queue_name=QUEUE)
        hits = self.hits
        held = self.held = asyncio.Event()

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
        await self.client.start_worker(**self.options)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.held.set)
        self.loop.call_soon_threadsafe(self.client.stop_worker)


if __name__ == "__main__":
    main(AbsurdSdkAsync)
