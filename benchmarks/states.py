"""What the harness knows of each system's tables: whether all is done, who sleeps, and how to make a large past.

A large past is one task brought there by the system itself, then copied row by row with fresh ids: plain SQL, and
no peer has to run 500,000 tasks first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql

from benchmarks.process import AdapterFailed

#: Is anything not finished yet?
UNFINISHED = {
    "ours": "select exists (select from absurd.live)",
    "absurd-sdk": "select exists (select from absurd.r_bench where state in ('pending', 'running', 'sleeping'))",
    "dbos": "select exists (select from dbos.workflow_status where status in ('ENQUEUED', 'PENDING', 'DELAYED'))",
    "procrastinate": "select exists (select from procrastinate_jobs where status in ('todo', 'doing'))",
    "pgqueuer": "select exists (select from pgqueuer)",
}
#: How many tasks sleep until an event? (DBOS keeps its waiters in the process: there the handlers are counted.)
SLEEPING = {
    "ours": "select count(*) from absurd.waits",
    "absurd-sdk": "select count(*) from absurd.w_bench",
}
_TASK, _RUN, _EVENT = "c.task_id", "c.run_id", "'asleep-' || c.n"
#: For each family and state, the tables one task lives in and what differs from row to row.
TABLES: Mapping[tuple[str, str], Sequence[tuple[str, Mapping[str, str]]]] = {
    ("ours", "finished"): (("tasks", {"task_id": _TASK}), ("attempts", {"task_id": _TASK})),
    ("ours", "due"): (("tasks", {"task_id": _TASK}), ("live", {"task_id": _TASK})),
    ("ours", "sleeping"): (
        ("tasks", {"task_id": _TASK}),
        ("live", {"task_id": _TASK, "wake_event": _EVENT}),
        ("events", {"event_name": _EVENT}),
        ("waits", {"task_id": _TASK, "event_name": _EVENT}),
    ),
    ("absurd-sdk", "finished"): (
        ("t_bench", {"task_id": _TASK, "last_attempt_run": _RUN}),
        ("r_bench", {"task_id": _TASK, "run_id": _RUN}),
    ),
    ("absurd-sdk", "due"): (
        ("t_bench", {"task_id": _TASK, "last_attempt_run": _RUN}),
        ("r_bench", {"task_id": _TASK, "run_id": _RUN}),
    ),
    ("absurd-sdk", "sleeping"): (
        ("t_bench", {"task_id": _TASK, "last_attempt_run": _RUN}),
        ("r_bench", {"task_id": _TASK, "run_id": _RUN, "wake_event": _EVENT}),
        ("w_bench", {"task_id": _TASK, "run_id": _RUN, "event_name": _EVENT}),
    ),
}
_IDS = {
    "ours": "select n, absurd.mint_id(absurd.current_time(), absurd.id_base(), n) as task_id, null::uuid as run_id",
    "absurd-sdk": "select n, uuidv7() as task_id, uuidv7() as run_id",
}


def multiply(conn: psycopg.Connection, family: str, state: str, more: int) -> None:
    """Copy the one task of an otherwise empty database `more` times."""
    conn.execute(f"create temp table clones as {_IDS[family]} from generate_series(1, {more}::bigint) n")
    for table, changes in TABLES[family, state]:
        found = conn.execute(
            "select column_name from information_schema.columns"
            " where table_schema = 'absurd' and table_name = %s and is_generated = 'NEVER' order by ordinal_position",
            (table,),
        ).fetchall()
        columns = [str(name) for (name,) in found]
        values = sql.SQL(", ").join(
            sql.SQL(changes[name]) if name in changes else sql.Identifier("o", name) for name in columns
        )
        conn.execute(
            sql.SQL("insert into absurd.{0} ({1}) select {2} from absurd.{0} o cross join clones c").format(
                sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns)), values
            )
        )
    conn.execute("drop table clones")


def scalar(conn: psycopg.Connection, query: str) -> Any:
    """The first column of the first row."""
    row = conn.execute(query).fetchone()
    return row[0] if row else None


def wait_until(conn: psycopg.Connection, query: str, wanted: Any, limit: float) -> float:
    """The moment at which the query was seen to answer what is wanted."""
    deadline = time.monotonic() + limit
    while scalar(conn, query) != wanted:
        if time.monotonic() > deadline:
            raise AdapterFailed(f"still not {wanted!r} after {limit:.0f} s: {query}")
        time.sleep(0.002)
    return time.monotonic()
