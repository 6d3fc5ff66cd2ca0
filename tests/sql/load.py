"""Every verb of the engine at random, from many connections at once: what tests/sql/test_mixed_verbs.py runs.

Each call is a transaction of its own. Calls aim at tasks and runs of others on purpose, at stale ones too, so most
refusals of the contract happen; whatever else is raised, and any deadlock, is a finding.
"""

from __future__ import annotations

import random
import re
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import psycopg

from tests.fixtures.postgres import Connection
from tests.sql.driver import Claim, Queue, minted, run_of

#: What a call may be told, by SQLSTATE.
ALLOWED = {
    "AB001": r"^Task .* has been cancelled",
    "AB002": r"^Run .* has already failed",
    "P0001": r"^(Run .* (is not currently running|cannot be failed|must be running to await events|not found|"
    r"does not have an active claim|does not belong to task)|"
    r"Task .* (not found|is not currently failed)|max_attempts .* must be greater than current attempts)",
    "42P01": r"^Queue .* does not exist",  # a side queue that somebody dropped
    "40001": r"was cleaned up at the same moment|somebody began to wait for task",
}
EVENTS = [f"event-{n}" for n in range(8)]
KEYS = [f"key-{n}" for n in range(12)]
SIDES = ["side-1", "side-2"]


@dataclass
class World:
    """What the callers know of each other."""

    seed: int
    tasks: deque[tuple[Queue, uuid.UUID]] = field(default_factory=lambda: deque(maxlen=200))
    claims: deque[tuple[str, Claim]] = field(default_factory=lambda: deque(maxlen=60))
    calls: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)


