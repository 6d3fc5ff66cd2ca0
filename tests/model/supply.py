"""What rules work on: tasks and runs chosen by small numbers, and made where there are none."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from tests.model.reference import SECOND, Fence, Swept, Task
from tests.model.stage import Named, Pick, Stage, at, seconds
from tests.sql.driver import Queue, Row, run_of

#: the options of a task that a rule needs: due at once, before all others
PLAIN: dict[str, Any] = {
    "max_attempts": None,
    "retry_strategy": None,
    "priority": 1000,
    "delay_seconds": 0,
    "cancellation": None,
}


class Supply(Stage):
    """Choosing and making."""

    # ---------------------------------------------------------------- choosing

    def pick(self, number: int, *states: str) -> Task | None:
        """One of the tasks in these states (none named: of all)."""
        found = self.model.in_state(*states) if states else list(self.model.tasks.values())
        return found[number % len(found)] if found else None

    def one(self, number: int, *states: str) -> Task:
        """As pick, where there is one for sure."""
        task = self.pick(number, *states)
        assert task is not None
        return task

    def named(self, picks: Sequence[Pick]) -> list[Named]:
        """Runs of different tasks: mostly those that run, also sleeping, ended, cleaned up and stale ones."""
        self.some(0)
        chosen: dict[uuid.UUID, Fence] = {}
        for number, which in picks:
            task = self.pick(number, "running", "sleeping") if which % 3 else None
            if task is None and self.known:
                task = list(self.known.values())[number % len(self.known)]
            if task is not None:
                chosen[task.id] = self._fence(task, which)
        return list(chosen.items())

    @staticmethod
    def _fence(task: Task, which: int) -> Fence:
        if which == 7 or not task.fences:
            return task.attempt, None
        return task.fences[max(len(task.fences) - 1 - max(which - 3, 0), 0)]

    def some(self, number: int) -> Task:
        """Any task; where there is none, one is spawned first."""
        if not self.model.tasks:
            self.spawned("work", PLAIN, None)
        return self.one(number)

    def running(self, number: int) -> Task:
        """A running task; where there is none, one is claimed first, and spawned if need be."""
        if not self.pick(0, "running"):
            due = [
                task for task in self.model.in_state("pending", "sleeping") if (task.due or self.now + 1) <= self.now
            ]
            if not due or any((task.cancel_at or self.now + 1) <= self.now for task in due):
                self.spawned("work", PLAIN, None)
            self.claimed(3, 30)
        return self.one(number, "running")

    def failed(self, number: int) -> Task:
        """A failed task; where there is none, a running one fails for good first."""
        if not self.pick(0, "failed"):
            task = self.running(number)
            columns = ("jsonb", [{"name": "Boom"}]), ("timestamptz", [None]), ("bool", [True])
            fence = (task.attempt, task.claim_no)
            assert self.q.letters("fail_runs", self.claims([(task.id, fence)]), *columns) == "o"
            self.model.fail([(task, "Boom", None, True)], self.now)
        return self.one(number, "failed")

    # ---------------------------------------------------------------- making

    def task(self, name: str, spec: dict[str, Any], key: str | None, task_id: uuid.UUID) -> Task:
        """As the model will keep it."""
        policy = spec["cancellation"] or {}
        return Task(
            task_id, name, -spec["priority"], spec["max_attempts"], spec["retry_strategy"],
            self.now + spec["delay_seconds"] * SECOND, self.now, key,
            seconds(policy.get("max_delay")), seconds(policy.get("max_duration")),
        )  # fmt: skip

    def agree_on_spawn(self, task: Task, row: Row) -> None:
        """The answer of a spawn: for this task, or for the one that had its key or its id before."""
        there, created = self.model.spawn(task)
        assert (row["task_id"], row["run_id"]) == (there.id, run_of(there.id, there.attempt))
        assert (row["attempt"], row["created"]) == (there.attempt, created)
        self.known[there.id] = there

    def spawned(self, name: str, spec: dict[str, Any], key: str | None) -> None:
        """One task by the single-row verb."""
        task = self.task(name, spec, key, self.mint())
        options = {**spec, "task_id": str(task.id)} | ({"idempotency_key": key} if key else {})
        self.agree_on_spawn(task, self.q.spawn(name, **options))

    def swept(self, queue: Queue) -> Swept:
        """What the claim before did, for the model to follow where the engine may choose."""
        failed = {row["run_id"] for row in queue.view("r", "state = 'failed'")}
        query = "select task_id, due_at from absurd.live where queue_id = %s and state = 'r'"
        due = {row["task_id"]: row["due_at"] for row in queue.rows(query, (queue.id,))}
        return Swept(
            lambda task: run_of(task.id, task.attempt) in failed,
            lambda task: task.lease is not None and task.lease > self.now and due.get(task.id) == at(task.lease),
        )

    def claimed(self, qty: int, lease: int) -> None:
        """By the single-row verb."""
        waits = {task.id: task.wait for task in self.model.tasks.values()}
        queue = self.q
        claimed = queue.claim(timeout=lease, qty=qty)
        expected = self.model.claim(self.now, lease * SECOND, qty, self.swept(queue))
        assert [run["run_id"] for run in claimed] == sorted(run_of(task.id, task.attempt) for task in expected)
        for run in claimed:
            wait = waits[run["task_id"]] if run["run_id"] == run_of(run["task_id"], run["attempt"]) else None
            timed_out = wait is not None and wait.step in self.model.tasks[run["task_id"]].timed_out
            assert run["wake_event"] == (wait.event if wait is not None and timed_out else None)
