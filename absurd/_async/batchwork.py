"""Running a claimed batch without a worker: one task after the other, on the client's own connection."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

from absurd._async import _compat
from absurd._async.execute import execute, report
from absurd._async.keeper import Keeper, Leases
from absurd._async.link import Link
from absurd._async.session import Session
from absurd._async.worker import settle
from absurd._core.outcome import Outcome
from absurd._db import batch, procedures
from absurd._db.batch import Answer
from absurd._db.call import Call
from absurd._db.procedures import Claim
from absurd.telemetry import logger
from absurd.types import ClaimedTask

if TYPE_CHECKING:
    from absurd._async.client import AsyncAbsurd

BUSY_PAUSE = 0.02


class DirectWriter:
    """Writes each row by itself: what the committer does, without company."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def write(self, row: batch.Write) -> Answer:
        """Return after the row's commit, or its place in the caller's transaction."""
        (statement,) = batch.statements([row])
        while True:
            call: Call[Any] = Call(statement.sql, statement.params, statement.read, True)
            ((_, answer),) = await self._session.run(call)
            if answer.letter != "b":
                return answer  # type: ignore[no-any-return]
            await _compat.sleep(BUSY_PAUSE)


async def work_claimed(client: AsyncAbsurd, claimed: list[ClaimedTask], lease: float) -> None:
    """Run claimed tasks of the client's queue in order; nothing a handler does is raised."""
    session = client._session
    writer = DirectWriter(session)
    leases = Leases()
    claims = [
        claim
        for task in claimed
        if (claim := await session.run(procedures.run_snapshot(client.queue_name, task["run_id"])))
    ]
    for claim in claims:
        leases.add(claim)
    stopped = _compat.Event()
    keeping = _compat.Group(lambda error: logger.error("the lease keeper failed", exc_info=error))
    link = None
    if (
        claims and not session.borrowed
    ):  # a borrowed connection may hold the claim in an open transaction: nobody else sees it
        link = Link(session.conninfo(), "lease keeper", stopped)
        queues = {claim.queue_name: claim.queue_id for claim in claims}
        keeper = Keeper(link, leases, stopped, lease=lease, queues=queues, names=list, housekeeping=False)
        keeping.start(keeper.run, name="keeper")
    try:
        for claim in claims:
            await _work_one(client, claim, writer, leases, lease)
    finally:
        stopped.set()
        await keeping.join(5.0)
        if link is not None:
            await link.close()


async def _work_one(client: AsyncAbsurd, claim: Claim, writer: DirectWriter, leases: Leases, lease: float) -> None:
    held = leases.get(claim)
    if held is None or held.running.reason is not None:
        return
    if client._registry.get(claim.task_name) is None:
        # not ours: back to the queue for somebody who knows it, no attempt burnt
        row: batch.Write | None = batch.Sleep(
            claim.queue_id, claim.run_id.bytes, claim.claim_no, delay=_deferral(claim)
        )
    else:
        if client._session.borrowed:
            await client._session.run(procedures.extend_claim(claim.queue_name, claim.run_id, max(1, int(lease))))
        ended: Outcome = await execute(client, claim, writer, held.running, lease)
        report(claim, ended)
        row = settle(claim, ended)
    if row is not None:
        await writer.write(row)
    leases.take(claim)


def _deferral(claim: Claim) -> float:
    """Seconds after which an unknown task is looked at again: 15 to 30, the same for the same run."""
    return 15.0 + zlib.crc32(claim.run_bytes) % 15001 / 1000
