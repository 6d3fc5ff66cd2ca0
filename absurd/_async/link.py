"""A worker's own connection: reconnects for ever, with backoff, and says so."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

import psycopg

from absurd._async import _compat
from absurd._async.session import connect, execute
from absurd._db.call import Call
from absurd.errors import ConnectionLost
from absurd.telemetry import logger, signal

T = TypeVar("T")
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0


class LinkClosed(Exception):
    """The worker stopped while the database was away."""


class Link:
    """One autocommit connection. `run` returns when the database has answered, however long that takes."""

    def __init__(self, conninfo: str, what: str, closed: _compat.Event) -> None:
        self._conninfo = conninfo
        self._what = what
        self._closed = closed
        self._conn: _compat.Connection | None = None
        self._up = True

    async def connection(self) -> _compat.Connection:
        """The connection, made anew when it is gone. Raises LinkClosed once the worker has given up."""
        pause = FIRST_PAUSE
        while self._conn is None or self._conn.closed:
            try:
                self._conn = await connect(self._conninfo)
            except ConnectionLost as error:
                self._lost(error)
                if await self._closed.wait(pause * (0.5 + random.random() / 2)):
                    raise LinkClosed(str(error)) from error
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            await self.prepared(self._conn)
            if not self._up:
                self._up = True
                logger.warning("database connection of the %s restored", self._what)
                signal("connection.restored", what=self._what)
        return self._conn

    async def prepared(self, conn: _compat.Connection) -> None:
        """Called with each new connection."""

    async def run(
        self, call: Call[T], *, prepare: bool | None = None, repeated: Callable[[], Call[T]] | None = None
    ) -> T:
        """Execute a repeatable call, on a new connection as often as the old one breaks.

        `repeated` makes the call to send when a reply was lost. Errors that are not about the connection are raised.
        """
        while True:
            conn = await self.connection()
            try:
                return await execute(conn, call, prepare=prepare)
            except psycopg.OperationalError as error:
                if not self.broken(error):
                    raise
                call = repeated() if repeated else call

    def broken(self, error: psycopg.OperationalError) -> bool:
        """Whether the connection is gone; notes it."""
        conn = self._conn
        if conn is not None and not conn.closed and not (error.sqlstate or "").startswith(("57P", "08")):
            return False
        self._lost(error)
        return True

    def _lost(self, error: BaseException) -> None:
        if self._up:
            self._up = False
            first = str(error).strip().partition("\n")[0]
            logger.warning("database connection of the %s lost (%s); reconnecting", self._what, first)
            signal("connection.lost", what=self._what, error=first)

    async def close(self) -> None:
        """Close it, if it is open."""
        if self._conn is not None:
            await self._conn.close()
