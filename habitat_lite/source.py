"""Where the pages get their answers: a few connections, answers shared by all who ask the same within a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import psycopg

from absurd import AsyncAbsurd, ConnectionLost, queries
from absurd.queries import Query, overview
from habitat_lite.connections import Broken, Connection, Connections, Unreached

T = TypeVar("T")

#: seconds for which an answer serves everybody who asks the same
FRESH = 1.0
#: seconds after which a question is given up, from its wait for a connection on: no page may hold up the tasks
PATIENCE = 5.0
_CONNECTIONS = 4


class TooSlow(Exception):
    """A question took longer than `PATIENCE`."""


class Source:
    """The database behind the pages. Nothing is opened before the first question, wherever the app is mounted."""

    def __init__(self, conninfo: str, *, read_only: bool) -> None:
        self._connections = Connections(conninfo, _CONNECTIONS)
        self.read_only = read_only
        # until when it may serve, when it was asked, what came of it
        self._answers: dict[str, tuple[float, float, asyncio.Future[Any]]] = {}
        #: questions put to the database so far
        self.asked = 0

    async def close(self) -> None:
        """Close the connections."""
        await self._connections.close()

    async def ask(self, question: Query[T], fresh: float = FRESH) -> T:
        """The answer, at most `fresh` seconds old; with 0 it is kept for nobody else. Raises TooSlow, ConnectionLost, and what
        the question raises."""
        if not fresh:
            return await self._run(question)
        key = f"{question.sql}\0{sorted(question.params.items(), key=str)!r}"
        now = time.monotonic()
        known = self._answers.get(key)
        if known is not None and now - known[1] < (FRESH if _failed(known[2]) else fresh):
            return await asyncio.shield(known[2])
        for old in [each for each, (until, _, _) in self._answers.items() if until <= now]:
            del self._answers[old]
        asking = asyncio.ensure_future(self._run(question))
        asking.add_done_callback(_heard)
        self._answers[key] = (now + fresh, now, asking)
        return await asyncio.shield(asking)

    async def pulse(self) -> str:
        """Changes whenever something was committed."""
        return (await self.ask(overview.pulse())).mark

    def forget(self) -> None:
        """Something was changed: the next answers are new."""
        self._answers.clear()

    async def act(self, queue: str, action: Callable[[AsyncAbsurd], Awaitable[T]]) -> T:
        """What an action gives, which gets a client of a queue. It is tried once. TooSlow for one that is held up: it may not
        keep a connection from the pages; ConnectionLost."""

        async def with_client(conn: Connection) -> T:
            return await action(AsyncAbsurd(conn, queue))

        try:
            return await self._asked(with_client, PATIENCE, checked=True)
        except Broken as broken:
            raise ConnectionLost(f"the database cannot be asked: {_first_line(broken)}") from broken
        except TimeoutError:
            raise TooSlow(
                f"it was not done within {PATIENCE:g} s, or nobody could say so: perhaps a transaction elsewhere is open "
                "on it; look before you try again"
            ) from None

    async def _run(self, question: Query[T]) -> T:
        self.asked += 1
        until = time.monotonic() + PATIENCE
        for last in range(_CONNECTIONS, -1, -1):
            try:
                return await self._asked(lambda conn: queries.run_async(conn, question), until - time.monotonic())
            except Broken as broken:  # as all of them are after a restart of the server: another one, at last a new one
                if not last:
                    raise ConnectionLost(f"the database cannot be asked: {_first_line(broken)}") from broken
            except TimeoutError:
                raise TooSlow(f"the database did not answer within {PATIENCE:g} s") from None
        raise AssertionError

    async def _asked(self, job: Callable[[Connection], Awaitable[T]], seconds: float, *, checked: bool = False) -> T:
        try:
            return await self._connections.run(job, max(seconds, 0.0), checked=checked)
        except Unreached:
            raise ConnectionLost(f"no connection to the database within {PATIENCE:g} s") from None
        except psycopg.errors.QueryCanceled:
            raise TooSlow("the database gave up, as it was told to by its statement_timeout") from None
        except psycopg.OperationalError as error:
            raise ConnectionLost(f"the database cannot be asked: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].removeprefix("connection failed: ")


def _failed(asking: asyncio.Future[Any]) -> bool:
    return asking.done() and (asking.cancelled() or asking.exception() is not None)


def _heard(asking: asyncio.Future[Any]) -> None:
    if not asking.cancelled():
        asking.exception()  # whoever asked has been told
