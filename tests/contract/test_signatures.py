"""The public names, held as literal tables against the catalogue: functions, views, queues, the install itself."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
from psycopg import pq

from absurd import schema
from tests.fixtures.gates import Gate
from tests.fixtures.postgres import Connect, Connection

TS = "timestamp with time zone"
SPAWNED = "TABLE(task_id uuid, run_id uuid, attempt integer, created boolean)"
CHECKPOINT = f"TABLE(checkpoint_name text, state jsonb, status text, owner_run_id uuid, updated_at {TS})"
POLICY = (
    "TABLE(queue_name text, storage_mode text, default_partition text, partition_lookahead interval, "
    "partition_lookback interval, cleanup_ttl interval, cleanup_limit integer, detach_mode text, detach_min_age interval)"
)
CLAIM = (
    "TABLE(run_id uuid, task_id uuid, attempt integer, task_name text, params jsonb, retry_strategy jsonb, "
    "max_attempts integer, headers jsonb, wake_event text, event_payload jsonb)"
)

#: (name, arguments with their defaults, result); contract sections 4-10, 12, 14 and 18
FUNCTIONS = {
    ("create_queue", "p_queue_name text", "void"),
    ("create_queue", "p_queue_name text, p_storage_mode text", "void"),
    ("drop_queue", "p_queue_name text", "void"),
    ("list_queues", "", "TABLE(queue_name text)"),
    ("ensure_queue_tables", "p_queue_name text", "void"),
    ("validate_queue_name", "p_queue_name text", "text"),
    ("get_queue_policy", "p_queue_name text", POLICY),
    ("set_queue_policy", "p_queue_name text, p_policy jsonb", "void"),
    ("get_schema_version", "", "text"),
    (
        "spawn_task",
        "p_queue_name text, p_task_name text, p_params jsonb, p_options jsonb DEFAULT '{}'::jsonb",
        SPAWNED,
    ),
    ("retry_task", "p_queue_name text, p_task_id uuid, p_options jsonb DEFAULT '{}'::jsonb", SPAWNED),
    (
        "get_task_result",
        "p_queue_name text, p_task_id uuid",
        "TABLE(task_id uuid, state text, result jsonb, failure_reason jsonb)",
    ),
    (
        "claim_task",
        "p_queue_name text, p_worker_id text, p_claim_timeout integer DEFAULT 30, p_qty integer DEFAULT 1",
        CLAIM,
    ),
    ("complete_run", "p_queue_name text, p_run_id uuid, p_state jsonb DEFAULT NULL::jsonb", "void"),
    ("schedule_run", f"p_queue_name text, p_run_id uuid, p_wake_at {TS}", "void"),
    (
        "fail_run",
        f"p_queue_name text, p_run_id uuid, p_reason jsonb, p_retry_at {TS} DEFAULT NULL::{TS}",
        "void",
    ),
    ("cancel_task", "p_queue_name text, p_task_id uuid", "void"),
    (
        "set_task_checkpoint_state",
        "p_queue_name text, p_task_id uuid, p_step_name text, p_state jsonb, p_owner_run uuid, "
        "p_extend_claim_by integer DEFAULT NULL::integer",
        "void",
    ),
    (
        "get_task_checkpoint_state",
        "p_queue_name text, p_task_id uuid, p_step_name text, p_include_pending boolean DEFAULT false",
        CHECKPOINT,
    ),
    ("get_task_checkpoint_states", "p_queue_name text, p_task_id uuid, p_run_id uuid", CHECKPOINT),
    ("extend_claim", "p_queue_name text, p_run_id uuid, p_extend_by integer", "void"),
    ("emit_event", "p_queue_name text, p_event_name text, p_payload jsonb DEFAULT NULL::jsonb", "void"),
    (
        "await_event",
        "p_queue_name text, p_task_id uuid, p_run_id uuid, p_step_name text, p_event_name text, "
        "p_timeout integer DEFAULT NULL::integer",
        "TABLE(should_suspend boolean, payload jsonb)",
    ),
    ("cleanup_tasks", "p_queue_name text, p_ttl_seconds integer, p_limit integer DEFAULT 1000", "integer"),
    ("cleanup_events", "p_queue_name text, p_ttl_seconds integer, p_limit integer DEFAULT 1000", "integer"),
    (
        "cleanup_all_queues",
        "p_queue_name text DEFAULT NULL::text",
        "TABLE(queue_name text, tasks_deleted integer, events_deleted integer)",
    ),
    ("current_time", "", TS),
    ("portable_uuidv7", "", "uuid"),
    ("retry_delay_seconds", "p_strategy jsonb, p_attempt integer", "double precision"),
    ("week_bucket_utc", f"p_ts {TS}", TS),
    ("partition_week_tag", f"p_ts {TS}", "text"),
    ("uuidv7_floor", f"p_ts {TS}", "uuid"),
    ("uuidv7_timestamp", "p_id uuid", TS),
}

#: name -> (volatility, strict) where the contract demands it
VOLATILITY = {
    "current_time": ("v", False),
    "retry_delay_seconds": ("i", False),
    "week_bucket_utc": ("i", True),
    "partition_week_tag": ("i", True),
    "uuidv7_floor": ("i", True),
    "uuidv7_timestamp": ("i", True),
}

VIEWS = {
    "t": [
        ("task_id", "uuid"), ("task_name", "text"), ("params", "jsonb"), ("headers", "jsonb"),
        ("retry_strategy", "jsonb"), ("max_attempts", "integer"), ("cancellation", "jsonb"), ("enqueue_at", TS),
        ("first_started_at", TS), ("state", "text"), ("attempts", "integer"), ("last_attempt_run", "uuid"),
        ("completed_payload", "jsonb"), ("cancelled_at", TS), ("idempotency_key", "text"),
    ],
    "r": [
        ("run_id", "uuid"), ("task_id", "uuid"), ("attempt", "integer"), ("state", "text"), ("claimed_by", "text"),
        ("claim_expires_at", TS), ("available_at", TS), ("wake_event", "text"), ("event_payload", "jsonb"),
        ("started_at", TS), ("completed_at", TS), ("failed_at", TS), ("result", "jsonb"),
        ("failure_reason", "jsonb"), ("created_at", TS),
    ],
    "c": [
        ("task_id", "uuid"), ("checkpoint_name", "text"), ("state", "jsonb"), ("status", "text"),
        ("owner_run_id", "uuid"), ("updated_at", TS),
    ],
    "e": [("event_name", "text"), ("payload", "jsonb"), ("emitted_at", TS)],
    "w": [
        ("task_id", "uuid"), ("run_id", "uuid"), ("step_name", "text"), ("event_name", "text"), ("timeout_at", TS),
        ("created_at", TS),
    ],
}  # fmt: skip

#: column, type, not null, default; the first ten of `queues`
QUEUES = [
    ("queue_name", "text", True, None),
    ("created_at", TS, True, 'absurd."current_time"()'),
    ("storage_mode", "text", True, "'unpartitioned'::text"),
    ("default_partition", "text", True, "'enabled'::text"),
    ("partition_lookahead", "interval", True, "'28 days'::interval"),
    ("partition_lookback", "interval", True, "'1 day'::interval"),
    ("cleanup_ttl", "interval", True, "'30 days'::interval"),
    ("cleanup_limit", "integer", True, "1000"),
    ("detach_mode", "text", True, "'none'::text"),
    ("detach_min_age", "interval", True, "'30 days'::interval"),
]

_COLUMNS = """
    select a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid)
      from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
     where a.attrelid = %s::regclass and a.attnum > 0 and not a.attisdropped order by a.attnum
