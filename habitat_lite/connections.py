"""A few connections, lent for a moment each, and taken back by force: no silent network holds up who asks, or keeps one.

A pool that waits for a connection to answer before it gives it up waits for as long as the network is silent. Here a job has
so many seconds in all, from its wait for a connection on. What it has not done by then it will not do: whoever waits is told
at once, the server is asked to stop, and if that is not heard the connection is shut. It is thrown away in any case.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool

from absurd import ConfigError

T = TypeVar("T")
Connection = psycopg.AsyncConnection[Any]
Job = Callable[[Connection], Awaitable[T]]

#: seconds for the server to stop what it was asked to, before the connection is shut
GRACE = 1.0
#: seconds after which a connection that nobody uses is closed
IDLE = 60.0
#: of connections over TCP, where nothing else is said: the kernel gives up a peer that is silent, too
_KEEPALIVE = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "connect_timeout": 5,
}


class Broken(Exception):
    """A connection that had served before was not there any more. Nothing is known of what it was given to do."""


class Unreached(TimeoutError):
    """There was no connection in time: all were in use, or nobody let us in."""


class _Lent:
    """What a job has got so far, and whether it may still bring it back."""

    conn: Connection | None = None
    late = False


class Connections:
    """At most `most` connections to one database, opened when somebody needs one. ConfigError for what names no database."""

    def __init__(self, conninfo: str, most: int) -> None:
        try:
            said = conninfo_to_dict(conninfo)
        except psycopg.ProgrammingError:  # it may quote a password
            raise ConfigError("the database URL cannot be read", hint="postgresql://USER@HOST:PORT/DATABASE") from None
        if "PGCONNECT_TIMEOUT" in os.environ:
            said["connect_timeout"] = None
        # nothing is prepared: behind a pooler, the next question may go to another server process
        self._options: dict[str, Any] = {"autocommit": True, "application_name": "habitat", "prepare_threshold": None}
        self._options |= {key: value for key, value in _KEEPALIVE.items() if key not in said}
        self._conninfo = conninfo
        self._slots = asyncio.Semaphore(most)
        self._idle: list[tuple[float, Connection]] = []
        self._lent: set[_Lent] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sweep: asyncio.TimerHandle | None = None

    async def run(self, job: Job[T], seconds: float, *, checked: bool = False) -> T:
        """What the job gives, which gets a connection in autocommit for itself. `checked`: one that has answered just now.

        After so many seconds TimeoutError, which is Unreached where there was no connection; psycopg.OperationalError where
        there can be none; Broken for one that was lost. Whoever waits here may leave: the job comes to its end all the same.
        """
        return await asyncio.shield(self._start(self._within(seconds, job, checked)))

    async def close(self) -> None:
        """Close every connection, also under who uses it. One that is needed later is opened anew."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for lent in self._lent:
            if lent.conn is not None:
                _shut(lent.conn)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=GRACE)
        await self._drop_idle()

    def _start(self, job: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_heard)
        return task

    async def _within(self, seconds: float, job: Job[T], checked: bool) -> T:
        lent, began = _Lent(), time.monotonic()
        task = self._start(self._lend(lent, job, checked))
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            lent.late = True
            self._start(self._give_up(task, lent, began))
            raise TimeoutError if lent.conn is not None else Unreached
        return task.result()

    async def _lend(self, lent: _Lent, job: Job[T], checked: bool) -> T:
        async with self._slots:
            self._lent.add(lent)
            try:
                known = await self._open(lent, checked)
                assert lent.conn is not None
                try:
                    return await job(lent.conn)
                except Exception as error:
                    if known and lent.conn.closed:
                        raise Broken(str(error).strip()) from error
                    raise
            finally:
                self._lent.discard(lent)
                if lent.conn is not None:
                    await self._take_back(lent, lent.conn)

    async def _open(self, lent: _Lent, checked: bool) -> bool:
        """Give it a connection; whether that one is lent without a look at whether it still leads anywhere."""
        while self._idle:
            _, lent.conn = self._idle.pop()
            if not checked:
                return True
            try:
                await AsyncConnectionPool.check_connection(lent.conn)
            except psycopg.OperationalError:
                await lent.conn.close()
                if lent.late:
                    raise
                lent.conn = None
            else:
                return False
        lent.conn = await psycopg.AsyncConnection.connect(self._conninfo, **self._options)
        return False

    async def _take_back(self, lent: _Lent, conn: Connection) -> None:
        """For the next one, if it is as good as new."""
        # a request to stop may still be on its way, and must not stop what another one asks
        if lent.late or conn.closed or conn.pgconn.transaction_status != TransactionStatus.IDLE:
            await conn.close()
            return
        self._idle.append((time.monotonic(), conn))
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(IDLE, self._sweep_up)

    def _sweep_up(self) -> None:
        self._sweep = asyncio.get_running_loop().call_later(IDLE, self._sweep_up) if self._idle else None
        self._start(self._drop_idle(time.monotonic() - IDLE))

    async def _drop_idle(self, since: float = math.inf) -> None:
        """Close those that nobody has used since then."""
        for each in [each for each in self._idle if each[0] <= since]:
            self._idle.remove(each)
            await each[1].close()

    async def _give_up(self, task: asyncio.Task[Any], lent: _Lent, began: float) -> None:
        conn = lent.conn
        if conn is None:  # it waits for its turn, or for the server to let it in
            task.cancel()
            return
        with contextlib.suppress(psycopg.Error, OSError):
            await conn.cancel_safe(timeout=GRACE)
            await asyncio.wait({task}, timeout=GRACE)
        if not task.done():
            _shut(conn)
            await self._drop_idle(began)  # those of before lead into the same silence


def _shut(conn: Connection) -> None:
    """End a connection under who waits for it: to the waiter it looks as if the server had hung up."""
    with contextlib.suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(conn.pgconn.socket)) as end:
        end.shutdown(socket.SHUT_RDWR)


def _heard(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # whoever asked has been told
