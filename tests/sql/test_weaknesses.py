"""What the original gets wrong in the database, as it was shown there: each of these fails on that behaviour.

`docs/reliability.md` has the table. The interleavings at each lock are in the files named test_gated_*; here are the stories.
"""

from __future__ import annotations

import threading

import psycopg
import pytest
from psycopg.types.json import Jsonb

from absurd import schema
from tests.fixtures.clock import Clock
from tests.fixtures.gates import Gate
from tests.fixtures.postgres import Connect, Connection, needs_superuser
from tests.sql.driver import NOON, Queue, after, refused, run_of
from tests.sql.statistics import fill, reads


def test_w01_a_fractional_cancellation_policy_stops_nobody(noon: Queue, clock: Clock) -> None:
    spawned = noon.spawn(cancellation={"max_delay": 0.5})
    other = noon.spawn()
    clock.set(noon.conn, after(1))
    assert [run["task_id"] for run in noon.claim(qty=10)] == [other["task_id"]]
    assert noon.task(spawned["task_id"])["state"] == "cancelled"


@pytest.mark.parametrize("policy", [{"max_delay": "soon"}, {"max_duration": -1}, {"max_delay": []}, [1], "never"])
def test_w01_a_policy_that_is_none_is_refused_at_spawn(q: Queue, policy: object) -> None:
    with refused("AB004", "cancellation"):
        q.spawn(cancellation=policy)
    assert q.view("t") == []


def test_w03_an_event_wait_that_timed_out_has_timed_out_for_ever(noon: Queue, clock: Clock) -> None:
    run = noon.start(max_attempts=3)
    noon.await_event(run, "late", timeout=5)
    clock.set(noon.conn, after(5))
    (again,) = noon.claim(timeout=60)
    assert noon.await_event(again, "late", timeout=5) == (False, None)
    noon.fail(again["run_id"])
    noon.emit("late", {"too": "late"})

    (second,) = noon.claim(timeout=60)

    assert second["attempt"] == 2
    assert noon.await_event(second, "late", timeout=5) == (False, None)


