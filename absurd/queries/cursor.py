"""Where the next page of a list begins, as a text for addresses and command lines.

A cursor comes back from outside: whatever is no cursor of its list is refused with ConfigError, and what is accepted, the
database can read.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

from absurd.errors import ConfigError

#: what a place of a cursor may hold; raises ValueError or TypeError for anything else
Reader = Callable[[Any], Any]
_LARGEST_ID = 2**31 - 1


def written(*places: Any) -> str:
    """A cursor of these places, which must be JSON."""
    return base64.urlsafe_b64encode(json.dumps(places).encode()).decode()


def read(cursor: str, of: str, *readers: Reader) -> tuple[Any, ...]:
    """The places of a cursor, each as its reader gives it. ConfigError for what is no cursor `of` such a list."""
    try:
        places = json.loads(base64.b64decode(cursor, altchars=b"-_", validate=True), parse_constant=_refuse)
        if not isinstance(places, list):
            raise ValueError("no list")
        return tuple(reader(place) for reader, place in zip(readers, places, strict=True))
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise refused(cursor, of) from None


def refused(cursor: str, of: str) -> ConfigError:
    """What to say of a text that is no cursor."""
    shown = cursor if len(cursor) <= 60 else cursor[:60] + "…"
    return ConfigError(f"not a cursor of {of}: {shown!r}; use `next` of the page before")


def name(place: Any) -> str:
    """A text that Postgres can hold."""
    if not isinstance(place, str) or "\0" in place:
        raise ValueError("no name")
    place.encode()  # half a surrogate pair is none
    return place


def moment(place: Any) -> datetime:
    """A moment with its time zone."""
    at = datetime.fromisoformat(place)
    if at.tzinfo is None:
        raise ValueError("no time zone")
    return at


def moment_or_none(place: Any) -> datetime | None:
    """The same, or None."""
    return None if place is None else moment(place)


def queue_id(place: Any) -> int:
    """The number of a queue."""
    if type(place) is not int or not 0 <= place <= _LARGEST_ID:
        raise ValueError("no number of a queue")
    return place


def task_id(place: Any) -> UUID:
    """The id of a task."""
    if not isinstance(place, str):
        raise TypeError("no id")
    return UUID(place)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")
