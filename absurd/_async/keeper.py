"""The lease keeper: renews all leases of a worker in one call, and tells handlers whose run is no longer theirs.

Its connection also does the housekeeping, in small batches, one worker a queue at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import psycopg

from absurd._async import _compat
from absurd._async.link import Link, LinkClosed
from absurd._core.outcome import Released
from absurd._db import procedures
from absurd._db.call import Call, scalar
from absurd._db.packing import Int4Array, UuidArray
from absurd._db.procedures import Claim
from absurd.errors import CancelledTask, FailedTask, LeaseLostSignal, from_sqlstate
from absurd.telemetry import logger, signal

HOUSEKEEPING_EVERY = 60.0
LONGEST_BEAT = 5.0
EXTEND_ROWS = 500
UNSERVED_AFTER = 60.0


class Held(NamedTuple):
    """A run this worker holds, waiting for a slot or running."""

    claim: Claim
    running: _compat.Running


class Leases:
    """The runs a worker holds, by (task, claim): shared by claimer, slots and keeper."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], Held] = {}
        self._ending: dict[tuple[int, int], Held] = {}
        self._lock = threading.Lock()  # held for dictionary operations only, so it is right in both worlds

    def add(self, claim: Claim) -> Held:
        held = Held(claim, _compat.Running())
        with self._lock:
            self._held[claim.task_id.int, claim.claim_no] = held
        return held

    def get(self, claim: Claim) -> Held | None:
        with self._lock:
            return self._held.get((claim.task_id.int, claim.claim_no))

    def take(self, claim: Claim) -> bool:
        """Out of the list; whether it was there. Who takes a run out is the one who writes its end; its lease is renewed
        until `written`."""
        key = claim.task_id.int, claim.claim_no
        with self._lock:
            held = self._held.pop(key, None)
            if held is not None:
                self._ending[key] = held
            return held is not None

    def written(self, claim: Claim) -> None:
        """The end of a taken run is in the database, or there is none to write: the lease is needed no more."""
        with self._lock:
            self._ending.pop((claim.task_id.int, claim.claim_no), None)

    def all(self) -> list[Held]:
        with self._lock:
            return list(self._held.values())

    def to_renew(self) -> list[Held]:
        """All, and those whose end is not written yet; without what is lost already."""
        with self._lock:
            every = [*self._held.values(), *self._ending.values()]
        return [held for held in every if held.running.reason is None or isinstance(held.running.reason, Released)]


class Keeper:
    """Beats at a third of the lease, at least every 5 s, until `stopped` is set: so soon it hears of a cancelled task."""

    def __init__(
        self,
        link: Link,
        leases: Leases,
        stopped: _compat.Event,
        *,
        lease: float,
        queues: dict[str, int],
        names: Callable[[str], list[str]],
        housekeeping: bool,
    ) -> None:
        self.link = link
        self._leases = leases
        self._stopped = stopped
        self._lease = lease
        self._queues = queues
        self._names = names
        self._housekeeping = housekeeping
        self._next_housekeeping = 0.0
        self._chores: list[int] = []
        self._unserved: dict[int, set[str]] = {}

    async def run(self) -> None:
        beat = min(max(self._lease / 3, 0.05), LONGEST_BEAT)
        while True:
            due = time.monotonic() + beat
            if await self._stopped.wait(beat):
                return
            self._tell_lateness(time.monotonic() - due)
            try:
                await self._renew()
                if self._housekeeping:
                    await self._housekeep(until=time.monotonic() + beat / 2)
            except LinkClosed:
                return
            except psycopg.Error as error:
                logger.warning("renewing leases failed: %s; trying again", from_sqlstate(error))

    def _tell_lateness(self, late: float) -> None:
        if late > self._lease / 3:
            logger.warning(
                "the lease keeper woke %.1f s late, leases of %s s are in danger: a handler blocks the worker"
                " (in AsyncAbsurd, `await asyncio.to_thread(...)` what does not wait with await), or the process was stopped",
                late,
                self._lease,
            )

    async def _renew(self) -> None:
        by_queue: dict[int, list[Held]] = {}
        for held in self._leases.to_renew():
            by_queue.setdefault(held.claim.queue_id, []).append(held)
        if by_queue:  # a worker whose slots are all busy does not claim, and claims are what else enforces policies
            await self.link.run(procedures.enforce_policies(list(by_queue)))
        for queue_id, rows in by_queue.items():
            for start in range(0, len(rows), EXTEND_ROWS):
                await self._renew_some(queue_id, rows[start : start + EXTEND_ROWS])

    async def _renew_some(self, queue_id: int, rows: list[Held]) -> None:
        letters: str = await self.link.run(
            Call(
                "select absurd.extend_claims(%s, %b, %b, %s)",
                (
                    queue_id,
                    UuidArray.pack([held.claim.run_id for held in rows]),
                    Int4Array.pack([held.claim.claim_no for held in rows]),
                    self._lease,
                ),
                scalar,
                True,
            )
        )
        for held, letter in zip(rows, letters, strict=True):
            # r: ended or asleep under this very claim, a moment before its slot says so; b: its next beat will do
            if letter not in "obr":
                self._lose(held, letter)

    def _lose(self, held: Held, letter: str) -> None:
        claim = held.claim
        if self._leases.get(claim) is None:
            return  # it ended while the call was on its way
        if letter == "c":
            reason: BaseException = CancelledTask(f'task "{claim.task_id}" was cancelled')
        elif letter == "f":
            reason = FailedTask(f'run "{claim.run_id}" was failed: its lease ran out')
        else:
            reason = LeaseLostSignal(f'the lease of run "{claim.run_id}" was lost')
        held.running.stop(reason)

    async def _housekeep(self, until: float) -> None:
        """Retention in batches, queue by queue; goes on at the next beat where the time or a batch was not enough."""
        now = time.monotonic()
        if not self._chores and now >= self._next_housekeeping:
            self._next_housekeeping = now + HOUSEKEEPING_EVERY
            ids = list(self._queues.values())
            self._chores = await self.link.run(procedures.take_housekeeping(ids, HOUSEKEEPING_EVERY))
            for queue_id in self._chores:
                await self._tell_unserved(queue_id)
        while self._chores and time.monotonic() < until and not self._stopped.is_set():
            queue_id = self._chores.pop(0)
            for queue, tasks, events in await self.link.run(procedures.housekeep([queue_id])):
                if tasks or events:
                    logger.info('housekeeping of queue "%s": %s tasks and %s events deleted', queue, tasks, events)
                    self._chores.append(queue_id)  # until a batch finds nothing
                signal("housekeeping.done", queue=queue, tasks=tasks, events=events)

    async def _tell_unserved(self, queue_id: int) -> None:
        """Tasks that have long been due under names this worker does not know: perhaps nobody serves them."""
        queue = next((name for name, number in self._queues.items() if number == queue_id), "")
        rows = await self.link.run(procedures.unserved_tasks(queue_id, self._names(queue), UNSERVED_AFTER))
        found = {name for name, _, _ in rows}
        if not found <= self._unserved.get(queue_id, set()):  # said once, until there are others
            logger.warning(
                'queue "%s": due for over %.0f s, and of names this worker does not serve: %s.'
                " Start a worker that registers them, or cancel them",
                queue,
                UNSERVED_AFTER,
                ", ".join(f'"{name}" ({count}{"+" if more else ""})' for name, count, more in rows),
            )
            signal("tasks.unserved", queue=queue, names=sorted(found))
        self._unserved[queue_id] = found
