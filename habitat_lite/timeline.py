"""One axis for a task: attempts, waits and sleeps as spans, checkpoints as points, in percent of the whole."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from absurd.queries.detail import TaskView
from absurd.queries.tasks import Task


class Waiting(Protocol):
    """A wait, of a task's page or of the list."""

    @property
    def step_name(self) -> str: ...
    @property
    def event_name(self) -> str | None: ...
    @property
    def awaited_task_id(self) -> UUID | None: ...


#: lengths of the axis of a task that goes on, in seconds: it grows by steps, so that a page at which nothing happens stays
_STEPS = [1, 2, 5, 10, 20, 30, *(60 * n for n in (1, 2, 5, 10, 20, 30)), *(3600 * n for n in (1, 2, 4, 8, 12))]
_DAY = 86_400
_EVENT, _TASK, _FAILED = "$awaitEvent:", "$awaitTaskResult:", "$failed:"


@dataclass(frozen=True)
class Mark:
    """Something with a moment, or from one to another. `left` and `width` in percent of the axis; width 0: a point."""

    kind: str
    label: str
    at: datetime
    until: datetime | None
    left: float
    width: float
    after: timedelta
    attempt: int | None = None
    note: str = ""


def marks(detail: TaskView) -> list[Mark]:
    """Everything that happened, in its order, on one axis that begins with the spawn. What goes on reaches to its end."""
    task = detail.task
    start = task.enqueue_at
    end = start + axis(task)
    whole = axis(task).total_seconds()

    def mark(kind: str, label: str, at: datetime, until: datetime | None = None, **more: Any) -> Mark:
        left = min(max((at - start).total_seconds() / whole * 100, 0.0), 100.0)
        width = 0.0 if until is None else max((min(until, end) - at).total_seconds() / whole * 100, 0.0)
        return Mark(kind, label, at, until, round(left, 2), round(min(width, 100 - left), 2), at - start, **more)

    found = [mark("spawn", "spawned", start)]
    for run in detail.runs:
        if run.started_at is not None:
            until = run.finished_at or (end if run.state == "running" else None)
            note = f"by {run.claimed_by}" if run.claimed_by else ""
            found.append(
                mark(
                    run.state,
                    f"attempt {run.attempt}: {run.state}",
                    run.started_at,
                    until,
                    attempt=run.attempt,
                    note=note,
                )
            )
    for each in detail.checkpoints:
        kind, label = named(each.name, each.outcome)
        found.append(mark(kind, label, each.updated_at, attempt=each.attempt))
    for wait in detail.waits:
        what = wait.event_name if wait.event_name is not None else f"task {wait.awaited_task_id}"
        found.append(mark("wait", f"waits for {what}", wait.created_at, end, note=step_of(wait)))
    if task.finished_at is not None:
        found.append(mark(task.state, task.state, task.finished_at))
    return sorted(found, key=lambda each: (each.at, each.kind == task.state))


def axis(task: Task) -> timedelta:
    """How long the axis is: what the task took, or, while it goes on, the next round length."""
    if task.finished_at is not None:
        return max(task.finished_at - task.enqueue_at, timedelta(milliseconds=1))
    so_far = (task.as_of - task.enqueue_at).total_seconds()
    days = -(-int(so_far) // _DAY)
    return timedelta(seconds=next((step for step in _STEPS if step > so_far), max(days, 1) * _DAY))


def named(checkpoint: str, outcome: str | None) -> tuple[str, str]:
    """What a checkpoint is (step, event, task, caught, timeout) and how it is called."""
    for prefix, kind, text in (
        (_EVENT, "event", "event {}"),
        (_TASK, "task", "task {}"),
        (_FAILED, "caught", "{} failed"),
    ):
        if checkpoint.startswith(prefix):
            text = text.format(checkpoint.removeprefix(prefix))
            return ("timeout", f"{text} timed out") if outcome == "timeout" else (kind, text)
    return ("timeout", f"{checkpoint} timed out") if outcome == "timeout" else ("step", checkpoint)


def step_of(wait: Waiting) -> str:
    """The name of a wait's step where it says more than what is waited for."""
    usual = f"{_EVENT}{wait.event_name}" if wait.event_name is not None else f"{_TASK}{wait.awaited_task_id}"
    return "" if wait.step_name == usual else f"step {wait.step_name}"
