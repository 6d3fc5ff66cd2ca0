"""The read model's Python face: one place that asks questions, for the command line, web pages and metrics alike.

A question is a value: SQL over the views of `sql/src/80_views.sql`, its parameters, and how its rows become frozen
dataclasses. Nothing is executed until it is run on a connection::

    page = run(conn, tasks.find(TaskFilter(queue="orders", states=("failed",))))
    page = run(conn, tasks.find(TaskFilter(queue="orders", states=("failed",), after=page.next)))

Lists are walked by key, never by offset: `page.next` is where the next page starts, None on the last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from absurd.errors import ConfigError, from_sqlstate
from absurd.queries.values import Json

__all__ = ["Page", "Query", "as_json", "at_least_one", "filled", "prefixed", "run", "run_async"]

T = TypeVar("T")
Row = dict[str, Any]


@dataclass(frozen=True)
class Query(Generic[T]):
    """One question: `sql` with `%(name)s` parameters, and `decode`, which makes the answer of all its rows."""

    sql: str
    params: Mapping[str, Any]
    decode: Callable[[Sequence[Row]], T] = field(repr=False)


@dataclass(frozen=True)
class Page(Generic[T]):
    """A part of a list. `next` is the cursor of the part after it, None when there is none.

    A search stops after so many rows, found or not (`budget` of the filter). Then the page may hold less than its limit,
    even nothing, and `searched_until` is the moment it has come back to: what is older is still to be searched, from `next`.
    None when the page is full, or everything has been searched.
    """

    items: tuple[T, ...]
    next: str | None
    searched_until: datetime | None = None


def run(conn: psycopg.Connection[Any], query: Query[T]) -> T:
    """Ask on this connection, inside its transaction if it has one.

    Raises the errors of `absurd.errors`: `SchemaMissing` where there is no schema, `QueueNotFound`, `ConnectionLost`.
    """
    try:
        with conn.cursor(row_factory=dict_row) as cur:
            return query.decode(cur.execute(query.sql.encode(), query.params).fetchall())
    except psycopg.Error as exc:
        error = from_sqlstate(exc)
        if error is exc:
            raise
        raise error from exc


async def run_async(conn: psycopg.AsyncConnection[Any], query: Query[T]) -> T:
    """The same on an asynchronous connection."""
    try:
        async with conn.cursor(row_factory=dict_row) as cur:
            await cur.execute(query.sql.encode(), query.params)
            return query.decode(await cur.fetchall())
    except psycopg.Error as exc:
        error = from_sqlstate(exc)
        if error is exc:
            raise
        raise error from exc


class _Filter(Protocol):
    """What every filter of a list has."""

    @property
    def limit(self) -> int: ...


F = TypeVar("F", bound=_Filter)


def filled(ask: Callable[[Query[Page[T]]], Page[T]], find: Callable[[F], Query[Page[T]]], which: F) -> Page[T]:
    """The page of a filter with all it may hold: searches on, budget after budget, until it is full or all is searched.

    For who would rather wait than be told how far the search came. `ask` runs one question, as `run` does.
    """
    items: tuple[T, ...] = ()
    while True:
        page = ask(find(dataclasses.replace(which, limit=which.limit - len(items))))  # type: ignore[type-var]
        items += page.items
        if page.next is None or len(items) >= which.limit:
            return Page(items, page.next)
        which = dataclasses.replace(which, after=page.next, limit=which.limit)  # type: ignore[type-var]


def as_json(value: Any) -> Any:
    """An answer as JSON-able data: field names as keys, ids as text, moments as ISO 8601 in UTC, values as Python has them.
    (`document.written` makes text of an answer without losing a digit.)"""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Json):
        return value.text if (known := value.read()) is value else known
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: as_json(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    return value


def prefixed(name: str | None) -> tuple[str | None, bool]:
    """The name of a filter, and whether it is a prefix, which ends in `*`."""
    if name is not None and name.endswith("*"):
        return name[:-1], True
    return name, False


def at_least_one(**values: int) -> None:
    """Raises ConfigError for the first that is below 1."""
    for name, value in values.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
