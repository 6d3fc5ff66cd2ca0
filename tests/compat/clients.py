"""A third-party client in a process of its own, driven line by line.

The programs in `programs/` use nothing but the public interface of the released packages. Each reads one JSON
request a line and answers with one JSON line; a task handler may put notes between them (`{"note": "ship"}`) and may
hold, until the next line, where a test wants it. All three programs know the same calls and the same tasks, so
one test runs against every client.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from psycopg.conninfo import conninfo_to_dict

PROGRAMS = Path(__file__).parent / "programs"
_DEADLINE = 30.0


class ClientError(Exception):
    """What the client raised: its class, message and, from the server, the SQLSTATE."""

    def __init__(self, name: str, message: str, code: str | None) -> None:
        super().__init__(f"{name}: {message}")
        self.name, self.message, self.code = name, message, code


class Client:
    """One process of a client."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        # Blank lines of stderr belong to the packages; pytest shows them with a failing test.
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._heard = threading.Condition()
        self._notes: list[str] = []
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def call(self, method: str, **args: Any) -> Any:
        """Make one call and return what it returned; raises ClientError for what it raised."""
        self.post(method, **args)
        return self.answer()

    def post(self, method: str, **args: Any) -> None:
        """Start a call without waiting for it; `answer()` gives what it returned."""
        self._write(json.dumps({"call": method, "args": args}))

    def answer(self) -> Any:
        """Wait for the answer to what was posted."""
        try:
            line = self._answers.get(timeout=_DEADLINE)
        except queue.Empty:
            raise AssertionError(f"no answer in {_DEADLINE:.0f} s; notes so far: {self._notes}") from None
        assert line is not None, f"the client ended with {self._process.wait(_DEADLINE)}"
        if "error" in line:
            raise ClientError(**line["error"])
        return line["answer"]

    def release(self) -> None:
        """Let a handler that holds go on."""
        self._write("go")

    def wait_for(self, note: str) -> None:
        """Return when a handler has said `note`."""
        with self._heard:
            self._heard.wait_for(lambda: note in self._notes or self._ended, _DEADLINE)
            assert note in self._notes, f"the client {'ended' if self._ended else 'still runs'} without it"

    @property
    def notes(self) -> Counter[str]:
        """How often each note was said."""
        with self._heard:
            return Counter(self._notes)

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        self._process.kill()
        self._gone()

    def stop(self) -> None:
        """Ask a started worker to stop, and wait for the end of its call."""
        self._process.send_signal(signal.SIGTERM)
        self.answer()

    def close(self) -> None:
        """End the process: by the end of its input, or by force."""
        if self._process.poll() is None and self._process.stdin is not None:
            self._process.stdin.close()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._gone()

    def _gone(self) -> None:
        self._process.wait(_DEADLINE)
        self._reader.join(_DEADLINE)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # what was still to be sent has no reader any more

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            if "note" in said:
                with self._heard:
                    self._notes.append(said["note"])
                    self._heard.notify_all()
            else:
                self._answers.put(said)
        self._answers.put(None)
        with self._heard:
            self._ended = True
            self._heard.notify_all()


def uri(dsn: str) -> str:
    """The same database as a URI, which is the form every client understands."""
    parts = conninfo_to_dict(dsn)
    user, host, database = str(parts["user"]), str(parts.get("host") or "localhost"), str(parts["dbname"])
    who = quote(user, safe="") + (f":{quote(str(parts['password']), safe='')}" if parts.get("password") else "")
    if host.startswith("/"):
        options = {"host": host} | ({"port": str(parts["port"])} if parts.get("port") else {})
        return f"postgresql://{who}@/{quote(database, safe='')}?{urlencode(options)}"
    return f"postgresql://{who}@{host}:{parts.get('port') or 5432}/{quote(database, safe='')}"


def environment(dsn: str, **more: str) -> dict[str, str]:
    """The variables of a client's process: ours without Python's and libpq's, plus the database."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PG", "ABSURD"))}
    return kept | {"ABSURD_DATABASE_URL": uri(dsn)} | more
