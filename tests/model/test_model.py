"""Random calls against the engine and against a plain model of it: they must agree after every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.fixtures.postgres import Databases
from tests.model.machine import Machine

STEPS = 40


@pytest.fixture
def connections(databases: Databases, schema_template: str) -> Iterator[list[psycopg.Connection[Any]]]:
    with databases.fresh(schema_template) as name:
        opened = [psycopg.connect(databases.url(name), autocommit=True) for _ in range(3)]
        yield opened
        for conn in opened:
            conn.close()


@pytest.mark.timeout(300)
def test_ten_thousand_random_steps_agree_with_the_model(connections: list[psycopg.Connection[Any]]) -> None:
    Machine.connections = connections
    budget = settings(
        max_examples=10_000 // STEPS,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Machine, settings=budget)
