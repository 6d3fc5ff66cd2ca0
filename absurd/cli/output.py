"""How every command speaks: lines and tables for people, JSON for programs, notes on stderr."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from difflib import get_close_matches
from typing import Any

import click

from absurd.queries import as_json, document
from absurd.queries.values import Json


def line(text: str = "") -> None:
    """One line on stdout."""
    click.echo(_written(text))


def note(text: str) -> None:
    """One line on stderr: for people, never part of the answer."""
    click.echo(_written(text), err=True)


def data(value: Any) -> None:
    """An answer as JSON: two spaces, the fields in their order, any script as it is."""
    line(document.written(value, indent=2))


def _written(text: str) -> str:
    """Half a surrogate pair, which is how Python reads a byte that is no UTF-8, cannot be printed: as an escape."""
    return text.encode(errors="backslashreplace").decode()


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Left-aligned columns; None is a dash."""
    cells = [[plain("-" if cell is None else str(cell)) for cell in row] for row in rows]
    widths = [max(len(row[index]) for row in [list(headers), *cells]) for index in range(len(headers))]
    for row in [list(headers), *cells]:
        line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def fields(pairs: Iterable[tuple[str, object]], indent: str = "  ") -> None:
    """`  Name:  value` lines, values aligned; None is left out."""
    shown = [(name + ":", value) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        line(f"{indent}{name.ljust(width)} {plain(str(value))}")


def section(title: str) -> None:
    """A heading, set off by an empty line."""
    line()
    line(title)


def block(value: Any, indent: str = "  ") -> None:
    """A JSON value over several lines."""
    for each in document.written(value, indent=2).split("\n"):
        line(indent + plain(each))


def parted(failure: Any) -> tuple[Any, list[str]]:
    """A failure without its traceback (`stack` in other languages), and the lines of that."""
    failure = failure.read() if isinstance(failure, Json) else failure
    if not isinstance(failure, dict):
        return failure, []
    key = next((each for each in ("traceback", "stack") if failure.get(each)), None)
    rest = {name: value for name, value in failure.items() if name != key}
    return rest, str(failure[key]).rstrip().splitlines() if key else []


def failed(failure: Any) -> None:
    """A failure over several lines, its traceback as it was written."""
    rest, trace = parted(failure)
    if rest or not trace:
        block(rest, indent="")
    for each in trace:
        line(plain(each))


def short(value: Any, limit: int = 100) -> str:
    """A JSON value in one line, cut after `limit` characters."""
    text = plain(value.text[: limit + 1] if isinstance(value, Json) else json.dumps(value, ensure_ascii=False))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def moment(value: datetime | None) -> str | None:
    """A moment in UTC to the millisecond: `2026-03-01 12:00:00.123Z`."""
    if value is None:
        return None
    cut = value.replace(microsecond=value.microsecond // 1000 * 1000)
    text = str(as_json(cut)).replace("T", " ").removesuffix("Z")
    return (text[:23] if "." in text else text + ".000") + "Z"


def plain(text: str) -> str:
    """The text with control characters spelt out: names are data and must not steer the terminal."""
    if text.isprintable():
        return text
    return "".join(
        repr(each)[1:-1] if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp") else each for each in text
    )


def meant(word: str, known: Iterable[str]) -> list[str]:
    """The names somebody who wrote `word` may have meant: three at most that it is a part of, else the closest."""
    names = list(known)
    parts = [each for each in names if word and (each.startswith(word + "-") or each.endswith("-" + word))]
    return parts[:3] or get_close_matches(word, names, n=1)


def interactive() -> bool:
    """Whether a person sees stderr now: only then a bar is drawn."""
    return sys.stderr.isatty()


@contextmanager
def progress(label: str, length: int) -> Iterator[Callable[[int, str], None]]:
    """Long work, in parts: a bar on stderr where somebody watches, else a line a part on stdout."""
    if not interactive() or not length:
        yield lambda _done, text: line(text)
        return
    with click.progressbar(length=length, label=label, file=sys.stderr) as bar:
        yield lambda done, _text: bar.update(done)
