"""Every test of this folder ends with the engine's own check of what must always hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.fixtures.clock import Clock
from tests.sql.driver import NOON, Queue

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
