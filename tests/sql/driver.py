"""The engine's functions as a test writes them: one queue on one connection, rows as dictionaries.

Public functions go through `call`; the array verbs, which want typed arrays, have a method each that takes rows.
Nothing here decides anything: what a test wants to know it reads through the views or asks the engine.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.datetime import TimestamptzLoader
from psycopg.types.json import Jsonb

Row = dict[str, Any]

#: Where the fake clock stands in these tests: microseconds on purpose.
NOON = datetime(2026, 3, 2, 12, 0, 0, 123457, tzinfo=UTC)

INFINITY = "infinity"
UNKNOWN_QUEUE = "nowhere"


def after(seconds: float, since: datetime = NOON) -> datetime:
    """The moment that many seconds after noon."""
    return since + timedelta(seconds=seconds)


class _OrInfinity(TimestamptzLoader):
    def load(self, data: Any) -> Any:
        return INFINITY if bytes(data) == b"infinity" else super().load(data)


@contextmanager
def refused(sqlstate: str, text: str = "") -> Iterator[None]:
    """The call inside must raise this SQLSTATE with this text in its message."""
    with pytest.raises(psycopg.Error) as caught:
        yield
    error = caught.value
    assert error.sqlstate == sqlstate, f"{error.sqlstate} {error}"
    assert text in (error.diag.message_primary or "")


def unknown_run() -> uuid.UUID:
    """A well-formed run id that no queue knows."""
    return run_of(minted(), 1)


def minted(at: datetime | None = None, tail: int = 0) -> uuid.UUID:
    """A task id as a client mints it: version 7 by the wall clock, the last 16 bits zero."""
    ms = int((at or datetime.now(UTC)).timestamp() * 1000)
    random = uuid.uuid4().int & ((1 << 46) - 1)
    return uuid.UUID(int=ms << 80 | 7 << 76 | 2 << 62 | random << 16 | tail)


def run_of(task_id: uuid.UUID, attempt: int) -> uuid.UUID:
    """The run id of a task's n-th attempt."""
    return uuid.UUID(int=task_id.int | attempt)


class Claim(NamedTuple):
    """What a worker holds: the fence of the array verbs."""

    task_id: uuid.UUID
    run_id: uuid.UUID
    claim_no: int


