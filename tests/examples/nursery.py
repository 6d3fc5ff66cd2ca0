"""Workers of the order example that stop where a test wants them: see `worker_program.py` for their side."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / "examples" / "python"
SECONDS = 30.0


@dataclass(frozen=True)
class Place:
    """Where a worker is: in which task, inside which step ("" between steps), after printing which line."""

    task: str
    step: str
    line: str


class Worker:
    """One worker process, held at each place until `go` or `kill`."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(SECONDS)
        self._lines = connection.makefile("rb")
        self.socket = connection
        self.pid = int(self._lines.readline())
        # It says one thing at a time and waits for the answer: nothing is left in the buffer, where no selector sees it.
        connection.sendall(b".")
        self.place: Place | None = None
        self._free: threading.Thread | None = None

    def next(self) -> Place | None:
        """The next place; None when the process has ended."""
        try:
            text = self._lines.readline()
        except ConnectionResetError:
            text = b""
        self.place = Place(**json.loads(text)) if text else None
        return self.place

    def go(self) -> None:
        """Let it go on."""
        self.socket.sendall(b".")

    def until(self, beginning: str) -> list[str]:
        """Let it go on until it has printed a line with this beginning, and hold it there; what it printed."""
        printed: list[str] = []
        while (place := self.next()) is not None:
            if place.line:
                printed.append(place.line)
                if place.line.startswith(beginning):
                    return printed
            self.go()
        raise AssertionError(f"the worker ended without printing {beginning!r}: {printed}")

    def run_freely(self) -> None:
        """Hold it nowhere from now on."""

        def answer() -> None:
            while self.next() is not None:
                with contextlib.suppress(OSError):
                    self.go()

        self.socket.settimeout(None)
        self._free = threading.Thread(target=answer, daemon=True)
        self._free.start()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        self._bury()

    def stop(self) -> None:
        """SIGTERM, and wait until it has left."""
        os.kill(self.pid, signal.SIGTERM)
        self._bury()

    def _bury(self) -> None:
        if self._free is not None:
            self._free.join(SECONDS)
        with contextlib.suppress(ConnectionResetError):
            while self._lines.readline():  # what it said before; the end of the stream is its death
                with contextlib.suppress(BrokenPipeError):
                    self.socket.sendall(b".")
        self._lines.close()
        self.socket.close()


class Nursery:
    """Starts workers on one database. Close it, and all of them are gone."""

    def __init__(self, url: str, folder: Path, *, lease: float = 1.0) -> None:
        path = str(folder / "nursery")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._listener.settimeout(SECONDS)
        self._request = json.dumps(
            {"url": url, "folder": str(PYTHON), "socket": path, "arguments": ["--claim-timeout", str(lease)]}
        )
        program = str(Path(__file__).with_name("worker_program.py"))
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen([sys.executable, program], env=env, stdin=subprocess.PIPE, text=True)

    def start(self) -> Worker:
        """A new worker, which may not have claimed anything yet."""
        assert self._process.stdin is not None
        self._process.stdin.write(self._request + "\n")
        self._process.stdin.flush()
        connection, _ = self._listener.accept()
        return Worker(connection)

    def close(self) -> None:
        """Kill what is left of the workers, by the ids of the children that are ours."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(SECONDS)
        self._listener.close()


class Watch:
    """Waits for several workers at once."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def add(self, worker: Worker) -> None:
        """Watch one more."""
        self._selector.register(worker.socket, selectors.EVENT_READ, worker)

    def drop(self, worker: Worker) -> None:
        """Watch it no longer."""
        self._selector.unregister(worker.socket)

    def ready(self, seconds: float) -> list[Worker]:
        """The workers that have come to a place; none when `seconds` pass without."""
        return [key.data for key, _ in self._selector.select(seconds)]

    def close(self) -> None:
        """Release what the watch holds."""
        self._selector.close()
