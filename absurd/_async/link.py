"""A worker's own connection: reconnects for ever, with backoff, and says so."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg

from absurd._async import _compat
from absurd._async.session import OwnConnection, connect, execute
from absurd._core import codec
from absurd._db.call import Call
from absurd.errors import ConnectionLost
from absurd.telemetry import logger, signal

T = TypeVar("T")
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0
TELL_EVERY = 10.0

#: A server that vanished without a word must be noticed in less than a minute; what the user's string says wins.
WATCHFUL = {
    "connect_timeout": 10,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30000,
}

#: the server goes down, comes up, or (25006) has become a standby: another connection may find a better one
_READ_ONLY = "25006"
_GONE = ("57P", "08", _READ_ONLY)


class LinkClosed(Exception):
    """The worker stopped while the database was away."""


class LostAgain(ConnectionLost):
    """A call broke one connection after the other, while making new ones succeeds."""

    default_hint = (
        "the server's log says why: a value too large for its memory, a crash, or something that ends connections"
    )


class Link:
    """One autocommit connection. `run` returns when the database has answered, however long that takes."""

    def __init__(self, conninfo: str, what: str, closed: _compat.Event) -> None:
        self._conninfo = watchful(conninfo)
        self._what = what
        self._closed = closed
        self._conn: OwnConnection | None = None
        self._up = True
        self._ended = False
        self._failures = 0
        self._told = 0.0

    async def rest(self, seconds: float) -> None:
        """Pause. Raises LinkClosed once the worker has given up."""
        if await self._closed.wait(seconds) or self._ended:
            raise LinkClosed(f"the worker gave up the connection of the {self._what}")

    async def connection(self) -> _compat.Connection:
        """The connection, made anew when it is gone. Raises LinkClosed once the worker has given up."""
        while self._conn is None or self._conn.closed:
            await self.rest(self._pause())
            try:
                conn = await connect(self._conninfo)
                try:
                    await self.prepared(conn)
                except BaseException:
                    await conn.close()
                    raise
            except (ConnectionLost, psycopg.OperationalError) as error:
                self._lost(error)
                continue
            self._conn = conn
        return self._conn

    @property
    def pooled(self) -> bool:
        """Whether a pooler stands between, as of the last connection."""
        return self._conn is not None and self._conn.pooled

    async def prepared(self, conn: OwnConnection) -> None:
        """Called with each new connection."""

    async def run(
        self,
        call: Call[T],
        *,
        prepare: bool | None = None,
        repeated: Callable[[], Call[T]] | None = None,
        loads: Callable[[str | bytes], Any] = codec.decode,
        losses: int | None = None,
    ) -> T:
        """Execute a repeatable call, on a new connection as often as the old one breaks.

        `repeated` makes the call to send when a reply was lost. Errors that are not about the connection are raised;
        LostAgain when `losses` connections have broken under the call, and yet another could be made: no mere outage.
        """
        lost = 0
        while True:
            conn = await self.connection()
            try:
                answer = await execute(conn, call, prepare=prepare, loads=loads)
            except psycopg.Error as error:
                if not await self.broken(error):
                    raise
                lost += error.sqlstate != _READ_ONLY
                if losses is not None and lost >= losses:
                    await self.connection()
                    raise LostAgain(f"the connection broke {lost} times under this write: {_first(error)}") from error
                call = repeated() if repeated else call
            else:
                self._answered()
                return answer

    async def broken(self, error: psycopg.Error) -> bool:
        """Whether the connection is gone, or no good any more; notes it."""
        conn = self._conn
        if conn is not None and not conn.closed and not (error.sqlstate or "").startswith(_GONE):
            return False
        if conn is not None:
            await conn.close()
        self._lost(error)
        return True

    def _pause(self) -> float:
        """Seconds before the next attempt: none after the first failure, then doubling; a server that accepts connections
        and answers nothing counts as failing."""
        if self._failures < 2:
            return 0.0
        longest = min(FIRST_PAUSE * 2.0 ** min(self._failures - 2, 16), LONGEST_PAUSE)
        return longest * (0.5 + random.random() / 2)

    def _answered(self) -> None:
        self._failures = 0
        if not self._up:
            self._up = True
            logger.warning("database connection of the %s restored", self._what)
            signal("connection.restored", what=self._what)

    def _lost(self, error: BaseException) -> None:
        self._failures += 1
        if self._up or time.monotonic() - self._told >= TELL_EVERY:
            self._told = time.monotonic()
            logger.warning("database connection of the %s lost (%s); reconnecting", self._what, _first(error))
        if self._up:
            self._up = False
            signal("connection.lost", what=self._what, error=_first(error))

    async def close(self) -> None:
        """Close it, if it is open; whoever still uses it gets LinkClosed."""
        self._ended = True
        if self._conn is not None:
            await self._conn.close()


def _first(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def watchful(conninfo: str) -> str:
    """The connection string with WATCHFUL's defaults where it says nothing itself."""
    given = psycopg.conninfo.conninfo_to_dict(conninfo)
    return psycopg.conninfo.make_conninfo(
        conninfo, **{key: value for key, value in WATCHFUL.items() if key not in given}
    )
