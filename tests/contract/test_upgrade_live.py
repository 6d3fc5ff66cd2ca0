"""A database that an earlier release has worked in migrates while workers and clients go on; nobody notices.

The dumps were made by `tests/fixtures/releases/make_live.py`, with the programs of those releases. Callers in plain SQL do
here what clients of those releases do: they call the functions as these were then.
"""

from __future__ import annotations

import gzip
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from absurd import schema
from tests.contract.test_signatures import install_simply
from tests.fixtures.postgres import Connect, Connection
from tests.worker.conftest import Queue
from tests.worker.process import WorkerProcess, starter

DUMPS = sorted((Path(__file__).parent.parent / "fixtures" / "releases").glob("*/live.sql.gz"))
LEASE = 60
ROUNDS_BEFORE, ROUNDS_AFTER = 5, 20

#: What becomes of each task: its state, its result, and in which attempt.
ENDS: dict[str, tuple[str, Any, int]] = {
    "completed": ("completed", 1, 1),
    "failed": ("failed", None, 1),
    "cancelled": ("cancelled", None, 1),
    "retrying": ("completed", "again", 2),
    "asleep": ("completed", "slept", 1),
    "asleep for ever": ("sleeping", None, 1),
    "waiting": ("completed", {"parcel": 1}, 1),
    "waiting in vain": ("completed", "timed out", 1),
    "waiting with patience": ("completed", "at last", 1),
    "woken": ("completed", "here", 1),
    "parent": ("completed", ["child", "completed", 5], 1),
    "lost": ("completed", "lost", 2),
    "running": ("completed", "by its old worker", 1),
    "pending": ("completed", 1, 1),
    "keyed": ("completed", 1, 1),
    "delayed": ("completed", 1, 1),
    "delayed for ever": ("pending", None, 1),
}
#: Those whose first step was kept by the old release, and is not done again.
BEGUN = {"retrying", "asleep", "waiting", "waiting in vain", "waiting with patience", "woken", "parent", "lost"}


@pytest.fixture(params=DUMPS, ids=lambda path: path.parent.name)
def old(request: pytest.FixtureRequest, empty_database_url: str, connect: Connect) -> str:
    """The URL of a database as that release left it."""
    restoring = connect(empty_database_url)
    install_simply(restoring, gzip.decompress(request.param.read_bytes()).decode())
    restoring.close()
    return empty_database_url


class Live:
    """The tasks of the dump by the names they were given."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.queue = Queue.__new__(Queue)
        self.queue.conn, self.queue.name = conn, "live"
        rows = conn.execute("select params->>'case', task_id from absurd.tasks where params ? 'case'").fetchall()
        self.ids: dict[str, uuid.UUID] = dict(rows)

    def ends(self) -> dict[str, tuple[str, Any, int]]:
        """What has become of each."""
        return {
            case: (*self.queue.task(task_id)[:2], self.queue.attempts(task_id)) for case, task_id in self.ids.items()
        }

    def call(self, text: str, *values: Any) -> Any:
        row = self.conn.execute(text, values).fetchone()
        assert row is not None
        return row[0]


class Callers:
    """Threads that go through the life of tasks in plain SQL, each in a loop of its own, until they are stopped."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self.rounds: dict[str, int] = {}
        self.errors: list[str] = []
        self._threads = [threading.Thread(target=self._repeat, args=(life,)) for life in LIVES]
        for thread in self._threads:
            thread.start()

    def wait(self, rounds: int) -> None:
        """Until each has gone through so many more rounds."""
        with self._changed:
            wanted = {life.__name__: self.rounds.get(life.__name__, 0) + rounds for life in LIVES}

            def happened() -> bool:
                return bool(self.errors) or all(self.rounds.get(name, 0) >= count for name, count in wanted.items())

            assert self._changed.wait_for(happened, 40), self.rounds
        assert not self.errors, self.errors

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)

    def _repeat(self, life: Callable[[Connection, int], None]) -> None:
        number = 0
        try:
            with psycopg.connect(self._url, autocommit=True) as conn:
                while not self._stopping.is_set():
                    life(conn, number)
                    number += 1
                    with self._changed:
                        self.rounds[life.__name__] = number
                        self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self.errors.append(f"{life.__name__}, round {number}: {error!r}")
                self._changed.notify_all()


def one(conn: Connection, text: str, *values: Any) -> Any:
    row = conn.execute(text, values).fetchone()
    assert row is not None, text
    return row[0] if len(row) == 1 else row


