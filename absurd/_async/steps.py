"""Before a step and inside one: whether it comes in the recorded order, and how often it is tried."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from absurd._async import _compat
from absurd._core import codec, options, registry
from absurd._core.replay import FAILED
from absurd._core.retries import ONCE, StepPolicy
from absurd._db import procedures
from absurd.errors import Compensated, ConfigError, StepOrderChanged

if TYPE_CHECKING:
    from absurd._async.context import AsyncTaskContext

#: The step of a task under which its companion is spawned, and the step of the companion that waits for the task.
COMPANION = "$undo"
PARENT = "$parent"
#: As many attempts as a task can have: a compensation does not give up.
UNTIL_DONE = 65_535


async def fresh(ctx: AsyncTaskContext, checkpoint: str) -> None:
    """Called before anything new is done: what is recorded comes first.

    Steps that failed while the handler went on are recorded now: from there the next execution may take another way. Calls of
    other asyncio tasks (threads) of the handler have no order, and what such siblings are about to ask for is not skipped.
    Raises StepOrderChanged.
    """
    history = ctx._history
    for name, error in list(history.unsaid.items()):
        if name != checkpoint and not history.said(name):
            await ctx._write_checkpoint(FAILED + name, codec.encode(codec.error_payload(error), what="error of a step"))
    if not history.ahead(checkpoint):
        return
    if _compat.whereabouts() is not ctx._home:
        history.relax()
        return
    await _compat.let_others_run()
    if ahead := history.ahead(checkpoint):
        raise await _order_changed(ctx, checkpoint, ahead)


async def _order_changed(ctx: AsyncTaskContext, checkpoint: str, ahead: set[str]) -> StepOrderChanged:
    claim = ctx._claim
    recorded = await ctx._client._session.run(procedures.task_history(claim.queue_name, claim.task_id))
    order = [name for name in recorded.steps if name in ahead] if recorded else []
    expected = (order or sorted(ahead))[0]
    more = f" and {len(ahead) - 1} more" if len(ahead) > 1 else ""
    return StepOrderChanged(
        f'task "{claim.task_name}" asks for step "{checkpoint}", which is new, while what it did before is still ahead: '
        f'expected "{expected}"{more}, found "{checkpoint}"'
    )


async def tried(ctx: AsyncTaskContext, checkpoint: str, fn: Callable[[], Any], policy: StepPolicy) -> Any:
    """The value of a step's function, tried as often as its policy says; what it raises in the end is remembered."""
    count = 0
    while True:
        count += 1
        try:
            return await _compat.within(policy.timeout, fn, f'step "{checkpoint}"')
        except Exception as error:
            pause = policy.pause(count, error)
            if pause is None:
                ctx._history.failed(checkpoint, error)
                raise
            ctx.log.warning('step "%s" failed, try %s of %s: %s', checkpoint, count, policy.max_attempts, error)
        while pause > 0:
            ctx._check()
            await _compat.sleep(min(pause, 0.2))
            pause -= 0.2
        ctx._check()


async def gather(ctx: AsyncTaskContext, calls: Mapping[str, Callable[[], Any]], limit: int | None) -> dict[str, Any]:
    """Steps side by side: all names are taken first, then what is missing runs."""
    if limit is not None:
        options.whole_number(limit, "limit")
    names = {name: ctx._history.next_name(name) for name in calls}
    ctx._check()
    values: dict[str, Any] = {}
    missing: list[str] = []
    for name, checkpoint in names.items():
        done, state = ctx._history.take(checkpoint)
        if done:
            values[name] = state
        else:
            missing.append(name)
    if missing and ctx._history.uneasy:
        await fresh(ctx, names[missing[0]])

    async def run(name: str) -> Any:
        ctx._check()
        return await ctx._keep(names[name], await tried(ctx, names[name], calls[name], ONCE))

    ended = await _compat.all_of([functools.partial(run, name) for name in missing], limit or len(missing))
    errors = [value for value in ended if isinstance(value, BaseException)]
    # control flow first: a lost lease says more than what a step made of it
    if errors:
        raise min(errors, key=lambda error: isinstance(error, Exception))
    values.update(zip(missing, ended, strict=True))
    return {name: values[name] for name in calls}


async def guard(ctx: AsyncTaskContext) -> None:
    """Before the first step that can be undone: the companion, which undoes it, is there. Compensated when it has gone to work:
    then the effects are gone, and must not be taken for done."""
    history, claim = ctx._history, ctx._claim
    if not ctx._task.saga:
        raise ConfigError(f'a step of task "{claim.task_name}" has undo=: register the task with saga=True')
    if ctx._guarded:
        return
    ctx._check()
    done, companion = history.take(history.next_name(COMPANION))
    if not done:
        chosen = {"queue": claim.queue_name, "max_attempts": UNTIL_DONE}
        await ctx._spawn(COMPANION, registry.undo_name(claim.task_name), {"task_id": str(claim.task_id)}, chosen)
    elif claim.attempt > 1 and await _undone(ctx, UUID(companion["task_id"])):
        raise Compensated(f'task "{claim.task_id}" has been undone by task "{companion["task_id"]}"')
    ctx._guarded = True


async def _undone(ctx: AsyncTaskContext, companion: UUID) -> bool:
    """Whether the companion has seen the task end: it is woken in the same transaction, so it cannot miss that."""
    recorded = await ctx._client._session.run(procedures.task_history(ctx.queue_name, companion))
    return recorded is None or PARENT in recorded.checkpoints
