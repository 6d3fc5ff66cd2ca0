"""One claimed run, from handler to outcome. Never raises: whatever a handler does becomes a value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from absurd._async import _compat, context
from absurd._core import codec, outcome
from absurd._core.outcome import Outcome, Released
from absurd._core.registry import RegisteredTask
from absurd._db.procedures import Claim
from absurd.errors import ConfigError, StepOrderChanged, ValueTooLarge
from absurd.telemetry import RunFields, current_run, logger

if TYPE_CHECKING:
    from absurd._async.client import AsyncAbsurd


async def execute(
    client: AsyncAbsurd, claim: Claim, writer: context.Writer, running: _compat.Running, lease: float
) -> Outcome:
    """Run the handler of a claim that this client knows; the outcome is not written yet."""
    task = client._registry.get(claim.task_name)
    if task is None:
        return outcome.failed(ConfigError(f'task "{claim.task_name}" is not registered'))
    if task.queue != claim.queue_name:
        return outcome.failed(ConfigError("Misconfigured task (queue mismatch)"))
    for value in (claim.params, claim.headers, claim.checkpoints):
        if isinstance(value, codec.Unreadable):
            return outcome.failed(value.error)
    if isinstance(claim.checkpoints, str):  # what claim_tasks says instead of more than one value can hold
        return outcome.failed(ValueTooLarge("the kept values of this task exceed 200 MiB together: keep less per step"))
    try:
        return await running.run(lambda: _handle(client, task, claim, writer, running, lease))
    except _compat.Cancelled:
        # cancelled from outside before the handler could say anything, or the loop is closing
        return outcome.raised(running.reason or Released())


async def _handle(
    client: AsyncAbsurd,
    task: RegisteredTask,
    claim: Claim,
    writer: context.Writer,
    running: _compat.Running,
    lease: float,
) -> Outcome:
    running.enter()
    ctx = context.make_context(client, claim, writer, running, lease, task)
    context.current.set(ctx)
    current_run.set(RunFields(claim.task_name, claim.task_id, ctx.run_id, claim.attempt))
    try:
        ended = outcome.completed(task.check_result(await call(client, task, claim, ctx)))
    except BaseException as error:
        # a cancellation is ours when there is a reason for it, and the handler's own failure otherwise
        if running.reason is not None and isinstance(running.reason, StepOrderChanged):
            return outcome.raised(running.reason)  # whatever the handler made of it
        if isinstance(error, _compat.Cancelled) and running.reason is not None:
            return outcome.raised(running.reason)
        return outcome.raised(error)
    if running.reason is not None and not isinstance(running.reason, Released):
        return outcome.raised(running.reason)
    return ended


async def call(client: AsyncAbsurd, task: RegisteredTask, claim: Claim, ctx: context.AsyncTaskContext) -> Any:
    """The handler, inside the client's hook."""
    params = task.check_params(claim.params)
    wrap = client._hooks.get("wrap_task_execution")
    if wrap is None:
        return await task.handler(params, ctx)
    return await _compat.maybe_await(wrap(ctx, lambda: task.handler(params, ctx)))


def report(claim: Claim, ended: Outcome) -> None:
    """One log line for what went wrong; the rest is at DEBUG, since a line per task costs more than the task."""
    if ended.kind == "failed":
        why = codec.decode(ended.body)
        logger.warning(
            'task "%s" (%s) failed in attempt %s: %s: %s',
            claim.task_name,
            claim.task_id,
            claim.attempt,
            why["name"],
            why["message"],
        )
    elif ended.kind in ("lost", "cancelled"):
        logger.warning(
            'task "%s" (%s), attempt %s: %s; its results are not recorded',
            claim.task_name,
            claim.task_id,
            claim.attempt,
            ended.kind,
        )
