"""An upgrade and a call under way do not wait for each other: it takes its locks together, and gives them back to try again."""

from __future__ import annotations

import gzip
import re
from itertools import product
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from absurd import schema
from tests.contract.test_signatures import install_simply
from tests.fixtures.gates import Gate
from tests.fixtures.postgres import Connect, Connection

RELEASES = Path(__file__).parent.parent / "fixtures" / "releases"
SQL = Path(__file__).parent.parent.parent / "sql"

#: What a call does first, so that the upgrade waits for it, and what it wants then. The last two hold up an upgrade from a
#: release before 0.101.0 only.
CIRCLES = {
    "an emit that wakes": ("insert into absurd.events values (1, 'e')", "select from absurd.live for update"),
    "a reader": ("select from absurd.all_waits", "select from absurd.all_events, absurd.all_runs"),
    "another": ("select from absurd.all_events", "select from absurd.all_waits, absurd.compat_events"),
    "a purge": ("select from absurd.live for update", "delete from absurd.events"),
    "a retry": ("delete from absurd.attempts", "select from absurd.live for update"),
}


def restored(release: str, url: str, connect: Connect) -> str:
    """The URL again, of a database as that release installed it."""
    with connect(url) as conn:
        install_simply(conn, gzip.decompress((RELEASES / f"{release}.sql.gz").read_bytes()).decode())
    return url


@pytest.mark.parametrize(
    ("release", "circle"), [*product(["0.1.0", "0.100.0"], CIRCLES), *product(["0.101.0"], [*CIRCLES][:3])]
)
def test_an_upgrade_gives_way_to_a_call_that_goes_on(
    empty_database_url: str, connect: Connect, gate: Gate, release: str, circle: str
) -> None:
    old = restored(release, empty_database_url, connect)
    first, then = CIRCLES[circle]
    with connect(old, autocommit=False) as call:
        call.execute(first)
        upgrade = gate(schema.install, url=old).wait_until_blocked()
        call.execute(then)
        call.commit()
    assert upgrade.result().changed


def test_an_upgrade_that_nobody_lets_through_says_who_it_was_and_changes_nothing(
    empty_database_url: str, connect: Connect
) -> None:
    old = restored("0.101.0", empty_database_url, connect)
    with connect(old, autocommit=False) as call, connect(old) as owner:
        before = schema.installed_version(owner)
        call.execute("select from absurd.task_by_id")
        owner.execute("set lock_timeout = '20ms'")
        with pytest.raises(
            psycopg.errors.LockNotAvailable, match=r"could not lock absurd\.task_by_id within 0\.02 s"
        ) as caught:
            schema.install(owner)
        assert f"select pg_terminate_backend({call.info.backend_pid})" in (caught.value.diag.message_hint or "")
        assert schema.installed_version(owner) == before
        call.rollback()
        assert schema.install(owner).changed
        assert owner.execute("show lock_timeout").fetchone() == ("20ms",)


def test_it_names_who_holds_it_up_and_neither_an_older_reader_nor_somebody_in_a_twin_database(
    empty_database_url: str, conn: Connection, connect: Connect
) -> None:
    old = restored("0.100.0", empty_database_url, connect)
    name = conninfo_to_dict(old)["dbname"]
    twin = make_conninfo(old, dbname=f"{name}_twin")  # its tables have the same numbers
    conn.execute(f"create database {name}_twin template {name}")
    try:
        with connect(twin) as other, connect(old) as reader, connect(old) as holder, connect(old) as owner:
            for one in (other, reader, holder):
                one.execute("begin")
                one.execute("select from absurd.live" + ("" if one is reader else " for update"))
            owner.execute("set lock_timeout = '20ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable, match=r"could not lock absurd\.live") as caught:
                schema.install(owner)
            assert f"Process {holder.info.backend_pid} has used it" in (caught.value.diag.message_hint or "")
    finally:
        conn.execute(f"drop database {name}_twin with (force)")


def test_what_only_a_vacuum_holds_is_waited_for_in_peace_first(
    empty_database_url: str, connect: Connect, gate: Gate
) -> None:
    """So that an autovacuum gives way, which it does for nobody who waits less than deadlock_timeout."""
    old = restored("0.101.0", empty_database_url, connect)
    asked = "select mode from pg_locks where pid = %s and relation = 'absurd.events'::regclass and not granted"
    with connect(old, autocommit=False) as vacuum, connect(old) as observer:
        vacuum.execute("lock table absurd.events in share update exclusive mode")
        upgrade = gate(schema.install, url=old).wait_until_blocked()
        assert observer.execute(asked, (upgrade.pid,)).fetchall() == [("ShareUpdateExclusiveLock",)]
        observer.execute("insert into absurd.events values (1, 'e')")  # nobody else waits behind it
    assert upgrade.result().changed


def test_a_view_of_somebody_else_in_the_schema_is_left_alone(
    empty_database_url: str, conn: Connection, connect: Connect
) -> None:
    name = conninfo_to_dict(empty_database_url)["dbname"]
    conn.execute(f"create role {name}_owner; grant create on database {name} to {name}_owner")
    try:
        with connect(empty_database_url) as admin, connect(empty_database_url) as owner:
            owner.execute(f"set role {name}_owner")
            schema.install(owner)
            admin.execute("create view absurd.report as select 1 as one")
            assert not schema.install(owner).changed
            admin.execute(f"drop view absurd.report; drop owned by {name}_owner cascade")
    finally:
        conn.execute(f"drop role {name}_owner")


def test_every_table_that_a_migration_locks_is_named_among_the_locks_of_an_upgrade() -> None:
    named = set(re.findall(r"\(\d+, (\d+), '(\w+)', '[a-z ]+'\)", (SQL / "src" / "15_locks.sql").read_text()))
    wanted = {
        (str(int(path.name[:4])), table)
        for path in (SQL / "migrations").glob("*.sql")
        if path.name > "0001_initial.sql"
        for table in re.findall(r"(?:\btable|\bindex \w+ on|\bupdate|\bfrom|\binto) absurd\.(\w+)", path.read_text())
    }
    assert wanted == named
