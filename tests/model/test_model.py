"""Random calls against the engine and against a plain model of it: they must agree after every step."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.fixtures.postgres import Databases
from tests.model.reference import SECOND, Engine, Task
from tests.sql.driver import Queue, refused, run_of

START = datetime(2026, 3, 2, 12, tzinfo=UTC)
STEPS = 40
_queues = itertools.count()


class Machine(RuleBasedStateMachine):
    """One queue, three connections that show the same time, and the model."""

    connections: ClassVar[list[psycopg.Connection[Any]]]

    @initialize()
    def begin(self) -> None:
        name = f"m{next(_queues)}"
        self.now = 0
        self.model = Engine()
        self.queues = [Queue(conn, name) for conn in self.connections]
        self.queues[0].conn.execute("select absurd.create_queue(%s)", (name,))
        self.turn = itertools.cycle(self.queues)
        self.names = itertools.count(1)
        self.moment = int(time.time() * 1000)
        self.ticks = itertools.count(1)

    @property
    def q(self) -> Queue:
        """The next connection, its clock at now."""
        queue = next(self.turn)
        moment = START + timedelta(microseconds=self.now)
        queue.conn.execute("select set_config('absurd.fake_now', %s, false)", (moment.isoformat(),))
        return queue

    def pick(self, number: int, *states: str) -> Task | None:
        found = [task for task in self.model.tasks.values() if not states or task.state in states]
        return found[number % len(found)] if found else None

    @rule(seconds=st.integers(0, 20))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds * SECOND + next(self.ticks)  # no two moments are the same

    @rule(
        attempts=st.sampled_from([None, 1, 2, 3]),
        pause=st.sampled_from([0, 7]),
        priority=st.integers(-2, 2),
        delay=st.sampled_from([0, 0, 5]),
    )
    def spawn(self, attempts: int | None, pause: int, priority: int, delay: int) -> None:
        self.time_passes(0)
        # ids of our own, so that their order is the same every time
        minted = uuid.UUID(int=self.moment << 80 | 7 << 76 | 2 << 62 | next(self.names) << 16)
        options: dict[str, Any] = {"priority": priority, "delay_seconds": delay, "task_id": str(minted)}
        if attempts:
            options["max_attempts"] = attempts
        if pause:
            options["retry_strategy"] = {"kind": "fixed", "base_seconds": pause}
        spawned = self.q.spawn(**options)
        due = self.now + delay * SECOND
        self.model.spawn(Task(spawned["task_id"], -priority, attempts, pause * SECOND, due))

    @rule(qty=st.integers(1, 6), lease=st.sampled_from([3, 30]))
    def claim(self, qty: int, lease: int) -> None:
        self.time_passes(0)
        queue = self.q
        claimed = queue.claim(timeout=lease, qty=qty)
        ended = {row["run_id"] for row in queue.view("r", "state = 'failed'")}
        expected = self.model.claim(self.now, lease * SECOND, qty, lambda task: run_of(task.id, task.attempt) in ended)
        assert [run["run_id"] for run in claimed] == sorted(run_of(task.id, task.attempt) for task in expected)

    @rule(number=st.integers(0, 50))
    @precondition(lambda self: self.pick(0, "running"))
    def complete(self, number: int) -> None:
        task = self.pick(number, "running")
        assert task is not None
        self.q.complete(run_of(task.id, task.attempt), {"n": number})
        self.model.complete(task, {"n": number})

    @rule(number=st.integers(0, 50))
    @precondition(lambda self: self.pick(0, "running"))
    def fail(self, number: int) -> None:
        self.time_passes(0)
        task = self.pick(number, "running")
        assert task is not None
        self.q.fail(run_of(task.id, task.attempt))
        self.model.fail(task, self.now)

    @rule(number=st.integers(0, 50), step=st.sampled_from("ab"))
    @precondition(lambda self: self.pick(0, "running"))
    def checkpoint(self, number: int, step: str) -> None:
        task = self.pick(number, "running")
        assert task is not None
        self.q.checkpoint({"task_id": task.id, "run_id": run_of(task.id, task.attempt)}, step, number)
        task.checkpoints[step] = number

    @rule(number=st.integers(0, 50), event=st.sampled_from("xyz"), timeout=st.sampled_from([None, 4, 40]))
    @precondition(lambda self: self.pick(0, "running"))
    def await_event(self, number: int, event: str, timeout: int | None) -> None:
        self.time_passes(0)
        task = self.pick(number, "running")
        assert task is not None
        step = f"wait {event}"
        run = {"task_id": task.id, "run_id": run_of(task.id, task.attempt)}
        asleep, payload = self.q.await_event(run, event, step, timeout)
        expected = self.model.await_event(task, step, event, self.now, timeout and timeout * SECOND)
        assert (asleep, payload) == (expected[0], None if expected[1] is None else str(expected[1]))

    @rule(number=st.integers(0, 50), seconds=st.integers(0, 9))
    @precondition(lambda self: self.pick(0, "running"))
    def sleep(self, number: int, seconds: int) -> None:
        self.time_passes(0)
        task = self.pick(number, "running")
        assert task is not None
        until = self.now + seconds * SECOND
        self.q.schedule(run_of(task.id, task.attempt), START + timedelta(microseconds=until))
        self.model.sleep(task, until)

    @rule(event=st.sampled_from("xyz"), payload=st.integers(1, 9))
    def emit(self, event: str, payload: int) -> None:
        self.time_passes(0)
        self.q.emit(event, payload)
        self.model.emit(event, payload, self.now)

    @rule(number=st.integers(0, 50))
    @precondition(lambda self: self.model.tasks)
    def cancel(self, number: int) -> None:
        task = self.pick(number)
        assert task is not None
        self.q.cancel(task.id)
        self.model.cancel(task)

    @rule(number=st.integers(0, 50))
    @precondition(lambda self: self.pick(0, "failed"))
    def retry(self, number: int) -> None:
        self.time_passes(0)
        task = self.pick(number, "failed")
        assert task is not None
        self.q.retry(task.id)
        self.model.retry(task, self.now)

    @rule(number=st.integers(0, 50))
    @precondition(lambda self: self.pick(0, "completed", "cancelled", "failed"))
    def a_run_that_is_over_is_refused(self, number: int) -> None:
        task = self.pick(number, "completed", "cancelled", "failed")
        assert task is not None
        state = {"completed": "P0001", "failed": "AB002", "cancelled": "AB001"}[task.state]
        with refused(state):
            self.q.complete(run_of(task.id, task.attempt))

    @invariant()
    def the_engine_and_the_model_agree(self) -> None:
        queue = self.queues[0]
        found = {row["task_id"]: row for row in queue.view("t")}
        assert found.keys() == self.model.tasks.keys()
        for task in self.model.tasks.values():
            row = found[task.id]
            assert (row["state"], row["attempts"]) == (task.state, task.attempt)
            if task.state == "completed":
                assert row["completed_payload"] == task.result
        kept: dict[uuid.UUID, dict[str, Any]] = {}
        for row in queue.view("c"):
            kept.setdefault(row["task_id"], {})[row["checkpoint_name"]] = row["state"]
        assert kept == {task.id: task.checkpoints for task in self.model.tasks.values() if task.checkpoints}
        assert queue.violations() == []

    def teardown(self) -> None:
        if hasattr(self, "queues"):
            self.queues[0].conn.execute("select absurd.drop_queue(%s)", (self.queues[0].name,))


@pytest.fixture
def connections(databases: Databases, schema_template: str) -> Iterator[list[psycopg.Connection[Any]]]:
    with databases.fresh(schema_template) as name:
        opened = [psycopg.connect(databases.url(name), autocommit=True) for _ in range(3)]
        yield opened
        for conn in opened:
            conn.close()


@pytest.mark.timeout(300)
def test_ten_thousand_random_steps_agree_with_the_model(connections: list[psycopg.Connection[Any]]) -> None:
    Machine.connections = connections
    budget = settings(
        max_examples=10_000 // STEPS,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Machine, settings=budget)
