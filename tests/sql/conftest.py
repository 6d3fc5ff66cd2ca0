"""Every test of this folder ends with the engine's own check of what must always hold."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.fixtures.clock import Clock
from tests.fixtures.postgres import Connection, Databases
from tests.sql.driver import NOON, Queue

_numbers = itertools.count()
_MARK = "expects_violations"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{_MARK}: the test leaves rows that check_invariants() must not call fine")


@pytest.fixture(autouse=True)
def no_violations(request: pytest.FixtureRequest) -> Iterator[None]:
    """check_invariants() answers no row at the end of the test, unless it is marked to expect some."""
    if "database_url" not in request.fixturenames:
        yield
        return
    url = request.getfixturevalue("database_url")  # asked for here, so dropped after the check
    yield
    if request.node.get_closest_marker(_MARK):
        return
    with psycopg.connect(url, autocommit=True, connect_timeout=10) as conn:
        if conn.execute("select to_regprocedure('absurd.check_invariants(text)')").fetchone() == (None,):
            return
        found = conn.execute("select * from absurd.check_invariants()").fetchall()
    assert found == []


@pytest.fixture
def q(conn: psycopg.Connection[Any]) -> Queue:
    """A queue named q, by the wall clock."""
    return Queue(conn).named("q")


@pytest.fixture
def noon(q: Queue, clock: Clock) -> Queue:
    """The queue, its connection's clock stopped at NOON."""
    clock.set(q.conn, NOON)
    return q


@pytest.fixture(scope="module")
def shared_conn(databases: Databases, schema_template: str) -> Iterator[Connection]:
    """One database for all tests of a file that ask for `own_queue`; nothing in it may break a rule at the end."""
    with databases.fresh(schema_template) as name, psycopg.connect(databases.url(name), autocommit=True) as opened:
        yield opened
        assert opened.execute("select * from absurd.check_invariants()").fetchall() == []


@pytest.fixture
def own_queue(shared_conn: Connection) -> Iterator[Queue]:
    """A queue nobody else uses, in a database shared by the file: for long tables of short tests.

    A database a test costs more than such a test. Whoever alters the schema or reads whole tables asks for `q`.
    """
    queue = Queue(shared_conn).named(f"q{next(_numbers)}")
    yield queue
    shared_conn.execute("set absurd.fake_now = default")
    assert queue.violations() == []
