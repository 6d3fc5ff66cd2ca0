"""Spawn options: whose word counts, what is refused, and what makes two requests the same."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from absurd._core.options import (
    KEY_BYTES,
    SPAWN_OPTIONS,
    MaxAttempts,
    as_uuid,
    event_name,
    fingerprint,
    policy,
    queue_name,
    seconds_of,
    spawn_row,
    target_queue,
    text,
    whole_number,
)
from absurd._core.registry import RegisteredTask
from absurd.errors import ConfigError, InvalidOption, NotSerializable

FALLBACK = MaxAttempts(5, explicit=False)


def _task(**given: Any) -> RegisteredTask:
    defaults: dict[str, Any] = {
        "name": "a",
        "handler": print,
        "queue": "main",
        "default_max_attempts": None,
        "default_cancellation": None,
        "default_retry_strategy": None,
        "params": None,
        "result": None,
    }
    return RegisteredTask(**{**defaults, **given})


def _spec(options: dict[str, Any], task: RegisteredTask | None = None, client: MaxAttempts = FALLBACK) -> Any:
    return json.loads(spawn_row("a", {}, options, task, client).spec)


@pytest.mark.parametrize(
    ("call", "registration", "client", "expected"),
    [
        (2, 3, MaxAttempts(4, True), {"max_attempts": 2}),
        (None, 3, MaxAttempts(4, True), {"max_attempts": 3}),
        (None, None, MaxAttempts(4, True), {"max_attempts": 4}),
        (None, None, FALLBACK, {"default_max_attempts": 5}),
    ],
)
def test_the_nearest_word_on_attempts_counts(call: Any, registration: Any, client: MaxAttempts, expected: Any) -> None:
    assert _spec({"max_attempts": call}, _task(default_max_attempts=registration), client) == expected


def test_what_a_call_leaves_out_its_registration_says() -> None:
    task = _task(default_retry_strategy={"kind": "fixed"}, default_cancellation={"max_delay": 1})
    assert _spec({"max_attempts": 1}, task) == {
        "max_attempts": 1,
        "retry_strategy": {"kind": "fixed"},
        "cancellation": {"max_delay": 1},
    }
    said = {"max_attempts": 1, "retry_strategy": {"kind": "none"}, "cancellation": {"max_duration": 2}}
    assert _spec(said, task) == said


def test_nothing_said_sends_nothing_but_the_fallback() -> None:
    row = spawn_row("a", None, {}, None, FALLBACK)
    assert row == ("a", "null", None, None, '{"default_max_attempts":5}', (None, 5))


def test_only_a_limit_of_attempts_goes_the_short_way() -> None:
    assert spawn_row("a", None, {"max_attempts": 2}, None, FALLBACK).limit == (2, None)
    assert spawn_row("a", None, {"priority": 2}, None, FALLBACK).limit is None
    assert spawn_row("a", None, {"headers": {}}, None, FALLBACK).limit is None


def test_the_options_reach_the_engine_in_its_terms() -> None:
    start = dt.datetime(2030, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    assert _spec({"max_attempts": 1, "priority": -1000, "headers": {"a": 1}, "start_at": start}) == {
        "max_attempts": 1,
        "priority": -1000,
        "headers": {"a": 1},
        "start_at": "2030-01-02T03:04:05+00:00",
    }
    assert _spec({"delay": dt.timedelta(minutes=1.5)})["delay_seconds"] == 90.0
    assert _spec({"delay": 0})["delay_seconds"] == 0.0


@pytest.mark.parametrize("name", ["", "  ", None, 7, b"a"])
def test_a_task_needs_a_name(name: Any) -> None:
    with pytest.raises(InvalidOption, match="task_name must be provided"):
        spawn_row(name, {}, {}, None, FALLBACK)


def test_params_that_json_cannot_hold_are_refused_with_their_place() -> None:
    with pytest.raises(NotSerializable, match=r"The params cannot be stored: \$\.a\[0\] is of type object"):
        spawn_row("a", {"a": [object()]}, {}, None, FALLBACK)


def test_an_option_nobody_knows_is_refused_by_name() -> None:
    with pytest.raises(InvalidOption, match=r"unknown spawn options \['prio'\]: use cancellation, delay, headers"):
        spawn_row("a", {}, {"prio": 3}, None, FALLBACK)
    assert {"max_attempts", "queue", "idempotency_key", "priority", "start_at", "delay"} < SPAWN_OPTIONS


@pytest.mark.parametrize("headers", ["x", [1], 7, [("a", 1)]])
def test_headers_are_a_mapping(headers: Any) -> None:
    with pytest.raises(InvalidOption, match=r"headers must be a mapping"):
        spawn_row("a", {}, {"headers": headers}, None, FALLBACK)


# -- texts and numbers ----------------------------------------------------------------------------------------------------

UNSTORABLE = ["nul\0", "half \ud800", "\udfff"]


@pytest.mark.parametrize("bad", UNSTORABLE)
def test_a_text_postgres_cannot_store_is_refused_by_name(bad: str) -> None:
    with pytest.raises(InvalidOption, match=r"task_name .* holds NUL or half a surrogate pair"):
        spawn_row(bad, {}, {}, None, FALLBACK)
    with pytest.raises(InvalidOption, match=r"idempotency_key .* holds NUL or half a surrogate pair"):
        spawn_row("a", {}, {"idempotency_key": bad}, None, FALLBACK)
    with pytest.raises(InvalidOption, match=r"event_name .* holds NUL or half a surrogate pair"):
        event_name(bad)
    with pytest.raises(ConfigError, match=r"Queue name .* holds NUL or half a surrogate pair"):
        queue_name(bad)
    with pytest.raises(NotSerializable, match=r"queue policy cannot be stored"):
        policy(cleanup_ttl=bad)


def test_keys_and_event_names_are_as_long_as_an_index_entry_may_be() -> None:
    for longest in ("x" * KEY_BYTES, "ü" * (KEY_BYTES // 2)):
        assert event_name(longest) == longest
        with pytest.raises(InvalidOption, match=r"event_name .* is longer than 2048 bytes: shorten it"):
            event_name(longest + "x")
        with pytest.raises(InvalidOption, match=r"idempotency_key .* is longer than 2048 bytes"):
            spawn_row("a", {}, {"idempotency_key": longest + "x"}, None, FALLBACK)


@pytest.mark.parametrize("bad", [None, 7, b"a"])
def test_what_is_no_text_is_refused_by_name(bad: Any) -> None:
    with pytest.raises(InvalidOption, match=r"worker_id must be a string, not "):
        text(bad, "worker_id")


@pytest.mark.parametrize(
    ("value", "says"),
    [(0, ">= 1"), (-1, ">= 1"), (2**31, "<= 2147483647"), (1.0, "integer"), ("1", "integer"), (True, "integer")],
)
def test_a_whole_number_is_one_postgres_can_hold(value: Any, says: str) -> None:
    with pytest.raises(InvalidOption, match=f"cleanup_limit must be .*{says}"):
        whole_number(value, "cleanup_limit")
    with pytest.raises(InvalidOption, match=says):
        policy(cleanup_limit=value)
    assert whole_number(2**31 - 1, "cleanup_limit") == 2**31 - 1


def test_a_policy_sends_what_is_given_and_nothing_else() -> None:
    assert policy(cleanup_ttl=None, detach_mode=None) is None
    assert policy(cleanup_ttl="1 day", cleanup_limit=7, detach_mode=None) == '{"cleanup_ttl":"1 day","cleanup_limit":7}'


# -- queues --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "q" * 57, "ü" * 28, ' "odd" '])
def test_a_legal_queue_name_is_taken_as_it_is(name: str) -> None:
    assert queue_name(name) == name


@pytest.mark.parametrize("name", ["", "  ", "\t", None, 7])
def test_a_queue_needs_a_name(name: Any) -> None:
    with pytest.raises(ConfigError, match="Queue name must be provided"):
        queue_name(name)


@pytest.mark.parametrize("name", ["q" * 58, "ü" * 29])
def test_a_queue_name_is_measured_in_bytes(name: str) -> None:
    with pytest.raises(ConfigError, match=r"is too long \(max 57 bytes\)\."):
        queue_name(name)


def test_a_task_goes_where_it_is_registered_or_where_the_call_says() -> None:
    assert target_queue("a", _task(queue="q"), None) == "q"
    assert target_queue("a", _task(queue="q"), "q") == "q"
    assert target_queue("a", None, "other") == "other"
    with pytest.raises(ConfigError, match=r'Task "a" is registered for queue "q", not "other"\.'):
        target_queue("a", _task(queue="q"), "other")
    with pytest.raises(ConfigError, match="Provide queue when spawning unregistered tasks"):
        target_queue("a", None, None)


# -- durations -----------------------------------------------------------------------------------------------------------


@given(st.floats(min_value=0, max_value=1e12, allow_nan=False) | st.integers(0, 10**9))
def test_seconds_are_numbers_or_durations(value: float) -> None:
    assert seconds_of(value, "delay") == float(value)
    if value < 1e9:
        assert seconds_of(dt.timedelta(seconds=value), "delay") == dt.timedelta(seconds=value).total_seconds()


@pytest.mark.parametrize("value", [-1, -0.001, float("nan"), "1", None, True, dt.timedelta(seconds=-1), [1]])
def test_what_is_no_duration_is_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidOption, match="delay must be seconds >= 0 or a timedelta"):
        seconds_of(value, "delay")


# -- fingerprints --------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcü", max_size=3), inner, max_size=4),
    max_leaves=8,
)


def _reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _reversed_keys(value[key]) for key in reversed(value)}
    return [_reversed_keys(item) for item in value] if isinstance(value, list) else value


@given(JSON)
def test_the_order_of_keys_does_not_make_another_request(params: Any) -> None:
    one = fingerprint("a", json.dumps(params))
    assert one == fingerprint("a", json.dumps(_reversed_keys(params), indent=1, ensure_ascii=False))
    assert one != fingerprint("b", json.dumps(params))


@given(JSON, JSON)
def test_other_params_make_another_request(one: Any, other: Any) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (fingerprint("a", json.dumps(one)) == fingerprint("a", json.dumps(other))) == same


def test_only_requests_with_a_key_have_a_fingerprint() -> None:
    assert spawn_row("a", {}, {}, None, FALLBACK).fingerprint is None
    assert spawn_row("a", {}, {"idempotency_key": "k"}, None, FALLBACK).fingerprint == fingerprint("a", "{}")


@pytest.mark.parametrize("giant", [10**400, 10**5000], ids=["400", "5000"])
def test_a_number_beyond_every_float_is_a_typed_error_with_a_message(giant: int) -> None:
    with pytest.raises(InvalidOption, match="delay must be seconds"):
        seconds_of(giant, "delay")


def test_what_is_no_id_is_a_typed_error_however_it_is_built() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, 10**5000):
        with pytest.raises(InvalidOption, match="is no id"):
            as_uuid(value)  # type: ignore[arg-type]
