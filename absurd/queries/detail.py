"""Questions about one task of any size: a part of its history, payloads cut short, and one payload whole.

`tasks.get` reads all there is of a task. These read a page of it, however many checkpoints and attempts there are and
however large its payloads.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from absurd.queries import Page, Query
from absurd.queries.tasks import State, Task, Wait

Part = Literal["params", "headers", "result", "failure", "checkpoint", "run_result", "run_failure"]


@dataclass(frozen=True)
class Preview:
    """JSON as text, or its beginning. `size` is that of the whole text in bytes.

    text   None when the value is so large that it was not even read; `size` is then what it takes on disk
    whole  nothing was cut off
    """

    text: str | None
    size: int
    whole: bool


@dataclass(frozen=True)
class RunView:
    """One attempt, as `tasks.Run`, with previews. `error` is the failure's name and message, short."""

    run_id: UUID
    attempt: int
    state: State
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    claimed_by: str | None
    wake_event: str | None
    wake_step: str | None
    error: str | None
    result: Preview | None
    failure: Preview | None


@dataclass(frozen=True)
class CheckpointView:
    """The kept outcome of a step, a sleep or a wait, as `tasks.Checkpoint`, with a preview of its state."""

    name: str
    state: Preview | None
    status: str
    outcome: str | None
    attempt: int
    updated_at: datetime


@dataclass(frozen=True)
class TaskView:
    """One task with as much of its history as a page shows, in one statement.

    runs              the newest, oldest first; `run_count` of all
    checkpoints       the newest (or the oldest), oldest first; `checkpoint_count` of all, `checkpoints_capped`: at least
    checkpoints_next  cursor for `checkpoints`, which goes on in the same direction; None when these are all
    waits             at most 100
    """

    task: Task
    params: Preview
    headers: Preview | None
    retry_strategy: object
    cancellation: object
    result: Preview | None
    failure: Preview | None
    runs: tuple[RunView, ...]
    run_count: int
    checkpoints: tuple[CheckpointView, ...]
    checkpoint_count: int
    checkpoints_capped: bool
    checkpoints_next: str | None
    waits: tuple[Wait, ...]


@dataclass(frozen=True)
class Payload:
    """One value whole, as JSON text."""

    text: str
    size: int


def get(
    task_or_run_id: UUID,
    queue: str | None = None,
    *,
    runs: int = 50,
    checkpoints: int = 200,
    newest: bool = True,
    preview: int = 65_536,
    checkpoint_preview: int = 2_048,
) -> Query[TaskView | None]:
    """One task, by its id or the id of one of its runs; None when no queue holds it. Sizes of previews in characters."""
    raise NotImplementedError


def checkpoints(
    queue: str, task_id: UUID, *, limit: int = 200, newest: bool = True, after: str | None = None, preview: int = 2_048
) -> Query[Page[CheckpointView]]:
    """More checkpoints of a task: from the newest back (or from the oldest on), in that order. ConfigError for a cursor
    that is none."""
    raise NotImplementedError


def payload(queue: str, task_id: UUID, part: Part, name: str | int | None = None) -> Query[Payload | None]:
    """One value of a task, whole; None when there is none. `name`: of the checkpoint, or the number of the attempt."""
    raise NotImplementedError
