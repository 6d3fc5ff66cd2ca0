"""A handler run over what its task has recorded, with effects off: how far it gets with today's code.

Code between steps runs as it does in every replay. The first call that would do something new ends the rehearsal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from absurd._async import _compat, context, execute, steps
from absurd._core.outcome import leaves
from absurd._core.registry import RegisteredTask
from absurd._core.replay import History
from absurd._db import batch
from absurd._db.batch import Answer
from absurd._db.procedures import Claim
from absurd.errors import Snooze
from absurd.types import ReplayCheck, TaskHistory

if TYPE_CHECKING:
    from absurd._async.client import AsyncAbsurd


class Reached(BaseException):
    """The rehearsal came to something that has not been done."""

    def __init__(self, step: str) -> None:
        super().__init__(f'reached step "{step}"')
        self.step = step


@dataclass
class Rehearsal:
    """How it ended. `reached`: at `step`, which is new, or a sleep that goes on. `ended`: the handler returned. `failed`: it
    raised `error`. `ahead`: recorded steps of this attempt that were not asked for, in the order they were done."""

    how: Literal["reached", "ended", "failed"]
    step: str | None = None
    error: BaseException | None = None
    ahead: list[str] = field(default_factory=list)


class _Recording(History):
    """Says where something new begins, instead of letting it begin."""

    __slots__ = ()

    def take(self, name: str) -> tuple[bool, Any]:
        done, state = super().take(name)
        if not done and not self.timed_out(name):
            raise Reached(name)
        return done, state

    def take_group(self, names: Any) -> dict[str, Any]:
        wanted = list(names)
        kept = super().take_group(wanted)
        if missing := [name for name in wanted if name not in kept]:
            raise Reached(missing[0])
        return kept

    def kept(self, name: str) -> Any:
        known = super().kept(name)
        return "recorded before there was an undo" if known is None else known

    def left(self) -> set[str]:
        return set(self._pending)


class _NoEffects:
    """Where a rehearsed handler's writes go."""

    async def write(self, row: batch.Write) -> Answer:
        if isinstance(row, batch.Sleep):
            raise Reached(str(row.step))
        return Answer("o")  # an emit or a heartbeat: neither is recorded


async def rehearse(client: AsyncAbsurd, task: RegisteredTask, recorded: TaskHistory) -> Rehearsal:
    """Run the handler of a recorded task to where it would do something new. Whatever it raises is an answer."""
    claim = _claim(recorded)
    history = _Recording(recorded.checkpoints, recorded.timeouts)
    running = _compat.Running()

    async def handle() -> BaseException | None:
        ctx = context.make_context(client, claim, _NoEffects(), running, 0.0, task, history)
        context.current.set(ctx)
        running.enter()
        try:
            await execute.call(client, task, claim, ctx)
        except _compat.Cancelled:
            raise
        except BaseException as error:  # also sys.exit: it must not end who rehearses
            return error
        return None

    error = await running.run(handle)
    ahead = steps.judged(recorded, history.left(), [] if history.untold else history.passed)
    if error is None:
        return Rehearsal("ended", ahead=ahead)
    for leaf in leaves(error):  # what a task group gathers
        if isinstance(leaf, Reached):
            return Rehearsal("reached", leaf.step, ahead=ahead)
        if isinstance(leaf, Snooze):
            return Rehearsal("reached", ahead=ahead)
    return Rehearsal("failed", error=error, ahead=ahead)


def _claim(recorded: TaskHistory) -> Claim:
    return Claim(
        recorded.task_id,
        recorded.attempt,
        0,
        recorded.task_name,
        recorded.params,
        recorded.headers,
        recorded.retry_strategy,
        recorded.max_attempts,
        recorded.enqueue_at,
        recorded.recorded_at,
        None,
        recorded.checkpoints,
        recorded.timeouts,
        0,
        recorded.queue_name,
    )


async def check(client: AsyncAbsurd, recorded: TaskHistory) -> ReplayCheck:
    """Whether a task that waits would go on where it stopped. Nothing is written."""
    task = client._registry.get(recorded.task_name)
    if task is None:
        return ReplayCheck(recorded.task_id, recorded.task_name, True, "no handler is registered under this name")
    found = await rehearse(client, task, recorded)
    problem = _problem(recorded, found, task.strict_replay)
    goes_on = f'goes on with step "{found.step}"' if found.step else "goes on to its end"
    if found.how == "failed" and problem is None:
        goes_on = f"fails again between its steps: {type(found.error).__name__}: {found.error}"
    return ReplayCheck(recorded.task_id, recorded.task_name, problem is not None, problem or goes_on, found.step)


def _problem(recorded: TaskHistory, found: Rehearsal, strict: bool) -> str | None:
    # an attempt that has not recorded anything yet may fail where the one before did, and one whose wait ran out of that
    known = zip(recorded.steps, recorded.step_attempts, strict=True)
    done = any(attempt == recorded.attempt and name not in recorded.timeouts for name, attempt in known)
    came_here = done or recorded.waits_at is not None
    if found.how == "failed" and came_here:
        return f"raises {type(found.error).__name__}: {found.error}"
    if found.ahead and strict:
        instead = f'found "{found.step}"' if found.step else "the handler returns"
        return f"expected {steps.listed(found.ahead)}, {instead}"
    if recorded.waits_at and found.how != "failed" and found.step != recorded.waits_at:
        instead = f'goes on with "{found.step}"' if found.step else "returns"
        return f'waits at step "{recorded.waits_at}", but this code {instead}'
    return None
