"""A packed array is, for the server, the array psycopg's own list adaptation sends."""

from __future__ import annotations

import datetime as dt
import doctest
import json
import math
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from absurd._db import packing
from absurd._db.packing import (
    Float8Array,
    Infinity,
    Int4Array,
    JsonbArray,
    TextArray,
    TimestamptzArray,
    UuidArray,
    register,
)

Conn = psycopg.Connection[Any]

# only values are printed, so sharing the connection between examples is safe
against_server = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

TEXTS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20)
JSONS = st.recursive(st.none() | st.integers(-9, 9) | TEXTS, lambda inner: st.lists(inner, max_size=3))
# one NaN: its text has no room for the others
FLOATS = st.floats(allow_nan=False) | st.just(math.nan)
ZONES = st.sampled_from([dt.UTC, dt.timezone(dt.timedelta(hours=5, minutes=45)), dt.timezone(-dt.timedelta(hours=9))])
MOMENTS = st.datetimes(dt.datetime(1, 1, 3), dt.datetime(9999, 12, 29), timezones=ZONES)

# name, elements, packer, type of the array, how psycopg's own adaptation takes one element
KINDS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], bytes], str, Callable[[Any], Any]]] = {
    "uuid": (st.uuids(allow_nil=True), UuidArray.pack, "uuid[]", lambda item: item),
    "text": (TEXTS, TextArray.pack, "text[]", lambda item: item),
    "jsonb": (JSONS.map(json.dumps), JsonbArray.pack, "jsonb[]", lambda item: Jsonb(json.loads(item))),
    "int4": (st.integers(-(2**31), 2**31 - 1), Int4Array.pack, "integer[]", lambda item: item),
    "float8": (FLOATS, Float8Array.pack, "double precision[]", lambda item: item),
    "timestamptz": (MOMENTS, TimestamptzArray.pack, "timestamp with time zone[]", lambda item: item),
}


@pytest.fixture
def packed(conn: Conn) -> Conn:
    """The test's connection, able to send packed arrays."""
    register(conn)
    return conn


@pytest.mark.parametrize("kind", KINDS)
@against_server
@given(data=st.data())
def test_a_packed_array_is_what_the_list_adaptation_sends(packed: Conn, kind: str, data: st.DataObject) -> None:
    elements, pack, array_type, adapt = KINDS[kind]
    items = data.draw(st.lists(st.none() | elements, max_size=8))
    listed = [None if item is None else adapt(item) for item in items]
    row = packed.execute(
        f"""select pg_typeof(%(packed)s)::text, cardinality(%(packed)s),
                   array_send(%(packed)s) = array_send(%(listed)s::{array_type}),
                   coalesce(array_lower(%(packed)s, 1), 1), coalesce(array_ndims(%(packed)s), 0)""",
        {"packed": pack(items), "listed": listed},
    ).fetchone()
    assert row == (array_type, len(items), True, 1, 1 if items else 0)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"jsonb"}))
@against_server
@given(data=st.data())
def test_a_packed_array_comes_back_as_the_elements_packed(packed: Conn, kind: str, data: st.DataObject) -> None:
    elements, pack, _, _ = KINDS[kind]
    items = data.draw(st.lists(st.none() | elements, max_size=8))
    (seen,) = packed.execute("select %s", [pack(items)], binary=True).fetchone() or ((),)
    # NaN equals nothing, so it is compared by its name
    assert [repr(item) if item != item else item for item in seen] == [
        repr(item) if item != item else item for item in items
    ]


@pytest.mark.parametrize("nulls", [[], [None], [None, None]])
def test_a_packed_array_is_byte_for_byte_what_the_driver_sends_in_binary(packed: Conn, nulls: list[None]) -> None:
    items = [uuid.UUID(int=7), *nulls]
    sent = psycopg.adapt.Transformer(packed).dump_sequence([items], [psycopg.adapt.PyFormat.BINARY])
    assert bytes(UuidArray.pack(items)) == bytes(sent[0] or b"")


@pytest.mark.parametrize("size", [0, 1, 500, 20_000])
def test_uuids_pack_alike_from_raw_bytes_and_from_objects(packed: Conn, size: int) -> None:
    ids = [uuid.UUID(int=n * 7919) for n in range(size)]
    raw = [item.bytes for item in ids]
    assert UuidArray.pack(raw) == UuidArray.pack(ids)
    assert UuidArray.pack([*raw[:1], None, *ids[1:]]) == UuidArray.pack([*ids[:1], None, *raw[1:]])
    assert packed.execute("select %s", [UuidArray.pack(raw)]).fetchone() == (ids,)


def test_infinite_timestamps_and_the_ends_of_the_calendar_arrive(packed: Conn) -> None:
    first, last = dt.datetime.min.replace(tzinfo=dt.UTC), dt.datetime.max.replace(tzinfo=dt.UTC)
    rows = packed.execute(
        "select extract(epoch from x), isfinite(x) from unnest(%s) x",
        [TimestamptzArray.pack([Infinity.PAST, first, last, Infinity.FUTURE])],
    ).fetchall()
    assert [finite for _, finite in rows] == [False, True, True, False]
    assert [float(epoch) for epoch, _ in rows] == [-math.inf, first.timestamp(), last.timestamp(), math.inf]


def test_json_null_and_sql_null_stay_two_things(packed: Conn) -> None:
    rows = packed.execute("select x is null, x::text from unnest(%s) x", [JsonbArray.pack(["null", None, b'{"a":1}'])])
    assert rows.fetchall() == [(False, "null"), (True, None), (False, '{"a": 1}')]


def test_without_a_cast_the_server_picks_the_function_by_the_array_type(packed: Conn) -> None:
    row = packed.execute("select array_to_string(%s, ',') || ':' || cardinality(%s)", [TextArray.pack(["a", "b"])] * 2)
    assert row.fetchone() == ("a,b:2",)


def test_registering_on_one_connection_leaves_the_others_alone(conn: Conn) -> None:
    register(conn)
    assert UuidArray not in psycopg.adapters._dumpers[psycopg.adapt.PyFormat.BINARY]


@pytest.mark.parametrize(
    ("pack", "items", "message"),
    [
        (UuidArray.pack, [b"short"], "16 bytes"),
        (UuidArray.pack, [bytes(15), bytes(17)], "16 bytes"),
        (UuidArray.pack, [None, bytes(17)], "16 bytes"),
        (TextArray.pack, ["\ud800"], "surrogates"),
        (Int4Array.pack, [2**31], "fit into 4 bytes"),
        (TimestamptzArray.pack, [dt.datetime(2026, 1, 1)], "no time zone"),
    ],
)
def test_what_cannot_be_an_element_is_refused_before_anything_is_sent(
    pack: Callable[[Any], bytes], items: list[Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pack(items)


def test_the_example_in_the_docstring_is_true() -> None:
    assert doctest.testmod(packing).failed == 0
    assert doctest.testmod(packing).attempted == 1
