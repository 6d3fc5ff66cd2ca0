"""Around a step: whether it comes in the recorded order, how often it is tried, several at once, how it is undone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from absurd._async import _compat
from absurd._core import codec, options, registry
from absurd._core.replay import REFUSED, UNDO, UNORDERED, is_mark
from absurd._core.retries import ONCE, StepPolicy
from absurd._db import procedures
from absurd.errors import ConfigError, InvalidOption, StepNameError, StepOrderChanged
from absurd.types import TaskHistory

if TYPE_CHECKING:
    from absurd._async.context import AsyncTaskContext

#: As many attempts as a task can have: a compensation does not give up.
UNTIL_DONE = 65_535
#: An undo is a checkpoint of its own, whose name must fit, too.
LONGEST_UNDONE = 1000


async def mark(ctx: AsyncTaskContext) -> None:
    """Called before something is recorded when the record will not tell the way to it: that is recorded first.

    Whoever comes while the mark is on its way writes it too: what is recorded without it would look like an order.
    """
    await ctx._write_checkpoint(UNORDERED, "true")
    ctx._history.marked()


async def fresh(ctx: AsyncTaskContext, checkpoint: str) -> None:
    """Called before anything new is done while something recorded lies ahead.

    Only what this attempt itself has recorded counts: another attempt may take another way. Raises StepOrderChanged, now and at
    every later call.
    """
    history, claim = ctx._history, ctx._claim
    if history.untold:
        return
    recorded = await ctx._client._session.run(procedures.task_history(claim.queue_name, claim.task_id))
    ahead = [] if recorded is None else judged(recorded, history.ahead(checkpoint), history.passed)
    if not ahead:
        history.lenient()
        return
    error = StepOrderChanged(
        f'task "{claim.task_name}" asks for step "{checkpoint}", which is new, while what it did before is still ahead: '
        f'expected {listed(ahead)}, found "{checkpoint}"'
    )
    ctx.log.error("%s", error)
    text = codec.encode({"expected": ahead[:10], "found": checkpoint, "message": str(error)}, what="refusal")
    await ctx._write_checkpoint(REFUSED, text)
    ctx._running.interrupt(error)
    raise error


def judged(recorded: TaskHistory, ahead: set[str], passed: list[str]) -> list[str]:
    """Of what lies ahead, what the task's current attempt did after the last thing that has been asked for, in that order.

    What lies between things asked for was left out on purpose: a step that was done is gone. That follows from the order
    alone: where `passed`, what has been asked for one by one, is not in the recorded order, all that lies ahead counts.
    """
    if not recorded.ordered or UNORDERED in recorded.checkpoints:
        return []
    known = zip(recorded.steps, recorded.step_attempts, strict=True)
    way = [name for name, attempt in known if attempt == recorded.attempt and not is_mark(name)]
    places = {name: place for place, name in enumerate(way)}
    order = [places[name] for name in passed if name in places]
    if order != sorted(order):
        return [name for name in way if name in ahead]
    asked = [place for place, name in enumerate(way) if name not in ahead]
    return way[asked[-1] + 1 :] if asked else way


def listed(names: list[str]) -> str:
    """The first of some steps, and how many more."""
    return f'"{names[0]}"' + (f" and {len(names) - 1} more" if len(names) > 1 else "")


async def tried(ctx: AsyncTaskContext, checkpoint: str, fn: Callable[[], Any], policy: StepPolicy) -> Any:
    """The value of a step's function, tried as often as its policy says."""
    count = 0
    while True:
        count += 1
        try:
            return await _compat.within(policy.timeout, fn, f'step "{checkpoint}"')
        except Exception as error:
            pause = policy.pause(count, error)
            if pause is None:
                raise
            ctx.log.warning('step "%s" failed, try %s of %s: %s', checkpoint, count, policy.max_attempts, error)
        while pause > 0:
            ctx._check()
            await _compat.sleep(min(pause, 0.2))
            pause -= 0.2
        ctx._check()


async def gather(ctx: AsyncTaskContext, calls: Mapping[str, Callable[[], Any]], limit: int | None) -> dict[str, Any]:
    """Steps side by side: all names are taken first, then what is missing runs."""
    if not isinstance(calls, Mapping):
        raise InvalidOption(f"gather takes functions by step name, not {calls!r:.40}")
    if limit is not None:
        options.whole_number(limit, "limit")
    names = {name: ctx._history.next_name(name) for name in calls}
    ctx._check()
    if ctx._running.elsewhere():
        ctx._history.untold = True
    kept = ctx._history.take_group(names.values())
    values = {name: kept[checkpoint] for name, checkpoint in names.items() if checkpoint in kept}
    missing = [name for name in calls if name not in values]
    if missing and ctx._history.ahead(names[missing[0]]):
        await fresh(ctx, names[missing[0]])

    async def run(name: str) -> Any:
        ctx._check()
        return await ctx._keep(names[name], await tried(ctx, names[name], calls[name], ONCE))

    try:
        ended = await _compat.all_of([functools.partial(run, name) for name in missing], limit or len(missing))
    except BaseException:
        ctx._history.untold = True
        raise
    for name, value in zip(missing, ended, strict=True):
        if isinstance(value, BaseException):
            ctx._history.failed(names[name])
    errors = [value for value in ended if isinstance(value, BaseException)]
    # control flow first: a lost lease says more than what a step made of it
    if errors:
        raise min(errors, key=lambda error: isinstance(error, Exception))
    values.update(zip(missing, ended, strict=True))
    return {name: values[name] for name in calls}


async def intend(ctx: AsyncTaskContext, checkpoint: str, undo: str) -> None:
    """Before a step that can be undone runs: who undoes it is recorded, and the companion that will see to it is there."""
    history, claim = ctx._history, ctx._claim
    if not ctx._task.saga:
        raise ConfigError(f'a step of task "{claim.task_name}" has undo=: register the task with saga=True')
    if not isinstance(undo, str) or not undo.strip():
        raise InvalidOption(f"undo must be the name of a task that undoes the step, not {undo!r}")
    if len(checkpoint.encode()) > LONGEST_UNDONE:
        raise StepNameError(f"the name of a step with undo= is limited to {LONGEST_UNDONE} bytes: shorten it")
    name = f"{UNDO}:{checkpoint}"
    try:
        if history.kept(UNDO) is None:
            await _accompany(ctx)
        if history.kept(name) is None:
            told = {"step": checkpoint, "task": undo, "number": history.marks(f"{UNDO}:") + 1}
            await ctx._write_checkpoint(name, codec.encode(told, what="undo"))
            history.keep(name, told)
    except BaseException:
        history.untold = True
        raise


async def _accompany(ctx: AsyncTaskContext) -> None:
    """Spawn the companion and keep that it is there, in one transaction."""
    claim = ctx._claim
    async with ctx._transaction(UNDO) as tx:
        spawned = await tx.spawn(
            registry.undo_name(claim.task_name),
            {"task_id": str(claim.task_id)},
            queue=claim.queue_name,
            max_attempts=UNTIL_DONE,
            headers=ctx.headers or None,
            idempotency_key=f"{UNDO}:{claim.task_id}",  # two steps side by side both find none
        )
        tx.result = {"task_id": spawned["task_id"]}
