"""An adapter in a process of its own, as the harness sees it."""

from __future__ import annotations

import contextlib
import json
import mmap
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.environments import ROOT, cache, clean_environment, interpreter
from benchmarks.measure import process_cpu

LIMIT = 180.0


class AdapterFailed(Exception):
    """The process ended or kept silent; the message holds the end of what it wrote to stderr."""


class Counter:
    """Handlers finished, summed over the workers: one small shared file each."""

    def __init__(self) -> None:
        self._maps: list[mmap.mmap] = []
        self._files: list[Path] = []

    def add(self) -> str:
        """The path of one more worker's file."""
        with tempfile.NamedTemporaryFile(dir=cache(), prefix="count-", delete=False) as file:
            file.write(bytes(8))
            file.flush()
            self._maps.append(mmap.mmap(file.fileno(), 8))
        self._files.append(Path(file.name))
        return file.name

    def reset(self) -> None:
        """Forget the workers so far."""
        self.close()
        self._maps.clear()
        self._files.clear()

    def close(self) -> None:
        """Remove the files."""
        for file in self._files:
            file.unlink(missing_ok=True)

    @property
    def value(self) -> int:
        """How many so far."""
        return sum(int.from_bytes(shared[0:8], "little") for shared in self._maps)

    def wait(self, n: int, limit: float = LIMIT) -> float:
        """The moment at which the count was seen to be n or more."""
        deadline = time.monotonic() + limit
        while self.value < n:
            if time.monotonic() > deadline:
                raise AdapterFailed(f"{self.value} of {n} handlers after {limit:.0f} s")
            time.sleep(0.001)
        return time.monotonic()


class Process:
    """Start it, `expect("ready")`, `go()`, read its events, `stop()`."""

    def __init__(self, system: str, job: dict[str, Any]) -> None:
        family = "absurd-sdk" if system.startswith("absurd-sdk") else system
        module = "benchmarks.adapters." + system.replace("-", "_")
        self.system = system
        self._stderr = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - closed in close()
        self._process = subprocess.Popen(
            [str(interpreter(family)), "-s", "-m", module],
            cwd=ROOT,
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._write(job)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def cpu(self) -> float:
        """Seconds of CPU so far, from /proc."""
        return process_cpu(self.pid)

    def expect(self, event: str, limit: float = LIMIT) -> dict[str, Any]:
        """The next event, which must be this one."""
        try:
            got = self._events.get(timeout=limit)
        except queue.Empty:
            raise AdapterFailed(f"{self.system}: no {event!r} within {limit:.0f} s\n{self._complaint()}") from None
        if got is None or got.get("event") != event:
            raise AdapterFailed(f"{self.system}: expected {event!r}, got {got}\n{self._complaint()}")
        return got

    def go(self) -> None:
        """Let the timed part begin."""
        self._write({"go": True})

    def stop(self) -> dict[str, Any]:
        """End a worker; what it had to say at its end."""
        self._write({"stop": True})
        return self.expect("done", 30.0)

    def close(self) -> None:
        """Wait for the end of the process, or make it."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def _write(self, line: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise AdapterFailed(f"{self.system} has ended\n{self._complaint()}") from None

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # some packages print to stdout
                self._events.put(json.loads(line))
        self._events.put(None)

    def _complaint(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        self._stderr.seek(0)
        return self._stderr.read()[-3000:]


@contextlib.contextmanager
def started(system: str, jobs: list[dict[str, Any]]) -> Iterator[list[Process]]:
    """Processes of one system, all of them ready; gone at the end."""
    processes: list[Process] = []
    try:
        for job in jobs:
            processes.append(Process(system, job))
        for process in processes:
            process.expect("ready")
        yield processes
    finally:
        for process in processes:
            process.close()


def one_shot(system: str, job: dict[str, Any]) -> None:
    """Install or fill: untimed work from start to end."""
    process = Process(system, job)
    try:
        if job["role"] != "install":
            process.expect("ready")
            process.go()
        process.expect("done", 600.0)
    finally:
        process.close()