def by_the_contract(conn: Connection, number: int) -> None:
    """As a client of the original's functions: spawn, claim, keep, sleep, wait, fail, complete, cancel, ask."""
    options = '{"max_attempts": 2, "retry_strategy": {"kind": "fixed", "base_seconds": 0}}'
    task_id = one(conn, "select task_id from absurd.spawn_task('callers', 'c', %s, %s)", json.dumps(number), options)
    claim = "select run_id, task_id from absurd.claim_task('callers', 'caller', 60, 1)"
    run_id, claimed = one(conn, claim)
    assert claimed == task_id
    one(conn, "select absurd.set_task_checkpoint_state('callers', %s, 'a', %s, %s, 60)", task_id, str(number), run_id)
    assert one(conn, "select state from absurd.get_task_checkpoint_state('callers', %s, 'a')", task_id) == number
    one(conn, "select absurd.extend_claim('callers', %s, 90)", run_id)
    one(conn, "select absurd.schedule_run('callers', %s, absurd.current_time())", run_id)
    assert one(conn, claim) == (run_id, task_id)
    wait = "select should_suspend, payload from absurd.await_event('callers', %s, %s, %s, %s, null)"
    assert one(conn, wait, task_id, run_id, "w", f"e{number}") == (True, None)
    one(conn, "select absurd.emit_event('callers', %s, %s)", f"e{number}", str(number))
    assert one(conn, claim) == (run_id, task_id)
    assert one(conn, wait, task_id, run_id, "w", f"e{number}") == (False, number)
    one(conn, "select absurd.fail_run('callers', %s, '{\"name\": \"E\"}', null)", run_id)
    run_id, _ = one(conn, claim)
    one(conn, "select absurd.complete_run('callers', %s, %s)", run_id, str(number))
    result = "select state, result from absurd.get_task_result('callers', %s)"
    assert one(conn, result, task_id) == ("completed", number)
    other = one(
        conn,
        "select task_id from absurd.spawn_task('callers', 'x', 'null', '{\"start_at\": \"2090-01-01T00:00:00Z\"}')",
    )
    one(conn, "select absurd.cancel_task('callers', %s)", other)
    assert one(conn, result, other) == ("cancelled", None)


def by_the_array(conn: Connection, number: int) -> None:
    """As a worker of release 0.1.0: the verbs that take many rows, with the arguments they had then."""
    queue = one(conn, "select queue_id from absurd.queue_ids(array['arrays'])")
    spawn = "select task_id from absurd.spawn_tasks(%s, %s, %s::jsonb[], null, null, null, null, null)"
    texts = [json.dumps(number)] * 2
    spawned = {row[0] for row in conn.execute(spawn, (queue, ["a", "a"], texts)).fetchall()}

    def claimed(count: int) -> tuple[int, list[uuid.UUID], list[int]]:
        claim = "select task_id, attempt, claim_no from absurd.claim_tasks(%s, 'old worker', 60, 500, array['a'], %s, false)"
        rows = conn.execute(claim, (queue, number)).fetchall()
        assert {row[0] for row in rows} == spawned, "what was claimed is what was due"
        assert len(rows) == count
        return (
            queue,
            [uuid.UUID(int=task.int | attempt) for task, attempt, _ in rows],
            [claim_no for *_, claim_no in rows],
        )

    fence = claimed(2)
    assert (
        letters(conn, "select absurd.set_checkpoints(%s, %s, %s, %s, %s::jsonb[])", *fence, ["s", "s"], texts) == "oo"
    )
    assert letters(conn, "select absurd.extend_claims(%s, %s, %s, %s)", *fence, 90.0) == "oo"
    nap = "select absurd.schedule_runs(%s, %s, %s, %s::timestamptz[], %s, %s::text[])"
    assert letters(conn, nap, *fence, [None, None], [0.0, 0.0], [None, None]) == "oo"
    fence = claimed(2)
    wait = (
        "select string_agg(status, '' order by ordinal)"
        " from absurd.await_events(%s, %s, %s, %s, %s, %s::float8[], %s::timestamptz[])"
    )
    assert letters(conn, wait, *fence, ["w", "w"], [f"e{number}"] * 2, [None, None], [None, None]) == "ss"
    emit = "select absurd.try_emit_events(%s, %s, %s::jsonb[], 'latch')"
    assert letters(conn, emit, queue, [f"e{number}"], texts[:1]) == "o"
    fence = claimed(2)
    fail = "select absurd.fail_runs(%s, %s, %s, %s::jsonb[], null, %s::boolean[])"
    assert letters(conn, fail, *fence, ['{"name": "E"}'] * 2, [False, False]) == "oo"
    fence = claimed(2)
    complete = "select absurd.complete_runs(%s, %s, %s, %s::jsonb[])"
    assert letters(conn, complete, *fence, texts) == "oo"
    assert letters(conn, complete, *fence, texts) == "rr", "asked again after a lost reply"


