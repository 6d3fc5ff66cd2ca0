"""Questions about one task of any size: a part of its history, payloads cut short, and one payload whole.

`tasks.get` reads all there is of a task. These read a page of it, however many checkpoints and attempts there are and
however large its payloads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args
from uuid import UUID

from absurd.errors import ConfigError
from absurd.queries import Page, Query, Row, at_least_one, cursor, tasks
from absurd.queries.tasks import Checkpoint, State, Task, Wait
from absurd.queries.values import AMONG_MANY, Preview, carried, carried_value, preview_of

Part = Literal["params", "headers", "result", "failure", "checkpoint", "run_result", "run_failure"]


@dataclass(frozen=True)
class RunView:
    """One attempt, as `tasks.Run`, with previews. `error` is the failure's name and message, short."""

    run_id: UUID
    attempt: int
    state: State
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    claimed_by: str | None
    wake_event: str | None
    wake_step: str | None
    error: str | None
    result: Preview | None
    failure: Preview | None


@dataclass(frozen=True)
class CheckpointView:
    """The kept outcome of a step, a sleep or a wait, as `tasks.Checkpoint`, with a preview of its state."""

    name: str
    state: Preview | None
    status: str
    outcome: str | None
    attempt: int
    updated_at: datetime


@dataclass(frozen=True)
class TaskView:
    """One task with as much of its history as a page shows, in one statement.

    runs              the newest, oldest first; `run_count`: the number of the last
    checkpoints       the newest (or the oldest), oldest first; `checkpoint_count` of all, `checkpoints_capped`: at least
    checkpoints_next  cursor for `checkpoints`, which goes on in the same direction; None when these are all
    waits             at most 100
    """

    task: Task
    params: Preview
    headers: Preview | None
    retry_strategy: object
    cancellation: object
    result: Preview | None
    failure: Preview | None
    runs: tuple[RunView, ...]
    run_count: int
    checkpoints: tuple[CheckpointView, ...]
    checkpoint_count: int
    checkpoints_capped: bool
    checkpoints_next: str | None
    waits: tuple[Wait, ...]


@dataclass(frozen=True)
class Payload:
    """One value whole, as JSON text."""

    text: str
    size: int


_CHECKPOINT = """
jsonb_build_object('name', c.name, 'status', c.status, 'outcome', c.outcome, 'attempt', c.attempt, 'updated_at', c.updated_at,
                   'state', {state})"""

# The walk by key stops at so many; those are then put in their order. The states are read only of those that are shown.
_NEAR = """
select c.name, c.status, c.outcome, c.attempt, c.updated_at, c.state, c.queue_id, c.task_id from absurd.all_checkpoints c
 where c.queue_id = {queue} and c.task_id = {task} order by c.name limit {most}"""

_GET = """
select q.queue_id, q.queue_name, absurd.current_time() as as_of, {columns}, t.retry_strategy, t.cancellation,
       {params} as params, {headers} as headers, {result} as result, {failure} as failure,
       (select jsonb_agg(jsonb_build_object(
                 'run_id', r.run_id, 'attempt', r.attempt, 'state', r.state, 'created_at', r.created_at,
                 'started_at', r.started_at, 'finished_at', r.finished_at, 'claimed_by', r.claimed_by,
                 'wake_event', r.wake_event, 'wake_step', r.wake_step,
                 'error', left(concat_ws(': ', r.failure->>'name', r.failure->>'message'), 200),
                 'result', {run_result}, 'failure', {run_failure}) order by r.attempt)
          from (select * from absurd.all_runs r where r.queue_id = t.queue_id and r.task_id = t.task_id
                   and r.attempt > t.attempt - %(runs)s) r) as runs,
       k.checkpoint_count, k.checkpoints,
       (select jsonb_agg(to_jsonb(w) || jsonb_build_object('awaited_queue', x.queue_name) order by w.created_at)
          from (select * from absurd.all_waits w where w.queue_id = t.queue_id and w.task_id = t.task_id
                 order by w.step_name limit 100) w
          left join absurd.queues x on x.queue_id = w.awaited_queue_id) as waits
  from absurd.locate_task(%(id)s, %(queue)s) f
  join absurd.queues q on q.queue_id = f.queue_id
 cross join lateral (select * from absurd.task_by_id t where t.queue_id = f.queue_id and t.task_id = f.task_id limit 1) t
 cross join lateral (
   with near as materialized ({near})
   select (select count(*) from near) as checkpoint_count,
          (select jsonb_agg({checkpoint} order by c.updated_at {direction}, c.name {direction})
             from (select * from near c
                    order by c.updated_at {direction}, c.name {direction} limit %(checkpoints)s) c) as checkpoints) k
 where {within}
 order by q.queue_name
"""

