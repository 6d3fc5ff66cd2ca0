"""The codec accepts what people return by habit and refuses the rest with the place; no database needed."""

from __future__ import annotations

import copy
import dataclasses
import datetime as dt
import inspect
import json
import logging
import socket
import sys
import uuid
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any, NamedTuple

import pydantic
import pytest
import uuid_utils
import uuid_utils.compat

from absurd._core import codec
from absurd._core.codec import decode, encode, error_payload, roundtrip, sanitize
from absurd.errors import NotSerializable, ValueTooLarge

ID = "0190a0b0-c0d0-7000-8000-000000000001"


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Point(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass
class Parcel:
    sku: str
    at: dt.date
    where: Point


@pydantic.dataclasses.dataclass
class Weight:
    grams: Decimal


class Order(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    order_id: uuid.UUID = pydantic.Field(alias="orderId")
    total: Decimal
    lines: list[Parcel] = []

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> Decimal:
        return self.total * 2


class Loose(pydantic.BaseModel):
    anything: Any


class Text(str):
    pass


def nested(depth: int, leaf: Any = 1) -> Any:
    for _ in range(depth):
        leaf = [leaf]
    return leaf


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        ("é\u2028", '"é\u2028"'),
        ({"b": 1, "a": [1, 2.5, None, {}, []]}, '{"b":1,"a":[1,2.5,null,{},[]]}'),
        ((1, (2,)), "[1,[2]]"),
        ({1: "a", 2.5: "b", None: "d"}, '{"1":"a","2.5":"b","null":"d"}'),
        ({False: 1}, '{"false":1}'),
        ({Colour.RED: Colour.RED, Level.HIGH: Level.HIGH}, '{"red":"red","3":3}'),
        ({uuid.UUID(ID): dt.date(2026, 1, 2)}, f'{{"{ID}":"2026-01-02"}}'),
        ({dt.date(2026, 1, 2): 1}, '{"2026-01-02":1}'),
        (uuid.UUID(ID), f'"{ID}"'),
        (uuid_utils.UUID(ID), f'"{ID}"'),
        (uuid_utils.compat.UUID(ID), f'"{ID}"'),
        (dt.datetime(2026, 1, 2, 3, 4, 5, 6, dt.UTC), '"2026-01-02T03:04:05.000006+00:00"'),
        (dt.time(3, 4), '"03:04:00"'),
        (Decimal("1.10"), '"1.10"'),
        ({"b", "a", "c"}, '["a","b","c"]'),
        (frozenset({10, 9}), "[9,10]"),
        ({2, "a", None}, '["a",2,null]'),
        (Point(1, 2), '{"x":1,"y":2}'),
        (
            Parcel("s", dt.date(2026, 1, 2), Point(1, 2)),
            '{"sku":"s","at":"2026-01-02","where":{"x":1,"y":2}}',
        ),
        (Weight(Decimal("1.5")), '{"grams":"1.5"}'),
        (Text("sub"), '"sub"'),
        ([Level.HIGH, Text("x")], '[3,"x"]'),
        ("\\u0000", '"\\\\u0000"'),
        (10**4300 - 1, "9" * 4300),
    ],
)
def test_what_people_return_by_habit_becomes_json(value: Any, text: str) -> None:
    assert encode(value) == text


def test_a_model_is_stored_so_that_it_validates_as_the_same_model() -> None:
    order = Order(orderId=uuid.UUID(ID), total=Decimal("1.10"), lines=[Parcel("s", dt.date(2026, 1, 2), Point(1, 2))])
    stored = roundtrip(encode({"order": order}))
    assert "double" not in stored["order"]
    assert Order.model_validate(stored["order"]) == order


def test_the_value_itself_is_left_as_it_was() -> None:
    value = {"b": {"z": 1, "y": (Point(1, 2),)}, "a": {3, 1}}
    before = copy.deepcopy(value)
    roundtrip(encode(value))
    assert value == before
    assert list(value) == ["b", "a"]


