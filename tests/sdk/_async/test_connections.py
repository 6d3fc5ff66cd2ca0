"""Where a client's calls run: its own pool, a pool or a connection of the caller; and what it says when it cannot."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads

from absurd import (
    AsyncAbsurd,
    ConfigError,
    ConnectionLost,
    QueueNotFound,
    SchemaMissing,
    TaskResultSnapshot,
    __version__,
)
from absurd._async import _compat as world
from absurd._async import session as session_module
from absurd._async.session import default_url
from tests.fixtures.postgres import Connection
from tests.sdk._async import _compat
from tests.sdk.conftest import Rows

TASKS = "select count(*)::int from absurd.tasks"
EVENTS = "select count(*)::int from absurd.events where emitted_at is not null"


@pytest.fixture
async def lent(app: AsyncAbsurd, database_url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection of the caller's, with a transaction to come, rows as dicts and an odd JSON reader."""
    connection = await psycopg.AsyncConnection.connect(database_url, row_factory=dict_row)
    set_json_loads(lambda text: "unread", connection)
    async with connection:
        yield connection


async def test_a_lent_connections_transaction_decides_over_spawn_emit_and_cancel(
    app: AsyncAbsurd, lent: psycopg.AsyncConnection[Any], rows: Rows
) -> None:
    victim = await app.spawn("victim", {}, queue="main")
    for commit in (False, True):
        bound = app.bind(lent)
        spawned = await bound.spawn("a", {"n": 1}, queue="main")
        await bound.spawn_many([{"task_name": "b", "params": n, "queue": "main"} for n in range(3)])
        assert await bound.emit_event("paid", 1)
        assert await bound.emit_many([("one", 1), ("two", 2)]) == [True, True]
        await bound.cancel_task(victim["task_id"])
        assert await bound.fetch_task_result(spawned["task_id"]) == TaskResultSnapshot("pending")
        assert rows(TASKS) == [1], "nobody else sees it before the commit"
        assert rows(EVENTS) == [0]
        assert await app.fetch_task_result(victim["task_id"]) == TaskResultSnapshot("pending")
        await (lent.commit() if commit else lent.rollback())
        assert rows(TASKS) == [5 if commit else 1]
        assert rows(EVENTS) == [3 if commit else 0]
    assert await app.fetch_task_result(victim["task_id"]) == TaskResultSnapshot("cancelled")


async def test_a_client_on_a_lent_connection_neither_commits_nor_closes_it(
    lent: psycopg.AsyncConnection[Any], rows: Rows
) -> None:
    async with AsyncAbsurd(lent, "main") as client:
        await client.spawn("a", {}, queue="main")
    assert not lent.closed
    assert lent.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
    await client.close()
    await lent.rollback()
    assert rows(TASKS) == [0]


async def test_a_lent_connection_keeps_its_rows_and_its_json_reader(lent: psycopg.AsyncConnection[Any]) -> None:
    client = AsyncAbsurd(lent, "main")

    @client.register_task("doubles")
    async def doubles(params: Any, ctx: Any) -> Any:
        return {"doubled": await ctx.step("double", lambda: params["n"] * 2)}

    spawned = await client.spawn("doubles", {"n": 21})
    await client.work_batch()
    assert await client.fetch_task_result(spawned["task_id"]) == TaskResultSnapshot("completed", {"doubled": 42})
    assert await client.list_queues() == ["main"]
    assert await (await lent.execute("select 1 as one, '{}'::jsonb as json")).fetchone() == {"one": 1, "json": "unread"}


async def test_a_failed_call_leaves_the_callers_transaction_to_the_caller(
    app: AsyncAbsurd, lent: psycopg.AsyncConnection[Any], rows: Rows
) -> None:
    bound = app.bind(lent)
    await bound.spawn("a", {}, queue="main")
    await lent.execute("savepoint before")
    with pytest.raises(QueueNotFound):
        await bound.spawn("a", {}, queue="nowhere")
    await lent.execute("rollback to before")
    await bound.spawn("b", {}, queue="main")
    await lent.commit()
    assert rows("select task_name from absurd.tasks order by 1") == ["a", "b"]


