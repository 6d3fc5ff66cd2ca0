"""JSON that somebody typed, on a command line or into a form: it reaches the database as it was typed, to the last digit."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any, NoReturn

from absurd._core.codec import MAX_DIGITS, Written
from absurd.errors import NotSerializable
from absurd.queries import document
from absurd.queries.values import Json


def read(text: str, *, exact: bool = True) -> Any:
    """The value of a JSON text, its fractions as `Json`, so that keys may be set in it before it is `written`. Not `exact`:
    as float, where no digit is lost by that.

    ValueError for what is no JSON, for NaN and Infinity, and for a number of more than 4,300 digits written out.
    """
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_fraction if exact else _float, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def written(value: Any) -> Written:
    """What was read, for a client to send as params or payload. NotSerializable for what is nested too deeply."""
    try:
        return Written(document.written(value))
    except RecursionError:
        raise NotSerializable("The value cannot be stored: it is nested too deeply.") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _fraction(text: str) -> Json:
    mantissa, _, exponent = text.lower().partition("e")
    if len(exponent) > 6 or len(mantissa) + abs(int(exponent or 0)) > MAX_DIGITS:
        raise _too_long(text)
    return Json(f"{Decimal(text):f}")  # as Postgres would write it: 1e2 is 100


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number) or Decimal(repr(number)) != Decimal(text):
        raise ValueError(f"the number {text[:30]} would lose digits here; make it a text")
    return number


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise _too_long(text)
    return int(text)


def _too_long(text: str) -> ValueError:
    shown = text if len(text) <= 20 else text[:20] + "…"
    return ValueError(f"the number {shown} has more than {MAX_DIGITS:,} digits when it is written out; make it a text")
