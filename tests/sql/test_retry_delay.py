"""retry_delay_seconds (contract, sections 5 and 14)."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg.types.json import Jsonb

from absurd._core import retries
from tests.sql.driver import Queue, refused


def delay(conn, strategy: Any, attempt: int | None) -> float:
    value = None if strategy is None else Jsonb(strategy)
    row = conn.execute("select absurd.retry_delay_seconds(%s, %s)", (value, attempt)).fetchone()
    return row[0]


@pytest.mark.parametrize(
    ("strategy", "delays"),
    [
        (None, [0, 0, 0, 0]),
        ({}, [0, 0, 0, 0]),
        ({"kind": "none"}, [0, 0, 0, 0]),
        ({"kind": "none", "base_seconds": "never looked at"}, [0, 0, 0, 0]),
        ({"kind": None, "base_seconds": -5}, [0, 0, 0, 0]),
        ({"kind": "fixed"}, [60, 60, 60, 60]),
        ({"kind": "fixed", "base_seconds": 2.5, "factor": 9}, [2.5, 2.5, 2.5, 2.5]),
        ({"kind": "fixed", "base_seconds": "7"}, [7, 7, 7, 7]),
        ({"kind": "fixed", "base_seconds": 100, "max_seconds": 40}, [40, 40, 40, 40]),
        ({"kind": "fixed", "base_seconds": 0}, [0, 0, 0, 0]),
        ({"kind": "exponential"}, [30, 60, 120, 240]),
        ({"kind": "exponential", "base_seconds": 1, "factor": 1.5}, [1, 1.5, 2.25, 3.375]),
        ({"kind": "exponential", "base_seconds": 8, "factor": 0.5}, [8, 4, 2, 1]),
        ({"kind": "exponential", "base_seconds": 8, "factor": 0}, [8, 0, 0, 0]),
        ({"kind": "exponential", "base_seconds": 0}, [0, 0, 0, 0]),
        ({"kind": "exponential", "max_seconds": 100}, [30, 60, 100, 100]),
        ({"kind": "exponential", "max_seconds": 0}, [0, 0, 0, 0]),
        ({"kind": "exponential", "base_seconds": 86400}, [86400, 86400, 86400, 86400]),
    ],
)
def test_the_delay_after_each_attempt(shared_conn, strategy: Any, delays: list[float]) -> None:
    assert [delay(shared_conn, strategy, attempt) for attempt in (1, 2, 3, 4)] == delays


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ({"kind": "exponential", "factor": 1e10}, 86400),
        ({"kind": "exponential", "factor": 1e10, "max_seconds": 77}, 77),
        ({"kind": "exponential", "factor": 2}, 86400),
        ({"kind": "exponential", "factor": 0.001}, 0),
        ({"kind": "exponential", "factor": 1e300, "base_seconds": 0}, 0),
    ],
)
def test_a_power_beyond_all_numbers_is_the_cap_or_nothing(shared_conn, strategy: Any, expected: float) -> None:
    assert delay(shared_conn, strategy, 65535) == expected


@pytest.mark.parametrize(
    ("strategy", "text"),
    [
        ("fixed", "retry_strategy must be a JSON object, not string"),
        ([], "retry_strategy must be a JSON object, not array"),
        (5, "retry_strategy must be a JSON object, not number"),
        ({"kind": "linear"}, 'retry_strategy kind "linear" is unknown'),
        ({"kind": "Fixed"}, 'retry_strategy kind "Fixed" is unknown'),
        ({"kind": 1}, 'retry_strategy kind "1" is unknown'),
        ({"kind": "fixed", "base_seconds": -0.001}, "base_seconds must be between 0 and 86400"),
        ({"kind": "fixed", "base_seconds": 86400.5}, "base_seconds must be between 0 and 86400"),
        ({"kind": "fixed", "base_seconds": "NaN"}, "base_seconds must be between 0 and 86400"),
        ({"kind": "exponential", "factor": -1}, "factor must be a finite number >= 0"),
        ({"kind": "exponential", "factor": "NaN"}, "factor must be a finite number >= 0"),
        ({"kind": "exponential", "factor": "Infinity"}, "factor must be a finite number >= 0"),
        ({"kind": "exponential", "max_seconds": -1}, "max_seconds must be between 0 and 86400"),
        ({"kind": "exponential", "max_seconds": 86401}, "max_seconds must be between 0 and 86400"),
        ({"kind": "fixed", "base_seconds": "soon"}, "holds something that is no number"),
        ({"kind": "fixed", "base_seconds": True}, "holds something that is no number"),
        ({"kind": "fixed", "base_seconds": {}}, "holds something that is no number"),
        ({"kind": "fixed", "factor": "x"}, "holds something that is no number"),
        ({"kind": "exponential", "factor": 10**400}, "holds something that is no number"),
    ],
)
def test_a_strategy_that_is_none_is_refused_here_and_at_spawn(own_queue: Queue, strategy: Any, text: str) -> None:
    q = own_queue
    with refused("AB003", text):
        delay(q.conn, strategy, 1)
    with refused("AB003", text):
        q.spawn(retry_strategy=strategy)
    assert q.view("t") == []


def test_an_explicit_null_strategy_is_none(q: Queue) -> None:
    """W17b: 0.5.0 refuses it; there is no reason to."""
    assert q.conn.execute("select absurd.retry_delay_seconds('null', 1)").fetchone() == (0,)
    assert q.spawn(retry_strategy=None)["created"]


def test_jitter_leaves_a_share_of_the_pause_to_chance(q: Queue) -> None:
    start = "select extract(epoch from absurd.next_start(%s, 1, null, now()) - now())::float"
    for jitter, least, most in ((None, 100, 100), (0, 100, 100), (0.25, 75, 100), (1, 0, 100)):
        strategy = Jsonb({"kind": "fixed", "base_seconds": 100, "jitter": jitter})
        pauses = [q.value(start, (strategy,)) for _ in range(50)]
        assert least <= min(pauses) <= max(pauses) <= most
        assert (len(set(pauses)) > 40) == (least < most)


@pytest.mark.parametrize("jitter", [-0.1, 1.1, "some", "NaN"])
def test_a_jitter_that_is_none_is_refused_at_spawn(q: Queue, jitter: object) -> None:
    with refused("AB003"):
        q.spawn(retry_strategy={"kind": "fixed", "jitter": jitter})


@pytest.mark.parametrize("kind", ["none", "fixed", "exponential"])
@pytest.mark.parametrize(
    "given", [{}, {"base_seconds": 3}, {"base_seconds": 3, "factor": 1.5, "max_seconds": 9}, {"factor": 1e200}]
)
def test_the_pauses_of_a_step_are_those_of_a_task(q: Queue, kind: str, given: dict[str, float]) -> None:
    """The formula stands in SQL and, for steps, in Python."""
    strategy = {"kind": kind, **given}
    for tried in (1, 2, 5, 60):
        assert retries.delay(strategy, tried) == pytest.approx(delay(q.conn, strategy, tried))
