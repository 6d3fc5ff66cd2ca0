"""What the engine should do, as plainly as it can be said: dictionaries, no locks, no SQL.

One queue, and nobody else there, so nothing is ever busy. Moments are microseconds. The rules are those of the contract;
what it leaves open (how many expired leases a claim fails, the letters of the array verbs) is said as the engine says it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

SECOND = 1_000_000
ENDED = ("completed", "failed", "cancelled")

#: a run as an array verb names it: attempt, and the claim it was handed out under (None: not compared)
Fence = tuple[int, int | None]


@dataclass
class Wait:
    """What a sleeping task waits for: an event, or the end of a task."""

    step: str
    event: str
    timeout_at: int | None
    task: uuid.UUID | None = None

    def late(self, now: int) -> bool:
        """Whether its time had passed: then what it waited for comes too late, and the claim says that it timed out."""
        return self.timeout_at is not None and self.timeout_at <= now


@dataclass
class Task:
    """A task and its current run."""

    id: uuid.UUID
    name: str
    rank: int
    max_attempts: int | None
    retry: dict[str, Any] | None
    due: int | None  # pending, sleeping: when it may start; running: when somebody looks at its lease; None: never
    spawned_at: int
    key: str | None = None
    max_delay: int | None = None
    max_duration: int | None = None
    cancel_at: int | None = None
    state: str = "pending"
    attempt: int = 1
    claim_no: int = 0
    lease: int | None = None
    first_started: int | None = None
    finished_at: int | None = None
    result: Any = None
    failure: Any = None
    wait: Wait | None = None
    timed_out: set[str] = field(default_factory=set)
    checkpoints: dict[str, Any] = field(default_factory=dict)
    written_by: dict[str, int] = field(default_factory=dict)  # step -> attempt
    runs: dict[int, tuple[str, int]] = field(default_factory=dict)  # ended attempt -> state, claim number
    fences: list[tuple[int, int]] = field(default_factory=list)  # every claim ever handed out

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def keep(self, step: str, value: Any) -> None:
        """A result of the current attempt."""
        self.timed_out.discard(step)
        self.checkpoints[step], self.written_by[step] = value, self.attempt

    def pause(self) -> int:
        """Microseconds between this attempt's failure and the next."""
        if self.retry is None:
            return 0
        if self.retry["kind"] == "fixed":
            return int(self.retry["base_seconds"] * SECOND)
        grown = self.retry["base_seconds"] * self.retry["factor"] ** (self.attempt - 1)
        return int(min(grown, self.retry["max_seconds"]) * SECOND)


@dataclass
class Event:
    """An emitted event."""

    payload: Any
    emitted_at: int
    taken: bool = False


@dataclass(frozen=True)
class Swept:
    """What the engine did to leases that ran out at one and the same moment, where it may take any: which it failed, and
    which, renewed meanwhile, it will look at later."""

    failed: Callable[[Task], bool]
    moved: Callable[[Task], bool]


