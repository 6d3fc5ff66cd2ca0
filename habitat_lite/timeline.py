"""One axis for a task: attempts, waits and sleeps as spans, checkpoints as points, in percent of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from absurd.queries.detail import TaskView

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
    attempt: int | None = None
    note: str = ""


def marks(detail: TaskView) -> list[Mark]:
    """Everything that happened, in its order, on one axis from the spawn to the end, or to now."""
    task = detail.task
    start = task.enqueue_at
    end = max(task.finished_at or task.as_of, start + timedelta(milliseconds=1))
    whole = (end - start).total_seconds()

    def mark(kind: str, label: str, at: datetime, until: datetime | None = None, **more: Any) -> Mark:
        left = min(max((at - start).total_seconds() / whole * 100, 0.0), 100.0)
        width = 0.0 if until is None else max((min(until, end) - at).total_seconds() / whole * 100, 0.0)
        return Mark(kind, label, at, until, round(left, 2), round(min(width, 100 - left), 2), **more)

    found = [mark("spawn", "spawned", start)]
    for run in detail.runs:
        if run.started_at is not None:
            until = run.finished_at or (task.as_of if run.state == "running" else None)
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
        what = f"event {wait.event_name}" if wait.event_name is not None else f"task {wait.awaited_task_id}"
        found.append(mark("wait", f"waits for {what}", wait.created_at, end, note=f"step {wait.step_name}"))
    if task.finished_at is not None:
        found.append(mark(task.state, task.state, task.finished_at))
    return sorted(found, key=lambda each: (each.at, each.kind == task.state))


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


def by_attempt(found: Sequence[Mark]) -> dict[int | None, list[Mark]]:
    """The marks of each attempt, in order; None: those of none."""
    groups: dict[int | None, list[Mark]] = {}
    for mark in found:
        groups.setdefault(mark.attempt, []).append(mark)
    return groups
