"""What is old enough to go, and the batches in which it goes. Each batch is one short statement that commits alone.

The only module here that writes: cleaning up belongs to operators, not to the client that tasks use.
"""

from __future__ import annotations

from dataclasses import dataclass

from absurd.queries import Query


@dataclass(frozen=True)
class Amount:
    """Finished tasks, and events."""

    tasks: int
    events: int

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.tasks + other.tasks, self.events + other.events)


@dataclass(frozen=True)
class QueueAmount:
    """What one batch of one queue deleted, or all of it would."""

    queue_name: str
    tasks_deleted: int
    events_deleted: int


_EXPIRED = """
select (select count(*) from absurd.attempts a
         where a.queue_id = q.queue_id and a.task_state is not null and a.finished_at < q.before) as tasks,
       (select count(*) from absurd.events e
         where e.queue_id = q.queue_id and e.emitted_at < q.before) as events
  from (select absurd.queue_id_of(%(queue)s) as queue_id,
               absurd.current_time() - make_interval(secs => %(ttl)s) as before) q
"""

_EXPIRED_BY_POLICY = """
select q.queue_name,
       (select count(*) from absurd.attempts a
         where a.queue_id = q.queue_id and a.task_state is not null
           and a.finished_at < absurd.current_time() - q.cleanup_ttl) as tasks_deleted,
       (select count(*) from absurd.events e
         where e.queue_id = q.queue_id and e.emitted_at < absurd.current_time() - q.cleanup_ttl) as events_deleted
  from absurd.queues q
 order by q.queue_name
"""

_DELETE = """
select absurd.cleanup_tasks(%(queue)s, %(ttl)s, %(limit)s) as tasks,
       absurd.cleanup_events(%(queue)s, %(ttl)s, %(limit)s) as events
"""


def expired(queue: str, ttl_seconds: int) -> Query[Amount]:
    """How many tasks ended, and how many events were emitted, longer ago than that. QueueNotFound."""
    return Query(_EXPIRED, {"queue": queue, "ttl": ttl_seconds}, lambda rows: Amount(**rows[0]))


def expired_by_policy() -> Query[tuple[QueueAmount, ...]]:
    """How much each queue's own `cleanup_ttl` would delete."""
    return Query(_EXPIRED_BY_POLICY, {}, lambda rows: tuple(QueueAmount(**row) for row in rows))


def delete(queue: str, ttl_seconds: int, limit: int) -> Query[Amount]:
    """Delete at most `limit` tasks and `limit` events older than that, oldest first; say how many went.

    Less than `limit` of either means that none is left, or that somebody holds it this moment. QueueNotFound.
    """
    params = {"queue": queue, "ttl": ttl_seconds, "limit": limit}
    return Query(_DELETE, params, lambda rows: Amount(**rows[0]))


def delete_by_policy() -> Query[tuple[QueueAmount, ...]]:
    """One batch in every queue, by its own `cleanup_ttl` and `cleanup_limit`, and one of what dropped queues left."""
    sql = "select queue_name, tasks_deleted, events_deleted from absurd.cleanup_all_queues()"
    return Query(sql, {}, lambda rows: tuple(QueueAmount(**row) for row in rows))
