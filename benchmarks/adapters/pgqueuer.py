"""PgQueuer on asyncpg and uvloop. Public interface only; durable, as by default: all tables logged."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import asyncpg
import pgqueuer
import uvloop

from benchmarks.adapters.protocol import System, main


class PgQueuerSystem(System):
    """Options: batch_size."""

    async def install(self) -> None:
        await self.open()
        await self.queries.install()
        await self.close()

    async def open(self) -> None:
        logging.getLogger("pgqueuer").setLevel(logging.ERROR)
        self.connection = await asyncpg.connect(self.url)
        self.queries = pgqueuer.Queries.from_asyncpg_connection(self.connection)

    async def close(self) -> None:
        await self.connection.close()

    async def spawn(self, kind: str, params: dict[str, Any]) -> None:
        await self.queries.enqueue(kind, json.dumps(params).encode())

    async def spawn_bulk(self, kind: str, many: list[dict[str, Any]]) -> None:
        await self.queries.enqueue([kind] * len(many), [json.dumps(one).encode() for one in many], [0] * len(many))

    async def open_worker(self) -> None:
        self.loop = asyncio.get_running_loop()
        await self.open()
        self.worker = pgqueuer.PgQueuer.from_asyncpg_connection(self.connection)
        hits = self.hits

        @self.worker.entrypoint("noop")
        async def noop(job: pgqueuer.Job) -> None:
            hits.hit()

        @self.worker.entrypoint("mark")
        async def mark(job: pgqueuer.Job) -> None:
            hits.mark(json.loads(job.payload or b"{}")["n"])

    async def work(self, began: Callable[[], None]) -> None:
        began()
        await self.worker.run(batch_size=self.options["batch_size"])

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.worker.shutdown.set)


if __name__ == "__main__":
    uvloop.install()
    main(PgQueuerSystem)
