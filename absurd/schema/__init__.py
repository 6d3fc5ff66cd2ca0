"""The schema: install, upgrade, version, uninstall. The package carries the whole of it as one SQL file.

Installing and upgrading are the same act: one transaction behind an advisory lock that runs the migrations not yet
recorded, then re-applies every function and view. It can be repeated, and two processes may do it at once.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import psycopg

from absurd.errors import SchemaMissing, SchemaNewer

#: beyond the numbers of the original: its absurdctl would take the schema of one of its releases for its own, and migrate it
VERSION = "0.102.0"
"""The release this package installs."""

Connection = psycopg.Connection[Any]


@dataclass(frozen=True)
class Installed:
    """What an install did: the release before (None: there was none), the release now, the migrations that ran."""

    before: str | None
    version: str
    migrations: tuple[str, ...]

    @property
    def changed(self) -> bool:
        """Whether the database had another release, or none."""
        return self.before != self.version or bool(self.migrations)


@cache
def sql() -> str:
    """The whole engine as one repeatable multi-statement SQL text, for any Postgres client."""
    return (resources.files(__package__) / "_bundle" / "absurd.sql").read_text(encoding="utf-8")


def script() -> str:
    """What an install does, as text for `psql` or another tool: one transaction that also records the release."""
    record = f"insert into absurd.settings (name, value) values ('version', '{VERSION}')"
    return f"begin;\n{sql()}\n{record}\n  on conflict (name) do update set value = excluded.value;\ncommit;\n"


@cache
def migrations() -> dict[int, tuple[str, str]]:
    """number -> (name, sha256 of the migration's text), as the bundle carries them."""
    found = {}
    for name, text in re.findall(
        r"^-- file: (\d{4}_\w+)\.sql\n.*?\$migration\$\n(.*?)\$migration\$;", sql(), re.M | re.S
    ):
        found[int(name[:4])] = (name, hashlib.sha256(text.encode()).hexdigest())
    return found


def install(conn: Connection, *, fake_clock: bool | None = None) -> Installed:
    """Install the schema, or bring it up to this release; nothing is left behind when it fails.

    `fake_clock` turns the test clock (`absurd.fake_now`) on or off; None keeps the present choice (new: on).
    The connection's open transaction, if any, is joined; otherwise the install commits by itself.

    Raises SchemaNewer when the database was installed by a later release, psycopg.errors.LockNotAvailable when an open
    transaction holds its tables or views for a minute (or the session's `lock_timeout`).
    """
    with conn.transaction(), conn.cursor() as cur:
        before = installed_version(conn)
        known = applied(conn)
        unknown = sorted(set(known) - set(migrations()))
        if unknown:
            raise SchemaNewer(
                f"the schema (release {before}) was installed by a later release than this package ({VERSION}): "
                "upgrade the package"
            )
        cur.execute(sql())  # type: ignore[arg-type, unused-ignore]
        cur.execute(
            "insert into absurd.settings (name, value) values ('version', %s) "
            "on conflict (name) do update set value = excluded.value",
            (VERSION,),
        )
        if fake_clock is not None:
            cur.execute("select absurd.set_fake_clock(%s)", (fake_clock,))
        ran = tuple(name for number, (name, _) in migrations().items() if number not in known)
    return Installed(before, VERSION, ran)


def installed_version(conn: Connection) -> str | None:
    """The installed release, `main` for a schema installed from plain SQL, None when there is no schema."""
    row = conn.execute("select to_regprocedure('absurd.get_schema_version()') is not null").fetchone()
    if row is None or not row[0]:
        return None
    row = conn.execute("select absurd.get_schema_version()").fetchone()
    return row[0] if row else None


def applied(conn: Connection) -> dict[int, str]:
    """number -> checksum of the migrations the database has."""
    row = conn.execute("select to_regclass('absurd.migrations') is not null").fetchone()
    if row is None or not row[0]:
        return {}
    return dict(conn.execute("select number, checksum from absurd.migrations").fetchall())


def pending(conn: Connection) -> tuple[str, ...]:
    """Names of the migrations an install would run."""
    have = applied(conn)
    return tuple(name for number, (name, _) in migrations().items() if number not in have)


def require(conn: Connection) -> str:
    """The installed release; raises SchemaMissing, naming the command that installs it."""
    version = installed_version(conn)
    if version is None:
        raise SchemaMissing("the absurd schema is not installed in this database: run `absurdctl init`")
    return version


def uninstall(conn: Connection) -> None:
    """Drop the schema with every queue, task and event in it."""
    with conn.transaction():
        conn.execute("select pg_advisory_xact_lock(7164223061)")
        conn.execute("drop schema if exists absurd cascade")
