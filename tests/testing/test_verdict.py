"""How two ends of a task are told apart."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import Any

import pytest

from absurd.testing import Standing
from absurd.testing.verdict import Ending, differences, ending, minus

TASK = uuid.UUID("01a1fa96-4b06-7000-975a-8074f80c0000")


def end(state: Any = "completed", result: Any = None, failure: Any = None, **others: Any) -> Ending:
    standing = Standing(TASK, "job", state, 1, result=result, failure=failure)
    given: dict[str, Any] = {"effects": {}, "events": {}, "violations": [], **others}
    return ending(standing, None, given["effects"], given["events"], {TASK: "job"}, given["violations"])


def test_equal_ends_do_not_differ() -> None:
    assert differences(end(result=[1]), end(result=[1]), {}) == []


@pytest.mark.parametrize(
    ("first", "second", "line"),
    [
        (end(result=1), end(result=2), "result is 2, not 1"),
        (end(result="a" * 300), end(result="b"), f'result is "b", not "{"a" * 199}...'),
        (end(), end("cancelled"), "state is cancelled, not completed"),
        (end(), end("failed", failure={"name": "E", "message": "m"}), "state is failed, not completed: E: m"),
        (
            end("failed", failure={"name": "E", "message": "m"}),
            end("failed", failure={"name": "F", "message": "m"}),
            "failure is F: m, not E: m",
        ),
        (end(effects={"a": 1}), end(), 'effect "a" happened 0 times, not 1'),
        (end(), end(effects={"a": 1}), 'effect "a" happened 1 times, not 0'),
        (end(events={"e": 1}), end(), 'event "e" was not emitted'),
        (end(), end(events={"e": 1}), 'event "e" was emitted, and is not in the undisturbed run'),
        (end(events={"e": 1}), end(events={"e": None}), 'event "e" carries null, not 1'),
        (end(), end(violations=["rule: detail"]), "the engine's invariants are violated: rule: detail"),
    ],
)
def test_each_difference_is_one_line(first: Ending, second: Ending, line: str) -> None:
    assert differences(first, second, {}) == [line]


def test_an_effect_may_come_as_often_again_as_was_allowed_and_no_more() -> None:
    first = end(effects={"a": 2})
    assert differences(first, end(effects={"a": 3}), Counter(a=1)) == []
    assert differences(first, end(effects={"a": 4}), Counter(a=1)) == ['effect "a" happened 4 times, not 2 to 3']
    assert differences(first, end(effects={"a": 1}), Counter(a=1)) == ['effect "a" happened 1 times, not 2 to 3']


def test_where_every_attempt_fails_the_crash_may_be_the_last_of_them() -> None:
    lost = end("failed", failure={"name": "$ClaimTimeout", "message": "gone"})
    assert differences(end("failed", failure={"name": "E", "message": "m"}), lost, {}) == []
    assert len(differences(end(), lost, {})) == 1


def test_ids_of_tasks_and_their_runs_are_words_and_other_ids_are_not() -> None:
    run, other = uuid.UUID(int=TASK.int | 3), uuid.UUID(int=TASK.int + (1 << 20))
    found = end(result=[str(TASK), f"run {run}", str(other)], events={f"done:{TASK}": str(run)})
    assert found.result == ["<id of job>", "run <id of job>", str(other)]
    assert found.events == {"done:<id of job>": "<id of job>"}


def test_what_was_added_between_two_counts_is_never_negative() -> None:
    assert minus({"a": 3, "b": 1, "c": 0}, {"a": 1, "b": 2}) == Counter(a=2)
