"""From the fields of an address to the filters of the read model."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from starlette.datastructures import QueryParams

from absurd import ConfigError, InvalidOption, TaskNotFound
from absurd.queries import filters
from absurd.queries.events import EventFilter
from absurd.queries.tasks import STATES, State, TaskFilter
from absurd.queries.waits import WaitFilter

PAGE = 50
#: items of one answer at most
LARGEST_PAGE = 1_000


def tasks_of(query: QueryParams) -> TaskFilter:
    """Fields: queue, name, state (may be repeated), since, until, id, text, q (an id, or a text), limit, after."""
    which = TaskFilter(
        queue=_text(query, "queue"),
        name=_text(query, "name"),
        states=tuple(_state(each) for each in query.getlist("state") if each),
        id=_uuid(query, "id"),
        since=_moment(query, "since"),
        until=_moment(query, "until"),
        text=_text(query, "text"),
        limit=_limit(query),
        after=_text(query, "after"),
    )
    sought = (query.get("q") or "").strip()
    if not sought:
        return which
    try:
        return replace(which, id=UUID(sought))
    except ValueError:
        return replace(which, text=sought)


def events_of(query: QueryParams, **more: Any) -> EventFilter:
    """Fields: queue, name, state, since, limit, after. Always with who waits."""
    state = _text(query, "state")
    if state not in (None, "emitted", "pending"):
        raise InvalidOption(f"state must be emitted or pending, not {state!r}")
    return EventFilter(
        queue=_text(query, "queue"),
        name=_text(query, "name"),
        state=state,  # type: ignore[arg-type]
        since=_moment(query, "since"),
        waiters=True,
        limit=_limit(query),
        after=_text(query, "after"),
        **more,
    )


def waits_of(query: QueryParams) -> WaitFilter:
    """Fields: queue, event, limit, after."""
    return WaitFilter(
        queue=_text(query, "queue"), event=_text(query, "event"), limit=_limit(query), after=_text(query, "after")
    )


def task_id(text: str) -> UUID:
    """The id in a path. TaskNotFound for what is none."""
    try:
        return UUID(text)
    except ValueError:
        raise TaskNotFound(f"{text[:100]!r} is no id of a task") from None


def _text(query: QueryParams, name: str) -> str | None:
    return query.get(name) or None


def _state(text: str) -> State:
    if text not in STATES:
        raise InvalidOption(f"state must be one of {', '.join(STATES)}, not {text!r}")
    return text


def _uuid(query: QueryParams, name: str) -> UUID | None:
    text = _text(query, name)
    try:
        return None if text is None else UUID(text)
    except ValueError:
        raise ConfigError(f"{name} must be an id, as 01935bf7-8a25-7c92-b123-456789ab0000, not {text!r}") from None


def _moment(query: QueryParams, name: str) -> datetime | None:
    text = _text(query, name)
    if text is None:
        return None
    # to the minute, so that those who ask the same share an answer
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    try:
        return filters.moment(text, now)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None


def _limit(query: QueryParams) -> int:
    text = query.get("limit") or str(PAGE)
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= LARGEST_PAGE):
        raise ConfigError(f"limit must be a number from 1 to {LARGEST_PAGE}, not {text!r}")
    return int(text)
