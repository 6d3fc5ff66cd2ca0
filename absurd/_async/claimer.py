"""The claimer: keeps the slots fed, and sleeps without missing a wake-up.

It claims on the connection it listens on. Having found nothing, it registers as idle, commits, takes a transaction id, and
claims again until every older transaction has ended: one of them may have looked for idle workers before that commit
(sql/src/35_wake.sql). Only then it sleeps:
until something is due, a producer notifies it, a run of its own worker is suspended, or the fallback poll.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
import uuid
from collections.abc import Callable, Sequence

import psycopg

from absurd._async import _compat
from absurd._async.link import Link
from absurd._async.session import OwnConnection
from absurd._core import codec
from absurd._db import procedures
from absurd._db.call import Call
from absurd._db.procedures import Claim, Claimed
from absurd.errors import from_sqlstate
from absurd.telemetry import logger, signal

#: pauses between claims while some transaction may not have seen us idle yet; then the last one again
SETTLING = (0.005, 0.02, 0.08, 0.32, 1.0)
IDLE_POLL = 5.0
IDLE_ROW_AGE = 1200.0
RESOLVE_EVERY = 10.0
LOCKED_POLL = 0.05


class ClaimLink(Link):
    """The claimer's connection: listens on the worker's channel."""

    channel = ""
    fresh = True
    _told = False
    #: whether the producer who notified us took our idle row away; a notification without a text is a duplicate
    taken = False

    async def prepared(self, conn: OwnConnection) -> None:
        if not conn.pooled:  # there the backend that listens would be anybody's
            conn.add_notify_handler(self._note)
            await conn.execute(f'listen "{self.channel}"')
        self.fresh = True

    def _note(self, notification: psycopg.Notify) -> None:
        # most come while the connection waits; some together with the answer of a claim that saw nothing yet
        self._hear(bool(notification.payload))

    def _hear(self, taken: bool) -> None:
        self._told = True
        self.taken = self.taken or taken

    def told(self, conn: _compat.Connection) -> bool:
        """Whether a notification has come since the last question; looks at what has been received, not at the socket."""
        while (notification := conn.pgconn.notifies()) is not None:
            self._hear(bool(notification.extra))
        told, self._told = self._told, False
        return told


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
        self.link = link
        self._ready = ready
        self._stopping = stopping
        self._worker_id = worker_id
        self._queues = queues
        self._names = names
        self._lease = lease
        self._batch_size = batch_size
        self._poll_interval = poll_interval
        self._resolved = time.monotonic()
        self._register = register
        self._missing: set[str] = set()
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
                await self._resolve_queues()
                if await self._claim_all(room) is not None:
                    await self._idle(room)
            except psycopg.Error as error:
                logger.error("claiming failed: %s; trying again in %s s", from_sqlstate(error), IDLE_POLL)
                await self._stopping.wait(IDLE_POLL)

    async def _claim_all(self, room: int) -> Claimed | None:
        """Claim from every queue in turn into the buffer; when there was nothing, the answer that says how to wait."""
        nothing: Claimed | None = None
        names = list(self._queues)
        self._turn += 1
        left = room
        for offset in range(len(names)):
            answer = await self._claim(names[(self._turn + offset) % len(names)], left)
            left -= len(answer.claims)
            if left <= 0:
                break
            if not answer.claims:
                nothing = answer if nothing is None else _sooner(nothing, answer)
        return nothing if left == room else None

    async def _claim(self, queue: str, room: int) -> Claimed:
        self._token += 1
        token = self._token

        def call(repeat: bool = False) -> Call[Claimed]:
            return procedures.claim_tasks(
                self._queues[queue], queue, self._worker_id, self._lease, room, self._names(queue), token, repeat
            )

        answer = await self.link.run(call(), prepare=True, repeated=lambda: call(True), loads=codec.decode_if_readable)
        if answer.claims:
            self._register(answer.claims)
            await self._ready.put_many(answer.claims)
            await _compat.give_way()  # handlers first, then the next claim
            signal("task.claimed", worker_id=self._worker_id, queue=queue, count=len(answer.claims))
        return answer

    async def _idle(self, room: int) -> None:
        """Nothing was due: sleep without missing a wake-up. Returns when there is, or may be, work."""
        registered = -IDLE_ROW_AGE
        horizon = settling = 0
        told = False
        while not self._stopping.is_set():
            if not told and (self.link.fresh or time.monotonic() - registered >= IDLE_ROW_AGE):
                await self.link.connection()
                self.link.fresh = False
                horizon = await self._set_idle()
                registered, settling = time.monotonic(), 0
            nothing = await self._claim_all(room)
            if nothing is None:
                break
            if told:  # another worker was faster, and our idle row is gone
                registered, told = -IDLE_ROW_AGE, False
                continue
            if not self.link.fresh and nothing.xmin >= horizon:
                signal("worker.idle", worker_id=self._worker_id)
                pause = self._longest()
            else:  # some transaction began before we were registered: it may spawn and tell nobody
                pause = SETTLING[min(settling, len(SETTLING) - 1)]
                settling += 1
            told = await self._wait(min(pause, self._due_in(nothing)))
            if await self._resolve_queues():
                registered = -IDLE_ROW_AGE
        if not (self.link.pooled or (self.link.taken and len(self._queues) == 1)):
            await self._forget()  # a row left behind would catch notifications while others are idle

    async def _set_idle(self) -> int:
        """Register to be notified; a transaction id below which some may not have seen it."""
        if self.link.pooled:  # nobody can notify us: a row would catch what others should hear
            return 0
        await self.link.run(procedures.set_idle(list(self._queues.values()), self.link.channel, self._fleet()))
        self.link.taken = False  # what was said before was said of an earlier row
        # whoever may have looked for idle workers before that commit has a smaller transaction id than this one
        # (a snapshot's xmax would not do: it may lie below ids that are given out and still in use)
        return await self.link.run(procedures.transaction_id())

    def _longest(self) -> float:
        """Seconds between two looks when nobody says anything; a pooler lets no notification through."""
        return self._poll_interval if self.link.pooled else max(IDLE_POLL, self._poll_interval)

    @staticmethod
    def _due_in(nothing: Claimed) -> float:
        """Seconds until something is due; what is due now but was not handed out is locked."""
        if nothing.next_due_in is None:
            return math.inf
        return max(nothing.next_due_in, 0.001) if nothing.next_due_in > 0 else LOCKED_POLL

    async def _wait(self, seconds: float) -> bool:
        """Wait for a notification, a local wake-up, or the time; whether it was a notification."""
        conn = await self.link.connection()
        if self.link.fresh:
            return False
        try:
            if self.link.told(conn):
                return True
            await self.waker.wait_for(conn.fileno(), seconds)
            conn.pgconn.consume_input()
            return self.link.told(conn)
        except (psycopg.OperationalError, ValueError, OSError) as error:
            broken = error if isinstance(error, psycopg.Error) else psycopg.OperationalError(str(error))
            if await self.link.broken(broken):
                return False
            raise

    def _fleet(self) -> str:
        """A digest of the task names known: workers that know the same ones need no wake-up each."""
        known = "\n".join(name for queue in sorted(self._queues) for name in (queue, *self._names(queue)))
        return hashlib.sha256(known.encode()).hexdigest()[:16]

    async def _resolve_queues(self) -> bool:
        """Look the ids up again now and then: a queue may have been dropped and made anew. Whether one has another id."""
        if time.monotonic() - self._resolved < RESOLVE_EVERY:
            return False
        self._resolved = time.monotonic()
        found = await self.link.run(procedures.queue_ids(list(self._queues)))
        for name in self._queues:
            if name not in found and name not in self._missing:
                logger.warning('queue "%s" no longer exists; create it again, or stop this worker', name)
        self._missing = {name for name in self._queues if name not in found}
        changed = {name: number for name, number in found.items() if self._queues[name] != number}
        self._queues.update(changed)
        return bool(changed)

    async def _forget(self) -> None:
        try:
            await self.link.run(procedures.clear_idle(list(self._queues.values()), self.link.channel))
        except psycopg.Error as error:
            logger.debug("could not take the idle row away: %s", from_sqlstate(error))


def _sooner(one: Claimed, other: Claimed) -> Claimed:
    """Two empty answers as one: the sooner due time, the older transaction."""
    due = [answer.next_due_in for answer in (one, other) if answer.next_due_in is not None]
    return Claimed([], min(due) if due else None, min(one.xmin, other.xmin))
