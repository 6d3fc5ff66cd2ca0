"""Procrastinate. Public interface only; finished jobs are kept, as by default."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import procrastinate

from benchmarks.adapters.protocol import QUEUE, System, main


class Procrastinate(System):
    """Options: concurrency."""

    async def _open_app(self) -> None:
        logging.getLogger("procrastinate").setLevel(logging.ERROR)
        self.app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=self.url))
        hits = self.hits

        @self.app.task(name="noop", queue=QUEUE)
        async def noop(n: int, note: str) -> None:
            hits.hit()

        @self.app.task(name="mark", queue=QUEUE)
        async def mark(n: int, note: str) -> None:
            hits.mark(n)

        self.tasks = {"noop": noop, "mark": mark}
        await self.app.open_async()

    async def install(self) -> None:
        await self._open_app()
        await self.app.schema_manager.apply_schema_async()
        await self.app.close_async()

    async def open(self) -> None:
        await self._open_app()
        await self.app.check_connection_async()

    async def close(self) -> None:
        await self.app.close_async()

    async def spawn(self, kind: str, params: dict[str, Any]) -> None:
        await self.tasks[kind].defer_async(**params)

    async def spawn_bulk(self, kind: str, many: list[dict[str, Any]]) -> None:
        await self.tasks[kind].batch_defer_async(*many)

    async def open_worker(self) -> None:
        self.loop = asyncio.get_running_loop()
        await self._open_app()

    async def work(self, began: Callable[[], None]) -> None:
        self.working = asyncio.ensure_future(
            self.app.run_worker_async(
                queues=[QUEUE], concurrency=self.options["concurrency"], install_signal_handlers=False
            )
        )
        began()
        with contextlib.suppress(asyncio.CancelledError):
            await self.working

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.working.cancel)


if __name__ == "__main__":
    main(Procrastinate)