class Caller:
    """One connection and its own random numbers."""

    def __init__(self, world: World, conn: Connection, number: int) -> None:
        self.world, self.conn, self.number = world, conn, number
        self.random = random.Random(f"{world.seed}/{number}")
        self.queues = [Queue(conn, "main"), Queue(conn, "other"), *(Queue(conn, side) for side in SIDES)]
        self.ids: dict[str, int] = {}

    def run(self, calls: int, until: float | None) -> None:
        """Make that many calls, or as many as fit until a moment of time.monotonic()."""
        verbs = [getattr(self, name) for name in WEIGHTS]
        while not self.world.findings and (calls > 0 if until is None else time.monotonic() < until):
            calls -= 1
            (verb,) = self.random.choices(verbs, list(WEIGHTS.values()))
            try:
                verb()
            except psycopg.Error as error:
                self._judge(verb, error)
            self.world.calls[verb.__name__] += 1

    def _judge(self, verb: Callable[[], object], error: psycopg.Error) -> None:
        state, text = error.sqlstate or "", error.diag.message_primary or str(error)
        if not re.search(ALLOWED.get(state, r"(?!)"), text):
            self.world.findings.append(f"{verb.__name__}: {state} {error}")
        self.world.refusals[state] += 1

    # ------------------------------------------------------------ whom to call on

    def _queue(self) -> Queue:
        (queue,) = self.random.choices(self.queues, [12, 6, 1, 1])
        return queue

    def _id(self, queue: Queue) -> int:
        """The id a client resolved once; of a side queue it may be out of date."""
        if queue.name not in self.ids or self.random.random() < 0.05:
            self.ids[queue.name] = queue.id
        return self.ids[queue.name]

    def _task(self) -> tuple[Queue, uuid.UUID]:
        if not self.world.tasks:
            return self.queues[0], minted()
        queue, task_id = self.random.choice(list(self.world.tasks))
        return Queue(self.conn, queue.name), task_id

    def _claims(self, most: int) -> tuple[Queue, list[Claim]]:
        """Some claims of one queue, most of them still good."""
        queue = self._queue()
        known = [claim for name, claim in list(self.world.claims) if name == queue.name]
        chosen = self.random.sample(known, min(len(known), self.random.randint(1, most)))
        return queue, chosen or [Claim(minted(), run_of(minted(), 1), 1)]

    def _claim(self) -> tuple[Queue, Claim, dict[str, object]]:
        queue, (claim, *_) = self._claims(1)
        return queue, claim, {"task_id": claim.task_id, "run_id": claim.run_id}

    # ------------------------------------------------------------ the verbs

    def spawn_task(self) -> None:
        queue = self._queue()
        options: dict[str, object] = {"max_attempts": self.random.randint(1, 3)}
        if self.random.random() < 0.3:
            options["idempotency_key"] = self.random.choice(KEYS)
        if self.random.random() < 0.2:
            options["cancellation"] = {"max_delay": self.random.choice([0, 1]), "max_duration": 1}
        if self.random.random() < 0.3:
            options |= {"priority": self.random.randint(-1, 1), "delay_seconds": self.random.choice([0, 0.05])}
        self.world.tasks.append((queue, queue.spawn(**options)["task_id"]))

    def spawn_tasks(self) -> None:
        queue = self._queue()
        count = self.random.randint(1, 10)
        keys = [self.random.choice([None, None, *KEYS]) for _ in range(count)]
        query = "select * from absurd.spawn_tasks(%s, %s::text[], array_fill('1'::jsonb, array[%s]), null, %s::text[])"
        rows = queue.rows(query, (self._id(queue), ["work"] * count, count, keys))
        self.world.tasks.extend((queue, row["task_id"]) for row in rows)

    def claim_task(self) -> None:
        queue = self._queue()
        for c in queue.claim(f"w{self.number}", self.random.choice([1, 30]), self.random.randint(1, 4)):
            self.world.claims.append((queue.name, Claim(c["task_id"], c["run_id"], 0)))

    def claim_tasks(self) -> None:
        queue = self._queue()
        query = "select * from absurd.claim_tasks(%s, %s, %s, %s)"
        values = (self._id(queue), f"w{self.number}", self.random.choice([0.02, 30.0]), self.random.randint(1, 10))
        for c in queue.rows(query, values):
            if c["task_id"]:
                claim = Claim(c["task_id"], run_of(c["task_id"], c["attempt"]), c["claim_no"])
                self.world.claims.append((queue.name, claim))

    def complete_run(self) -> None:
        queue, claim, _ = self._claim()
        queue.complete(claim.run_id, 1)

    def complete_runs(self) -> None:
        queue, claims = self._claims(8)
        self._array("complete_runs", queue, claims, ", %s::jsonb[]", ["1"] * len(claims))

    def fail_run(self) -> None:
        queue, claim, _ = self._claim()
        queue.fail(claim.run_id, None, self.random.choice([None, datetime.now(UTC) + timedelta(seconds=0.05)]))

    def fail_runs(self) -> None:
        queue, claims = self._claims(8)
        final = [self.random.random() < 0.3 for _ in claims]
        self._array("fail_runs", queue, claims, ", %s::jsonb[], null, %s::bool[]", ["{}"] * len(claims), final)

    def schedule_run(self) -> None:
        queue, claim, _ = self._claim()
        queue.schedule(claim.run_id, datetime.now(UTC))

    def schedule_runs(self) -> None:
        queue, claims = self._claims(8)
        self._array("schedule_runs", queue, claims, ", null, %s::float8[]", [0.02] * len(claims))

    def extend_claim(self) -> None:
        queue, claim, _ = self._claim()
        queue.extend(claim.run_id, 1)

    def extend_claims(self) -> None:
        queue, claims = self._claims(20)
        self._array("extend_claims", queue, claims, ", 1")

    def set_checkpoint(self) -> None:
        queue, _, run = self._claim()
        queue.checkpoint(run, f"s{self.random.randint(1, 4)}", 1, self.random.choice([None, 1]))

    def set_checkpoints(self) -> None:
        queue, claims = self._claims(10)
        steps = [f"s{self.random.randint(1, 4)}" for _ in claims]
        self._array("set_checkpoints", queue, claims, ", %s::text[], %s::jsonb[]", steps, ["1"] * len(claims))

    def await_event(self) -> None:
        queue, _, run = self._claim()
        queue.await_event(
            run, self.random.choice(EVENTS), f"w{self.random.randint(1, 9)}", self.random.choice([None, 0, 1])
        )

    def await_events(self) -> None:
        queue, claims = self._claims(8)
        names = [self.random.choice(EVENTS) for _ in claims]
        steps = [f"w{self.random.randint(1, 99)}" for _ in claims]
        timeouts = [self.random.choice([None, 0.02]) for _ in claims]
        more = ", %s::text[], %s::text[], %s::float8[], array_fill(now(), array[%s])"
        self._array("await_events", queue, claims, more, steps, names, timeouts, len(claims))

    def await_tasks(self) -> None:
        queue, claims = self._claims(6)
        children = [self._task() for _ in claims]
        ids = [self._id(Queue(self.conn, child.name)) for child, _ in children]
        steps = [f"c{self.random.randint(1, 99)}" for _ in claims]
        timeouts = [self.random.choice([None, 0.02]) for _ in claims]
        more = ", %s::text[], %s::int[], %s::uuid[], %s::float8[]"
        self._array("await_tasks", queue, claims, more, steps, ids, [task_id for _, task_id in children], timeouts)

    def emit_event(self) -> None:
        self._queue().emit(self.random.choice(EVENTS), 1)

    def emit_events(self) -> None:
        queue = self._queue()
        names = [self.random.choice(EVENTS) for _ in range(self.random.randint(1, 6))]
        query = "select absurd.emit_events(%s, %s::text[], %s::jsonb[], %s)"
        self.conn.execute(query, (self._id(queue), names, ["1"] * len(names), self.random.choice(["latch", "next"])))

    def cancel_task(self) -> None:
        queue, task_id = self._task()
        queue.cancel(task_id)

    def cancel_tasks(self) -> None:
        queue = self._queue()
        ids = [task_id for _, task_id in (self._task() for _ in range(5))]
        self.conn.execute("select absurd.cancel_tasks(%s, %s::uuid[])", (self._id(queue), ids))

    def retry_task(self) -> None:
        queue, task_id = self._task()
        queue.retry(task_id, spawn_new=self.random.random() < 0.2)

    def read(self) -> None:
        queue, task_id = self._task()
        queue.call("get_task_result", task_id)
        queue.call("get_task_checkpoint_states", task_id, run_of(task_id, 1))

    def cleanup(self) -> None:
        queue = self._queue()
        queue.call(self.random.choice(["cleanup_tasks", "cleanup_events"]), 0, self.random.choice([5, 1000]))

    def cleanup_all(self) -> None:
        how = (
            "select absurd.cleanup_all_queues()",
            "select absurd.housekeep((select array_agg(queue_id) from absurd.queues))",
        )
        self.conn.execute(self.random.choice(how))

    def purge_queue(self) -> None:
        Queue(self.conn, self.random.choice(["other", *SIDES])).call("purge_queue")

    def idle(self) -> None:
        queue = self._queue()
        channel = f"w{self.number}"
        verb = self.random.choice(["set_idle", "clear_idle"])
        self.conn.execute(f"select absurd.{verb}(%s::int[], %s)", ([self._id(queue)], channel))

    def create_queue(self) -> None:
        self.conn.execute("select absurd.create_queue(%s)", (self.random.choice(SIDES),))

    def drop_queue(self) -> None:
        self.conn.execute("select absurd.drop_queue(%s)", (self.random.choice(SIDES),))

    def _array(self, verb: str, queue: Queue, claims: list[Claim], more: str, *params: object) -> None:
        query = f"select * from absurd.{verb}(%s, %s::uuid[], %s::int[]{more})"
        fence = [claim.claim_no or None for claim in claims]
        self.conn.execute(query, (self._id(queue), [claim.run_id for claim in claims], fence, *params))


