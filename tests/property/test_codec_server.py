"""What the codec predicts is what the server does: value, type and key order, over every shape of JSON."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from absurd._core.codec import decode, encode, roundtrip, sanitize
from absurd.errors import NotSerializable

Conn = psycopg.Connection[Any]

# the connection is only asked to print a value, so sharing it between examples is safe
against_server = settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

STORABLE = st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])
TEXTS = st.text(STORABLE, max_size=12)
# few letters of one to four bytes, and what numbers look like: keys collide, and sort by bytes or by length
KEYS = st.one_of(st.text("aé€😀", max_size=3), st.sampled_from(["1", "1e5", "-0", '":-0', "\\", "\\u0000"]), TEXTS)
BITS = st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("d", bits.to_bytes(8, "little"))[0])
FLOATS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    BITS.filter(math.isfinite),
    st.sampled_from([-0.0, 5e-324, -2.2e-308, 1e15, 1e16, 1e17, -1e22, 1.7976931348623157e308, 123456789012345680.0]),
)
INTS = st.one_of(
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.builds(lambda digits, sign: sign * (10**digits - 1), st.integers(0, 4300), st.sampled_from([1, -1])),
)
SCALARS = st.one_of(st.none(), st.booleans(), INTS, FLOATS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(KEYS, inner, max_size=6)),
    max_leaves=25,
)


def through_server(conn: Conn, text: str) -> str:
    """The text of `text` as the server prints it again after it was jsonb."""
    row = conn.execute("select (%s::jsonb)::text", [text]).fetchone()
    assert row is not None
    return str(row[0])


def types_of(value: Any) -> Any:
    """The types at every place: 1, 1.0 and True are equal, and must not pass for each other."""
    if isinstance(value, dict):
        return {key: types_of(item) for key, item in value.items()}
    return [types_of(item) for item in value] if isinstance(value, list) else type(value)


def assert_same(seen: Any, predicted: Any) -> None:
    assert seen == predicted
    assert types_of(seen) == types_of(predicted)
    assert repr(seen) == repr(predicted)  # the order of keys, and the sign of zero


@against_server
@given(value=VALUES)
@example(value=[1e16, -0.0, 0.0, 1e15, 5e-324, 0.1, -0.5])
@example(value={"bb": 1, "a": {"é": 1, "aa": 2, "z": -0.0}, "": 3})
def test_the_first_return_equals_the_replay(conn: Conn, value: Any) -> None:
    text = encode(value)
    assert_same(decode(through_server(conn, text)), roundtrip(text))


@against_server
@given(value=VALUES)
def test_storing_a_replayed_value_again_changes_nothing(conn: Conn, value: Any) -> None:
    first = roundtrip(encode(value))
    assert_same(roundtrip(encode(first)), first)
    assert_same(decode(through_server(conn, encode(first))), first)


NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)


@against_server
@given(number=NUMBERS, spaced=st.booleans())
@example(number="-0", spaced=True)
@example(number="0.00e2", spaced=False)
@example(number="-1e-400", spaced=False)
@example(number="1e400", spaced=False)
@example(number="12.30e-2", spaced=False)
def test_a_number_is_read_as_the_server_spells_it(conn: Conn, number: str, spaced: bool) -> None:
    for text in (number, f"[{number}]", f'{{"a":{number},"b":1}}'):
        written = text.replace("[", "[ ").replace(":", ":\n") if spaced else text
        assert_same(decode(through_server(conn, written)), roundtrip(written))


@against_server
@given(pairs=st.lists(st.tuples(KEYS, SCALARS), max_size=8))
def test_of_equal_keys_the_last_one_wins(conn: Conn, pairs: list[tuple[str, Any]]) -> None:
    text = "{" + ",".join(f"{encode(key)}:{encode(item)}" for key, item in pairs) + "}"
    assert_same(decode(through_server(conn, text)), roundtrip(text))


@against_server
@given(value=st.dictionaries(st.integers(-3, 3) | KEYS | st.integers(-3, 3).map(str), SCALARS, max_size=4))
def test_keys_that_only_look_alike_are_kept_or_refused_but_never_lost(conn: Conn, value: dict[Any, Any]) -> None:
    names = [str(key) for key in value]
    if len(set(names)) < len(names):
        with pytest.raises(NotSerializable, match="two keys that both become"):
            encode(value)
    else:
        text = encode(value)
        assert list(json.loads(text)) == names
        assert_same(decode(through_server(conn, text)), roundtrip(text))


@pytest.mark.parametrize("depth", [1, 60, 200])
def test_nesting_up_to_the_limit_comes_back(conn: Conn, depth: int) -> None:
    value: Any = 1.0
    for level in range(depth):
        value = [value] if level % 2 else {"é": value, "z": level, "a": -0.0}
    text = encode(value)
    assert_same(decode(through_server(conn, text)), roundtrip(text))


@against_server
@given(text=st.text(st.characters(), max_size=40))
def test_every_text_is_refused_or_stored_and_every_sanitised_text_is_stored(conn: Conn, text: str) -> None:
    clean = sanitize(text)
    assert decode(through_server(conn, encode(clean))) == clean
    if clean != text:
        with pytest.raises(NotSerializable):
            encode([text])
