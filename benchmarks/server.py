"""The one server of a run, and its databases: a template per prefilled state, a copy of it for every single run."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from absurd import embedded

SHOWN = (
    "server_version",
    "shared_buffers",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "max_wal_size",
    "max_connections",
    "autovacuum",
    "jit",
)
_LARGE_BYTES = 64 * 1024 * 1024


class Server:
    """A running embedded PostgreSQL 18 with the wheel's stock settings, on a unix socket."""

    def __init__(self, embedded_server: embedded.EmbeddedServer) -> None:
        self._server = embedded_server
        self.conn = psycopg.connect(embedded_server.url("postgres"), autocommit=True)
        self._templates: set[str] = set()

    @property
    def pid(self) -> int:
        """The postmaster."""
        pid = self._server.pid
        if pid is None:
            raise RuntimeError("the server of the benchmark is gone")
        return pid

    def url(self, database: str) -> str:
        """A libpq URL."""
        return self._server.url(database)

    def program(self, name: str) -> Path:
        """pgbench, psql and so on."""
        return self._server.program(name)

    def settings(self) -> dict[str, str]:
        """The settings that matter, as the server states them."""
        return {name: str(self._scalar(sql.SQL("show {}").format(sql.Identifier(name)))) for name in SHOWN}

    def template(self, name: str, make: Callable[[str], None]) -> str:
        """The name of a database in this state; `make(url)` brings a fresh one there, once."""
        database = f"template_{name}".replace("-", "_")
        if database not in self._templates:
            self.drop(database)
            self._do("create database {}", database)
            make(self.url(database))
            with psycopg.connect(self.url(database), autocommit=True) as conn:
                conn.execute("vacuum analyze")
            self._templates.add(database)
        return database

    @contextlib.contextmanager
    def copy(self, template: str) -> Iterator[str]:
        """The URL of a database like the template, for one run."""
        self.drop("bench_run")
        size = self._scalar(sql.SQL("select pg_database_size({})").format(sql.Literal(template)))
        # A small copy goes through the WAL and leaves no checkpoint behind; a large one would flood it.
        strategy = "file_copy" if size > _LARGE_BYTES else "wal_log"
        self._do("create database {} template {} strategy {}", "bench_run", template, strategy)
        try:
            yield self.url("bench_run")
        finally:
            self.drop("bench_run")

    def drop(self, database: str) -> None:
        """Drop a database, whoever is connected."""
        self._do("drop database if exists {} with (force)", database)

    def forget_filled(self) -> None:
        """Drop all templates but the empty ones, which every row needs."""
        for database in [name for name in self._templates if not name.endswith("_base")]:
            self.drop(database)
            self._templates.discard(database)

    def _do(self, text: str, *names: str) -> None:
        self.conn.execute(sql.SQL(text).format(*(sql.Identifier(name) for name in names)))

    def _scalar(self, query: Any) -> Any:
        row = self.conn.execute(query).fetchone()
        return row[0] if row else None


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """Start a server in a new temporary folder; stop it and remove the folder in the end."""
    folder = tempfile.mkdtemp(prefix="absurd-bench-")
    os.chmod(folder, 0o755)  # the server may run as another user
    started = embedded.start(folder, 18)
    try:
        server = Server(started)
        yield server
        server.conn.close()
    finally:
        embedded.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


def machine(server: Server) -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("model name", 1)[-1].split("\n", 1)[0].strip("\t: ")
    memory = int(Path("/proc/meminfo").read_text(encoding="utf-8").split()[1]) // 1024
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_mb": memory,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "settings": server.settings(),
    }
