"""Twelve connections, all verbs, one or two queues: no deadlock, no error that is not documented, nothing ill-formed.

ABSURD_SEED repeats a run's choices (their interleaving is the server's).
"""

from __future__ import annotations

import os
import random

import pytest

from tests.fixtures.postgres import Connect
from tests.sql.load import WEIGHTS, World, run_load

CONNECTIONS = 12


def _seed() -> int:
    seed = int(os.environ.get("ABSURD_SEED") or random.SystemRandom().randrange(10**9))
    print(f"ABSURD_SEED={seed} repeats this")
    return seed


def _sound(world: World, connect: Connect) -> None:
    conn = connect()
    print(f"{sum(world.calls.values())} calls, refusals {dict(world.refusals)}")
    print(dict(world.calls))
    assert world.findings == []
    assert set(world.calls) == set(WEIGHTS), "every verb had its turn"
    conn.execute("select pg_stat_clear_snapshot()")
    assert conn.execute("select deadlocks from pg_stat_database where datname = current_database()").fetchone() == (0,)
    assert conn.execute("select * from absurd.check_invariants()").fetchall() == []


@pytest.mark.timeout(180)
def test_w23_five_thousand_calls_of_all_verbs_from_twelve_connections(connect: Connect) -> None:
    _sound(run_load([connect() for _ in range(CONNECTIONS)], _seed(), calls=5_000), connect)


@pytest.mark.stress
@pytest.mark.timeout(300)
def test_a_minute_of_all_verbs_from_twelve_connections(connect: Connect) -> None:
    _sound(run_load([connect() for _ in range(CONNECTIONS)], _seed(), seconds=60), connect)
