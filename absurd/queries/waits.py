"""Questions about waits: who sleeps for what, since when and until when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from absurd.queries import Page, Query


@dataclass(frozen=True)
class WaitFilter:
    """Which waits. None means any; `queue=None` walks all queues.

    event    name of the event, exact, or a prefix that ends in `*`
    task     `True` only waits for other tasks, `False` only those for events
    budget   rows looked at before the page ends where it is
    after    `Page.next` of the page before
    """

    queue: str | None = None
    event: str | None = None
    task: bool | None = None
    limit: int = 50
    budget: int = 20_000
    after: str | None = None


@dataclass(frozen=True)
class Wait:
    """A sleeping task, and the event or the task that it sleeps for. `timeout_at` None: for as long as it takes.

    `awaited_state` is how the awaited task stands; None when it waits for an event, or that task is gone.
    """

    queue_name: str
    task_id: UUID
    task_name: str
    run_id: UUID
    step_name: str
    event_name: str | None
    awaited_queue: str | None
    awaited_task_id: UUID | None
    awaited_task_name: str | None
    awaited_state: str | None
    created_at: datetime
    timeout_at: datetime | None
    as_of: datetime


def find(which: WaitFilter) -> Query[Page[Wait]]:
    """Waits, those of the newest tasks first. Raises ConfigError for a cursor that is none, or a limit or budget below 1."""
    raise NotImplementedError
