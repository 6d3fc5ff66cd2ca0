"""The session of a test client: one connection, a clock, and a place from which every commit of a run is seen."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any, Protocol, TypeVar

import psycopg

from absurd._async import _compat
from absurd._async.client import AsyncAbsurd
from absurd._async.session import Session, connect, conninfo_of
from absurd._async.watch import Watcher
from absurd._db.call import Call
from absurd.errors import ConfigError
from absurd.testing.clock import Clock
from absurd.testing.values import Boundary
from absurd.types import AbsurdHooks

T = TypeVar("T")

_VERB = re.compile(r"\babsurd\.(\w+)\(")
#: What a client's own calls commit, besides what a run writes.
_COMMITS = {
    "cancel_task": "cancel",
    "emit_events": "emit",
    "emit_one": "emit",
    "retry_task": "retry",
    "spawn_minted": "spawn",
    "spawn_tasks": "spawn",
}


class Witness(Protocol):
    """Hears of every commit of a run, before and after it, and may let the run die there."""

    async def before(self, kind: str, name: str) -> Boundary:
        """The commit is about to be sent."""
        ...

    async def after(self, boundary: Boundary, letter: str | None = None) -> None:
        """It is in the database; the handler has not heard of it. `letter`: how a fenced row was answered."""
        ...

    async def begin(self) -> None:
        """A transaction is about to begin."""
        ...

    async def about_to_commit(self, conn: _compat.Connection) -> Boundary:
        """The transaction of a step is about to commit."""
        ...

    async def rolled_back(self) -> None:
        """It was rolled back."""
        ...


class TestSession(Session):
    """One connection in autocommit, opened at the first call when a URL was given, and closed with the client."""

    __test__ = False  # not a test, whatever its name

    def __init__(self, source: _compat.Connection | str | None) -> None:
        super().__init__(source)
        if self._pool is not None:
            raise ConfigError("a test client runs on one connection: give it a URL or a connection, not a pool")
        if self._borrowed is not None and not self._borrowed.autocommit:
            raise ConfigError("a test client needs a connection in autocommit: psycopg.connect(url, autocommit=True)")
        self._ours = self._borrowed is None
        self._told: Any = None
        self.in_transaction = False
        """Whether a step's transaction is open: what is written now commits later, with more."""
        self.clock: Clock | None = None
        self.witness: Witness | None = None

    @property
    def borrowed(self) -> bool:
        """True: there is one connection, which nobody replaces."""
        return True

    @property
    def mints_ids(self) -> bool:
        """False: ids carry the time, which is the test's."""
        return False

    @contextlib.asynccontextmanager
    async def connection(self, patience: float | None = None) -> AsyncIterator[_compat.Connection]:
        """The connection, which knows what the clock shows."""
        if self._borrowed is None:
            async with self._opening:
                if self._borrowed is None:
                    assert self._url is not None
                    self._borrowed, self._told = await connect(conninfo_of(self._url)), None
        await self._tell_time(self._borrowed)
        yield self._borrowed

    async def run(self, call: Call[T], *, patience: float | None = None) -> T:
        """Execute a call; the witness hears of one that commits."""
        witness = self.witness
        found = None if witness is None or self.in_transaction else _VERB.search(call.sql)
        if witness is None or found is None or found[1] not in _COMMITS:
            return await super().run(call, patience=patience)
        boundary = await witness.before(_COMMITS[found[1]], "")
        answer = await super().run(call, patience=patience)
        await witness.after(boundary)
        return answer

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[_compat.Connection]:
        """A transaction; the witness hears of its beginning, and just before and after its commit."""
        inside, witness = self.in_transaction, self.witness
        if inside:  # a part of another one commits nothing
            witness = None
        if witness is not None:
            await witness.begin()
        try:
            async with super().transaction() as conn:
                self.in_transaction = True
                yield conn
                boundary = None if witness is None else await witness.about_to_commit(conn)
        except BaseException:
            self._told = None  # the clock's setting went with the transaction
            if witness is not None:
                await witness.rolled_back()
            raise
        finally:
            self.in_transaction = inside
        if witness is not None and boundary is not None:
            await witness.after(boundary)

    async def close(self) -> None:
        """Close the connection if it is ours."""
        if self._ours and self._borrowed is not None:
            conn, self._borrowed = self._borrowed, None
            await conn.close()

    def drop(self) -> None:
        """Close the connection if it is ours, without a word to the server: for where nobody can await."""
        if self._ours and self._borrowed is not None:
            self._borrowed.pgconn.finish()
            self._borrowed = None

    async def _tell_time(self, conn: _compat.Connection) -> None:
        now = None if self.clock is None else self.clock.now
        if now is None or now == self._told:
            return
        await conn.execute("select pg_catalog.set_config('absurd.fake_now', %s, false)", (now.isoformat(),))
        cursor = conn.cursor(row_factory=psycopg.rows.tuple_row)
        await cursor.execute("select absurd.current_time() = %s", (now,))
        if await cursor.fetchone() != (True,):
            raise ConfigError(
                "the schema of this database ignores the test clock: install it with "
                "`schema.install(conn, fake_clock=True)` or `absurdctl init --fake-clock`"
            )
        self._told = now


def client(
    source: _compat.Connection | str | None = None,
    queue_name: str | None = None,
    *,
    tasks_of: AsyncAbsurd | None = None,
    clock: Clock | None = None,
    hooks: AbsurdHooks | None = None,
) -> AsyncAbsurd:
    """A client on one connection, whose time and whose crashes are the test's."""
    session = TestSession(source)
    session.clock = clock
    if tasks_of is None:
        made = AsyncAbsurd("unused", queue_name or "default", hooks=hooks)
    else:
        if not isinstance(tasks_of, AsyncAbsurd):
            raise ConfigError(f"tasks_of must be an AsyncAbsurd, not {type(tasks_of).__name__}")
        made = object.__new__(AsyncAbsurd)
        made.__dict__.update(tasks_of.__dict__)
        made._worker, made._spawning = None, {}
        made._hooks = tasks_of._hooks if hooks is None else hooks
        made.queue_name = tasks_of.queue_name if queue_name is None else queue_name
    made._session = session
    made._watcher = Watcher(session)
    return made


def session_of(app: AsyncAbsurd) -> TestSession:
    """The session of a test client; ConfigError for any other client."""
    session = app._session
    if not isinstance(session, TestSession):
        raise ConfigError(
            "this needs a test client: absurd.testing.client(url), with `tasks_of=app` for the tasks of `app`"
        )
    return session
