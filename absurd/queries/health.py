"""Whether what must always hold, holds."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from absurd.queries import Query


@dataclass(frozen=True)
class Violation:
    """A rule of the engine that a row breaks."""

    queue_name: str
    rule: str
    task_id: UUID | None
    detail: str | None


def violations(queue: str | None = None) -> Query[tuple[Violation, ...]]:
    """One item per violation in this queue, or in all; none when all is well. Reads every row. QueueNotFound."""
    sql = "select queue_name, rule, task_id, detail from absurd.check_invariants(%(queue)s)"
    return Query(sql, {"queue": queue}, lambda rows: tuple(Violation(**row) for row in rows))
