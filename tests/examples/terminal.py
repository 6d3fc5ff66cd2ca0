"""A worker of the order example as people start it, and what it prints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from queue import SimpleQueue

from tests.examples.nursery import PYTHON, ROOT, SECONDS
from tests.fixtures.pooler import besides_the_warning


def environment(url: str) -> dict[str, str]:
    """The environment of an example program on a database."""
    return {**os.environ, "ABSURD_DATABASE_URL": url, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


class Terminal:
    """A worker in a terminal of its own: what it prints, as bytes, piece by piece."""

    def __init__(self, url: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(PYTHON / "event_demo.py"), *arguments],
            env=environment(url),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def shows(self, text: str) -> str:
        """As many lines as `text` has."""
        return b"".join(self._lines.get(timeout=SECONDS) for _ in text.splitlines()).decode()

    def close(self) -> tuple[str, str]:
        """SIGTERM; the rest of stdout, and what stderr says besides that the worker was told to stop."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stderr is not None
        said = besides_the_warning(self.process.stderr.read().decode()).splitlines(keepends=True)
        errors = "".join(line for line in said if not line.startswith("stopping (signal"))
        self.process.stderr.close()
        assert self.process.wait(SECONDS) == 0
        rest = b"".join(iter(self._lines.get, b"")).decode()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return rest, errors

    def kill(self) -> None:
        """End it, however far it is."""
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
