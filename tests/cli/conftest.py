"""absurdctl in this process: what it was asked, what it said, and golden texts to hold that against."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from absurd.cli.main import cli
from tests.cli.engine import Engine
from tests.fixtures.clock import Clock
from tests.fixtures.postgres import Connection

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
GOLDEN = Path(__file__).parent / "golden"

_ID = re.compile(r"\b([0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{8})([0-9a-f]{4})\b")


@dataclass
class Said:
    """The answer of one run."""

    code: int
    out: str
    err: str


@dataclass
class Shell:
    """Runs absurdctl against a database, at the moment `now`; keeps a transcript."""

    url: str
    now: datetime = START
    transcript: list[str] = field(default_factory=list)
    _ids: dict[str, int] = field(default_factory=dict)

    def run(self, *args: object, input: str | None = None, url: str | None = None) -> Said:
        """One command; `url` instead of the test's own database."""
        words = [str(each) for each in args]
        clock = f"-c absurd.fake_now={self.now.isoformat()}"
        target = make_conninfo(url or self.url, options=clock)
        result = CliRunner().invoke(cli, words, input=input, env={"ABSURD_DATABASE_URL": target, "COLUMNS": "100"})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        said = Said(result.exit_code, result.stdout, result.stderr)
        asked = f"$ {shlex.join(['absurdctl', *words])}\n"
        stderr = "".join(f"! {line}\n" for line in said.err.splitlines())
        self.transcript.append(f"{asked}{said.out}{stderr}[exit code {said.code}]\n")
        return said

    def later(self, seconds: float) -> None:
        """Move the clock on."""
        self.now += timedelta(seconds=seconds)

    def matches(self, name: str) -> None:
        """Hold everything since the last call against golden/NAME.txt; UPDATE_GOLDEN=1 rewrites that file."""
        text = self._normal("\n".join(self.transcript))
        self.transcript.clear()
        path = GOLDEN / f"{name}.txt"
        if os.environ.get("UPDATE_GOLDEN"):
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is missing: run with UPDATE_GOLDEN=1 and read what it writes"
        assert text == path.read_text(encoding="utf-8")

    def _normal(self, text: str) -> str:
        parts = conninfo_to_dict(self.url)
        text = text.replace(str(parts["dbname"]), "<database>").replace(str(parts.get("host")), "<server>")
        return _ID.sub(self._name, text)

    def _name(self, found: re.Match[str]) -> str:
        number = self._ids.setdefault(found[1], len(self._ids) + 1)
        run = int(found[2], 16)
        return f"<run {number}.{run}>" if run else f"<task {number}>"


@pytest.fixture
def shell(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """absurdctl on this test's database, with the settings of whoever runs the tests out of the way."""
    for name in ("ABSURD_DATABASE_URL", "PGDATABASE", "PGHOST", "PGPORT", "PGUSER", "PGPASSWORD"):
        monkeypatch.delenv(name, raising=False)
    return Shell(database_url)


@pytest.fixture
def engine(conn: Connection, clock: Clock) -> Engine:
    """The engine on queue `orders`, at START."""
    clock.set(conn, START)
    return Engine(conn)