async def test_a_call_on_a_lent_connection_is_never_repeated(
    app: AsyncAbsurd, lent: psycopg.AsyncConnection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[Any] = []

    async def broken(conn: Any, call: Any, **options: Any) -> Any:
        tries.append(call)
        raise psycopg.OperationalError("the connection is lost")

    monkeypatch.setattr(session_module, "execute", broken)
    with pytest.raises(ConnectionLost, match="the connection is lost"):
        await app.bind(lent).emit_event("paid")
    assert len(tries) == 1


async def test_a_bound_client_knows_the_same_tasks_and_hooks(
    app: AsyncAbsurd, lent: psycopg.AsyncConnection[Any]
) -> None:
    @app.register_task("known", default_max_attempts=3)
    async def known(params: Any, ctx: Any) -> None:
        """A handler."""

    spawned = await app.bind(lent).spawn("known", {})
    cursor = await lent.execute("select max_attempts from absurd.tasks where task_id = %s", (spawned["task_id"],))
    assert await cursor.fetchone() == {"max_attempts": 3}


async def test_a_pool_of_the_callers_is_used_and_left_open(app: AsyncAbsurd, database_url: str, rows: Rows) -> None:
    async with world.Pool(database_url, min_size=1, max_size=2, open=False) as pool:
        async with AsyncAbsurd(pool, "main") as client:
            spawned = await client.spawn("a", {"n": 1}, queue="main")
            assert rows(TASKS) == [1], "a call on a pool commits"
            assert await client.fetch_task_result(spawned["task_id"]) == TaskResultSnapshot("pending")
        assert not pool.closed


async def test_a_client_opens_its_pool_at_the_first_call_and_again_after_a_close(database_url: str, rows: Rows) -> None:
    mine = (
        "select count(*)::int from pg_stat_activity where application_name = 'absurd' and datname = current_database()"
    )
    client = AsyncAbsurd(database_url, "main")
    assert rows(mine) == [0]
    await client.create_queue()
    assert rows(mine)[0] > 0
    await client.close()
    await client.close()
    assert await client.list_queues() == ["main"]
    await client.close()


async def test_a_broken_connection_of_the_pool_is_replaced_unnoticed(app: AsyncAbsurd, conn: Connection) -> None:
    assert await app.list_queues() == ["main"]
    conn.execute("select pg_terminate_backend(pid) from pg_stat_activity"
                 " where application_name = 'absurd' and datname = current_database()")  # fmt: skip
    assert await app.list_queues() == ["main"]


async def test_our_connections_are_read_committed_whatever_the_database_says(
    app: AsyncAbsurd, conn: Connection, database_url: str
) -> None:
    name = conn.info.dbname
    conn.execute(f'alter database "{name}" set default_transaction_isolation = serializable')
    try:
        async with AsyncAbsurd(database_url, "main") as client:
            seen: list[str] = []

            @client.register_task("asks")
            async def asks(params: Any, ctx: Any) -> None:
                async with ctx.transaction("ask") as tx:
                    seen.append((await (await tx.execute("show transaction_isolation")).fetchone())[0])

            await client.spawn("asks", {})
            await client.work_batch()
            own = await session_module.connect(database_url)
            seen.append((await (await own.execute("show transaction_isolation")).fetchone())[0])  # type: ignore[index]
            await own.close()
        assert seen == ["read committed"] * 2
    finally:
        conn.execute(f'alter database "{name}" reset default_transaction_isolation')


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_a_forked_child_uses_no_connection_of_its_parents(app: AsyncAbsurd) -> None:
    async def backend() -> int:
        async with app._session.connection() as one:
            return one.info.backend_pid

    async def of_child() -> int:
        assert await app.list_queues() == ["main"]
        found = await backend()
        await app.close()
        return found

    before = await backend()
    told = await _compat.in_child(of_child)
    assert told.isdigit(), told
    assert int(told) != before
    assert await app.list_queues() == ["main"]
    async with app._session.connection() as one:
        found = await one.execute("select 1 from pg_stat_activity where pid = %s", (before,))
        assert await found.fetchone(), "the child closed the parent's own connection"


@pytest.mark.parametrize("size", [0, -1, 1.5, "4", True])
def test_a_pool_has_a_size(size: Any) -> None:
    with pytest.raises(ConfigError, match="pool_size must be an integer >= 1"):
        AsyncAbsurd("postgresql://localhost/nowhere", "main", pool_size=size)


async def test_a_worker_with_more_slots_than_the_pool_has_connections_makes_it_grow(
    app: AsyncAbsurd, database_url: str
) -> None:
    async with AsyncAbsurd(database_url, "main", pool_size=1) as client:
        assert await client.list_queues() == ["main"]
        inside: list[int] = []
        all_inside = world.Event()

        @client.register_task("meets")
        async def meets(params: Any, ctx: Any) -> bool:
            async with ctx.transaction("meet"):
                inside.append(params)
                if len(inside) == 4:
                    all_inside.set()
                return await all_inside.wait(_compat.DEADLINE)

        spawned = await app.spawn_many([{"task_name": "meets", "params": n, "queue": "main"} for n in range(4)])
        async with _compat.working(client, concurrency=4):
            for one in spawned:
                assert (await app.await_task_result(one["task_id"], _compat.DEADLINE)).result is True


# -- other clients from one --------------------------------------------------------------------------------------------


async def test_make_sync_and_make_async_give_clients_of_the_same_database_queue_and_defaults(
    app: AsyncAbsurd, database_url: str, rows: Rows
) -> None:
    chosen = AsyncAbsurd(database_url, "main", 9, pool_size=3)
    with chosen.make_sync() as plain:
        assert type(plain) is _compat.Plain
        assert plain.queue_name == "main"
        assert plain._pool_size == 3
        plain.spawn("a", {}, queue="main")
    other = chosen.make_async()
    assert type(other) is _compat.Awaited
    assert other.queue_name == "main"
    assert rows("select max_attempts from absurd.tasks") == [9]
    await chosen.close()


async def test_a_client_made_from_one_on_a_lent_connection_connects_by_itself(
    lent: psycopg.AsyncConnection[Any], rows: Rows
) -> None:
    with AsyncAbsurd(lent, "main").make_sync() as client:
        client.spawn("a", {}, queue="main")
    assert rows(TASKS) == [1]
    await lent.rollback()
    assert rows(TASKS) == [1]


# -- what is refused, and how --------------------------------------------------------------------------------------------


def test_the_default_url_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ABSURD_DATABASE_URL", "PGDATABASE"):
        monkeypatch.delenv(name, raising=False)
    assert default_url() == "postgresql://localhost/absurd"
    monkeypatch.setenv("PGDATABASE", "shop")
    assert default_url() == "shop"
    monkeypatch.setenv("ABSURD_DATABASE_URL", "postgresql://host/other")
    assert default_url() == "postgresql://host/other"


async def test_a_client_without_a_url_takes_the_environments(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABSURD_DATABASE_URL", database_url)
    async with AsyncAbsurd() as client:
        assert client.queue_name == "default"
        assert await client.list_queues() == []


@pytest.mark.parametrize("name", ["", "  ", "q" * 58, "ü" * 29])
def test_a_queue_name_is_checked_before_anything_connects(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "connect", lambda *_: pytest.fail("connected"))
    text = r"Queue name must be provided|is too long \(max 57 bytes\)\."
    with pytest.raises(ValueError, match=text):
        AsyncAbsurd("postgresql://localhost/nowhere", name)
    with pytest.raises(ValueError, match="default_max_attempts must be >= 1"):
        AsyncAbsurd("postgresql://localhost/nowhere", "q" * 57, 0)


async def test_the_wrong_server_says_which_setting_to_check(database_url: str) -> None:
    wrong = psycopg.conninfo.make_conninfo("postgresql://u@127.0.0.1:1/shop", password="s3cret", connect_timeout=5)
    client = AsyncAbsurd(wrong, "main")
    with pytest.raises(ConnectionLost, match="ABSURD_DATABASE_URL") as caught:
        await client.list_queues()
    assert "s3cret" not in _everything(caught.value)


async def test_a_database_without_the_schema_says_how_to_install_it(empty_database_url: str) -> None:
    async with AsyncAbsurd(empty_database_url, "main") as client:
        for call in (
            lambda: client.spawn("a", {}, queue="main"),
            lambda: client.create_queue(),
            lambda: client.list_queues(),
            lambda: client.claim_tasks(),
            lambda: client.emit_event("e"),
            lambda: client.fetch_task_result(uuid.UUID(int=7)),
            lambda: client.start_worker(handle_signals=False),
        ):
            with pytest.raises(SchemaMissing, match="absurdctl init"):
                await call()  # type: ignore[func-returns-value]


async def test_a_missing_queue_says_how_to_create_it_in_every_call(app: AsyncAbsurd, database_url: str) -> None:
    async with AsyncAbsurd(database_url, "nowhere") as client:
        for call in (
            lambda: client.spawn("a", {}, queue="nowhere"),
            lambda: client.emit_event("e"),
            lambda: client.claim_tasks(),
            lambda: client.fetch_task_result(uuid.UUID(int=7)),
            lambda: client.work_batch(),
            lambda: client.start_worker(queues=["main", "nowhere"], handle_signals=False),
        ):
            with pytest.raises(QueueNotFound, match=r"absurdctl create-queue '?nowhere"):
                await call()


SECRET = [
    "postgres//bob:s3cret@localhost/shop",
    "postgres:/bob:s3cret@localhost/shop",
    "postgresql://bob:s3cret@localhost:port/shop",
    "postgresql://bob:s3cret@127.0.0.1:1/shop",
    "postgresql://bob:s3cret@[::1/shop",
    "postgresql://bob:s3cret@localhost/shop?color=red",
    "postgresql://bob:s3cret%@localhost/shop",
    "host=127.0.0.1 port=1 password=s3cret user=bob",
    "host=127.0.0.1 port=1 password=s3cret user",
    "bob:s3cret@127.0.0.1",
    "postgresql://bob:s3cret/more@localhost/shop",
    "postgresql://bob:more@s3cret@localhost/shop",
]


async def test_a_password_is_in_no_error() -> None:
    for url in SECRET:
        client = AsyncAbsurd(url, "main")
        with pytest.raises((ConnectionLost, ConfigError)) as caught:
            await client.list_queues()
        assert "s3cret" not in _everything(caught.value)
        assert "s3cret" not in repr(client)
        await client.close()


def test_a_connection_of_the_other_world_is_refused() -> None:
    for wrong in (_compat.foreign_connection(), 7, object()):
        with pytest.raises(ConfigError, match="is no URL, and no psycopg connection or pool of this client's kind"):
            AsyncAbsurd(wrong, "main")


def test_the_package_carries_its_version() -> None:
    assert __version__
    assert os.fspath(__version__)


def _everything(error: BaseException | None) -> str:
    """Everything an error could print: itself, its notes, and what it came from."""
    text = ""
    while error is not None:
        text += f"{error!r} {error} {getattr(error, 'hint', '')} {getattr(error, '__notes__', '')}"
        error = error.__cause__ or error.__context__  # also where `from None` hides it
    return text
