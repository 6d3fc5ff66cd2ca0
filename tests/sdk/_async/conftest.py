"""The client under test, and two ways of running its tasks: a worker in this process, and `work_batch`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from absurd import AsyncAbsurd, TaskResultSnapshot
from tests.fixtures.pooler import Ways
from tests.fixtures.postgres import Connection, Databases
from tests.sdk._async import _compat

LEASE = 60
#: Tables of the installation itself, which no test changes.
KEPT = {"settings", "migrations"}


@pytest.fixture(scope="session")
def shared_database(databases: Databases, schema_template: str) -> Iterator[str]:
    """One database for all tests here: a fresh one for each would cost more than the tests."""
    with databases.fresh(schema_template) as name:
        yield databases.url(name)


@pytest.fixture
def database_url(shared_database: str, ways: Ways) -> str:
    """A database with the schema installed, no queue, and nothing left of earlier tests."""
    with psycopg.connect(shared_database, autocommit=True) as conn:
        conn.execute("select absurd.drop_queue(queue_name) from absurd.queues")
        conn.execute("drop schema public cascade; create schema public")
        tables = conn.execute("select tablename from pg_tables where schemaname = 'absurd'").fetchall()
        for (table,) in tables:
            if table not in KEPT:
                conn.execute(SQL("delete from absurd.{}").format(Identifier(table)))
    return ways.through(shared_database)


@pytest.fixture
async def app(database_url: str, conn: Connection) -> AsyncIterator[AsyncAbsurd]:
    """A client on a URL, its default queue `main` created; whatever the test does leaves the database consistent."""
    async with AsyncAbsurd(database_url, "main") as client:
        await client.create_queue()
        yield client
    assert conn.execute("select * from absurd.check_invariants()").fetchall() == []


@pytest.fixture
async def signals() -> AsyncIterator[_compat.Signals]:
    """What the engine signals during the test."""
    seen = _compat.Signals()
    yield seen
    seen.end()


class Driver:
    """Runs the tasks of the client's default queue."""

    def __init__(self, app: AsyncAbsurd, conn: Connection, signals: _compat.Signals | None) -> None:
        self._app = app
        self._conn = conn
        self._signals = signals

    @property
    def batch(self) -> bool:
        """Whether tasks run by `work_batch`, in the test's own flow."""
        return self._signals is None

    async def end(self, spawned: Any) -> TaskResultSnapshot:
        """Work until the task has ended; how it did."""
        if not self.batch:
            return await self._app.await_task_result(spawned["task_id"], _compat.DEADLINE)
        deadline = time.monotonic() + _compat.DEADLINE
        while True:
            await self._app.work_batch("batch", LEASE, 10)
            snapshot = await self._app.fetch_task_result(spawned["task_id"])
            assert snapshot is not None
            if snapshot.finished:
                return snapshot
            assert time.monotonic() < deadline, f"still {snapshot.state}"

    async def result(self, spawned: Any) -> Any:
        """Work until the task has completed; its result."""
        snapshot = await self.end(spawned)
        assert snapshot.state == "completed", snapshot.failure
        return snapshot.result

    async def failure(self, spawned: Any) -> Any:
        """Work until the task has failed; its last failure."""
        snapshot = await self.end(spawned)
        assert snapshot.state == "failed", snapshot.result
        return snapshot.failure

    async def once(self, spawned: Any, outcome: str) -> None:
        """Run the task's handler once; `outcome` is what the handler came to, as the worker sees it."""
        if self._signals is None:
            await self._app.work_batch("batch", LEASE)
        else:
            await self._signals.until("run.ended", task_id=spawned["task_id"], outcome=outcome)

    async def rest(self, spawned: Any, times: int = 1) -> None:
        """Work until the task has gone to sleep `times` times."""
        if self._signals is not None:
            await self._signals.until("run.ended", times, task_id=spawned["task_id"], outcome="suspended")
            return
        deadline = time.monotonic() + _compat.DEADLINE
        asleep = "select from absurd.live where task_id = %s and state = 's' and claim_no >= %s"
        while self._conn.execute(asleep, (spawned["task_id"], times)).rowcount == 0:
            await self._app.work_batch("batch", LEASE, 10)
            assert time.monotonic() < deadline, "the task never slept"


@pytest.fixture(params=["worker", "batch"])
async def drive(
    request: pytest.FixtureRequest, app: AsyncAbsurd, conn: Connection, signals: _compat.Signals
) -> AsyncIterator[Driver]:
    """Both ways a task can be run, one test each."""
    if request.param == "batch":
        yield Driver(app, conn, None)
        return
    async with _compat.working(app, claim_timeout=LEASE):
        yield Driver(app, conn, signals)
