"""Questions about tasks: lists, one task with its history, and why a task is not running."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from absurd.queries import Page, Query, Row, at_least_one, cursor, prefixed
from absurd.queries.values import Json, Preview, carried, carried_value
from absurd.types import TaskState

State = TaskState
#: a JSON value, or as much of it as an answer had room for; None: there is none
Value = Json | Preview | None

#: Every state, in the order of a task's life, and its letter in the tables.
STATES: dict[State, str] = {
    "pending": "p",
    "running": "r",
    "sleeping": "s",
    "completed": "c",
    "failed": "f",
    "cancelled": "x",
}
_LIVE = "prs"


@dataclass(frozen=True)
class TaskFilter:
    """Which tasks. None, or an empty tuple, means any; `queue=None` walks all queues.

    name   exact, or a prefix that ends in `*`
    id     of a task, or of one of its runs
    since  spawned at or after; `until` before; both with a time zone
    text   found in the params, as JSON text, whatever its case
    budget rows read at most to find them: then the page ends, see `Page.searched_until`
    after  `Page.next` of the page before
    """

    queue: str | None = None
    name: str | None = None
    states: tuple[State, ...] = ()
    id: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None
    text: str | None = None
    limit: int = 50
    after: str | None = None
    budget: int = 20_000


@dataclass(frozen=True)
class Task:
    """A task in a list: everything but its payloads. `as_of` is the engine's clock when it was read."""

    queue_name: str
    task_id: UUID
    task_name: str
    state: State
    run_id: UUID
    attempt: int
    max_attempts: int | None
    priority: int
    idempotency_key: str | None
    enqueue_at: datetime
    first_started_at: datetime | None
    started_at: datetime | None
    due_at: datetime | None
    lease_until: datetime | None
    cancel_at: datetime | None
    claimed_by: str | None
    wake_event: str | None
    wake_step: str | None
    finished_at: datetime | None
    error: str | None
    as_of: datetime


@dataclass(frozen=True)
class Run:
    """One attempt. `started_at` is its last claim: a run that slept and was resumed has been claimed before."""

    run_id: UUID
    attempt: int
    state: State
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    claimed_by: str | None
    wake_event: str | None
    wake_step: str | None
    result: Value
    failure: Value


@dataclass(frozen=True)
class Checkpoint:
    """The kept outcome of a step, a sleep or a wait. `outcome` is `timeout` for a wait that ran out."""

    name: str
    state: Value
    status: str
    outcome: str | None
    attempt: int
    updated_at: datetime


@dataclass(frozen=True)
class Wait:
    """What a task sleeps for: an event, or the end of another task."""

    step_name: str
    event_name: str | None
    awaited_queue: str | None
    awaited_task_id: UUID | None
    timeout_at: datetime | None
    created_at: datetime


@dataclass(frozen=True)
class TaskDetail:
    """One task, read in one statement: the row of the list, its payloads, and its history oldest first."""

    task: Task
    params: Value
    headers: Value
    retry_strategy: Any
    cancellation: Any
    result: Value
    failure: Value
    runs: tuple[Run, ...]
    checkpoints: tuple[Checkpoint, ...]
    waits: tuple[Wait, ...]


COLUMNS = """t.task_id, t.task_name, t.state, t.run_id, t.attempt, t.max_attempts, t.priority, t.idempotency_key,
       t.enqueue_at, t.first_started_at, t.started_at, t.due_at, t.lease_until, t.cancel_at, t.claimed_by, t.wake_event,
       t.wake_step, t.finished_at,
       left(concat_ws(': ', t.failure->>'name', t.failure->>'message'), 200) as error"""

# The id of a run names its task only if the task has had that run; a task without any row of attempts still has its id.
WITHIN = "absurd.attempt_of(%(id)s) <= greatest(t.attempt, 0)"

