"""The engine's own verbs, as few as the tests of what reads and shows tasks need."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from tests.fixtures.postgres import Connection


class Engine:
    """Works on queue `orders`, which it makes, by the public functions of the schema."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.queue("orders")

    def queue(self, name: str) -> None:
        self.conn.execute("select absurd.create_queue(%s)", (name,))

    def spawn(self, name: str = "ship", params: Any = None, queue: str = "orders", **options: Any) -> UUID:
        call = "select task_id from absurd.spawn_task(%s, %s, %s::jsonb, %s::jsonb)"
        row = self.conn.execute(call, (queue, name, json.dumps(params), json.dumps(options))).fetchone()
        assert row is not None
        return UUID(str(row[0]))

    def claim(self, queue: str = "orders") -> UUID:
        row = self.conn.execute("select run_id from absurd.claim_task(%s, 'w1', 60, 1)", (queue,)).fetchone()
        assert row is not None
        return UUID(str(row[0]))

    def complete(self, run: UUID, result: Any = None) -> None:
        self.conn.execute("select absurd.complete_run('orders', %s, %s::jsonb)", (run, json.dumps(result)))

    def fail(self, run: UUID, **reason: Any) -> None:
        self.conn.execute("select absurd.fail_run('orders', %s, %s::jsonb)", (run, json.dumps(reason)))

    def wait(self, run: UUID, event: str, timeout: int | None = None) -> None:
        task = UUID(int=run.int >> 16 << 16)
        call = "select * from absurd.await_event('orders', %s, %s, %s, %s, %s)"
        self.conn.execute(call, (task, run, f"$awaitEvent:{event}", event, timeout))

    def emit(self, event: str, payload: Any = None, queue: str = "orders") -> None:
        self.conn.execute("select absurd.emit_event(%s, %s, %s::jsonb)", (queue, event, json.dumps(payload)))

    def step(self, run: UUID, name: str, state: Any) -> None:
        task = UUID(int=run.int >> 16 << 16)
        call = "select absurd.set_task_checkpoint_state('orders', %s, %s, %s::jsonb, %s)"
        self.conn.execute(call, (task, name, json.dumps(state), run))
