"""Why a task is not running: one sentence from what is known of it. No database is asked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol

from absurd.queries import as_json
from absurd.queries.tasks import Task, Wait


class _Attempt(Protocol):
    @property
    def state(self) -> str: ...
    @property
    def attempt(self) -> int: ...


class _Kept(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def updated_at(self) -> datetime: ...


class Told(Protocol):
    """What it takes of a task: `tasks.TaskDetail` and `detail.TaskView` have it."""

    @property
    def task(self) -> Task: ...
    @property
    def runs(self) -> Sequence[_Attempt]: ...
    @property
    def checkpoints(self) -> Sequence[_Kept]: ...
    @property
    def waits(self) -> Sequence[Wait]: ...


def explain(detail: Told) -> str:
    """How the task stands and what, if anything, will make it move, as of the moment it was read."""
    task = detail.task
    if task.finished_at is not None:
        return _ended(task)
    if task.cancel_at is not None and task.cancel_at <= task.as_of:
        return f"Its cancellation policy ran out at {at(task.cancel_at)}: the next claim on its queue cancels it."
    if task.state == "running":
        return _running(task)
    if detail.waits:
        return _waiting(detail)
    if task.due_at is None:
        return "Nothing will wake it: it has no due time and waits for nothing. Please run `absurdctl verify`."
    if task.due_at > task.as_of:
        return f"{_reason(detail)} at {at(task.due_at)}, in {span(task.due_at - task.as_of)}."
    since = f"since {at(task.due_at)} ({span(task.as_of - task.due_at)})"
    return f"It is due {since} and waits for a worker of queue '{task.queue_name}' that knows '{task.task_name}'."


def at(moment: datetime) -> str:
    """A moment for people: UTC, to the second."""
    return str(as_json(moment.replace(microsecond=0))).replace("T", " ")


def span(length: timedelta) -> str:
    """A length of time for people, in its two largest units: `3d 4h`, `12m 5s`, `0s`."""
    seconds = max(0, int(length.total_seconds()))
    parts = [("d", seconds // 86400), ("h", seconds // 3600 % 24), ("m", seconds // 60 % 60), ("s", seconds % 60)]
    first = next((index for index, (_, count) in enumerate(parts) if count), 3)
    return " ".join(f"{count}{unit}" for unit, count in parts[first : first + 2] if count or first == 3)


def _ended(task: Task) -> str:
    assert task.finished_at is not None
    if task.state == "failed":
        limit = f" of {task.max_attempts}" if task.max_attempts is not None else ""
        error = f": {task.error}" if task.error else ""
        return f"It failed for good at {at(task.finished_at)}, after attempt {task.attempt}{limit}{error}"
    return f"It was {task.state} at {at(task.finished_at)}."


def _running(task: Task) -> str:
    if task.lease_until is None:
        return f"Worker {task.claimed_by} runs it, without a lease: nobody else takes it over."
    if task.lease_until > task.as_of:
        return f"It is running: worker {task.claimed_by} holds it until {at(task.lease_until)}."
    return (
        f"The claim of worker {task.claimed_by} ran out at {at(task.lease_until)}: "
        "the next claim on its queue fails this attempt and retries or ends the task."
    )


def _waiting(detail: Told) -> str:
    wait = detail.waits[0]
    if wait.event_name is not None:
        what = f"event '{wait.event_name}'"
    else:
        what = f"task {wait.awaited_task_id} in queue '{wait.awaited_queue or '(dropped)'}'"
    limit = f", until {at(wait.timeout_at)} at most" if wait.timeout_at else ""
    return f"It waits for {what} since {at(wait.created_at)}{limit}."


def _reason(detail: Told) -> str:
    task, last = detail.task, detail.runs[-2] if len(detail.runs) > 1 else None
    latest = max(detail.checkpoints, key=lambda each: each.updated_at, default=None)
    if latest is not None and latest.name == "$refused":
        return "The code at hand does not fit what it has recorded (checkpoint $refused); it is tried again"
    if task.started_at is not None:
        return "It sleeps and wakes up"
    if last is not None and last.state == "failed":
        return f"Attempt {last.attempt} failed; attempt {task.attempt} starts"
    return "It starts"
