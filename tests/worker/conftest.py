"""Real worker processes, of both worlds, against a queue `q`."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from absurd import schema
from tests.fixtures.postgres import Connection
from tests.fixtures.servers import OwnServer
from tests.worker.process import WorkerProcess, starter

Start = Callable[..., WorkerProcess]


class Queue:
    """What a test asks of a queue, on an autocommit connection of its own."""

    def __init__(self, conn: Connection, name: str = "q") -> None:
        self.conn, self.name = conn, name
        conn.execute("select absurd.create_queue(%s)", (name,))

    def spawn(self, *do: list[Any], task: str = "work", conn: Connection | None = None, **options: Any) -> uuid.UUID:
        """Spawn a task that performs operations; one attempt unless `max_attempts` says otherwise."""
        row = (conn or self.conn).execute(
            "select task_id from absurd.spawn_task(%s, %s, %s::jsonb, %s::jsonb)",
            (self.name, task, json.dumps({"do": list(do)}), json.dumps({"max_attempts": 1, **options})),
        )
        return row.fetchone()[0]  # type: ignore[index]

    def task(self, task_id: uuid.UUID) -> tuple[str, Any, Any]:
        """(state, result, failure)."""
        row = self.conn.execute(
            "select state, result, failure_reason from absurd.get_task_result(%s, %s)", (self.name, task_id)
        )
        return row.fetchone()  # type: ignore[return-value]

    def state(self, task_id: uuid.UUID) -> str:
        return self.task(task_id)[0]

    def attempts(self, task_id: uuid.UUID) -> int:
        row = self.conn.execute(f'select attempts from absurd."t_{self.name}" where task_id = %s', (task_id,))
        return row.fetchone()[0]  # type: ignore[index]

    def runs(self, task_id: uuid.UUID) -> list[tuple[int, str]]:
        """(attempt, state) of every run."""
        return self.conn.execute(
            f'select attempt, state from absurd."r_{self.name}" where task_id = %s order by attempt', (task_id,)
        ).fetchall()

    def reconnect(self, url: str) -> None:
        """After the server went away."""
        self.conn.close()
        self.conn = psycopg.connect(url, autocommit=True, connect_timeout=10)

    def check(self) -> None:
        """The engine's own check of what must always hold: at the end of every test."""
        assert self.conn.execute("select * from absurd.check_invariants()").fetchall() == []

    def wait_ended(self, worker: WorkerProcess, *task_ids: uuid.UUID) -> None:
        """Until these tasks have ended, while a worker goes on telling what it does."""

        def ended() -> bool:
            return all(self.state(task_id) in ("completed", "failed", "cancelled") for task_id in task_ids)

        try:
            worker.wait_until(ended, "the end of the tasks")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.report()}") from None

    def report(self) -> str:
        """What the database says, for a failure."""
        questions = [
            "select * from absurd.live limit 10",
            "select * from absurd.idle",
            "select pid, application_name, state, wait_event, backend_xid, left(query, 80) from pg_stat_activity"
            " where datname = current_database()",
            "select now(), pg_current_snapshot()",
        ]
        return "\n".join(str(row) for question in questions for row in self.conn.execute(question))


@pytest.fixture(params=["async", "sync"])
def world(request: pytest.FixtureRequest) -> str:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def start(world: str, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start a worker process; see `starter`."""
    if "own_server" in request.fixturenames:
        own = request.getfixturevalue("own_server")
        url = lambda: own.url  # noqa: E731
    else:
        request.getfixturevalue("database_url")
        url = lambda: request.getfixturevalue("database_url")  # noqa: E731
    with starter(world, url) as start:
        yield start


@pytest.fixture
def q(conn: Connection) -> Iterator[Queue]:
    queue = Queue(conn)
    yield queue
    queue.check()


@pytest.fixture
def own_q(own_server: OwnServer) -> Iterator[Queue]:
    """The queue on a private server; its connection must be made anew after a restart (`own_q.conn`)."""
    conn = psycopg.connect(own_server.url, autocommit=True)
    schema.install(conn)
    queue = Queue(conn)
    yield queue
    queue.check()
    queue.conn.close()


class Gate:
    """A file that a handler waits for (`["gate", str(gate)]`)."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def open(self) -> None:
        self._path.touch()


@pytest.fixture
def file_gate(tmp_path: Path) -> Callable[[str], Gate]:
    """`file_gate(name)`: closed until `open()`."""
    return lambda name: Gate(tmp_path / name)
