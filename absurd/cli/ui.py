"""The web page: `absurdctl ui`, and the program `habitat`, which is the same page by its own name."""

from __future__ import annotations

import sys
from typing import Any

import click

from absurd.cli import output
from absurd.cli.connection import Target
from absurd.cli.options import Command, pass_target
from absurd.errors import ConfigError

_NEEDED = ("jinja2", "markupsafe", "starlette", "uvicorn")


class PageCommand(Command):
    """A command whose --host and --port are those of the page: the server's go before it, or into -d."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        taken = {name for each in self.own for name in each.opts}
        self.params = [each for each in self.params if each in self.own or not taken & set(each.opts)]


@click.command(cls=PageCommand)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="HOST", help="Address to listen on.")
@click.option(
    "--port", default=8080, show_default=True, type=click.IntRange(0, 65535), metavar="N", help="Port to listen on."
)
@click.option("--path-prefix", default="", metavar="PATH", help="Live below this path, as /ops.")
@click.option("--read-only", is_flag=True, help="Offer no action, and take none.")
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="A name it is also reached by, or a network as 10.0.0.0/8; may be repeated.",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Listen beyond this machine although there is no login: by any IP address, its own names, and --allow-host.",
)
@pass_target
def ui(target: Target, /, **settings: Any) -> None:
    """Serve the web page: what waits for what, and a helping hand.

    Needs the extra `ui`. The page has no login, and stays on this machine unless you say --insecure. The server's host and
    port, where -d does not say them, go before the command.

    \b
    Examples:
      absurdctl ui
      absurdctl -h db.example -d shop ui --port 9000 --read-only
    """
    program().serve(target.conninfo, **settings)


def program() -> Any:
    """The module that serves the pages. Raises ConfigError where the extra is missing."""
    try:
        from habitat_lite import main
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        raise ConfigError(
            f"the page needs the extra `ui`, and {error.name} is not installed",
            hint="in a checkout, `make ui-setup`; elsewhere `pip install -e '/path/to/the/checkout[ui]'`",
        ) from None
    return main


def habitat() -> None:
    """The entry point of the program `habitat`."""
    try:
        main = program()
    except ConfigError as error:
        output.note(f"Error: {error}")
        sys.exit(1)
    main.main()
