"""What the verbs refuse so that nothing is lost: short arrays, old snapshots, foreign pieces, values that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.fixtures.postgres import needs_superuser

Connection = psycopg.Connection[Any]


def queue(conn: Connection, name: str = "guarded") -> int:
    conn.execute("select absurd.create_queue(%s)", (name,))
    return scalar(conn, "select absurd.queue_id_of(%s)", name)


def scalar(conn: Connection, sql: str, *params: Any) -> Any:
    row = conn.execute(sql, params).fetchone()
    assert row is not None
    return row[0]


def claimed(conn: Connection, queue_id: int) -> tuple[Any, int]:
    row = conn.execute(
        "select absurd.run_id_of(task_id, attempt), claim_no from absurd.claim_tasks(%s, 'w', 60, 1)", (queue_id,)
    ).fetchone()
    assert row is not None
    return row[0], row[1]


@pytest.mark.parametrize("claim_nos", [[], None, [1, 2]])
def test_a_claim_number_for_each_run_or_nothing_is_written(conn: Connection, claim_nos: Any) -> None:
    queue_id = queue(conn)
    conn.execute("select absurd.spawn_task('guarded', 't', '{}')")
    run, _ = claimed(conn, queue_id)
    with pytest.raises(psycopg.Error) as refused:
        conn.execute("select absurd.complete_runs(%s, %s, %s::int[], %s)", (queue_id, [run], claim_nos, [Jsonb(1)]))
    assert refused.value.sqlstate == "AB004"
    assert scalar(conn, "select state::text from absurd.live") == "r"


def test_results_of_another_number_are_refused(conn: Connection) -> None:
    queue_id = queue(conn)
    conn.execute("select absurd.spawn_task('guarded', 't', '{}')")
    run, claim_no = claimed(conn, queue_id)
    with pytest.raises(psycopg.Error, match="results holds 2 values for 1 rows"):
        conn.execute("select absurd.complete_runs(%s, %s, %s, %s)", (queue_id, [run], [claim_no], [Jsonb(1), Jsonb(2)]))


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_an_emit_on_an_old_snapshot_is_refused_and_nobody_is_left_asleep(
    conn: Connection, connect: Callable[..., Connection], level: str
) -> None:
    queue_id = queue(conn)
    other = connect()
    other.execute(f"begin isolation level {level}")
    other.execute("select 1 from absurd.queues")  # its snapshot is taken before anybody waits
    conn.execute("select absurd.spawn_task('guarded', 't', '{}')")
    run, claim_no = claimed(conn, queue_id)
    conn.execute("select * from absurd.await_events(%s, %s, %s, array['s'], array['e'])", (queue_id, [run], [claim_no]))
    with pytest.raises(psycopg.Error) as refused:
        other.execute("select absurd.emit_event('guarded', 'e', '1')")
    assert refused.value.sqlstate == "25001"
    assert "READ COMMITTED" in str(refused.value)
    other.execute("rollback")
    other.execute("select absurd.emit_event('guarded', 'e', '1')")
    assert scalar(conn, "select state::text from absurd.live") == "p"


def test_the_pieces_of_the_verbs_are_for_the_owner_alone(conn: Connection) -> None:
    needs_superuser(conn, "makes a role")
    queue(conn)
    conn.execute("drop role if exists absurd_guest_of_guards")
    conn.execute("create role absurd_guest_of_guards")
    try:
        conn.execute("grant usage on schema absurd to absurd_guest_of_guards")
        conn.execute("set role absurd_guest_of_guards")
        conn.execute("select absurd.spawn_task('guarded', 't', '{}')")
        task = scalar(conn, "select task_id from absurd.claim_task('guarded', 'w')")
        for piece in (
            "absurd.finish_tasks(1, now(), array[%(task)s]::uuid[], 'c', 'c', null, null)",
            "absurd.delete_tasks(1, array[%(task)s]::uuid[])",
            "absurd.set_fake_clock(true)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(f"select {piece}", {"task": task})
    finally:
        conn.execute("reset role")
        conn.execute("drop owned by absurd_guest_of_guards")
        conn.execute("drop role absurd_guest_of_guards")


def test_a_task_whose_checkpoints_do_not_fit_one_value_stops_no_other(conn: Connection) -> None:
    queue_id = queue(conn)
    conn.execute("select absurd.spawn_task('guarded', 'heavy', '{}')")
    run, _ = claimed(conn, queue_id)
    conn.execute(
        "insert into absurd.checkpoints (queue_id, task_id, name, state, attempt)"
        " select %s, absurd.task_id_of(%s), 's' || i, to_jsonb(repeat('x', 15000000)), 1 from generate_series(1, 19) i",
        (queue_id, run),
    )
    conn.execute("select absurd.fail_run('guarded', %s, '{}')", (run,))
    conn.execute("select absurd.spawn_task('guarded', 'light', '{}')")
    rows = conn.execute(
        "select task_name, checkpoints from absurd.claim_tasks(%s, 'w', 60, 10) order by 1", (queue_id,)
    ).fetchall()
    assert rows == [("heavy", "too large"), ("light", None)]


def test_a_key_given_with_an_id_that_is_taken_stays_free(conn: Connection) -> None:
    queue_id = queue(conn)
    task = scalar(conn, "select absurd.mint_id(clock_timestamp(), 7, 1)")
    spawn = "select created from absurd.spawn_tasks(%s, array['t'], array['{}'::jsonb], array[%s::uuid], %s)"
    assert scalar(conn, spawn, queue_id, task, None) is True
    assert scalar(conn, spawn, queue_id, task, ["k"]) is False
    assert scalar(conn, "select count(*) from absurd.idempotency_keys") == 0


def test_a_channel_that_cannot_be_notified_is_refused_where_it_is_registered(conn: Connection) -> None:
    queue_id = queue(conn)
    task = scalar(conn, "select task_id from absurd.spawn_task('guarded', 't', '{}')")
    for call, params in (
        ("absurd.set_idle(array[%s], %s)", (queue_id, "c" * 64)),
        ("absurd.watch_task('guarded', %s, %s)", (task, "")),
    ):
        with pytest.raises(psycopg.Error) as refused:
            conn.execute(f"select {call}", params)
        assert refused.value.sqlstate == "AB004"


def test_idle_workers_of_each_fleet_are_told(conn: Connection, connect: Callable[..., Connection]) -> None:
    queue_id = queue(conn)
    listeners = {name: connect() for name in ("a1", "a2", "b1")}
    for name, listener in listeners.items():
        listener.execute(f"listen {name}")
        listener.execute("select absurd.set_idle(array[%s], %s, %s)", (queue_id, name, name[0]))
    conn.execute("select absurd.spawn_task('guarded', 't', '{}')")
    told = {name for name, listener in listeners.items() if list(listener.notifies(timeout=1, stop_after=1))}
    assert told == {"a1", "b1"}


def test_a_lease_that_is_no_number_is_refused(conn: Connection) -> None:
    queue_id = queue(conn)
    conn.execute("select absurd.spawn_task('guarded', 't', '{}')")
    with pytest.raises(psycopg.Error) as refused:
        conn.execute("select * from absurd.claim_tasks(%s, 'w', 'NaN', 1)", (queue_id,))
    assert refused.value.sqlstate == "AB004"
