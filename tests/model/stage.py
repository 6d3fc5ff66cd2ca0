"""Where the random calls happen: one queue, three connections that show the same time, the model, and the comparison."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, ClassVar

import psycopg
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant
from psycopg.rows import dict_row

from tests.model.reference import SECOND, Engine, Fence, Task
from tests.sql.driver import Queue, Row, run_of

START = datetime(2026, 3, 2, 12, tzinfo=UTC)
TTL = 20  # seconds that the queue's policy keeps what has ended

#: (which task, which of its claims): small numbers, so that hypothesis can make them smaller
Pick = tuple[int, int]
#: the id of a task, and a run of it
Named = tuple[uuid.UUID, Fence]


LOOKS = {
    "tasks": "select task_id, state, attempts, max_attempts, completed_payload from absurd.compat_tasks where queue_id = %s",
    "live": "select task_id, due_at, lease_until, claim_no, cancel_at from absurd.live where queue_id = %s",
    "waits": "select task_id, step_name, event_name from absurd.waits where queue_id = %s",
    "checkpoints": "select task_id, checkpoint_name, state from absurd.compat_checkpoints where queue_id = %s",
    "events": "select event_name, payload from absurd.compat_events where queue_id = %s",
    "violations": "select c.* from absurd.queues q cross join absurd.check_invariants(q.queue_name) c where q.queue_id = %s",
}


def at(moment: int | None) -> datetime | None:
    """A moment of the model as one of the engine."""
    return None if moment is None else START + timedelta(microseconds=moment)


class OneQueue(Queue):
    """A queue that asks for its id once."""

    @cached_property
    def id(self) -> int:  # type: ignore[override, unused-ignore]
        return int(self.value("select absurd.queue_id_of(%s)", (self.name,)))


class Stage(RuleBasedStateMachine):
    """Everything but the rules."""

    connections: ClassVar[Sequence[psycopg.Connection[Any]]]
    steps: ClassVar[int] = 0

    @initialize()
    def begin(self) -> None:
        self.now = 0
        self.exact = False
        self.model = Engine()
        # one queue for all runs, emptied before each: creating one drops every plan that the connections have made
        self.queues = [OneQueue(conn, "model") for conn in self.connections]
        if not self.queues[0].rows("select 1 from absurd.queues where queue_name = 'model'"):
            self.queues[0].call("create_queue")
            self.queues[0].policy(cleanup_ttl=f"{TTL} seconds")
        self.queues[0].call("purge_queue")
        self.turn = itertools.cycle(self.queues)
        self.names = itertools.count(1)
        self.moment = int(time.time() * 1000)
        self.known: dict[uuid.UUID, Task] = {}  # also those that were cleaned up

    # ---------------------------------------------------------------- time and connections

    @property
    def q(self) -> OneQueue:
        """The next connection, its clock at now."""
        queue = next(self.turn)
        queue.conn.execute("select set_config('absurd.fake_now', %s, false)", (str(at(self.now)),))
        return queue

    def tick(self) -> None:
        """A step begins: a microsecond later than the one before, unless the test has chosen its moment."""
        Stage.steps += 1
        self.now += 0 if self.exact else 1
        self.exact = False

    def mint(self) -> uuid.UUID:
        """An id of our own, so that their order is the same every time."""
        return uuid.UUID(int=self.moment << 80 | 7 << 76 | 2 << 62 | next(self.names) << 16)

    # ---------------------------------------------------------------- array verbs

    def letters(self, named: Sequence[Named], verb: str, step: str = "") -> str:
        """What the model says about these runs, before anything is written."""
        return "".join(self.model.letter(self.model.tasks.get(task_id), fence, verb, step) for task_id, fence in named)

    def writable(self, named: Sequence[Named], letters: str) -> list[tuple[int, Task]]:
        """The rows that may be written: number and task."""
        return [(n, self.model.tasks[named[n][0]]) for n, letter in enumerate(letters) if letter == "o"]

    @staticmethod
    def claims(named: Sequence[Named]) -> list[tuple[uuid.UUID, int | None]]:
        """As the array verbs take them."""
        return [(run_of(task_id, attempt), claim_no) for task_id, (attempt, claim_no) in named]

    # ---------------------------------------------------------------- the comparison

    @invariant()
    def the_engine_and_the_model_agree(self) -> None:
        """Everything that the engine has of the queue, in one round trip."""
        queue = self.queues[0]
        with queue.conn.pipeline():
            cursors = {
                what: queue.conn.cursor(row_factory=dict_row).execute(query, (queue.id,), prepare=True)
                for what, query in LOOKS.items()
            }
        found = {what: cursor.fetchall() for what, cursor in cursors.items()}
        self._compare_tasks(found)
        self._compare_waits(found)
        kept: dict[uuid.UUID, dict[str, Any]] = {}
        for row in found["checkpoints"]:
            kept.setdefault(row["task_id"], {})[row["checkpoint_name"]] = plain(row["checkpoint_name"], row["state"])
        assert kept == {task.id: task.checkpoints for task in self.model.tasks.values() if task.checkpoints}
        events = {name: event.payload for name, event in self.model.events.items()}
        assert {row["event_name"]: row["payload"] for row in found["events"]} == events
        assert found["violations"] == []

    def _compare_tasks(self, found: dict[str, list[Row]]) -> None:
        tasks = self.model.tasks
        assert {
            row["task_id"]: (row["state"], row["attempts"], row["max_attempts"], row["completed_payload"])
            for row in found["tasks"]
        } == {
            task.id: (task.state, task.attempt, task.max_attempts, task.result if task.state == "completed" else None)
            for task in tasks.values()
        }
        assert {
            row["task_id"]: (row["due_at"], row["lease_until"], row["claim_no"], row["cancel_at"])
            for row in found["live"]
        } == {
            task.id: (at(task.due), at(task.lease), task.claim_no, at(task.cancel_at))
            for task in tasks.values()
            if not task.ended
        }

    def _compare_waits(self, found: dict[str, list[Row]]) -> None:
        waits = {(row["task_id"], row["step_name"], row["event_name"]) for row in found["waits"]}
        model = [(task, task.wait) for task in self.model.tasks.values() if task.wait is not None]
        assert waits <= {(task.id, wait.step, wait.event) for task, wait in model}
        # one whose time has passed may have been taken away by an emit that came too late for it
        assert waits >= {(task.id, wait.step, wait.event) for task, wait in model if not wait.late(self.now)}


def plain(step: str, value: Any) -> Any:
    """A checkpoint as the model keeps it: moments as numbers, outcomes of tasks without the text of their failure."""
    if step.startswith("nap"):
        return int((datetime.fromisoformat(value) - START) / timedelta(microseconds=1))
    if step.startswith("child"):
        return {key: part for key, part in value.items() if key != "failure"}
    return value


def seconds(count: float | None) -> int | None:
    """In microseconds."""
    return None if count is None else int(count * SECOND)
