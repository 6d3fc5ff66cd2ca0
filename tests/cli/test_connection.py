"""Which database is talked to, from options, the environment and defaults; and what is said when that fails."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator

import pytest
from click.testing import CliRunner
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from absurd.cli.connection import Target, scrubbed
from absurd.cli.main import cli
from absurd.errors import ConfigError
from tests.cli.conftest import Shell
from tests.cli.engine import Engine
from tests.fixtures.postgres import Connect, Connection


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ABSURD_DATABASE_URL", "PGDATABASE", "PGHOST", "PGPORT", "PGUSER", "PGPASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("USER", "ada")


def parts(target: Target) -> dict[str, str]:
    return {name: str(value) for name, value in conninfo_to_dict(target.conninfo).items()}


def test_the_default_is_localhost_absurd() -> None:
    assert parts(Target()) == {"host": "localhost", "dbname": "absurd"}


def test_a_plain_name_goes_with_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parts(Target(database="shop")) == {"dbname": "shop", "host": "localhost", "port": "5432", "user": "ada"}
    for name, value in {"PGHOST": "db", "PGPORT": "6000", "PGUSER": "eve", "PGDATABASE": "sales"}.items():
        monkeypatch.setenv(name, value)
    assert parts(Target()) == {"dbname": "sales", "host": "db", "port": "6000", "user": "eve"}
    assert parts(Target(host="other", port="1", user="me")) == {
        "dbname": "sales",
        "host": "other",
        "port": "1",
        "user": "me",
    }


def test_the_order_is_option_then_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDATABASE", "third")
    monkeypatch.setenv("ABSURD_DATABASE_URL", "postgresql://h/second")
    assert parts(Target(database="first"))["dbname"] == "first"
    assert parts(Target())["dbname"] == "second"
    monkeypatch.delenv("ABSURD_DATABASE_URL")
    assert parts(Target())["dbname"] == "third"


def test_options_replace_parts_of_a_url() -> None:
    target = Target(host="h2", port="7", user="u2", database="postgresql://u:pw@h:1/d?application_name=x")
    assert parts(target) == {
        "user": "u2",
        "password": "pw",
        "host": "h2",
        "port": "7",
        "dbname": "d",
        "application_name": "x",
    }


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:s3cr@t@localhost/db",
        "postgresql://u:s3/cr@localhost/db",
        "postgresql://u:12/s3cr@localhost/db",
        "postgresql://u:s3cr%zz@localhost/db",
        "host=localhost password='s3cr",
    ],
)
def test_a_url_that_libpq_would_misread_is_refused_without_being_quoted(shell: Shell, url: str) -> None:
    said = shell.run("list-queues", "-d", url, "-v")
    assert said.code == 2
    assert "%40" in said.err
    assert "s3" not in said.out + said.err


@pytest.mark.parametrize(
    "url", ["embeded:", "embedded", "embeded", "Embedded:///srv/pg", "embed:", "embeded://u:s3cret@h/d"]
)
def test_a_misspelt_embedded_is_asked_about(shell: Shell, url: str) -> None:
    said = shell.run("list-queues", "-d", url)
    assert said.code == 2
    assert "did you mean embedded:" in said.err
    assert "s3cret" not in said.err


@pytest.mark.parametrize("scheme", ["mysql", "postgress", "http"])
def test_another_scheme_is_refused_with_the_one_that_is_expected(shell: Shell, scheme: str) -> None:
    said = shell.run("list-queues", "-d", f"{scheme}://u:s3cret@h/d")
    assert said.code == 2
    assert f"its scheme is '{scheme}', expected postgresql" in said.err
    assert "s3cret" not in said.err


def test_without_any_database_the_private_one_is_offered_first(closed_port: int) -> None:
    words = ["list-queues", "-h", "127.0.0.1", "-p", str(closed_port)]
    said = CliRunner().invoke(cli, words)
    assert said.exit_code == 1
    assert "Hint: no database was named: `export ABSURD_DATABASE_URL=embedded:` starts a private one" in said.stderr
    assert "export" not in CliRunner().invoke(cli, [*words, "-d", "shop"]).stderr


@pytest.mark.parametrize("name", ["embeddings", "embed", "mysql", "embedded2"])
def test_a_name_that_only_resembles_is_a_name(name: str) -> None:
    assert parts(Target(database=name))["dbname"] == name


def test_a_port_must_be_a_number() -> None:
    with pytest.raises(ConfigError):
        Target(database="d", port="http").conninfo  # noqa: B018


def test_options_are_taken_before_and_after_the_command_and_the_last_wins(shell: Shell, engine: object) -> None:
    url = shell.url
    nowhere = "postgresql://127.0.0.1:1/nowhere"
    assert shell.run("-d", url, "list-queues", url=nowhere).out == "orders\n"
    assert shell.run("list-queues", "-d", url, url=nowhere).out == "orders\n"
    assert shell.run("-d", nowhere, "list-queues", "-d", url, url=nowhere).out == "orders\n"
    assert shell.run("-d", url, "list-queues", "--database", nowhere).code == 1


def test_host_port_and_user_find_the_database_by_name(shell: Shell, engine: object) -> None:
    known = conninfo_to_dict(shell.url)
    options = ["-h", known["host"], "-U", known["user"]]
    if "port" in known:
        options += ["-p", known["port"]]
    assert shell.run(*options, "list-queues", "-d", known["dbname"]).out == "orders\n"
    assert shell.run("list-queues", "-d", known["dbname"], *options).out == "orders\n"


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port nobody listens on, held so that nobody starts to."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_a_server_that_is_not_there_is_named_with_what_to_do(shell: Shell, closed_port: int) -> None:
    said = shell.run("list-queues", "-d", f"postgresql://u:s3cret@127.0.0.1:{closed_port}/shop")
    assert said.code == 1
    assert f"cannot connect to database 'shop' on 127.0.0.1:{closed_port}" in said.err
    assert "docker compose up -d" in said.err
    assert "s3cret" not in said.err
    assert said.out == ""


def test_a_database_that_is_not_there_is_named_with_what_to_do(shell: Shell) -> None:
    said = shell.run("list-queues", url=make_conninfo(shell.url, dbname="no_such_database"))
    assert said.code == 1
    assert "createdb" in said.err


def test_a_missing_schema_names_init_and_an_old_one_migrate(
    shell: Shell, empty_database_url: str, conn: Connection
) -> None:
    for command in (["list-tasks"], ["create-queue", "q"], ["emit-event", "e"], ["verify"], ["cleanup", "q", "1"]):
        said = shell.run(*command, url=empty_database_url)
        assert (said.code, said.out) == (1, ""), command
        assert "`absurdctl init`" in said.err, command
    conn.execute("drop function absurd.search_tasks")
    conn.execute("select absurd.create_queue('default')")
    conn.execute("update absurd.settings set value = '0.0.1' where name = 'version'")
    said = shell.run("list-tasks")
    assert said.code == 1
    assert "release 0.0.1" in said.err
    assert "`absurdctl migrate`" in said.err


def test_an_upgrade_held_up_names_who_holds_it_up(shell: Shell, conn: Connection, connect: Connect) -> None:
    conn.execute(sql.SQL("alter database {} set lock_timeout = '20ms'").format(sql.Identifier(conn.info.dbname)))
    with connect(autocommit=False) as reader:
        reader.execute("select from absurd.all_tasks")
        said = shell.run("init")
        reading = reader.info.backend_pid
    assert (said.code, said.out) == (1, "")
    error, hint = said.err.splitlines()
    assert error == "Error: the upgrade could not lock absurd.all_tasks within 0.02 s"
    assert hint.startswith(f"Hint: Process {reading} has used it since ")


def test_verbose_says_where_without_the_password(shell: Shell, engine: object) -> None:
    said = shell.run("list-queues", "-v", url=make_conninfo(shell.url, password="s3cret"))
    assert said.out == "orders\n"
    assert f"connecting to database '{conninfo_to_dict(shell.url)['dbname']}'" in said.err
    assert "s3cret" not in said.err


def test_verbose_shows_the_traceback_of_a_failure(shell: Shell) -> None:
    assert "Traceback" not in shell.run("list-tasks").err
    assert "Traceback" in shell.run("list-tasks", "-v").err


def test_w30_init_switches_the_test_clock_off_unless_asked(
    shell: Shell, empty_database_url: str, conn: Connection
) -> None:
    shell.url = empty_database_url
    shell.run("init")
    shell.run("create-queue", "q")
    assert shell.now.isoformat()[:10] not in shell.run("list-queues", "--json").out
    shell.run("init", "--fake-clock")
    shell.run("create-queue", "r")
    assert shell.now.isoformat()[:10] in shell.run("list-queues", "--json").out


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql://u:pw@h/d!", "at postgresql://u:***@h/d!"),
        ("host=h password=pw dbname=d", "host=h password=*** dbname=d"),
        ("password = 'a b' x", "password = *** x"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("time 12:30 me@example.org", "time 12:30 me@example.org"),
    ],
)
def test_passwords_are_scrubbed_from_what_others_say(text: str, shown: str) -> None:
    assert scrubbed(text) == shown


def test_w36_the_command_line_starts_no_other_program(shell: Shell, engine: Engine, monkeypatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "posix_spawn", refuse)
    monkeypatch.setattr(os, "fork", refuse)
    large = json.dumps("x" * 300_000)
    assert shell.run("spawn-task", "t", "-q", "orders", "--params", large).code == 0
    assert shell.run("list-tasks", "-q", "orders").code == 0
