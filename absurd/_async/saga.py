"""Compensations: a companion task waits for the end of a task, and undoes its steps when that end is no success.

It runs the task's handler over what is recorded, effects off: that gives the functions back that undo each step, with all they
close over. Then it calls them in reverse, each as a durable step of its own.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from absurd._async.rehearsal import rehearse
from absurd._async.steps import PARENT
from absurd._db import procedures
from absurd.errors import StepError, TaskNotFound

if TYPE_CHECKING:
    from absurd._async.client import AsyncAbsurd
    from absurd._async.context import AsyncTaskContext
#: A compensation is tried until it is done, after 10 s, 20 s, ... and then every 5 minutes.
RETRIES = {"kind": "exponential", "base_seconds": 10, "factor": 2, "max_seconds": 300, "jitter": 0.2}


async def undo(client: AsyncAbsurd, params: Any, ctx: AsyncTaskContext) -> dict[str, Any]:
    """The companion's handler. Its result: how the task ended, and which steps were undone, in that order."""
    parent = uuid.UUID(params["task_id"])
    try:
        ended = await ctx.await_task_result(parent, step_name=PARENT)
    except TaskNotFound:
        return {"task": "gone", "undone": []}
    if ended.state == "completed":
        return {"task": ended.state, "undone": []}
    recorded = await client._session.run(procedures.task_history(ctx.queue_name, parent))
    if recorded is None:
        raise StepError(f'task "{parent}" was deleted before it was undone')
    rehearsed = await rehearse(client, recorded)
    if rehearsed.ahead:
        raise StepError(
            f'task "{parent}" cannot be undone by this code, which does not come to its step "{rehearsed.ahead[0]}"'
        ) from rehearsed.error
    undone = []
    for name, function, value in reversed(rehearsed.undo):
        await ctx.step(f"undo {name}", _bound(function, value))
        undone.append(name)
    return {"task": ended.state, "undone": undone}


def _bound(function: Any, value: Any) -> Any:
    return lambda: function(value)
