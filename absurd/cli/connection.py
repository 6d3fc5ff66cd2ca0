"""Which database a command talks to, and the one connection it opens."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from absurd import embedded, queries, schema
from absurd.cli import output
from absurd.errors import ConfigError, ConnectionLost, QueueNotFound, SchemaMissing, SchemaOutdated
from absurd.queries import Query, queues

if TYPE_CHECKING:
    from absurd import Absurd

T = TypeVar("T")

_DEFAULT = "postgresql://localhost/absurd"
_NEARLY = ("embedded", "embeded")
_SCHEMES = ("postgresql", "postgres")
_QUEUE = "default"  # where none is named
_SHOWN = 10  # queues in a hint
_ENCODE = "write special characters of its user name and password percent-encoded: @ is %40, / is %2F, : is %3A"


@dataclass
class Target:
    """The connection options as given, before or after the command, and what was opened with them."""

    host: str | None = None
    port: str | None = None
    user: str | None = None
    database: str | None = None
    verbose: bool = False
    _opened: list[psycopg.Connection[Any]] = field(default_factory=list, repr=False)

    @cached_property
    def conninfo(self) -> str:
        """The libpq connection string; an `embedded:` server is started for it. ConfigError when it cannot be read."""
        given = self._given or _DEFAULT
        if embedded.is_embedded_url(given):
            return embedded.resolve(given)
        _recognised(given)
        options = {"host": self.host, "port": self.port, "user": self.user}
        if "://" not in given and "=" not in given:
            options["host"] = self.host or os.environ.get("PGHOST") or "localhost"
            options["port"] = self.port or os.environ.get("PGPORT") or "5432"
            options["user"] = self.user or os.environ.get("PGUSER") or os.environ.get("USER")
            given = make_conninfo(dbname=given)
        return _checked(given, {name: value for name, value in options.items() if value})

    @property
    def _given(self) -> str | None:
        return self.database or os.environ.get("ABSURD_DATABASE_URL") or os.environ.get("PGDATABASE")

    @property
    def where(self) -> str:
        """The database for messages: name, server, user; never a password."""
        parts = conninfo_to_dict(self.conninfo)
        host = parts.get("host") or parts.get("hostaddr") or os.environ.get("PGHOST") or "the local socket"
        port = parts.get("port") or os.environ.get("PGPORT") or "5432"
        server = str(host) if str(host).startswith(("/", "the ")) else f"{host}:{port}"
        return f"database '{parts.get('dbname') or parts.get('user') or '(default)'}' on {server}"

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """The connection of this command, opened on first use, in autocommit."""
        if not self._opened:
            if self.verbose:
                output.note(f"connecting to {self.where}")
            options = {"fallback_application_name": "absurdctl", "connect_timeout": 10}
            if "connect_timeout" in self.conninfo:
                del options["connect_timeout"]
            try:
                self._opened.append(psycopg.connect(self.conninfo, autocommit=True, **options))  # type: ignore[arg-type]
            except psycopg.OperationalError as error:
                raise self._unreachable(error) from error
        return self._opened[0]

    def close(self) -> None:
        """Close what was opened."""
        while self._opened:
            self._opened.pop().close()

    def ask(self, query: Query[T]) -> T:
        """The answer of a question of the read model."""
        return queries.run(self.connection, query)

    def client(self, queue: str = _QUEUE) -> Absurd:
        """The public client on the command's connection."""
        from absurd import Absurd

        return Absurd(self.connection, queue_name=queue)

    def require_queue(self, name: str, *, create: bool = True) -> queues.Queue:
        """The queue, or QueueNotFound, which names those there are and, with `create`, the command that makes it."""
        found = self.ask(queues.get(name))
        if found is None:
            raise no_queue(name, [each.queue_name for each in self.ask(queues.find())], create=create)
        return found

    def explained(self, error: SchemaMissing) -> Exception:
        """What is wrong when a piece of the schema is not there: no schema, an older one, or a damaged one."""
        version = schema.installed_version(self.connection)
        if version is None:
            hint = "install it with `absurdctl init`, or name another database with -d or ABSURD_DATABASE_URL"
            if embedded.is_embedded_url(self._given or ""):
                hint += "; `embedded:` is a Postgres of the folder you are in"
            return SchemaMissing(f"the absurd schema is not installed in {self.where}", hint=hint)
        if version != schema.VERSION:
            return SchemaOutdated(f"the schema in {self.where} is release {version}, this absurdctl {schema.VERSION}")
        return error

    def _unreachable(self, error: psycopg.OperationalError) -> ConnectionLost:
        reason = str(error).strip().splitlines()[0].removeprefix("connection failed: ")
        hint = "start the server (`docker compose up -d`, or `absurdctl dev` for a private one), "
        hint += "or name another with -d or ABSURD_DATABASE_URL"
        if "authentication failed" in reason or "no password supplied" in reason:
            hint = "give the password in PGPASSWORD or ~/.pgpass, and the user with -U"
        elif re.search(r"failed to resolve host|could not translate host name", reason):
            hint = "check the name of the host, or name another with -d or ABSURD_DATABASE_URL"
        elif re.search(r'database ".*" does not exist', reason):
            hint = "create it with `createdb`, or name another with -d or ABSURD_DATABASE_URL"
        if self._given is None:
            hint = f"no database was named: `export ABSURD_DATABASE_URL=embedded:` starts a private one; else {hint}"
        return ConnectionLost(f"cannot connect to {self.where}: {scrubbed(reason)}", hint=hint)


