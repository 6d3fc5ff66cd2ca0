"""What the test kit answers."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from absurd.types import TaskState

Why = Literal["start", "sleep", "timeout", "retry", "lease", "cancellation"]
Side = Literal["before", "after", "late"]

ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Standing:
    """How a task stands.

    state     pending, running, sleeping, completed, failed or cancelled
    event     the event it waits for, awaits the task it waits for; step under which name
    until     when it goes on by itself: the end of a sleep, of a wait with a timeout, of a pause before a retry;
              while it runs, the end of its lease; None for a wait without a timeout
    result    what a completed task returned; failure is that of the last attempt that failed
    steps     what its steps have kept, by name; payloads of events among them
    """

    task_id: uuid.UUID
    task_name: str
    state: TaskState
    attempt: int
    event: str | None = None
    awaits: uuid.UUID | None = None
    step: str | None = None
    until: datetime | None = None
    result: Any = None
    failure: Any = None
    steps: Mapping[str, Any] = field(default_factory=dict)
    due: bool = False

    @property
    def ended(self) -> bool:
        """Whether the task is completed, failed or cancelled."""
        return self.state in ("completed", "failed", "cancelled")


@dataclass(frozen=True)
class Due:
    """What a clock was moved to: the moment, and the task that has something to do then.

    at    the moment, in UTC
    why   start (a delayed one), sleep, timeout (of a wait), retry, lease (of a worker that is gone), cancellation
    step  the name of the sleep or wait; event the event that did not come
    """

    at: datetime
    why: Why
    task_id: uuid.UUID
    task_name: str
    step: str | None = None
    event: str | None = None


@dataclass(frozen=True)
class Drained:
    """What `drain` did.

    runs      how many handlers were run
    moves     how often the clock was moved
    outcomes  completed, failed, snoozed, suspended, lost, cancelled: how many runs ended so
    left      state: how many tasks of the queue have not ended
    """

    runs: int
    outcomes: Mapping[str, int]
    moves: int
    left: Mapping[str, int]


@dataclass(frozen=True)
class Boundary:
    """A commit of a run: its kind, the name of its step, task or event, and the how-manieth of that kind and name.

    kind  checkpoint, transaction, sleep, wait, emit, spawn, cancel, retry, heartbeat, failure, completion
    """

    kind: str
    name: str
    number: int = 1
    aside: bool = field(default=False, compare=False, repr=False)
    begun: int = field(default=0, compare=False, repr=False)

    def __str__(self) -> str:
        named = f'{self.kind} "{self.name}"' if self.name else self.kind
        return named if self.number == 1 else f"{named} (number {self.number})"


@dataclass(frozen=True)
class CrashReport:
    """What `crash_everywhere` has tried: the commits of the undisturbed run, in order, how many runs there were, and the state
    and result that each of them came to."""

    boundaries: tuple[Boundary, ...]
    runs: int
    state: TaskState
    result: Any


class Killed(BaseException):
    """The worker dies here, as far as the database can tell."""


def without_ids(name: str) -> str:
    """A name in which no id stands: those of tasks differ from run to run."""
    return ID.sub("<id>", name)
