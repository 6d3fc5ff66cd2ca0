"""A network that falls silent: who asks is told, nothing is held, and the pages are back when the network is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from absurd import ConfigError
from habitat_lite import connections, create_app
from habitat_lite import source as sources
from habitat_lite.connections import Broken, Connection, Connections, Unreached
from tests.cli.engine import Engine
from tests.fixtures.postgres import Connect
from tests.fixtures.proxy import Proxy
from tests.habitat.conftest import MakeSite, Site

PATHS = ("/", "/tasks", "/events", "/waits", "/tasks.json", "/events.json")
FOREVER = 30.0
OURS = "pg_stat_activity where application_name = 'habitat' and datname = current_database()"


@pytest.fixture
def behind(make_site: MakeSite, proxy: Proxy, engine: Engine) -> Site:
    """The application, with a network between it and its database."""
    return make_site(proxy.url)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    def set_to(seconds: float) -> None:
        monkeypatch.setattr(sources, "PATIENCE", seconds)
        monkeypatch.setattr(connections, "GRACE", min(seconds, 1.0))

    return set_to


async def codes(site: Site, *paths: str) -> set[int]:
    """What who asks for all of these at once is told. It must not take long, but a machine may be slow."""
    async with asyncio.timeout(20):
        return {answer.status_code for answer in await asyncio.gather(*(site.get(path) for path in paths))}


async def settled(site: Site) -> None:
    """Until whatever was given up has come to its end."""
    pool: Connections = site.inner.state.source._connections
    async with asyncio.timeout(20):
        while pool._tasks:
            await asyncio.wait(set(pool._tasks))


def opened(engine: Engine) -> int:
    row = engine.conn.execute(f"select count(*) from {OURS}".encode()).fetchone()
    assert row is not None
    return int(row[0])


async def a_few_are_open(site: Site, engine: Engine) -> None:
    """Until the server has noticed who has left."""
    await settled(site)
    async with asyncio.timeout(20):
        while not 1 <= opened(engine) <= 4:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("warm", [True, False], ids=["connected", "never connected"])
async def test_who_asks_a_silent_network_is_told_and_the_pages_are_back_when_it_speaks(
    behind: Site, proxy: Proxy, engine: Engine, impatient: Callable[[float], None], warm: bool
) -> None:
    if warm:
        assert await codes(behind, *PATHS) == {200}
    for _ in range(2):
        impatient(0.2)
        behind.inner.state.source.forget()
        proxy.freeze()
        for _ in range(2):
            assert await codes(behind, *PATHS * 3) <= {503, 504}
            behind.inner.state.source.forget()
        proxy.thaw()
        impatient(FOREVER)
        assert await codes(behind, *PATHS) == {200}
    await a_few_are_open(behind, engine)


async def test_an_answer_that_never_comes_costs_its_connection_and_no_slot(
    behind: Site, proxy: Proxy, engine: Engine, impatient: Callable[[float], None]
) -> None:
    for _ in range(6):  # more often than there are slots
        held = proxy.hold("search_tasks")
        impatient(0.2)
        while not held.letters:  # until the server had answered, which a slow machine does not in time
            assert await codes(behind, "/tasks.json") <= {503, 504}
            behind.inner.state.source.forget()
    impatient(FOREVER)
    assert await codes(behind, *PATHS) == {200}
    await a_few_are_open(behind, engine)


async def test_an_action_on_a_silent_network_is_not_tried_twice(
    behind: Site, proxy: Proxy, engine: Engine, impatient: Callable[[float], None]
) -> None:
    form = {"form_token": await behind.token(), "queue": "orders", "name": "e", "payload": "1"}
    held = proxy.hold("emit_one")
    impatient(0.2)
    async with asyncio.timeout(20):
        answer = await behind.client.post("/events/emit", data=form)
    assert answer.status_code == 504
    assert "look before you try again" in answer.text
    held.wait("Z")
    assert sum(count for sql, count in proxy.seen.items() if "emit_one" in sql) == 1
    proxy.freeze()
    async with asyncio.timeout(20):
        answer = await behind.client.post("/events/emit", data=form)
    assert answer.status_code in (503, 504)
    proxy.thaw()
    impatient(FOREVER)
    answer = await behind.client.post("/events/emit", data=form)
    assert answer.headers["location"].endswith("said=kept"), "the first had been done, though nobody could say so"


async def test_a_question_that_takes_too_long_is_stopped_in_the_server(
    site: Site,
    engine: Engine,
    connect: Connect,
    impatient: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with connect(autocommit=False) as other:
        other.execute("lock table absurd.queues in access exclusive mode")
        impatient(0.2)
        monkeypatch.setattr(connections, "GRACE", FOREVER)  # the server is to stop it, however slow the machine
        assert await codes(site, *PATHS * 3) <= {503, 504}
        await settled(site)
        assert other.execute(f"select count(*) from {OURS} and state <> 'idle'".encode()).fetchone() == (0,)
    impatient(FOREVER)
    site.inner.state.source.forget()
    assert await codes(site, *PATHS) == {200}


# -- the connections alone -------------------------------------------------------------------------------------------------


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Connections]:
    made = Connections(database_url, 2)
    yield made
    await made.close()


async def pid(conn: Connection) -> int:
    return conn.info.backend_pid


async def test_a_connection_is_used_again(pool: Connections) -> None:
    assert await pool.run(pid, FOREVER) == await pool.run(pid, FOREVER, checked=True)


async def test_whoever_leaves_keeps_nothing(pool: Connections) -> None:
    begun, end = asyncio.Event(), asyncio.Event()

    async def job(conn: Connection) -> None:
        begun.set()
        await end.wait()

    for _ in range(5):
        waiting = asyncio.create_task(pool.run(job, FOREVER))
        await begun.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        end.set()
    assert await pool.run(pid, FOREVER)


async def test_who_finds_all_in_use_is_told_so(pool: Connections) -> None:
    begun, end = [asyncio.Event(), asyncio.Event()], asyncio.Event()

    def using(number: int) -> Callable[[Connection], Awaitable[bool]]:
        async def job(conn: Connection) -> bool:
            begun[number].set()
            return await end.wait()

        return job

    both = [asyncio.create_task(pool.run(using(number), FOREVER)) for number in range(2)]
    await asyncio.gather(*(each.wait() for each in begun))
    with pytest.raises(Unreached):
        await pool.run(pid, 0.1)
    end.set()
    assert await asyncio.gather(*both) == [True, True]
    assert await pool.run(pid, FOREVER)


async def test_what_was_lost_is_told_apart_from_what_cannot_be_had(pool: Connections, engine: Engine) -> None:
    async def ask(conn: Connection) -> None:
        await conn.execute("select 1")

    def kill(known: int) -> None:
        assert engine.conn.execute("select pg_terminate_backend(%s, 20000)", (known,)).fetchone() == (True,)

    kill(await pool.run(pid, FOREVER))
    with pytest.raises(Broken):
        await pool.run(ask, FOREVER)
    kill(await pool.run(pid, FOREVER))
    await pool.run(ask, FOREVER, checked=True)
    with pytest.raises(psycopg.OperationalError):
        await Connections("postgresql://127.0.0.1:1/nothing", 1).run(ask, FOREVER)


async def test_a_connection_left_in_a_transaction_is_not_lent_again(pool: Connections) -> None:
    async def begin(conn: Connection) -> int:
        await conn.execute("begin")
        return conn.info.backend_pid

    first = await pool.run(begin, FOREVER)
    assert await pool.run(pid, FOREVER) != first


async def test_what_nobody_uses_is_closed_after_a_while(
    pool: Connections, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "IDLE", 0.01)
    await pool.run(pid, FOREVER)
    async with asyncio.timeout(20):
        while opened(engine):
            await asyncio.sleep(0.01)
    assert await pool.run(pid, FOREVER)


def test_a_silent_peer_is_given_up_by_the_kernel_too_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGCONNECT_TIMEOUT", raising=False)
    options = Connections("postgresql://x", 1)._options
    assert (options["keepalives"], options["tcp_user_timeout"], options["connect_timeout"]) == (1, 10_000, 5)
    given = make_conninfo("postgresql://x", keepalives_idle=99, tcp_user_timeout=1, connect_timeout=7)
    options = Connections(given, 1)._options
    assert not options.keys() & {"keepalives_idle", "tcp_user_timeout", "connect_timeout"}
    assert conninfo_to_dict(given)["connect_timeout"] == "7"
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "9")
    assert "connect_timeout" not in Connections("postgresql://x", 1)._options


@pytest.mark.parametrize("url", ["postgresql://me:s3cret@[h/x", "s3cret = = x", "postgresql://x?s3cret=1"])
def test_what_names_no_database_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read") as refused:
        create_app(url)
    assert "s3cret" not in str(refused.value)
