"""Arguments nobody should send, found by the fuzz tests: refused, and nothing is written."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fixtures.postgres import Connection
from tests.property.population import QUEUE, Population, picture, populate, violations
from tests.sql.driver import refused


@pytest.fixture
def there(conn: Connection) -> Population:
    return populate(conn)


#: verb -> its arguments after the queue id; {run} is a running run, and one array of each holds two values.
UNEVEN = {
    "complete_runs": "array[%(run)s]::uuid[], '{1}', '{1,2}'",
    "fail_runs": "array[%(run)s]::uuid[], '{1}', '{null}', p_retry_at => '{now,now}'",
    "fail_runs final": "array[%(run)s]::uuid[], '{1}', '{null}', p_final => '{t,t}'",
    "fail_runs in": "array[%(run)s]::uuid[], '{1}', '{null}', p_retry_in => '{1,1}'",
    "schedule_runs": "array[%(run)s]::uuid[], '{1}', '{now,now}'",
    "schedule_runs delay": "array[%(run)s]::uuid[], '{1}', null, p_delay => '{1,1}'",
    "schedule_runs step": "array[%(run)s]::uuid[], '{1}', '{now}', p_steps => '{a,b}'",
    "set_checkpoints": "array[%(run)s]::uuid[], '{1}', '{a}', '{1,2}'",
    "extend_claims": "array[%(run)s]::uuid[], '{1,1}', 5",
    "await_events": "array[%(run)s]::uuid[], '{1}', '{a}', '{x,y}'",
    "await_events step": "array[%(run)s]::uuid[], '{1}', '{a,b}', '{x}'",
    "await_events no step": "array[%(run)s]::uuid[], '{1}', null, '{x}'",
    "await_events timeout": "array[%(run)s]::uuid[], '{1}', '{a}', '{x}', '{1,1}'",
    "await_events since": "array[%(run)s]::uuid[], '{1}', '{a}', '{x}', null, '{now,now}'",
    "await_tasks": "array[%(run)s]::uuid[], '{1}', '{a}', '{1,1}', array[%(task)s]::uuid[]",
    "await_tasks task": "array[%(run)s]::uuid[], '{1}', '{a}', '{1}', null",
    "await_tasks timeout": "array[%(run)s]::uuid[], '{1}', '{a}', '{1}', array[%(task)s]::uuid[], '{1,1}'",
}


@pytest.mark.parametrize("case", UNEVEN)
def test_arrays_of_different_lengths_are_refused(conn: Connection, there: Population, case: str) -> None:
    before = picture(conn, there)
    with refused("AB004"):
        conn.execute(
            f"select * from absurd.{case.partition(' ')[0]}({there.queue_id}, {UNEVEN[case]})",
            {"run": there.runs["running"], "task": there.tasks["child"]},
        )
    assert picture(conn, there) == before


def test_a_lease_is_not_taken_away_by_renewing_it_for_null_seconds(conn: Connection, there: Population) -> None:
    with refused("AB004", "extend_by"):
        conn.execute(
            "select absurd.extend_claims(%s, %s::uuid[], '{1}', null)", (there.queue_id, [there.runs["running"]])
        )
    assert violations(conn) == []


@pytest.mark.parametrize("verb", ["emit_events", "try_emit_events"])
def test_an_event_of_a_queue_nobody_knows_is_refused(conn: Connection, there: Population, verb: str) -> None:
    with refused("42P01"):
        conn.execute(f"select absurd.{verb}(999, '{{x}}', '{{1}}')")
    assert violations(conn) == []


def test_an_event_of_a_queue_dropped_meanwhile_is_none_of_its_senders_trouble(
    conn: Connection, there: Population
) -> None:
    conn.execute("select absurd.drop_queue(%s)", (QUEUE,))
    assert conn.execute("select absurd.emit_events(%s, '{x}', '{1}')", (there.queue_id,)).fetchone() == ("o",)


def test_a_wait_in_a_queue_nobody_knows_leaves_nothing_behind(conn: Connection, there: Population) -> None:
    rows = conn.execute(
        "select status from absurd.await_events(999, %s::uuid[], '{1}', '{a}', '{x}')", ([there.runs["running"]],)
    ).fetchall()
    assert rows == [("m",)]
    assert violations(conn) == []


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("select absurd.set_idle(array[{queue}, null, {queue}], 'c', null)", "select count(*) from absurd.idle"),
        (
            "select absurd.take_housekeeping(array[{queue}, null, {queue}], 5)",
            "select count(*) from absurd.housekeeping",
        ),
    ],
)
def test_a_queue_named_twice_or_by_null_counts_once_or_not_at_all(
    conn: Connection, there: Population, question: str, found: str
) -> None:
    conn.execute(question.format(queue=there.queue_id))
    assert conn.execute(found).fetchone() == (1,)


@pytest.mark.parametrize(
    "question", ["select absurd.set_idle('{1}', null)", "select absurd.watch_task('q', %(task)s, null)"]
)
def test_a_channel_is_needed(conn: Connection, there: Population, question: str) -> None:
    with refused("AB004", "channel"):
        conn.execute(question, {"task": there.tasks["pending"]})


def test_no_names_and_no_keys_spawn_nothing(conn: Connection, there: Population) -> None:
    call = "select * from absurd.spawn_tasks({}, null, null, p_keys => '{{}}')"
    assert conn.execute(call.format(there.queue_id)).fetchall() == []
    with refused("AB004", "fingerprints"):
        conn.execute(f"select * from absurd.spawn_tasks({there.queue_id}, null, null, p_fingerprints => '{{x}}')")


def test_options_in_an_array_that_counts_from_zero_are_read_like_others(conn: Connection, there: Population) -> None:
    conn.execute(f"""
        select * from absurd.spawn_tasks({there.queue_id}, '{{zero}}', '{{1}}', p_spec => '{{1}}',
                                         p_specs => '[0:0]={{"{{\\"priority\\": 7}}"}}'::jsonb[])
    """)
    row: Any = conn.execute("select priority from absurd.tasks where task_name = 'zero'").fetchone()
    assert row == (7,)
