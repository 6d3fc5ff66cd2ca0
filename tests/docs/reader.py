"""Does what a reader of a page does: types the commands, runs the python, sends the SQL, in order."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psycopg

from absurd import embedded
from tests.docs.pages import ROOT, Block

PATIENCE = 40.0
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
#: a statement, what ends it, and the `-- =>` lines after it
_STATEMENT = re.compile(
    r"((?:[^;'$-]|'(?:[^']|'')*'|\$\$.*?\$\$|-(?!-)|--(?! =>)[^\n]*|\$)*?)(;|\\gset)[ ]*((?:\n?[ ]*-- => [^\n]*)*)",
    re.S,
)


class Mismatch(AssertionError):
    """A page says something that is not so."""


class Reader:
    """One page, one folder, one database."""

    def __init__(self, url: str, folder: Path) -> None:
        self._folder = folder
        self._url = url
        self._environment = _environment(url, folder)
        self._shell: subprocess.Popen[bytes] | None = None
        self._notebook: subprocess.Popen[str] | None = None
        self._conn: psycopg.Connection[Any] | None = None
        self._variables: dict[str, str] = {}
        self._ids: dict[str, str] = {}  # an id the page prints -> the one that came out here

    def run(self, block: Block) -> None:
        """Run one block; Mismatch when it fails, or does not say what the page says."""
        if block.directive.startswith("file "):
            target = self._folder / block.directive.removeprefix("file ").strip()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, encoding="utf-8")
            return
        wanted = block.directive.removeprefix("raises ").strip() if block.directive.startswith("raises ") else None
        if block.language == "python":
            self._python(block, wanted)
        elif block.language == "sql":
            self._sql(block, wanted)
        else:
            self._commands(block)

    def close(self) -> None:
        """End everything the page has started."""
        if self._conn is not None:
            self._conn.close()
        for process in (self._notebook, self._shell):
            if process is not None:
                # its own group: the page's background commands go with it
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                for stream in (process.stdin, process.stdout):
                    if stream is not None:
                        with contextlib.suppress(OSError):
                            stream.close()

    # -- python --------------------------------------------------------------------------------------------------------

    def _python(self, block: Block, wanted: str | None) -> None:
        if self._notebook is None:
            self._notebook = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("notebook.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=self._folder,
                env=self._environment,
                start_new_session=True,
            )
        assert self._notebook.stdin is not None
        assert self._notebook.stdout is not None
        request = {"page": block.page, "line": block.line, "text": block.text}
        self._notebook.stdin.write(json.dumps(request) + "\n")
        self._notebook.stdin.flush()
        if not select.select([self._notebook.stdout], [], [], PATIENCE)[0]:
            raise Mismatch(f"{block} did not end within {PATIENCE:.0f} s")
        answer = json.loads(self._notebook.stdout.readline())
        if wanted is not None:
            if answer["kind"] != wanted:
                raise Mismatch(f"{block} should raise {wanted}: {answer['failure'] or 'it raised nothing'}")
        elif answer["failure"]:
            raise Mismatch(f"{block} failed:\n{answer['failure']}\nIt printed:\n{answer['printed']}")
        compare(block, re.findall(r"# => (.*)", block.text), answer["printed"])

    # -- SQL -----------------------------------------------------------------------------------------------------------

    def _sql(self, block: Block, wanted: str | None) -> None:
        if self._conn is None:
            self._conn = psycopg.connect(plain(self._url), autocommit=True)
        statements = [match for match in _STATEMENT.finditer(block.text) if match[1].strip()]
        if not statements:
            raise Mismatch(f"{block} holds no statement: end each with ;")
        for number, match in enumerate(statements):
            text = re.sub(r":'(\w+)'", lambda found: _quoted(self._variables, found[1]), match[1])
            try:
                cursor = self._conn.execute(text.encode())
                rows = cursor.fetchall() if cursor.description else []
            except psycopg.Error as error:
                if wanted is not None and number == len(statements) - 1 and error.sqlstate == wanted:
                    return
                raise Mismatch(f"{block} failed in {text.strip()}: {error}") from error
            if match[2] == "\\gset":
                assert cursor.description is not None
                self._variables.update(
                    {column.name: _shown(value) for column, value in zip(cursor.description, rows[-1], strict=True)}
                )
            said = " | ".join(_shown(value) for value in rows[-1]) if rows else "(no rows)"
            compare(block, re.findall(r"-- => (.*)", match[3]), said)
        if wanted is not None:
            raise Mismatch(f"{block} should raise {wanted} and raised nothing")

    # -- the shell -----------------------------------------------------------------------------------------------------

    def _commands(self, block: Block) -> None:
        if block.language == "bash":
            self._command(block, block.text, [])
            return
        for command, expected in transcript(block.text):
            self._command(block, command, expected)

    def _command(self, block: Block, command: str, expected: Sequence[str]) -> None:
        verb = re.match(r"make ([a-z-]+)", command)
        if verb:  # what it does is tested elsewhere; that it is there, here
            if not re.search(rf"^{verb[1]}:", (ROOT / "Makefile").read_text(), re.M):
                raise Mismatch(f"{block}: there is no `make {verb[1]}`")
            return
        command = _ID.sub(lambda found: self._ids.get(found[0], found[0]), command)
        if self._shell is None:
            self._shell = subprocess.Popen(
                ["bash"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=self._environment,
                start_new_session=True,
            )
        assert self._shell.stdin is not None
        # a command that asks must not read the commands after it
        self._shell.stdin.write(
            f'{{ {command.rstrip()}\n}} </dev/null; __code=$?; echo; echo "@@ $__code @@"\n'.encode()
        )
        self._shell.stdin.flush()
        said, code = self._answer(block, command)
        if code != 0 and not any(line.startswith("Error: ") for line in expected):
            raise Mismatch(f"{block}: `{command}` ended with code {code} and said:\n{said}")
        self._ids.update(compare(block, expected, said))

    def _answer(self, block: Block, command: str) -> tuple[str, int]:
        assert self._shell is not None
        assert self._shell.stdout is not None
        said = b""
        deadline = time.monotonic() + PATIENCE
        while not (end := re.search(rb"\n@@ (\d+) @@\n", said)):
            if not select.select([self._shell.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Mismatch(f"{block}: `{command}` did not end within {PATIENCE:.0f} s and said:\n{said.decode()}")
            more = os.read(self._shell.stdout.fileno(), 65536)
            if not more:
                raise Mismatch(f"{block}: `{command}` ended the shell and said:\n{said.decode()}")
            said += more
        return said[: end.start()].decode(errors="replace"), int(end[1])


def plain(url: str) -> str:
    """The URL as psycopg understands it; an embedded server is started for it."""
    return embedded.resolve(url) if embedded.is_embedded_url(url) else url


def transcript(text: str) -> list[tuple[str, list[str]]]:
    """The commands of a console block (`$ ` in front, `> ` on further lines) and the lines each should print."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line.startswith("> ") and found:
            found[-1] = (f"{found[-1][0]}\n{line[2:]}", [])
        elif found and line.strip():
            found[-1][1].append(line)
    return found


