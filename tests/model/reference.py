"""What the engine should do, as plainly as it can be said: dictionaries, no locks, no SQL.

One queue. Moments are microseconds. The rules are those of the contract (claim, fail, await, emit, cancel, retry); what the
contract leaves open (how many expired leases a claim fails) is said as the engine says it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SECOND = 1_000_000
ENDED = ("completed", "failed", "cancelled")


@dataclass
class Wait:
    """What a sleeping task waits for."""

    step: str
    event: str
    timeout_at: int | None


@dataclass
class Task:
    """A task and its current run."""

    id: uuid.UUID
    rank: int
    max_attempts: int | None
    retry_after: int  # microseconds
    due: int | None  # pending, sleeping: when it may start; running: when its lease ends; None: only an event wakes it
    state: str = "pending"
    attempt: int = 1
    result: Any = None
    wait: Wait | None = None
    timed_out: set[str] = field(default_factory=set)
    checkpoints: dict[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class Engine:
    """The reference."""

    def __init__(self) -> None:
        self.tasks: dict[uuid.UUID, Task] = {}
        self.events: dict[str, Any] = {}

    def spawn(self, task: Task) -> None:
        self.tasks[task.id] = task

    def claim(self, now: int, lease: int, qty: int, failed: Callable[[Task], bool]) -> list[Task]:
        """`failed`: which of several leases that ran out at one moment the engine failed; it may take any."""
        expired = sorted(
            (
                task
                for task in self.tasks.values()
                if task.state == "running" and task.due is not None and task.due <= now
            ),
            key=lambda task: (task.due or 0, not failed(task)),
        )
        for task in expired[: max(min(qty, (qty + 6) // 3), 1)]:
            self._fail(task, now)
        due = sorted(
            (
                task
                for task in self.tasks.values()
                if task.state in ("pending", "sleeping") and task.due is not None and task.due <= now
            ),
            key=lambda task: (task.rank, task.due, task.id),
        )
        taken = due[:qty]
        for task in taken:
            if task.wait is not None:  # its time has come without the event
                task.timed_out.add(task.wait.step)
                task.wait = None
            task.state, task.due = "running", now + lease
        return taken

    def complete(self, task: Task, result: Any) -> None:
        task.state, task.due, task.result = "completed", None, result

    def _fail(self, task: Task, now: int) -> None:
        task.wait = None
        if task.max_attempts is not None and task.attempt + 1 > task.max_attempts:
            task.state, task.due = "failed", None
            return
        task.attempt += 1
        task.due = now + task.retry_after
        task.state = "sleeping" if task.retry_after else "pending"

    def fail(self, task: Task, now: int) -> None:
        self._fail(task, now)

    def sleep(self, task: Task, until: int) -> None:
        task.state, task.due = "sleeping", until

    def await_event(self, task: Task, step: str, event: str, now: int, timeout: int | None) -> tuple[bool, Any]:
        """(asleep, payload)"""
        if step in task.checkpoints:
            return False, task.checkpoints[step]
        if step in task.timed_out:
            return False, None
        if event in self.events:
            task.checkpoints[step] = self.events[event]
            return False, self.events[event]
        task.wait = Wait(step, event, None if timeout is None else now + timeout)
        task.state, task.due = "sleeping", task.wait.timeout_at
        return True, None

    def emit(self, event: str, payload: Any, now: int) -> None:
        if event in self.events:
            return
        self.events[event] = payload
        for task in self.tasks.values():
            wait = task.wait
            if wait is None or wait.event != event:
                continue
            if wait.timeout_at is not None and wait.timeout_at <= now:
                continue  # too late: the claim says that it timed out
            task.checkpoints[wait.step] = payload
            task.wait, task.state, task.due = None, "pending", now

    def cancel(self, task: Task) -> None:
        if not task.ended:
            task.state, task.due, task.wait = "cancelled", None, None

    def retry(self, task: Task, now: int) -> None:
        """Another attempt for a failed task."""
        task.attempt += 1
        task.max_attempts = max(task.max_attempts or 0, task.attempt)
        task.state, task.due = "pending", now
