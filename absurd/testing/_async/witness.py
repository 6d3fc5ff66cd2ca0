"""Watching the commits of a task's runs, and letting one of them be its worker's last."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, NoReturn

from absurd._async import _compat
from absurd._async.batchwork import DirectWriter
from absurd._async.session import Session
from absurd._db import batch
from absurd._db.batch import Answer
from absurd._db.procedures import Claim
from absurd.testing import questions
from absurd.testing._async.session import TestSession
from absurd.testing.values import Boundary, Killed, Side, without_ids
from absurd.testing.verdict import minus

#: How each row that a run writes is called: its kind, and which of its fields is its name.
_ROWS: dict[type[batch.Write], tuple[str, str]] = {
    batch.Checkpoint: ("checkpoint", "name"),
    batch.Sleep: ("sleep", "step"),
    batch.AwaitEvent: ("wait", "step"),
    batch.AwaitTask: ("wait", "step"),
    batch.Emit: ("emit", "event_name"),
    batch.Extend: ("heartbeat", ""),
    batch.Fail: ("failure", ""),
    batch.Complete: ("completion", ""),
}
_REFUSALS = "cflm"
#: a wait that has its outcome is told it, whoever asks: that writes nothing
_ANSWERS = "at"

Sample = Callable[[], Awaitable[Mapping[str, int]]]


class Witness:
    """Sees the commits of the task under test, over all its runs until it dies at `target`, if there is one.

    `repeated` says which effects the death allows to come again: what happened since the last commit before it. Commits of
    branches that run side by side (`gather`) do not count as that, since they say nothing of the other branches.
    """

    def __init__(
        self, session: TestSession, sample: Sample, target: Boundary | None = None, side: Side = "before"
    ) -> None:
        self.seen: list[Boundary] = []
        self.fired = False
        self.repeated: Counter[str] = Counter()
        self.error: BaseException | None = None
        self.claim: Claim | None = None
        self._session = session
        self._sample = sample
        self._target, self._side = target, side
        self._counts: Counter[tuple[str, str]] = Counter()
        self._begun = 0
        self._state: Literal["alive", "dead", "late", "told"] = "alive"
        self._mark: Mapping[str, int] = {}
        self._lane: tuple[int, int] | None = None
        self.take_over: Callable[[], Awaitable[None]] | None = None

    # -- one execution -------------------------------------------------------------------------------------------------

    async def start(self, claim: Claim) -> None:
        """A run of the task begins."""
        self.claim, self._mark, self._lane = claim, await self._sample(), None

    def wrap(self, given: Callable[[Any, Callable[[], Any]], Any] | None) -> Callable[[Any, Callable[[], Any]], Any]:
        """The hook that tells where the handler itself runs; around the client's own, if any."""

        def run(ctx: Any, execute: Callable[[], Any]) -> Any:
            self._lane = _lane()
            return execute() if given is None else given(ctx, execute)

        return run

    def settle(self) -> None:
        """The handler has ended, and with it all its branches: what is written now says how."""
        self._lane = None

    async def end(self) -> None:
        """The run has come to its end, or to ours."""
        if self._state == "dead":
            self.repeated += minus(await self._sample(), self._mark)

    @property
    def dead(self) -> bool:
        """Whether this run's worker is gone: what it still does reaches nobody."""
        return self._state in ("dead", "told")

    # -- its commits ---------------------------------------------------------------------------------------------------

    async def before(self, kind: str, name: str) -> Boundary:
        self._alive()
        boundary = self._numbered(kind, name)
        if boundary == self._target and not self.fired:
            await self._strike(boundary)
        return boundary

    async def after(self, boundary: Boundary, letter: str | None = None) -> None:
        if self._state == "late":
            if letter is not None:
                await self._answered(boundary, letter)
            return
        self._alive()
        if not boundary.aside:
            self._mark = await self._sample()
        if boundary == self._target and not self.fired:
            self._die()

    async def begin(self) -> None:
        self._alive()
        self._begun += 1
        target = self._target
        # on one connection another worker can only take over before the transaction begins
        if target is not None and self._side == "late" and target.begun == self._begun and not self.fired:
            await self._strike(target)

    async def about_to_commit(self, conn: _compat.Connection) -> Boundary:
        self._alive()
        assert self.claim is not None
        step = await Session(conn).run(questions.step_being_kept(self.claim.queue_id, self.claim.task_id))
        boundary = self._numbered("transaction", step or "")
        if self._state == "late":
            self._accepted(boundary)
        if boundary == self._target and not self.fired and self._side == "before":
            self._die()
        return boundary

    async def rolled_back(self) -> None:
        if self._state == "late":
            await self._refused()

    # -- death ---------------------------------------------------------------------------------------------------------

    async def _strike(self, boundary: Boundary) -> None:
        if self._side == "after":
            return
        if self._side == "before":
            self._die()
        self.fired = True
        assert self.take_over is not None
        self.repeated += minus(await self._sample(), self._mark)
        try:
            await self.take_over()
        except BaseException as error:  # out of the handler, which would take it for its own
            self.error, self._state = error, "told"
            raise Killed from None
        self._state, self._mark = "late", await self._sample()

    def _die(self) -> NoReturn:
        self.fired, self._state = True, "dead"
        raise Killed

    async def _answered(self, boundary: Boundary, letter: str) -> None:
        if letter in _REFUSALS:
            await self._refused()
        elif letter not in _ANSWERS:
            self._accepted(boundary)

    async def _refused(self) -> None:
        """The run that was late has been told: until now it could not know, and what it did is at-least-once."""
        self.repeated += minus(await self._sample(), self._mark)
        self._state = "told"

    def _accepted(self, boundary: Boundary) -> NoReturn:
        self.error = AssertionError(f"{boundary} of a worker was accepted after another had taken its run over")
        self._state = "told"
        raise Killed

    def _alive(self) -> None:
        if self.dead:
            raise Killed

    def _numbered(self, kind: str, name: str) -> Boundary:
        name = without_ids(name)
        self._counts[kind, name] += 1
        begun = self._begun if kind == "transaction" else 0
        boundary = Boundary(kind, name, self._counts[kind, name], self._aside(), begun)
        self.seen.append(boundary)
        return boundary

    def _aside(self) -> bool:
        return self._lane is not None and self._lane != _lane()


class WitnessedWriter:
    """The writer of a run that is watched."""

    def __init__(self, session: TestSession, witness: Witness) -> None:
        self._session = session
        self._witness = witness
        self._writer = DirectWriter(session)

    async def write(self, row: batch.Write) -> Answer:
        """Return after the row's commit, unless the witness lets the run die there."""
        if self._session.in_transaction:  # commits later, with more
            return await self._writer.write(row)
        kind, name = _ROWS.get(type(row), (type(row).__name__.lower(), ""))
        boundary = await self._witness.before(kind, str(getattr(row, name, None) or ""))
        answer = await self._writer.write(row)
        await self._witness.after(boundary, None if isinstance(row, batch.Emit) else answer.letter)
        return answer


def _lane() -> tuple[int, int]:
    """What runs here: the thread, and the asyncio task if there is one."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident(), id(task)
