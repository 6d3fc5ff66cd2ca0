"""The engine's procedures as typed call values: the write contract of the client on one screen or two.

JSON travels as text (`%s::jsonb`), already encoded. Ids are `uuid.UUID`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from absurd._db.call import Call, Row, nothing, scalar
from absurd._db.packing import Int4Array, JsonbArray, TextArray, UuidArray
from absurd.types import SpawnResult, TaskHistory


class Claim(NamedTuple):
    """One claimed run. `claim_no` fences its writes; `claimed_at` is the database's clock at the claim."""

    task_id: uuid.UUID
    attempt: int
    claim_no: int
    task_name: str
    params: Any
    headers: Any
    retry_strategy: Any
    max_attempts: int | None
    enqueue_at: datetime
    claimed_at: datetime
    wake_event: str | None
    checkpoints: Any  # a dict; None without any; Unreadable, or text, when they cannot be had
    timeouts: list[str] | None
    queue_id: int
    queue_name: str

    @property
    def run_id(self) -> uuid.UUID:
        """The task id with the attempt in its last 16 bits."""
        return uuid.UUID(int=self.task_id.int | self.attempt)

    @property
    def run_bytes(self) -> bytes:
        """The run id as 16 bytes."""
        return (self.task_id.int | self.attempt).to_bytes(16, "big")


class Claimed(NamedTuple):
    """The answer of a worker's claim: runs, or when to look again (seconds; None: nothing scheduled) and the oldest
    transaction that was open when it looked and found nothing."""

    claims: list[Claim]
    next_due_in: float | None
    xmin: int


# -- queues ------------------------------------------------------------------------------------------------------------


def create_queue(name: str, storage_mode: str, policy: str | None = None) -> Call[None]:
    """With a policy: both or neither."""
    if policy is None:
        return Call("select absurd.create_queue(%s, %s)", (name, storage_mode), nothing, True)
    sql = "select absurd.create_queue(%s, %s), absurd.set_queue_policy(%s, %s::jsonb)"
    return Call(sql, (name, storage_mode, name, policy), nothing, True)


def set_queue_policy(name: str, policy: str) -> Call[None]:
    return Call("select absurd.set_queue_policy(%s, %s::jsonb)", (name, policy), nothing, True)


def get_queue_policy(name: str) -> Call[Row | None]:
    return Call("select * from absurd.get_queue_policy(%s)", (name,), lambda rows: rows[0] if rows else None, True)


def drop_queue(name: str) -> Call[None]:
    return Call("select absurd.drop_queue(%s)", (name,), nothing, True)


def purge_queue(name: str) -> Call[int]:
    return Call("select absurd.purge_queue(%s)", (name,), scalar, True)


def list_queues() -> Call[list[str]]:
    return Call("select queue_name from absurd.list_queues()", (), lambda rows: [row[0] for row in rows], True)


def queue_id_of(name: str) -> Call[int]:
    return Call("select absurd.queue_id_of(%s)", (name,), scalar, True)


# -- tasks -------------------------------------------------------------------------------------------------------------


def spawn_minted(
    queue: str, name: str, params: str, limit: tuple[int | None, int | None], task_id: uuid.UUID
) -> Call[list[SpawnResult]]:
    """The usual spawn: one task without a key or options, under a client-made id. Repeatable. No row in the answer: something
    is not as usual, and nothing was written; `spawn_tasks` says what, or that the task was there before."""
    return Call(
        "select absurd.spawn_minted(%s, %s, %s, %s::jsonb, %s, %s)",
        (queue, task_id, name, params, *limit),
        lambda rows: [_spawned(task_id, uuid.UUID(int=task_id.int | 1))] if rows[0][0] else [],
        True,
    )


def spawn_tasks(
    queue: str,
    names: Sequence[str],
    params: Sequence[str],
    keys: Sequence[str | None],
    fingerprints: Sequence[str | None],
    specs: Sequence[str],
    task_ids: Sequence[uuid.UUID] | None,
) -> Call[list[Row]]:
    """`specs` are option sets, one a row; equal ones are sent once. Repeatable with client-made ids; then only the rows that
    were there before are answered, since the client knows the rest. `spawned` makes results of the answer."""
    numbers: dict[str, int] = {}
    spec_of = [numbers.setdefault(spec, len(numbers) + 1) for spec in specs]

    return Call(
        "select ordinal, task_id, run_id, attempt, created, same_request from absurd.spawn_tasks("
        "absurd.queue_id_of(%s), %b, %b, %b, %b, %b, %b, %b, %s)",
        (
            queue,
            TextArray.pack(names),
            JsonbArray.pack(params),
            UuidArray.pack(task_ids) if task_ids else None,
            TextArray.pack(keys) if any(keys) else None,
            TextArray.pack(fingerprints) if any(fingerprints) else None,
            Int4Array.pack(spec_of),
            JsonbArray.pack(list(numbers)),
            task_ids is not None,
        ),
        list,
        task_ids is not None,
    )


