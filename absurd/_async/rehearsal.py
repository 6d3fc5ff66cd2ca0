"""A handler run over what its task has recorded, with effects off: how far it gets, and what would undo it.

Code between steps runs as it does in every replay. The first call that would do something new ends the rehearsal.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from absurd import errors
from absurd._async import _compat, context
from absurd._async.steps import COMPANION
from absurd._core.replay import FAILED, History
from absurd._db import batch
from absurd._db.batch import Answer
from absurd._db.procedures import Claim
from absurd.errors import ConfigError, ControlFlow, Snooze, StepError
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
    raised `error`. `ahead`: recorded steps that were not asked for, in the order they were done. `undo`: the compensations
    registered on the way: step, function, value of the step."""

    how: Literal["reached", "ended", "failed"]
    step: str | None = None
    error: BaseException | None = None
    ahead: list[str] = field(default_factory=list)
    undo: list[tuple[str, Callable[[Any], Any], Any]] = field(default_factory=list)


class _Recording(History):
    """Says where something new begins, instead of letting it begin."""

    __slots__ = ("_errors", "closed", "undo")

    def __init__(self, recorded: TaskHistory, errors: Mapping[str, Any]) -> None:
        super().__init__(recorded.checkpoints, recorded.timeouts)
        self._errors = errors
        self._pending.discard(COMPANION)
        self.closed = False
        self.undo: list[tuple[str, Callable[[Any], Any], Any]] = []

    def take(self, name: str) -> tuple[bool, Any]:
        if self.closed:
            raise StepError(f'step "{name}": a compensation is a step already, and has no context of its own')
        done, state = super().take(name)
        if done or self.timed_out(name):
            return done, state
        if name in self._failed and self._pending:  # the handler went on from there
            raise _again(self._states[FAILED + name], self._errors)
        raise Reached(name)

    def undoable(self, name: str, undo: Callable[[Any], Any], value: Any) -> None:
        self.undo.append((name, undo, value))

    def left(self, order: list[str]) -> list[str]:
        return [name for name in order if name in self._pending] + sorted(self._pending - set(order))


class _NoEffects:
    """Where a rehearsed handler's writes go."""

    async def write(self, row: batch.Write) -> Answer:
        if isinstance(row, batch.Sleep):
            raise Reached(str(row.step))
        return Answer("o")  # an emit or a heartbeat: neither is recorded


def _again(recorded: Mapping[str, Any], names: Mapping[str, Any]) -> Exception:
    """The error of a step, by what is recorded of it: of the class of that name which the handler's module knows."""
    name, message = recorded["name"], recorded["message"]
    found = names.get(name) or getattr(builtins, name, None) or getattr(errors, name, None)
    if isinstance(found, type) and issubclass(found, Exception):
        error = found.__new__(found)
        error.args = (message,)
        return error
    return StepError(f"{name}: {message}")


async def rehearse(client: AsyncAbsurd, recorded: TaskHistory) -> Rehearsal:
    """Run the handler of a recorded task to where it would do something new. ConfigError when there is no handler for it."""
    task = client._registry.get(recorded.task_name)
    if task is None:
        raise ConfigError(f'task "{recorded.task_name}" is not registered')
    history = _Recording(recorded, getattr(task.handler, "__globals__", {}))
    running = _compat.Running()

    async def handle() -> Any:
        ctx = context.make_context(client, _claim(recorded), _NoEffects(), running, 0.0, task, history)
        ctx._guarded = True  # nothing is done, so nothing needs a companion
        context.current.set(ctx)
        return await task.handler(task.check_params(recorded.params), ctx)

    how: Literal["reached", "ended", "failed"] = "ended"
    step: str | None = None
    error: BaseException | None = None
    try:
        await running.run(handle)
    except Reached as reached:
        how, step = "reached", reached.step
    except Snooze:
        how = "reached"
    except ControlFlow as control:
        how, error = "failed", control
    except Exception as problem:
        how, error = "failed", problem
    finally:
        history.closed = True
    return Rehearsal(how, step, error, history.left(recorded.steps), history.undo)


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
    found = await rehearse(client, recorded)
    problem = _problem(recorded, found, task.strict_replay)
    goes_on = f'goes on with step "{found.step}"' if found.step else "goes on to its end"
    return ReplayCheck(recorded.task_id, recorded.task_name, problem is not None, problem or goes_on, found.step)


def _problem(recorded: TaskHistory, found: Rehearsal, strict: bool) -> str | None:
    if found.how == "failed":
        return f"raises {type(found.error).__name__}: {found.error}"
    if found.ahead and strict:
        more = f" and {len(found.ahead) - 1} more" if len(found.ahead) > 1 else ""
        instead = f'found "{found.step}"' if found.step else "the handler returns"
        return f'expected "{found.ahead[0]}"{more}, {instead}'
    if recorded.waits_at and found.step != recorded.waits_at:
        instead = f'goes on with "{found.step}"' if found.step else "returns"
        return f'waits at step "{recorded.waits_at}", but this code {instead}'
    return None