class Engine:
    """The reference."""

    def __init__(self) -> None:
        self.tasks: dict[uuid.UUID, Task] = {}
        self.events: dict[str, Event] = {}

    def in_state(self, *states: str) -> list[Task]:
        return [task for task in self.tasks.values() if task.state in states]

    # ---------------------------------------------------------------- spawn

    def spawn(self, task: Task) -> tuple[Task, bool]:
        """(the task that there is now, whether it is this one): a key in use answers with its task."""
        holder = next((t for t in self.tasks.values() if task.key is not None and t.key == task.key), None)
        if holder is not None:
            return holder, False
        if task.max_delay is not None:
            task.cancel_at = (task.due or 0) + task.max_delay
        self.tasks[task.id] = task
        return task, True

    # ---------------------------------------------------------------- claim

    def claim(self, now: int, lease: int, qty: int, swept: Swept, names: Sequence[str] | None = None) -> list[Task]:
        """In the order of priority, due time and id."""
        self.enforce(now)
        self._sweep(now, max(min(qty, (qty + 6) // 3), 1), swept)
        ready = [
            task
            for task in self.in_state("pending", "sleeping")
            if task.due is not None and task.due <= now and (names is None or task.name in names)
        ]
        taken = sorted(ready, key=lambda task: (task.rank, task.due, task.id))[:qty]
        for task in taken:
            self._start(task, now, lease)
        return taken

    def enforce(self, now: int) -> int:
        """Cancel what is past its policy."""
        late = [task for task in self.tasks.values() if not task.ended and (task.cancel_at or now + 1) <= now]
        self.cancel(late, now)
        return len(late)

    def _sweep(self, now: int, limit: int, swept: Swept) -> None:
        """Look at leases in the order in which they were to be looked at, so many at a time, until some did run out."""
        while True:
            due = [task for task in self.in_state("running") if task.due is not None and task.due <= now]
            due.sort(key=lambda task: (task.due, not swept.moved(task), not swept.failed(task)))
            batch = due[:limit]
            expired = [task for task in batch if task.lease is not None and task.lease <= now]
            for task in batch:
                task.due = task.lease
            if expired or not batch:
                self.fail([(task, "lease", None, False) for task in expired], now)
                return

    def _start(self, task: Task, now: int, lease: int) -> None:
        if task.wait is not None:  # its time has come without the event
            task.timed_out.add(task.wait.step)
            task.wait = None
        if task.first_started is None:
            task.first_started = now
            task.cancel_at = None if task.max_duration is None else now + task.max_duration
        task.state, task.due, task.lease = "running", now + lease, now + lease
        task.claim_no += 1
        task.fences.append((task.attempt, task.claim_no))

    # ---------------------------------------------------------------- what became of a run

    def letter(self, task: Task | None, fence: Fence, verb: str, step: str = "") -> str:
        """What an array verb answers for a run of a task: o means that it may be written."""
        if task is None:
            return "m"
        attempt, claim_no = fence
        if attempt == task.attempt and not task.ended:
            if task.state == "running" or (verb == "fail" and task.state == "sleeping"):
                return "o" if claim_no in (None, task.claim_no) else "l"
            state, under = task.state, task.claim_no
        else:
            state, under = task.runs[attempt]
        if state in ("cancelled", "failed"):
            return "c" if task.state == "cancelled" else "f"
        if under != claim_no:
            return "l"
        if verb == "checkpoint":
            return "r" if task.written_by.get(step) == attempt else "l"
        repeatable = ("complete", "extend") if state == "completed" else ("schedule", "await", "extend")
        return "r" if verb in repeatable else "l"

    def refusal(self, task: Task, attempt: int, verb: str) -> str:
        """The SQLSTATE of a single-row verb for a run that it cannot write."""
        state = task.state if attempt == task.attempt and not task.ended else task.runs[attempt][0]
        asked = task.state if verb in ("checkpoint", "extend", "await") else state
        if verb != "schedule" and asked == "cancelled":
            return "AB001"
        return "AB002" if state == "failed" and verb not in ("schedule", "await") else "P0001"

    # ---------------------------------------------------------------- ends

    def _end(self, task: Task, state: str, now: int, run_state: str | None = None) -> None:
        task.runs[task.attempt] = (run_state or state, task.claim_no)
        task.state, task.due, task.lease, task.wait = state, None, None, None
        task.cancel_at, task.finished_at = None, now

    def _tell(self, ended: Iterable[Task], now: int) -> None:
        for task in ended:
            outcome: dict[str, Any] = {"state": task.state}
            if task.state == "completed":
                outcome["result"] = task.result
            for waiter in self.tasks.values():
                if waiter.wait is not None and waiter.wait.task == task.id:
                    self._wake(waiter, outcome, now)

    def _wake(self, task: Task, value: Any, now: int) -> bool:
        assert task.wait is not None
        if task.wait.late(now):
            return False
        task.keep(task.wait.step, value)
        task.wait, task.state, task.due = None, "pending", now
        return True

    def complete(self, results: Sequence[tuple[Task, Any]], now: int) -> None:
        for task, result in results:
            task.result = result
            self._end(task, "completed", now)
        self._tell([task for task, _ in results], now)

    def fail(self, failures: Sequence[tuple[Task, Any, int | None, bool]], now: int) -> None:
        """(task, reason, when to try again instead of what the strategy says, whether it is the last attempt anyway)"""
        for task, *_ in failures:
            task.wait = None
        for task, reason, retry_at, final in failures:
            start = max(now, now + task.pause() if retry_at is None else retry_at)
            over = None if task.max_duration is None else (task.first_started or 0) + task.max_duration
            task.failure = reason
            if final or (task.max_attempts is not None and task.attempt + 1 > task.max_attempts):
                self._end(task, "failed", now)
            elif over is not None and start >= over:
                self._end(task, "cancelled", now, "failed")
            else:
                task.runs[task.attempt] = ("failed", task.claim_no)
                task.attempt, task.due, task.lease = task.attempt + 1, start, None
                task.state = "sleeping" if start > now else "pending"
        self._tell([task for task, *_ in failures if task.ended], now)

    def cancel(self, tasks: Sequence[Task], now: int) -> None:
        """A no-op for what has ended."""
        unfinished = [task for task in tasks if not task.ended]
        for task in unfinished:
            self._end(task, "cancelled", now)
        self._tell(unfinished, now)

    def retry(self, task: Task, now: int, limit: int | None = None) -> None:
        """Another attempt for a failed task."""
        task.max_attempts = limit or (task.max_attempts or task.attempt) + 1
        task.attempt += 1
        task.state, task.due, task.finished_at, task.failure = "pending", now, None, None
        if task.first_started is not None:
            task.cancel_at = None if task.max_duration is None else task.first_started + task.max_duration

    # ---------------------------------------------------------------- leases, sleeps, waits

    def extend(self, task: Task, until: int) -> None:
        """Renew a lease: a shorter one is looked at sooner, a longer one no later than before."""
        assert task.due is not None
        task.lease, task.due = until, min(task.due, until)

    def sleep(self, task: Task, until: int) -> None:
        task.state, task.due, task.lease = "sleeping", until, None

    def answered(self, task: Task, step: str) -> tuple[str, Any] | None:
        """What a wait finds that was answered before, whatever became of the run: (status, payload)."""
        if step in task.checkpoints:
            return "a", task.checkpoints[step]
        return ("t", None) if step in task.timed_out else None

    def await_event(
        self,
        task: Task,
        step: str,
        event: str,
        now: int,
        timeout: int | None,
        since: int | None = None,
        ok: bool = True,
    ) -> tuple[str, Any] | None:
        """(status, payload): a answered, t timed out, s asleep. None: there is nothing to say, and the run may not wait."""
        if (known := self.answered(task, step)) is not None:
            return known
        if not ok:
            return None
        found = self.events.get(event)
        if found is not None and (since is None or found.emitted_at > since):
            found.taken = True
            task.keep(step, found.payload)
            return "a", found.payload
        self._wait(task, Wait(step, event, None if timeout is None else now + timeout))
        return "s", None

    def await_task(
        self, task: Task, step: str, awaited: uuid.UUID, now: int, timeout: int | None, ok: bool = True
    ) -> tuple[str, Any] | None:
        """As await_event; u: there is no such task."""
        if (known := self.answered(task, step)) is not None or not ok:
            return known
        other = self.tasks.get(awaited)
        if other is None:
            return "u", None
        if not other.ended:
            self._wait(task, Wait(step, f"$task:{awaited}", None if timeout is None else now + timeout, awaited))
            return "s", None
        task.keep(step, {"state": other.state} | ({"result": other.result} if other.state == "completed" else {}))
        return "a", task.checkpoints[step]

    def _wait(self, task: Task, wait: Wait) -> None:
        task.wait, task.state, task.due, task.lease = wait, "sleeping", wait.timeout_at, None

    def emit(self, event: str, payload: Any, now: int, mode: str = "latch") -> str:
        """o emitted, x there already."""
        if event in self.events and mode == "latch":
            return "x"
        emitted = self.events[event] = Event(payload, now)
        for task in self.tasks.values():
            if task.wait is not None and task.wait.task is None and task.wait.event == event:
                emitted.taken |= self._wake(task, payload, now)
        return "o"

    # ---------------------------------------------------------------- retention

    def cleanup_tasks(self, before: int, limit: int, gone: Callable[[Task], bool]) -> int:
        """`gone`: which of several that ended at one moment went; the engine may take any."""
        old = [task for task in self.tasks.values() if task.ended and (task.finished_at or 0) < before]
        old.sort(key=lambda task: (task.finished_at or 0, not gone(task)))
        for task in old[:limit]:
            del self.tasks[task.id]
        return len(old[:limit])

    def cleanup_events(self, before: int, untaken: bool = True) -> int:
        """`untaken`: also events that no task has received."""
        old = [name for name, event in self.events.items() if event.emitted_at < before and (untaken or event.taken)]
        for name in old:
            del self.events[name]
        return len(old)
