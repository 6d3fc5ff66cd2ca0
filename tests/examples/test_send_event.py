"""What `send_event.py` and `event_demo.py` say when something is wrong, and with which exit code."""

from __future__ import annotations

import shlex

import pytest

from absurd import Absurd
from tests.examples.conftest import Run
from tests.examples.order import Connection


@pytest.mark.parametrize("payload", ["{", "", "{'amount': 1}", "NaN", '{"amount": Infinity}', "[" * 100_000, "1 2"])
def test_bad_json_is_one_line_and_exit_2(payload: str, run: Run, app: Absurd, conn: Connection) -> None:
    done = run("send_event.py", "payment.confirmed:order-1", "--payload", payload)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --payload is not valid JSON: ")
    example = shlex.split(done.stderr.split("like this: ")[1])
    assert run("send_event.py", "another", *example).returncode == 0, "the example in the message is valid"
    assert done.stderr.count("\n") == 1
    assert conn.execute("select event_name from absurd.events").fetchall() == [("another",)]


@pytest.mark.parametrize("payload", ['"\\u0000"', '{"half": "\\ud800"}'])
def test_json_that_postgres_cannot_keep_is_exit_2_too(payload: str, run: Run, app: Absurd) -> None:
    done = run("send_event.py", "a", "--payload", payload)

    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_an_unknown_queue_is_one_line_that_names_the_others_and_exit_3(run: Run, app: Absurd) -> None:
    app.create_queue("reports")

    done = run("send_event.py", "daily.report.ready", "--queue", "report")

    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "error: queue 'report' does not exist; there are: examples, reports\n"


def test_a_missing_schema_is_one_line_and_exit_1_and_nothing_is_installed(
    run: Run, empty_database_url: str, connect: object
) -> None:
    done = run("send_event.py", "a", url=empty_database_url)

    assert (done.returncode, done.stdout) == (1, "")
    assert "absurdctl init" in done.stderr
    assert done.stderr.count("\n") == 1
    assert connect(empty_database_url).execute("select to_regnamespace('absurd')").fetchone() == (None,)  # type: ignore[operator]


@pytest.mark.parametrize(("program", "arguments"), [("send_event.py", ["a"]), ("event_demo.py", ["spawn", "order-1"])])
def test_no_database_is_exit_1_and_no_traceback(program: str, arguments: list[str], run: Run) -> None:
    done = run(program, *arguments, url="postgresql://nobody@localhost:1/nowhere")

    assert done.returncode == 1
    assert "cannot connect" in done.stderr or "connection failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_event_goes_to_the_queue_that_is_named(run: Run, app: Absurd, conn: Connection) -> None:
    app.create_queue("reports")

    done = run("send_event.py", "daily.report.ready", "--queue", "reports", "--payload", '{"date": "2025-01-01"}')

    assert done.stdout.startswith("Emitting event to queue 'reports':\n  Event name: daily.report.ready\n")
    assert conn.execute("select payload from absurd.e_reports").fetchall() == [({"date": "2025-01-01"},)]


def test_an_event_without_payload_carries_null(run: Run, app: Absurd) -> None:
    done = run("send_event.py", "order.completed")

    assert "  Payload: null\n" in done.stdout
    assert done.returncode == 0


def test_an_event_that_was_emitted_before_is_not_said_to_be_emitted(run: Run, app: Absurd) -> None:
    app.emit_event("order.completed", {"first": True})

    done = run("send_event.py", "order.completed", "--payload", '{"first": false}')

    assert done.returncode == 0
    assert "emitted before" in done.stdout
    assert "successfully" not in done.stdout


def test_the_demo_installs_an_absent_schema_and_says_so_on_stderr(run: Run, empty_database_url: str) -> None:
    first = run("event_demo.py", "spawn", "order-1", url=empty_database_url)
    again = run("event_demo.py", "spawn", "order-2", url=empty_database_url)

    assert (first.returncode, again.returncode) == (0, 0)
    assert first.stderr == "Installing the absurd schema, which this database does not have yet\n"
    assert again.stderr == ""
    assert again.stdout.startswith("Absurd Event-Driven Workflow Demo\n")


@pytest.mark.parametrize(
    "arguments", [["spawn"], ["swpan", "order-1"], ["--payment-timeout", "-1"], ["spawn", "a", "b"]]
)
def test_a_wrong_command_line_is_exit_2(arguments: list[str], run: Run) -> None:
    done = run("event_demo.py", *arguments)

    assert (done.returncode, done.stdout) == (2, "")
