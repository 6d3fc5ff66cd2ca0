"""What the commands share: the connection options, a queue, JSON output, payloads from `-P`, moments and spans."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import click
from click.shell_completion import CompletionItem

from absurd import typed
from absurd.cli import output
from absurd.cli.connection import Target
from absurd.errors import AbsurdError
from absurd.queries import filters

F = TypeVar("F", bound=Callable[..., Any])

pass_target = click.make_pass_decorator(Target, ensure=True)

_CONNECTION = "Connection"


def connection_options() -> list[click.Parameter]:
    """-h -p -U -d -v, which the group and every command take; the one after the command wins."""

    def option(*names: str, **settings: Any) -> click.Option:
        return click.Option(list(names), expose_value=False, callback=_remember, **settings)

    return [
        option("-h", "--host", metavar="HOST", help="Server, or the folder of its socket (PGHOST)."),
        option("-p", "--port", metavar="PORT", help="Port (PGPORT)."),
        option("-U", "--user", metavar="USER", help="User name (PGUSER)."),
        option(
            "-d", "--database", metavar="DATABASE", help="Name, URI, or embedded: (ABSURD_DATABASE_URL, PGDATABASE)."
        ),
        option("-v", "--verbose", is_flag=True, help="Say on stderr what is connected to; show tracebacks."),
    ]


def _remember(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value:
        setattr(ctx.ensure_object(Target), str(parameter.name), value)


class Command(click.Command):
    """A command with the connection options, which its help shows last, and a section of the top-level help."""

    def __init__(self, *args: Any, section: str = "", **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.section = section
        self.own = list(self.params)
        self.params = [*self.params, *connection_options()]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Own options first, then those of the connection."""
        format_options(self, ctx, formatter, self.own)


def format_options(
    command: click.Command, ctx: click.Context, formatter: click.HelpFormatter, own: list[click.Parameter]
) -> None:
    """Two sections of options: those of the command, and those every command takes."""
    titles: dict[str, list[tuple[str, str]]] = {"Options": [], _CONNECTION: []}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
        if record is not None:
            shared = parameter in command.params and parameter not in own
            titles[_CONNECTION if shared else "Options"].append(record)
    for title, records in titles.items():
        if records:
            with formatter.section(title):
                formatter.write_dl(records)


def _queues(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of queues for the shell; none when the database does not answer."""
    from absurd.queries import queues

    target = ctx.ensure_object(Target)
    try:
        return [
            CompletionItem(each.queue_name)
            for each in target.ask(queues.find())
            if each.queue_name.startswith(incomplete)
        ]
    except AbsurdError:
        return []
    finally:
        target.close()


def queue_option(command: F) -> F:
    """-q/--queue, by default `default`."""
    option = click.option(
        "-q", "--queue", default="default", show_default=True, metavar="NAME", help="Queue.", shell_complete=_queues
    )
    return option(command)


def queue_argument(command: F) -> F:
    """The queue as argument."""
    return click.argument("queue", metavar="NAME", shell_complete=_queues)(command)


def json_option(command: F) -> F:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def yes_option(command: F) -> F:
    """-y/--yes."""
    return click.option("-y", "--yes", is_flag=True, help="Do not ask.")(command)


def confirm(question: str, yes: bool) -> None:
    """Go on only if --yes was given or the answer is `yes`; otherwise exit code 1 and nothing has happened."""
    if yes:
        return
    try:
        answer = click.prompt(f"{question} Type 'yes' to go on", default="", show_default=False, err=True)
    except click.Abort:
        output.note("")
        raise click.ClickException("no answer; pass --yes to go on without being asked") from None
    if answer.strip() != "yes":
        raise click.ClickException("nothing was done: the answer was not 'yes'")


class Identifier(click.ParamType[UUID]):
    """The id of a task or run."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> UUID:
        """UUID, or a usage error."""
        try:
            return value if isinstance(value, UUID) else UUID(value)
        except ValueError:
            self.fail(f"{value!r} is not an id; ids look like 01935bf7-8a25-7c92-b123-456789ab0000.", param, ctx)


class Number(click.ParamType[float]):
    """A number; a whole one stays an integer, for clients that read it as one."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """int or float, or a usage error."""
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number.", param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not finite.", param, ctx)
        return int(number) if number == int(number) else number


class Json(click.ParamType[Any]):
    """A JSON text."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value in a list of one (so that null can be told from absent), or a usage error."""
        if isinstance(value, list):
            return value
        try:
            return [typed.read(value)]
        except ValueError as error:
            option = param.opts[0] if param else ""
            example = f"""{option} '{{"id": 7, "name": "ada"}}'""".strip()
            self.fail(f"{output.plain(value)!r} is not JSON: {error}. JSON would be  {example}", param, ctx)


class Moment(click.ParamType[datetime]):
    """An ISO date and time (UTC unless it says otherwise), or a span back from now: 30m, 12h, 7d."""

    name = "when"
    ahead = False

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """A moment with a time zone, or a usage error."""
        if isinstance(value, datetime):
            return value
        try:
            return filters.moment(value, datetime.now(UTC), ahead=self.ahead)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


class FutureMoment(Moment):
    """The same, but a span counts from now on."""

    ahead = True


def payload(whole: list[Any] | None, pairs: tuple[str, ...], whole_name: str, default: Any) -> Any:
    """The value of `--params` (or `--payload`), with the `-P` pairs put into it.

    `k=v` sets a text, `k:=json` any value, `a.b=v` a key of an object. As it was typed, to the last digit. A usage error
    names the pair.
    """
    value = whole[0] if whole else ({} if pairs else default)
    if pairs and not isinstance(value, dict):
        raise click.BadParameter(f"-P sets keys of an object, and {whole_name} is none.", param_hint="'-P' / '--param'")
    for pair in pairs:
        try:
            _put(value, *_pair(pair))
        except ValueError as error:
            raise click.BadParameter(f"{output.plain(pair)!r}: {error}", param_hint="'-P' / '--param'") from None
    return typed.written(value)


def headers(pairs: tuple[str, ...]) -> dict[str, Any] | None:
    """The headers of `-H k=v` and `-H k:=json`."""
    found: dict[str, Any] = {}
    for pair in pairs:
        try:
            key, value = _pair(pair, exact=False)
        except ValueError as error:
            raise click.BadParameter(f"{output.plain(pair)!r}: {error}", param_hint="'-H' / '--header'") from None
        found[key] = value
    return found or None


def _pair(pair: str, *, exact: bool = True) -> tuple[str, Any]:
    key, equals, text = pair.partition("=")
    if not equals or not key or key == ":":
        raise ValueError("write key=text or key:=json")
    if key.endswith(":"):
        try:
            return key[:-1], typed.read(text, exact=exact)
        except ValueError as error:
            example = output.plain(f"""'{key}=["a", 1]', or {key[:-1]}=text""")
            raise ValueError(f"what follows := is not JSON: {error}. It would be  {example}") from None
    return key, text


def _put(into: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    if not all([*parents, last]):
        raise ValueError("a key between dots is empty")
    for key in parents:
        into = into.setdefault(key, {})
        if not isinstance(into, dict):
            raise ValueError(f"{key!r} has a value already and cannot hold keys")
    into[last] = value
