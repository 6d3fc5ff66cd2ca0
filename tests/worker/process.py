"""Worker processes under test: start one, read what it says, wait for a line, send it signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).parent / "programs" / "worker.py"
ROOT = Path(__file__).parents[2]
DEADLINE = 30.0  # long enough for a slow machine; nothing waits for it to pass

Line = dict[str, Any]


class WorkerProcess:
    """A running `programs/worker.py`; `lines` is everything it has said so far."""

    def __init__(self, **settings: Any) -> None:
        self.lines: list[Line] = []
        self.log = ""
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), json.dumps(settings)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._readers = [
            threading.Thread(target=self._read_lines, daemon=True),
            threading.Thread(target=self._read_log, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    # -- what it says --------------------------------------------------------------------------------------------------

    def wait(self, after: int = 0, **fields: Any) -> Line:
        """The first line from number `after` on that has these fields; fails when the process ends without it."""
        return self.wait_many(1, after, **fields)[0]

    def wait_many(self, count: int, after: int = 0, **fields: Any) -> list[Line]:
        """The first `count` such lines."""
        self.wait_until(lambda: len(self.said(after, **fields)) >= count, f"{count} x {fields}")
        return self.said(after, **fields)[:count]

    def index(self, **fields: Any) -> int:
        """Where such a line stands first, for `after`."""
        return self.lines.index(self.wait(**fields))

    def said(self, after: int = 0, **fields: Any) -> list[Line]:
        """All such lines so far."""
        return [line for line in self.lines[after:] if all(line.get(key) == value for key, value in fields.items())]

    def wait_log(self, text: str) -> None:
        """Until the log holds a text."""
        self.wait_until(lambda: text in self.log, f"{text!r} in the log")

    def wait_until(self, happened: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE
        with self._changed:
            while not happened():
                ended = not any(reader.is_alive() for reader in self._readers)
                left = deadline - time.monotonic()
                assert not ended, f"the worker ended before {what}\n{self.report()}"
                assert left > 0, f"the worker never said {what}\n{self.report()}"
                self._changed.wait(min(left, 0.2))

    def ready(self) -> WorkerProcess:
        """Until it is idle and registered to be woken."""
        self.wait(signal="worker.idle")
        return self

    def started(self) -> WorkerProcess:
        self.wait(signal="worker.started")
        return self

    @property
    def mark(self) -> int:
        """For `after`: only what comes from here on."""
        return len(self.lines)

    def report(self) -> str:
        tail = "\n".join(json.dumps(line) for line in self.lines[-30:])
        return f"exit code {self._process.poll()}\n{tail}\n{self.log[-4000:]}"

    # -- what is done to it --------------------------------------------------------------------------------------------

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def exit_code(self) -> int:
        """Wait for its end."""
        try:
            code = self._process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker did not end\n{self.report()}") from None
        for reader in self._readers:
            reader.join(DEADLINE)
        return code

    def stop(self) -> int:
        """SIGTERM and wait; the exit code."""
        self.send(signal.SIGTERM)
        return self.exit_code()

    def kill(self) -> None:
        if self._process.poll() is None:
            self.send(signal.SIGKILL)
            self._process.wait(DEADLINE)
        for reader in self._readers:
            reader.join(DEADLINE)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            with self._changed:
                self.lines.append(json.loads(text))
                self._changed.notify_all()

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        for text in self._process.stderr:
            with self._changed:
                self.log += text
                self._changed.notify_all()


@contextmanager
def starter(world: str, default_url: Callable[[], str]) -> Iterator[Callable[..., WorkerProcess]]:
    """`start(queues=..., lease=..., slots=..., patch=..., tasks=..., **start_worker options)`; all are killed at the end."""
    running: list[WorkerProcess] = []

    def start(
        *, queues: list[str] | None = None, url: str | None = None, lease: float = 30, slots: int = 1, **more: Any
    ) -> WorkerProcess:
        outer = {key: more.pop(key) for key in ("patch", "tasks", "attempts") if key in more}
        options = {"claim_timeout": lease, "concurrency": slots, "housekeeping": False, **more}
        process = WorkerProcess(world=world, url=url or default_url(), queues=queues or ["q"], worker=options, **outer)
        running.append(process)
        return process

    try:
        yield start
    finally:
        for process in running:
            process.kill()