REFUSED = [
    ({"items": [1, 2, 3, {"name": "a\0b"}]}, r"\$\.items\[3\]\.name contains a NUL character at index 1"),
    (["ok", "\ud800x"], r"\$\[1\] contains a lone surrogate"),
    ({"a\0": 1}, r'\$\["a\\u0000"\] contains a NUL'),
    ({"\udfff": 1}, r'\$\["\\udfff"\] contains a lone surrogate'),
    ({"x": float("nan")}, r"\$\.x is nan"),
    ([float("inf")], r"\$\[0\] is inf"),
    (-float("inf"), r"\$ is -inf"),
    ({float("nan"): 1}, r"\$\.nan is nan"),
    ({"d": Decimal("NaN")}, r"\$\.d is NaN"),
    ({"n": [10**4300]}, r"\$\.n\[0\] is an integer of more than 4300 digits"),
    ({"n": [-(10**4300)]}, r"more than 4300 digits; store it as a text"),
    ({1: "a", "1": "b"}, r'\$ has two keys that both become "1"'),
    ({(1, 2): 3}, r"\$ has a key of type tuple"),
    ({b"k": 3}, r"of type bytes"),
    ({"b": b"x"}, r"\$\.b is of type bytes.*base64"),
    ([dt.timedelta(1)], r"\$\[0\] is of type datetime\.timedelta.*total_seconds"),
    ((x for x in [1]), r"of type generator.*list"),
    ({"a b": [object()]}, r'\$\["a b"\]\[0\] is of type object.*return plain data'),
    (Order, r"is of type"),
    (Parcel, r"is of type type"),
    (len, r"builtin_function_or_method"),
    ({"m": Loose(anything=object())}, r"\$\.m is a .*Loose that pydantic cannot turn into JSON"),
    ({"m": Loose(anything=float("nan"))}, r"\$\.m\.anything is nan"),
    ({"m": Loose(anything={"a": [1.0, float("inf")]})}, r"\$\.m\.anything\.a\[1\] is inf"),
    ({"m": Loose(anything="a\0")}, r"\$\.m\.anything contains a NUL"),
    (nested(201), r"nested deeper than 200"),
    (nested(201, Decimal(1)), r"nested deeper than 200"),
]


@pytest.mark.parametrize(("value", "message"), REFUSED)
def test_what_jsonb_cannot_hold_is_refused_with_its_place_and_a_fix(value: Any, message: str) -> None:
    with pytest.raises(NotSerializable, match=message) as caught:
        encode(value, what="result of step 'ship'")
    assert str(caught.value).startswith("The result of step 'ship' cannot be stored: $")
    assert sanitize(str(caught.value)) == str(caught.value)


def test_a_socket_a_coroutine_and_a_cycle_are_refused() -> None:
    async def forgotten() -> None: ...

    coroutine = forgotten()
    with socket.socket() as sock, pytest.raises(NotSerializable, match=r"\$\.s is of type socket\.socket"):
        encode({"s": sock})
    with pytest.raises(NotSerializable, match="await it first"):
        encode(coroutine)
    coroutine.close()
    cycle: list[Any] = []
    cycle.append({"again": cycle})
    with pytest.raises(NotSerializable, match=r"\$\[0\]\.again.*….*cycle"):
        encode(cycle)


@pytest.mark.parametrize("leaf", [1, Decimal(1), uuid.UUID(ID), Colour.RED])
def test_the_deepest_value_that_is_accepted_comes_back(leaf: Any) -> None:
    text = encode(nested(200, leaf))
    assert roundtrip(text) == nested(200, json.loads(encode(leaf)))
    with pytest.raises(NotSerializable):
        encode(nested(201, leaf))


def test_a_deep_value_on_a_deep_stack_is_refused_and_not_a_recursion_error() -> None:
    def deeper(levels: int) -> str:
        return deeper(levels - 1) if levels else encode(nested(200, Decimal(1)))

    with pytest.raises(NotSerializable, match="too deeply for the call stack"):
        deeper(sys.getrecursionlimit() - len(inspect.stack()) - 200)


