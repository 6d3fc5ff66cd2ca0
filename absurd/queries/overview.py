"""Questions about everything at once: how each queue stands, who works, and whether anything has changed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from absurd.errors import ConfigError
from absurd.queries import Page, Query, Row


@dataclass(frozen=True)
class QueueStand:
    """How a queue stands. `as_of` is the engine's clock when it was read.

    pending, sleeping, running   unfinished tasks by state; `due` of them could be claimed this moment
    capped                       there are more unfinished tasks than were looked at: these four are "at least"
    oldest_due_at                since when the longest due task waits for a worker; exact
    completed, failed, cancelled tasks that ended in the last minute
    ended_capped                 the same for these three
    tasks                        how many tasks the queue holds, finished ones too
    tasks_estimated              that this is the planner's guess; small queues are counted
    """

    queue_name: str
    pending: int
    sleeping: int
    running: int
    due: int
    capped: bool
    oldest_due_at: datetime | None
    completed: int
    failed: int
    cancelled: int
    ended_capped: bool
    tasks: int
    tasks_estimated: bool
    as_of: datetime


@dataclass(frozen=True)
class Worker:
    """Somebody who has claimed lately. `last_seen` is the newest of its claims and ends of tasks; a lease that it renews
    shows in `lease_until`, the furthest it holds."""

    worker: str
    running: int
    last_seen: datetime
    lease_until: datetime | None
    queues: tuple[str, ...]
    as_of: datetime


@dataclass(frozen=True)
class Pulse:
    """`mark` is another after anything was committed. The same mark twice: nothing has changed in between."""

    mark: str


_STANDS = """
select {columns} from absurd.queue_stands(%(queue)s, %(after)s, %(limit)s, %(cap)s, %(ended_cap)s) s order by s.queue_name
"""
_WORKERS = """
select w.worker, w.running, w.last_seen, w.lease_until, w.queues, w.as_of
  from absurd.workers_seen(%(queue)s, %(limit)s) w
 order by w.last_seen desc, w.worker
"""
# Every transaction that has written moves the snapshot when it ends, on a replica too. No row is read. (The counters of
# pg_stat_user_tables are late by up to ten seconds: a session that falls idle holds its last ones back.)
_PULSE = "select md5(pg_catalog.pg_current_snapshot()::text) as mark"


def find(
    queue: str | None = None, after: str | None = None, limit: int = 50, cap: int = 20_000, ended_cap: int = 10_000
) -> Query[Page[QueueStand]]:
    """How the queues stand, by name, or this one. Raises ConfigError for a limit or cap below 1.

    Of a queue, at most `cap` unfinished tasks are looked at and `ended_cap` that ended in the last minute; of a page, at
    most ten times that: where many queues are full, the later ones are looked at less deeply.
    """
    for name, value in (("limit", limit), ("cap", cap), ("ended_cap", ended_cap)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
    columns = ", ".join(f"s.{each}" for each in QueueStand.__dataclass_fields__)
    params: Row = {"queue": queue, "after": after, "limit": limit + 1, "cap": cap, "ended_cap": ended_cap}

    def decode(rows: object) -> Page[QueueStand]:
        stands = tuple(QueueStand(**row) for row in rows)  # type: ignore[attr-defined]
        return Page(stands[:limit], stands[limit - 1].queue_name if len(stands) > limit else None)

    return Query(_STANDS.format(columns=columns), params, decode)


def workers(queue: str | None = None, limit: int = 200) -> Query[tuple[Worker, ...]]:
    """Who runs tasks now, or ended some lately, the last seen first. ConfigError for a limit below 1.

    Reads the running tasks and the newest thousand ended ones of each queue, up to a bound over all.
    """
    if limit < 1:
        raise ConfigError(f"limit must be at least 1, not {limit}")
    return Query(
        _WORKERS,
        {"queue": queue, "limit": limit},
        lambda rows: tuple(Worker(**row | {"queues": tuple(row["queues"])}) for row in rows),
    )


def pulse() -> Query[Pulse]:
    """Whether anything has been written since. Cheap enough for every second: spares a page its questions.

    It may move although nothing that a page shows has changed, never the reverse.
    """
    return Query(_PULSE, {}, lambda rows: Pulse(**rows[0]))
