"""Questions about events: what was emitted, what somebody waits for, and who."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from absurd.errors import ConfigError
from absurd.queries import Page, Query, Row, pattern

EventState = Literal["emitted", "pending"]


@dataclass(frozen=True)
class EventFilter:
    """Which events. None means any; `queue=None` walks all queues.

    name     exact, or a prefix that ends in `*`
    state    `emitted`; `pending`: somebody waits and nobody has emitted it
    since    emitted, or waited for, at or after this moment (with a time zone)
    waiters  also say who waits: at most 100 a name, longest first
    after    `Page.next` of the page before
    """

    queue: str | None = None
    name: str | None = None
    state: EventState | None = None
    since: datetime | None = None
    waiters: bool = False
    limit: int = 50
    after: str | None = None


@dataclass(frozen=True)
class Waiter:
    """A task that sleeps until an event comes, or until `timeout_at`."""

    task_id: UUID
    run_id: UUID
    step_name: str
    created_at: datetime
    timeout_at: datetime | None


@dataclass(frozen=True)
class Event:
    """A name and what is known of it. `taken_at`: when a task first received the payload; None: nobody has.

    `waiter_list` is None unless the filter asked for it; `waiters` counts them all.
    """

    queue_name: str
    event_name: str
    state: EventState
    payload: Any
    emitted_at: datetime | None
    taken_at: datetime | None
    waiters: int
    waiting_since: datetime | None
    waiter_list: tuple[Waiter, ...] | None


_COLUMNS = "e.event_name, e.state, e.payload, e.emitted_at, e.taken_at, e.waiters, e.waiting_since"

# What is waited for comes first, by name; then what was emitted, newest first. Each half walks its own index.
_FIND = """
select q.queue_id, q.queue_name, e.*, {waiters} as waiter_list
  from absurd.queues q
 cross join lateral (
   (select 0 as half, {columns} from absurd.all_events e
     where %(pending)s and e.queue_id = q.queue_id and e.emitted_at is null and {name} and {pending_since}
       and {pending_after}
     order by e.event_name limit %(limit)s)
   union all
   (select 1, {columns} from absurd.all_events e
     where %(emitted)s and e.queue_id = q.queue_id and e.emitted_at is not null and {name} and {emitted_since}
       and {emitted_after}
     order by e.emitted_at desc, e.event_name limit %(limit)s)) e
 where {queue}
 order by e.half, e.emitted_at desc, e.event_name, q.queue_id limit %(limit)s
"""

_WAITERS = """
(select jsonb_agg(to_jsonb(w) order by w.created_at, w.task_id)
   from (select x.task_id, x.run_id, x.step_name, x.created_at, x.timeout_at from absurd.all_waits x
          where x.queue_id = q.queue_id and x.event_name = e.event_name
          order by x.created_at, x.task_id limit 100) w)
"""


def find(which: EventFilter) -> Query[Page[Event]]:
    """Events: those waited for by name, then those emitted, newest first.

    Raises ConfigError for a cursor that is none, or a limit below 1.
    """
    if which.limit < 1:
        raise ConfigError(f"limit must be at least 1, not {which.limit}")
    name, params = pattern("e.event_name", which.name, "name")
    params |= {"pending": which.state != "emitted", "emitted": which.state != "pending", "limit": which.limit + 1}
    queue = "true"
    if which.queue is not None:
        queue = "q.queue_name = %(queue)s"
        params["queue"] = which.queue
    pending_since = emitted_since = "true"
    if which.since is not None:
        pending_since, emitted_since = "e.waiting_since >= %(since)s", "e.emitted_at >= %(since)s"
        params["since"] = which.since
    pending_after, emitted_after = _after(which.after, params)
    sql = _FIND.format(
        columns=_COLUMNS,
        waiters=_WAITERS if which.waiters else "null::jsonb",
        name=name,
        pending_since=pending_since,
        emitted_since=emitted_since,
        pending_after=pending_after,
        emitted_after=emitted_after,
        queue=queue,
    )
    return Query(sql, params, lambda rows: _page(rows, which))


def _after(cursor: str | None, params: Row) -> tuple[str, str]:
    """The conditions that leave what follows the cursor, in either half of the list."""
    if cursor is None:
        return "true", "true"
    emitted_at, params["last"], params["last_queue"] = _decoded(cursor)
    if emitted_at is None:
        return "e.event_name >= %(last)s and (e.event_name > %(last)s or e.queue_id > %(last_queue)s)", "true"
    params["last_at"] = emitted_at
    same = "e.event_name > %(last)s or e.event_name = %(last)s and e.queue_id > %(last_queue)s"
    return "false", f"e.emitted_at <= %(last_at)s and (e.emitted_at < %(last_at)s or {same})"


def _decoded(cursor: str) -> tuple[datetime | None, str, int]:
    try:
        at, name, queue = json.loads(base64.urlsafe_b64decode(cursor))
        return (datetime.fromisoformat(at) if at else None), str(name), int(queue)
    except (ValueError, TypeError):
        raise ConfigError(f"not a cursor of an event list: {cursor!r}; use `next` of the page before") from None


def _encoded(row: Row) -> str:
    at = row["emitted_at"].isoformat() if row["emitted_at"] else None
    return base64.urlsafe_b64encode(json.dumps([at, row["event_name"], row["queue_id"]]).encode()).decode()


def _page(rows: Sequence[Row], which: EventFilter) -> Page[Event]:
    shown = rows[: which.limit]
    following = _encoded(shown[-1]) if len(rows) > which.limit else None
    return Page(tuple(_event(row, which.waiters) for row in shown), following)


def _event(row: Row, with_waiters: bool) -> Event:
    values = {name: row[name] for name in Event.__dataclass_fields__}
    values["waiter_list"] = tuple(_waiter(each) for each in row["waiter_list"] or ()) if with_waiters else None
    return Event(**values)


def _waiter(row: Row) -> Waiter:
    timeout = row["timeout_at"]
    return Waiter(
        task_id=UUID(row["task_id"]),
        run_id=UUID(row["run_id"]),
        step_name=row["step_name"],
        created_at=datetime.fromisoformat(row["created_at"]),
        timeout_at=datetime.fromisoformat(timeout) if timeout else None,
    )
