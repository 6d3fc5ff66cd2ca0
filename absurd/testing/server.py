"""The server of a test session, and a fresh database for each test."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from absurd import embedded, schema
from absurd.errors import ConfigError

URL = "ABSURD_TEST_DATABASE_URL"
_PREFIX = "absurd-pytest-"
_UNSAFE_AND_FAST = {"fsync": "off", "full_page_writes": "off"}

Connection = psycopg.Connection[Any]


class Server:
    """A PostgreSQL on which a test session makes its databases.

    `maintenance_url`: one of its databases; `owned`: whether it is the session's own, and goes with it.
    """

    def __init__(self, maintenance_url: str, name: str, *, owned: bool) -> None:
        self.maintenance_url = maintenance_url
        self.owned = owned
        self._name = name
        self._numbers = itertools.count()

    def url(self, database: str) -> str:
        """The URL of another database of this server."""
        return psycopg.conninfo.make_conninfo(self.maintenance_url, dbname=database)

    @contextlib.contextmanager
    def database(self, template: str | None = None) -> Iterator[str]:
        """Make a database, a copy of `template` if given, and yield its name; drop it at the end, with whoever is in it."""
        name = f"{self._name}_{next(self._numbers)}"
        make = sql.SQL("create database {} template {}").format(
            sql.Identifier(name), sql.Identifier(template or "template0")
        )
        if self.owned:  # copies files where that costs no flush to disk
            make += sql.SQL(" strategy file_copy")
        try:
            self._run(make)
        except psycopg.errors.InsufficientPrivilege as error:
            raise ConfigError(f"the user of {URL} may not create databases: alter role ... createdb") from error
        try:
            yield name
        finally:
            self._run(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    @contextlib.contextmanager
    def template(self, prepare: Callable[[Connection], Any]) -> Iterator[str]:
        """A database with the schema, the test clock on, and what `prepare(conn)` adds: to copy from."""
        with self.database() as name:
            with psycopg.connect(self.url(name), autocommit=True) as conn:
                schema.install(conn, fake_clock=True)
                prepare(conn)
            yield name

    def _run(self, statement: sql.SQL | sql.Composed) -> None:
        with psycopg.connect(self.maintenance_url, autocommit=True, connect_timeout=10) as conn:
            conn.execute(statement)


def start(folder: Path, process: str) -> Server:
    """The server of `ABSURD_TEST_DATABASE_URL`, else an embedded one in `folder`, shared by all who name the same folder.

    `process` distinguishes the databases of one process of the session from those of the others.
    """
    name = f"{folder.name}-{process}".replace("-", "_")
    given = os.environ.get(URL)
    if given:
        url = embedded.resolve(given) if embedded.is_embedded_url(given) else given
        return Server(url, name, owned=False)
    _sweep()
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)  # root's servers run as a system user, who has to get in
    server = embedded.start(folder, settings=_UNSAFE_AND_FAST)
    return Server(server.url("postgres"), name, owned=True)


def new_folder() -> Path:
    """A folder for the server of this session; not made yet, and named after this process, so that its end can be seen."""
    return _parent() / f"{_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:8]}"


def remove(folder: Path) -> None:
    """Stop the server of a session, if it was ever started, and remove all of it."""
    if folder.exists():
        data = (folder / "data").resolve()
        with contextlib.suppress(OSError, embedded.EmbeddedError):
            embedded.stop(folder, "immediate")
        for each in {data.parent, folder}:  # root's data may stand elsewhere, behind a link
            shutil.rmtree(each, ignore_errors=True)


def _parent() -> Path:
    short = Path("/tmp")  # a socket path must not be long
    return short if short.is_dir() and os.access(short, os.W_OK) else Path(tempfile.gettempdir())


def _sweep() -> None:
    """Remove what killed sessions left behind."""
    for folder in _parent().glob(f"{_PREFIX}*"):
        owner = folder.name.removeprefix(_PREFIX).split("-", 1)[0]
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == os.geteuid() and owner.isdigit() and not _alive(int(owner)):
                remove(folder)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
