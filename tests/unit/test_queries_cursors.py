"""What is no cursor of a list is refused before the database is asked, and what is accepted, the database can read."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from absurd import queries
from absurd.errors import ConfigError
from absurd.queries import Query, detail, events, tasks, waits
from absurd.queries.events import EventFilter
from absurd.queries.tasks import TaskFilter
from absurd.queries.waits import WaitFilter
from tests.cli.engine import Engine
from tests.fixtures.postgres import Connection

TASK = "01a1fa96-4b06-7000-975a-8074f80c0000"
NOON = "2026-03-01T12:00:00+00:00"
MAKE: dict[str, Callable[[str], Query[Any]]] = {
    "events": lambda after: events.find(EventFilter(after=after)),
    "tasks": lambda after: tasks.find(TaskFilter(after=after)),
    "waits": lambda after: waits.find(WaitFilter(after=after)),
    "checkpoints": lambda after: detail.checkpoints("orders", UUID(TASK), after=after),
}


def cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode()


ODD = [
    "",
    "MQ==",
    "W10=",
    "é",
    "\0",
    "=",
    "====",
    "A",
    "Zm9v\n",
    f"{TASK}.",
    f"{TASK}.{10**30}",
    f"{TASK}.-1",
    f"{TASK}.1.2",
    f"{TASK}.²",
    f"{TASK}.1_0",
    f"{TASK}.{'9' * 5000}",
    ".",
    ".1",
    *map(
        cursor,
        (
            '[null, "e", Infinity]',
            '[null, "e", -Infinity]',
            '[null, "e", NaN]',
            '[null, "e", 1e400]',
            '[null, "e", 1.5]',
            f'[null, "e", {10**30}]',
            f'[null, "e", {"9" * 5000}]',
            '[null, "e", -1]',
            '[null, "e", true]',
            "[null, null, 1]",
            '[null, "a\\u0000b", 1]',
            '[null, "\\ud800", 1]',
            '[null, ["e"], 1]',
            '[null, {"e": 1}, 1]',
            '[0, "e", 1]',
            '["", "e", 1]',
            '["2026-03-01T12:00:00", "e", 1]',
            '["infinity", "e", 1]',
            '["2026-03-01", "e", 1]',
            "[" * 100_000,
            "[" * 50_000 + "]" * 50_000,
            '[null, "e", ' + "[" * 50_000 + "]" * 50_000 + "]",
            "{}",
            "null",
            '"abc"',
            f'["{TASK}", Infinity, "s"]',
            f'["{TASK}", 1e400, "s"]',
            f'["{TASK}", {10**30}, "s"]',
            f'["{TASK}", 1, 2]',
            f'["{TASK}", 1, "\\u0000"]',
            f'["{TASK}", 1, "\\ud800"]',
            '[7, 1, "s"]',
            '[NaN, "s"]',
            '[Infinity, "s"]',
            f'["{NOON}", null]',
            f'["{NOON}", Infinity]',
            f'["{NOON}", "\\u0000"]',
            f'["{NOON}", "\\udfff"]',
        ),
    ),
]


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("odd", ODD, ids=lambda text: ascii(text)[:40])
def test_what_is_no_cursor_is_refused_before_the_database_is_asked(kind: str, odd: str) -> None:
    with pytest.raises(ConfigError, match="not a cursor of a") as refused:
        MAKE[kind](odd)
    assert len(str(refused.value)) < 500


# places of every kind, whole cursors of them, and text that is near one
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from([TASK, NOON, "e", 1])
    | st.datetimes().map(lambda at: at.isoformat() + "+00:00") | st.uuids().map(str) | st.sampled_from(["\0", "\ud800", 2**31])
)  # fmt: skip
places = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner))
anything = (
    st.text(max_size=40)
    | st.binary(max_size=40).map(lambda raw: base64.urlsafe_b64encode(raw).decode())
    | st.lists(places, min_size=2, max_size=3).map(lambda found: cursor(json.dumps(found)))
    | st.tuples(st.uuids() | st.text(max_size=9), st.integers() | st.text(max_size=9)).map(
        lambda two: f"{two[0]}.{two[1]}"
    )
    | st.tuples(st.none() | st.just(NOON), st.text(max_size=5), st.integers(0, 2**31)).map(
        lambda it: cursor(json.dumps(it))
    )
    | st.tuples(st.just(TASK), st.integers(-1, 2**31), st.text(max_size=5)).map(lambda it: cursor(json.dumps(it)))
    | st.tuples(st.just(NOON), st.text(max_size=5)).map(lambda it: cursor(json.dumps(it)))
)


@given(after=anything)
@example(after=cursor(f'[null, "e", {2**31 - 1}]'))
@example(after=f"{TASK}.{2**31 - 1}")
@example(after=cursor(f'["{TASK}", {2**31 - 1}, ""]'))
@example(after=cursor('["0001-01-01T00:00:00+14:00", "e", 1]'))
@example(after=cursor('["9999-12-31T23:59:59.999999-14:00", "e", 1]'))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_cursor_is_refused_or_the_database_can_read_it(engine: Engine, conn: Connection, after: str) -> None:
    for make in MAKE.values():
        try:
            question = make(after)
        except ConfigError:
            continue
        assert queries.run(conn, question).items == ()


@pytest.fixture
def engine(conn: Connection) -> Engine:
    return Engine(conn)