def letters(conn: Connection, text: str, *values: Any) -> str:
    """The first answer of a verb for each row; asked again, as every client does, while a row is busy."""
    answer = str(one(conn, text, *values))
    while "b" in answer:
        again = str(one(conn, text, *values))
        answer = "".join(new if old == "b" else old for old, new in zip(answer, again, strict=True))
    return answer


def by_reading(conn: Connection, number: int) -> None:
    """As a dashboard: two views in one statement, in every order."""
    views = ["all_tasks", "all_runs", "all_events", "all_waits", "queue_counts", "t_callers", "e_arrays"]
    first, second = views[number % 7], views[number // 7 % 7]
    conn.execute(f"select (select count(*) from absurd.{first}), (select count(*) from absurd.{second})")


LIVES: list[Callable[[Connection, int], None]] = [by_the_contract, by_the_array, by_reading]


@pytest.fixture
def callers(old: str, connect: Connect) -> Iterator[Callers]:
    """Clients of the old release at work in queues of their own."""
    conn = connect(old)
    conn.execute("select absurd.create_queue('arrays')")
    policy = '{"default_max_attempts": 2}'
    conn.execute("select absurd.set_queue_policy('arrays', %s)", (policy,))
    calling = Callers(old)
    yield calling
    calling.stop()


@pytest.mark.parametrize("world", ["async", "sync"])
def test_the_tasks_of_an_earlier_release_come_to_their_right_end(
    old: str, callers: Callers, connect: Connect, world: str
) -> None:
    conn = connect(old)
    live = Live(conn)
    assert set(live.ids) == set(ENDS)
    callers.wait(ROUNDS_BEFORE)
    with starter(world, lambda: old) as start:
        early = start(queues=["live", "children"], slots=4, lease=LEASE)  # before there is what it was made for

        with connect(old) as owner:
            assert schema.install(owner).migrations
        worker = start(queues=["live", "children"], slots=4, lease=LEASE).started()
        early.started()  # it may have been starved of the processor until now; before this, SIGTERM just ends it

        live.call("select absurd.emit_event('live', 'parcel', '{\"parcel\": 1}')::text")
        live.call("select absurd.emit_event('live', 'late', '\"at last\"')::text")
        held = uuid.UUID(int=live.ids["running"].int | 1)
        live.call("select absurd.complete_run('live', %s, '\"by its old worker\"')::text", held)
        ended = [live.ids[case] for case, (state, *_) in ENDS.items() if state in ("completed", "failed", "cancelled")]
        live.queue.wait_ended(worker, *ended)
        callers.wait(ROUNDS_AFTER)
        assert live.ends() == ENDS
        begun_again = {line["task_id"] for one in (early, worker) for line in one.said(said="step one")}
        assert not begun_again & {str(live.ids[case]) for case in BEGUN}, "a step the old release had kept ran again"
        see_to_the_rest(live, worker)
        assert [one.stop() for one in (early, worker)] == [0, 0]
    callers.stop()
    assert not callers.errors
    assert conn.execute("select * from absurd.check_invariants()").fetchall() == []


def see_to_the_rest(live: Live, worker: WorkerProcess) -> None:
    """Keys and events are remembered, what was far away is still there to be cancelled, and what was dropped goes."""
    keyed = live.conn.execute(
        "select task_id, created from absurd.spawn_task('live', 'work', '{}', '{\"idempotency_key\": \"order-7\"}')"
    ).fetchone()
    assert keyed == (live.ids["keyed"], False)
    sunny = live.queue.spawn(["await", "sun"])
    live.queue.wait_ended(worker, sunny)
    assert live.queue.task(sunny)[1] == {"hot": True}
    for case in ("asleep for ever", "delayed for ever"):
        live.call("select absurd.cancel_task('live', %s)::text", live.ids[case])
        assert live.queue.state(live.ids[case]) == "cancelled"
    left = "select count(*) from absurd.tasks where queue_id in (select queue_id from absurd.dropped_queues)"
    assert live.call(left) == 3
    live.conn.execute("select absurd.cleanup_all_queues()")
    assert live.call(left) == 0
    assert live.call("select count(*) from absurd.tasks where not exists (select from absurd.queues"
                     " where queues.queue_id = tasks.queue_id)") == 0  # fmt: skip