_CHECKPOINTS = """
with c as (
  select c.name, c.status, c.outcome, c.attempt, c.updated_at, c.state as value,
         row_number() over (order by c.updated_at {direction}, c.name {direction}) as n
    from (select * from ({near}) c where {after}
           order by c.updated_at {direction}, c.name {direction} limit %(limit)s) c),
{carried}
select c.name, c.status, c.outcome, c.attempt, c.updated_at, c.text, c.preview from c_carried c order by c.n
"""

_PAYLOAD = """
select ({value})::text as text
  from absurd.locate_task(%(id)s, %(queue)s) f
 cross join lateral (
   select * from {view} t where t.queue_id = f.queue_id and t.task_id = f.task_id and {which} limit 1) t
"""

_LOOKED_AT = tasks.WALKED - 1
_LARGE = 16 * 1024 * 1024


def get(
    task_or_run_id: UUID,
    queue: str | None = None,
    *,
    runs: int = 50,
    checkpoints: int = 200,
    newest: bool = True,
    preview: int = 65_536,
    checkpoint_preview: int = 2_048,
) -> Query[TaskView | None]:
    """One task, by its id or the id of one of its runs; None when no queue holds it. Sizes of previews in characters.

    ConfigError for a number below 1.
    """
    at_least_one(runs=runs, checkpoints=checkpoints, preview=preview, checkpoint_preview=checkpoint_preview)
    params: Row = {"id": task_or_run_id, "runs": runs, "checkpoints": checkpoints + 1, "queue": queue}
    sql = _GET.format(
        columns=tasks.COLUMNS,
        within=tasks.WITHIN,
        direction="desc" if newest else "asc",
        near=_NEAR.format(queue="t.queue_id", task="t.task_id", most=_LOOKED_AT + 1),
        checkpoint=_checkpoint(checkpoint_preview),
        **{part: preview_of(f"t.{part}", preview, _LARGE) for part in ("params", "headers", "result", "failure")},
        run_result=preview_of("r.result", checkpoint_preview, AMONG_MANY),
        run_failure=preview_of("r.failure", 4 * checkpoint_preview, AMONG_MANY),
    )
    return Query(sql, params, lambda rows: _view(rows[0], checkpoints, newest) if rows else None)


def checkpoints(
    queue: str,
    task_id: UUID,
    *,
    limit: int = 200,
    newest: bool = True,
    after: str | None = None,
    most: int | None = None,
) -> Query[Page[Checkpoint]]:
    """More checkpoints of a task: from the newest back (or from the oldest on), in that order, with their states as they
    are; with `most`, as long as they take so many bytes together, then those that are not short as `Preview`.

    ConfigError for a cursor that is none, or a limit below 1.
    """
    at_least_one(limit=limit)
    params: Row = {"queue": queue, "id": task_id, "limit": limit + 1}
    condition = "true"
    if after is not None:
        params["at"], params["name"] = cursor.read(after, "a list of checkpoints", cursor.moment, cursor.name)
        condition = f"(c.updated_at, c.name) {'<' if newest else '>'} (%(at)s::timestamptz, %(name)s::text)"
    sql = _CHECKPOINTS.format(
        near=_NEAR.format(
            queue="(select q.queue_id from absurd.queues q where q.queue_name = %(queue)s)",
            task="absurd.task_id_of(%(id)s)",
            most=_LOOKED_AT,
        ),
        after=condition,
        direction="desc" if newest else "asc",
        carried=carried("c", most),
    )

    def decode(rows: Sequence[Row]) -> Page[Checkpoint]:
        found = tuple(
            Checkpoint(state=carried_value(row.pop("text"), row.pop("preview")), **row)
            for row in map(dict, rows[:limit])
        )
        return Page(found, following(found[-1]) if len(rows) > limit else None)

    return Query(sql, params, decode)