def no_queue(name: str, names: list[str], *, create: bool = True) -> QueueNotFound:
    """There is no such queue, but those of `names`; with `create`, the command that makes it."""
    hint = _queue_hint(name, names)
    if name == _QUEUE and names:
        hint = f"say which with -q; {hint}"
    if create:
        hint += f"; create it with `absurdctl create-queue {shlex.quote(name)}`"
    return QueueNotFound(f"Queue '{name}' does not exist", hint=hint)


def _queue_hint(name: str, names: list[str]) -> str:
    if not names:
        return "there are no queues yet"
    close = output.meant(name, names)
    shown = [output.plain(each) for each in (close + [each for each in names if each not in close])[:_SHOWN]]
    more = f" and {len(names) - _SHOWN} more (`absurdctl list-queues`)" if len(names) > _SHOWN else ""
    listed = f"queues: {', '.join(shown)}{more}"
    return f"did you mean '{shown[0]}'? Existing {listed}" if close else f"existing {listed}"


def _recognised(given: str) -> None:
    """ConfigError for what is no PostgreSQL URL but looks like another one; only its scheme is quoted."""
    scheme = re.match(r"([A-Za-z][\w+.-]*)://", given)
    word = re.fullmatch(r"(\w+)(:.*)?", given, flags=re.S)
    if word and (get_close_matches(word[1].lower(), ["embedded"], cutoff=0.7) if word[2] else given in _NEARLY):
        hint = "did you mean embedded: (a private Postgres, in ./.absurd/pg18), or embedded:///directory?"
        if word[1] == given:
            hint += f" A database of that name is postgresql:///{given}"
        raise ConfigError(f"the database URL cannot be read: {word[1]!r} is no scheme", hint=hint)
    if scheme and scheme[1] not in _SCHEMES:
        raise ConfigError(
            f"the database URL cannot be read: its scheme is {scheme[1]!r}, expected postgresql",
            hint="write postgresql://USER@HOST:PORT/DATABASE, or embedded: for a private Postgres",
        )


def _checked(given: str, options: dict[str, str]) -> str:
    """The connection string with the options in it; one that libpq would misread is refused without quoting it."""
    try:
        parts = conninfo_to_dict(given, **options)
    except psycopg.Error:
        raise ConfigError("the database URL cannot be read", hint=_ENCODE) from None
    port = str(parts.get("port") or "")
    misread = any("@" in str(parts.get(name) or "") for name in ("host", "dbname"))
    if misread or not re.fullmatch(r"[0-9,]*", port):
        raise ConfigError("the database URL, or the port, cannot be read", hint=_ENCODE)
    return make_conninfo(given, **options) if options else given


def scrubbed(text: str) -> str:
    """The text without the passwords of URLs and connection strings in it."""
    text = re.sub(r"(\w+://[^\s:/@]*):[^\s@]*@", r"\1:***@", text)
    return re.sub(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)", r"\1***", text, flags=re.I)
