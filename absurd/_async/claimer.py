"""The claimer: keeps the slots fed, and sleeps without missing a wake-up.

It claims on the connection it listens on. Having found nothing, it registers as idle, commits, and claims again until every
transaction that might have looked for idle workers before that commit has ended (sql/src/35_wake.sql); only then it sleeps:
until something is due, a producer notifies it, a run of its own worker is suspended, or the fallback poll.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Sequence

import psycopg

from absurd._async import _compat
from absurd._async.link import Link
from absurd._db import procedures
from absurd._db.call import Call
from absurd._db.procedures import Claim, Claimed
from absurd.errors import from_sqlstate
from absurd.telemetry import logger, signal

#: pauses between claims while some transaction may not have seen us idle yet; then the last one again
SETTLING = (0.005, 0.02, 0.08, 0.32, 1.0)
IDLE_POLL = 5.0
IDLE_ROW_AGE = 1200.0
RESOLVE_EVERY = 30.0


class ClaimLink(Link):
    """The claimer's connection: listens on the worker's channel."""

    channel = ""
    fresh = True

    async def prepared(self, conn: _compat.Connection) -> None:
        await conn.execute(f'listen "{self.channel}"')
        self.fresh = True


class Claimer:
    """Feeds `ready` from one or more queues until `stopping` is set."""

    def __init__(
        self,
        link: ClaimLink,
        ready: _compat.Ready[Claim],
        stopping: _compat.Event,
        *,
        worker_id: str,
        queues: dict[str, int],
        names: Callable[[str], list[str]],
        lease: float,
        batch_size: int,
        poll_interval: float,
        register: Callable[[Sequence[Claim]], None],
    ) -> None:
        self._link = link
        self._ready = ready
        self._stopping = stopping
        self._worker_id = worker_id
        self._queues = queues
        self._names = names
        self._lease = lease
        self._batch_size = batch_size
        self._longest = max(IDLE_POLL, poll_interval)
        self._resolved = time.monotonic()
        self._register = register
        self._turn = 0
        self._token = random.getrandbits(62)
        self.waker = _compat.Waker()
        link.channel = f"absurd_{uuid.uuid4().hex[:16]}"

    async def run(self) -> None:
        """Until stopping, or the ready buffer is closed; an error of the database is told and tried again."""
        while not self._stopping.is_set():
            room = min(await self._ready.room(), self._batch_size)
            if room <= 0:
                break
            try:
                claims, _ = await self._claim_all(room)
                if claims:
                    await self._ready.put_many(claims)
                else:
                    await self._idle(room)
            except psycopg.Error as error:
                logger.error("claiming failed: %s; trying again in %s s", from_sqlstate(error), IDLE_POLL)
                await self._stopping.wait(IDLE_POLL)
        await self._forget()

    async def _claim_all(self, room: int) -> tuple[list[Claim], Claimed | None]:
        """Claim from every queue in turn; also the answer that says longest how to wait, when there is nothing."""
        claims: list[Claim] = []
        nothing: Claimed | None = None
        names = list(self._queues)
        self._turn += 1
        for offset in range(len(names)):
            if len(claims) >= room:
                break
            queue = names[(self._turn + offset) % len(names)]
            answer = await self._claim(queue, room - len(claims))
            claims += answer.claims
            if not answer.claims:
                nothing = answer if nothing is None else _sooner(nothing, answer)
        return claims, nothing

    async def _claim(self, queue: str, room: int) -> Claimed:
        self._token += 1
        token = self._token

        def call(repeat: bool = False) -> Call[Claimed]:
            return procedures.claim_tasks(
                self._queues[queue], queue, self._worker_id, self._lease, room, self._names(queue), token, repeat
            )

        answer = await self._link.run(call(), prepare=True, repeated=lambda: call(True))
        if answer.claims:
            self._register(answer.claims)
            signal("task.claimed", worker_id=self._worker_id, queue=queue, count=len(answer.claims))
        return answer

    async def _idle(self, room: int) -> None:
        """Nothing was due: sleep without missing a wake-up. Returns when there is, or may be, work."""
        await self._resolve_queues()
        registered = -IDLE_ROW_AGE
        horizon: int | None = None
        settling = 0
        while not self._stopping.is_set():
            if self._link.fresh or time.monotonic() - registered >= IDLE_ROW_AGE:
                await self._link.connection()
                self._link.fresh = False
                await self._link.run(procedures.set_idle(list(self._queues.values()), self._link.channel))
                registered, horizon, settling = time.monotonic(), None, 0
            claims, nothing = await self._claim_all(room)
            if claims or nothing is None:
                await self._ready.put_many(claims)
                break
            horizon = nothing.xmax if horizon is None else horizon
            if nothing.xmin >= horizon:
                signal("worker.idle", worker_id=self._worker_id)
                pause = self._longest
            else:  # some transaction began before we were registered: it may spawn and tell nobody
                pause = SETTLING[min(settling, len(SETTLING) - 1)]
                settling += 1
            if await self._wait(min(pause, self._due_in(nothing))):
                return  # whoever notified us took the idle row away
        await self._forget()

    @staticmethod
    def _due_in(nothing: Claimed) -> float:
        """Seconds until something is due; what is due now but was not handed out is locked or not ours."""
        if nothing.next_due_in is None:
            return IDLE_POLL
        return max(nothing.next_due_in, 0.001) if nothing.next_due_in > 0 else 0.05

    async def _wait(self, seconds: float) -> bool:
        """Wait for a notification, a local wake-up, or the time; whether it was one of the first two."""
        try:
            conn = await self._link.connection()
            if self._link.fresh:
                return False
            await self.waker.wait_for(conn.fileno(), seconds)
            conn.pgconn.consume_input()
            notified = False
            while conn.pgconn.notifies() is not None:
                notified = True
        except (psycopg.OperationalError, ValueError, OSError) as error:
            broken = error if isinstance(error, psycopg.OperationalError) else psycopg.OperationalError(str(error))
            if self._link.broken(broken):
                return True
            raise
        return notified

    async def _resolve_queues(self) -> None:
        """Look the ids up again now and then: a queue may have been dropped, or dropped and made anew."""
        if time.monotonic() - self._resolved < RESOLVE_EVERY:
            return
        self._resolved = time.monotonic()
        found = await self._link.run(procedures.queue_ids(list(self._queues)))
        for name in self._queues:
            if name not in found:
                logger.warning('queue "%s" no longer exists; create it again, or stop this worker', name)
            else:
                self._queues[name] = found[name]

    async def _forget(self) -> None:
        try:
            await self._link.run(procedures.clear_idle(list(self._queues.values()), self._link.channel))
        except psycopg.Error as error:
            logger.debug("could not take the idle row away: %s", from_sqlstate(error))


def _sooner(one: Claimed, other: Claimed) -> Claimed:
    """Two empty answers as one: the sooner due time, the older horizons."""
    due = [answer.next_due_in for answer in (one, other) if answer.next_due_in is not None]
    return Claimed([], min(due) if due else None, min(one.xmin, other.xmin), max(one.xmax, other.xmax))