class Queue:
    """One queue, seen through one connection."""

    def __init__(self, conn: psycopg.Connection[Any], name: str = "q") -> None:
        self.conn, self.name = conn, name
        conn.adapters.register_loader("timestamptz", _OrInfinity)

    def on(self, conn: psycopg.Connection[Any]) -> Queue:
        """The same queue through another connection."""
        return Queue(conn, self.name)

    def named(self, name: str) -> Queue:
        """Another queue through the same connection; create it where it is missing."""
        self.conn.execute("select absurd.create_queue(%s)", (name,))
        return Queue(self.conn, name)

    def rows(self, query: Any, params: Sequence[Any] | None = None) -> list[Row]:
        """Run a query, rows as dictionaries."""
        with self.conn.cursor(row_factory=dict_row) as cur:
            return cur.execute(query, params).fetchall()

    def value(self, query: str, params: Sequence[Any] | None = None) -> Any:
        """The one value a query answers with."""
        row = self.conn.execute(query, params).fetchone()  # type: ignore[arg-type, unused-ignore]
        assert row is not None
        return row[0]

    def call(self, function: str, *args: Any, **named: Any) -> list[Row]:
        """Call absurd.<function>(queue name, *args, name => ...)."""
        marks = ["%s"] * (len(args) + 1) + [f"{name} => %s" for name in named]
        values = [Jsonb(a) if isinstance(a, dict) else a for a in (self.name, *args, *named.values())]
        return self.rows(f"select * from absurd.{function}({', '.join(marks)})", values)

    # ------------------------------------------------------------ the single-row verbs

    def spawn(self, task_name: str = "work", params: Any = None, **options: Any) -> Row:
        return self.call("spawn_task", task_name, Jsonb(params), options)[0]

    def claim(self, worker: str = "w1", timeout: int | None = 30, qty: int | None = 1) -> list[Row]:
        return self.call("claim_task", worker, timeout, qty)

    def start(self, **options: Any) -> Row:
        """Spawn a task and claim it, for a minute."""
        spawned = self.spawn(**options)
        (claimed,) = self.claim(timeout=60)
        assert claimed["task_id"] == spawned["task_id"]
        return claimed

    def complete(self, run_id: uuid.UUID, result: Any = None) -> None:
        self.call("complete_run", run_id, Jsonb(result))

    def fail(self, run_id: uuid.UUID, reason: Any = None, retry_at: datetime | None = None) -> None:
        self.call("fail_run", run_id, Jsonb(reason or {"name": "Boom"}), retry_at)

    def schedule(self, run_id: uuid.UUID, at: datetime) -> None:
        self.call("schedule_run", run_id, at)

    def cancel(self, task_id: uuid.UUID) -> None:
        self.call("cancel_task", task_id)

    def retry(self, task_id: uuid.UUID, **options: Any) -> Row:
        return self.call("retry_task", task_id, options)[0]

    def extend(self, run_id: uuid.UUID, seconds: int | None) -> None:
        self.call("extend_claim", run_id, seconds)

    def checkpoint(self, run: Row, step: str | None, state: Any, extend_by: int | None = None) -> None:
        self.call("set_task_checkpoint_state", run["task_id"], step, Jsonb(state), run["run_id"], extend_by)

    def await_event(
        self, run: Row, event: str | None, step: str = "wait", timeout: int | None = None
    ) -> tuple[bool, str | None]:
        """(should_suspend, payload as JSON text: SQL NULL is None, JSON null is 'null')."""
        (row,) = self.rows(
            "select should_suspend, payload::text from absurd.await_event(%s, %s, %s, %s, %s, %s)",
            (self.name, run["task_id"], run["run_id"], step, event, timeout),
        )
        return row["should_suspend"], row["payload"]

    def emit(self, event: str, payload: Any = None) -> None:
        self.call("emit_event", event, Jsonb(payload))

    def result(self, task_id: uuid.UUID) -> Row:
        return self.call("get_task_result", task_id)[0]

    def policy(self, **policy: Any) -> None:
        self.call("set_queue_policy", policy)

    # ------------------------------------------------------------ the views

    def view(self, prefix: str, where: str = "true", *values: Any) -> list[Row]:
        """Rows of one of the queue's views."""
        query = sql.SQL("select * from absurd.{} where ").format(sql.Identifier(f"{prefix}_{self.name}"))
        return self.rows(query + sql.SQL(where), values)  # type: ignore[arg-type, unused-ignore]

    def task(self, task_id: uuid.UUID) -> Row:
        (row,) = self.view("t", "task_id = %s", task_id)
        return row

    def run(self, run_id: uuid.UUID) -> Row:
        (row,) = self.view("r", "run_id = %s", run_id)
        return row

    def states(self, task_id: uuid.UUID) -> tuple[str, list[str]]:
        """The task's state, and the states of its runs by attempt."""
        runs = self.view("r", "task_id = %s order by attempt", task_id)
        return self.task(task_id)["state"], [r["state"] for r in runs]

    def checkpoints(self, task_id: uuid.UUID) -> dict[str, Any]:
        return {c["checkpoint_name"]: c["state"] for c in self.view("c", "task_id = %s", task_id)}

    def waits(self) -> list[Row]:
        return self.view("w", "true order by created_at, step_name")

    def violations(self) -> list[Row]:
        return self.call("check_invariants")

    # ------------------------------------------------------------ the array verbs

    @property
    def id(self) -> int:
        return int(self.value("select absurd.queue_id_of(%s)", (self.name,)))

    def claims(
        self,
        qty: int = 10,
        *,
        worker: str = "w1",
        lease: float = 60,
        names: list[str] | None = None,
        token: int | None = None,
        repeat: bool = False,
    ) -> list[Row]:
        """claim_tasks; when nothing was claimed its one row of nulls."""
        return self.rows(
            "select * from absurd.claim_tasks(%s, %s, %s::float8, %s, %s::text[], %s::bigint, %s)",
            (self.id, worker, lease, qty, names, token, repeat),
        )

    def hold(self, count: int = 1, **options: Any) -> list[Claim]:
        """Spawn that many tasks and claim them with their fence."""
        for _ in range(count):
            self.spawn(**options)
        held = self.claims(count)
        assert len(held) == count
        return [Claim(c["task_id"], run_of(c["task_id"], c["attempt"]), c["claim_no"]) for c in held]

    def array(self, function: str, claims: Sequence[Any], *columns: tuple[str, Sequence[Any]], tail: str = "") -> Any:
        """Call an array verb that takes (queue id, run ids, claim numbers, further typed columns)."""
        values: list[Any] = [self.id, [c[-2] for c in claims], [c[-1] for c in claims]]
        marks = "%s, %s::uuid[], %s::int[]"
        for kind, column in columns:
            marks += f", %s::{kind}[]"
            values.append([None if v is None else Jsonb(v) for v in column] if kind == "jsonb" else list(column))
        return self.rows(f"select * from absurd.{function}({marks}{tail})", values)

    def letters(self, function: str, claims: Sequence[Any], *columns: tuple[str, Sequence[Any]], tail: str = "") -> str:
        """As `array`, for the verbs that answer one letter a row."""
        (row,) = self.array(function, claims, *columns, tail=tail)
        return str(next(iter(row.values())))

    def cancels(self, task_ids: Sequence[uuid.UUID]) -> str:
        return str(self.value("select absurd.cancel_tasks(%s, %s::uuid[])", (self.id, list(task_ids))))

    def emits(self, events: Sequence[tuple[str | None, Any]], mode: str | None = "latch") -> str:
        return str(
            self.value(
                "select absurd.emit_events(%s, %s::text[], %s::jsonb[], %s)",
                (self.id, [e[0] for e in events], [Jsonb(e[1]) for e in events], mode),
            )
        )

    def awaits(self, claims: Sequence[Any], steps: Sequence[str], events: Sequence[str], **more: Any) -> list[Row]:
        """await_events: ordinal, status, payload. `timeouts` and `since` by keyword."""
        extra = (("float8", more.get("timeouts") or [None] * len(steps)),)
        since = (("timestamptz", more.get("since") or [None] * len(steps)),)
        return list(self.array("await_events", claims, ("text", steps), ("text", events), *extra, *since))

    def awaits_tasks(
        self,
        claims: Sequence[Any],
        steps: Sequence[str],
        children: Sequence[tuple[int, uuid.UUID]],
        timeouts: Sequence[float | None] | None = None,
    ) -> list[Row]:
        """await_tasks: ordinal, status, payload."""
        return list(
            self.array(
                "await_tasks",
                claims,
                ("text", steps),
                ("int", [c[0] for c in children]),
                ("uuid", [c[1] for c in children]),
                ("float8", timeouts or [None] * len(steps)),
            )
        )

    def spawns(self, names: Sequence[str], **columns: Sequence[Any]) -> list[Row]:
        """spawn_tasks with empty params; further columns by parameter name without its p_."""
        kinds = {"task_ids": "uuid", "keys": "text", "fingerprints": "text", "spec": "int", "specs": "jsonb"}
        marks, values = "", [self.id, list(names), [Jsonb({})] * len(names)]
        for name, column in columns.items():
            marks += f", p_{name} => %s::{kinds[name]}[]"
            values.append([Jsonb(v) for v in column] if kinds[name] == "jsonb" else list(column))
        return self.rows(f"select * from absurd.spawn_tasks(%s, %s::text[], %s::jsonb[]{marks})", values)
