"""Who spawns tasks and emits their events, through the same faults; what it was promised stands in its ledger."""

from __future__ import annotations

import heapq
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import psycopg
import psycopg_pool

from absurd import Absurd
from absurd._sync.session import mint_task_ids
from absurd.errors import ConnectionLost

T = TypeVar("T")
HOUR_MS = 3_600_000
OPTIONS = {"max_attempts": 10_000, "retry_strategy": {"kind": "fixed", "base_seconds": 0.5, "jitter": 1}}
TROUBLE = (ConnectionLost, psycopg.OperationalError, psycopg_pool.PoolTimeout)
#: shares: told a second time, napping, waiting with a timeout, sharing their event with others
AGAIN, NAPPING, LIMITED, SHARING = 0.1, 0.1, 0.2, 0.2
NAP, LIMIT = 0.3, 1800.0  # seconds; by a clock that is an hour off, naps would never end and limits be over at once


class Entry(NamedTuple):
    """A task that was spawned: acknowledged, so it has to end as it should."""

    n: int
    queue: str
    task_id: uuid.UUID
    event: str
    payload: int


class Producer:
    """Two threads: one spawns evenly until a round's tasks are out, one emits what is due."""

    def __init__(self, url: str, queues: list[str], seed: int) -> None:
        self._url, self._queues = url, queues
        self._rng = random.Random(seed)
        self.ledger: list[Entry] = []
        self.failures: list[str] = []
        self.counts: Counter[str] = Counter()
        self._events: list[tuple[float, str, str, int]] = []
        self._told: dict[tuple[str, str], int] = {}
        self._changed = threading.Condition()
        self._target, self._rate = 0, 1.0
        self._since = 0.0
        self._base = 0
        self._open = True
        self._busy = 0
        self._threads = [
            threading.Thread(target=self._guard, args=(part,)) for part in (self._spawn_all, self._emit_all)
        ]
        for thread in self._threads:
            thread.start()

    def begin(self, tasks: int, seconds: float) -> None:
        """Spawn so many more, evenly over these seconds where the database lets us."""
        with self._changed:
            self._base = self._target
            self._target += tasks
            self._rate, self._since = tasks / seconds, time.monotonic()
            self._changed.notify_all()

    @property
    def target(self) -> int:
        """How many tasks there are to be, of all rounds so far."""
        return self._target

    @property
    def done(self) -> bool:
        """Whether everything is spawned and emitted; or never will be."""
        with self._changed:
            idle = len(self.ledger) >= self._target and not self._events and not self._busy
        return idle or bool(self.failures)

    def close(self) -> None:
        with self._changed:
            self._open = False
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _guard(self, part: Callable[[], None]) -> None:
        try:
            part()
        except Exception as error:
            self.failures.append(f"the producer ended: {type(error).__name__}: {error}")

    # -- spawning ------------------------------------------------------------------------------------------------------

    def _spawn_all(self) -> None:
        with Absurd(self._url, self._queues[0]) as app:
            while self._wait_due():
                size = self._rng.choice([1, 1, 1, 5, 20])
                count = min(size, self._target - len(self.ledger))
                self._spawn(app, [self._make(len(self.ledger) + nth) for nth in range(count)])

    def _wait_due(self) -> bool:
        """Until another task is to be spawned; False once closed."""
        with self._changed:
            while self._open:
                due = min(self._target, self._base + int((time.monotonic() - self._since) * self._rate) + 1)
                if len(self.ledger) < due:
                    return True
                self._changed.wait(0.02 if len(self.ledger) < self._target else 0.2)
        return False

    def _make(self, n: int) -> dict[str, Any]:
        shared = self._rng.random() < SHARING
        event = f"go:{n // 50}" if shared else f"go:{n}:alone"
        queue = self._queues[n % len(self._queues)]
        params: dict[str, Any] = {"n": n, "event": event}
        if self._rng.random() < NAPPING:
            params["nap"] = NAP
        if self._rng.random() < LIMITED:
            params["timeout"] = LIMIT
        return {"queue": queue, "params": params}

    def _spawn(self, app: Absurd, tasks: list[dict[str, Any]]) -> None:
        queue = tasks[0]["queue"]
        for task in tasks:
            task["queue"] = queue  # one call goes to one queue
        way = self._rng.choice([self._by_key, self._by_keys, self._by_minted_id])
        if way == self._by_key:
            tasks = tasks[:1]
        found = way(app, tasks)
        if self._rng.random() < AGAIN:
            self.counts["spawns repeated"] += len(tasks)
            again = way(app, tasks)
            if again != found:
                self.failures.append(f"a repeated spawn gave other tasks: {found} and {again}")
        with self._changed:
            for task, task_id in zip(tasks, found, strict=True):
                self._enter(queue, task["params"], task_id)
            self._changed.notify_all()

    def _enter(self, queue: str, params: dict[str, Any], task_id: uuid.UUID) -> None:
        """Into the ledger; whoever names an event first decides what it brings."""
        n, event = params["n"], params["event"]
        payload = self._told.setdefault((queue, event), n * 7)
        self.ledger.append(Entry(n, queue, task_id, event, payload))
        if payload == n * 7:
            at = time.monotonic() + self._rng.choice([0, 1, 3]) * self._rng.random()
            heapq.heappush(self._events, (at, queue, event, payload))

    def _by_key(self, app: Absurd, tasks: list[dict[str, Any]]) -> list[uuid.UUID]:
        return [self._until(partial(app.spawn, **self._request(task)))["task_id"] for task in tasks]

    def _by_keys(self, app: Absurd, tasks: list[dict[str, Any]]) -> list[uuid.UUID]:
        requests: Any = [self._request(task) for task in tasks]
        return [spawned["task_id"] for spawned in self._until(lambda: app.spawn_many(requests))]

    def _request(self, task: dict[str, Any]) -> dict[str, Any]:
        params, queue = task["params"], task["queue"]
        key = f"journey-{params['n']}"
        return {"task_name": self._name(queue), "params": params, "queue": queue, "idempotency_key": key, **OPTIONS}

    def _name(self, queue: str) -> str:
        return "journey" if queue == self._queues[0] else f"journey@{queue}"

    def _by_minted_id(self, app: Absurd, tasks: list[dict[str, Any]]) -> list[uuid.UUID]:
        """Without a key: ids made here, by a clock that may be an hour off."""
        for task in tasks:
            task.setdefault("id", _shifted(mint_task_ids(1)[0], self._rng.choice([-HOUR_MS, 0, 0, HOUR_MS])))

        def send() -> list[uuid.UUID]:
            with app._session.connection() as conn:
                return [
                    conn.execute(
                        "select task_id from absurd.spawn_task(%s, %s, %s, %s)",
                        (
                            task["queue"],
                            self._name(task["queue"]),
                            psycopg.types.json.Jsonb(task["params"]),
                            psycopg.types.json.Jsonb({**OPTIONS, "task_id": str(task["id"])}),
                        ),
                    ).fetchall()[0][0]
                    for task in tasks
                ]

        return self._until(send)

    # -- emitting ------------------------------------------------------------------------------------------------------

    def _emit_all(self) -> None:
        with Absurd(self._url, self._queues[0]) as app:
            while due := self._due_events():
                for queue in self._queues:
                    self._emit(app, queue, [(event, payload) for _, at, event, payload in due if at == queue])
                self._busy = 0

    def _emit(self, app: Absurd, queue: str, events: list[tuple[str, int]]) -> None:
        if len(events) == 1:
            self._until(lambda: app.emit_event(*events[0], queue_name=queue))
        elif events:
            self._until(lambda: app.emit_many(events, queue_name=queue))
        if events and random.random() < AGAIN:  # the first one counts, whatever comes later
            self.counts["emits repeated"] += len(events)
            self._until(lambda: app.emit_many([(event, -1) for event, _ in events], queue_name=queue))

    def _due_events(self) -> list[tuple[float, str, str, int]]:
        """Events whose time has come; empty once closed."""
        with self._changed:
            while self._open:
                due = []
                while self._events and self._events[0][0] <= time.monotonic():
                    due.append(heapq.heappop(self._events))
                if due:
                    self._busy = len(due)
                    return due
                self._changed.wait(0.02 if self._events else 0.2)
        return []

    def _until(self, call: Callable[[], T]) -> T:
        """Repeat a call until it is answered: each is of a kind that may be repeated."""
        while True:
            try:
                return call()
            except TROUBLE:
                self.counts["calls repeated"] += 1
                if not self._open:
                    raise
                time.sleep(0.05)


def _shifted(task_id: uuid.UUID, milliseconds: int) -> uuid.UUID:
    """The id with its time moved."""
    return uuid.UUID(int=task_id.int + (milliseconds << 80))
