"""The worker: slots that run handlers, one committer, one lease keeper, one claimer that listens."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absurd._async import _compat
from absurd._async.claimer import Claimer, ClaimLink
from absurd._async.committer import Committer
from absurd._async.execute import execute, report
from absurd._async.keeper import Held, Keeper, Leases
from absurd._async.link import Link, LinkClosed
from absurd._core import outcome
from absurd._core.outcome import Outcome, Released
from absurd._db import batch, procedures
from absurd._db.procedures import Claim
from absurd.errors import ConfigError, QueueNotFound
from absurd.telemetry import logger, signal

if TYPE_CHECKING:
    from absurd._async.client import AsyncAbsurd

PREFETCH_SECONDS = 0.1
MOST_PREFETCHED = 500
DRAIN_SECONDS = 5.0


def default_worker_id() -> str:
    """`host:pid`."""
    return f"{socket.gethostname()}:{os.getpid()}"


class Worker:
    """Runs the tasks a client has registered, of one or more queues. Three connections of its own."""

    def __init__(
        self,
        client: AsyncAbsurd,
        *,
        worker_id: str | None,
        claim_timeout: float,
        concurrency: int,
        batch_size: int | None,
        poll_interval: float,
        queues: Sequence[str],
        housekeeping: bool,
        drain_timeout: float,
        handle_signals: bool,
    ) -> None:
        if not claim_timeout > 0 or not math.isfinite(claim_timeout):
            raise ConfigError(
                "claim_timeout must be > 0: without a lease nobody takes over the task of a worker that died"
            )
        if concurrency < 1:
            raise ConfigError("concurrency must be >= 1")
        if batch_size is not None and batch_size < 1:
            raise ConfigError("batch_size must be >= 1")
        if not poll_interval > 0:
            raise ConfigError("poll_interval must be > 0 seconds")
        self._client = client
        self.worker_id = worker_id or default_worker_id()
        self._lease = float(claim_timeout)
        self._concurrency = concurrency
        self._batch_size = batch_size
        self._poll_interval = poll_interval
        self._queue_names = list(dict.fromkeys(queues))
        self._housekeeping = housekeeping
        self._drain_timeout = drain_timeout
        self._handle_signals = handle_signals
        self._stopping = _compat.Event()
        self._given_up = _compat.Event()
        self._leases = Leases()
        self._ready: _compat.Ready[Claim] = _compat.Ready(0)
        self._handler_seconds: float | None = None
        self._claimer: Claimer | None = None
        self._signals = 0

    def stop(self, reason: str = "stop_worker") -> None:
        """Ask for the drain; returns at once."""
        if not self._stopping.is_set():
            signal("worker.draining", worker_id=self.worker_id, reason=reason)
        self._stopping.set()
        if self._claimer is not None:
            self._claimer.waker.wake()

    async def run(self) -> None:
        """Work until stopped: then finish or hand back what is under way, and return."""
        conninfo = self._client._session.conninfo()
        queues = await self._resolve()
        claim_link = ClaimLink(conninfo, "claimer", self._given_up)
        keeper_link = Link(conninfo, "lease keeper", self._given_up)
        self._claimer = Claimer(
            claim_link,
            self._ready,
            self._stopping,
            worker_id=self.worker_id,
            queues=queues,
            names=self._client._registry.names,
            lease=self._lease,
            batch_size=self._batch_size or MOST_PREFETCHED,
            poll_interval=self._poll_interval,
            register=self._hold,
        )
        committer = Committer(Link(conninfo, "committer", self._given_up), self._claimer.waker.wake)
        kept = _compat.Event()
        keeper = Keeper(
            keeper_link, self._leases, kept, lease=self._lease, queues=queues, housekeeping=self._housekeeping
        )
        writing, feeding, slots = _compat.Group(), _compat.Group(), _compat.Group()
        writing.start(committer.run, name="committer")
        writing.start(keeper.run, name="keeper")
        feeding.start(self._feed, self._claimer, name="claimer")
        for number in range(self._concurrency):
            slots.start(self._slot, committer, name=f"slot-{number}")
        signal("worker.started", worker_id=self.worker_id, queues=self._queue_names)
        try:
            await self._serve()
        finally:
            await self._drain(committer, slots, feeding)
            kept.set()
            committer.close()
            if not await writing.join(self._drain_timeout + 1.0):
                self._given_up.set()
                if not await writing.join(1.0):
                    writing.abandon()
            for link in (committer._link, claim_link, keeper_link):
                await link.close()
            self._claimer.waker.close()
            signal("worker.stopped", worker_id=self.worker_id)

    async def _serve(self) -> None:
        if not self._handle_signals:
            await self._stopping.wait()
            return
        with _compat.on_signals(self._on_signal):
            await self._stopping.wait()

    def _on_signal(self, number: int) -> None:
        self._signals += 1
        if self._signals > 1:
            os._exit(128 + number)  # asked twice: leave now, leases run out
        _compat.call_soon(lambda: self.stop(f"signal {number}"))

    async def _resolve(self) -> dict[str, int]:
        found = await self._client._session.run(procedures.queue_ids(self._queue_names))
        missing = [name for name in self._queue_names if name not in found]
        if missing:
            raise QueueNotFound(
                f'Queue "{missing[0]}" does not exist', hint=f"create it with `absurdctl create-queue {missing[0]}`"
            )
        return found

    async def _feed(self, claimer: Claimer) -> None:
        try:
            await claimer.run()
        except LinkClosed:
            return

    def _hold(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            self._leases.add(claim)

    async def _slot(self, committer: Committer) -> None:
        pause = _compat.Pause()
        while (claim := await self._ready.get()) is not None:
            held = self._leases.get(claim)
            if held is not None and held.running.reason is None:
                await self._run_one(committer, held)
            elif held is not None and isinstance(held.running.reason, Released):
                await committer.finish(release(claim))
            self._leases.drop(claim)
            await pause()

    async def _run_one(self, committer: Committer, held: Held) -> None:
        claim = held.claim
        ids = {"task_name": claim.task_name, "task_id": claim.task_id, "run_id": claim.run_id, "attempt": claim.attempt}
        signal("run.started", **ids)
        started = time.monotonic()
        try:
            ended = await execute(self._client, claim, committer, held.running, self._lease)
        except Exception as error:  # not the handler's: ours
            logger.exception("running task %s failed inside the engine", claim.task_id)
            ended = outcome.failed(error)
        self._learn(time.monotonic() - started)
        report(claim, ended)
        row = settle(claim, ended)
        if row is not None:
            await committer.finish(row)
        signal("run.ended", outcome=ended.kind, **ids)

    def _learn(self, seconds: float) -> None:
        """Claim ahead what the slots finish in about 100 ms, and nothing for slower handlers."""
        known = self._handler_seconds
        self._handler_seconds = seconds if known is None else known + 0.2 * (seconds - known)
        if self._handler_seconds < PREFETCH_SECONDS:
            ahead = int(self._concurrency * PREFETCH_SECONDS / max(self._handler_seconds, 1e-6))
            self._ready.capacity = min(ahead, MOST_PREFETCHED)
        else:
            self._ready.capacity = 0

    async def _drain(self, committer: Committer, slots: _compat.Group, feeding: _compat.Group) -> None:
        """Hand back what no slot has begun; let running handlers end, or stop at their next step, or be stopped."""
        self.stop()
        for claim in await self._ready.close():
            self._leases.drop(claim)
            await committer.finish(release(claim))
        await feeding.join(1.0)
        for held in self._leases.all():
            held.running.interrupt(Released())
        if not await slots.join(self._drain_timeout):
            left = self._leases.all()
            logger.warning("%s running tasks did not end in time and are handed back", len(left))
            for held in left:
                held.running.stop(Released())
                await committer.finish(release(held.claim))
            if not await slots.join(0.5):
                slots.abandon()


def settle(claim: Claim, ended: Outcome) -> batch.Write | None:
    """The row an outcome is written with; None when the run has been written already, or is somebody else's."""
    fence = (claim.queue_id, claim.run_id.bytes, claim.claim_no)
    if ended.kind == "completed":
        return batch.Complete(*fence, str(ended.body))
    if ended.kind == "failed":
        return batch.Fail(*fence, str(ended.body), ended.final)
    if ended.kind == "released":
        return release(claim)
    return None


def release(claim: Claim) -> batch.Write:
    """Back to the queue, due at once, the attempt not burnt."""
    return batch.Sleep(claim.queue_id, claim.run_id.bytes, claim.claim_no, delay=0.0)
