"""A crash at every commit of a task, and the same end each time."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from absurd._async import _compat
from absurd._async.client import AsyncAbsurd
from absurd._async.execute import execute, report
from absurd._async.worker import settle
from absurd._core import options
from absurd._db.procedures import Claim
from absurd.errors import ConfigError, InvalidOption
from absurd.testing import questions, verdict
from absurd.testing._async.clock import FakeClock, clock_of
from absurd.testing._async.runner import Runner
from absurd.testing._async.session import session_of
from absurd.testing._async.witness import Witness, WitnessedWriter
from absurd.testing.effects import Effects
from absurd.testing.values import Boundary, CrashReport, Killed, Side, Standing
from absurd.testing.verdict import Ending, Key

MOST_ROUNDS = 10_000
_HOW = {
    "before": "a crash just before the commit of",
    "after": "a crash just after the commit of",
    "late": "another worker taking over before the commit of",
}


@dataclass(frozen=True)
class Plan:
    """What is tried: the task, the world it lives in, and what must be equal."""

    task_name: str
    params: Any
    events: Mapping[str, Any]
    effects: Callable[[], Any] | str | None
    reset: Callable[[], Any] | None
    key: Key | None
    spawn: Mapping[str, Any]


class Trial:
    """One task from spawn to end, with at most one crash on the way."""

    def __init__(self, runner: Runner, plan: Plan, target: Boundary | None = None, side: Side = "before") -> None:
        self._runner = runner
        self.plan = plan
        self.witness = Witness(runner.session, self._sample, target, side)
        self.witness.take_over = self._take_over
        self._app = copy.copy(runner.app)
        self._app._hooks = {**runner.app._hooks, "wrap_task_execution": self._wrap()}
        self._before: Mapping[str, int] = {}
        self._task_id: Any = None
        self._fed: set[tuple[int, str]] = set()

    def _wrap(self) -> Callable[[Any, Callable[[], Any]], Any]:
        return self.witness.wrap(self._runner.app._hooks.get("wrap_task_execution"))

    async def run(self) -> Ending:
        """How it ended; AssertionError when it does not."""
        runner, plan = self._runner, self.plan
        for queue in runner.queues:
            await runner.app.purge_queue(queue)
        if plan.reset is not None:
            await _compat.maybe_await(plan.reset())
        if isinstance(plan.effects, Effects):
            plan.effects.clear()
        self._before = await self._sample()
        spawned = await runner.app.spawn(plan.task_name, plan.params, **plan.spawn)
        self._task_id = spawned["task_id"]
        standing = await self._drive()
        session = runner.session
        effects = verdict.minus(await self._sample(), self._before)
        events = await session.run(questions.emitted(runner.ids))
        tasks = await session.run(questions.tasks(runner.ids))
        return verdict.ending(standing, plan.key, effects, events, tasks, await session.run(questions.violations()))

    # -- to the end ----------------------------------------------------------------------------------------------------

    async def _drive(self) -> Standing:
        """Run what is due, emit what is waited for, move the clock, until nothing is left to do."""
        for _ in range(MOST_ROUNDS):
            claim = await self._runner.claim()
            if claim is None:
                if not await self._feed() and await self._runner.move_on() is None:
                    return await self._ended()
            elif claim.task_id != self._task_id or self.witness.fired:
                await self._runner.work(claim)
            else:
                await self._watch(claim)
        raise AssertionError(f"the queue is not quiet after {MOST_ROUNDS} runs: a task that repeats itself for ever?")

    async def _watch(self, claim: Claim) -> None:
        witness, session = self.witness, self._runner.session
        await witness.start(claim)
        writer = WitnessedWriter(session, witness)
        session.witness = witness
        try:
            ended = await execute(self._app, claim, writer, _compat.Running(), self._runner.lease)
            if not witness.dead:
                witness.settle()
                report(claim, ended)
                row = settle(claim, ended)
                if row is not None:
                    with contextlib.suppress(Killed):
                        await writer.write(row)
        finally:
            session.witness = None
        await witness.end()
        if witness.error is not None:
            raise witness.error

    async def _take_over(self) -> None:
        """The lease runs out while its worker stands still, and another brings the task to its end."""
        session = self._runner.session
        session.witness, witness = None, session.witness
        try:
            await self._drive()
        finally:
            session.witness = witness

    async def _feed(self) -> bool:
        """Emit the events that somebody waits for, as far as they were given."""
        fed = False
        for queue_id, name, emitted in await self._runner.session.run(questions.waited_for(self._runner.ids)):
            pattern = _match(name, self.plan.events)
            if pattern is None:
                continue
            queue = next(each for each, number in self._runner.queues.items() if number == queue_id)
            # whoever waits for what was emitted before waits for a newer one
            mode: Any = "next" if emitted else "latch"
            fed = await self._runner.app.emit_event(name, self.plan.events[pattern], queue, mode=mode) or fed
        return fed

    async def _ended(self) -> Standing:
        standing = await self._runner.look(self._task_id)
        if standing.ended:
            return standing
        if standing.event is not None:
            why = f'it waits for the event "{standing.event}": give it, events={{"{standing.event}": payload}}'
        elif standing.awaits is not None:
            why = f"it waits for task {standing.awaits}, which does not end"
        else:
            why = f"it stands at {standing}"
        raise AssertionError(f'task "{self.plan.task_name}" does not end: {why}')

    async def _sample(self) -> Counter[str]:
        """How often each effect has happened so far; a task that was spawned is one."""
        effects = self.plan.effects
        session = self._runner.session
        found: Counter[str] = Counter()
        if isinstance(effects, str):
            found = await session.run(questions.counted(effects))
        elif effects is not None:
            found.update(await _compat.maybe_await(effects()))
        tasks = await session.run(questions.tasks(self._runner.ids))
        found.update(f"spawn of {name}" for task_id, name in tasks.items() if task_id != self._task_id)
        return found


def _match(name: str, events: Mapping[str, Any]) -> str | None:
    if name in events:
        return name
    return next((pattern for pattern in events if fnmatchcase(name, pattern)), None)


async def crash_everywhere(
    app: AsyncAbsurd,
    task_name: str,
    params: Any = None,
    *,
    events: Mapping[str, Any] | None,
    effects: Callable[[], Any] | str | None,
    reset: Callable[[], Any] | None,
    key: Key | None,
    double_worker: bool,
    claim_timeout: Any,
    spawn_options: Mapping[str, Any],
) -> CrashReport:
    """Run a task once undisturbed, then once for each way to crash it, and hold each end against the first."""
    session = session_of(app)
    if app._registry.get(task_name) is None:
        raise ConfigError(f'task "{task_name}" is not registered with this client')
    if session.clock is None:
        FakeClock(app)
    runner = await _ready(app, claim_timeout)
    plan = Plan(task_name, params, events or {}, effects, reset, key, spawn_options)
    report = await _matrix(runner, plan, double_worker)
    for queue in runner.queues:
        await app.purge_queue(queue)
    return report


async def _matrix(runner: Runner, plan: Plan, double_worker: bool) -> CrashReport:
    clock = clock_of(runner.session)
    start = clock.now
    first = Trial(runner, plan)
    expected = await first.run()
    clock.rewind(start)
    again = await Trial(runner, plan).run()
    if lines := verdict.differences(expected, again, Counter()):
        raise AssertionError(
            f"two undisturbed runs differ:{_listed(lines)}\nFake what is random, let `reset` put the world back, or name what "
            "of the result must be equal by `key`"
        )
    boundaries = first.witness.seen
    crashes = _crashes(boundaries, double_worker)
    for boundary, side in crashes:
        clock.rewind(start)
        await _crash(Trial(runner, plan, boundary, side), expected, f"{_HOW[side]} {boundary}")
    return CrashReport(tuple(boundaries), 2 + len(crashes), expected.standing.state, expected.standing.result)


async def _crash(trial: Trial, expected: Ending, what: str) -> None:
    failed = f'task "{trial.plan.task_name}" does not survive {what}:'
    try:
        found = await trial.run()
    except AssertionError as error:
        raise AssertionError(f"{failed} {error}") from error
    if not trial.witness.fired:
        raise AssertionError(
            f'task "{trial.plan.task_name}" takes another way each time it runs: {what} could not be tried, since it did not '
            "come there again. Fake what is random"
        )
    if lines := verdict.differences(expected, found, trial.witness.repeated):
        raise AssertionError(failed + _listed(lines))


async def _ready(app: AsyncAbsurd, claim_timeout: Any) -> Runner:
    """A runner of queues that hold nothing."""
    lease = options.seconds_of(claim_timeout, "claim_timeout")
    if not lease:
        raise InvalidOption("claim_timeout must be > 0: a run without a lease is never taken over")
    runner = await Runner.of(app, lease)
    used = await runner.session.run(questions.used_queue(runner.ids))
    if used is not None:
        raise ConfigError(
            f'crash_everywhere empties its queues between runs, and queue "{used}" holds tasks or events: '
            "give it a client with a queue of its own"
        )
    return runner


def _crashes(boundaries: list[Boundary], double_worker: bool) -> list[tuple[Boundary, Side]]:
    found: list[tuple[Boundary, Side]] = []
    for boundary in boundaries:
        found += [(boundary, "before"), (boundary, "after")]
        if double_worker and not boundary.aside:
            found.append((boundary, "late"))
    return found


def _listed(lines: list[str]) -> str:
    return "".join(f"\n  - {line}" for line in lines)
