"""The command `absurdctl`: its commands by section, and what becomes of an error."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click
import psycopg

from absurd import schema
from absurd.cli import assist, dev, events, options, output, overview, queues, replay, setup, tasks, ui, worker
from absurd.cli.connection import Target, scrubbed
from absurd.errors import (
    AbsurdError,
    ConfigError,
    IdempotencyConflict,
    InvalidOption,
    InvalidRetryStrategy,
    InvalidTaskId,
    NotSerializable,
    QueueExists,
    QueueNotFound,
    RetryRefused,
    SchemaMissing,
    TaskIdConflict,
    TaskNotFound,
    TaskTerminal,
    TimeoutError,
    ValueTooLarge,
    from_sqlstate,
)

SECTIONS: dict[str, list[click.Command]] = {
    "Setup": [
        setup.init,
        setup.migrate,
        setup.schema_version,
        setup.verify,
        setup.grants_command,
        setup.uninstall,
        dev.dev,
        ui.ui,
        assist.completion,
        assist.install_skill,
    ],
    "Queues": [
        queues.create_queue,
        queues.drop_queue,
        queues.list_queues,
        overview.overview,
        queues.queue_policy,
        queues.cleanup,
        queues.purge_queue,
    ],
    "Tasks": [
        tasks.spawn_task,
        tasks.list_tasks,
        tasks.dump_task,
        tasks.task_result,
        tasks.retry_task,
        tasks.cancel_task,
    ],
    "Events": [events.emit_event, events.list_events, events.list_waits],
    "Workers": [worker.worker, replay.replay_check],
}

#: First match wins; everything else is 1. A DataError of the driver: an interval or number the server cannot read.
EXIT_CODES: tuple[tuple[int, tuple[type[BaseException], ...]], ...] = (
    (2, (ConfigError, InvalidOption, InvalidRetryStrategy, InvalidTaskId, NotSerializable, ValueTooLarge)),
    (2, (psycopg.DataError,)),
    (3, (QueueNotFound, TaskNotFound)),
    (4, (QueueExists, TaskTerminal, RetryRefused, TaskIdConflict, IdempotencyConflict)),
    (5, (TimeoutError,)),
)


class Absurdctl(click.Group):
    """The group: its sections of commands, and one way out for every error."""

    def get_help(self, ctx: click.Context) -> str:
        """The help, without the blank line click leaves at its end."""
        return super().get_help(ctx).rstrip("\n")

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the sections."""
        return [str(command.name) for commands in SECTIONS.values() for command in commands]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options of the group, then the sections of commands."""
        connection = [each for each in self.params if each.name in ("host", "port", "user", "database", "verbose")]
        options.format_options(self, ctx, formatter, [each for each in self.params if each not in connection])
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One list a section."""
        width = max(len(name) for name in self.list_commands(ctx))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                records = [(str(each.name).ljust(width), each.get_short_help_str(90)) for each in commands]
                formatter.write_dl(records)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """An unknown command: the list of those there are on stdout, a hint on stderr, exit code 1."""
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            output.line(f"Unknown command: {output.plain(args[0])}")
            output.line()
            output.line("Commands:")
            for name in self.list_commands(ctx):
                output.line(f"  {name}")
            close = " or ".join(f"`{each}`" for each in output.meant(args[0], self.list_commands(ctx)))
            asked = f"did you mean {close}? " if close else ""
            output.note(f"Hint: {asked}`absurdctl --help` says what each command does")
            ctx.exit(1)
        return super().resolve_command(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run a command and exit: 0 ok, 1 failed, 2 usage, 3 not found, 4 conflict, 5 timed out, 130 interrupted.

        `standalone_mode` is click's; this command always stands alone.
        """
        target = extra.setdefault("obj", Target())
        try:
            code = super().main(args, prog_name or "absurdctl", complete_var, standalone_mode=False, **extra)
        except click.ClickException as error:
            error.show()
            if isinstance(error, click.BadOptionUsage) and error.option_name == "-h":
                output.note("Hint: -h is the host; the help is --help")
            code = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            output.note("Interrupted.")
            code = 130
        except (AbsurdError, psycopg.Error) as error:
            code = _failed(error, target)
        except UnicodeEncodeError as error:  # how Python reads bytes of a command line that are no UTF-8
            code = _failed(ConfigError(f"{error.object[:40]!a} is no text: the command line is read as UTF-8"), target)
        finally:
            target.close()
        sys.exit(code if isinstance(code, int) else 0)


def _failed(error: Exception, target: Target) -> int:
    """Say on stderr what went wrong and what to do; the exit code."""
    if target.verbose:
        output.note(scrubbed("".join(traceback.format_exception(error)).rstrip()))
    shown: BaseException = from_sqlstate(error) if isinstance(error, psycopg.Error) else error
    if isinstance(shown, SchemaMissing):
        with contextlib.suppress(AbsurdError, psycopg.Error):
            shown = target.explained(shown)
    text = shown.diag.message_primary if isinstance(shown, psycopg.Error) else None
    lines = (text or str(shown)).strip().splitlines() or [type(shown).__name__]
    output.note(scrubbed("Error: " + "\n".join(lines)))
    if isinstance(shown, psycopg.Error) and shown.diag.message_hint:
        output.note(f"Hint: {shown.diag.message_hint}")
    return next((code for code, kinds in EXIT_CODES if isinstance(shown, kinds)), 1)


@click.command(
    "absurdctl",
    cls=Absurdctl,
    context_settings={"help_option_names": ["--help"], "max_content_width": 100},
    invoke_without_command=True,
)
@click.version_option(schema.VERSION, message="absurdctl %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Durable tasks and events on nothing but Postgres.

    \b
    Examples:
      absurdctl init                                       install the schema
      absurdctl create-queue orders                        make a queue
      absurdctl spawn-task ship -q orders -P id=order-1    ask for work
      absurdctl list-tasks -q orders -s failed             see what went wrong
      absurdctl worker orders.app:app --queue orders       do the work

    Exit codes: 0 ok, 1 failed or no such command, 2 usage, 3 not found, 4 conflict, 5 timed out, 130 interrupted.
    """
    if ctx.invoked_subcommand is None:
        output.line(ctx.get_help())


cli.params.extend(options.connection_options())
for _commands in SECTIONS.values():
    for _command in _commands:
        cli.add_command(_command)


@cli.command("help", hidden=True, add_help_option=False)
@click.argument("command", required=False)
@click.pass_context
def show_help(ctx: click.Context, command: str | None) -> None:
    """Show the help of absurdctl, or of a command."""
    parent = ctx.find_root()
    found = cli.get_command(parent, command) if command else None
    if command and found is None:
        cli.resolve_command(parent, [command])
    with click.Context(found, info_name=command, parent=parent) if found else parent as shown:
        output.line((found or cli).get_help(shown))


def main() -> None:
    """The entry point of the installed command."""
    cli.main()