def compare(block: Block, expected: Iterable[str], said: str) -> dict[str, str]:
    """Each expected line is there, in order; which id of the page stands for which that came out."""
    ids: dict[str, str] = {}
    left = said.splitlines()
    for line in expected:
        pattern = ".*".join(re.escape(part) for part in _plain(line).split("..."))
        place = next((n for n, each in enumerate(left) if re.fullmatch(pattern, _plain(each))), None)
        if place is None:
            raise Mismatch(f"{block} says {line.strip()!r}, but this came out:\n{said}")
        ids.update(zip(_ID.findall(line), _ID.findall(left[place]), strict=False))
        del left[: place + 1]
    return ids


def _plain(line: str) -> str:
    return " ".join(_ID.sub("<id>", line).split())


def _shown(value: object) -> str:
    return json.dumps(value) if isinstance(value, (dict, list)) else "null" if value is None else str(value)


def _quoted(variables: dict[str, str], name: str) -> str:
    return "'" + variables[name].replace("'", "''") + "'"


def _environment(url: str, folder: Path) -> dict[str, str]:
    """This Python, this checkout, this database, and `absurdctl` and `python` on the path."""
    programs = folder / ".bin"
    programs.mkdir()
    run = "from absurd.cli.main import main; main()"
    for program, arguments in (("absurdctl", f"-c '{run}'"), ("python", "")):
        script = programs / program
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "ABSURD_DATABASE_URL": url,
        "COLUMNS": "100",
    }
