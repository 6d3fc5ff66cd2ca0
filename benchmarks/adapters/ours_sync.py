"""This package, threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg

from absurd import Absurd, schema
from benchmarks.adapters.protocol import QUEUE, System, event_of, main


class OursSync(System):
    """Absurd; options: concurrency."""

    def install(self) -> None:
        with psycopg.connect(self.url) as conn:
            schema.install(conn)
        self.open()
        self.client.create_queue()
        self.close()

    def open(self) -> None:
        self.client = Absurd(self.url, queue_name=QUEUE)
        self.client.list_queues()

    def close(self) -> None:
        self.client.close()

    def spawn(self, kind: str, params: dict[str, Any]) -> None:
        self.client.spawn(kind, params, queue=QUEUE)

    def spawn_bulk(self, kind: str, many: list[dict[str, Any]]) -> None:
        self.client.spawn_many({"task_name": kind, "params": one, "queue": QUEUE} for one in many)

    def emit(self, name: str) -> None:
        self.client.emit_event(name, {"ok": True})

    def emit_bulk(self, names: list[str]) -> None:
        self.client.emit_many([(name, {"ok": True}) for name in names])

    def create_queue(self, name: str) -> None:
        self.client.create_queue(name)

    def open_worker(self) -> None:
        self.client = Absurd(self.url, queue_name=QUEUE)
        hits, self.held = self.hits, threading.Event()
        held = self.held

        @self.client.register_task("noop")
        def noop(params: Any, ctx: Any) -> Any:
            hits.hit()
            return {"ok": True}

        @self.client.register_task("steps")
        def steps(params: Any, ctx: Any) -> Any:
            for name in ("one", "two", "three"):
                ctx.step(name, lambda: {"ok": True})
            hits.hit()
            return {"ok": True}

        @self.client.register_task("mark")
        def mark(params: Any, ctx: Any) -> Any:
            hits.mark(params["n"])

        @self.client.register_task("wait")
        def wait(params: Any, ctx: Any) -> Any:
            ctx.await_event(event_of(params))
            hits.mark(params["n"])
            return {"ok": True}

        @self.client.register_task("hold")
        def hold(params: Any, ctx: Any) -> Any:
            hits.hit()
            held.wait()

    def work(self, began: Callable[[], None]) -> None:
        began()
        self.client.start_worker(concurrency=self.options["concurrency"])

    def stop(self) -> None:
        self.held.set()
        self.client.stop_worker()


if __name__ == "__main__":
    main(OursSync)
