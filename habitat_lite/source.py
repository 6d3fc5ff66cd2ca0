"""Where the pages get their answers: one pool, answers shared by all who ask the same within a second."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from absurd import AsyncAbsurd, ConnectionLost, queries
from absurd.queries import Query, overview

T = TypeVar("T")

#: seconds for which an answer serves everybody who asks the same
FRESH = 1.0
#: seconds after which no answer is fresh enough for anybody
LONGEST = 30.0
#: seconds after which a question is given up: no page may hold up the tasks
PATIENCE = 5.0
#: seconds to wait for a connection
_CONNECT = 3.0
_CONNECTIONS = 4


class TooSlow(Exception):
    """A question took longer than `PATIENCE`."""


class Source:
    """The database behind the pages. Opened at the first question, so that it works wherever the app is mounted."""

    def __init__(self, conninfo: str, *, read_only: bool) -> None:
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]] = AsyncConnectionPool(
            conninfo,
            open=False,
            min_size=0,
            max_size=_CONNECTIONS,
            timeout=_CONNECT,
            # nothing is prepared: behind a pooler, the next question may go to another server process
            kwargs={"autocommit": True, "application_name": "habitat", "prepare_threshold": None},
            name="habitat",
        )
        self.read_only = read_only
        self._opening = asyncio.Lock()
        self._answers: dict[str, tuple[float, asyncio.Future[Any]]] = {}
        #: questions put to the database so far
        self.asked = 0

    async def open(self) -> None:
        """Open the pool; nothing when it is."""
        async with self._opening:
            if self._pool.closed:
                await self._pool.open()

    async def close(self) -> None:
        """Close the pool."""
        await self._pool.close()

    async def ask(self, question: Query[T], fresh: float = FRESH) -> T:
        """The answer, at most `fresh` seconds old; with 0 it is kept for nobody else. Raises TooSlow, ConnectionLost, and what
        the question raises."""
        if not fresh:
            return await self._run(question)
        key = f"{question.sql}\0{sorted(question.params.items(), key=str)!r}"
        now = time.monotonic()
        known = self._answers.get(key)
        if known is not None and now - known[0] < (FRESH if _failed(known[1]) else fresh):
            return await asyncio.shield(known[1])
        for old in [each for each, (at, _) in self._answers.items() if now - at >= LONGEST]:
            del self._answers[old]
        asking = asyncio.ensure_future(self._run(question))
        asking.add_done_callback(_heard)
        self._answers[key] = (now, asking)
        return await asyncio.shield(asking)

    async def pulse(self) -> str:
        """Changes whenever something was committed."""
        return (await self.ask(overview.pulse())).mark

    def forget(self) -> None:
        """Something was changed: the next answers are new."""
        self._answers.clear()

    @contextlib.asynccontextmanager
    async def client(self, queue: str) -> AsyncIterator[AsyncAbsurd]:
        """A client for an action in a queue. TooSlow for one that is held up: it may not keep a connection from the pages."""
        await self.open()
        try:
            async with asyncio.timeout(PATIENCE):
                await self._pool.check()  # an action is not tried twice
                yield AsyncAbsurd(self._pool, queue)
        except TimeoutError:
            raise TooSlow(
                f"nothing came of it within {PATIENCE:g} s: perhaps a transaction elsewhere is open on it; try again"
            ) from None

    async def _run(self, question: Query[T]) -> T:
        await self.open()
        self.asked += 1
        try:
            return await self._once(question)
        except _Broken:  # as all of them are after a restart of the server: look at each, then ask again
            await self._pool.check()
        try:
            return await self._once(question)
        except _Broken as broken:
            raise ConnectionLost(f"the database cannot be asked: {broken}") from broken

    async def _once(self, question: Query[T]) -> T:
        try:
            async with self._pool.connection() as conn, asyncio.timeout(PATIENCE):
                try:
                    return await queries.run_async(conn, question)
                except (ConnectionLost, psycopg.OperationalError) as error:
                    if conn.closed:
                        raise _Broken(str(error).strip()) from error
                    raise
        except PoolTimeout as error:
            raise ConnectionLost(f"no connection to the database within {_CONNECT:g} s") from error
        except TimeoutError:
            raise TooSlow(f"the database did not answer within {PATIENCE:g} s") from None
        except psycopg.OperationalError as error:
            raise ConnectionLost(f"the database cannot be asked: {str(error).strip()}") from error


class _Broken(Exception):
    """The connection was not there any more."""


def _failed(asking: asyncio.Future[Any]) -> bool:
    return asking.done() and (asking.cancelled() or asking.exception() is not None)


def _heard(asking: asyncio.Future[Any]) -> None:
    if not asking.cancelled():
        asking.exception()  # whoever asked has been told
