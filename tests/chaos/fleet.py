"""The workers: a few slots, each with a process in it that is killed, stopped, sent away, and replaced."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.chaos.plan import LEASE, WORKERS

ROOT = Path(__file__).parents[2]
SLOTS = 10
LEAVES_WITHIN = 30.0
HOUR = 3600.0
#: world and clock of each worker: two keep the right time, one is an hour ahead, one an hour behind
KINDS = (("async", 0.0), ("sync", 0.0), ("async", HOUR), ("sync", -HOUR))


class Worker:
    """One process; `id` is its worker id, never used again."""

    def __init__(self, id: str, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.id, self.process, self._folder = id, process, folder
        self.ours = False  # whether its end is our doing
        self.stopped = False  # by SIGSTOP, at this moment

    @property
    def started(self) -> bool:
        """Whether it has got so far as to work; before, without a database, it ends with an error."""
        return (self._folder / "up" / self.id).exists()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def log(self) -> str:
        return (self._folder / "logs" / self.id).read_text(errors="replace")


class Hit(NamedTuple):
    """A fault that hit a worker, from one moment of the wall clock to another."""

    since: float
    until: float
    what: str


class Departure(NamedTuple):
    """A worker that left when asked to: between these moments (of the wall clock)."""

    worker: str
    asked: float
    gone: float


class Fleet:
    """Keeps a process in every slot; a worker that ends by itself, once at work, is a failure."""

    def __init__(self, folder: Path, urls: list[str], queues: list[str]) -> None:
        self._folder, self._urls, self._queues = folder, urls, queues
        for name in ("up", "logs"):
            (folder / name).mkdir(exist_ok=True)
        self.workers: list[Worker | None] = [None] * WORKERS
        self.every: list[Worker] = []
        self.departures: list[Departure] = []
        self.hits: dict[str, list[Hit]] = {}  # by worker id
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._locks = [threading.RLock() for _ in range(WORKERS)]
        self._closed = threading.Event()
        # workers read from it: when we are gone, however that came, it ends, and so do they
        self._lifeline, self._held = os.pipe()
        for slot in range(WORKERS):
            self._start(slot)
        self._watch = threading.Thread(target=self._supervise, daemon=True)
        self._watch.start()

    def _start(self, slot: int) -> None:
        id = f"w{slot}-{len(self.every)}"
        world, shift = KINDS[slot]
        settings = {
            "worker_id": id,
            "world": world,
            "shift": shift,
            "url": self._urls[slot],
            "queues": self._queues,
            "folder": str(self._folder),
            "lease": LEASE,
            "slots": SLOTS,
        }
        with open(self._folder / "logs" / id, "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.worker", json.dumps(settings)],
                stdin=self._lifeline,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )
        worker = Worker(id, process, self._folder)
        self.every.append(worker)
        self.workers[slot] = worker

    def hit(self, worker: Worker, what: str, since: float | None = None) -> None:
        """Note that a fault has hit a worker, from `since` until now: what it held may run out."""
        now = time.time()
        self.hits.setdefault(worker.id, []).append(Hit(now if since is None else since, now, what))

    def hit_all(self, what: str, since: float) -> None:
        """Note a fault of the server."""
        for worker in list(self.every):
            self.hit(worker, what, since)

    # -- faults --------------------------------------------------------------------------------------------------------

    def kill(self, slot: int, pause: float) -> None:
        """SIGKILL whoever works there, whatever state it is in; replaced after a pause."""
        with self._locks[slot]:
            worker = self._at_work(slot)
            worker.ours = True
            self.hit(worker, "kill")
            worker.process.kill()
            worker.process.wait()
            self.counts["kill"] += 1
            time.sleep(pause)
            if not self._closed.is_set():
                self._start(slot)

    def stop(self, slot: int, seconds: float) -> None:
        """SIGSTOP for a while. It may be killed meanwhile."""
        with self._locks[slot]:
            worker = self._at_work(slot)
            since = time.time()
            worker.stopped = True
            worker.process.send_signal(signal.SIGSTOP)
            self.counts["stop"] += 1
        time.sleep(seconds)
        if worker.alive:
            worker.process.send_signal(signal.SIGCONT)
        worker.stopped = False
        self.hit(worker, "stop", since)

    def term(self, slot: int, pause: float) -> None:
        """SIGTERM: it hands back what it holds, leaves, and is replaced."""
        with self._locks[slot]:
            worker = self._at_work(slot)
            self._ask_to_leave(worker)
            self.counts["term"] += 1
            time.sleep(pause)
            if not self._closed.is_set():
                self._start(slot)

    def _at_work(self, slot: int) -> Worker:
        """The worker of a slot, once it is at work."""
        while True:
            worker = self.workers[slot]
            assert worker is not None
            if worker.alive and worker.started and not worker.stopped:
                return worker
            time.sleep(0.02)
            self._replace_failed(slot)

    def _ask_to_leave(self, worker: Worker) -> None:
        worker.ours = True
        asked = time.time()
        worker.process.send_signal(signal.SIGTERM)
        try:
            code = worker.process.wait(LEAVES_WITHIN)
        except subprocess.TimeoutExpired:
            self.failures.append(f"worker {worker.id} did not leave within {LEAVES_WITHIN:.0f} s of SIGTERM")
            worker.process.kill()
            worker.process.wait()
            return
        if code != 0:
            self.failures.append(f"worker {worker.id} left with {code} after SIGTERM:\n{worker.log()[-2000:]}")
        self.departures.append(Departure(worker.id, asked, time.time()))

    # -- keeping them up -----------------------------------------------------------------------------------------------

    def _supervise(self) -> None:
        while not self._closed.is_set():
            for slot in range(WORKERS):
                if self._locks[slot].acquire(blocking=False):
                    try:
                        self._replace_failed(slot)
                    finally:
                        self._locks[slot].release()
            self._closed.wait(0.2)

    def _replace_failed(self, slot: int) -> None:
        worker = self.workers[slot]
        if self._closed.is_set() or worker is None or worker.alive or worker.ours:
            return
        worker.ours = True
        if worker.started or "ConnectionLost" not in worker.log():
            self.failures.append(
                f"worker {worker.id} ended by itself ({worker.process.poll()}):\n{worker.log()[-3000:]}"
            )
        self.counts["start in vain"] += 1
        self._closed.wait(0.2)
        self._start(slot)

    def wait_started(self, seconds: float = 30.0) -> bool:
        """Until every slot has a worker at work."""
        deadline = time.monotonic() + seconds
        while not all(worker and worker.alive and worker.started for worker in self.workers):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def leave(self) -> None:
        """SIGTERM to all, at once; wait for their ends."""
        self._closed.set()
        self._watch.join()
        leaving: list[Callable[[], None]] = []
        for worker in self.workers:
            if worker is not None and worker.alive and worker.started:
                leaving.append(lambda worker=worker: self._ask_to_leave(worker))  # type: ignore[misc]
        threads = [threading.Thread(target=one) for one in leaving]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def close(self) -> None:
        """Kill what is left."""
        self._closed.set()
        for worker in self.every:
            if worker.alive:
                worker.process.kill()
                worker.process.wait()
        os.close(self._held)
        os.close(self._lifeline)

    def said(self, patterns: dict[str, str]) -> Counter[str]:
        """How often each pattern stands in all logs."""
        found: Counter[str] = Counter()
        for worker in self.every:
            text = worker.log()
            for name, pattern in patterns.items():
                found[name] += len(re.findall(pattern, text))
        return found

    def report(self) -> dict[str, Any]:
        return {worker.id: worker.log()[-1500:] for worker in self.workers if worker is not None}
