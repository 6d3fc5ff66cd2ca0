"""Values: what handlers, callers and events hand over, as JSON text that Postgres stores as `jsonb`.

A value is encoded once (`encode`) and seen twice: when it is first returned (`roundtrip` of that text) and
when it is replayed from the database (`decode` of what the server prints). Both are equal in value, type and
order of keys, so a handler cannot tell a replay from a first run. What jsonb cannot hold is refused.

Measured (Python 3.11, best of 7, µs)       encode   decode   roundtrip   json.dumps   json.loads
    109 bytes, an array of two objects in it    2.4      0.8         5.1          2.3          1.9
    11.7 kB, a hundred of these                 191       76         496          163          118
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import math
import re
import traceback
import uuid
from collections.abc import Iterable
from decimal import Decimal
from enum import Enum
from typing import Any

from pydantic_core import PydanticSerializationError, from_json, to_json

from absurd.errors import NotSerializable, ValueTooLarge

#: Arrays and objects inside one another, counted from 1 for the outermost. The fast reader stops here, too.
MAX_DEPTH = 200
#: Decimal digits of an integer: Python's own limit for reading one, so that a replay can always read it.
MAX_DIGITS = 4300
#: Encoded UTF-8 bytes: refused above the first, warned about above the second.
MAX_BYTES = 16 * 1024 * 1024
WARN_BYTES = 1024 * 1024
#: UTF-8 bytes of a recorded error text.
MAX_TEXT_BYTES = 64 * 1024

_log = logging.getLogger("absurd")
_warned: set[str] = set()

_INT_BOUND = 10**MAX_DIGITS
_NESTED = frozenset({dict, list})
_BAD_TEXT = re.compile("[\x00\ud800-\udfff]")
_IDENTIFIER = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
# numbers that jsonb prints differently from how they were written: exponents, and the sign of zero;
# the first pattern is a cheap necessary condition of the second, which looks at numbers only
_EXPONENT = re.compile(r"[0-9][eE]")
_RESPELLED = re.compile(r"(?:^|[:,\[\s])(?:-0|-?[0-9]+(?:\.[0-9]+)?[eE])")

#: The way to a place inside a value: (path of the parent, key or index), or None for the value itself.
_Path = tuple[Any, str | int] | None


class Written:
    """A value that is JSON text already, such as somebody typed it: it is sent as it is, with every digit of its numbers."""

    def __init__(self, text: str) -> None:
        self.text = text


def encode(value: Any, *, what: str = "value") -> str:
    """JSON text of `value`, to be sent as jsonb.

    Accepted: dict, list, str, int, float, bool, None, and what people return by habit: tuples and sets
    (arrays; sets sorted), NamedTuples, dataclasses and pydantic models (objects), Enums (their value), UUIDs,
    dates and times (ISO 8601), Decimals (texts: a float would lose digits). Keys may also be int, float, bool
    or None, which become texts as in `json`, Enums, UUIDs, dates and times. `what` names the value in
    messages, as in "result of step 'ship'".

    Raises `NotSerializable`, with the path (such as `$.items[3].name`), for everything else and for NaN,
    infinities, NUL, lone surrogates, integers over 4,300 digits, keys that become equal and nesting deeper
    than 200; `ValueTooLarge` over 16 MiB. Over 1 MiB logs one warning a process for each `what`. The text of a `Written`
    keeps the same rules, but for its numbers: a fraction may be longer than a float.

        >>> encode({"at": datetime.date(2026, 1, 2), "tags": {"b", "a"}})
        '{"at":"2026-01-02","tags":["a","b"]}'
    """
    if value is None:  # what most handlers return
        return "null"
    if type(value) is Written:
        return _kept(value.text, what)
    try:
        raw = _written(value, what)
    except RecursionError:  # the caller's own stack was deep already
        raise NotSerializable(f"The {what} cannot be stored: it is nested too deeply for the call stack.") from None
    if len(raw) > WARN_BYTES:
        _check_size(len(raw), what)
    return raw.decode()


def decode(text: str | bytes | None) -> Any:
    """The value of a jsonb column, from the text the server prints; None for SQL NULL and for JSON `null`.

    Reads whatever jsonb holds, whoever wrote it: also integers and nesting beyond what `encode` accepts.
    Raises `NotSerializable` for nesting deeper than this Python can read at all.
    """
    if text is None:
        return None
    try:
        return from_json(text)
    except ValueError:
        try:
            return json.loads(text, parse_int=_any_int)
        except RecursionError:
            raise NotSerializable("The stored value is nested deeper than Python can read.") from None


class Unreadable:
    """Stands where a value should be that this Python cannot read; `error` says why."""

    def __init__(self, error: NotSerializable) -> None:
        self.error = error


def decode_if_readable(text: str | bytes) -> Any:
    """As `decode`, but an unreadable value comes as `Unreadable`, so that its neighbours in the answer survive."""
    try:
        return decode(text)
    except NotSerializable as error:
        return Unreadable(error)


def roundtrip(text: str) -> Any:
    """What `decode` gives for `text` once it went through jsonb, without asking the server.

    jsonb orders the keys of an object by their length in UTF-8 bytes, then by the bytes; of equal keys the
    last wins; numbers are decimals without an exponent, so 1e16 comes back as an integer and -0.0 as 0.0.
    `text` must be JSON that jsonb accepts, such as `encode` returns.
    """
    if ("-0" in text or _EXPONENT.search(text)) and _RESPELLED.search(text):
        return _in_key_order(json.loads(text, parse_float=_as_numeric, parse_int=_any_int))
    return _in_key_order(decode(text))


def sanitize(text: str) -> str:
    """`text` in a form Postgres can store: NUL and lone surrogates become U+FFFD, at most 64 KiB of UTF-8.

    A longer text keeps its beginning and its end (a traceback's last lines say most) around a marker.
    """
    text = _BAD_TEXT.sub("\ufffd", text)
    raw = text.encode()
    if len(raw) <= MAX_TEXT_BYTES:
        return text
    tail = MAX_TEXT_BYTES // 4
    marker = f"\n… [{len(raw)} bytes, shortened] …\n"
    head = MAX_TEXT_BYTES - tail - len(marker.encode())
    return raw[:head].decode(errors="ignore") + marker + raw[-tail:].decode(errors="ignore")


def error_payload(exc: BaseException) -> dict[str, str]:
    """What is recorded of a failure: `name` (class), `message` (`str(exc)`) and `traceback`, all storable.

    Never raises, whatever the exception's `__str__` does.
    """
    try:
        message = str(exc)
    except (Exception, SystemExit) as inner:
        message = f"<the message is lost: str() of this exception raised {type(inner).__name__}>"
    try:
        trace = "".join(traceback.format_exception(exc))
    except (Exception, SystemExit) as inner:
        trace = f"<the traceback is lost: formatting it raised {type(inner).__name__}>"
    return {"name": sanitize(type(exc).__name__), "message": sanitize(message), "traceback": sanitize(trace)}


# ---------------------------------------------------------------- encoding


def _kept(text: str, what: str) -> str:
    """A text as it is, if its value could be stored. Its fractions are looked at by who made it."""
    try:
        value = json.loads(text, parse_float=lambda _: 0.0)
    except RecursionError:
        raise NotSerializable(f"The {what} cannot be stored: it is nested too deeply.") from None
    except ValueError as error:
        raise NotSerializable(f"The {what} cannot be stored: it is no JSON: {error}.") from None
    encode(value, what=what)
    size = len(text.encode())
    if size > WARN_BYTES:
        _check_size(size, what)
    return text


def _written(value: Any, what: str) -> bytes:
    plain = value if _is_plain(value) else _convert(value, None, MAX_DEPTH, what)
    try:
        raw = to_json(plain)
    except PydanticSerializationError:  # a lone surrogate somewhere: the slow walk finds it and says where
        raw = to_json(_convert(plain, None, MAX_DEPTH, what))
    if b"\\u0000" in raw:  # NUL, or a backslash followed by u0000: only the slow walk knows
        _convert(plain, None, MAX_DEPTH, what)
    return raw


def _is_plain(value: Any) -> bool:
    """Whether the fast writer can take `value` as it is: exact JSON types, finite floats, no bad numbers.

    Texts are not looked at here: the writer stumbles over surrogates, and NUL is visible in its output.
    """
    return _are_plain((value,), MAX_DEPTH)


def _are_plain(values: Iterable[Any], depth: int) -> bool:  # noqa: C901 - see the first comment
    # one loop, most frequent type first: this is half of what encoding costs
    if type(values) is dict:
        for key in values:
            if type(key) is not str:
                return False
        values = values.values()
    for value in values:
        kind = type(value)
        if kind is str:
            continue
        if kind is int:
            if not -_INT_BOUND < value < _INT_BOUND:
                return False
        elif kind is dict or kind is list:
            if depth <= 0 or not _are_plain(value, depth - 1):
                return False
        elif kind is float:
            if value - value != 0.0:  # NaN for NaN and for both infinities
                return False
        elif kind is not bool and value is not None:
            return False
    return True


def _convert(value: Any, path: _Path, depth: int, what: str) -> Any:
    """`value` made of exact JSON types, every rule checked; raises with the path to the first offender."""
    if isinstance(value, Enum):
        return _convert(value.value, path, depth, what)
    if isinstance(value, (str, bool, int, float, type(None))):
        return _scalar(value, path, what)
    if _is_pydantic(value):
        return _convert(_dump_model(value, path, what), path, depth, what)
    items = _as_items(value)
    if items is None and not isinstance(value, (list, tuple, set, frozenset)):
        return _as_text(value, path, what)
    if depth <= 0:
        raise _refused(path, what, f"is nested deeper than {MAX_DEPTH} levels", "flatten it, or look for a cycle")
    if items is not None:
        return _object(items, path, depth - 1, what)
    elements = [_convert(item, (path, i), depth - 1, what) for i, item in enumerate(value)]
    return _sorted(elements) if isinstance(value, (set, frozenset)) else elements


def _scalar(value: str | int | float | None, path: _Path, what: str) -> Any:
    """A plain text, number, bool or None from a value that may be of a subclass."""
    if isinstance(value, str):
        bad = _BAD_TEXT.search(value)
        if bad:
            name = "a NUL character" if bad[0] == "\0" else f"a lone surrogate ({bad[0]!a})"
            raise _refused(path, what, f"contains {name} at index {bad.start()}", "remove or replace it")
        return str.__str__(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _refused(path, what, f"is {float(value)}", "use None or a text for it")
        return float(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if not -_INT_BOUND < value < _INT_BOUND:
            raise _refused(path, what, f"is an integer of more than {MAX_DIGITS} digits", "store it as a text")
        return int(value)
    return value


def _as_items(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """Keys and values of what becomes an object, None for anything else."""
    if isinstance(value, dict):
        return value.items()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return zip(value._fields, value, strict=True)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    return None


def _object(items: Iterable[tuple[Any, Any]], path: _Path, depth: int, what: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, item in items:
        name = _key(key, path, what)
        if name in out:
            raise _refused(path, what, f"has two keys that both become {json.dumps(name)}", "rename one of them")
        out[name] = _convert(item, (path, name), depth, what)
    return out


def _key(key: Any, path: _Path, what: str) -> str:
    """The text of a key: as `json` writes it, and also for Enums, UUIDs, dates and times."""
    if isinstance(key, Enum):
        key = key.value
    if not isinstance(key, str) and isinstance(key, (list, tuple, dict, set, frozenset)):
        raise _refused(path, what, f"has a key of type {_type_name(key)}", "use texts as keys")
    place: _Path = (path, key if isinstance(key, str) else repr(key))
    if isinstance(key, (str, bool, int, float, type(None))):
        plain = _scalar(key, place, what)
        return plain if isinstance(plain, str) else json.dumps(plain)
    return _as_text(key, place, what)


def _as_text(value: Any, path: _Path, what: str) -> str:
    """The text that stands for a value JSON has no form for, where one is customary."""
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, uuid.UUID) or (type(value).__name__ == "UUID" and hasattr(value, "hex")):
        return str(value)
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise _refused(path, what, f"is {value}", "use None or a text for it")
        return str(value)
    raise _refused(path, what, f"is of type {_type_name(value)}, which JSON cannot represent", _fix_for(value))


def _fix_for(value: Any) -> str:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "encode it as a text first, for example base64.b64encode(data).decode()"
    if isinstance(value, datetime.timedelta):
        return "use its total_seconds()"
    if hasattr(value, "__await__"):
        return "await it first"
    if hasattr(value, "__iter__"):
        return "turn it into a list or dict first"
    return "return plain data (dict, list, str, int, float, bool, None) or a pydantic model instead"


def _is_pydantic(value: Any) -> bool:
    return hasattr(type(value), "__pydantic_serializer__")


def _dump_model(value: Any, path: _Path, what: str) -> Any:
    """The JSON form of a pydantic model or dataclass, so that it validates as the same model again."""
    serializer = type(value).__pydantic_serializer__
    try:
        python = serializer.to_python(value, by_alias=True, round_trip=True)
        # by_alias, because validation expects aliases; round_trip leaves computed fields out
        dumped = serializer.to_python(value, mode="json", by_alias=True, round_trip=True)
    except ValueError as exc:  # pydantic's own error for an unknown type or a cycle, or one of its user's hooks
        problem = f"is a {_type_name(value)} that pydantic cannot turn into JSON ({sanitize(str(exc))})"
        raise _refused(path, what, problem, "give the field a serialisable type") from exc
    _refuse_lost_numbers(python, dumped, path, what)
    return dumped


def _refuse_lost_numbers(python: Any, dumped: Any, path: _Path, what: str) -> None:
    """Unless told otherwise pydantic writes NaN and infinities as null, which is another value when read."""
    if isinstance(python, float):
        if dumped is None:
            _scalar(python, path, what)
    elif isinstance(python, dict) and isinstance(dumped, dict):
        for (key, item), before in zip(dumped.items(), python.values(), strict=False):
            _refuse_lost_numbers(before, item, (path, key), what)
    elif isinstance(python, (list, tuple)) and isinstance(dumped, list):
        for i, (before, item) in enumerate(zip(python, dumped, strict=False)):
            _refuse_lost_numbers(before, item, (path, i), what)


def _sorted(items: list[Any]) -> list[Any]:
    """The elements of a set in an order that does not depend on the process: by value, else by JSON text."""
    try:
        return sorted(items)
    except TypeError:
        return sorted(items, key=to_json)


def _check_size(size: int, what: str) -> None:
    if size > MAX_BYTES:
        raise ValueTooLarge(
            f"The {what} is {size / 2**20:.1f} MiB of JSON; at most {MAX_BYTES // 2**20} MiB are stored. "
            "Keep the data elsewhere (a table, an object store) and store a reference to it."
        )
    if what not in _warned:
        _warned.add(what)
        _log.warning(
            "The %s is %.1f MiB of JSON, sent and stored whole each time; consider storing a reference.",
            what,
            size / 2**20,
        )


def _refused(path: _Path, what: str, problem: str, fix: str) -> NotSerializable:
    return NotSerializable(f"The {what} cannot be stored: {_spell(path)} {problem}; {fix}.")


def _spell(path: _Path) -> str:
    """`$.items[3].name`; keys that are no identifiers are quoted, the middle of a long path is left out."""
    parts: list[str] = []
    while path is not None:
        path, step = path
        if isinstance(step, int):
            parts.append(f"[{step}]")
        else:
            parts.append(f".{step}" if _IDENTIFIER.fullmatch(step) else f"[{json.dumps(step)}]")
    parts.reverse()
    if len(parts) > 16:
        parts[8:-4] = ["…"]
    return "$" + "".join(parts)


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


# ---------------------------------------------------------------- what jsonb makes of it


def _in_key_order(value: Any) -> Any:
    """The same value with the keys of every object in jsonb's order. May change `value` in place."""
    if type(value) is dict:
        for key, item in value.items():
            if type(item) in _NESTED:
                value[key] = _in_key_order(item)
        if len(value) > 1:
            keys = list(value)
            if "".join(keys).isascii():
                ordered = sorted(keys)
                ordered.sort(key=len)
            else:
                ordered = sorted(keys, key=_jsonb_key)
            if ordered != keys:
                return {key: value[key] for key in ordered}
    elif type(value) is list:
        for i, item in enumerate(value):
            if type(item) in _NESTED:
                value[i] = _in_key_order(item)
    return value


def _jsonb_key(key: str) -> tuple[int, str]:
    # among texts of equal length in UTF-8, the order of code points is the order of bytes
    return (len(key) if key.isascii() else len(key.encode()), key)


def _as_numeric(text: str) -> int | float:
    """A number with a point or an exponent, after Postgres printed it as a plain decimal."""
    number = Decimal(text)
    exponent = number.as_tuple().exponent
    if isinstance(exponent, int) and exponent >= 0:
        return int(number)
    return float(text) if number else 0.0


def _any_int(text: str) -> int:
    # int() refuses more than 4,300 digits, which other writers may have stored; Decimal has no such limit
    return int(text) if len(text) <= MAX_DIGITS else int(Decimal(text))
