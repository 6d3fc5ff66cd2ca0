"""The order of the examples, crashed at every commit, in each of its stories."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from absurd import Absurd, testing
from tests.examples import order
from tests.fixtures.postgres import Connection

PROGRAM = Path(__file__).parents[2] / "examples" / "python" / "event_demo.py"
ORDER = "order-12345"
EFFECTS = "select step, count(*) from demo_effects group by 1"
PAID, DELIVERED = (dict([each]) for each in order.events(ORDER))
FEEDBACK = {f"customer.feedback:{ORDER}": {"rating": 5, "comment": "quick"}}


@pytest.fixture
def program(database_url: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example, on this test's database."""
    monkeypatch.setenv("ABSURD_DATABASE_URL", database_url)
    spec = importlib.util.spec_from_file_location("event_demo", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def app(program: ModuleType, database_url: str, conn: Connection) -> Iterator[Absurd]:
    """A test client with the example's tasks, in the place of its own."""
    conn.execute(program.CREATE_EFFECTS)
    with testing.client(database_url, tasks_of=program.app) as made:
        made.create_queue()
        program.app = made
        yield made


@pytest.mark.parametrize(
    ("wishes", "events", "ends"),
    [
        ({}, {**PAID, **DELIVERED}, {"status": "completed"}),
        ({"with_feedback": True}, {**PAID, **DELIVERED, **FEEDBACK}, {"status": "completed"}),
        ({"payment_timeout": 60}, {}, {"status": "cancelled", "reason": "no payment"}),
        ({"cancellable": True}, {**PAID, **DELIVERED}, {"status": "completed"}),
    ],
    ids=["as in the guide", "with feedback", "never paid", "cancellable"],
)
def test_an_order_survives_a_crash_at_every_commit(
    app: Absurd, wishes: dict[str, Any], events: dict[str, Any], ends: dict[str, Any]
) -> None:
    report = testing.crash_everywhere(
        app, "order-fulfillment", {"order_id": ORDER, **wishes}, events=events, effects=EFFECTS
    )
    assert report.result.items() >= ends.items()
    assert len(report.boundaries) >= 5


def test_an_order_that_reserves_without_a_transaction_is_caught(
    app: Absurd, program: ModuleType, conn: Connection
) -> None:
    def reserve(ctx: Any, order_id: str) -> None:
        with program.psycopg.connect(program.conninfo()) as warehouse:  # beside the transaction, and outside a step
            warehouse.execute(program.NOTE_EFFECT, (order_id, "inventory reserved", 1))

    program.reserve_inventory = reserve
    events = {**PAID, **DELIVERED}
    with pytest.raises(AssertionError, match='"ship-order":\n  - effect "inventory reserved" happened 4 times, not 3'):
        testing.crash_everywhere(app, "order-fulfillment", {"order_id": ORDER}, events=events, effects=EFFECTS)
