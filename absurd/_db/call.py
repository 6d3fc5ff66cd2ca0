"""A procedure call as a value: SQL text, parameters, and how to read the answer. Nothing is executed here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """`read` turns the rows into the answer. `repeatable`: a repeat after a lost reply changes nothing more."""

    sql: str
    params: tuple[Any, ...]
    read: Callable[[Sequence[Row]], T]
    repeatable: bool = False


def nothing(rows: Sequence[Row]) -> None:
    """For procedures that return void."""


def scalar(rows: Sequence[Row]) -> Any:
    """The one value of the one row; None without a row."""
    return rows[0][0] if rows else None