WEIGHTS = {
    "spawn_task": 8,
    "spawn_tasks": 5,
    "claim_task": 8,
    "claim_tasks": 8,
    "complete_run": 3,
    "complete_runs": 3,
    "fail_run": 3,
    "fail_runs": 3,
    "schedule_run": 2,
    "schedule_runs": 2,
    "extend_claim": 2,
    "extend_claims": 3,
    "set_checkpoint": 3,
    "set_checkpoints": 3,
    "await_event": 6,
    "await_events": 5,
    "await_tasks": 7,
    "emit_event": 4,
    "emit_events": 3,
    "cancel_task": 4,
    "cancel_tasks": 2,
    "retry_task": 4,
    "read": 2,
    "cleanup": 4,
    "cleanup_all": 1,
    "purge_queue": 0.3,
    "idle": 2,
    "create_queue": 1,
    "drop_queue": 0.7,
}


def run_load(connections: list[Connection], seed: int, calls: int = 0, seconds: float | None = None) -> World:
    """Let each connection call at random: `calls` in all, or for so many seconds. Return what happened."""
    world = World(seed)
    first = Queue(connections[0], "main")
    for name in ("main", "other", *SIDES):
        first.named(name)
    for name in ("main", "other"):
        Queue(connections[0], name).policy(cleanup_ttl="20 milliseconds", cleanup_limit=50)
    until = time.monotonic() + seconds if seconds is not None else None
    callers = [Caller(world, conn, number) for number, conn in enumerate(connections)]
    share = -(-calls // len(connections))
    threads = [threading.Thread(target=_guarded, args=(caller, share, until), daemon=True) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return world


def _guarded(caller: Caller, share: int, until: float | None) -> None:
    try:
        caller.run(share, until)
    except BaseException as error:
        caller.world.findings.append(f"the load itself broke: {error!r}")
        raise
