"""Rows of a worker's writes, and the statements a batch of them becomes.

Every row carries (queue_id, run_id as 16 bytes, claim_no); the array verbs refuse what its claim no longer owns and answer
one letter a row, so one row never spoils another. A batch becomes at most three commits, in the order of the lock rules:

1. emits (event rows and their waiters; they wait, a little, so they come first and alone),
2. waits (event rows and task rows, SKIP LOCKED),
3. everything else in one statement: leases, checkpoints, sleeps, failures, completions (SKIP LOCKED).
"""

from __future__ import annotations

import functools
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from absurd._db.call import Row
from absurd._db.packing import Float8Array, Int4Array, JsonbArray, TextArray, TimestamptzArray, UuidArray


class Answer(NamedTuple):
    """What became of a row: its letter (see sql/src/44_settle.sql), and a payload for answered waits (`given`)."""

    letter: str
    payload: Any = None


@dataclass(slots=True)
class Write:
    """A row to write for one run."""

    queue_id: int
    run_id: bytes
    claim_no: int


@dataclass(slots=True)
class Checkpoint(Write):
    name: str
    state: str


@dataclass(slots=True)
class Sleep(Write):
    """Until `wake_at`, or `delay` seconds from the database's now; with a `step`, remembered under that name."""

    step: str | None = None
    delay: float | None = None
    wake_at: Any = None


@dataclass(slots=True)
class Extend(Write):
    """The lease runs out so many seconds from the database's now."""

    seconds: float


@dataclass(slots=True)
class Fail(Write):
    """`retry_in`: seconds from the database's now until the next attempt, instead of what the strategy says."""

    reason: str
    final: bool = False
    retry_in: float | None = None


@dataclass(slots=True)
class Complete(Write):
    result: str


@dataclass(slots=True)
class AwaitEvent(Write):
    step: str
    event_name: str
    timeout: float | None = None
    since: Any = None


@dataclass(slots=True)
class AwaitTask(Write):
    step: str
    awaited_queue_id: int
    awaited_task_id: uuid.UUID
    timeout: float | None = None


@dataclass(slots=True)
class Emit(Write):
    """Not tied to the run's lease: emitting is at-least-once, like any effect of a plain step. But a repeat after a lost reply
    has the same `emit_id`, and emits nothing twice."""

    event_name: str
    payload: str
    mode: str = "latch"
    emit_id: bytes = field(default_factory=functools.partial(os.urandom, 16))


class Statement(NamedTuple):
    """One commit: SQL, parameters, and how its rows become (row, answer) pairs."""

    sql: str
    params: tuple[Any, ...]
    read: Callable[[Sequence[Row]], list[tuple[Write, Answer]]]
    rows: list[Write]


class _Verb(NamedTuple):
    sql: str
    pack: Callable[[list[Any]], tuple[Any, ...]]


def _fence(rows: list[Any]) -> tuple[Any, ...]:
    return (
        rows[0].queue_id,
        UuidArray.pack([row.run_id for row in rows]),
        Int4Array.pack([row.claim_no for row in rows]),
    )


# in the order they are evaluated: leases and checkpoints before what may end the run they belong to
_LETTERS: dict[type[Write], _Verb] = {
    Extend: _Verb("absurd.extend_claims(%s, %b, %b, %s)", lambda rows: (*_fence(rows), rows[0].seconds)),
    Checkpoint: _Verb(
        "absurd.set_checkpoints(%s, %b, %b, %b, %b)",
        lambda rows: (
            *_fence(rows),
            TextArray.pack([row.name for row in rows]),
            JsonbArray.pack([row.state for row in rows]),
        ),
    ),
    Sleep: _Verb(
        "absurd.schedule_runs(%s, %b, %b, %b, %b, %b)",
        lambda rows: (
            *_fence(rows),
            TimestamptzArray.pack([row.wake_at for row in rows]),
            Float8Array.pack([row.delay for row in rows]),
            TextArray.pack([row.step for row in rows]),
        ),
    ),
    Fail: _Verb(
        "absurd.fail_runs(%s, %b, %b, %b, null, %s::boolean[], %b)",
        lambda rows: (
            *_fence(rows),
            JsonbArray.pack([row.reason for row in rows]),
            [row.final for row in rows],
            Float8Array.pack([row.retry_in for row in rows]),
        ),
    ),
    Complete: _Verb(
        "absurd.complete_runs(%s, %b, %b, %b)",
        lambda rows: (*_fence(rows), JsonbArray.pack([row.result for row in rows])),
    ),
}

