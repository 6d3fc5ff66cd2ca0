"""DBOS Transact. Public interface only: workflows on a queue, a DBOSClient that enqueues and sends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from dbos import DBOS, DBOSClient

from benchmarks.adapters.protocol import QUEUE, System, event_of, main


class Dbos(System):
    """Options: max_executor_threads, poll (seconds, of the queue)."""

    def _launch(self) -> None:
        DBOS(
            config={
                "name": "bench",
                "system_database_url": self.url,
                "application_version": "1",
                "executor_id": f"worker-{self.options.get('number', 0)}",
                "max_executor_threads": self.options.get("max_executor_threads", 8),
                "log_level": "ERROR",
            }
        )
        self._register()
        DBOS.launch()

    def install(self) -> None:
        self._launch()
        DBOS.destroy()

    def open(self) -> None:
        logging.getLogger("dbos").setLevel(logging.ERROR)
        self.client = DBOSClient(system_database_url=self.url)
        self.client.get_latest_application_version()

    def close(self) -> None:
        if hasattr(self, "client"):
            self.client.destroy()

    def _options(self, kind: str, params: dict[str, Any]) -> Any:
        options = {"queue_name": QUEUE, "workflow_name": kind, "app_version": "1"}
        return options | ({"workflow_id": f"event-{params['n']}"} if kind == "wait" else {})

    def spawn(self, kind: str, params: dict[str, Any]) -> None:
        self.client.enqueue(self._options(kind, params), params)

    def spawn_bulk(self, kind: str, many: list[dict[str, Any]]) -> None:
        import sqlalchemy

        engine = sqlalchemy.create_engine(self.url.replace("postgresql://", "postgresql+psycopg://"))
        with engine.begin() as conn:
            for one in many:
                self.client.enqueue_in_transaction(conn, self._options(kind, one), one)
        engine.dispose()

    def emit(self, name: str) -> None:
        self.client.send(name, {"ok": True}, "topic")

    def _register(self) -> None:
        hits = self.hits

        @DBOS.step(name="answer")
        def answer(number: int) -> Any:
            return {"ok": True}

        @DBOS.workflow(name="noop")
        def noop(params: Any) -> Any:
            hits.hit()
            return {"ok": True}

        @DBOS.workflow(name="steps")
        def steps(params: Any) -> Any:
            for number in range(3):
                answer(number)
            hits.hit()
            return {"ok": True}

        @DBOS.workflow(name="mark")
        def mark(params: Any) -> Any:
            hits.mark(params["n"])

        # async: a waiting workflow of DBOS stays in the process, and threads are few
        @DBOS.workflow(name="wait")
        async def wait(params: Any) -> Any:
            event_of(params)
            hits.hit()
            await DBOS.recv_async("topic", timeout_seconds=600)
            hits.mark(params["n"])
            return {"ok": True}

    def open_worker(self) -> None:
        # Before the launch: a queue that appears later is noticed only after a second, and a poller that runs comes
        # down from another interval only slowly.
        client = DBOSClient(system_database_url=self.url)
        client.register_queue(QUEUE, polling_interval_sec=self.options["poll"], on_conflict="always_update")
        client.destroy()

    def work(self, began: Callable[[], None]) -> None:
        # Its launch is most of a second (migrations, recovery); leaving it outside is in its favour.
        self._launch()
        began()
        self.stopping.wait()
        DBOS.destroy()

    def stop(self) -> None:
        """`stopping` is set already."""


if __name__ == "__main__":
    main(Dbos)
