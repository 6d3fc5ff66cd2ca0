"""Running call values: on a pool of our own, or on a connection the caller lent."""

from __future__ import annotations

import contextlib
import os
import uuid
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn, TypeVar

import psycopg
import psycopg.types.json
import uuid_utils.compat
from psycopg.rows import tuple_row

from absurd import embedded
from absurd._async import _compat
from absurd._core import codec
from absurd._db import packing
from absurd._db.call import Call
from absurd.errors import ConfigError, ConnectionLost, from_sqlstate
from absurd.telemetry import logger

T = TypeVar("T")

#: 45 of the 46 random bits: the ids of a batch count up, and never carry over
_RANDOM_BITS = ((1 << 45) - 1) << 16

POOL_SIZE = 10
BEGIN_TRIES = 5

#: What there is to know of a new connection: whose backend answers, and how its transactions begin.
_GREETING = "select pg_catalog.pg_backend_pid(), pg_catalog.current_setting('default_transaction_isolation')"
#: The engine is written for READ COMMITTED; a database or role may default to more.
_READ_COMMITTED = "set default_transaction_isolation = 'read committed'"


def default_url() -> str:
    """`ABSURD_DATABASE_URL`, else `PGDATABASE`, else `postgresql://localhost/absurd`."""
    return os.environ.get("ABSURD_DATABASE_URL") or os.environ.get("PGDATABASE") or "postgresql://localhost/absurd"


def conninfo_of(url: str) -> str:
    """A libpq connection string: a URL or `key=value` list as it is, a bare word as a database name, `embedded:` started."""
    if embedded.is_embedded_url(url):
        return embedded.resolve(url)
    if not _legible(url):
        raise ConfigError(
            "the database URL cannot be read (it is not shown, since it may hold a password)",
            hint="postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with %-escapes for @ : / ? # % in user and password",
        )
    if "=" in url or "://" in url:
        return url
    return psycopg.conninfo.make_conninfo(dbname=url)


def _legible(url: str) -> bool:
    """Whether libpq takes it for what it was meant to be: its own complaints quote the text, password and all."""
    if "=" not in url and "://" not in url:
        return not set(url) & set(":/@")
    try:
        parts = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return False
    # an unescaped : / or @ in the password ends up in the port or in the host
    return str(parts.get("port") or "0").replace(",", "").isdigit() and "@" not in str(parts.get("host") or "")


def mint_task_ids(count: int) -> list[uuid.UUID]:
    """Version 7 ids (RFC 9562) whose tag and attempt bits are zero; those of one batch count up from a random start."""
    fresh = uuid_utils.compat.uuid7().int
    first = (fresh >> 80 << 80) | (0x7 << 76) | (0x2 << 62) | (fresh & _RANDOM_BITS)
    return [uuid.UUID(int=first + (number << 16)) for number in range(count)]


def adapt(context: Any) -> None:
    """Our values on a connection or cursor: packed arrays out, JSON through the codec in."""
    packing.register(context)
    psycopg.types.json.set_json_loads(codec.decode, context)


class OwnConnection(psycopg.AsyncConnection[Any]):
    """A connection that we opened and that knows our values; those of others are told with every call."""

    #: a pooler stands between: no backend is ours for long, and neither are LISTEN, settings and prepared statements
    pooled = False
    _cursors: dict[Any, _compat.Cursor]

    def cursor_for(self, loads: Callable[[str | bytes], Any]) -> _compat.Cursor:
        """One cursor for all calls that read JSON by `loads`, of whoever has this connection alone; it keeps our types whatever
        becomes of the connection's."""
        try:
            return self._cursors[loads]
        except KeyError:
            cursor = self._cursors[loads] = self.cursor(row_factory=tuple_row)
            adapt(cursor)
            psycopg.types.json.set_json_loads(loads, cursor)
            return cursor


def raise_mapped(error: psycopg.Error) -> NoReturn:
    """Raise what a driver's error means in our tree, or the error itself when it is none of ours."""
    mapped = from_sqlstate(error)
    if mapped is error:
        raise error
    raise mapped from error


