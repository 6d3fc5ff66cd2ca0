"""Workers: run the tasks that a module registers."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

import click

from absurd import Absurd, AsyncAbsurd, telemetry
from absurd.cli import output
from absurd.cli.connection import Target, no_queue
from absurd.cli.options import Command, pass_target
from absurd.errors import ConfigError, QueueNotFound


@click.command(cls=Command)
@click.argument("app", metavar="MODULE:APP")
@click.option(
    "-q",
    "--queue",
    "queues",
    multiple=True,
    metavar="NAME",
    help="Queue to serve; may be repeated. Default: the app's own.",
)
@click.option(
    "-c",
    "--concurrency",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Tasks at a time.",
)
@click.option(
    "--claim-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=120,
    show_default=True,
    metavar="S",
    help="Seconds after which a silent worker loses its tasks.",
)
@click.option("--no-housekeeping", is_flag=True, help="Leave the deletion of old tasks and events to others.")
@pass_target
def worker(
    target: Target, app: str, queues: tuple[str, ...], concurrency: int, claim_timeout: float, no_housekeeping: bool
) -> None:
    """Run the tasks that a module registers.

    Until interrupted. MODULE:APP names an Absurd or AsyncAbsurd, as `orders.app:app`; the working directory is on the
    path. -d sets ABSURD_DATABASE_URL for an app that names no database. One interrupt finishes or hands back what runs;
    a second leaves at once.

    \b
    Examples:
      absurdctl worker orders.app:app
      absurdctl worker orders.app:app --queue orders --queue mails --concurrency 8
    """
    _show_log(target.verbose)
    if any((target.database, target.host, target.port, target.user)):
        os.environ["ABSURD_DATABASE_URL"] = target.conninfo
    client = load_app(app)
    settings: dict[str, Any] = {
        "concurrency": concurrency,
        "claim_timeout": int(claim_timeout) if claim_timeout == int(claim_timeout) else claim_timeout,
        "housekeeping": not no_housekeeping,
        "handle_signals": True,
    }
    if queues:
        settings["queues"] = list(queues)
    with _announced(concurrency), _queues_named(client, queues or (client.queue_name,)):
        if inspect.iscoroutinefunction(client.start_worker):
            asyncio.run(_serve(client, settings))
        else:
            try:
                client.start_worker(**settings)
            finally:
                client.close()


async def _serve(client: Any, settings: dict[str, Any]) -> None:
    """Work, and close the pool before the loop ends."""
    try:
        await client.start_worker(**settings)
    finally:
        await client.close()


@contextlib.contextmanager
def _announced(concurrency: int) -> Iterator[None]:
    """Say that the worker works, once it does: the database has answered and the queues are there."""

    def listener(name: str, fields: dict[str, Any]) -> None:
        if name == "worker.started":
            names = ", ".join(output.plain(each) for each in fields["queues"])
            output.note(f"Working on queue {names}, {concurrency} at a time. Ctrl-C to stop.")

    silence = telemetry.listen(listener)
    try:
        yield
    finally:
        silence()


@contextlib.contextmanager
def _queues_named(client: Any, wanted: tuple[str, ...]) -> Iterator[None]:
    """A queue that is not there is told with those that are, in the app's own database."""
    try:
        yield
    except QueueNotFound:
        with contextlib.closing(client.make_sync()) as asking:
            names = asking.list_queues()
        missing = [each for each in wanted if each not in names]
        if not missing:
            raise
        raise no_queue(missing[0], names) from None


def load_app(name: str) -> Any:
    """The client that MODULE:APP names; ConfigError says which half is wrong."""
    module_name, colon, attribute = name.partition(":")
    if module_name.endswith(".py") or "/" in module_name:
        folder, _, module = os.path.normpath(module_name).removesuffix(".py").rpartition("/")
        where = ""
        if folder.startswith(("/", "..")):
            where = f" in the folder {folder}"
        elif folder:
            module = f"{folder.replace('/', '.')}.{module}"
        raise ConfigError(f"{module_name!r} is a file, not a module", hint=f"say {module}:{attribute or 'app'}{where}")
    if not module_name or not colon or not attribute:
        raise ConfigError(f"{name!r} names no app", hint="write module:app, as in `absurdctl worker orders.app:app`")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise  # a module that the app's module needs, not the one asked for
        hint = f"run it where {module_name.replace('.', '/')}.py can be imported; this is {os.getcwd()}"
        raise ConfigError(f"there is no module {module_name!r}", hint=hint) from None
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if isinstance(found, type) or not hasattr(found, "start_worker"):
        hint = _clients_hint(vars(sys.modules[module_name]), module_name, attribute)
        raise ConfigError(f"{attribute!r} in module {module_name!r} is no Absurd or AsyncAbsurd", hint=hint)
    return found


def _clients_hint(names: dict[str, Any], module_name: str, attribute: str) -> str:
    """The clients that the module does hold, the likeliest first."""
    clients = [name for name, value in names.items() if isinstance(value, (Absurd, AsyncAbsurd))]
    if not clients:
        return f"{module_name} holds none at its top level: give it `app = Absurd()`"
    close = get_close_matches(attribute, clients, n=1)
    asked = f"did you mean {module_name}:{close[0]}? " if close else ""
    return f"{asked}{module_name} holds {', '.join(f'{module_name}:{each}' for each in clients)}"


def _show_log(verbose: bool) -> None:
    """Log lines on stderr, unless the app's module sets up logging itself."""
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, format=form)