"""

_CATALOGUE = """
    select 'function', p.oid::regprocedure::text, pg_get_functiondef(p.oid) from pg_proc p
     where p.pronamespace = 'absurd'::regnamespace
    union all
    select 'relation', c.relname, concat_ws(' ', c.relkind, c.relpersistence, c.reloptions, c.relacl,
           case c.relkind when 'v' then pg_get_viewdef(c.oid) when 'i' then pg_get_indexdef(c.oid) end,
           obj_description(c.oid, 'pg_class'))
      from pg_class c where c.relnamespace = 'absurd'::regnamespace
    union all
    select 'column', concat_ws(' ', a.attrelid::regclass, a.attnum, a.attname),
           concat_ws(' ', format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
                     pg_get_expr(d.adbin, d.adrelid), col_description(a.attrelid, a.attnum))
      from pg_attribute a join pg_class c on c.oid = a.attrelid
      left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
     where c.relnamespace = 'absurd'::regnamespace and c.relkind in ('r', 'v') and a.attnum > 0
    union all
    select 'constraint', concat_ws(' ', conrelid::regclass, conname), pg_get_constraintdef(oid) from pg_constraint
     where connamespace = 'absurd'::regnamespace
    order by 1, 2
"""


def catalogue(conn: Connection) -> list[tuple[Any, ...]]:
    """Everything the schema consists of, in words."""
    return conn.execute(_CATALOGUE).fetchall()


def install_simply(conn: Connection, text: str | None = None) -> pq.ExecStatus:
    """Run the bundle, or another text, as one simple query, as a driver without parameters does."""
    result = conn.pgconn.exec_((text or schema.sql()).encode())
    return pq.ExecStatus(result.status)


# ---------------------------------------------------------------- functions


def test_every_public_function_has_the_contracts_arguments_defaults_and_result(conn: Connection) -> None:
    found = conn.execute("""
        select proname, pg_get_function_arguments(oid), pg_get_function_result(oid) from pg_proc
         where pronamespace = 'absurd'::regnamespace
    """).fetchall()
    assert FUNCTIONS - set(found) == set()


def test_create_queue_alone_is_overloaded(conn: Connection) -> None:
    found = conn.execute("""
        select proname, count(*) from pg_proc where pronamespace = 'absurd'::regnamespace
         group by proname having count(*) > 1
    """).fetchall()
    assert found == [("create_queue", 2)]


@pytest.mark.parametrize("name", VOLATILITY)
def test_volatility_is_what_the_contract_demands(conn: Connection, name: str) -> None:
    question = "select provolatile, proisstrict from pg_proc where oid = to_regproc('absurd.' || quote_ident(%s))"
    assert conn.execute(question, (name,)).fetchone() == VOLATILITY[name]


def test_arguments_sent_as_untyped_text_find_their_function(conn: Connection) -> None:
    conn.execute("select absurd.create_queue('q')")
    for name, arguments, _ in sorted(FUNCTIONS):
        count = len([a for a in arguments.split(", ") if a])
        marks = ", ".join(f"${i + 1}" for i in range(count))
        prepared = conn.pgconn.prepare(b"", f'select * from absurd."{name}"({marks})'.encode())
        assert prepared.status == pq.ExecStatus.COMMAND_OK, (name, prepared.error_message)


def test_the_version_function_can_be_found_and_replaced(conn: Connection) -> None:
    assert conn.execute("select absurd.get_schema_version()").fetchone() == (schema.VERSION,)
    assert conn.execute("select to_regprocedure('absurd.get_schema_version()')::text").fetchone() != (None,)
    conn.execute(
        "create or replace function absurd.get_schema_version() returns text language sql as $$ select '9.9' $$"
    )
    assert conn.execute("select absurd.get_schema_version()").fetchone() == ("9.9",)


# ---------------------------------------------------------------- relations


@pytest.mark.parametrize("prefix", VIEWS)
def test_the_views_of_a_queue_have_the_contracts_columns_in_order(conn: Connection, prefix: str) -> None:
    conn.execute("select absurd.create_queue('a q')")
    found = conn.execute(_COLUMNS, (f'absurd."{prefix}_a q"',)).fetchall()
    assert [column[:2] for column in found] == VIEWS[prefix]


def test_queues_has_the_contracts_columns_types_and_defaults_first(conn: Connection) -> None:
    found = conn.execute(_COLUMNS, ("absurd.queues",)).fetchall()
    assert found[: len(QUEUES)] == QUEUES
    optional = [column for column in found[len(QUEUES) :] if not column[2]]
    assert [c[0] for c in found[len(QUEUES) :]] == ["queue_id", *(c[0] for c in optional)]
    key = "select pg_get_constraintdef(oid) from pg_constraint where conrelid = 'absurd.queues'::regclass and contype = 'p'"
    assert conn.execute(key).fetchone() == ("PRIMARY KEY (queue_name)",)


@pytest.mark.parametrize(
    ("column", "bad"),
    [
        ("storage_mode", "'weekly'"),
        ("default_partition", "'perhaps'"),
        ("partition_lookahead", "'-1 day'"),
        ("partition_lookback", "'-1 day'"),
        ("cleanup_ttl", "'-1 second'"),
        ("cleanup_limit", "0"),
        ("detach_mode", "'full'"),
        ("detach_min_age", "'-1 day'"),
    ],
)
def test_queues_refuses_a_policy_that_makes_no_sense(conn: Connection, column: str, bad: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        conn.execute(f"insert into absurd.queues (queue_name, {column}) values ('q', {bad})")  # type: ignore[arg-type, unused-ignore]


# ---------------------------------------------------------------- the install


def test_the_schema_installs_as_one_simple_query_without_extension_or_queue(
    empty_database_url: str, connect: Connect
) -> None:
    conn = connect(empty_database_url)
    before = conn.execute("select extname from pg_extension").fetchall()
    assert install_simply(conn) in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)
    assert conn.execute("select * from absurd.list_queues()").fetchall() == []
    assert conn.execute("select absurd.get_schema_version()").fetchone() == ("main",)
    assert conn.execute("select extname from pg_extension").fetchall() == before


def test_installing_twice_gives_the_same_schema_and_keeps_the_data(empty_database_url: str, connect: Connect) -> None:
    conn = connect(empty_database_url)
    install_simply(conn)
    once = catalogue(conn)
    conn.execute("select absurd.create_queue('q')")
    conn.execute("select * from absurd.spawn_task('q', 'work', '1')")
    with_queue = catalogue(conn)
    install_simply(conn)
    assert catalogue(conn) == with_queue
    assert conn.execute("select params from absurd.t_q").fetchall() == [(1,)]
    conn.execute("select absurd.drop_queue('q')")
    assert catalogue(conn) == once


def test_the_package_and_the_plain_text_install_the_same_schema(
    conn: Connection, empty_database_url: str, connect: Connect
) -> None:
    plain = connect(empty_database_url)
    install_simply(plain)
    assert catalogue(plain) == catalogue(conn)


def test_a_second_installer_waits_for_the_first_and_both_succeed(
    conn: Connection, empty_database_url: str, connect: Connect, gate: Gate
) -> None:
    first = connect(empty_database_url, autocommit=False)
    first.execute("select 1")  # an open transaction is joined, not committed
    schema.install(first)
    second = gate(schema.install, connect(empty_database_url), url=empty_database_url).wait_until_blocked()
    first.commit()
    assert second.result().version == schema.VERSION
    assert catalogue(first) == catalogue(conn)


def test_two_processes_that_install_at_once_give_the_same_schema(
    conn: Connection, empty_database_url: str, connect: Connect
) -> None:
    sessions = [connect(empty_database_url) for _ in range(3)]
    barrier = threading.Barrier(len(sessions))
    statuses: list[pq.ExecStatus] = []

    def install(session: Connection) -> None:
        barrier.wait(20)
        statuses.append(install_simply(session))

    threads = [threading.Thread(target=install, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert pq.ExecStatus.FATAL_ERROR not in statuses
    assert len(statuses) == len(sessions)
    assert catalogue(sessions[0]) == catalogue(conn)


def test_an_install_that_fails_leaves_nothing(empty_database_url: str, connect: Connect) -> None:
    conn = connect(empty_database_url)
    broken = schema.sql() + "\nselect 1 / 0;\n"
    assert install_simply(conn, broken) == pq.ExecStatus.FATAL_ERROR
    assert conn.execute("select to_regnamespace('absurd')").fetchone() == (None,)
    assert install_simply(conn) != pq.ExecStatus.FATAL_ERROR


def test_an_upgrade_that_fails_leaves_the_schema_as_it_was(conn: Connection) -> None:
    before = catalogue(conn)
    broken = schema.sql().replace("'spawn options must be", "'options must be") + "\nselect 1 / 0;\n"
    assert install_simply(conn, broken) == pq.ExecStatus.FATAL_ERROR
    assert catalogue(conn) == before


@pytest.mark.parametrize("plain", [True, False])
def test_the_choice_of_clock_survives_an_upgrade(conn: Connection, plain: bool) -> None:
    conn.execute("select absurd.set_fake_clock(false)")
    before = catalogue(conn)
    if plain:
        install_simply(conn)
    else:
        schema.install(conn)
    assert catalogue(conn) == before
    conn.execute("set absurd.fake_now = '2000-01-01'")
    assert conn.execute("select absurd.current_time() > '2020-01-01'").fetchone() == (True,)
