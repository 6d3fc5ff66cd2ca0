"""Which checkpoint belongs to which call: names never meet, and depend on the order of calls alone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from absurd._async.steps import judged
from absurd._core.replay import MAX_NAME_BYTES, History
from absurd.errors import StepNameError
from absurd.types import TaskHistory

# few names, and many that look like what counting makes of others
NAMES = st.lists(st.sampled_from(["a", "b", "a#2", "a#3", "a#2#2", "a#2#3", "b#2", "#2", "a#02", "a#"]), max_size=40)


@given(NAMES)
def test_no_two_calls_share_a_checkpoint(names: list[str]) -> None:
    history = History(None, None)
    given_names = [history.next_name(name) for name in names]
    assert len(set(given_names)) == len(names)


@given(NAMES, st.integers(0, 40))
def test_a_replay_gives_every_call_the_same_name_again(names: list[str], kept: int) -> None:
    first = History(None, None)
    made = [first.next_name(name) for name in names]
    again = History(dict.fromkeys(made[:kept], 1), made[kept : kept + 1])
    assert [again.next_name(name) for name in names] == made, "what is stored changes no name"


@given(NAMES)
def test_a_name_used_once_stays_as_it_is(names: list[str]) -> None:
    history = History(None, None)
    taken: set[str] = set()
    for name in names:
        given_name = history.next_name(name)
        assert (given_name == name) == (name not in taken)
        assert given_name == name or given_name.startswith(f"{name}#")
        taken.add(given_name)


def test_repeated_names_count_from_two() -> None:
    history = History(None, None)
    assert [history.next_name("a") for _ in range(3)] == ["a", "a#2", "a#3"]
    assert history.next_name("b") == "b"


def test_a_name_that_looks_counted_is_counted_past() -> None:
    history = History(None, None)
    assert [history.next_name(name) for name in ("a", "a#2", "a", "a#2")] == ["a", "a#2", "a#3", "a#2#2"]


@pytest.mark.parametrize(
    "name", ["", "  ", None, 7, b"a", "x" * (MAX_NAME_BYTES + 1), "ü" * 513, "a\0", "\ud800", "a\udfff"]
)
def test_what_cannot_be_a_name_is_refused(name: Any) -> None:
    with pytest.raises(StepNameError):
        History(None, None).next_name(name)


@pytest.mark.parametrize("name", ["x" * MAX_NAME_BYTES, "ü" * 512, "two\nlines", "\u200b", "emoji \U0001f600"])
def test_what_postgres_can_store_is_a_name(name: str) -> None:
    assert History(None, None).next_name(name) == name


def test_a_stored_none_is_done() -> None:
    history = History({"a": None}, None)
    assert history.take("a") == (True, None)
    assert history.take("b") == (False, None)
    history.keep("b", [1])
    assert history.take("b") == (True, [1])


def test_a_timeout_is_neither_done_nor_unknown() -> None:
    history = History({}, ["wait"])
    assert history.take("wait") == (False, None)
    assert history.timed_out("wait")
    assert not history.timed_out("other")


def test_replaying_lasts_until_everything_stored_has_been_passed() -> None:
    history = History({"a": 1, "b": 2}, ["c"])
    assert history.replaying
    for name in ("a", "b"):
        history.take(name)
        assert history.replaying
    history.take("c")
    assert not history.replaying
    assert not History(None, None).replaying


def test_what_is_kept_now_is_no_replay() -> None:
    history = History(None, None)
    history.keep("a", 1)
    assert not history.replaying


def test_what_was_recorded_before_is_remembered_in_the_order_of_the_calls() -> None:
    history = History({"a": 1, "b": 2, "left": 3}, ["wait"])
    history.take_group(["left", "right"])
    for name in ("wait", "new", "b", "a"):
        history.take(name)
    assert history.passed == ["wait", "b", "a"]


@pytest.mark.parametrize(
    ("passed", "expected"),
    [
        (["a", "b"], ["c", "d"]),
        (["d"], []),
        (["a", "c", "d"], []),
        (["d", "a"], ["b", "c"]),
        (["b", "a", "c", "d"], []),
        (["of another attempt", "d"], []),
        ([], ["a", "b", "c", "d"]),
    ],
)
def test_what_is_still_expected_follows_from_the_order_only_where_that_was_kept(
    passed: list[str], expected: list[str]
) -> None:
    steps = ["of another attempt", "a", "b", "c", "d", "$refused"]
    moment = datetime.now(UTC)
    given = {
        "headers": None,
        "retry_strategy": None,
        "max_attempts": 5,
        "timeouts": [],
        "waits_at": None,
        "ordered": True,
    }
    recorded = TaskHistory(
        queue_name="q",
        task_id=UUID(int=1),
        task_name="t",
        state="pending",
        attempt=2,
        params={},
        checkpoints={},
        enqueue_at=moment,
        recorded_at=moment,
        steps=steps,
        step_attempts=[1, 2, 2, 2, 2, 2],
        **given,
    )
    assert judged(recorded, set(steps) - set(passed), passed) == expected
