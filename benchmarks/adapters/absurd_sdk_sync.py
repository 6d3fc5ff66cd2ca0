"""absurd-sdk, threads. Public interface only."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from absurd_sdk import Absurd

from benchmarks.adapters.protocol import QUEUE, System, event_of, main


def install_schema(url: str, server_bin: str) -> None:
    """The released absurdctl installs the schema it carries; it needs psql."""
    command = [str(Path(sys.executable).parent / "absurdctl"), "init", "-d", url]
    path = f"{server_bin}:{os.environ.get('PATH', '')}"
    subprocess.run(command, env=os.environ | {"PATH": path}, check=True, capture_output=True)


class AbsurdSdkSync(System):
    """absurd_sdk.Absurd; options: everything start_worker takes, and server_bin."""

    def install(self) -> None:
        install_schema(self.url, self.options["server_bin"])
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
        with psycopg.connect(self.url) as conn:
            client = Absurd(conn, queue_name=QUEUE)
            for one in many:
                client.spawn(kind, one, queue=QUEUE)

    def emit(self, name: str) -> None:
        self.client.emit_event(name, {"ok": True})

    def create_queue(self, name: str) -> None:
        self.client.create_queue(name)

    def open_worker(self) -> None:
        self.client = Absurd(self.url, queue_name=QUEUE)
        hits = self.hits

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

    def work(self, began: Callable[[], None]) -> None:
        began()
        self.client.start_worker(**self.options)

    def stop(self) -> None:
        self.client.stop_worker()


if __name__ == "__main__":
    main(AbsurdSdkSync)