def spawned(rows: Sequence[Row], task_ids: Sequence[uuid.UUID] | None) -> list[SpawnResult]:
    """The results of `spawn_tasks` in input order, from its answer and the ids that were sent."""
    if task_ids is None:
        return [_spawned(*row) for _, *row in rows]
    found = [_spawned(one, uuid.UUID(int=one.int | 1)) for one in task_ids]
    for place, *row in rows:
        found[place - 1] = _spawned(*row)
    return found


def _spawned(
    task_id: uuid.UUID, run_id: uuid.UUID, attempt: int = 1, created: bool = True, same_request: bool = True
) -> SpawnResult:
    return {
        "task_id": task_id,
        "run_id": run_id,
        "attempt": attempt,
        "created": created,
        "same_request": same_request,
    }


def get_task_result(queue: str, task_id: uuid.UUID) -> Call[tuple[str, Any, Any] | None]:
    return Call(
        "select state, result, failure_reason from absurd.get_task_result(%s, %s)",
        (queue, task_id),
        lambda rows: (rows[0][0], rows[0][1], rows[0][2]) if rows else None,
        True,
    )


def watch_task(queue: str, task_id: uuid.UUID, channel: str) -> Call[str | None]:
    return Call("select absurd.watch_task(%s, %s, %s)", (queue, task_id, channel), scalar, True)


def cancel_task(queue: str, task_id: uuid.UUID) -> Call[None]:
    return Call("select absurd.cancel_task(%s, %s)", (queue, task_id), nothing, True)


def retry_task(
    queue: str, task_id: uuid.UUID, options: str, repeatable: bool
) -> Call[tuple[uuid.UUID, uuid.UUID, int, bool]]:
    return Call(
        "select task_id, run_id, attempt, created from absurd.retry_task(%s, %s, %s::jsonb)",
        (queue, task_id, options),
        lambda rows: (rows[0][0], rows[0][1], rows[0][2], rows[0][3]),
        repeatable,
    )


# -- runs --------------------------------------------------------------------------------------------------------------


def claim_task(queue: str, worker_id: str, claim_timeout: int, qty: int) -> Call[list[Row]]:
    """The contract's claim, for clients that run batches by themselves."""
    return Call(
        "select run_id, task_id, task_name, attempt, params, retry_strategy, max_attempts, headers, wake_event, event_payload"
        " from absurd.claim_task(%s, %s, %s, %s)",
        (queue, worker_id, claim_timeout, qty),
        list,
    )


def claim_tasks(
    queue_id: int,
    queue_name: str,
    worker_id: str,
    lease: float,
    qty: int,
    names: list[str] | None,
    token: int,
    repeat: bool,
) -> Call[Claimed]:
    """A worker's claim: runs with their checkpoints."""

    def read(rows: Sequence[Row]) -> Claimed:
        if len(rows) == 1 and rows[0][0] is None:
            return Claimed([], *rows[0][13:15])
        return Claimed([Claim(*(*row[:13], queue_id, queue_name)) for row in rows], 0.0, 0)

    return Call(
        "select * from absurd.claim_tasks(%s, %s, %s, %s, %s, %s, %s)",
        (queue_id, worker_id, float(lease), qty, names, token, repeat),
        read,
        True,
    )


def run_snapshot(queue: str, run_id: uuid.UUID) -> Call[Claim | None]:
    """What claim_tasks would have said about a running run (for batches claimed by the contract's claim_task)."""
    return Call(
        "select * from absurd.running_run(%s, %s)",
        (queue, run_id),
        lambda rows: Claim(*(*rows[0][:13], rows[0][13], queue)) if rows else None,
        True,
    )


