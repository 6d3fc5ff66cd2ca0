"""A test client, its clock, and something to count with."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from absurd import AsyncAbsurd
from absurd.testing import Effects
from absurd.testing._async.clock import FakeClock
from absurd.testing._async.session import client
from tests.fixtures.postgres import Connection


@pytest.fixture
async def app(database_url: str, conn: Connection) -> AsyncIterator[AsyncAbsurd]:
    """A test client with the queue `kit`; whatever the test does leaves the database consistent."""
    async with client(database_url, "kit") as made:
        await made.create_queue()
        yield made
    assert conn.execute("select * from absurd.check_invariants()").fetchall() == []


@pytest.fixture
def fake(app: AsyncAbsurd) -> FakeClock:
    """Its clock."""
    return FakeClock(app)


@pytest.fixture
def effects() -> Effects:
    """A counter."""
    return Effects()