# search_tasks walks and counts what it reads; each row it found is then one probe of the keys.
_FIND = """
select s.queue_id, s.task_id as place, s.hit, absurd.uuidv7_timestamp(s.task_id) as moment, q.queue_name, t.*,
       absurd.current_time() as as_of
  from absurd.search_tasks(%(queue)s, %(name)s, %(prefix)s, %(live)s::"char"[], %(ended)s::"char"[], %(since)s, %(until)s,
                           %(text)s, %(id)s, %(below)s, %(below_queue)s, %(limit)s, %(budget)s) s
  join absurd.queues q on q.queue_id = s.queue_id
  left join lateral (
    select {columns} from absurd.task_by_id t
     where s.hit and t.queue_id = s.queue_id and t.task_id = s.task_id and {within} limit 1) t on true
 where t.task_id is not null or not s.hit
 order by s.hit desc, s.task_id desc, s.queue_id desc
"""

# Values come in arrays beside the rest: 1 to 4 the task's own, then those of the runs, then those of the checkpoints.
_GET = """
with t as materialized (
  select q.queue_id, q.queue_name, absurd.current_time() as as_of, {columns}, t.retry_strategy, t.cancellation,
         t.params, t.headers, t.result, t.failure
    from absurd.locate_task(%(id)s, %(queue)s) f
    join absurd.queues q on q.queue_id = f.queue_id
   cross join lateral (
     select * from absurd.task_by_id t where t.queue_id = f.queue_id and t.task_id = f.task_id limit 1) t
   where {within}
   order by q.queue_name limit 1),
r as materialized (
  select r.* from t cross join lateral (
    select r.* from absurd.all_runs r where r.queue_id = t.queue_id and r.task_id = t.task_id
       and (%(runs)s::bigint is null or r.attempt > t.attempt - %(runs)s::bigint)) r),
c as materialized (
  select c.*, row_number() over (order by c.updated_at, c.name) as n from (
    select c.* from t cross join lateral (
      select c.* from absurd.all_checkpoints c where c.queue_id = t.queue_id and c.task_id = t.task_id
       order by c.name limit %(walked)s) c
     order by c.updated_at desc, c.name desc limit %(checkpoints)s) c),
v as (
  select v.n::bigint, v.value from t
   cross join lateral (values (1, t.params), (2, t.headers), (3, t.result), (4, t.failure)) v (n, value)
  union all
  select 4 + 2 * row_number() over (order by r.attempt) - 1, r.result from r
  union all
  select 4 + 2 * row_number() over (order by r.attempt), r.failure from r
  union all
  select (select 4 + 2 * count(*) from r) + c.n, c.state from c),
{carried}
select {names}, t.retry_strategy, t.cancellation,
       (select jsonb_agg(jsonb_build_object(
                 'run_id', r.run_id, 'attempt', r.attempt, 'state', r.state, 'created_at', r.created_at,
                 'started_at', r.started_at, 'finished_at', r.finished_at, 'claimed_by', r.claimed_by,
                 'wake_event', r.wake_event, 'wake_step', r.wake_step) order by r.attempt) from r) as runs,
       (select jsonb_agg(jsonb_build_object(
                 'name', c.name, 'status', c.status, 'outcome', c.outcome, 'attempt', c.attempt,
                 'updated_at', c.updated_at) order by c.n) from c) as checkpoints,
       (select jsonb_agg(to_jsonb(w) || jsonb_build_object('awaited_queue', x.queue_name) order by w.created_at)
          from (select * from absurd.all_waits w where w.queue_id = t.queue_id and w.task_id = t.task_id
                 order by w.step_name limit %(waits)s) w
          left join absurd.queues x on x.queue_id = w.awaited_queue_id) as waits,
       k.texts, k.previews
  from t
 cross join lateral (
   select array_agg(v.text order by v.n) as texts, array_agg(v.preview order by v.n) as previews from v_carried v) k
"""

#: checkpoints that are walked at most to find the newest of them
WALKED = 20_001


