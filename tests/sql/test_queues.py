"""Queues: create, drop, list, policy (contract, section 4)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.fixtures.gates import Gate
from tests.fixtures.postgres import Connect
from tests.sql.driver import NOON, Queue, refused

ODD_NAMES = [
    "a",
    "1st",
    "Upper",
    "with blank",
    "   ",
    'quo"te',
    "apos'trophe",
    "semi;colon--",
    "ünïcödé",
    "x" * 57,
    "é" * 28,
]

DEFAULT_POLICY = {
    "queue_name": "q",
    "storage_mode": "unpartitioned",
    "default_partition": "enabled",
    "partition_lookahead": timedelta(days=28),
    "partition_lookback": timedelta(days=1),
    "cleanup_ttl": timedelta(days=30),
    "cleanup_limit": 1000,
    "detach_mode": "none",
    "detach_min_age": timedelta(days=30),
}


def queues(conn: psycopg.Connection[Any]) -> list[str]:
    return [name for (name,) in conn.execute("select * from absurd.list_queues()").fetchall()]


def policy(q: Queue) -> dict[str, Any]:
    (row,) = q.call("get_queue_policy")
    return row


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_queue_of_any_name_up_to_57_bytes_works_from_spawn_to_drop(conn, name: str) -> None:
    q = Queue(conn).named(name)
    run = q.start()
    q.complete(run["run_id"], 1)

    assert q.task(run["task_id"])["state"] == "completed"
    assert [len(q.view(prefix)) for prefix in "trcew"] == [1, 1, 0, 0, 0]
    assert queues(conn) == [name]
    q.call("drop_queue")
    assert queues(conn) == []


VALIDATING = {
    "create_queue": "select absurd.create_queue(%s)",
    "create_queue, mode": "select absurd.create_queue(%s, 'unpartitioned')",
    "ensure_queue_tables": "select absurd.ensure_queue_tables(%s)",
    "validate_queue_name": "select absurd.validate_queue_name(%s)",
    "set_queue_policy": "select absurd.set_queue_policy(%s, '{}')",
    "get_task_result": "select * from absurd.get_task_result(%s, gen_random_uuid())",
}


@pytest.mark.parametrize("function", VALIDATING)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        (None, "Queue name must be provided"),
        ("", "Queue name must be provided"),
        ("x" * 58, f'Queue name "{"x" * 58}" is too long (max 57 bytes).'),
        ("é" * 29, "is too long (max 57 bytes)."),
    ],
    ids=["null", "empty", "58 bytes", "58 bytes in 29 characters"],
)
def test_a_name_that_cannot_be_one_is_refused(shared_conn, function: str, name: str | None, text: str) -> None:
    with refused("P0001", text):
        shared_conn.execute(VALIDATING[function], (name,))
    assert name not in queues(shared_conn)


def test_cleanup_of_all_queues_refuses_a_name_that_cannot_be_one(conn) -> None:
    with refused("P0001", "is too long (max 57 bytes)."):
        conn.execute("select * from absurd.cleanup_all_queues(%s)", ("x" * 58,))
    with refused("P0001", "Queue name must be provided"):
        conn.execute("select * from absurd.cleanup_all_queues('')")


def test_validate_queue_name_returns_a_good_name_as_it_is(conn) -> None:
    assert conn.execute("select absurd.validate_queue_name('  a b ')").fetchone() == ("  a b ",)


# ---------------------------------------------------------------- create


def test_creating_a_queue_twice_changes_nothing(q: Queue) -> None:
    spawned, before = q.spawn(), q.rows("select * from absurd.queues")
    q.call("create_queue")
    q.call("create_queue", "unpartitioned")

    assert q.rows("select * from absurd.queues") == before
    assert q.task(spawned["task_id"])["state"] == "pending"


@pytest.mark.parametrize("mode", ["UNPARTITIONED", "  unpartitioned ", "UnPartitioned"])
def test_the_storage_mode_is_trimmed_and_lower_cased(conn, mode: str) -> None:
    conn.execute("select absurd.create_queue('q', %s)", (mode,))
    assert policy(Queue(conn))["storage_mode"] == "unpartitioned"


@pytest.mark.parametrize("mode", ["weekly", "", "un partitioned"])
def test_an_unknown_storage_mode_is_refused(conn, mode: str) -> None:
    with refused("P0001", f'Unsupported queue storage mode "{mode}"'):
        conn.execute("select absurd.create_queue('q', %s)", (mode,))
    assert queues(conn) == []


def test_a_partitioned_queue_is_refused_with_a_hint(conn) -> None:
    with pytest.raises(psycopg.errors.FeatureNotSupported) as caught:
        conn.execute("select absurd.create_queue('q', ' Partitioned ')")

    assert caught.value.sqlstate == "0A000"
    assert "unpartitioned" in (caught.value.diag.message_hint or "")
    assert queues(conn) == []


def test_another_mode_for_an_existing_queue_is_refused(q: Queue) -> None:
    with refused("P0001", 'Queue "q" already exists with storage mode "unpartitioned"'):
        q.call("create_queue", "partitioned")


def test_creating_restores_views_that_were_dropped(q: Queue) -> None:
    q.conn.execute("drop view absurd.t_q, absurd.w_q")
    q.call("create_queue")
    assert q.view("t") == q.view("w") == []

    q.conn.execute("drop view absurd.r_q")
    q.call("ensure_queue_tables")
    assert q.view("r") == []


def test_ensure_queue_tables_makes_a_queue_that_is_missing(conn) -> None:
    conn.execute("select absurd.ensure_queue_tables('q')")
    conn.execute("select absurd.ensure_queue_tables('q')")
    assert policy(Queue(conn)) == DEFAULT_POLICY


def test_a_row_with_a_name_alone_is_a_queue(conn, clock) -> None:
    clock.set(conn, NOON)
    conn.execute("insert into absurd.queues (queue_name) values ('q')")
    q = Queue(conn)

    assert policy(q) == DEFAULT_POLICY
    assert q.rows("select created_at from absurd.queues") == [{"created_at": NOON}]
    assert q.spawn()["created"]
    q.call("drop_queue")
    assert queues(conn) == []


def test_creating_a_queue_is_transactional(conn) -> None:
    with conn.transaction(force_rollback=True):
        assert Queue(conn).named("q").spawn()["created"]

    assert queues(conn) == []
    assert conn.execute("select to_regclass('absurd.t_q')").fetchone() == (None,)


def test_many_queues_fit_into_one_transaction(conn) -> None:
    with conn.transaction():
        conn.execute("select absurd.create_queue('queue ' || i) from generate_series(1, 200) i")
    assert len(queues(conn)) == 200


def test_two_creators_of_one_queue_both_succeed(conn, connect: Connect, gate: Gate) -> None:
    first = connect(autocommit=False)
    first.execute("select absurd.create_queue('q')")
    second = gate(lambda c: c.execute("select absurd.create_queue('q')")).wait_until_blocked()
    first.commit()
    second.result()

    assert queues(conn) == ["q"]
    Queue(conn).spawn()


@pytest.mark.parametrize("function", ["create_queue", "ensure_queue_tables"])
def test_a_creator_that_waited_for_a_drop_creates_a_new_queue(
    q: Queue, connect: Connect, gate: Gate, function: str
) -> None:
    q.spawn()
    old = q.id
    dropper = connect(autocommit=False)
    dropper.execute("select absurd.drop_queue('q')")
    creator = gate(lambda c: c.execute(f"select absurd.{function}('q')")).wait_until_blocked()
    dropper.commit()
    creator.result()

    assert q.id != old
    assert q.view("t") == []


# ---------------------------------------------------------------- drop and list


def test_dropping_an_unknown_queue_is_no_error(conn) -> None:
    for name in ("q", "x" * 80, None, ""):
        conn.execute("select absurd.drop_queue(%s)", (name,))


def test_dropping_removes_the_views_and_the_name_at_once(q: Queue) -> None:
    q.start()
    q.call("drop_queue")
    q.call("drop_queue")

    assert queues(q.conn) == []
    assert q.value("select count(*) from pg_views where viewname ~ '^[trcew]_q$'") == 0
    with refused("42P01", 'Queue "q" does not exist'):
        q.spawn()


def test_a_legacy_queue_with_a_longer_name_can_be_dropped(conn) -> None:
    name = "x" * 60
    conn.execute("insert into absurd.queues (queue_name) values (%s)", (name,))
    conn.execute("select absurd.drop_queue(%s)", (name,))
    assert queues(conn) == []


def test_a_queue_dropped_and_created_again_is_empty(q: Queue) -> None:
    run = q.start(idempotency_key="k")
    q.checkpoint(run, "a", 1)
    q.emit("e")
    q.call("drop_queue")
    q.call("create_queue")

    assert [q.view(prefix) for prefix in "trcew"] == [[], [], [], [], []]
    assert q.call("get_task_result", run["task_id"]) == []
    assert q.spawn(idempotency_key="k")["created"]


def test_a_second_dropper_of_one_queue_finds_nothing_to_do(q: Queue, connect: Connect, gate: Gate) -> None:
    first = connect(autocommit=False)
    first.execute("select absurd.drop_queue('q')")
    second = gate(lambda c: c.execute("select absurd.drop_queue('q')")).wait_until_blocked()
    first.commit()
    second.result()
    assert queues(q.conn) == []


def test_dropping_unschedules_the_cron_jobs_of_that_queue_only(q: Queue) -> None:
    q.conn.execute("create schema cron")
    q.conn.execute("create table cron.job (jobid bigint, jobname text, schedule text, command text)")
    q.conn.execute("""create function cron.unschedule(bigint) returns boolean language sql
                      as 'delete from cron.job where jobid = $1 returning true'""")
    scope, other = "7694f4a66316", "8277e0910d75"  # first 12 of md5 of 'q' and of 'x1'
    assert q.value("select left(md5('q'), 12)") == scope
    names = ["partitions_", "cleanup_", "detach_plan_"]
    for i, name in enumerate(names):
        for j, suffix in enumerate((scope, other, "all")):
            q.conn.execute("insert into cron.job values (%s, %s)", (10 * i + j, f"absurd_{name}{suffix}"))
    q.conn.execute("insert into cron.job values (90, %s)", (f"absurd_drop_run_{scope}_a_b",))
    q.conn.execute("insert into cron.job values (91, %s)", (f"absurd_detach_run_{scope}_a_b",))

    q.call("drop_queue")

    left = [n for (n,) in q.conn.execute("select jobname from cron.job").fetchall()]
    assert sorted(left) == sorted(f"absurd_{n}{s}" for n in names for s in (other, "all"))


def test_queues_are_listed_by_name(conn) -> None:
    assert queues(conn) == []
    for name in ("b", "c", "a"):
        conn.execute("select absurd.create_queue(%s)", (name,))
    assert queues(conn) == ["a", "b", "c"]


# ---------------------------------------------------------------- policy


def test_a_new_queue_has_the_default_policy(q: Queue) -> None:
    assert policy(q) == DEFAULT_POLICY
    assert Queue(q.conn, "other").call("get_queue_policy") == []
    assert q.rows("select * from absurd.get_queue_policy(null)") == []


def test_only_the_given_keys_of_a_policy_change(q: Queue) -> None:
    q.policy(cleanup_ttl="35 days", cleanup_limit=7, detach_mode="  EMPTY ")
    expected = DEFAULT_POLICY | {"cleanup_ttl": timedelta(days=35), "cleanup_limit": 7, "detach_mode": "empty"}
    assert policy(q) == expected

    q.policy(partition_lookahead="1 day", partition_lookback="0", detach_min_age="2 hours", cleanup_limit="8")
    expected |= {"partition_lookahead": timedelta(days=1), "partition_lookback": timedelta(0)}
    expected |= {"detach_min_age": timedelta(hours=2), "cleanup_limit": 8}
    assert policy(q) == expected


def test_an_interval_of_the_policy_reads_as_it_was_given(q: Queue) -> None:
    q.policy(cleanup_ttl="35 days")
    assert q.value("select cleanup_ttl::text from absurd.get_queue_policy('q')") == "35 days"


def test_no_policy_and_an_empty_one_change_nothing(q: Queue) -> None:
    q.conn.execute("select absurd.set_queue_policy('q', null)")
    q.policy()
    assert policy(q) == DEFAULT_POLICY


@pytest.mark.parametrize(
    ("given", "sqlstate", "text"),
    [
        ([1], "P0001", "must be a JSON object"),
        ("text", "P0001", "must be a JSON object"),
        (None, "P0001", "must be a JSON object"),
        ({"colour": "red"}, "P0001", 'Unsupported queue policy key "colour"'),
        ({"cleanup_ttl": "-1 day"}, "P0001", "cleanup_ttl must be a non-negative interval"),
        ({"detach_min_age": "-1 second"}, "P0001", "detach_min_age must be a non-negative interval"),
        ({"partition_lookahead": "-1 day"}, "P0001", "partition_lookahead must be a non-negative interval"),
        ({"partition_lookback": "-1 day"}, "P0001", "partition_lookback must be a non-negative interval"),
        ({"cleanup_ttl": "soon"}, "22007", "cleanup_ttl must be an interval such as '30 days', not"),
        ({"cleanup_limit": 0}, "P0001", "cleanup_limit must be >= 1"),
        ({"cleanup_limit": "many"}, "22P02", ""),
        ({"detach_mode": "full"}, "P0001", 'Unsupported detach mode "full"'),
        ({"default_partition": "disabled"}, "P0001", "default_partition applies to partitioned queues only"),
        ({"default_max_attempts": 0}, "P0001", "default_max_attempts must be >= 1"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_as_a_whole(
    own_queue: Queue, given: Any, sqlstate: str, text: str
) -> None:
    q = own_queue
    with refused(sqlstate, text):
        q.conn.execute("select absurd.set_queue_policy(%s, %s)", (q.name, Jsonb(given)))
    if isinstance(given, dict):
        with refused(sqlstate, text):
            q.policy(**{"cleanup_ttl": "1 hour"} | given)
    assert policy(q) == DEFAULT_POLICY | {"queue_name": q.name}


def test_the_policy_of_an_unknown_queue_cannot_be_set(q: Queue) -> None:
    with refused("P0001", 'Queue "nowhere" does not exist'):
        Queue(q.conn, "nowhere").policy(cleanup_limit=1)


def test_two_changes_of_one_policy_at_once_are_both_kept(q: Queue, connect: Connect, gate: Gate) -> None:
    first = q.on(connect(autocommit=False))
    first.policy(cleanup_limit=5)
    second = gate(lambda c: q.on(c).policy(cleanup_ttl="1 day")).wait_until_blocked()
    first.conn.commit()
    second.result()
    assert policy(q) == DEFAULT_POLICY | {"cleanup_limit": 5, "cleanup_ttl": timedelta(days=1)}


# ---------------------------------------------------------------- unknown queues

NIL = "'00000000-0000-7000-8000-000000000001'"
HOT_PATH = [
    "spawn_task('q', 'work', '{}')",
    "claim_task('q', 'w')",
    f"complete_run('q', {NIL})",
    f"fail_run('q', {NIL}, '{{}}')",
    f"schedule_run('q', {NIL}, now())",
    f"cancel_task('q', {NIL})",
    f"retry_task('q', {NIL})",
    f"extend_claim('q', {NIL}, 1)",
    f"set_task_checkpoint_state('q', {NIL}, 's', '{{}}', {NIL})",
    f"get_task_checkpoint_state('q', {NIL}, 's')",
    f"get_task_checkpoint_states('q', {NIL}, {NIL})",
    f"await_event('q', {NIL}, {NIL}, 's', 'e')",
    "emit_event('q', 'e')",
    f"get_task_result('q', {NIL})",
    "cleanup_tasks('q', 1)",
    "cleanup_events('q', 1)",
    "purge_queue('q')",
    "wake('q')",
    "check_invariants('q')",
]


@pytest.mark.parametrize("call", HOT_PATH)
def test_an_unknown_queue_is_an_undefined_table_with_a_hint(shared_conn, call: str) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable, match='Queue "q" does not exist') as caught:
        shared_conn.execute(f"select * from absurd.{call}")  # type: ignore[arg-type, unused-ignore]

    assert caught.value.sqlstate == "42P01"
    assert "absurdctl create-queue 'q'" in (caught.value.diag.message_hint or "")
