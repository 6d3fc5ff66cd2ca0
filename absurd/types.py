"""The public nouns: what goes in and what comes out. Plain data, no behaviour, no imports of other rooms."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias, TypedDict

JsonValue: TypeAlias = "dict[str, JsonValue] | list[JsonValue] | str | int | float | bool | None"
JsonObject: TypeAlias = dict[str, JsonValue]
QueueStorageMode: TypeAlias = Literal["unpartitioned", "partitioned"]
QueueDetachMode: TypeAlias = Literal["none", "empty"]
EmitMode: TypeAlias = Literal["latch", "next"]
TaskState: TypeAlias = Literal["pending", "running", "sleeping", "completed", "failed", "cancelled"]
TaskResultState: TypeAlias = TaskState
TaskHandler: TypeAlias = Callable[[Any, Any], Any]
AsyncTaskHandler: TypeAlias = Callable[[Any, Any], Coroutine[Any, Any, Any]]
TaskId: TypeAlias = uuid.UUID | str
"""Ids come out as `uuid.UUID` and are taken as strings too."""


class RetryStrategy(TypedDict, total=False):
    """Pause before the next attempt. Delay after attempt n: fixed = base, exponential = base * factor^(n-1), at most
    `max_seconds`. `jitter` (0 to 1): the share of it that is left to chance."""

    kind: Literal["none", "fixed", "exponential"]
    base_seconds: float
    factor: float
    max_seconds: float
    jitter: float


class CancellationPolicy(TypedDict, total=False):
    """Seconds after which a task is cancelled: `max_delay` if it has not started, `max_duration` since its first start."""

    max_duration: float
    max_delay: float


class SpawnOptions(TypedDict, total=False):
    """The options of one spawn, as hooks see and change them."""

    max_attempts: int | None
    retry_strategy: RetryStrategy
    headers: dict[str, Any]
    queue: str
    cancellation: CancellationPolicy
    idempotency_key: str
    priority: int
    start_at: datetime
    delay: float | timedelta


class SpawnRequest(SpawnOptions, total=False):
    """One row of `spawn_many`: `task_name` and `params`, plus any option."""

    task_name: str
    params: Any


class QueuePolicyOptions(TypedDict, total=False):
    """What may be changed of a queue; intervals in Postgres notation (`30 days`)."""

    partition_lookahead: str
    partition_lookback: str
    cleanup_ttl: str
    cleanup_limit: int
    detach_mode: QueueDetachMode
    detach_min_age: str
    default_max_attempts: int | None


class CreateQueueOptions(QueuePolicyOptions, total=False):
    """Policy plus the storage mode."""

    storage_mode: QueueStorageMode


class QueuePolicy(TypedDict):
    """A queue's policy as read back."""

    queue_name: str
    storage_mode: QueueStorageMode
    partition_lookahead: timedelta
    partition_lookback: timedelta
    cleanup_ttl: timedelta
    cleanup_limit: int
    detach_mode: QueueDetachMode
    detach_min_age: timedelta


class SpawnResult(TypedDict):
    """The newest run of the task. `created` False: it was there before (idempotency key, or a repeated call);
    `same_request` False: the key belongs to a task of another name or with other params."""

    task_id: uuid.UUID
    run_id: uuid.UUID
    attempt: int
    created: bool
    same_request: bool


class RetryTaskResult(TypedDict):
    """The run that the retry made; `created` True when a copy was spawned."""

    task_id: uuid.UUID
    run_id: uuid.UUID
    attempt: int
    created: bool


class ClaimedTask(TypedDict):
    """One run handed out by `claim_tasks`."""

    run_id: uuid.UUID
    task_id: uuid.UUID
    task_name: str
    attempt: int
    params: Any
    retry_strategy: RetryStrategy | None
    max_attempts: int | None
    headers: dict[str, Any] | None
    wake_event: str | None
    event_payload: Any


class AbsurdHooks(TypedDict, total=False):
    """`before_spawn(task_name, params, options) -> options`; `wrap_task_execution(ctx, execute) -> execute()'s value`."""

    before_spawn: Callable[[str, Any, SpawnOptions], SpawnOptions | Awaitable[SpawnOptions]]
    wrap_task_execution: Callable[[Any, Callable[[], Any]], Any]


@dataclass(frozen=True)
class TaskResultSnapshot:
    """How a task stands; `result` only when completed, `failure` only when failed."""

    state: TaskState
    result: Any = None
    failure: Any = None

    @property
    def finished(self) -> bool:
        """Completed, failed or cancelled."""
        return self.state in ("completed", "failed", "cancelled")


@dataclass(frozen=True)
class TaskHistory:
    """A task as it was spawned, and what it has recorded since: enough to go through it again without doing it again.

    `checkpoints`: values of steps and waits by name; `timeouts`: waits that ran out; `steps`: the names of both in the order of
    their commits, `step_attempts`: the attempt that wrote each; `waits_at`: the step at which it waits for an event or a task
    now; `ordered`: spawned under a release that marks what has no order; `recorded_at`: the database's clock then.
    """

    queue_name: str
    task_id: uuid.UUID
    task_name: str
    state: TaskState
    attempt: int
    params: Any
    headers: dict[str, Any] | None
    retry_strategy: Any
    max_attempts: int | None
    enqueue_at: datetime
    recorded_at: datetime
    checkpoints: dict[str, Any]
    steps: list[str]
    step_attempts: list[int]
    timeouts: list[str]
    waits_at: str | None
    ordered: bool


@dataclass(frozen=True)
class ReplayCheck:
    """Whether the code at hand can take a recorded task up again. `why`: one sentence, of where it goes on or why it cannot;
    `step`: the step it goes on with, if it gets that far."""

    task_id: uuid.UUID
    task_name: str
    breaks: bool
    why: str
    step: str | None = None


@dataclass(frozen=True)
class StepHandle:
    """A step between `begin_step` and `complete_step`; `done` with its stored `state` when it ran before."""

    name: str
    checkpoint_name: str
    done: bool
    state: Any = None
