"""What drivers do that psycopg does not by default: untyped text, small integers, one connection, one transaction.

These need no third-party package, so they run with every `make test`.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.types.json import Jsonb
from psycopg.types.string import StrDumperUnknown

from absurd import schema
from tests.fixtures.clock import Clock
from tests.fixtures.gates import Gate
from tests.fixtures.postgres import Connect, Connection

NOW = datetime(2031, 5, 4, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture(params=["simple", "prepared"])
def untyped(request: pytest.FixtureRequest, connect: Connect) -> Connection:
    """A connection that sends every parameter as text of unknown type, as node-pg and Go do."""
    conn = connect()
    conn.adapters.register_dumper(str, StrDumperUnknown)
    conn.prepare_threshold = 0 if request.param == "prepared" else None
    conn.execute("select absurd.create_queue(%s)", ("orders",))
    return conn


def one(conn: Connection, query: str, *arguments: object) -> Any:
    row = conn.execute(query, arguments).fetchone()
    assert row is not None
    return row


def test_every_call_of_the_clients_takes_untyped_text(untyped: Connection) -> None:
    conn = untyped
    one(conn, "select absurd.create_queue(%s, %s)", "more", "unpartitioned")
    one(conn, "select absurd.set_queue_policy(%s, %s)", "orders", '{"cleanup_ttl": "35 days"}')
    policy = one(conn, "select cleanup_ttl::text, cleanup_limit from absurd.get_queue_policy(%s)", "orders")
    assert policy == ("35 days", 1000)
    spawned = one(
        conn,
        "select task_id, run_id, attempt, created from absurd.spawn_task(%s, %s, %s, %s)",
        "orders", "order", '{"n": 1}', '{"max_attempts": 3, "idempotency_key": "k"}',
    )  # fmt: skip
    task, run = str(spawned[0]), str(spawned[1])
    claimed = one(conn, "select run_id, params from absurd.claim_task(%s, %s, %s, %s)", "orders", "w", "60", "1")
    assert claimed == (spawned[1], {"n": 1})
    one(
        conn, "select absurd.set_task_checkpoint_state(%s, %s, %s, %s, %s, %s)", "orders", task, "a", '"x"', run, "60"
    )  # fmt: skip
    states = one(
        conn, "select checkpoint_name, state from absurd.get_task_checkpoint_states(%s, %s, %s)", "orders", task, run
    )
    assert states == ("a", "x")
    state = one(conn, "select state from absurd.get_task_checkpoint_state(%s, %s, %s)", "orders", task, "a")
    assert state == ("x",)
    one(conn, "select absurd.extend_claim(%s, %s, %s)", "orders", run, "30")
    awaited = one(
        conn, "select should_suspend, payload from absurd.await_event(%s, %s, %s, %s, %s, %s)",
        "orders", task, run, "$awaitEvent:e", "e", "60",
    )  # fmt: skip
    assert awaited == (True, None)
    one(conn, "select absurd.emit_event(%s, %s, %s)", "orders", "e", '{"p": null}')
    claimed = one(
        conn,
        "select run_id, wake_event, event_payload from absurd.claim_task(%s, %s, %s, %s)",
        "orders",
        "w",
        "60",
        "1",
    )
    assert claimed == (spawned[1], None, {"p": None})
    one(
        conn, "select absurd.schedule_run(%s, %s, absurd.current_time() + make_interval(secs => %s))",
        "orders", run, "0.000001",
    )  # fmt: skip
    one(conn, "select run_id from absurd.claim_task(%s, %s, %s, %s)", "orders", "w", "60", "1")
    one(conn, "select absurd.fail_run(%s, %s, %s, %s)", "orders", run, '{"message": "m"}', None)
    claimed = one(conn, "select run_id, attempt from absurd.claim_task(%s, %s, %s, %s)", "orders", "w", "60", "1")
    assert claimed[1] == 2
    one(conn, "select absurd.complete_run(%s, %s, %s)", "orders", str(claimed[0]), "[1.50]")
    result = one(conn, "select state, result, failure_reason from absurd.get_task_result(%s, %s)", "orders", task)
    assert (result[0], result[2]) == ("completed", None)
    one(conn, "select absurd.cancel_task(%s, %s)", "orders", task)
    with pytest.raises(psycopg.errors.RaiseException, match="not currently failed"):
        conn.execute("select * from absurd.retry_task(%s, %s, %s)", ("orders", task, '{"max_attempts": 9}'))
    assert one(conn, "select absurd.cleanup_tasks(%s, %s, %s)", "orders", "0", "10") == (1,)
    assert one(conn, "select absurd.cleanup_events(%s, %s, %s)", "orders", "0", "10") == (1,)
    one(conn, "select absurd.drop_queue(%s)", "more")
    assert one(conn, "select queue_name from absurd.list_queues()") == ("orders",)


@pytest.mark.parametrize("prepared", [False, True])
def test_the_values_psycopg_sends_find_every_function(conn: Connection, prepared: bool) -> None:
    conn.prepare_threshold = 0 if prepared else None
    one(conn, "select absurd.create_queue(%s)", "orders")
    spawned = one(
        conn, "select task_id, run_id from absurd.spawn_task(%s, %s, %s, %s)", "orders", "t", Jsonb(None), Jsonb({})
    )
    assert [type(value) for value in spawned] == [UUID, UUID]
    for seconds in (60, 40_000, 86_400):  # sent as int2, int4, int4
        one(conn, "select run_id from absurd.claim_task(%s, %s, %s, %s)", "orders", "w", seconds, 1)
        one(conn, "select absurd.extend_claim(%s, %s, %s)", "orders", spawned[1], seconds)
        one(conn, "select absurd.schedule_run(%s, %s, %s)", "orders", spawned[1], datetime.now(UTC))
    one(conn, "select run_id from absurd.claim_task(%s, %s)", "orders", "w")
    one(conn, "select absurd.schedule_run(%s, %s, absurd.current_time() + make_interval(secs => %s))",
        "orders", spawned[1], 0.5)  # fmt: skip
    one(conn, "select absurd.cancel_task(%s, %s)", "orders", str(spawned[0]))


def test_only_create_queue_is_overloaded_among_the_functions_of_the_clients(conn: Connection) -> None:
    found = conn.execute(
        """select proname, count(*) from pg_proc where pronamespace = 'absurd'::regnamespace
           group by proname having count(*) > 1"""
    ).fetchall()
    assert found == [("create_queue", 2)]


def test_hundreds_of_queues_fit_one_transaction_that_is_rolled_back(connect: Connect) -> None:
    conn = connect(autocommit=False)
    for number in range(200):
        conn.execute("select absurd.create_queue(%s)", (f"q{number}",))
        conn.execute("select absurd.spawn_task(%s, 't', '{}')", (f"q{number}",))
    assert one(conn, "select count(*) from absurd.list_queues()") == (200,)
    conn.rollback()
    assert one(conn, "select count(*) from absurd.list_queues()") == (0,)
    assert one(conn, "select count(*) from pg_class where relname like 't\\_q%%'") == (0,)


def test_the_plain_sql_text_installs_as_one_simple_query_and_calls_itself_main(
    empty_database_url: str, connect: Connect
) -> None:
    conn = connect(empty_database_url)
    assert conn.pgconn.exec_(schema.sql().encode()).error_message == b""
    assert one(conn, "select absurd.get_schema_version()") == ("main",)
    assert one(conn, "select count(*) from absurd.list_queues()") == (0,)


def test_a_sleeper_is_due_and_a_lease_is_over_exactly_at_its_moment(conn: Connection, clock: Clock) -> None:
    one(conn, "select absurd.create_queue('orders')")
    clock.set(conn, NOW)
    run = one(conn, "select run_id from absurd.spawn_task('orders', 't', '{}', %s)", Jsonb({"max_attempts": 1}))[0]
    claim = "select run_id from absurd.claim_task('orders', 'w', 30, 1)"
    assert conn.execute(claim).fetchall() == [(run,)]
    seen = one(conn, "select state, claim_expires_at, started_at from absurd.r_orders")
    assert seen == ("running", NOW + timedelta(seconds=30), NOW)
    due = NOW + timedelta(seconds=10, microseconds=1)
    conn.execute("select absurd.schedule_run('orders', %s, %s)", (run, due))
    clock.set(conn, due - timedelta(microseconds=1))
    assert conn.execute(claim).fetchall() == []
    clock.set(conn, due)
    assert conn.execute(claim).fetchall() == [(run,)]
    clock.set(conn, due + timedelta(seconds=30) - timedelta(microseconds=1))
    assert conn.execute(claim).fetchall() == []
    assert one(conn, "select state from absurd.t_orders") == ("running",)
    clock.set(conn, due + timedelta(seconds=30))
    assert conn.execute(claim).fetchall() == []
    assert one(conn, "select state from absurd.t_orders") == ("failed",)
    assert one(conn, "select state, failed_at from absurd.r_orders") == ("failed", due + timedelta(seconds=30))


@pytest.mark.parametrize(
    ("end", "state"),
    [
        ("select absurd.complete_run('orders', %s, '1')", "completed"),
        ("select absurd.fail_run('orders', %s, '{}')", "failed"),
    ],
)
def test_a_cancel_behind_an_end_waits_and_changes_nothing(
    conn: Connection, connect: Connect, gate: Gate, end: str, state: str
) -> None:
    one(conn, "select absurd.create_queue('orders')")
    task, run = one(conn, "select task_id, run_id from absurd.spawn_task('orders', 't', '{}', '{\"max_attempts\": 1}')")
    one(conn, "select run_id from absurd.claim_task('orders', 'w')")
    ending = connect(autocommit=False)
    ending.execute(end, (run,))
    cancel = gate(lambda c: c.execute("select absurd.cancel_task('orders', %s)", (task,)))
    cancel.wait_until_blocked()
    ending.commit()
    cancel.result()
    assert one(conn, "select state from absurd.t_orders") == (state,)


# The claim looks at `live` with a newer snapshot than the statement that called it. This stands a claim still between
# the two, which is where a worker that polls meets a client that spawns.
_STOP_INSIDE_THE_CLAIM = """
create or replace function absurd.later(p_from timestamptz, p_seconds double precision) returns timestamptz
language plpgsql as $$
begin
  if current_setting('application_name') = 'stands still' then
    perform pg_advisory_xact_lock(42);
  end if;
  return p_from + make_interval(secs => p_seconds);
