"""Workers: run the tasks that a module registers."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import os
import sys
from typing import Any

import click

from absurd.cli import output
from absurd.cli.connection import Target
from absurd.cli.options import Command, pass_target
from absurd.errors import ConfigError


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
    client = _load(app)
    settings: dict[str, Any] = {
        "concurrency": concurrency,
        "claim_timeout": int(claim_timeout) if claim_timeout == int(claim_timeout) else claim_timeout,
        "housekeeping": not no_housekeeping,
        "handle_signals": True,
    }
    if queues:
        settings["queues"] = list(queues)
    names = ", ".join(output.plain(each) for each in queues or (client.queue_name,))
    output.note(f"Working on queue {names}, {concurrency} at a time. Ctrl-C to stop.")
    if inspect.iscoroutinefunction(client.start_worker):
        asyncio.run(client.start_worker(**settings))
    else:
        client.start_worker(**settings)


def _load(name: str) -> Any:
    """The client that MODULE:APP names; ConfigError says which half is wrong."""
    module_name, colon, attribute = name.partition(":")
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
    if not hasattr(found, "start_worker"):
        raise ConfigError(f"{attribute!r} in module {module_name!r} is no Absurd or AsyncAbsurd")
    return found


def _show_log(verbose: bool) -> None:
    """Log lines on stderr, unless the app's module sets up logging itself."""
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, format=form)
