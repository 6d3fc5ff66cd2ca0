"""The programs that serve the pages, and what the package may and may not hold."""

from __future__ import annotations

import builtins
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

import habitat_lite
from absurd import embedded, schema
from absurd.cli import ui
from absurd.cli.main import cli
from habitat_lite import main
from tests.cli.engine import Engine

ROOT = Path(__file__).parents[2]
PACKAGE = Path(habitat_lite.__file__).parent
SECONDS = 30.0


@contextlib.contextmanager
def running(*command: str, folder: Path = ROOT / "habitat", **environment: str) -> Iterator[str]:
    """A program that serves the pages; its address, once it says that it does."""
    process = subprocess.Popen(
        command, cwd=folder, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        said = process.stderr.readline()
        found = re.search(r"http://\S+/", said)
        assert found is not None, said + (process.stderr.read() if process.poll() is not None else "")
        yield found[0]
    finally:
        process.terminate()
        assert process.wait(SECONDS) in (0, -15)
        process.stderr.close()


def fetched(address: str) -> str:
    """A page; the port is open when the program has said where it is."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=SECONDS) as answer:
        return str(answer.read().decode())


def test_the_section_of_the_guide_on_monitoring_works_as_it_is_written(
    engine: Engine, database_url: str, tmp_path: Path
) -> None:
    """`cd habitat; make build; ./bin/habitat run`: tasks asleep, waits, history, checkpoints.

    `make build` needs the network, and is rehearsed; the port is any that is free, since 8080 may be taken.
    """
    task = engine.spawn("order-fulfillment")
    run = engine.claim()
    engine.step(run, "reserve-inventory", {"warehouse": "US-EAST-1"})
    engine.wait(run, "payment.confirmed:order-12345")
    # -B: as on a machine where nothing is installed yet
    rehearse = ["make", "-n", "-B", "-C", str(ROOT), "ui-setup"]
    rehearsed = subprocess.run(rehearse, capture_output=True, text=True, check=True)
    assert "[embedded,ui]" in rehearsed.stdout
    assert "ui-setup" in (ROOT / "habitat" / "Makefile").read_text()
    (tmp_path / "habitat").write_text(f'#!/bin/sh\nexec {sys.executable} -m habitat_lite "$@"\n')
    (tmp_path / "habitat").chmod(0o755)
    installed = ROOT / ".venv" / "bin" / "habitat"
    path = {} if installed.exists() else {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with running(
        "./bin/habitat", "run", "--port", "0", ABSURD_DATABASE_URL=database_url, PYTHONPATH=str(ROOT), **path
    ) as address:
        assert re.fullmatch(r"http://localhost:\d+/", address)
        assert "sleeping" in fetched(f"{address}tasks")
        assert "payment.confirmed:order-12345" in fetched(f"{address}waits")
        assert "reserve-inventory" in fetched(f"{address}tasks/{task}")


@pytest.fixture
def checkout(session_folder: Path) -> Iterator[Path]:
    """A checkout with nothing in it but the folder of the page, and the page installed."""
    shutil.copytree(ROOT / "habitat", session_folder / "habitat", ignore=shutil.ignore_patterns(".absurd"))
    program = session_folder / ".venv" / "bin" / "habitat"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec env PYTHONPATH={ROOT} {sys.executable} -m habitat_lite "$@"\n')
    program.chmod(0o755)
    yield session_folder
    for folder in session_folder.glob("**/.absurd/pg18"):
        embedded.stop(folder, "immediate")


def test_in_its_folder_embedded_is_the_postgres_of_the_checkout(checkout: Path) -> None:
    server = embedded.start(checkout / ".absurd" / "pg18")
    with psycopg.connect(server.url(), autocommit=True) as conn:
        schema.install(conn)
        Engine(conn).spawn("left-by-the-demo")
    for folder, command in (
        (checkout / "habitat", "./bin/habitat"),
        (checkout / "habitat" / "bin", "./habitat"),
        (checkout, "habitat/bin/habitat"),
    ):
        with running(command, "run", "--port", "0", folder=folder, ABSURD_DATABASE_URL="embedded:") as address:
            assert "left-by-the-demo" in fetched(f"{address}tasks"), folder
    assert [each.parent for each in checkout.glob("**/.absurd")] == [checkout]


def test_elsewhere_embedded_stays_the_postgres_of_the_folder_one_is_in(checkout: Path, tmp_path: Path) -> None:
    program = checkout / ".venv" / "bin" / "habitat"
    program.write_text('#!/bin/sh\necho "$PWD|$*"\n')
    for folder, there in ((tmp_path, tmp_path), (checkout, checkout), (checkout / "habitat", checkout)):
        said = subprocess.run(
            [checkout / "habitat" / "bin" / "habitat", "run", "-d", "a b"], cwd=folder, capture_output=True, text=True
        )
        assert said.stdout == f"{there.resolve()}|run -d a b\n"


def test_where_no_database_is_named_the_private_one_of_the_checkout_is_offered_and_not_taken(checkout: Path) -> None:
    program = checkout / ".venv" / "bin" / "habitat"
    program.write_text('#!/bin/sh\necho "${ABSURD_DATABASE_URL:-none}"\n')
    clean = {"PATH": os.environ["PATH"]}

    def said(*given: str, **environment: str) -> tuple[str, bool]:
        command = ["./bin/habitat", "run", *given]
        done = subprocess.run(
            command, cwd=checkout / "habitat", env={**clean, **environment}, capture_output=True, text=True, check=True
        )
        return done.stdout, "-d embedded:" in done.stderr

    assert said() == ("none\n", False)
    (checkout / ".absurd").mkdir()
    assert said() == ("none\n", True)
    for given in (["-d", "x"], ["-dx"], ["--database=x"], ["--help"]):
        assert said(*given) == ("none\n", False)
    assert said(ABSURD_DATABASE_URL="x") == ("x\n", False)
    assert said(PGDATABASE="x") == ("none\n", False)


def test_a_program_that_finds_only_itself_says_what_to_do(checkout: Path) -> None:
    (checkout / ".venv" / "bin" / "habitat").unlink()
    for path in (f"{checkout}/habitat/bin:/usr/bin:/bin", "bin:/usr/bin:/bin"):
        said = subprocess.run(
            ["bin/habitat", "run"], cwd=checkout / "habitat", env={"PATH": path}, capture_output=True, text=True
        )
        assert (said.returncode, said.stdout) == (1, "")
        assert "run `make build` in" in said.stderr


def test_make_clean_stops_every_embedded_postgres_of_the_checkout(checkout: Path) -> None:
    shutil.copy(ROOT / "Makefile", checkout)
    python = checkout / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec env PYTHONPATH={ROOT} {sys.executable} "$@"\n')
    python.chmod(0o755)
    servers = [embedded.start(checkout / folder / ".absurd" / "pg18") for folder in (".", "examples")]
    subprocess.run(["make", "-s", "clean"], cwd=checkout, check=True, timeout=SECONDS * 2)
    assert [each.running for each in servers] == [False, False]
    assert all((each.directory / "data").exists() for each in servers)


def test_without_options_it_is_at_port_8080_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(main, "_run", lambda app, listening: listening.close())
    monkeypatch.setattr(
        main,
        "_listen",
        lambda host, port: given.update(host=host, port=port) or socket.create_server(("127.0.0.1", 0)),
    )
    said = CliRunner().invoke(main.cli, ["run", "-d", "postgresql://x"])
    assert (given["host"], given["port"]) == ("127.0.0.1", 8080), said.output


def test_a_port_that_is_taken_is_said_to_be(database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = CliRunner().invoke(main.cli, ["run", "-d", database_url, "--port", port])
    assert said.exit_code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in said.output
    assert "--port" in said.output


def test_absurdctl_serves_the_same_pages(engine: Engine, database_url: str) -> None:
    command = [
        sys.executable,
        "-m",
        "absurd.cli",
        "-d",
        database_url,
        "ui",
        "--port",
        "0",
        "--path-prefix",
        "ops",
    ]
    with running(*command, "--read-only", PYTHONPATH=str(ROOT)) as address:
        assert address.endswith("/ops/")
        assert "Read-only" in fetched(address)
        assert '"orders"' in fetched(f"{address}overview.json")


def test_absurdctl_takes_every_option_of_the_program() -> None:
    own = {name for each in main.run.params for name in each.opts} - {"-d", "--database"}
    assert own == {name for each in ui.ui.own for name in each.opts}
    defaults = {each.name: each.default for each in main.run.params if each.name != "database"}
    assert defaults == {each.name: each.default for each in ui.ui.own}


def test_the_servers_host_and_the_pages_host_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(main, "serve", lambda database, **more: given.update(more, database=database))
    result = CliRunner().invoke(
        cli, ["-h", "db.example", "-p", "6543", "-d", "shop", "ui", "--host", "::1", "--port", "9000"]
    )
    assert result.exit_code == 0, result.output
    assert "host=db.example" in given["database"]
    assert "port=6543" in given["database"]
    assert (given["host"], given["port"]) == ("::1", 9000)


@pytest.mark.parametrize("missing", ["starlette", "uvicorn", "jinja2"])
def test_without_the_extra_both_programs_say_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any, **named: Any) -> Any:
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named '{missing}'", name=missing)
        return real(name, *more, **named)

    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "habitat_lite"}
    for name in kept:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    said = CliRunner().invoke(cli, ["-d", "postgresql://x", "ui"])
    assert said.exit_code == 2
    assert f"the page needs the extra `ui`, and {missing} is not installed" in said.output
    assert "make ui-setup" in said.output
    assert "pip install -e '/path/to/the/checkout[ui]'" in said.output
    with pytest.raises(SystemExit) as ended:
        ui.habitat()
    assert ended.value.code == 1


# -- what the package holds ------------------------------------------------------------------------------------------------

SQL = re.compile(r"\b(select\s.+\sfrom|insert\s+into|update\s+\w+\s+set|delete\s+from|from\s+absurd\.\w+\()", re.I)


def test_the_pages_hold_no_sql_but_the_copy() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in (".py", ".html", ".js"):
            for line in path.read_text(encoding="utf-8").splitlines():
                if SQL.search(line) or ".execute(" in line:
                    found.append((path.name, line.strip()))
    assert len(found) == 1, found
    assert found[0][0] == "task.html"
    assert "data-copy=" in found[0][1]


def test_the_pages_need_nothing_from_elsewhere() -> None:
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in (".html", ".js", ".css", ".svg"):
            for address in re.findall(r"https?://[^\s\"')]+", path.read_text(encoding="utf-8")):
                assert address == "http://www.w3.org/2000/svg", (path.name, address)
    assert {each.name for each in (PACKAGE / "static").iterdir()} == {
        "habitat.css",
        "habitat.js",
        "habitat.svg",
        "theme.js",
    }
