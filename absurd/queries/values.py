"""JSON values as the tables hold them: whole, to the last digit, or the beginning of what is too large for an answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Json:
    """A JSON value as Postgres writes it: no digit is lost, however long, deep or large it is."""

    text: str

    def read(self) -> Any:
        """The value as Python has it, floats with the 17 digits they hold. This object where Python cannot read it: nested
        too deeply, or an integer of more than 4,300 digits."""
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError):
            return self


@dataclass(frozen=True)
class Preview:
    """JSON as text, or its beginning. `size` is that of the whole text in bytes.

    text   None when the value is so large that it was not even read (16 MB as stored for a task's own payloads, 256 kB for
           those of runs, checkpoints and events); `size` is then what it takes on disk
    whole  nothing was cut off
    """

    text: str | None
    size: int
    whole: bool


#: on disk, in bytes: larger ones are not read for a preview among many
AMONG_MANY = 256 * 1024
#: the same where the others have taken all room there was
BESIDE_OTHERS = 64 * 1024
#: characters of a preview that stands where a value did not fit
SHOWN = 2_000
_ANY = 2**62

# As JSON, so that one statement answers all.
_PREVIEW = """
case when {value} is null then null
     when pg_column_size({value}) > {most}
     then jsonb_build_object('text', null, 'size', pg_column_size({value}), 'whole', false)
     else (select jsonb_build_object('text', left(x.text, {length}), 'size', octet_length(x.text),
                                     'whole', length(x.text) <= {length})
             from (select ({value})::text as text offset 0) x) end"""

# What is read is added up first, as far as that can be told without reading it, and then what is sent: neither may exceed
# what an answer carries. A value that would not fit alone takes no room from the others.
_CARRIED = """
{source}_near as (
  select f.*, sum(case when f.about <= {most} then f.about end) over w as near
    from (select f.*, pg_column_size(f.value)::bigint
                      * case when pg_column_compression(f.value) is null then 1 else {packed} end as about
            from {source} f) f
  window w as (order by f.n rows unbounded preceding)),
{source}_read as materialized (
  select f.*, case when f.about <= {most} and f.near <= {most} then f.value::text end as whole from {source}_near f),
{source}_sized as (
  select f.*, octet_length(f.whole) as bytes,
         sum(case when octet_length(f.whole) <= {most} then octet_length(f.whole) end) over w as total
    from {source}_read f window w as (order by f.n rows unbounded preceding)),
{source}_carried as (
  select f.*, case when f.bytes <= {most} and f.total <= {most} then f.whole end as text,
         case when f.bytes <= {most} and f.total <= {most} then null
              when f.whole is not null
              then jsonb_build_object('text', left(f.whole, {length}), 'size', f.bytes,
                                      'whole', length(f.whole) <= {length})
              else {preview} end as preview
    from {source}_sized f)"""
# how much larger a compressed value is taken to be than it is on disk
_PACKED = 4


def preview_of(value: str, length: int, most: int = AMONG_MANY) -> str:
    """SQL for a `Preview` of a JSON column, as JSON or null: `length` characters; None of what takes over `most` on disk."""
    return _PREVIEW.format(value=value, length=int(length), most=int(most))


def carried(source: str, most: int | None, length: int = SHOWN) -> str:
    """SQL: behind the common table `source`, others that end in `source_carried`, which has its columns and two more.

    Its column `value` is jsonb, `n` says in which order. The values that come first are carried whole as `text`, as long as
    they take `most` bytes together (None: all); of the others there is a `preview`, as `preview_of` makes it. With `most` 0
    there are previews only, of larger values than where there are others.
    """
    preview = preview_of("f.value", length, AMONG_MANY if most == 0 else BESIDE_OTHERS)
    limit = _ANY if most is None else int(most)
    return _CARRIED.format(source=source, most=limit, length=int(length), packed=_PACKED, preview=preview)


def carried_value(text: str | None, preview: dict[str, Any] | None) -> Json | Preview | None:
    """What `carried` answered for one value: itself, or as much of it as there was room for."""
    if text is not None:
        return Json(text)
    if preview is None:
        return None
    return Json(preview["text"]) if preview["whole"] else Preview(**preview)
