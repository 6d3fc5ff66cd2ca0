"""The servers that get crashed: the ordinary one, and one whose disk is a small tmpfs that can be filled up."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from absurd import embedded, schema
from tests.fixtures.servers import _bindir, _session_folder

DISK = "160m"
#: every segment of the log is made when it is needed, so that a full disk can hit that, too
SMALL = {"max_wal_size": "48MB", "min_wal_size": "32MB", "wal_recycle": "off", "max_connections": "80"}

TABLES = """
    create schema chaos;
    create table chaos.effects (
      task_id uuid not null, step text not null, attempt integer not null, token text not null, worker text not null,
      at timestamptz not null default clock_timestamp());
    create table chaos.moves (
      task_id uuid not null, attempt integer not null, token text not null, worker text not null,
      at timestamptz not null default clock_timestamp());
    comment on schema chaos is 'What tasks of the chaos suite did; without any key, so that nothing hides a second time';
"""


class NoDisk(Exception):
    """Why there can be no round on a full disk here."""


class Server:
    """One Postgres: with our schema, and one connection of ours that never goes through the proxy."""

    def __init__(self, folder: Path, settings: dict[str, str] | None = None, breakage: str = "") -> None:
        self._folder, self._settings = folder, settings or {}
        wanted = os.environ.get("PG") or "18"
        self._version = wanted if wanted.isdigit() else "18"
        self._lock = threading.RLock()
        self._conn: psycopg.Connection[Any] | None = None
        self.start()
        with psycopg.connect(self.url, autocommit=True) as conn:
            schema.install(conn)
            conn.execute(TABLES)
            if breakage:
                conn.execute(breakage)

    @property
    def url(self) -> str:
        return self.embedded.url()

    @property
    def socket(self) -> str:
        return str(self.embedded.socket_directory / ".s.PGSQL.5432")

    def start(self) -> None:
        """Start it, or find it running; return when it answers."""
        self.embedded = embedded.start(
            self._folder, int(self._version), settings=self._settings, bindir=_bindir(self._version)
        )

    def crash(self, *, kill: bool) -> None:
        """Leave without a word: by an immediate stop, or by SIGKILL of the postmaster."""
        pid = self.embedded.pid
        if kill and pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            while self.embedded.running:
                time.sleep(0.01)
        else:
            self.embedded.stop("immediate")

    def ask(self, query: str, *parameters: Any, patience: float = 60.0) -> list[Any]:
        """The rows of a query; asked again for as long as the server is away."""
        deadline = time.monotonic() + patience
        with self._lock:
            while True:
                try:
                    if self._conn is None or self._conn.closed:
                        self._conn = psycopg.connect(
                            self.url, autocommit=True, application_name="chaos", connect_timeout=5
                        )
                    return self._conn.execute(query, parameters or None).fetchall()
                except psycopg.OperationalError:
                    if self._conn is not None:
                        self._conn.close()
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)  # nobody tells when a server that crashed answers again: only an answer does

    def need_log(self) -> None:
        """Let the next write need a new segment of the log; without space for it the server ends."""
        with contextlib.suppress(psycopg.Error), self.connect() as conn:
            conn.execute("select pg_switch_wal()")
            conn.execute("select pg_logical_emit_message(true, 'chaos', repeat('x', 1000))")

    def one(self, query: str, *parameters: Any) -> Any:
        return self.ask(query, *parameters)[0][0]

    def connect(self) -> psycopg.Connection[Any]:
        """A connection for the checks."""
        return psycopg.connect(self.url, autocommit=True, application_name="chaos")

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()
        self.embedded.stop("immediate")


class SmallDisk:
    """A tmpfs below a folder; it can be filled to the last byte, and freed again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Take what is free, until there is nothing."""
        with open(self._ballast, "ab") as file, contextlib.suppress(OSError):
            while free := shutil.disk_usage(self.folder).free:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), free)

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk() -> Iterator[SmallDisk]:
    """Mount one; NoDisk says why that cannot be done here."""
    if not sys.platform.startswith("linux"):
        raise NoDisk(f"a small tmpfs needs Linux, and this is {sys.platform}")
    if os.geteuid() != 0:
        raise NoDisk("mounting a small tmpfs needs root")
    with own_folder() as outer:
        folder = outer / "disk"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0755", "tmpfs", str(folder)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise NoDisk(f"mounting a small tmpfs failed: {done.stderr.strip()}")
        try:
            yield SmallDisk(folder)
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def own_folder() -> contextlib.AbstractContextManager[Path]:
    """A short folder that a system user can enter; servers in it end with it, at the latest when the next one is made."""
    return _session_folder()
