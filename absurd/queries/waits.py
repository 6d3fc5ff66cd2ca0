"""Questions about waits: who sleeps for what, since when and until when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from absurd.queries import Page, Query, Row, at_least_one, cursor, prefixed


@dataclass(frozen=True)
class WaitFilter:
    """Which waits. None means any; `queue=None` walks all queues.

    event    name of the event, exact, or a prefix that ends in `*`
    task     `True` only waits for other tasks, `False` only those for events
    budget   rows looked at before the page ends where it is
    after    `Page.next` of the page before
    """

    queue: str | None = None
    event: str | None = None
    task: bool | None = None
    limit: int = 50
    budget: int = 20_000
    after: str | None = None


@dataclass(frozen=True)
class Wait:
    """A sleeping task, and the event or the task that it sleeps for. `timeout_at` None: for as long as it takes.

    `awaited_state` is how the awaited task stands; None when it waits for an event, or that task is gone.
    """

    queue_name: str
    task_id: UUID
    task_name: str
    run_id: UUID
    step_name: str
    event_name: str | None
    awaited_queue: str | None
    awaited_task_id: UUID | None
    awaited_task_name: str | None
    awaited_state: str | None
    created_at: datetime
    timeout_at: datetime | None
    as_of: datetime


_FIND = """
select s.queue_id, s.task_id as place, s.step_name as place_step, s.hit, absurd.uuidv7_timestamp(s.task_id) as moment,
       q.queue_name, w.*, absurd.current_time() as as_of
  from absurd.search_waits(%(queue)s, %(event)s, %(prefix)s, %(task)s, %(below)s, %(below_queue)s, %(below_step)s,
                           %(limit)s, %(budget)s) s
  join absurd.queues q on q.queue_id = s.queue_id
  left join lateral (
    select w.task_id, t.task_name, w.run_id, w.step_name, w.event_name, x.queue_name as awaited_queue, w.awaited_task_id,
           a.task_name as awaited_task_name, a.state as awaited_state, w.created_at, w.timeout_at
      from absurd.all_waits w
      left join lateral (select t.task_name from absurd.task_by_id t
                          where t.queue_id = w.queue_id and t.task_id = w.task_id limit 1) t on true
      left join absurd.queues x on x.queue_id = w.awaited_queue_id
      left join lateral (select t.task_name, t.state from absurd.task_by_id t
                          where t.queue_id = w.awaited_queue_id and t.task_id = w.awaited_task_id limit 1) a on true
     where s.hit and w.queue_id = s.queue_id and w.task_id = s.task_id and w.step_name = s.step_name limit 1) w on true
 order by s.hit desc, s.task_id desc, s.queue_id desc, s.step_name desc
"""


def find(which: WaitFilter) -> Query[Page[Wait]]:
    """Waits, those of the newest tasks first. Raises ConfigError for a cursor that is none, or a limit or budget below 1."""
    at_least_one(limit=which.limit, budget=which.budget)
    event, prefix = prefixed(which.event)
    below, below_queue, below_step = _place(which.after)
    params: Row = {
        "queue": which.queue, "event": event, "prefix": prefix, "task": which.task, "below": below,
        "below_queue": below_queue, "below_step": below_step, "limit": which.limit, "budget": which.budget,
    }  # fmt: skip
    return Query(_FIND, params, lambda rows: _page(rows, which.limit))


def _place(after: str | None) -> tuple[UUID | None, int | None, str | None]:
    """The task, the queue and the step of the last wait of the page before."""
    if after is None:
        return None, None, None
    task, queue, step = cursor.read(after, "a list of waits", cursor.task_id, cursor.queue_id, cursor.name)
    return task, queue, step


def _page(rows: Sequence[Row], limit: int) -> Page[Wait]:
    items = tuple(Wait(**{name: row[name] for name in Wait.__dataclass_fields__}) for row in rows if row["hit"])
    stop = next((row for row in rows if not row["hit"]), None)
    if stop is None:
        return Page(items, None)
    place = cursor.written(str(stop["place"]), stop["queue_id"], stop["place_step"])
    return Page(items, place, None if len(items) == limit else stop["moment"])
