"""Behind a connection pooler: nothing that belongs to a session is relied upon, and one warning says so."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from absurd import AsyncAbsurd, ConfigError
from absurd._async import _compat as world
from absurd._async import session as session_module
from tests.fixtures.pooler import Ways
from tests.fixtures.postgres import Connection
from tests.fixtures.proxy import Proxy, proxied
from tests.sdk._async import _compat

PREPARED = "select statement from pg_catalog.pg_prepared_statements where statement like '%absurd.%'"
OFTEN = 8  # the driver prepares what has been executed five times


@pytest.fixture
def server_url(database_url: str, ways: Ways) -> str:
    """The server itself, whatever this session's tests go through."""
    return ways.direct(database_url)


@pytest.fixture
def pooler(server_url: str) -> Iterator[Proxy]:
    """It greets like a pooler, and does not share its connections: what they were made to keep can be looked at."""
    with proxied(server_url, pooler=True) as made:
        yield made


@pytest.fixture
async def client(app: AsyncAbsurd, pooler: Proxy) -> AsyncIterator[AsyncAbsurd]:
    async with AsyncAbsurd(pooler.url, "main", pool_size=1) as client:
        yield client


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of poolers."""
    return [record.getMessage() for record in caplog.records if "pooler" in record.getMessage()]


async def prepared_by(client: AsyncAbsurd) -> list[Any]:
    """The statements of ours that the server keeps for the client's connection, after it has asked often."""
    for _ in range(OFTEN):
        await client.fetch_task_result("01900000-0000-7000-8000-000000010000")
    async with client._session.connection() as conn:
        cursor = await conn.execute(PREPARED, prepare=False)
        return await cursor.fetchall()


async def test_a_client_prepares_nothing_behind_a_pooler_and_warns_once(
    client: AsyncAbsurd, pooler: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    assert await prepared_by(client) == []
    async with AsyncAbsurd(pooler.url, "main") as other:
        await other.list_queues()
    (warning,) = warnings(caplog)
    assert "workers look for tasks every poll_interval" in warning


async def test_a_client_prepares_what_it_repeats_where_no_pooler_is(
    app: AsyncAbsurd, server_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncAbsurd(server_url, "main", pool_size=1) as client:
        assert len(await prepared_by(client)) == 1
    assert warnings(caplog) == []


async def test_on_lent_connections_and_pools_nothing_is_prepared_behind_a_pooler_either(
    app: AsyncAbsurd, pooler: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    async with await psycopg.AsyncConnection.connect(pooler.url, autocommit=True) as lent:
        assert await prepared_by(AsyncAbsurd(lent, "main")) == []
    async with world.Pool(pooler.url, min_size=1, max_size=1, open=False) as pool:
        assert await prepared_by(AsyncAbsurd(pool, "main")) == []
    assert len(warnings(caplog)) == 1


async def test_whether_a_lent_connection_is_pooled_is_asked_once_an_address(app: AsyncAbsurd, server_url: str) -> None:
    with proxied(server_url) as proxy:
        for _ in range(3):
            async with await psycopg.AsyncConnection.connect(proxy.url, autocommit=True) as lent:
                await app.bind(lent).list_queues()
        assert proxy.seen[session_module._GREETING] == 1


async def test_a_connection_costs_one_statement(app: AsyncAbsurd, server_url: str) -> None:
    with proxied(server_url) as proxy:
        await (await session_module.connect(proxy.url)).close()
        assert proxy.executed == 1


async def test_behind_a_pooler_a_wait_for_a_result_polls(
    client: AsyncAbsurd, pooler: Proxy, conn: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    spawned = [await client.spawn("a", {}, queue="main") for _ in range(2)]
    for one in spawned:
        wait = lambda one=one: client.await_task_result(one["task_id"], _compat.DEADLINE)  # noqa: E731
        ended, _ = await _compat.together(wait, lambda one=one: _cancel(pooler, conn, one))
        assert ended.state == "cancelled"
    assert not [sql for sql in pooler.seen if "listen" in sql or "watch_task" in sql]
    assert pooler.seen[session_module._GREETING] == 3, "two when the pool opens, and one to find that waits must poll"
    assert len(warnings(caplog)) == 1


async def _cancel(pooler: Proxy, conn: Connection, spawned: Any) -> None:
    """Cancel a task, once somebody has looked for its result."""
    before = _looks(pooler)
    await _compat.until(lambda: _looks(pooler) > before)
    conn.execute("select absurd.cancel_task('main', %s)", (spawned["task_id"],))


def _looks(pooler: Proxy) -> int:
    return sum(count for sql, count in pooler.seen.items() if "get_task_result" in sql)


async def test_an_isolation_level_that_no_client_can_change_there_is_refused(
    pooler: Proxy, conn: Connection, database_url: str
) -> None:
    name = conn.info.dbname
    conn.execute(f'alter database "{name}" set default_transaction_isolation = serializable')
    try:
        with pytest.raises(ConfigError, match=r"begin as SERIALIZABLE here(.|\n)*alter role"):
            await AsyncAbsurd(pooler.url, "main").list_queues()
    finally:
        conn.execute(f'alter database "{name}" reset default_transaction_isolation')
    assert not [sql for sql in pooler.seen if "set default" in sql], "it would be set for somebody else"


async def test_a_worker_behind_a_pooler_neither_listens_nor_registers_as_idle(
    client: AsyncAbsurd, pooler: Proxy, conn: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "absurd")

    @client.register_task("a")
    async def a(params: Any, ctx: Any) -> Any:
        return await ctx.step("one", lambda: 1)

    async with _compat.working(client, poll_interval=0.05):
        for _ in range(OFTEN):
            spawned = await client.spawn("a", {})
            assert (await client.await_task_result(spawned["task_id"], _compat.DEADLINE)).result == 1
        assert conn.execute("select from absurd.idle").rowcount == 0
    assert not [sql for sql in pooler.seen if "listen" in sql or "set_idle" in sql]
    assert not pooler.named, "nothing was prepared"
    assert len(warnings(caplog)) == 1
