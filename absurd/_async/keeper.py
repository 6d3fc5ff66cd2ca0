"""The lease keeper: renews all leases of a worker in one call, and tells handlers whose run is no longer theirs.

Its connection also does the housekeeping, in small batches, one worker a queue at a time.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import psycopg

from absurd._async import _compat
from absurd._async.link import Link, LinkClosed
from absurd._db import procedures
from absurd._db.call import Call, scalar
from absurd._db.packing import Int4Array, UuidArray
from absurd._db.procedures import Claim
from absurd.errors import CancelledTask, FailedTask, LeaseLostSignal, from_sqlstate
from absurd.telemetry import logger, signal

HOUSEKEEPING_EVERY = 60.0
EXTEND_ROWS = 500


class Held(NamedTuple):
    """A run this worker holds, waiting for a slot or running."""

    claim: Claim
    running: _compat.Running


class Leases:
    """The runs a worker holds, by (task, claim): shared by claimer, slots and keeper."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], Held] = {}
        self._lock = threading.Lock()  # held for dictionary operations only, so it is right in both worlds

    def add(self, claim: Claim) -> Held:
        held = Held(claim, _compat.Running())
        with self._lock:
            self._held[claim.task_id.int, claim.claim_no] = held
        return held

    def get(self, claim: Claim) -> Held | None:
        with self._lock:
            return self._held.get((claim.task_id.int, claim.claim_no))

    def drop(self, claim: Claim) -> None:
        with self._lock:
            self._held.pop((claim.task_id.int, claim.claim_no), None)

    def all(self) -> list[Held]:
        with self._lock:
            return list(self._held.values())


class Keeper:
    """Beats at a third of the lease until `stopped` is set."""

    def __init__(
        self,
        link: Link,
        leases: Leases,
        stopped: _compat.Event,
        *,
        lease: float,
        queues: dict[str, int],
        housekeeping: bool,
    ) -> None:
        self._link = link
        self._leases = leases
        self._stopped = stopped
        self._lease = lease
        self._queues = queues
        self._housekeeping = housekeeping

    async def run(self) -> None:
        beat = max(self._lease / 3, 0.05)
        waited = HOUSEKEEPING_EVERY
        while not await self._stopped.wait(min(beat, HOUSEKEEPING_EVERY)):
            try:
                await self._renew()
                waited += min(beat, HOUSEKEEPING_EVERY)
                if self._housekeeping and waited >= HOUSEKEEPING_EVERY:
                    waited = 0.0
                    await self._housekeep()
            except LinkClosed:
                return
            except psycopg.Error as error:
                logger.warning("renewing leases failed: %s; trying again", from_sqlstate(error))

    async def _renew(self) -> None:
        by_queue: dict[int, list[Held]] = {}
        for held in self._leases.all():
            if held.running.reason is None:
                by_queue.setdefault(held.claim.queue_id, []).append(held)
        for queue_id, rows in by_queue.items():
            for start in range(0, len(rows), EXTEND_ROWS):
                await self._renew_some(queue_id, rows[start : start + EXTEND_ROWS])

    async def _renew_some(self, queue_id: int, rows: list[Held]) -> None:
        letters: str = await self._link.run(
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

    async def _housekeep(self) -> None:
        mine = await self._link.run(procedures.take_housekeeping(list(self._queues.values()), HOUSEKEEPING_EVERY))
        if not mine:
            return
        for queue, tasks, events in await self._link.run(procedures.housekeep(list(mine))):
            if tasks or events:
                logger.info('housekeeping of queue "%s": %s tasks and %s events deleted', queue, tasks, events)
            signal("housekeeping.done", queue=queue, tasks=tasks, events=events)