def test_a_value_over_16_mib_is_refused_and_one_over_1_mib_is_warned_about_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "_warned", set())
    caplog.set_level(logging.WARNING, "absurd")
    encode("x" * (codec.WARN_BYTES - 2), what="params")
    assert caplog.records == []
    for _ in range(2):
        encode("é" * (codec.WARN_BYTES // 2), what="params")
    encode("x" * codec.WARN_BYTES, what="result")
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == [
        "params",
        "result",
    ]
    encode("x" * (codec.MAX_BYTES - 2))
    with pytest.raises(ValueTooLarge, match=r"The params is 16\.0 MiB.*reference"):
        encode("x" * (codec.MAX_BYTES - 1), what="params")


def test_sql_null_and_json_null_are_both_none() -> None:
    assert decode(None) is None
    assert decode("null") is None
    assert decode(b'{"a": 1}') == {"a": 1}


def test_what_other_writers_stored_is_read_beyond_our_own_limits() -> None:
    assert decode("1" + "0" * 5000) == 10**5000
    assert decode("[" * 300 + "]" * 300) == nested(299, [])
    with pytest.raises(NotSerializable, match="deeper than Python can read"):
        decode("[" * 100_000 + "]" * 100_000)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-0.0", "0.0"),
        ("[-0.0, -0]", "[0.0, 0]"),
        ("1e16", "10000000000000000"),
        ("1.0e2", "100"),
        ("1.10e1", "11.0"),
        ("0e5", "0"),
        ("-0.00", "0.0"),
        ("-0.5", "-0.5"),
        ("1e-7", "1e-07"),
        ('"x1e5"', '"x1e5"'),
        ('["1e5", ":-0", 1E2]', '["1e5", ":-0", 100]'),
        ('{"aa":1,"b":2,"é":3,"":4,"a":5,"b":6}', '{"": 4, "a": 5, "b": 6, "aa": 1, "\\u00e9": 3}'),
        ('[{"bb":[{"d":1,"c":2}],"a":{"y":1,"x":2}}]', '[{"a": {"x": 2, "y": 1}, "bb": [{"c": 2, "d": 1}]}]'),
    ],
)
def test_the_first_return_looks_like_a_replay(text: str, value: str) -> None:
    assert json.dumps(roundtrip(text)) == value


def test_error_texts_become_storable() -> None:
    assert sanitize("a\0b\ud800c") == "a\ufffdb\ufffdc"
    long = "first" + "é" * 100_000 + "last"
    short = sanitize(long)
    assert len(short.encode()) <= codec.MAX_TEXT_BYTES
    assert short.startswith("first")
    assert short.endswith("last")
    assert "[200009 bytes, shortened]" in short


def test_a_failure_is_recorded_with_name_message_and_traceback() -> None:
    try:
        raise KeyError("bad\0key")
    except KeyError as exc:
        payload = error_payload(exc)
    assert list(payload) == ["name", "message", "traceback"]
    assert payload["name"] == "KeyError"
    assert payload["message"] == r"'bad\x00key'"
    assert "test_a_failure_is_recorded" in payload["traceback"]
    encode(payload)


class Hostile(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


@pytest.mark.parametrize("error", [Hostile(), ValueError("x\0\ud800" * 100_000), BaseException("b"), SystemExit(2)])
def test_a_failure_is_recorded_whatever_the_exception_does(error: BaseException) -> None:
    payload = error_payload(error)
    assert payload["name"] == type(error).__name__
    assert payload["message"]
    assert encode(payload)


def test_text_that_is_json_already_is_sent_as_it_is_if_its_value_could_be() -> None:
    text = ' {"n": [0.1234567890123456789012345, 1e400], "n": "\\u00fc"}\n'
    assert encode(codec.Written(text)) == text
    for refused in ('"\\u0000"', '"\\ud800"', "[" * 201 + "]" * 201, "[" * 100_000, "NaN", "{", "", "9" * 5_000):
        with pytest.raises(NotSerializable, match="The payload cannot be stored"):
            encode(codec.Written(refused), what="payload")
