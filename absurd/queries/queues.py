"""Questions about queues: which there are, their policy, how full they stand."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from absurd.queries import Query


@dataclass(frozen=True)
class Queue:
    """A queue and its policy. Intervals as Postgres writes them: `30 days`."""

    queue_name: str
    created_at: datetime
    storage_mode: str
    default_partition: str
    partition_lookahead: str
    partition_lookback: str
    cleanup_ttl: str
    cleanup_limit: int
    detach_mode: str
    detach_min_age: str
    default_max_attempts: int | None


@dataclass(frozen=True)
class QueueCounts:
    """How many tasks stand in a queue now, and how many ended in the last day. `due`: could be claimed this moment."""

    queue_name: str
    pending: int
    sleeping: int
    running: int
    due: int
    oldest_due_at: datetime | None
    completed_last_day: int
    failed_last_day: int
    cancelled_last_day: int


_QUEUES = """
select q.queue_name, q.created_at, q.storage_mode, q.default_partition, q.partition_lookahead::text,
       q.partition_lookback::text, q.cleanup_ttl::text, q.cleanup_limit, q.detach_mode, q.detach_min_age::text,
       q.default_max_attempts
  from absurd.queues q
 where %(name)s::text is null or q.queue_name = %(name)s
 order by q.queue_name
"""

_COUNTS = """
select {columns} from absurd.queue_counts c
 where %(name)s::text is null or c.queue_name = %(name)s
 order by c.queue_name
"""


def find() -> Query[tuple[Queue, ...]]:
    """Every queue, by name."""
    return Query(_QUEUES, {"name": None}, lambda rows: tuple(Queue(**row) for row in rows))


def get(name: str) -> Query[Queue | None]:
    """The queue of this name, or None."""
    return Query(_QUEUES, {"name": name}, lambda rows: Queue(**rows[0]) if rows else None)


def counts(name: str | None = None) -> Query[tuple[QueueCounts, ...]]:
    """How full each queue stands, or this one. Reads every unfinished task."""
    columns = ", ".join(f"c.{each}" for each in QueueCounts.__dataclass_fields__)
    return Query(
        _COUNTS.format(columns=columns), {"name": name}, lambda rows: tuple(QueueCounts(**row) for row in rows)
    )
