"""Setup: install, upgrade, check and remove the schema."""

from __future__ import annotations

import re
from typing import Any

import click

from absurd import schema
from absurd.cli import output
from absurd.cli.connection import Target
from absurd.cli.options import Command, confirm, json_option, pass_target, yes_option
from absurd.errors import SchemaMissing, SchemaNewer
from absurd.queries import health
from absurd.schema import grants

_SOURCE = "bundle"


@click.command(cls=Command)
@click.option("--ref", metavar="REF", help="Release to install; this package carries one, and that is the default.")
@click.option("--fake-clock", is_flag=True, help="Let sessions set the clock (absurd.fake_now): for tests only.")
@pass_target
def init(target: Target, ref: str | None, fake_clock: bool) -> None:
    """Install the schema, or bring it up to date.

    One transaction, safe to repeat; data stays. The test clock is switched off unless --fake-clock is given.

    \b
    Examples:
      absurdctl init
      absurdctl init -d postgresql://me@db.example/orders
    """
    _carried(ref, "--ref")
    schema.install(target.connection, fake_clock=fake_clock)
    output.line(f"Absurd schema initialized successfully ({schema.VERSION} via {_SOURCE})")


@click.command("schema-version", cls=Command)
@json_option
@pass_target
def schema_version(target: Target, as_json: bool) -> None:
    """Print the release of the installed schema, or `unknown`.

    \b
    Example:
      absurdctl schema-version
    """
    version = schema.installed_version(target.connection)
    if as_json:
        output.data({"version": version, "package": schema.VERSION})
    else:
        output.line(version or "unknown")


@click.command(cls=Command)
@click.option("--from", "start", metavar="VERSION", help="The release to come from, instead of asking the database.")
@click.option("--to", "end", metavar="VERSION", help="The release to go to; this package carries one.")
@click.option("--dry-run", is_flag=True, help="Print the plan and change nothing.")
@click.option("--dump-sql", is_flag=True, help="Print the SQL and change nothing; asks no database, so needs --from.")
@pass_target
def migrate(target: Target, start: str | None, end: str | None, dry_run: bool, dump_sql: bool) -> None:
    """Bring an installed schema up to this package's release.

    One transaction: the migrations not yet applied, then every function and view anew. Never downgrades.

    \b
    Examples:
      absurdctl migrate --dry-run
      absurdctl migrate --from 0.1.0 --dump-sql > upgrade.sql
    """
    if dump_sql:
        if start is None:
            raise click.UsageError("--dump-sql needs --from VERSION.")
        _carried(end, "--to")
        output.line(schema.script().rstrip("\n"))
        return
    installed = schema.installed_version(target.connection)
    if installed is None:
        raise SchemaMissing(f"there is no schema to migrate in {target.where}", hint="install it with `absurdctl init`")
    _carried(end, "--to")
    current = start or installed
    pending = schema.pending(target.connection)
    if _key(current) > _key(schema.VERSION):
        raise SchemaNewer(f"the schema is release {current}, this absurdctl carries {schema.VERSION}")
    if current == schema.VERSION and not pending:
        output.line(f"Absurd schema already at {schema.VERSION}")
        return
    output.line(f"Migration plan from {current} to {schema.VERSION}:")
    for name in [*(f"{each}.sql" for each in pending), "absurd.sql"]:
        output.line(f"  - {name} [{_SOURCE}]")
    if not dry_run:
        schema.install(target.connection)
        output.line(f"Absurd schema migrated successfully to {schema.VERSION}")


@click.command(cls=Command)
@click.option("-q", "--queue", metavar="NAME", help="Check this queue only.")
@json_option
@pass_target
def verify(target: Target, queue: str | None, as_json: bool) -> int:
    """Check the schema's release and the rules of its rows.

    Reads every row; prints the rows that break a rule. Exit code 1 when a rule is broken or the schema is of another release.

    \b
    Examples:
      absurdctl verify
      absurdctl verify -q orders --json
    """
    version = schema.installed_version(target.connection)
    if queue is not None:
        target.require_queue(queue)
    found = target.ask(health.violations(queue))
    current = version == schema.VERSION
    if as_json:
        output.data({"version": version, "package": schema.VERSION, "current": current, "violations": found})
    else:
        output.line(
            f"Schema {version}" + ("" if current else f", but this absurdctl is {schema.VERSION}: absurdctl migrate")
        )
        output.line(f"{len(found)} violation(s)" if found else "No violations")
        if found:
            output.table(("queue", "rule", "task", "detail"), [_cells(each) for each in found])
    return 0 if current and not found else 1


@click.command("grants", cls=Command)
@click.option("--prefix", default="absurd_", metavar="TEXT", help="Begin the names of the roles with this (absurd_).")
def grants_command(prefix: str) -> None:
    """Print the SQL for roles with the least rights.

    The roles are worker, emitter and viewer. Asks no database. The owner of the schema runs it, again after every upgrade: it
    takes the functions from everybody else, makes the roles where they are missing, and grants each what its job needs.

    \b
    Examples:
      absurdctl grants | psql
      absurdctl grants --prefix shop_ > roles.sql
    """
    try:
        output.line(grants.script(prefix).rstrip("\n"))
    except ValueError as error:
        raise click.UsageError(f"--{error}") from None


@click.command(cls=Command)
@yes_option
@pass_target
def uninstall(target: Target, yes: bool) -> None:
    """Remove the schema with every queue, task and event in it.

    \b
    Example:
      absurdctl uninstall --yes
    """
    if schema.installed_version(target.connection) is None:
        output.line("Absurd schema is not installed")
        return
    confirm(f"This deletes every queue, task and event in {target.where}.", yes)
    schema.uninstall(target.connection)
    output.line("Absurd schema removed")


def _cells(violation: health.Violation) -> tuple[Any, ...]:
    return violation.queue_name, violation.rule, violation.task_id, violation.detail


def _carried(ref: str | None, option: str) -> None:
    """Refuse a release this package does not carry."""
    if ref not in (None, schema.VERSION):
        hint = f"this package carries {schema.VERSION}; install the package of release {ref} to get that one."
        raise click.BadParameter(f"{ref!r} is not available: {hint}", param_hint=f"'{option}'")


def _key(version: str) -> tuple[int, ...]:
    """Releases in their order; `main`, a development install, comes before all."""
    return tuple(int(each) for each in re.findall(r"\d+", version))
