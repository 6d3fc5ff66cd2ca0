"""What the async tests and their generated sync twins share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.fixtures.postgres import Connection

Rows = Callable[..., list[Any]]


@pytest.fixture
def rows(conn: Connection) -> Rows:
    """Ask the database from outside: `rows("select ...", *params)`; single columns come as plain values."""

    def ask(query: str, *params: Any) -> list[Any]:
        found = conn.execute(query, params).fetchall()
        return [row[0] if len(row) == 1 else row for row in found]

    return ask


@pytest.fixture
def ledger(conn: Connection) -> str:
    """A table of the user's, without any key: what a handler writes twice is there twice."""
    conn.execute("create table ledger (entry text)")
    return "ledger"