def task_history(queue: str, task_id: uuid.UUID) -> Call[TaskHistory | None]:
    """What a task in any state has recorded; None for an unknown one."""

    def read(rows: Sequence[Row]) -> TaskHistory | None:
        return TaskHistory(queue, *rows[0]) if rows else None

    return Call(
        "select task_id, task_name, state, attempt, params, headers, retry_strategy, max_attempts, enqueue_at, claimed_at,"
        " coalesce(checkpoints, '{}'), coalesce(steps, '{}'), coalesce(step_attempts, '{}'),"
        " coalesce(timeouts, '{}'), waits_at, ordered"
        " from absurd.task_history(%s, %s)",
        (queue, task_id),
        read,
        True,
    )


def extend_claim(queue: str, run_id: uuid.UUID, seconds: int) -> Call[None]:
    return Call("select absurd.extend_claim(%s, %s, %s)", (queue, run_id, seconds), nothing, True)


def hold_and_checkpoint(queue_id: int, run_id: uuid.UUID, claim_no: int, name: str, state: str) -> Call[str]:
    """Inside a user's transaction: wait for the run's row, then keep the result under its fence. One letter."""
    return Call(
        "select absurd.set_checkpoints(%s, array[%s::uuid], array[%s::int], array[%s::text], array[%s::jsonb])"
        " from absurd.hold_run(%s, %s, false) held",
        (queue_id, run_id, claim_no, name, state, queue_id, run_id),
        scalar,
    )


# -- events ------------------------------------------------------------------------------------------------------------


def emit_one(queue: str, name: str, payload: str) -> Call[str | None]:
    """The usual emit: one event in mode latch. o emitted, x was there already; None: something is not as usual, and nothing
    was written; `emit_events` says what. Repeated after a lost reply it answers what it would have."""
    return Call(
        "select absurd.emit_one(%s, %s, %s::jsonb, %s)",
        (queue, name, payload, uuid.UUID(bytes=os.urandom(16))),
        scalar,
        True,
    )


def emit_events(queue: str, names: Sequence[str], payloads: Sequence[str], mode: str) -> Call[str]:
    """One letter a row: o emitted, x was there already. Repeated after a lost reply it emits nothing twice."""
    ids = UuidArray.pack([os.urandom(16)] * len(names))
    return Call(
        "select absurd.emit_events(absurd.queue_id_of(%s), %b, %b, %s, %b)",
        (queue, TextArray.pack(list(names)), JsonbArray.pack(list(payloads)), mode, ids),
        scalar,
        True,
    )


# -- workers -----------------------------------------------------------------------------------------------------------


def set_idle(queue_ids: list[int], channel: str, fleet: str) -> Call[None]:
    return Call("select absurd.set_idle(%s::int[], %s, %s)", (queue_ids, channel, fleet), nothing, True)


def transaction_id() -> Call[int]:
    """A fresh transaction's id: every transaction that had one before has a smaller one."""
    return Call("select pg_catalog.pg_current_xact_id()::text::bigint", (), scalar, True)


def clear_idle(queue_ids: list[int], channel: str) -> Call[None]:
    return Call("select absurd.clear_idle(%s::int[], %s)", (queue_ids, channel), nothing, True)


def queue_ids(names: Sequence[str]) -> Call[dict[str, int]]:
    return Call(
        "select queue_name, queue_id from absurd.queue_ids(%s::text[])",
        (list(names),),
        lambda rows: {row[0]: row[1] for row in rows},
        True,
    )


def take_housekeeping(ids: list[int], every: float) -> Call[list[int]]:
    return Call("select absurd.take_housekeeping(%s::int[], %s)", (ids, float(every)), scalar)


def housekeep(ids: list[int]) -> Call[list[Row]]:
    return Call("select queue_name, tasks_deleted, events_deleted from absurd.housekeep(%s::int[])", (ids,), list, True)


def enforce_policies(queue_ids: list[int]) -> Call[int]:
    """Cancel what is past its max_delay or max_duration; how many tasks."""
    return Call("select absurd.enforce_policies(%s::int[])", (queue_ids,), scalar, True)


def unserved_tasks(queue_id: int, names: list[str], overdue: float) -> Call[list[Row]]:
    """(name, count, whether there may be more) of tasks due for `overdue` seconds under other names."""
    return Call(
        "select task_name, tasks, more from absurd.unserved_tasks(%s, %s::text[], %s)",
        (queue_id, names, float(overdue)),
        list,
        True,
    )
