"""How much a call reads: the server's own counters around it, in one transaction.

Counted are rows: those fetched through an index, plus those of sequential scans. Index entries whose row is dead count
in `entries` only: the first scan that meets them marks them, so they measure how long ago somebody vacuumed.
Catalogue reads do not count, only the engine's tables and indexes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.types.json import Jsonb

from tests.fixtures.postgres import Connection

_COUNTERS = """
    select c.relname, c.relkind = 'i', pg_stat_get_xact_numscans(c.oid), pg_stat_get_xact_tuples_returned(c.oid),
           case c.relkind when 'r' then (select sum(pg_stat_get_xact_tuples_fetched(i.indexrelid))::bigint
                                           from pg_index i where i.indrelid = c.oid) end
      from pg_class c where c.relnamespace = 'absurd'::regnamespace and c.relkind in ('r', 'i')
"""


@dataclass(frozen=True)
class Reads:
    """What one call read, and what it answered."""

    answer: list[tuple[Any, ...]]
    rows: dict[str, int]  # by table, where any
    entries: dict[str, int]  # by index, where any
    sequential: list[str]  # tables that were scanned from end to end

    @property
    def total(self) -> int:
        """All rows read."""
        return sum(self.rows.values())


def reads(conn: Connection, query: str, params: Sequence[Any] = ()) -> Reads:
    """Run one statement in a transaction of its own (which commits) and say what it read."""
    with conn.transaction():
        before = _counters(conn)
        answer = conn.execute(query, params).fetchall()  # type: ignore[arg-type, unused-ignore]
        after = _counters(conn)
    spent = {name: [now - then for now, then in zip(after[name], before[name], strict=True)] for name in after}
    return Reads(
        answer,
        rows={name: seen + got for name, (_, _, seen, got) in spent.items() if not after[name][0] and seen + got},
        entries={name: seen for name, (_, _, seen, _) in spent.items() if after[name][0] and seen},
        sequential=[name for name, (_, scans, _, _) in spent.items() if not after[name][0] and scans],
    )


def _counters(conn: Connection) -> dict[str, tuple[int, int, int, int]]:
    """By relation: whether it is an index, scans, tuples its scans returned, rows fetched through its indexes."""
    return {name: (int(index), *(n or 0 for n in more)) for name, index, *more in conn.execute(_COUNTERS)}


def written(conn: Connection, table: str) -> dict[str, int]:
    """Rows inserted, updated (of which HOT) and deleted in a table by everything this connection committed so far."""
    conn.execute("select pg_stat_force_next_flush()")
    conn.execute("select pg_stat_clear_snapshot()")
    query = "select n_tup_ins, n_tup_upd, n_tup_hot_upd, n_tup_del from pg_stat_user_tables where relid = %s::regclass"
    row = conn.execute(query, (f"absurd.{table}",)).fetchone()
    assert row is not None
    return dict(zip(("inserted", "updated", "hot", "deleted"), row, strict=True))


def fill(conn: Connection, queue: str, count: int, kind: str, *, priority: int = 0) -> None:
    """Put many tasks of one kind into a queue, straight into the tables.

    due, sleeping, finished, leased; expired and retried: their lease ran out, the retry is an hour off, or due at once.
    """
    live = {  # state, due_at, lease_until
        "due": "'p', now() - interval '1 minute', null",
        "sleeping": "'s', now() + interval '1 day', null",
        "expired": "'r', now() - interval '1 minute', now() - interval '1 minute'",
        "retried": "'r', now() - interval '1 minute', now() - interval '1 minute'",
        "leased": "'r', now() + interval '1 day', now() + interval '1 day'",
    }
    conn.execute("drop table if exists filling")
    conn.execute(
        """
        create temp table filling as
        select absurd.queue_id_of(%s) as queue_id, absurd.mint_id(now() - interval '1 hour', b.base, n) as task_id, n
          from generate_series(1, %s) n, (select absurd.id_base() as base) b
        """,
        (queue, count),
    )
    conn.execute(
        """
        insert into absurd.tasks (queue_id, task_id, task_name, params, retry_strategy, priority, enqueue_at)
        select queue_id, task_id, 'work', '{}', %s, %s, now() from filling
        """,
        (None if kind == "retried" else Jsonb({"kind": "fixed", "base_seconds": 3600}), priority),
    )
    if kind == "finished":
        conn.execute(
            """
            insert into absurd.attempts (queue_id, task_id, attempt, claim_no, state, task_state, finished_at, created_at)
            select queue_id, task_id, 1, 1, 'c', 'c', now() - interval '1 hour' - make_interval(secs => n), now() from filling
            """
        )
        return
    claimed = "1, now(), now(), 'w'" if kind in ("expired", "retried", "leased") else "0, null, null, null"
    conn.execute(
        f"""
        insert into absurd.live (queue_id, task_id, state, due_at, lease_until, claim_no, started_at, first_started_at,
                                 claimed_by, rank, attempt, created_at, task_name)
        select queue_id, task_id, {live[kind]}, {claimed}, %s, 1, now(), 'work' from filling
        """,
        (-priority,),
    )
