"""A released migration is never edited: databases that have run it would differ from those that run it anew."""

from __future__ import annotations

from absurd import schema

#: name -> sha256 of the migration's text, from the release that first carried it
RELEASED = {
    "0001_initial": "53e95c10f522c15d5058e1bb2d3d6d158961b20eb3ae911d0a1f0e5c0f43381e",
    "0002_arguments": "f3d4410cc44f422b9d917c6711804fcc5539fad23acc1650bd19ccffade1f012",
    "0003_search": "eea0f5d58a2b8db73be0ea0c31f0656ef526a997ae5d8641327d9c7c054be627",
    "0004_emit_ids": "93e41f5c48252639de7f0f88b548fe77ee32a093405baa8db585e59f749041c7",
}


def test_released_migrations_are_as_they_were_released() -> None:
    carried = dict(schema.migrations().values())
    assert {name: carried.get(name) for name in RELEASED} == RELEASED


def test_migrations_are_numbered_without_a_gap() -> None:
    assert sorted(schema.migrations()) == list(range(1, len(schema.migrations()) + 1))