def find(which: TaskFilter) -> Query[Page[Task]]:
    """Tasks, newest first. Raises ConfigError for a cursor that is none, or a limit or budget below 1."""
    at_least_one(limit=which.limit, budget=which.budget)
    live, ended = _states(which.states)
    name, prefix = prefixed(which.name)
    below, below_queue = _place(which.after)
    params: Row = {
        "queue": which.queue, "name": name, "prefix": prefix, "live": live, "ended": ended, "since": which.since,
        "until": which.until, "text": which.text, "id": which.id, "below": below, "below_queue": below_queue,
        "limit": which.limit, "budget": which.budget,
    }  # fmt: skip
    sql = _FIND.format(columns=COLUMNS, within=WITHIN if which.id is not None else "true")
    return Query(sql, params, lambda rows: _page(rows, which.limit))


def get(
    task_or_run_id: UUID,
    queue: str | None = None,
    *,
    most: int | None = None,
    runs: int | None = None,
    checkpoints: int | None = None,
    waits: int | None = None,
) -> Query[TaskDetail | None]:
    """One task with all its history, by its id or the id of one of its runs; None when no queue holds it.

    `runs`, `checkpoints`: only so many, the newest; `waits`: only so many. `most`: values as they are, as long as they take
    so many bytes together, the task's own first; then those that are not short as `Preview`.
    """
    params: Row = {
        "id": task_or_run_id, "queue": queue, "runs": runs, "checkpoints": checkpoints, "waits": waits,
        "walked": None if checkpoints is None else WALKED,
    }  # fmt: skip
    names = ", ".join(f"t.{name}" for name in Task.__dataclass_fields__)
    sql = _GET.format(columns=COLUMNS, names=names, within=WITHIN, carried=carried("v", most))
    return Query(sql, params, lambda rows: _detail(rows[0]) if rows else None)


def _states(states: tuple[State, ...]) -> tuple[list[str] | None, list[str] | None]:
    """The letters of the unfinished states and of the ended ones; none of either where any state will do."""
    letters = {STATES[state] for state in states}
    if not letters or len(letters) == len(STATES):
        return None, None
    live, ended = sorted(letters & set(_LIVE)), sorted(letters - set(_LIVE))
    return live or None, ended or None


def _place(after: str | None) -> tuple[UUID | None, int | None]:
    """The id and the queue of the last task of the page before."""
    if after is None:
        return None, None
    task, _, queue = after.partition(".")
    try:
        if not (queue.isascii() and queue.isdecimal()):
            raise ValueError("no number")
        return cursor.task_id(task), cursor.queue_id(int(queue))
    except ValueError:
        raise cursor.refused(after, "a list of tasks") from None


def _page(rows: Sequence[Row], limit: int) -> Page[Task]:
    items = tuple(task_of(row) for row in rows if row["hit"])
    stop = next((row for row in rows if not row["hit"]), None)
    if stop is None:
        return Page(items, None)
    return Page(items, f"{stop['place']}.{stop['queue_id']}", None if len(items) == limit else stop["moment"])


def task_of(row: Row) -> Task:
    values = {name: row[name] for name in Task.__dataclass_fields__}
    values["error"] = values["error"] or None
    return Task(**values)


def _detail(row: Row) -> TaskDetail:
    values = map(carried_value, row["texts"], row["previews"])
    own = {name: next(values) for name in ("params", "headers", "result", "failure")}
    runs = [Run(**typed(each | {"result": next(values), "failure": next(values)}, Run)) for each in row["runs"] or ()]
    kept = [Checkpoint(**typed(each | {"state": next(values)}, Checkpoint)) for each in row["checkpoints"] or ()]
    return TaskDetail(
        task=task_of(row),
        **own,
        retry_strategy=row["retry_strategy"],
        cancellation=row["cancellation"],
        runs=tuple(runs),
        checkpoints=tuple(kept),
        waits=tuple(Wait(**typed(each, Wait)) for each in row["waits"] or ()),
    )


def typed(row: Row, into: type[Any]) -> Row:
    """A row that came as JSON, so that one statement answers all: the fields of the class, ids and moments as such."""
    values = {name: row[name] for name in into.__dataclass_fields__}
    for name, value in values.items():
        if value is not None and name.endswith("_at"):
            values[name] = datetime.fromisoformat(value)
        elif value is not None and name.endswith("_id"):
            values[name] = UUID(value)
    return values
