"""Running due tasks here and now, without a worker."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping
from typing import Any

from absurd._async import _compat
from absurd._async.batchwork import DirectWriter
from absurd._async.client import AsyncAbsurd
from absurd._async.context import Writer
from absurd._async.execute import execute, report
from absurd._async.worker import settle
from absurd._core import options
from absurd._core.options import as_uuid
from absurd._core.outcome import Outcome
from absurd._db import procedures
from absurd._db.procedures import Claim
from absurd.errors import ConfigError, QueueNotFound
from absurd.testing import questions
from absurd.testing._async.clock import clock_of, queues_of
from absurd.testing._async.session import session_of
from absurd.testing.values import Drained, Due, Standing

LEASE = 120.0
MOST_RUNS = 10_000


class Runner:
    """Claims the due tasks that a client knows, and runs them, one at a time."""

    def __init__(self, app: AsyncAbsurd, queues: dict[str, int], lease: float = LEASE) -> None:
        self.app = app
        self.session = session_of(app)
        self.queues = queues
        self.lease = lease
        self._claims = 0

    @classmethod
    async def of(cls, app: AsyncAbsurd, lease: float = LEASE) -> Runner:
        """A runner of all queues of a client; QueueNotFound when its own is not there."""
        queues = await queues_of(app)
        if app.queue_name not in queues:
            raise QueueNotFound(f'Queue "{app.queue_name}" does not exist: call create_queue() first')
        return cls(app, queues, lease)

    @property
    def ids(self) -> list[int]:
        """The ids of the queues."""
        return list(self.queues.values())

    async def claim(self) -> Claim | None:
        """The next due task; None when nothing is due that this client knows."""
        for queue, queue_id in self.queues.items():
            self._claims += 1
            names = self.app._registry.names(queue)
            call = procedures.claim_tasks(queue_id, queue, "test", self.lease, 1, names, self._claims, False)
            claimed = await self.session.run(call)
            if claimed.claims:
                return claimed.claims[0]
        return None

    async def work(self, claim: Claim, app: AsyncAbsurd | None = None, writer: Writer | None = None) -> Outcome:
        """Run a claimed task to its end or next wait, and write what became of it. `app` and `writer`: in place of ours."""
        writer = writer or DirectWriter(self.session)
        ended: Outcome = await execute(app or self.app, claim, writer, _compat.Running(), self.lease)
        report(claim, ended)
        row = settle(claim, ended)
        if row is not None:
            await writer.write(row)
        return ended

    async def look(self, task_id: uuid.UUID) -> Standing:
        """How a task stands now."""
        return await self.session.run(questions.standing(self.ids, task_id))

    async def move_on(self) -> Due | None:
        """Move the clock to what is due next, and say what that is."""
        due = await self.session.run(questions.next_due(self.ids))
        if due is not None:
            clock_of(self.session).move_to(due.at)
        return due


async def run_to_wait(app: AsyncAbsurd, task: Any) -> Standing:
    """Run a task here until it has nothing to do at this moment."""
    task_id = as_uuid(task["task_id"] if isinstance(task, Mapping) else task)
    runner = await Runner.of(app)
    for _ in range(MOST_RUNS):
        standing = await runner.look(task_id)
        if not standing.due:
            return standing
        claim = await runner.claim()
        if claim is None:
            raise ConfigError(f'task "{standing.task_name}" is due, and not registered with this client')
        await runner.work(claim)
    raise AssertionError(f'task "{standing.task_name}" is still due after {MOST_RUNS} runs: {standing}')


async def drain(app: AsyncAbsurd, max_tasks: int = MOST_RUNS, advance: bool = False) -> Drained:
    """Run what is due until nothing is."""
    options.whole_number(max_tasks, "max_tasks")
    runner = await Runner.of(app)
    if advance:
        clock_of(runner.session)
    outcomes: Counter[str] = Counter()
    names: Counter[str] = Counter()
    moves = 0
    while True:
        claim = await runner.claim()
        if claim is not None:
            if sum(outcomes.values()) >= max_tasks:
                raise _endless(max_tasks, names, claim.task_name)
            names[claim.task_name] += 1
            outcomes[(await runner.work(claim)).kind] += 1
        elif advance and await runner.move_on() is not None:
            moves += 1
            if moves > max_tasks:
                raise _endless(max_tasks, names, "nothing")
        else:
            left = await runner.session.run(questions.left(runner.ids))
            return Drained(sum(outcomes.values()), dict(outcomes), moves, left)


def _endless(max_tasks: int, names: Counter[str], following: str) -> AssertionError:
    often = ", ".join(f'"{name}" {count} times' for name, count in names.most_common(3))
    return AssertionError(
        f'the queue does not come to an end: after {max_tasks} runs ({often}) "{following}" is due. A task that repeats '
        "itself for ever, or one that spawns another each time? Else raise max_tasks"
    )
