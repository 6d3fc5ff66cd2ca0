"""Every command of absurdctl with hostile words: a documented exit code, a message on stderr, nothing half-written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import psycopg
import pytest
from click.testing import CliRunner
from hypothesis import given, note
from hypothesis import strategies as st

from absurd.cli.main import SECTIONS, cli
from tests.fixtures.postgres import Connection, Databases
from tests.property import hostile
from tests.property.hostile import fuzz
from tests.property.population import QUEUE, Population, picture, populate, violations

COMMANDS = {str(command.name): command for commands in SECTIONS.values() for command in commands}
#: Serve for ever, write files or end the schema: only what they say to arguments they cannot take.
ARGUMENTS_ONLY = {"worker", "dev", "install-skill", "uninstall", "ui"}
#: From the help of absurdctl itself.
EXIT_CODES = {
    int(code) for code in re.findall(r"(\d+) (?:ok|failed|usage|not found|conflict|timed out)", str(cli.help))
}
#: Connection options: another database is not what is tried here, and -v shows tracebacks.
_CONNECTION = {"host", "port", "user", "database", "verbose"}
#: May wait for a minute, or for ever.
_LEFT_OUT = {"follow", "wait", "watch", "timeout"}
NUMBERS = st.sampled_from(
    ["0", "1", "-1", "1.5", "2147483647", "2147483648", "9" * 400, "NaN", "inf", "1e400", "x", ""]
)
MOMENTS = st.sampled_from(
    ["30m", "-1h", "9" * 30 + "d", "infinity", "2026-02-30", "9999-12-31", "0001-01-01", "1e9d", "now", ""]
)
PAIRS = st.sampled_from(
    ["a=b", "a.b=c", "a:=1", "a:=", "a:=NaN", ":=1", "=", "a:=1e400", 'a:="\\u0000"', "a.=1", "a..b=1", "a:=[" * 9]
)


class World(NamedTuple):
    """A populated database, and a connection beside the commands."""

    url: str
    conn: Connection
    population: Population

    def __repr__(self) -> str:
        return "the populated database"


@pytest.fixture(scope="module")
def world(databases: Databases, schema_template: str) -> Iterator[World]:
    with databases.fresh(schema_template) as name, psycopg.connect(databases.url(name), autocommit=True) as conn:
        yield World(databases.url(name), conn, populate(conn))


def words_for(parameter: click.Parameter, population: Population) -> st.SearchStrategy[str]:
    """What stands for one parameter: by its name, else by its type."""
    name, kind = str(parameter.name), type(parameter.type).__name__
    words = hostile.TEXTS
    if isinstance(parameter.type, click.Choice):
        words = st.sampled_from([str(choice) for choice in parameter.type.choices]) | words
    elif name in ("queue", "name") or name.endswith("queue"):
        words = st.sampled_from([QUEUE, QUEUE, "nowhere"]) | words
    elif kind == "Identifier" or "task_id" in name:
        words = st.sampled_from(sorted(population.tasks.values()) + sorted(population.runs.values())) | words
    elif kind == "Json" or name in ("payload", "params"):
        words = hostile.JSONS | words
    elif "Moment" in kind or "Span" in kind:
        words = MOMENTS | words
    elif "Number" in kind or "Int" in kind or "Float" in kind:
        words = NUMBERS | words
    elif name.endswith("pairs"):
        words = PAIRS | words
    return words


def draw_words(draw: hostile.Draw, command: click.Command, population: Population) -> list[str]:
    """Options of a command, few of them, then its arguments, mostly all."""
    words = []
    own = [each for each in command.params if each.name not in _CONNECTION and each.name not in _LEFT_OUT]
    options = [each for each in own if isinstance(each, click.Option) and each.name != "help"]
    for option in (
        draw(st.lists(st.sampled_from(options), max_size=4, unique_by=lambda each: each.name)) if options else []
    ):
        words.append(draw(st.sampled_from(option.opts)))
        if not option.is_flag:
            words.append(draw(words_for(option, population)))
    arguments = [each for each in own if isinstance(each, click.Argument)]
    tail = [draw(words_for(each, population)) for each in arguments if draw(st.integers(0, 9))]
    extra = draw(st.lists(hostile.TEXTS, max_size=1)) if draw(st.integers(0, 9)) == 0 else []
    return [*words, *(["--"] if draw(st.booleans()) else []), *tail, *extra]


def test_the_exit_codes_are_read_from_the_help() -> None:
    assert sorted(EXIT_CODES) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_that_does_not_exist_is_a_usage_error(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--no-such-option"])
    assert result.exit_code == 2
    assert "--no-such-option" in result.stderr


@pytest.mark.parametrize("name", sorted(ARGUMENTS_ONLY & set(COMMANDS)))
@fuzz(4)
@given(word=hostile.TEXTS, text=hostile.TEXTS)
def test_a_command_that_serves_refuses_what_it_cannot_take(name: str, word: str, text: str) -> None:
    result = CliRunner().invoke(cli, [name, "--no-such-" + word, text, text, text], env={"ABSURD_DATABASE_URL": ""})
    assert result.exit_code == 2
    assert result.stderr


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - ARGUMENTS_ONLY))
@fuzz(8)
@given(data=st.data())
def test_a_hostile_command_line_ends_with_a_documented_code_and_a_message(
    world: World, tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    words = draw_words(data.draw, COMMANDS[name], world.population)
    note(f"absurdctl {name} {words!r}")
    before = picture(world.conn, world.population)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(empty := Path(tmp_path_factory.mktemp("cwd")))
        result = CliRunner().invoke(cli, [name, *words], input="", env={"ABSURD_DATABASE_URL": world.url})
        assert list(empty.iterdir()) == []
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in EXIT_CODES
    assert "Traceback" not in result.stderr
    if result.exit_code != 0:
        assert result.stderr.strip()
        assert picture(world.conn, world.population) == before
    assert violations(world.conn) == []
    if not world.conn.execute("select from absurd.queues where queue_name = 'q'").rowcount:
        world.conn.execute("select absurd.create_queue('q')")


@pytest.mark.parametrize(
    "words",
    [["\udcff"], ["verify", "-q", "\udcff"], ["list-tasks", "-q", "\udcff", "--json"], ["spawn-task", "\udcff"]],
)
def test_a_byte_that_is_no_text_is_a_message_too(world: World, words: list[str]) -> None:
    result = CliRunner().invoke(cli, words, env={"ABSURD_DATABASE_URL": world.url})
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in (1, 2, 3)
    assert result.stderr.strip()
