"""The gate and the databases themselves: a fixture that lies would make every race test worthless."""

from __future__ import annotations

import psycopg
import pytest

from tests.fixtures.gates import Gate
from tests.fixtures.postgres import Connect


def test_a_gated_call_is_seen_waiting_and_goes_on_when_the_lock_is_released(
    empty_database_url: str, connect: Connect, gate: Gate
) -> None:
    first = connect(empty_database_url, autocommit=False)
    first.execute("create table seats (id int primary key, taken_by text)")
    first.execute("insert into seats values (1, null)")
    first.commit()
    first.execute("update seats set taken_by = 'first'")

    second = gate(
        lambda c: c.execute("update seats set taken_by = 'second' where taken_by is null").rowcount,
        url=empty_database_url,
    ).wait_until_blocked()

    assert second.blockers() == [first.info.backend_pid]
    first.commit()
    assert second.result() == 0


def test_a_call_that_does_not_wait_fails_the_gate_with_what_it_returned(empty_database_url: str, gate: Gate) -> None:
    running = gate(lambda c: c.execute("select 42").fetchone(), url=empty_database_url)

    with pytest.raises(pytest.fail.Exception, match=r"but it returned \(42,\)"):
        running.wait_until_blocked()


def test_an_error_of_the_call_is_raised_by_its_result(empty_database_url: str, gate: Gate) -> None:
    running = gate(lambda c: c.execute("select 1 / 0"), url=empty_database_url)

    with pytest.raises(psycopg.errors.DivisionByZero):
        running.result()


def test_an_abandoned_call_is_ended_with_the_test(empty_database_url: str, connect: Connect, gate: Gate) -> None:
    first = connect(empty_database_url, autocommit=False)
    first.execute("select pg_advisory_xact_lock(1)")

    gate(lambda c: c.execute("select pg_advisory_lock(1)"), url=empty_database_url).wait_until_blocked()


def test_two_fresh_databases_have_nothing_in_common(databases, connect: Connect) -> None:
    with databases.fresh() as one, databases.fresh() as other:
        connect(databases.url(one)).execute("create table here ()")
        row = connect(databases.url(other)).execute("select to_regclass('here')").fetchone()

    assert row == (None,)
