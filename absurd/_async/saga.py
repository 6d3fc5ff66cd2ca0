"""Compensations: a companion task waits for the end of a task, and undoes its steps when that end is no success.

A step's `undo` is the name of a task. The companion spawns these, for the step begun last first, and waits for each.
"""

from __future__ import annotations

import functools
import uuid
from typing import TYPE_CHECKING, Any

from absurd._async.steps import UNTIL_DONE
from absurd._core.replay import UNDO
from absurd._db import procedures
from absurd.errors import NonRetryableError, TaskNotFound

if TYPE_CHECKING:
    from absurd._async.context import AsyncTaskContext
    from absurd.types import TaskResultSnapshot

#: A compensation is tried until it is done, after 10 s, 20 s, ... and then every 5 minutes, unless its task says otherwise.
RETRIES = {"kind": "exponential", "base_seconds": 10, "factor": 2, "max_seconds": 300, "jitter": 0.2}


async def undo(params: Any, ctx: AsyncTaskContext) -> dict[str, Any]:
    """The companion's handler. Its result: how the task ended, and which steps were undone, in that order. When an undo has
    failed for good, it does the others and fails."""
    parent = uuid.UUID(params["task_id"])
    try:
        ended = await ctx.await_task_result(parent, step_name="end of the task")
    except TaskNotFound:
        raise _deleted(parent) from None
    if ended.state == "completed":
        return {"task": ended.state, "undone": []}
    record = await ctx.step("record", functools.partial(_record, ctx, parent, ended))
    if record.get("settle"):  # a record that an earlier release has made has none
        await ctx.sleep_for("settle", record["settle"])
    undone: list[str] = []
    failed: list[str] = []
    for number, each in enumerate(record["undo"], 1):
        task = ctx._client._registry.get(each["task"])
        spawned = await ctx.spawn(
            each["task"],
            {**each, "task_id": str(parent), "task_name": record["task_name"], "params": record["params"]},
            step_name=f"undo {number}",
            max_attempts=UNTIL_DONE,
            headers=ctx.headers or None,
            retry_strategy=(task and task.default_retry_strategy) or RETRIES,
        )
        queue = task.queue if task is not None else ctx.queue_name
        outcome = await ctx.await_task_result(spawned["task_id"], queue, step_name=f"undone {number}")
        (undone if outcome.state == "completed" else failed).append(each["step"])
    if failed:
        raise NonRetryableError(f"not undone: {', '.join(failed)}; undone: {', '.join(undone) or 'nothing'}")
    return {"task": ended.state, "undone": undone}


async def _record(ctx: AsyncTaskContext, parent: uuid.UUID, ended: TaskResultSnapshot) -> dict[str, Any]:
    """What there is to undo, the step begun last first: kept here, whatever becomes of the task's own record. And `settle`, in
    seconds, when a step may still be under way."""
    recorded = await ctx._client._session.run(procedures.task_history(ctx.queue_name, parent))
    if recorded is None:
        raise _deleted(parent)
    marks = [value for name, value in recorded.checkpoints.items() if name.startswith(f"{UNDO}:")]
    record: dict[str, Any] = {
        "task_name": recorded.task_name,
        "params": recorded.params,
        "undo": [
            {
                "step": each["step"],
                "task": each["task"],
                "kept": each["step"] in recorded.checkpoints,
                "value": recorded.checkpoints.get(each["step"]),
            }
            for each in sorted(marks, key=lambda each: -each["number"])
        ],
    }
    if _from_outside(ended) and not all(each["kept"] for each in record["undo"]):
        record["settle"] = ctx._lease
    return record


def _from_outside(ended: TaskResultSnapshot) -> bool:
    """Whether the task was ended over its handler's head: that hears of it when its lease is next renewed, or never. What it
    does meanwhile it cannot keep any more, so what is recorded stays as it is."""
    failure = ended.failure
    return ended.state == "cancelled" or (isinstance(failure, dict) and failure.get("name") == "$ClaimTimeout")


def _deleted(parent: uuid.UUID) -> NonRetryableError:
    """What no further attempt mends."""
    return NonRetryableError(f'task "{parent}" was deleted before it was undone')