def following(checkpoint: Checkpoint) -> str:
    """The cursor of the checkpoints behind this one."""
    return cursor.written(checkpoint.updated_at.isoformat(), checkpoint.name)


def payload(queue: str, task_id: UUID, part: Part, name: str | int | None = None) -> Query[Payload | None]:
    """One value of a task, whole; None when there is none. `name`: of the checkpoint, or the number of the attempt.

    ConfigError for a part that needs another name.
    """
    params: Row = {"queue": queue, "id": task_id, "name": name}
    if part == "checkpoint":
        wanted: type = str
        value, view, which = "t.state", "absurd.all_checkpoints", "t.name = %(name)s"
    elif part in ("run_result", "run_failure"):
        wanted = int
        value, view, which = f"t.{part[4:]}", "absurd.all_runs", "t.attempt = %(name)s"
    elif part in ("params", "headers", "result", "failure"):
        wanted = type(None)
        value, view, which = f"t.{part}", "absurd.task_by_id", "true"
    else:
        raise ConfigError(f"a task has no {part!r}; choose one of {', '.join(get_args(Part))}")
    if type(name) is not wanted:
        needed = {str: "the checkpoint's name", int: "the number of the attempt"}.get(wanted, "no name")
        raise ConfigError(f"{part} takes {needed}, not {name!r}")
    sql = _PAYLOAD.format(value=value, view=view, which=which)
    return Query(sql, params, lambda rows: _payload(rows[0]["text"]) if rows and rows[0]["text"] is not None else None)


def _payload(text: str) -> Payload:
    return Payload(text, len(text.encode()))


def _checkpoint(preview: int) -> str:
    return _CHECKPOINT.format(state=preview_of("c.state", preview, AMONG_MANY))


def _view(row: Row, shown: int, newest: bool) -> TaskView:
    found = row["checkpoints"] or []
    following = _encoded(found[shown - 1]) if len(found) > shown else None
    ordered = found[:shown][::-1] if newest else found[:shown]
    count = row["checkpoint_count"]
    return TaskView(
        task=tasks.task_of(row),
        params=Preview(**row["params"]),
        **{part: _previewed(row[part]) for part in ("headers", "result", "failure")},
        retry_strategy=row["retry_strategy"],
        cancellation=row["cancellation"],
        runs=tuple(_run_view(each) for each in row["runs"] or ()),
        run_count=row["attempt"],
        checkpoints=tuple(_checkpoint_view(each) for each in ordered),
        checkpoint_count=min(count, _LOOKED_AT),
        checkpoints_capped=count > _LOOKED_AT,
        checkpoints_next=following,
        waits=tuple(Wait(**tasks.typed(each, Wait)) for each in row["waits"] or ()),
    )


def _run_view(row: Row) -> RunView:
    values = tasks.typed(row, RunView)
    previews = {part: _previewed(row[part]) for part in ("result", "failure")}
    return RunView(**values | previews | {"error": row["error"] or None})


def _checkpoint_view(row: Row) -> CheckpointView:
    return CheckpointView(**tasks.typed(row, CheckpointView) | {"state": _previewed(row["state"])})


def _previewed(row: Row | None) -> Preview | None:
    return Preview(**row) if row is not None else None


def _encoded(row: Row) -> str:
    return cursor.written(row["updated_at"], row["name"])
