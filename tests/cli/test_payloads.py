"""Params and payloads from the command line: texts, JSON, paths, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.conftest import Shell
from tests.cli.engine import Engine
from tests.fixtures.postgres import Connection


def stored(conn: Connection) -> Any:
    row = conn.execute("select params from absurd.tasks").fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize(
    ("words", "params"),
    [
        ([], {}),
        (["--params", "null"], None),
        (["--params", '{"a": [1, 2.5, "x"]}'], {"a": [1, 2.5, "x"]}),
        (["--params", '"text"'], "text"),
        (["-P", "a=1", "--param", "b:=1"], {"a": "1", "b": 1}),
        (["-P", "a=x=y", "-P", "b="], {"a": "x=y", "b": ""}),
        (["-P", "a=b:=1"], {"a": "b:=1"}),
        (["-P", "u:rl=x"], {"u:rl": "x"}),
        (["-P", "a.b.c=x", "-P", "a.b.d:=null", "-P", "a.e:=[1]"], {"a": {"b": {"c": "x", "d": None}, "e": [1]}}),
        (["--params", '{"a": {"b": 1}}', "-P", "a.c:=2"], {"a": {"b": 1, "c": 2}}),
        (["-P", 'name=Grüße "quoted"'], {"name": 'Grüße "quoted"'}),
    ],
)
def test_params_are_stored_as_given(
    shell: Shell, engine: Engine, conn: Connection, words: list[str], params: Any
) -> None:
    assert shell.run("spawn-task", "t", "-q", "orders", *words).code == 0
    assert stored(conn) == params


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["-P", "a:=x"], "'a:=x'"),
        (["-P", "a:=x"], """It would be  'a:=["a", 1]', or a=text"""),
        (["--params", "{id: 7}"], """--params '{"id": 7, "name": "ada"}'"""),
        (["-P", "a:=NaN"], "NaN"),
        (["-P", "a"], "key=text or key:=json"),
        (["-P", "=a"], "key=text or key:=json"),
        (["-P", ":=1"], "key=text or key:=json"),
        (["-P", "a..b=1"], "empty"),
        (["-P", "a=1", "-P", "a.b=1"], "'a' has a value already"),
        (["--params", "[1]", "-P", "a=1"], "--params is none"),
        (["--params", "{a: 1}"], "--params"),
        (["--params", ""], "--params"),
        (["-H", "a:=x"], "'-H' / '--header'"),
        (["--params", '"\\u0000"'], "NUL"),
        (["--params", "1e5000"], "the number 1e5000 has more than 4,300 digits"),
        (["-P", "a:=1e5000"], "'a:=1e5000'"),
        (["--params", "[" * 300 + "0.5" + "]" * 300], "nested deeper than 200 levels"),
        (["--params", "[" * 900 + "0.5" + "]" * 900], "nested"),
    ],
)
def test_what_cannot_be_read_is_a_usage_error_that_names_it(
    shell: Shell, engine: Engine, conn: Connection, words: list[str], named: str
) -> None:
    said = shell.run("spawn-task", "t", "-q", "orders", *words)
    assert said.code == 2
    assert named in said.err
    assert conn.execute("select count(*) from absurd.tasks").fetchone() == (0,)


LONG = "0.1234567890123456789012345"


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--params", LONG], LONG),
        (["--params", f'{{"a": [1e400, {LONG}, 1234567890123456789]}}'], f'{{"a": [1e400, {LONG}, 1234567890123456789]}}'),
        (["--params", f'{{"a": {{"x": {LONG}}}}}', "-P", f"a.b:={LONG}", "-P", "c:=1e-30"],
         f'{{"a": {{"b": {LONG}, "x": {LONG}}}, "c": 1e-30}}'),
        (["-P", "a:=99.90", "-P", "b=99.90"], '{"a": 99.90, "b": "99.90"}'),
    ],
)  # fmt: skip
def test_no_digit_that_was_typed_is_lost(
    shell: Shell, engine: Engine, conn: Connection, words: list[str], kept: str
) -> None:
    assert shell.run("spawn-task", "t", "-q", "orders", *words).code == 0
    event = [word.replace("--params", "--payload") for word in words]
    assert shell.run("emit-event", "e", "-q", "orders", *event).code == 0
    for column in ("params from absurd.tasks", "payload from absurd.emitted_events"):
        row = conn.execute(
            f"select x::text, (%s::jsonb)::text from (select {column}) y (x)".encode(), (kept,)
        ).fetchone()
        assert row is not None
        assert row[0] == row[1]
    assert (LONG in kept) == (LONG in shell.run("list-events", "-q", "orders", "--json").out)


def test_a_header_keeps_its_number_or_is_refused(shell: Shell, engine: Engine, conn: Connection) -> None:
    assert shell.run("spawn-task", "t", "-q", "orders", "-H", "a:=0.5", "-H", "b:=[1e2]").code == 0
    assert conn.execute("select headers::text from absurd.tasks").fetchall() == [('{"a": 0.5, "b": [100.0]}',)]
    for number in (LONG, "1e400"):
        said = shell.run("spawn-task", "t", "-q", "orders", "-H", f"a:={number}")
        assert said.code == 2
        assert "would lose digits here; make it a text" in said.err


def test_a_bad_payload_names_its_option(shell: Shell, engine: Engine) -> None:
    for words in (["--payload", "{"], ["-P", "a:={"]):
        said = shell.run("emit-event", "e", "-q", "orders", *words)
        assert said.code == 2
        assert words[0] in said.err


def test_an_event_without_payload_carries_null(shell: Shell, engine: Engine, conn: Connection) -> None:
    shell.run("emit-event", "e", "-q", "orders")
    assert conn.execute("select payload from absurd.events").fetchone() == (None,)
    assert conn.execute("select payload::text from absurd.events").fetchone() == ("null",)


def test_options_of_a_spawn_are_stored_zeros_too(shell: Shell, engine: Engine, conn: Connection) -> None:
    words = ["--retry-base", 0, "--max-duration", 0, "-H", "a=b", "-H", "n:=1"]
    assert shell.run("spawn-task", "t", "-q", "orders", *words).code == 0
    row = conn.execute("select retry_strategy, cancellation, headers, max_attempts from absurd.tasks").fetchone()
    assert row == ({"kind": "exponential", "base_seconds": 0}, {"max_duration": 0}, {"a": "b", "n": 1}, 5)
    assert conn.execute("select cancellation->>'max_duration' from absurd.tasks").fetchone() == ("0",), "an integer"
    for text in ("much", "nan", "inf"):
        assert shell.run("spawn-task", "t", "-q", "orders", "--max-delay", text).code == 2


def test_the_queues_own_default_of_attempts_beats_the_clients(shell: Shell, engine: Engine, conn: Connection) -> None:
    shell.run("queue-policy", "orders", "--default-max-attempts", 2)
    shell.run("spawn-task", "t", "-q", "orders")
    assert conn.execute("select max_attempts from absurd.tasks").fetchone() == (2,)


def test_every_read_prints_json_with_the_same_keys_every_time(shell: Shell, engine: Engine) -> None:
    task = engine.spawn("ship")
    engine.emit("e")
    reads: dict[str, tuple[list[Any], set[str]]] = {
        "schema-version": ([], {"version", "package"}),
        "verify": ([], {"version", "package", "current", "violations"}),
        "list-queues": ([], {"queues"}),
        "list-tasks": (["-q", "orders"], {"tasks", "next"}),
        "dump-task": (["--task-id", task], {"why", "detail"}),
        "task-result": ([task], {"task_id", "queue_name", "state", "result", "failure"}),
        "list-events": (["-q", "orders"], {"events", "next"}),
    }
    for command, (words, keys) in reads.items():
        first = json.loads(shell.run(command, *words, "--json").out)
        assert set(first) == keys, command
        assert json.loads(shell.run(command, *words, "--json").out) == first, command


def test_pages_of_the_command_line_follow_one_another(shell: Shell, engine: Engine) -> None:
    for number in range(5):
        engine.spawn(f"t{number}")
        engine.emit(f"e{number}")
    for command, key, name in (("list-tasks", "tasks", "task_name"), ("list-events", "events", "event_name")):
        seen, after = [], []
        while True:
            page = json.loads(shell.run(command, "-q", "orders", "-l", 2, "--json", *after).out)
            seen += [each[name] for each in page[key]]
            if page["next"] is None:
                break
            after = ["--after", page["next"]]
        assert len(seen) == len(set(seen)) == 5


def test_long_work_draws_a_bar_where_somebody_watches_and_prints_lines_elsewhere(
    shell: Shell, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        engine.emit(f"e{number}")
    shell.later(60)
    monkeypatch.setattr("absurd.cli.output.interactive", lambda: True)
    said = shell.run("cleanup", "orders", 0, "-l", 2)
    assert said.out == "Cleanup complete: 0 tasks, 3 events deleted in 2 iterations\n"
    assert "Deleting" in said.err