class Session:
    """Where a client's calls run.

    On a URL: a pool of autocommit connections, opened at the first call; a call whose connection broke is repeated once
    when its procedure allows it. On a borrowed connection: in the caller's transaction, never committed, never repeated.
    A forked child makes a pool of its own.
    """

    def __init__(self, source: _compat.Connection | _compat.Pool | str | None, *, pool_size: int = POOL_SIZE) -> None:
        self._borrowed: _compat.Connection | None = None
        self._pool: _compat.Pool | None = None
        self._own_pool = False
        self._opened = False
        self._url: str | None = None
        self._pool_size = pool_size
        self._opening = _compat.Lock()
        if source is None or isinstance(source, str):
            self._url = source or default_url()
        elif isinstance(source, psycopg.AsyncConnection):
            self._borrowed = source
        elif _compat.is_pool(source):
            self._pool = source
            self._opened = True
        else:
            raise ConfigError(
                f"{type(source).__name__} is no URL, and no psycopg connection or pool of this client's kind: "
                "Absurd takes plain ones, AsyncAbsurd those for asyncio"
            )

    @property
    def borrowed(self) -> bool:
        """Whether calls join the transaction of a connection the caller owns."""
        return self._borrowed is not None

    @property
    def mints_ids(self) -> bool:
        """Whether spawns carry ids minted here, so that they can be repeated. Not on borrowed connections, where the test
        clock may be set and nothing is repeated."""
        return self._borrowed is None and "fake_now" not in (self._url or "fake_now")

    def conninfo(self) -> str:
        """The connection string for further connections of the same kind (a worker's own)."""
        if self._url is not None:
            return conninfo_of(self._url)
        if self._borrowed is not None:
            info = self._borrowed.info
            return psycopg.conninfo.make_conninfo(info.dsn, **({"password": info.password} if info.password else {}))
        assert self._pool is not None
        if not isinstance(self._pool.conninfo, str):
            raise ConnectionLost("this pool makes its connection string at run time: give the worker's client a URL")
        return self._pool.conninfo

    @contextlib.asynccontextmanager
    async def connection(self, patience: float | None = None) -> AsyncIterator[_compat.Connection]:
        """The borrowed connection, or one of the pool for as long as the block lasts.

        `patience`: seconds to wait for one of the pool, default the pool's own.
        """
        if self._borrowed is not None:
            yield self._borrowed
            return
        pool = await self._open()
        if not self._own_pool:
            async with pool.connection(patience) as conn:
                yield conn
            return
        conn = await pool.getconn(patience)  # in autocommit: there is nothing to commit or roll back at the end
        try:
            yield conn
        finally:
            await pool.putconn(conn)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[_compat.Connection]:
        """A transaction for as long as the block lasts, begun on a connection that answers; on a borrowed one a part of the
        caller's. Connections of the pool that a restart of the server broke are replaced before the block begins."""
        tries_left, entered = BEGIN_TRIES, False
        while True:
            tries_left -= 1
            async with self.connection() as conn:
                try:
                    async with conn.transaction():
                        entered = True
                        yield conn
                    return
                except psycopg.OperationalError as error:
                    if entered:
                        raise
                    if self.borrowed or not tries_left:
                        raise_mapped(error)
                    await conn.close()  # it may look alive until the end of its stream has been read
            await self._drop_broken()

    async def run(self, call: Call[T], *, patience: float | None = None) -> T:
        """Execute a call; errors of the server come out as the classes of `absurd.errors`."""
        try:
            if self._own_pool and self._pool is not None:  # as `connection` does, without its generators: the usual way
                pool = self._pool
                conn = await pool.getconn(patience)
                try:
                    return await execute(conn, call)
                finally:
                    await pool.putconn(conn)
            async with self.connection(patience) as conn:
                return await execute(conn, call, shared=self.borrowed)
        except psycopg.OperationalError as error:
            if self.borrowed or error.sqlstate in ("40P01", "57014"):
                raise_mapped(error)
            await self._drop_broken()
            if not call.repeatable:
                raise_mapped(error)
        except psycopg.Error as error:
            raise_mapped(error)
        try:  # the connection broke: once more on another
            async with self.connection(patience) as conn:
                return await execute(conn, call)
        except psycopg.Error as error:
            raise_mapped(error)

    async def close(self) -> None:
        """Close the pool if it is ours; a borrowed connection or pool is left alone."""
        if self._own_pool and self._pool is not None:
            pool, self._pool, self._own_pool, self._opened = self._pool, None, False, False
            await pool.close()

    async def make_room(self, connections: int) -> None:
        """Let our own pool grow to so many connections; a borrowed pool is its owner's business."""
        if connections > self._pool_size:
            self._pool_size = connections
            if self._own_pool and self._pool is not None:
                await self._pool.resize(1, connections)

    def leave_to_parent(self) -> None:
        """In a forked child: forget the pool, whose sockets are the parent's, without a word on them."""
        _inherited.append(self._pool)
        self._pool, self._own_pool, self._opened = None, False, False
        self._opening = _compat.Lock()  # somebody in the parent may have held it

    async def _drop_broken(self) -> None:
        """A restart of the server breaks every connection of the pool: the repeat must not meet the next one."""
        if self._pool is not None:
            with contextlib.suppress(psycopg.Error):
                await self._pool.check()

    async def _open(self) -> _compat.Pool:
        if not self._opened:
            async with self._opening:
                if not self._opened:
                    assert self._url is not None
                    conninfo = conninfo_of(self._url)
                    await (await connect(conninfo)).close()  # a wrong URL says so at once, not after the pool's timeout
                    pool = _compat.Pool(
                        conninfo,
                        open=False,
                        min_size=1,
                        max_size=self._pool_size,
                        connection_class=OwnConnection,
                        kwargs={"autocommit": True, "application_name": "absurd"},
                        configure=_configure,
                        name="absurd",
                    )
                    # else the first caller makes it grow, and two connections take turns, each of them cold
                    try:
                        await pool.open(wait=True)
                    except BaseException:
                        await pool.close()
                        raise
                    self._pool, self._own_pool, self._opened = pool, True, True
                    _pooled.add(self)
        assert self._pool is not None
        return self._pool


