"""Questions about events: what was emitted, what somebody waits for, and who."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from absurd.queries import Page, Query, Row, at_least_one, cursor, prefixed
from absurd.queries.detail import Payload
from absurd.queries.values import SHOWN, Json, Preview, carried, carried_value

EventState = Literal["emitted", "pending"]


@dataclass(frozen=True)
class EventFilter:
    """Which events. None means any; `queue=None` walks all queues.

    name     exact, or a prefix that ends in `*`
    state    `emitted`; `pending`: somebody waits and nobody has emitted it
    since    emitted, or waited for, at or after this moment (with a time zone)
    preview  payloads as a `Preview` of so many characters, however large they are; None: as they are
    most     payloads as they are, as long as they take so many bytes together; then those that are not short as `Preview`
    waiters  also say who waits: at most 100 a name, those of the oldest tasks first
    budget   rows read at most to find them: then the page ends, see `Page.searched_until`
    after    `Page.next` of the page before
    """

    queue: str | None = None
    name: str | None = None
    state: EventState | None = None
    since: datetime | None = None
    waiters: bool = False
    limit: int = 50
    after: str | None = None
    budget: int = 20_000
    preview: int | None = None
    most: int | None = None


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
    """A name and what is known of it.

    `payload` is the value as `Json`, None when nobody has emitted it, or a `Preview` where the filter asked for one.
    `taken_at`: when a task first received it; None: nobody has.

    `waiter_list` is None unless the filter asked for it. `waiters` counts to 250; `waiters_capped`: there are more, and
    `waiting_since` is that of the oldest tasks among them.
    """

    queue_name: str
    event_name: str
    state: EventState
    payload: Json | Preview | None
    emitted_at: datetime | None
    taken_at: datetime | None
    waiters: int
    waiting_since: datetime | None
    waiter_list: tuple[Waiter, ...] | None
    waiters_capped: bool = False


_MOST = 250

_FIND = """
with found as (
select row_number() over (order by s.hit desc, s.half, s.emitted_at desc, s.event_name, s.queue_id) as n,
       s.queue_id, q.queue_name, s.event_name, case s.half when 0 then 'pending' else 'emitted' end as state,
       s.emitted_at as place_at, s.hit, s.waiters, s.waiting_since,
       e.payload as value, e.emitted_at, e.taken_at, {waiters} as waiter_list
  from absurd.search_events(%(queue)s, %(name)s, %(prefix)s, %(pending)s, %(emitted)s, %(since)s, %(half)s, %(last_at)s,
                            %(last)s, %(last_queue)s, %(most)s, %(limit)s, %(budget)s) s
  join absurd.queues q on q.queue_id = s.queue_id
  left join lateral (
    select e.payload, e.emitted_at, e.taken_at from absurd.emitted_events e
     where s.hit and e.queue_id = s.queue_id and e.event_name = s.event_name limit 1) e on true),
{carried}
select f.queue_id, f.queue_name, f.event_name, f.state, f.place_at, f.hit, f.waiters, f.waiting_since, f.text, f.preview,
       f.emitted_at, f.taken_at, f.waiter_list
  from found_carried f order by f.n
"""

_PAYLOAD = """
select coalesce(e.payload, 'null')::text as text from absurd.emitted_events e
  join absurd.queues q on q.queue_id = e.queue_id
 where q.queue_name = %(queue)s and e.event_name = %(name)s limit 1
"""

_WAITERS = """
(select jsonb_agg(to_jsonb(w) order by w.task_id)
   from (select x.task_id, x.run_id, x.step_name, x.created_at, x.timeout_at from absurd.event_waits x
          where x.queue_id = s.queue_id and x.event_name >= s.event_name and x.event_name <= s.event_name
          order by x.event_name, x.task_id limit 100) w)
"""


def find(which: EventFilter) -> Query[Page[Event]]:
    """Events: those waited for by name, then those emitted, newest first.

    Raises ConfigError for a cursor that is none, or a limit or budget below 1.
    """
    at_least_one(limit=which.limit, budget=which.budget, preview=1 if which.preview is None else which.preview)
    name, prefix = prefixed(which.name)
    last_at, last, last_queue = _place(which.after)
    half = None if which.after is None else int(last_at is not None)
    params: Row = {
        "queue": which.queue, "name": name, "prefix": prefix, "pending": which.state != "emitted",
        "emitted": which.state != "pending", "since": which.since, "half": half, "last_at": last_at, "last": last,
        "last_queue": last_queue, "most": _MOST + 1, "limit": which.limit, "budget": which.budget,
    }  # fmt: skip
    most, length = (which.most, SHOWN) if which.preview is None else (0, which.preview)
    sql = _FIND.format(carried=carried("found", most, length), waiters=_WAITERS if which.waiters else "null::jsonb")
    return Query(sql, params, lambda rows: _page(rows, which))


def payload(queue: str, name: str) -> Query[Payload | None]:
    """The payload of an emitted event, whole; None when there is no such event."""
    params: Row = {"queue": queue, "name": name}

    def decode(rows: Sequence[Row]) -> Payload | None:
        return Payload(rows[0]["text"], len(rows[0]["text"].encode())) if rows else None

    return Query(_PAYLOAD, params, decode)


def _place(after: str | None) -> tuple[datetime | None, str | None, int | None]:
    """When the last event of the page before was emitted, if it was, its name and its queue."""
    if after is None:
        return None, None, None
    at, name, queue = cursor.read(after, "a list of events", cursor.moment_or_none, cursor.name, cursor.queue_id)
    return at, name, queue


def _encoded(row: Row) -> str:
    at = row["place_at"].isoformat() if row["place_at"] else None
    return cursor.written(at, row["event_name"], row["queue_id"])


def _page(rows: Sequence[Row], which: EventFilter) -> Page[Event]:
    items = tuple(_event(row, which) for row in rows if row["hit"])
    stop = next((row for row in rows if not row["hit"]), None)
    if stop is None:
        return Page(items, None)
    return Page(items, _encoded(stop), None if len(items) == which.limit else stop["place_at"])


def _event(row: Row, which: EventFilter) -> Event:
    values: Row = {name: row.get(name) for name in Event.__dataclass_fields__}
    values["waiters_capped"], values["waiters"] = row["waiters"] > _MOST, min(row["waiters"], _MOST)
    values["waiter_list"] = tuple(_waiter(each) for each in row["waiter_list"] or ()) if which.waiters else None
    if which.preview is None:
        values["payload"] = carried_value(row["text"], row["preview"])
    else:
        values["payload"] = None if row["preview"] is None else Preview(**row["preview"])
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
