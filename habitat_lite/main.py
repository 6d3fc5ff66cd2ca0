"""`habitat run`: the pages on a port of this machine."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
from collections.abc import Sequence
from typing import Any

import click
import uvicorn
from starlette.applications import Starlette

from absurd import AbsurdError, ConfigError
from habitat_lite import guard
from habitat_lite.app import create_app

HOST, PORT = "127.0.0.1", 8080
_HERE = ("localhost", "127.0.0.1", "[::1]")


@click.group()
def cli() -> None:
    """The web page of an Absurd database."""


@cli.command()
@click.option(
    "-d", "--database", metavar="URL", help="Default: ABSURD_DATABASE_URL. `embedded:` is the private Postgres."
)
@click.option("--host", default=HOST, show_default=True, metavar="HOST", help="Address to listen on.")
@click.option(
    "--port", default=PORT, show_default=True, type=click.IntRange(0, 65535), metavar="N", help="Port to listen on."
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
def run(database: str | None, **options: Any) -> None:
    """Serve the pages until interrupted.

    \b
    Examples:
      habitat run
      habitat run -d postgresql://localhost/shop --port 9000
      habitat run --path-prefix /ops --allow-host ops.example.com
      habitat run --host 0.0.0.0 --read-only --insecure --allow-host tasks.lan
    """
    try:
        serve(database, **options)
    except AbsurdError as error:
        raise click.ClickException(str(error)) from None


def serve(
    database: str | None,
    *,
    host: str = HOST,
    port: int = PORT,
    path_prefix: str = "",
    read_only: bool = False,
    allow_host: Sequence[str] = (),
    insecure: bool = False,
) -> None:
    """Serve the pages until interrupted. ConfigError for an address beyond this machine without `insecure`, or one that is
    taken. Port 0 is any that is free.

    It answers to the names of this machine, and to `allow_host`; with `insecure` also to every IP address. Not to others: a
    page anywhere could have a name of its own lead here, and read what it is told.
    """
    here = _is_here(host)
    if not here and not insecure:
        raise ConfigError(
            f"{host} can be reached from other machines, and this page has no login",
            hint="put it behind a proxy that has one, on 127.0.0.1; or say --insecure, best with --read-only",
        )
    path_prefix = f"/{path_prefix.strip('/')}".rstrip("/")
    own = f"[{host}]" if ":" in host else host
    # a page of another site could ask through a name of its own that leads here, but not through an address
    hosts = [*_HERE, own, *([] if here else (*_own_names(), *guard.ANY_ADDRESS)), *allow_host]
    app = create_app(database, read_only=read_only, allowed_hosts=hosts, path_prefix=path_prefix)
    listening = _listen(host, port)
    where = "localhost" if own in _HERE else own
    at = f"http://{where}:{listening.getsockname()[1]}{path_prefix}/"
    print(f"Habitat on {at} (Ctrl-C to stop)", file=sys.stderr, flush=True)
    _run(app, listening)


def _own_names() -> list[str]:
    """What this machine calls itself, and what others near it call it."""
    name = socket.gethostname().lower()
    short = name.partition(".")[0]
    return [each for each in (name, short, f"{short}.local") if short and not any(letter.isspace() for letter in each)]


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}", hint="say another --port") from None


def _run(app: Starlette, listening: socket.socket) -> None:
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=1))
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def main() -> None:
    """The entry point of the program."""
    cli(prog_name="habitat")


if __name__ == "__main__":
    main()