#: Sessions with a pool of their own, and in a forked child the parent's pools: those must not even be collected.
_pooled: weakref.WeakSet[Session] = weakref.WeakSet()
_inherited: list[_compat.Pool | None] = []


def _after_fork() -> None:
    for session in list(_pooled):
        session.leave_to_parent()
    _pooled.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


async def _configure(conn: _compat.Connection) -> None:
    assert isinstance(conn, OwnConnection)
    adapt(conn)
    conn._cursors = {}
    conn.cursor_for(codec.decode)
    conn.pooled, isolation = await _greet(conn)
    if conn.pooled:
        conn.prepare_threshold = None
        _tell_of_pooler(conn)
    if isolation != "read committed":
        if conn.pooled:
            raise ConfigError(
                f"transactions begin as {isolation.upper()} here, and behind a connection pooler a client cannot change that",
                hint="alter role ... set default_transaction_isolation = 'read committed', or connect to Postgres itself",
            )
        await conn.execute(_READ_COMMITTED, prepare=False)


async def _greet(conn: _compat.Connection) -> tuple[bool, str]:
    """Whether a pooler stands between, and the isolation level that transactions begin with."""
    cursor = conn.cursor(row_factory=tuple_row)
    await cursor.execute(_GREETING, prepare=False)
    row = await cursor.fetchone()
    assert row is not None
    return row[0] != conn.info.backend_pid, row[1]  # a pooler makes up the number it greets its clients with


#: Addresses and whether a pooler answers there, for connections of others: asked once an address, not once a connection.
_poolers: dict[tuple[str, int, str], bool] = {}
_told_of: set[tuple[str, int]] = set()


async def _lent_by_pooler(conn: _compat.Connection) -> bool:
    """Whether somebody else's connection leads to a pooler."""
    address = conn.info.host, conn.info.port, conn.info.dbname
    if address not in _poolers:
        _poolers[address] = (await _greet(conn))[0]
        if _poolers[address]:
            _tell_of_pooler(conn)
    return _poolers[address]


def _tell_of_pooler(conn: _compat.Connection) -> None:
    """Once an address."""
    address = conn.info.host, conn.info.port
    if address not in _told_of:
        _told_of.add(address)
        logger.warning(
            "a connection pooler answers at %s:%s: statements are not prepared, and notifications cannot come through, so"
            " workers look for tasks every poll_interval and waits for results look every second."
            " Let workers connect to Postgres itself",
            *address,
        )


async def connect(conninfo: str) -> OwnConnection:
    """An autocommit connection of our own, at READ COMMITTED; ConnectionLost when the server cannot be reached."""
    try:
        named = (
            conninfo
            if "application_name" in conninfo
            else psycopg.conninfo.make_conninfo(conninfo, application_name="absurd")
        )
        conn = await OwnConnection.connect(named, autocommit=True)
        try:
            await _configure(conn)
        except BaseException:
            await conn.close()
            raise
    except psycopg.OperationalError as error:
        raise ConnectionLost(f"cannot connect to the database: {str(error).strip()}") from error
    return conn


async def execute(
    conn: _compat.Connection,
    call: Call[T],
    *,
    prepare: bool | None = None,
    loads: Callable[[str | bytes], Any] = codec.decode,
    shared: bool = False,
) -> T:
    """Execute a call on a connection, whatever its owner configured for rows and JSON. `loads`: instead of the codec.
    `shared`: others may use the connection at the same time."""
    if isinstance(conn, OwnConnection) and not shared:
        cursor = conn.cursor_for(loads)
    else:
        if prepare is None and await _lent_by_pooler(conn):
            prepare = False
        cursor = conn.cursor(row_factory=tuple_row)
        adapt(cursor)
        psycopg.types.json.set_json_loads(loads, cursor)
    await cursor.execute(call.sql, call.params, prepare=prepare)  # type: ignore[arg-type, unused-ignore]
    return call.read(await cursor.fetchall())