end $$
"""


@pytest.mark.parametrize(
    "claim",
    [
        "select task_id, params from absurd.claim_task('orders', 'w', 30, 5)",
        "select task_id, params from absurd.claim_tasks(absurd.queue_id_of('orders'), 'w', 30, 5)",
    ],
)
def test_a_task_spawned_while_a_claim_looks_is_handed_out_with_it(
    conn: Connection, connect: Connect, gate: Gate, claim: str
) -> None:
    conn.execute(_STOP_INSIDE_THE_CLAIM)
    one(conn, "select absurd.create_queue('orders')")
    holding = connect()
    holding.execute("select pg_advisory_lock(42)")
    spawning = connect(autocommit=False)
    task = one(spawning, "select task_id from absurd.spawn_task('orders', 't', '{\"n\": 1}')")[0]
    claiming = gate(lambda c: c.execute(claim).fetchall(), connect(application_name="stands still"))
    claiming.wait_until_blocked()
    spawning.commit()
    holding.execute("select pg_advisory_unlock(42)")
    assert claiming.result() == [(task, {"n": 1})]


def test_what_a_run_wrote_before_it_came_free_is_handed_out_with_it(
    conn: Connection, connect: Connect, gate: Gate
) -> None:
    conn.execute(_STOP_INSIDE_THE_CLAIM)
    one(conn, "select absurd.create_queue('orders')")
    task, run = one(conn, "select task_id, run_id from absurd.spawn_task('orders', 't', '{}')")
    one(conn, "select run_id from absurd.claim_task('orders', 'first')")
    holding = connect()
    holding.execute("select pg_advisory_lock(42)")
    claim = "select task_id, checkpoints from absurd.claim_tasks(absurd.queue_id_of('orders'), 'second', 30, 5)"
    first = connect(autocommit=False)
    first.execute("select absurd.set_task_checkpoint_state('orders', %s, 'paid', '\"once\"', %s)", (task, run))
    first.execute("select absurd.schedule_run('orders', %s, absurd.current_time())", (run,))
    claiming = gate(lambda c: c.execute(claim).fetchall(), connect(application_name="stands still"))
    claiming.wait_until_blocked()
    first.commit()
    holding.execute("select pg_advisory_unlock(42)")
    assert claiming.result() == [(task, {"paid": "once"})]


def test_one_connection_is_enough_for_two_threads(conn: Connection) -> None:
    one(conn, "select absurd.create_queue('orders')")
    threads = [
        threading.Thread(target=lambda: conn.execute("select * from absurd.spawn_task('orders', 't', '{}')"))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conn.execute("select run_id from absurd.claim_task('orders', 'w', 30, 9)").fetchall()) == 4
