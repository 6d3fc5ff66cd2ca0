"""The worker: slots that run handlers, one committer, one lease keeper, one claimer that listens."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
from absurd.telemetry import listening, logger, signal

if TYPE_CHECKING:
    from absurd._async.client import AsyncAbsurd

PREFETCH_SECONDS = 0.1
MOST_PREFETCHED = 500
DRAIN_SECONDS = 5.0
STUCK_SECONDS = 1.0
CLAIM_SECONDS, STOP_SECONDS, CLOSE_SECONDS = 1.0, 0.5, 1.0


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
        self._feed_given_up = _compat.Event()
        self._write_given_up = _compat.Event()
        self._failure: BaseException | None = None
        self._leases = Leases()
        self._ready: _compat.Ready[Claim] = _compat.Ready(0)
        self._handler_seconds: float | None = None
        self._claimer: Claimer | None = None
        self._signals = 0

    def stop(self, reason: str = "stop_worker") -> None:
        """Ask for the drain; returns at once."""
        if not self._stopping.is_set():
            signal("worker.draining", worker_id=self.worker_id, reason=reason)
            held = len(self._leases.all())
            if held and reason.startswith("signal"):
                logger.warning(
                    "stopping (%s): %s claimed tasks end or are handed back within %s s; a second signal leaves at once",
                    reason,
                    held,
                    self._drain_timeout,
                )
        self._stopping.set()
        if self._claimer is not None:
            self._claimer.waker.wake()

    async def run(self) -> None:
        """Work until stopped: then finish or hand back what is under way, and return."""
        with _compat.on_signals(self._on_signal) if self._handle_signals else contextlib.nullcontext():
            conninfo = self._client._session.conninfo()
            queues = await self._resolve()
            self._claimer = self._make_claimer(conninfo, queues)
            committer = Committer(Link(conninfo, "committer", self._write_given_up), self._claimer.waker.wake)
            kept = _compat.Event()
            keeper = self._make_keeper(conninfo, queues, kept)
            writing, feeding, slots = (_compat.Group(self._part_failed) for _ in range(3))
            writing.start(committer.run, name="committer")
            writing.start(keeper.run, name="keeper")
            feeding.start(self._feed, self._claimer, name="claimer")
            feeding.start(self._unblock, committer, name="unblock")
            for number in range(self._concurrency):
                slots.start(self._slot, committer, name=f"slot-{number}")
            signal("worker.started", worker_id=self.worker_id, queues=self._queue_names)
            try:
                await self._stopping.wait()
            finally:
                try:
                    await self._drain(committer, slots, feeding)
                finally:  # cancelled once more: leave, but leave nothing behind
                    await self._abandon(committer, slots, feeding)
                    kept.set()
                    committer.close()
                    await self._close(writing, (committer.link, self._claimer.link, keeper.link))
        if self._failure is not None:
            raise self._failure

    def _make_claimer(self, conninfo: str, queues: dict[str, int]) -> Claimer:
        return Claimer(
            ClaimLink(conninfo, "claimer", self._feed_given_up),
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

    def _make_keeper(self, conninfo: str, queues: dict[str, int], kept: _compat.Event) -> Keeper:
        return Keeper(
            Link(conninfo, "lease keeper", self._write_given_up),
            self._leases,
            kept,
            lease=self._lease,
            queues=queues,
            names=self._client._registry.names,
            housekeeping=self._housekeeping,
        )

    async def _close(self, writing: _compat.Group, links: Sequence[Link]) -> None:
        try:
            if not await writing.join(self._drain_timeout + CLOSE_SECONDS):
                self._write_given_up.set()
                await writing.join(CLOSE_SECONDS)
        finally:
            self._write_given_up.set()
            writing.abandon()
            for link in links:
                await link.close()
            if self._claimer is not None:
                self._claimer.waker.close()
            signal("worker.stopped", worker_id=self.worker_id)

    def _part_failed(self, error: BaseException) -> None:
        """A worker without its committer, or its claimer, would hold tasks for ever: better none."""
        logger.error("a part of the worker failed; the worker stops", exc_info=error)
        if self._failure is None:
            self._failure = error
        self.stop("failure")

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

    async def _unblock(self, committer: Committer) -> None:
        """What was claimed ahead while handlers were short, and waits now behind long ones, goes to other workers."""
        taken = self._ready.taken
        while not await self._stopping.wait(STUCK_SECONDS):
            if len(self._ready) and taken == self._ready.taken:
                self._ready.capacity = 0
                await self._hand_back(committer)
            taken = self._ready.taken

    async def _hand_back(self, committer: Committer) -> None:
        for claim in await self._ready.take_back():
            if self._leases.take(claim):
                await self._finish(committer, claim, release(claim), wait=False)

    async def _finish(self, committer: Committer, claim: Claim, row: batch.Write, *, wait: bool) -> None:
        """Have the end of a taken run written; the keeper holds its lease until it is."""
        await committer.finish(row, lambda: self._leases.written(claim), wait=wait)

    def _hold(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            self._leases.add(claim)

    async def _slot(self, committer: Committer) -> None:
        pause = _compat.Pause()
        while (claim := await self._ready.get()) is not None:
            held = self._leases.get(claim)
            row: batch.Write | None = None
            if held is not None and held.running.reason is None:
                row = await self._run_one(committer, held)
            elif held is not None and isinstance(held.running.reason, Released):
                row = release(claim)
            if self._leases.take(claim):
                if row is not None:
                    await self._finish(committer, claim, row, wait=True)
                else:
                    self._leases.written(claim)
            await pause()

    async def _run_one(self, committer: Committer, held: Held) -> batch.Write | None:
        claim = held.claim
        if listening():
            signal("run.started", **_identity(claim))
        started = time.monotonic()
        try:
            ended = await execute(self._client, claim, committer, held.running, self._lease)
        except _compat.Cancelled:
            raise
        except BaseException as error:  # an exception that cannot even be written down
            logger.exception("running task %s failed inside the engine", claim.task_id)
            ended = outcome.failed(RuntimeError(f"{type(error).__name__} could not be recorded"))
        self._learn(time.monotonic() - started)
        report(claim, ended)
        if listening():
            signal("run.ended", outcome=ended.kind, **_identity(claim))
        return settle(claim, ended)

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
            if self._leases.take(claim):
                await self._finish(committer, claim, release(claim), wait=False)
        for held in self._leases.all():
            held.running.interrupt(Released())
        fed = await feeding.join(CLAIM_SECONDS)
        await self._hand_back(committer)  # claimed while we closed
        if not await slots.join(self._drain_timeout):
            await self._stop_handlers(committer, slots)
        if not fed:
            self._feed_given_up.set()
            if not await feeding.join(CLOSE_SECONDS):
                feeding.abandon()
            await self._hand_back(committer)

    async def _stop_handlers(self, committer: Committer, slots: _compat.Group) -> None:
        left = self._leases.all()
        logger.warning("%s running tasks did not end in time and are handed back", len(left))
        for held in left:
            held.running.stop(Released())
        if not await slots.join(STOP_SECONDS):
            slots.abandon()
        await self._release_all(committer)

    async def _release_all(self, committer: Committer) -> None:
        for held in self._leases.all():
            if self._leases.take(held.claim):
                await self._finish(committer, held.claim, release(held.claim), wait=False)

    async def _abandon(self, committer: Committer, slots: _compat.Group, feeding: _compat.Group) -> None:
        """Whatever the drain has left: nothing, unless it was interrupted."""
        self._feed_given_up.set()
        for held in self._leases.all():
            held.running.stop(Released())
        await self._release_all(committer)
        slots.abandon()
        feeding.abandon()


def _identity(claim: Claim) -> dict[str, Any]:
    return {"task_name": claim.task_name, "task_id": claim.task_id, "run_id": claim.run_id, "attempt": claim.attempt}


def settle(claim: Claim, ended: Outcome) -> batch.Write | None:
    """The row an outcome is written with; None when the run has been written already, or is somebody else's."""
    fence = (claim.queue_id, claim.run_bytes, claim.claim_no)
    if ended.kind == "completed":
        return batch.Complete(*fence, str(ended.body))
    if ended.kind == "failed":
        return batch.Fail(*fence, str(ended.body), ended.final, ended.delay)
    if ended.kind == "snoozed":
        return batch.Sleep(*fence, delay=ended.delay)
    if ended.kind == "released":
        return release(claim)
    return None


def release(claim: Claim) -> batch.Write:
    """Back to the queue, due at once, the attempt not burnt."""
    return batch.Sleep(claim.queue_id, claim.run_bytes, claim.claim_no, delay=0.0)