def test_w04_after_a_timeout_a_second_wait_for_the_same_event_waits(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    noon.await_event(run, "late", "first", timeout=5)
    clock.set(noon.conn, after(5))
    (again,) = noon.claim(timeout=60)
    assert noon.await_event(again, "late", "first", timeout=5) == (False, None)
    assert noon.await_event(again, "late", "second", timeout=3600)[0] is True


def test_w05_a_dead_attempt_cannot_overwrite_the_checkpoint_of_a_live_one(
    q: Queue, connect: Connect, gate: Gate
) -> None:
    first = q.start()
    with connect(autocommit=False) as slow:
        failing = q.on(slow)
        failing.fail(first["run_id"])
        late = gate(lambda conn: q.on(conn).checkpoint(first, "s", "old")).wait_until_blocked()
        slow.commit()
    with refused("AB002"):
        late.result()
    (second,) = q.claim()
    q.checkpoint(second, "s", "new")
    with refused("AB002"):
        q.checkpoint(first, "s", "old")
    assert q.checkpoints(first["task_id"]) == {"s": "new"}


def test_w06_a_cleanup_between_a_wait_and_its_lock_loses_no_wake_up(q: Queue, connect: Connect) -> None:
    """Whatever cleanup, wait and emit do to one another: at the end the task is awake."""
    for number in range(30):
        run = q.start()
        name = f"e{number}"
        start = threading.Barrier(3)
        others = [q.on(connect()) for _ in range(2)]

        def clean(cleaner: Queue = others[0], start: threading.Barrier = start) -> None:
            start.wait()
            cleaner.call("cleanup_events", 1)

        def emit(emitter: Queue = others[1], start: threading.Barrier = start, name: str = name) -> None:
            start.wait()
            emitter.emit(name, 1)

        threads = [threading.Thread(target=work) for work in (clean, emit)]
        for thread in threads:
            thread.start()
        start.wait()
        suspended, _ = q.await_event(run, name)
        for thread in threads:
            thread.join()
        if suspended:
            assert q.run(run["run_id"])["state"] == "pending", "asleep beside its event"
            q.claim()
        q.complete(run["run_id"])
        for other in others:
            other.conn.close()


def test_w07_a_cleanup_of_events_neither_counts_nor_takes_what_was_never_emitted(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    noon.await_event(run, "expected")
    clock.set(noon.conn, after(400 * 86400))
    assert noon.call("cleanup_events", 1) == [{"cleanup_events": 0}]
    noon.emit("expected", 1)
    assert noon.run(run["run_id"])["state"] == "pending"


def test_w08_a_checkpoint_through_the_run_of_another_task_is_refused(q: Queue) -> None:
    one, other = q.start(), q.start()
    with pytest.raises(psycopg.Error):
        q.checkpoint({"task_id": one["task_id"], "run_id": other["run_id"]}, "s", 1)
    q.complete(other["run_id"])
    with pytest.raises(psycopg.Error):
        q.checkpoint(other, "s", 1)
    with pytest.raises(psycopg.Error):
        q.await_event({"task_id": one["task_id"], "run_id": other["run_id"]}, "e")
    assert q.view("c") == []


def test_w11_a_task_past_its_duration_is_cancelled_by_the_next_claim_of_anybody(noon: Queue, clock: Clock) -> None:
    """The contract lets the run complete before; our workers look for such tasks while they are busy."""
    run = noon.start(cancellation={"max_duration": 10})
    clock.set(noon.conn, after(1800))
    noon.spawn("unrelated")
    noon.claim()
    assert noon.task(run["task_id"])["state"] == "cancelled"


@pytest.mark.expects_violations
def test_w12_a_run_without_a_lease_is_listed_by_the_invariants(q: Queue) -> None:
    q.spawn()
    q.claim(timeout=0)
    assert ["lease" in row["rule"] for row in q.violations()] == [True]


def test_w16_a_key_that_hides_another_request_says_so(q: Queue) -> None:
    spawn = (
        "select created, same_request from absurd.spawn_tasks(%s, array[%s], array['1']::jsonb[], p_keys => array['k'],"
        " p_fingerprints => array[%s])"
    )
    assert q.rows(spawn, (q.id, "a", "fa")) == [{"created": True, "same_request": True}]
    assert q.rows(spawn, (q.id, "a", "fa")) == [{"created": False, "same_request": True}]
    assert q.rows(spawn, (q.id, "b", "fb")) == [{"created": False, "same_request": False}]


def test_w17_a_claim_can_be_for_certain_tasks_only(q: Queue) -> None:
    q.spawn("theirs")
    mine = q.spawn("mine")
    assert [run["task_id"] for run in q.claims(names=["mine"])] == [mine["task_id"]]
    assert q.rows("select * from absurd.unserved_tasks(%s, array['mine'], 0)", (q.id,)) == [
        {"task_name": "theirs", "tasks": 1, "more": False}
    ]


def test_w17b_a_retry_strategy_of_null_is_none(q: Queue) -> None:
    q.spawn(retry_strategy=None, cancellation=None, headers=None)
    assert q.view("t")[0]["retry_strategy"] is None


def test_w21_one_slow_transaction_blocks_no_claim(noon: Queue, connect: Connect, clock: Clock) -> None:
    run = noon.start(cancellation={"max_duration": 1})
    for _ in range(3):
        noon.spawn()
    clock.set(noon.conn, after(60))
    with connect(autocommit=False) as slow:
        slow.execute("select 1 from absurd.live where task_id = %s for update", (run["task_id"],))
        noon.conn.execute("set lock_timeout = '1ms'")
        assert len(noon.claim(qty=3)) == 3


def test_w22_one_claim_cancels_no_more_than_a_hundred(noon: Queue, clock: Clock) -> None:
    noon.conn.execute(
        "select absurd.spawn_tasks(%s, array_fill('t'::text, array[250]), array_fill('1'::jsonb, array[250]),"
        " p_spec => array_fill(1, array[250]), p_specs => array[%s]::jsonb[])",
        (noon.id, Jsonb({"cancellation": {"max_delay": 1}})),
    )
    clock.set(noon.conn, after(60))
    for left in (150, 50, 0):
        noon.claim()
        assert noon.value("select count(*) from absurd.live") == left


def test_w25_a_claim_reads_the_same_at_any_backlog(q: Queue) -> None:
    seen = []
    for due in (10, 10_000):
        queue = q.named(f"due{due}")
        fill(q.conn, queue.name, due, "due")
        seen.append(reads(q.conn, "select * from absurd.claim_task(%s, 'w', 30, 1)", (queue.name,)).total)
    assert seen[0] == seen[1]


def test_w26_a_cleanup_with_nothing_to_delete_reads_nothing_of_the_history(q: Queue) -> None:
    fill(q.conn, "q", 5_000, "finished")
    found = reads(q.conn, "select absurd.cleanup_tasks('q', 86400)")
    assert found.sequential == []
    assert found.total < 20, found.rows


def test_w28_a_role_with_the_schema_and_the_functions_can_spawn_and_claim(conn: Connection, q: Queue) -> None:
    needs_superuser(conn, "makes a role")
    conn.execute("drop role if exists absurd_w28")
    conn.execute("create role absurd_w28")
    try:
        conn.execute("grant usage on schema absurd to absurd_w28")
        conn.execute("set role absurd_w28")
        q.spawn()
        assert len(q.claim()) == 1
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("delete from absurd.tasks")
    finally:
        conn.execute("reset role")
        conn.execute("drop owned by absurd_w28")
        conn.execute("drop role absurd_w28")


def test_w29_a_callers_search_path_changes_nothing(q: Queue) -> None:
    q.conn.execute("create schema evil")
    q.conn.execute("create function evil.length(text) returns integer language sql as 'select 0'")
    q.conn.execute("create function evil.btrim(text) returns text language sql as $$ select '' $$")
    q.conn.execute(
        "create function evil.clock_timestamp() returns timestamptz language sql as $$ select null::timestamptz $$"
    )
    q.conn.execute("set search_path = evil, pg_catalog")
    q.spawn()
    run = q.claim()[0]
    q.emit("e", 1)
    assert q.await_event(run, "e") == (False, "1")
    q.complete(run["run_id"])
    q.conn.execute("set search_path = default")
    assert q.task(run["task_id"])["state"] == "completed"


def test_w30_with_the_test_clock_turned_off_no_session_travels_in_time(q: Queue, clock: Clock) -> None:
    q.conn.execute("select absurd.set_fake_clock(false)")
    clock.set(q.conn, NOON)
    q.conn.execute("set absurd.fake_now = 'nonsense'")
    assert abs(q.value("select extract(epoch from clock_timestamp() - absurd.current_time())")) < 60
    q.spawn()
    assert len(q.claim()) == 1


def test_w31_a_second_install_changes_nothing_and_a_failing_one_leaves_nothing(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        with conn.transaction(force_rollback=True):
            assert schema.install(conn).migrations
        assert conn.execute("select to_regnamespace('absurd')").fetchone() == (None,)
        assert schema.install(conn).migrations
        assert schema.install(conn).migrations == ()


def test_w35_ids_carry_the_engines_time(noon: Queue) -> None:
    spawned = noon.spawn()
    moment = noon.value("select absurd.uuidv7_timestamp(%s)", (spawned["task_id"],))
    assert abs((moment - NOON).total_seconds()) < 0.001


def test_w37_only_the_compatibility_view_knows_infinity(q: Queue) -> None:
    run = q.start()
    q.await_event(run, "e")
    assert q.run(run["run_id"])["available_at"] == "infinity"
    assert q.value("select due_at from absurd.all_tasks") is None
    assert q.value("select count(*) from absurd.live where due_at = 'infinity'") == 0


def test_w38_a_sleep_is_measured_by_the_databases_clock(noon: Queue, clock: Clock) -> None:
    (claim,) = noon.hold()
    noon.array("schedule_runs", [claim], tail=", null, array[60]::float8[], array['nap']")
    clock.set(noon.conn, after(59))
    assert noon.claim() == []
    clock.set(noon.conn, after(60))
    assert [run["run_id"] for run in noon.claim()] == [run_of(claim.task_id, 1)]


def test_w39_a_name_can_be_used_again_tomorrow(q: Queue) -> None:
    q.emit("tick", 1)
    q.emit("tick", 2)
    assert q.value("select payload from absurd.events") == 1
    assert q.value("select absurd.emit_events(%s, array['tick'], array['3']::jsonb[], 'next')", (q.id,)) == "o"
    run = q.start()
    assert q.await_event(run, "tick") == (False, "3")


def test_w40_a_steps_own_writes_and_its_checkpoint_commit_together(q: Queue) -> None:
    q.conn.execute("create table public.ledger (line text)")
    (claim,) = q.hold()
    checkpoint = "select absurd.set_checkpoints(%s, array[%s::uuid], array[%s::int], array['book'], array['1'::jsonb])"
    with q.conn.transaction(force_rollback=True):
        q.conn.execute("insert into ledger values ('never')")
        assert q.value(checkpoint, (q.id, claim.run_id, claim.claim_no)) == "o"
    assert (q.checkpoints(claim.task_id), q.value("select count(*) from ledger")) == ({}, 0)
    with q.conn.transaction():
        q.conn.execute("insert into ledger values ('once')")
        assert q.value(checkpoint, (q.id, claim.run_id, claim.claim_no)) == "o"
    assert (q.checkpoints(claim.task_id), q.value("select count(*) from ledger")) == ({"book": 1}, 1)


def test_w27_no_verb_makes_up_its_sql(conn: Connection) -> None:
    dynamic = r"select proname from pg_proc where pronamespace = 'absurd'::regnamespace and prosrc ~* '\mexecute\M'"
    allowed = {"create_queue_views", "drop_queue", "set_fake_clock"}
    assert {name for (name,) in conn.execute(dynamic).fetchall()} <= allowed
