"""What the kit asks the database, as call values. Moments that never come are null."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from absurd._db.call import Call, Row, scalar
from absurd.errors import TaskNotFound
from absurd.testing.values import Due, Standing

_STANDING = """
    select t.task_id, t.task_name, t.state, t.attempt, w.event_name, w.awaited_task_id,
           coalesce(w.step_name, case when t.live_state = 's' then s.name end),
           case when t.live_state = 'r' then t.lease_until else t.due_at end, t.result, f.failure,
           coalesce(k.steps, '{}'), coalesce(t.live_state <> 'r' and t.due_at <= absurd.current_time(), false)
      from absurd.all_tasks t
      left join absurd.all_waits w on w.queue_id = t.queue_id and w.task_id = t.task_id
     cross join lateral (select max(c.name) as name from absurd.checkpoints c
                          where c.queue_id = t.queue_id and c.task_id = t.task_id and c.state = to_jsonb(t.due_at)) s
     cross join lateral (select jsonb_object_agg(c.name, c.state) filter (where c.outcome is null) as steps
                           from absurd.checkpoints c where c.queue_id = t.queue_id and c.task_id = t.task_id) k
      left join lateral (select a.failure from absurd.attempts a
                          where a.queue_id = t.queue_id and a.task_id = t.task_id and a.failure is not null
                          order by a.attempt desc limit 1) f on t.state <> 'completed'
     where t.queue_id = any(%s) and t.task_id = %s
"""
_NEXT_DUE = """
    select n.at, n.why, n.task_id, n.task_name, coalesce(n.wake_step, s.name), w.event_name
      from (select l.*, case when l.state = 'r' then l.lease_until else l.due_at end as at,
                   case when l.state = 'r' then 'lease' when l.wake_event is not null then 'timeout'
                        when l.started_at is not null then 'sleep' when l.attempt > 1 then 'retry' else 'start' end as why
              from absurd.live l
             union all
            select l.*, l.cancel_at, 'cancellation' from absurd.live l) n
      left join absurd.all_waits w on w.queue_id = n.queue_id and w.task_id = n.task_id and n.why = 'timeout'
     cross join lateral (select max(c.name) as name from absurd.checkpoints c
                          where n.why = 'sleep' and c.queue_id = n.queue_id and c.task_id = n.task_id
                            and c.state = to_jsonb(n.due_at)) s
     where n.queue_id = any(%s) and isfinite(n.at) and n.at > absurd.current_time()
     order by n.at, n.task_id limit 1
"""
_LEFT = "select t.state, count(*) from absurd.all_tasks t where t.queue_id = any(%s) and t.live_state is not null group by 1"
_USED = """
    select q.queue_name from absurd.queues q
     where q.queue_id = any(%s)
       and (exists (select from absurd.tasks t where t.queue_id = q.queue_id)
            or exists (select from absurd.compat_events e where e.queue_id = q.queue_id))
     limit 1
"""
_WAITED_FOR = """
    select distinct w.queue_id, w.event_name, e.emitted_at is not null
      from absurd.all_waits w
      left join absurd.compat_events e on e.queue_id = w.queue_id and e.event_name = w.event_name
     where w.queue_id = any(%s) and w.event_name is not null
     order by 1, 2
"""
# the step a transaction keeps: its row is the one this very transaction has written
_STEP_BEING_KEPT = """
    select c.name from absurd.checkpoints c
     where c.queue_id = %s and c.task_id = %s and c.xmin = pg_catalog.pg_current_xact_id()::xid
     order by c.ctid desc limit 1
"""


def queue_ids() -> Call[dict[str, int]]:
    """name -> id of every queue."""
    return Call("select queue_name, queue_id from absurd.queues", (), lambda rows: {row[0]: row[1] for row in rows})


def standing(queues: Sequence[int], task_id: uuid.UUID) -> Call[Standing]:
    """How a task stands; TaskNotFound when it is in none of the queues."""

    def read(rows: Sequence[Row]) -> Standing:
        if not rows:
            raise TaskNotFound(f'Task "{task_id}" is in none of the queues of this client')
        row = (*rows[0][:7], _utc(rows[0][7]), *rows[0][8:])
        return Standing(*row)

    return Call(_STANDING, (list(queues), task_id), read)


def next_due(queues: Sequence[int]) -> Call[Due | None]:
    """The first thing of these queues that is not due yet."""

    def read(rows: Sequence[Row]) -> Due | None:
        return Due(rows[0][0].astimezone(UTC), *rows[0][1:]) if rows else None

    return Call(_NEXT_DUE, (list(queues),), read)


def left(queues: Sequence[int]) -> Call[dict[str, int]]:
    """state -> how many tasks have not ended."""
    return Call(_LEFT, (list(queues),), lambda rows: {row[0]: row[1] for row in rows})


def used_queue(queues: Sequence[int]) -> Call[str | None]:
    """The name of one that holds tasks or events."""
    return Call(_USED, (list(queues),), scalar)


def waited_for(queues: Sequence[int]) -> Call[list[tuple[int, str, bool]]]:
    """(queue, event, whether it was emitted before) for each event somebody waits for."""
    return Call(_WAITED_FOR, (list(queues),), lambda rows: [(row[0], row[1], row[2]) for row in rows])


def step_being_kept(queue_id: int, task_id: uuid.UUID) -> Call[str | None]:
    """The name of the step that the open transaction keeps."""
    return Call(_STEP_BEING_KEPT, (queue_id, task_id), scalar)


def tasks(queues: Sequence[int]) -> Call[dict[uuid.UUID, str]]:
    """id -> name of every task."""
    sql = "select t.task_id, t.task_name from absurd.tasks t where t.queue_id = any(%s)"
    return Call(sql, (list(queues),), lambda rows: {row[0]: row[1] for row in rows})


def emitted(queues: Sequence[int]) -> Call[dict[str, Any]]:
    """Event name -> payload."""
    sql = "select e.event_name, e.payload from absurd.compat_events e where e.queue_id = any(%s)"
    return Call(sql, (list(queues),), lambda rows: {row[0]: row[1] for row in rows})


def violations() -> Call[list[str]]:
    """What the engine finds wrong with itself."""
    sql = "select rule, detail from absurd.check_invariants()"
    return Call(sql, (), lambda rows: [f"{row[0]}: {row[1]}" for row in rows])


def counted(sql: str) -> Call[Counter[str]]:
    """The user's own question for (name, count)."""
    return Call(sql, (), lambda rows: Counter({str(row[0]): int(row[1]) for row in rows}))


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC)
