"""A queue with a task in every state, for hostile calls to hit, and a picture of all its rows."""

from __future__ import annotations

from typing import Any, NamedTuple

from psycopg.types.json import Jsonb

from tests.fixtures.postgres import Connection

QUEUE, OTHER = "q", "other'\"😀"
#: Bookkeeping of idle workers and installations: no promise of a call that was refused.
_LEFT_OUT = ("migrations",)


class Population(NamedTuple):
    """What there is to name in a call."""

    queue_id: int
    other_id: int
    tasks: dict[str, str]  # what it does -> task id
    runs: dict[str, str]
    tables: tuple[str, ...]


def populate(conn: Connection) -> Population:
    """Queue `q` with a task in each state and an event of each kind; a second queue with one task."""
    ids = {}
    for name in (QUEUE, OTHER):
        conn.execute("select absurd.create_queue(%s)", (name,))
        (ids[name],) = _one(conn, "select absurd.queue_id_of(%s)", name)
    states = (
        "running",
        "again",
        "failing",
        "asleep",
        "awaiting",
        "parent",
        "completed",
        "failed",
        "cancelled",
        "pending",
    )
    tasks = {state: _spawn(conn, state, state in ("failing", "failed")) for state in states}
    tasks["child"] = str(_one(conn, "select task_id from absurd.spawn_task(%s, 'child', '1')", OTHER)[0])
    names = [state for state in states if state not in ("pending", "cancelled")]
    conn.execute("select * from absurd.claim_tasks(%s, 'w', 3600, 100, %s)", (ids[QUEUE], names)).fetchall()
    runs = {state: str(_one(conn, "select absurd.run_id_of(%s::uuid, 1)", task)[0]) for state, task in tasks.items()}
    for state in ("running", "parent"):
        conn.execute(
            "select absurd.set_task_checkpoint_state(%s, %s, 'one', '[1]', %s)", (QUEUE, tasks[state], runs[state])
        )
    conn.execute("select absurd.schedule_run(%s, %s, now() + interval '1 day')", (QUEUE, runs["asleep"]))
    conn.execute(
        "select * from absurd.await_event(%s, %s, %s, 'wait', 'parcel')", (QUEUE, tasks["awaiting"], runs["awaiting"])
    )
    conn.execute(
        "select * from absurd.await_tasks(%s, %s::uuid[], '{1}', '{child}', %s, %s::uuid[])",
        (ids[QUEUE], [runs["parent"]], [ids[OTHER]], [tasks["child"]]),
    )
    conn.execute("select absurd.complete_run(%s, %s, '7')", (QUEUE, runs["completed"]))
    conn.execute('select absurd.fail_run(%s, %s, \'{"name": "E"}\')', (QUEUE, runs["failed"]))
    conn.execute("select absurd.cancel_task(%s, %s)", (QUEUE, tasks["cancelled"]))
    conn.execute("select absurd.emit_event(%s, 'emitted', '{\"a\": 1}')", (QUEUE,))
    found = conn.execute("select tablename from pg_tables where schemaname = 'absurd' order by 1").fetchall()
    return Population(ids[QUEUE], ids[OTHER], tasks, runs, tuple(name for (name,) in found if name not in _LEFT_OUT))


def picture(conn: Connection, population: Population) -> list[tuple[Any, ...]]:
    """A fingerprint of each table's rows."""
    each = (
        f"select '{name}', md5(string_agg(t::text, '|' order by t::text)) from absurd.\"{name}\" t"
        for name in population.tables
    )
    return conn.execute(" union all ".join(each)).fetchall()


def violations(conn: Connection) -> list[tuple[Any, ...]]:
    """What must always hold and does not."""
    found = conn.execute("select rule, task_id::text, detail from absurd.check_invariants()").fetchall()
    for table in ("tasks", "live", "attempts", "checkpoints", "events", "waits", "idempotency_keys", "watchers"):
        found += conn.execute(f"""
            select 'a row belongs to a queue, there or dropped', '{table}', x.queue_id::text from absurd.{table} x
             where x.queue_id not in (select queue_id from absurd.queues union select queue_id from absurd.dropped_queues)
        """).fetchall()
    return found


def _spawn(conn: Connection, state: str, last: bool) -> str:
    options = {"max_attempts": 1 if last else 3, "idempotency_key": f"key-{state}", "headers": {"h": state}}
    question = "select task_id from absurd.spawn_task(%s, %s, '{\"n\": 1}', %s)"
    row = conn.execute(question, (QUEUE, state, Jsonb(options))).fetchone()
    assert row is not None
    return str(row[0])


def _one(conn: Connection, question: str, *args: Any) -> tuple[Any, ...]:
    row = conn.execute(question, args).fetchone()
    assert row is not None
    return row
