"""From answers to HTML: Jinja2 with escaping everywhere, and the few words the templates share."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup

from absurd.queries import why
from habitat_lite import assets, timeline

HERE = Path(__file__).parent
#: Characters that change the direction or vanish: shown as escapes, so that a payload cannot rewrite what stands beside it.
_HIDDEN = re.compile(
    "[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
LONGEST = 64_000
_CODE = re.compile("`([^`]+)`")
#: a word of a sentence, not a name or a piece of code
_WORD = re.compile(r"[a-z]+[ ,]")


def visible(text: object) -> str:
    """The text with characters nobody sees written as `\\u202e`."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", str(text))


def shown(value: Any, longest: int = LONGEST) -> str:
    """A JSON value for reading; what is longer is cut, and says so."""
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
    cut = text if len(text) <= longest else f"{text[:longest]}\n… {len(text) - longest:,} more characters"
    return visible(cut)


def short(value: Any, longest: int = 80) -> str:
    """A JSON value on one line."""
    text = visible(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def pretty(text: str | None) -> str:
    """JSON text with its structure shown; as it is when it is no whole JSON, or would grow beyond measure."""
    plain = text or "null"
    known, value = _read(plain)
    if not known:
        return visible(plain)
    wide: list[str] = []
    size = 0
    try:
        for piece in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(value):
            wide.append(piece)
            size += len(piece)
            if size > 1000 + 4 * len(plain):
                return visible(plain)
    except RecursionError:
        return visible(plain)
    return visible("".join(wide))


def failure(text: str | None) -> str:
    """A recorded failure: name, message and traceback as a person reads them."""
    known, value = _read(text or "null")
    if not known or not isinstance(value, dict) or not {"name", "message"} <= value.keys():
        return pretty(text)
    rest = {key: each for key, each in value.items() if key not in ("name", "message", "traceback")}
    parts = [
        value.get("traceback") or f"{value['name']}: {value['message']}",
        pretty(json.dumps(rest, ensure_ascii=False)) if rest else "",
    ]
    return visible("\n".join(str(part) for part in parts if part).strip())


def _read(text: str) -> tuple[bool, Any]:
    """Whether it is JSON that can be shown with its structure, and its value."""
    try:
        return True, json.loads(text, parse_float=_exact)
    except (ValueError, RecursionError):
        return False, None


def _exact(text: str) -> float:
    """A number with a fraction, if none of its digits is lost by that."""
    number = float(text)
    if Decimal(repr(number)) != Decimal(text):
        raise ValueError(f"no float is {text}")
    return number


def told(text: str) -> list[Markup]:
    """A message of ours as paragraphs of sentences: what is the matter, then the hint; what stands in backticks is code."""
    return [
        Markup(_CODE.sub(r"<code>\1</code>", _sentence(part)))
        for part in map(str.strip, text.split("\nHint: "))
        if part
    ]


def _sentence(text: str) -> str:
    ended = text if text[-1] in ".!?:" else f"{text}."
    return html.escape(visible(ended[0].upper() + ended[1:] if _WORD.match(ended) else ended))


def cut(text: str | None, longest: int) -> str:
    """The beginning of a text."""
    plain = visible(text or "")
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"


def sql(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def moment(at: datetime | None, text: str = "") -> Markup:
    """A moment: absolute in the title, relative by the script, absolute without it; or as `text`, which the script leaves."""
    if at is None:
        return Markup('<span class="none">–</span>')
    there = at.astimezone(UTC)
    absolute = there.strftime("%Y-%m-%d %H:%M:%S")
    if text:
        return Markup('<time title="{} UTC">{}</time>').format(absolute, text)
    return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(there.isoformat(), absolute, absolute)


def span(length: timedelta | float | None) -> str:
    """A length of time in its two largest units."""
    if length is None:
        return "–"
    return why.span(length if isinstance(length, timedelta) else timedelta(seconds=length))


def after(length: timedelta) -> str:
    """How long after the beginning."""
    return f"+{lasted(length)}"


def lasted(length: timedelta) -> str:
    """A length of time in the unit that tells it apart."""
    seconds = max(length.total_seconds(), 0.0)
    if seconds < 1:
        return f"{round(seconds * 1000)} ms"
    return f"{seconds:.1f} s".replace(".0 ", " ") if seconds < 60 else why.span(length)


def count(number: int, *, capped: bool = False) -> str:
    """A number for reading; `capped`: at least so many."""
    return f"{'≥ ' if capped else ''}{number:,}"


@pass_context
def href(context: Context, path: str, **query: Any) -> str:
    """An address of ours below wherever the app is mounted; query fields that say nothing are left out."""
    given = {key: value for key, value in query.items() if value not in (None, "")}
    return f"{context['root']}{quote(path)}{'?' + urlencode(given, doseq=True) if given else ''}"


@cache
def environment() -> Environment:
    """The templates; a name that is not given is an error."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        visible=visible, shown=shown, short=short, one_line=lambda value: short(value, 10_000), moment=moment, span=span
    )
    made.filters.update(count=count, pretty=pretty, failure=failure, cut=cut, sql=sql, after=after, lasted=lasted)
    made.filters.update(told=told, step_of=timeline.step_of)
    made.globals.update(href=href, asset=assets.address)
    return made


def page(template: str, given: Mapping[str, Any]) -> str:
    """A whole page."""
    return environment().get_template(template).render(given)


def content(template: str, given: Mapping[str, Any]) -> str:
    """What stands in the page's `main`: what a live page replaces."""
    loaded = environment().get_template(template)
    context = loaded.new_context(dict(given))
    return "".join(loaded.blocks["content"](context))