_WAITS: dict[type[Write], _Verb] = {
    AwaitEvent: _Verb(
        "absurd.await_events(%s, %b, %b, %b, %b, %b, %b)",
        lambda rows: (
            *_fence(rows),
            TextArray.pack([row.step for row in rows]),
            TextArray.pack([row.event_name for row in rows]),
            Float8Array.pack([row.timeout for row in rows]),
            TimestamptzArray.pack([row.since for row in rows]),
        ),
    ),
    AwaitTask: _Verb(
        "absurd.await_tasks(%s, %b, %b, %b, %b, %b, %b)",
        lambda rows: (
            *_fence(rows),
            TextArray.pack([row.step for row in rows]),
            Int4Array.pack([row.awaited_queue_id for row in rows]),
            UuidArray.pack([row.awaited_task_id for row in rows]),
            Float8Array.pack([row.timeout for row in rows]),
        ),
    ),
}


def text_length(row: Write) -> int:
    """Characters of the values a row carries: what makes a batch large."""
    return sum(len(getattr(row, name, "")) for name in ("state", "reason", "result", "payload"))


def statements(rows: Sequence[Write]) -> list[Statement]:
    """The commits of a batch, in order. Rows of one verb and queue keep their order."""
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        key: tuple[Any, ...] = (type(row), row.queue_id)
        if isinstance(row, Emit):
            key += (row.mode,)
        elif isinstance(row, Extend):
            key += (row.seconds,)
        groups.setdefault(key, []).append(row)
    found = [_emit(group) for key, group in groups.items() if key[0] is Emit]
    found += [_wait(kind, group) for kind in _WAITS for key, group in groups.items() if key[0] is kind]
    settled = [(kind, group) for kind in _LETTERS for key, group in groups.items() if key[0] is kind]
    if settled:
        found.append(_settle(settled))
    return found


def _emit(rows: list[Emit]) -> Statement:
    return Statement(
        "select absurd.try_emit_events(%s, %b, %b, %s, %b)",
        (
            rows[0].queue_id,
            TextArray.pack([row.event_name for row in rows]),
            JsonbArray.pack([row.payload for row in rows]),
            rows[0].mode,
            UuidArray.pack([row.emit_id for row in rows]),
        ),
        lambda answer: [(row, Answer(letter)) for row, letter in zip(rows, answer[0][0], strict=True)],
        list(rows),
    )


def _wait(kind: type[Write], rows: list[Write]) -> Statement:
    verb = _WAITS[kind]
    return Statement(
        f"select status, payload from {verb.sql} order by ordinal",
        verb.pack(rows),
        lambda answer: [(row, Answer(*found)) for row, found in zip(rows, answer, strict=True)],
        rows,
    )


def _settle(groups: list[tuple[type[Write], list[Write]]]) -> Statement:
    params: list[Any] = []
    for kind, rows in groups:
        params += _LETTERS[kind].pack(rows)

    def read(answer: Sequence[Row]) -> list[tuple[Write, Answer]]:
        return [
            (row, Answer(letter))
            for (_, rows), letters in zip(groups, answer[0], strict=True)
            for row, letter in zip(rows, letters, strict=True)
        ]

    sql = "select " + ", ".join(_LETTERS[kind].sql for kind, _ in groups)
    return Statement(sql, tuple(params), read, [row for _, rows in groups for row in rows])
