"""Every verb reads a bounded number of rows per element of its batch, on plans made while the tables were empty."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from tests.fixtures.postgres import Connection, Databases
from tests.sql.driver import Claim, Queue, run_of
from tests.sql.statistics import Reads, fill, reads

STORED = 20_000
BATCHES = (1, 10, 100, 500)


@dataclass
class Bench:
    """A queue in a database that holds many other tasks, and the connection whose plans are old."""

    q: Queue
    conn: Connection
    names: Iterator[int] = field(default_factory=lambda: iter(range(1_000_000)))

    def hold(self, count: int) -> list[Claim]:
        """That many running tasks."""
        self.q.spawns(["work"] * count)
        found = [c for c in self.q.claims(count, lease=86_400) if c["task_id"]]
        assert len(found) == count
        return [Claim(c["task_id"], run_of(c["task_id"], c["attempt"]), c["claim_no"]) for c in found]

    def fresh(self, count: int) -> list[str]:
        """Event or key names nobody has used."""
        return [f"name-{next(self.names)}" for _ in range(count)]

    def runs(self, verb: str, claims: list[Claim], more: str = "", *params: Any) -> Reads:
        query = f"select * from absurd.{verb}(%s, %s::uuid[], %s::int[]{more})"
        return reads(self.conn, query, (self.q.id, [c.run_id for c in claims], [c.claim_no for c in claims], *params))


Verb = Callable[[Bench, int], Reads]


def _spawn_tasks(b: Bench, n: int) -> Reads:
    query = "select * from absurd.spawn_tasks(%s, %s::text[], array_fill('{}'::jsonb, array[%s]))"
    return reads(b.conn, query, (b.q.id, ["work"] * n, n))


def _spawn_tasks_with_keys(b: Bench, n: int) -> Reads:
    query = "select * from absurd.spawn_tasks(%s, %s::text[], array_fill('{}'::jsonb, array[%s]), p_keys => %s::text[])"
    return reads(b.conn, query, (b.q.id, ["work"] * n, n, b.fresh(n)))


def _spawn_tasks_again(b: Bench, n: int) -> Reads:
    keys = b.fresh(n)
    query = "select * from absurd.spawn_tasks(%s, %s::text[], array_fill('{}'::jsonb, array[%s]), p_keys => %s::text[])"
    reads(b.conn, query, (b.q.id, ["work"] * n, n, keys))
    return reads(b.conn, query, (b.q.id, ["work"] * n, n, keys))


def _complete_runs(b: Bench, n: int) -> Reads:
    return b.runs("complete_runs", b.hold(n), ", %s::jsonb[]", ["1"] * n)


def _complete_runs_that_were(b: Bench, n: int) -> Reads:
    claims = b.hold(n)
    b.runs("complete_runs", claims, ", %s::jsonb[]", ["1"] * n)
    return b.runs("complete_runs", claims, ", %s::jsonb[]", ["1"] * n)


def _complete_children(b: Bench, n: int) -> Reads:
    parents, children = b.hold(n), b.hold(n)
    _await_tasks(b, n, parents, children)
    return b.runs("complete_runs", children, ", %s::jsonb[]", ["1"] * n)


def _fail_runs(b: Bench, n: int) -> Reads:
    return b.runs(
        "fail_runs", b.hold(n), ", %s::jsonb[], array_fill(now() + interval '1 day', array[%s])", ["{}"] * n, n
    )


def _fail_runs_for_good(b: Bench, n: int) -> Reads:
    return b.runs("fail_runs", b.hold(n), ", %s::jsonb[], null, %s::bool[]", ["{}"] * n, [True] * n)


def _schedule_runs(b: Bench, n: int) -> Reads:
    return b.runs("schedule_runs", b.hold(n), ", null, %s::float8[], %s::text[]", [86_400.0] * n, ["nap"] * n)


def _extend_claims(b: Bench, n: int) -> Reads:
    return b.runs("extend_claims", b.hold(n), ", 86400")


def _set_checkpoints(b: Bench, n: int) -> Reads:
    return b.runs("set_checkpoints", b.hold(n), ", %s::text[], %s::jsonb[], 86400", ["s"] * n, ["1"] * n)


def _await_new_events(b: Bench, n: int) -> Reads:
    return b.runs("await_events", b.hold(n), ", %s::text[], %s::text[]", ["s"] * n, b.fresh(n))


def _await_one_event(b: Bench, n: int) -> Reads:
    return b.runs("await_events", b.hold(n), ", %s::text[], %s::text[]", ["s"] * n, b.fresh(1) * n)


def _await_emitted_events(b: Bench, n: int) -> Reads:
    names = b.fresh(n)
    b.q.emits([(name, 1) for name in names])
    return b.runs("await_events", b.hold(n), ", %s::text[], %s::text[]", ["s"] * n, names)


def _await_tasks(b: Bench, n: int, parents: list[Claim] | None = None, children: list[Claim] | None = None) -> Reads:
    parents, children = parents or b.hold(n), children or b.hold(n)
    more = ", %s::text[], %s::int[], %s::uuid[]"
    return b.runs("await_tasks", parents, more, ["s"] * n, [b.q.id] * n, [c.task_id for c in children])


def _emit_events(b: Bench, n: int) -> Reads:
    return _emit(b, b.fresh(n))


def _emit_events_with_waiters(b: Bench, n: int) -> Reads:
    names = b.fresh(n)
    b.runs("await_events", b.hold(n), ", %s::text[], %s::text[]", ["s"] * n, names)
    return _emit(b, names)


def _emit_one_event_with_many_waiters(b: Bench, n: int) -> Reads:
    names = b.fresh(1)
    b.runs("await_events", b.hold(n), ", %s::text[], %s::text[]", ["s"] * n, names * n)
    return _emit(b, names)


def _emit(b: Bench, names: list[str]) -> Reads:
    query = "select absurd.emit_events(%s, %s::text[], %s::jsonb[])"
    return reads(b.conn, query, (b.q.id, names, ["1"] * len(names)))


def _cancel_tasks(b: Bench, n: int) -> Reads:
    claims = b.hold(n)
    return reads(b.conn, "select absurd.cancel_tasks(%s, %s::uuid[])", (b.q.id, [c.task_id for c in claims]))


def _cleanup_tasks(b: Bench, n: int) -> Reads:
    return reads(b.conn, "select absurd.cleanup_tasks('finished', 0, %s)", (n,))


def _cleanup_nothing(b: Bench, n: int) -> Reads:
    return reads(b.conn, "select absurd.cleanup_tasks('finished', 1000000, %s)", (n,))


def _cleanup_events(b: Bench, n: int) -> Reads:
    return reads(b.conn, "select absurd.cleanup_events('events', 0, %s)", (n,))


def _cleanup_awaited_events(b: Bench, n: int) -> Reads:
    return reads(b.conn, "select absurd.cleanup_events('awaited', 0, %s)", (n,))


def _purge_rows(b: Bench, n: int) -> Reads:
    return reads(b.conn, "select * from absurd.purge_rows(absurd.queue_id_of('purged'), %s)", (n,))


def _wake_workers(b: Bench, n: int) -> Reads:
    b.conn.execute(
        "insert into absurd.idle (queue_id, channel) select %s, 'c' || i from generate_series(1, %s) i", (b.q.id, n)
    )
    found = reads(b.conn, "select absurd.wake_workers(%s, %s)", (b.q.id, n))
    b.conn.execute("delete from absurd.idle")
    return found


#: verb, rows per element, rows per call
VERBS: dict[str, tuple[Verb, int, int]] = {
    name.removeprefix("_"): (globals()[name], per_element, per_call)
    for name, per_element, per_call in [
        ("_spawn_tasks", 0, 10),
        ("_spawn_tasks_with_keys", 0, 10),
        ("_spawn_tasks_again", 5, 10),
        ("_complete_runs", 3, 10),
        ("_complete_runs_that_were", 6, 10),
        ("_complete_children", 12, 10),
        ("_fail_runs", 6, 10),
        ("_fail_runs_for_good", 5, 10),
        ("_schedule_runs", 3, 10),
        ("_extend_claims", 3, 10),
        ("_set_checkpoints", 3, 10),
        ("_await_new_events", 6, 10),
        ("_await_one_event", 5, 10),
        ("_await_emitted_events", 9, 10),
        ("_await_tasks", 6, 10),
        ("_emit_events", 2, 10),
        ("_emit_events_with_waiters", 12, 10),
        ("_emit_one_event_with_many_waiters", 10, 10),
        ("_cancel_tasks", 4, 10),
        ("_cleanup_tasks", 6, 10),
        ("_cleanup_nothing", 0, 10),
        ("_cleanup_events", 3, 10),
        ("_cleanup_awaited_events", 4, 10),
        ("_purge_rows", 14, 10),
        ("_wake_workers", 3, 10),
    ]
}


@pytest.fixture(scope="module")
def bench(databases: Databases, schema_template: str) -> Iterator[Bench]:
    with databases.fresh(schema_template) as name, psycopg.connect(databases.url(name), autocommit=True) as conn:
        tables = ("tasks", "live", "attempts", "checkpoints", "events", "waits", "idempotency_keys", "idle")
        for table in tables:
            conn.execute(f"alter table absurd.{table} set (autovacuum_enabled = off)")
        q = Queue(conn).named("q")
        for other in ("stored", "finished", "events", "awaited", "purged"):
            q.named(other)
        bench = Bench(q, conn)
        for verb, _, _ in VERBS.values():
            verb(bench, 2)
            verb(bench, 1)
        _results(bench)
        _store(conn)
        yield bench


def _store(conn: Connection) -> None:
    for kind in ("due", "sleeping", "leased"):
        fill(conn, "stored", STORED, kind)
    fill(conn, "finished", STORED, "finished")
    fill(conn, "purged", STORED, "due")
    conn.execute(
        """
        insert into absurd.checkpoints (queue_id, task_id, name, state, attempt)
        select queue_id, task_id, 'stored', '1', 1 from absurd.live
        """
    )
    conn.execute(
        """
        insert into absurd.events (queue_id, event_name, payload, emitted_at)
        select absurd.queue_id_of('events'), 'stored-' || n, '1', now() - interval '1 hour' from generate_series(1, %s) n
        """,
        (STORED,),
    )
    # every sleeping task of the third queue waits for an event of its own, as orders do
    fill(conn, "awaited", STORED, "sleeping")
    conn.execute("insert into absurd.events (queue_id, event_name) select queue_id, 'stored-' || n from filling")
    conn.execute(
        """
        insert into absurd.waits (queue_id, task_id, step_name, attempt, event_name)
        select queue_id, task_id, 's', 1, 'stored-' || n from filling
        """
    )
    conn.execute(
        """
        update absurd.live l set wake_event = 'stored-' || f.n, wake_step = 's' from filling f
         where l.queue_id = f.queue_id and l.task_id = f.task_id
        """
    )


@pytest.mark.parametrize("verb", VERBS)
def test_a_batch_reads_so_many_rows_per_element_and_scans_no_table(bench: Bench, verb: str) -> None:
    call, per_element, per_call = VERBS[verb]
    for batch in BATCHES:
        found = call(bench, batch)
        # a handful of idle workers may be read from end to end
        assert set(found.sequential) <= {"idle"}, (batch, found.rows)
        assert found.total <= per_element * batch + per_call, (batch, found.rows)


def _results(b: Bench) -> list[Reads]:
    running, ended = b.hold(2)
    b.q.complete(ended.run_id)
    asked = (running.task_id, ended.task_id, uuid.UUID(int=0))
    return [reads(b.conn, "select * from absurd.get_task_result('q', %s)", (task_id,)) for task_id in asked]


def test_asking_for_a_result_reads_the_task_and_how_it_stands(bench: Bench) -> None:
    for found in _results(bench):
        assert found.sequential == []
        assert found.total <= 4, found.rows


def test_what_the_verbs_left_behind_is_well_formed(bench: Bench) -> None:
    for queue in ("q", "finished", "events", "awaited", "purged"):
        assert bench.conn.execute("select * from absurd.check_invariants(%s)", (queue,)).fetchall() == []
