"""Waiting for a task's end from outside a task: told by NOTIFY where possible, by patient polling otherwise."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable

import psycopg

from absurd._async import _compat
from absurd._async.session import Session, connect, execute, raise_mapped
from absurd._db import procedures
from absurd.errors import ConnectionLost, TimeoutError
from absurd.telemetry import logger
from absurd.types import TaskResultSnapshot

LISTENERS = 4
FIRST_POLL, LONGEST_POLL = 0.05, 1.0
FALLBACK_POLL = 5.0

#: Takes the seconds it may wait for a connection (None: as long as the pool does).
Look = Callable[..., Awaitable[TaskResultSnapshot]]


class Watcher:
    """At most four waits of a client listen at a time, each on a connection of its own; the others poll."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._permits = _compat.Semaphore(LISTENERS)
        self._deaf = session.borrowed

    async def wait(self, queue: str, task_id: uuid.UUID, timeout: float | None, look: Look) -> TaskResultSnapshot:
        """The snapshot of the ended task; TimeoutError after `timeout` seconds.

        The first look needs the database; when it goes away later, the wait goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        snapshot = await look()
        if snapshot.finished:
            return snapshot
        if not self._deaf and await _compat.try_acquire(self._permits):
            try:
                listened = await self._listen(queue, task_id, deadline, look)
                if listened is not None:
                    return listened
            except (ConnectionLost, psycopg.OperationalError) as error:
                logger.warning("waiting for task %s: lost the connection that listens (%s); polling", task_id, error)
            except psycopg.Error as error:
                raise_mapped(error)
            finally:
                self._permits.release()
        return await self._poll(task_id, deadline, look)

    async def _poll(self, task_id: uuid.UUID, deadline: float | None, look: Look) -> TaskResultSnapshot:
        pause = FIRST_POLL
        while True:
            try:
                snapshot = await look(LONGEST_POLL)
                if snapshot.finished:
                    return snapshot
            except ConnectionLost:
                if self._session.borrowed:
                    raise  # nobody will bring that one back
            await _compat.sleep(min(pause, _left(task_id, deadline)))
            pause = min(pause * 2, LONGEST_POLL)

    async def _listen(
        self, queue: str, task_id: uuid.UUID, deadline: float | None, look: Look
    ) -> TaskResultSnapshot | None:
        """The snapshot; None behind a pooler, where no notification comes through."""
        conn = await connect(self._session.conninfo())
        waker = _compat.Waker()
        try:
            if conn.pooled:
                self._deaf = True
                return None
            channel = f"absurd_{uuid.uuid4().hex[:16]}"
            await conn.execute(f'listen "{channel}"')
            while True:
                state = await execute(conn, procedures.watch_task(queue, task_id, channel))
                snapshot = await look()
                if snapshot.finished:
                    return snapshot
                pause = FIRST_POLL if state == "locked" else FALLBACK_POLL
                await waker.wait_for(conn.fileno(), min(pause, _left(task_id, deadline)))
                conn.pgconn.consume_input()
                while conn.pgconn.notifies() is not None:
                    pass
        finally:
            waker.close()
            await conn.close()


def _left(task_id: uuid.UUID, deadline: float | None) -> float:
    if deadline is None:
        return FALLBACK_POLL
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(f'Timed out waiting for task "{task_id}"')
    return left
