"""Answers as JSON text, for absurdctl's `--json` and the pages' twins alike: one writer, so that both say the same."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from absurd.queries import Page, as_json, why
from absurd.queries.tasks import TaskDetail
from absurd.queries.values import Json

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[][{},:]|[^][{},:"\s]+')


def listed(name: str, page: Page[Any], **more: Any) -> dict[str, Any]:
    """A part of a list. `searched_until` is there only when a search stopped before the page was full."""
    stopped = {} if page.searched_until is None else {"searched_until": page.searched_until}
    return {name: page.items, "next": page.next, **stopped, **more}


def told(detail: TaskDetail) -> dict[str, Any]:
    """One task, and why it does not run."""
    return {"why": why.explain(detail), "detail": detail}


def written(value: Any, indent: int | None = None) -> str:
    """JSON text of an answer: the fields in their order, any script as it is, every `Json` to its last digit.

    ValueError for a float that JSON has no form for.
    """
    pieces: list[str] = []
    _write(value, pieces.append, indent, 0)
    return "".join(pieces)


def indented(text: str, indent: int, level: int = 0) -> str:
    """JSON text over several lines, as deep as it may be; no number and no text in it is changed."""
    pieces: list[str] = []
    opened = ""
    for token in _TOKEN.findall(text):
        if token in "]}":
            level -= 1
            pieces.append(token if opened else f"{_line(indent, level)}{token}")
            opened = ""
            continue
        if opened:
            pieces.append(_line(indent, level))
            opened = ""
        if token in "[{":
            level, opened = level + 1, token
        pieces.append({",": f",{_line(indent, level)}", ":": ": "}.get(token, token))
    return "".join(pieces)


def _line(indent: int, level: int) -> str:
    return "\n" + " " * (indent * level)


def _write(value: Any, put: Callable[[str], None], indent: int | None, level: int) -> None:
    if isinstance(value, Json):
        put(value.text if indent is None else indented(value.text, indent, level))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((each.name, getattr(value, each.name)) for each in dataclasses.fields(value))
        _nest("{}", fields, put, indent, level)
    elif isinstance(value, dict):
        _nest("{}", value.items(), put, indent, level)
    elif isinstance(value, (list, tuple)):
        _nest("[]", ((None, each) for each in value), put, indent, level)
    else:
        put(json.dumps(as_json(value), ensure_ascii=False, allow_nan=False))


def _nest(
    brackets: str, items: Iterable[tuple[str | None, Any]], put: Callable[[str], None], indent: int | None, level: int
) -> None:
    """An object, or an array, whose items have no name."""
    between = "" if indent is None else _line(indent, level + 1)
    put(brackets[0])
    empty = True
    for name, item in items:
        put(between if empty else f",{between or ' '}")
        if name is not None:
            put(f"{json.dumps(name, ensure_ascii=False)}: ")
        _write(item, put, indent, level + 1)
        empty = False
    put(brackets[1] if empty or indent is None else f"{_line(indent, level)}{brackets[1]}")
