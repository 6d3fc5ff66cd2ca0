"""What a page asks reads no more than its budget: whatever is sought, however much is stored, whenever it was planned."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from absurd.queries import Page, Query, detail, events, overview, tasks, waits
from absurd.queries.events import EventFilter
from absurd.queries.tasks import TaskFilter
from absurd.queries.waits import WaitFilter
from tests.fixtures.postgres import Connection, Databases
from tests.sql.statistics import Reads, fill, reads

#: finished tasks, as many open ones, events that nobody waits for, and events; `make budgets` stores half a million of each
ROWS = int(os.environ.get("ABSURD_BUDGET_ROWS", "40000"))
BUDGET = 1_000
PAGE = 20
NOW = datetime.now(UTC)
#: of a page's own rows: each is a task, where it stands, how it ended; its queue
SHOWN = 4 * (PAGE + 1) + 10


@dataclass
class Stored:
    """A database full of tasks, and two connections: one planned on empty tables, one on full ones."""

    old: Connection
    new: Connection


@pytest.fixture(scope="module")
def stored(databases: Databases, schema_template: str) -> Iterator[Stored]:
    with databases.fresh(schema_template) as name:
        url = databases.url(name)
        with psycopg.connect(url, autocommit=True) as old, psycopg.connect(url, autocommit=True) as new:
            old.prepare_threshold = 0
            for table in ("tasks", "live", "attempts", "checkpoints", "events", "waits"):
                old.execute(
                    sql.SQL("alter table absurd.{} set (autovacuum_enabled = off)").format(sql.Identifier(table))
                )
            old.execute(
                "select absurd.create_queue('small'), absurd.create_queue('finished'), absurd.create_queue('open')"
            )
            for query in (*QUESTIONS.values(), *STANDING.values()):
                for _ in range(6):  # a prepared statement keeps its plan from the sixth time on
                    old.cursor(row_factory=dict_row).execute(query.sql.encode(), query.params, prepare=True).fetchall()
            _fill(old)
            yield Stored(old, new)


def _fill(conn: Connection) -> None:
    """finished: all completed, but three failed and one of a rare name, which are the oldest, and two that run. open: as
    many unfinished ones, pending and waiting, three that run. small: a handful."""
    fill(conn, "finished", ROWS, "finished")
    oldest = "(select t.task_id from absurd.tasks t order by t.task_id limit 3)"
    conn.execute(
        f"update absurd.attempts set state = 'f', task_state = 'f', failure = '1' where task_id in {oldest}".encode()
    )
    conn.execute(
        f"update absurd.tasks set task_name = 'rare', params = '\"NEEDLE\"' where task_id in {oldest}".encode()
    )
    fill(conn, "finished", 2, "leased")
    fill(conn, "open", 3, "leased")
    fill(conn, "open", ROWS // 2, "due")
    fill(conn, "open", ROWS // 2, "sleeping")
    conn.execute(
        "insert into absurd.waits (queue_id, task_id, step_name, attempt, event_name, created_at)"
        " select f.queue_id, f.task_id, 's', 1, case when f.n % 2 = 0 then 'flood' else 'w' || f.n end, now() from filling f"
    )
    conn.execute(
        "insert into absurd.events (queue_id, event_name, payload, emitted_at)"
        " select distinct w.queue_id, w.event_name, null::jsonb, null::timestamptz from absurd.waits w"
    )
    conn.execute(
        "insert into absurd.events (queue_id, event_name, payload, emitted_at) select absurd.queue_id_of('open'),"
        f" 'e' || n, '1', now() - make_interval(secs => n) from generate_series(1, {ROWS}) n".encode()
    )
    conn.execute(  # nobody waits for these any more
        "insert into absurd.events (queue_id, event_name) select absurd.queue_id_of('finished'), 'gone' || n"
        f" from generate_series(1, {ROWS}) n".encode()
    )
    fill(conn, "small", 3, "due")


def _tasks(**filters: Any) -> Query[Page[tasks.Task]]:
    return tasks.find(TaskFilter(limit=PAGE, budget=BUDGET, **filters))


def _events(**filters: Any) -> Query[Page[events.Event]]:
    return events.find(EventFilter(limit=PAGE, budget=BUDGET, **filters))


def _waits(**filters: Any) -> Query[Page[waits.Wait]]:
    return waits.find(WaitFilter(limit=PAGE, budget=BUDGET, **filters))


QUESTIONS: dict[str, Query[Page[Any]]] = {
    "all tasks": _tasks(),
    "tasks of a queue": _tasks(queue="finished"),
    "a rare name": _tasks(name="rare"),
    "a rare prefix": _tasks(name="ra*", queue="finished"),
    "a rare text": _tasks(text="needle"),
    "a text in what is completed": _tasks(text="needle", states=("completed",)),
    "failed": _tasks(states=("failed",)),
    "failed and cancelled of a name": _tasks(states=("failed", "cancelled"), name="rare"),
    "completed of a rare name": _tasks(states=("completed",), name="rare"),
    "running": _tasks(states=("running",)),
    "running with a text": _tasks(states=("running",), text="needle"),
    "sleeping": _tasks(states=("sleeping",)),
    "pending of a rare name": _tasks(states=("pending",), name="rare", queue="open"),
    "pending or failed": _tasks(states=("pending", "failed"), text="needle"),
    "sleeping among the finished": _tasks(states=("sleeping",), queue="finished"),
    "since long ago": _tasks(since=NOW - timedelta(days=30), name="rare"),
    "until long ago": _tasks(until=NOW - timedelta(days=30)),
    "events": _events(),
    "events of a rare prefix": _events(name="rare*"),
    "emitted of a rare prefix": _events(name="rare*", state="emitted"),
    "emitted events": _events(state="emitted", waiters=True),
    "pending events": _events(state="pending", waiters=True),
    "an event that thousands wait for": _events(name="flood", waiters=True),
    "an emitted event": _events(name="e77"),
    "pending since an hour": _events(state="pending", since=NOW + timedelta(days=1)),
    "waits": _waits(),
    "waits of an event": _waits(event="flood"),
    "waits of a rare event": _waits(event="w7"),
    "waits of a rare prefix": _waits(event="rare*"),
    "waits for tasks": _waits(task=True),
}
#: waiters that are counted beside each event of a page
COUNTED = {"events": 251, "pending events": 251 + 200, "an event that thousands wait for": 251 + 200}

STANDING: dict[str, Query[Any]] = {
    "overview": overview.find(cap=BUDGET, ended_cap=BUDGET),
    "workers": overview.workers(),
    "pulse": overview.pulse(),
}


def _reads(conn: Connection, query: Query[Any]) -> Reads:
    found = reads(conn, query.sql, query.params)  # type: ignore[arg-type, unused-ignore]
    assert set(found.sequential) <= {"queues"}, found.rows
    return found


def _answer(conn: Connection, query: Query[Any]) -> Any:
    with conn.cursor(row_factory=dict_row) as cur:
        return query.decode(cur.execute(query.sql.encode(), query.params).fetchall())


@pytest.mark.parametrize("plans", ["old", "new"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_search_reads_no_more_than_its_budget_and_its_page(stored: Stored, question: str, plans: str) -> None:
    query = QUESTIONS[question]
    found = _reads(getattr(stored, plans), query)
    assert found.total <= BUDGET + SHOWN + 2 * COUNTED.get(question, 0) + PAGE * 5, found.rows


@pytest.mark.parametrize("plans", ["old", "new"])
@pytest.mark.parametrize(
    ("question", "most"),
    [
        ("all tasks", 300),
        ("failed", 60),
        ("failed and cancelled of a name", 60),
        ("running", 300),
        ("sleeping among the finished", 40),
        ("until long ago", 40),
        ("an emitted event", 40),
        ("waits of an event", 250),
        ("waits of a rare event", 60),
        ("emitted events", 150),
    ],
)
def test_what_has_an_index_is_found_at_once(stored: Stored, question: str, most: int, plans: str) -> None:
    conn = getattr(stored, plans)
    found = _reads(conn, QUESTIONS[question])
    assert found.total <= most, found.rows
    page = _answer(conn, QUESTIONS[question])
    assert page.searched_until is None
    expected = {"failed": 3, "failed and cancelled of a name": 3, "sleeping among the finished": 0, "until long ago": 0}
    expected |= {"running": 5, "an emitted event": 1, "waits of a rare event": 1}
    assert len(page.items) == expected.get(question, PAGE)


def test_a_few_that_sleep_are_found_among_all_that_are_finished(stored: Stored) -> None:
    stored.old.execute("select absurd.create_queue('few')")
    fill(stored.old, "few", 10, "sleeping")
    fill(stored.old, "few", 5_000, "finished")
    query = _tasks(queue="few", states=("sleeping",))
    for conn in (stored.old, stored.new):
        assert _reads(conn, query).total <= 100
        page = _answer(conn, query)
        assert (len(page.items), page.next) == (10, None)


def test_a_search_goes_on_through_everything(stored: Stored) -> None:
    after, found, asked = None, [], 0
    while True:
        page = _answer(stored.new, tasks.find(TaskFilter(name="rare", budget=10_000, after=after)))
        found += page.items
        asked += 1
        after = page.next
        if after is None:
            break
    assert len(found) == 3
    assert asked <= 5 * ROWS / 10_000


@pytest.mark.parametrize("plans", ["old", "new"])
def test_the_overview_reads_no_more_than_its_caps(stored: Stored, plans: str) -> None:
    found = _reads(getattr(stored, plans), STANDING["overview"])
    # of each of four queues: what is unfinished, what runs, what ended, a thousand to count the tasks, its priorities
    assert found.rows.get("live", 0) <= 4 * (2 * BUDGET + 20), found.rows
    assert found.rows.get("attempts", 0) <= 4 * (BUDGET + 1), found.rows
    assert found.total <= 4 * (3 * BUDGET + 1_001 + 30), found.rows


@pytest.mark.parametrize("plans", ["old", "new"])
def test_the_workers_are_found_among_the_running_and_the_newest_ended(stored: Stored, plans: str) -> None:
    found = _reads(getattr(stored, plans), STANDING["workers"])
    assert found.total <= 4 * (1_000 + 30), found.rows


def test_the_pulse_reads_nothing(stored: Stored) -> None:
    assert _reads(stored.new, STANDING["pulse"]).total == 0


def test_a_task_with_ten_thousand_checkpoints_and_attempts_is_shown_in_parts(stored: Stored) -> None:
    conn = stored.old
    conn.execute("select absurd.create_queue('large')")
    fill(conn, "large", 1, "leased")
    conn.execute(
        "insert into absurd.checkpoints (queue_id, task_id, name, state, attempt)"
        " select queue_id, task_id, 's' || n, to_jsonb(repeat('x', 3000)), 1 from filling, generate_series(1, 10000) n".replace(
            "filling, ", "(select queue_id, task_id from filling) f, "
        )
    )
    conn.execute(
        "insert into absurd.attempts (queue_id, task_id, attempt, claim_no, state, finished_at, created_at)"
        " select queue_id, task_id, x, 1, 'f', now(), now() from filling, generate_series(1, 5000) x"
    )
    conn.execute("update absurd.live l set attempt = 5001 from filling f where l.task_id = f.task_id")
    row = conn.execute("select task_id from filling").fetchone()
    assert row is not None
    query = detail.get(row[0], runs=20, checkpoints=50)
    found = _reads(conn, query)
    assert found.total <= 10_000 + 20 + 20, found.rows
    toast = conn.execute(
        "select reltoastrelid::regclass::text from pg_class where oid = 'absurd.checkpoints'::regclass"
    )
    assert toast.fetchone()
    view = _answer(conn, query)
    assert (len(view.runs), view.run_count, view.runs[-1].attempt) == (20, 5001, 5001)
    assert (len(view.checkpoints), view.checkpoint_count) == (50, 10_000)
    one = detail.payload("large", row[0], "checkpoint", "s77")
    assert _reads(conn, one).total <= 10, "the queues, the task, the checkpoint"


def test_a_task_that_ended_after_thousands_of_attempts_is_read_by_its_last(stored: Stored) -> None:
    conn = stored.old
    conn.execute("select absurd.create_queue('stubborn')")
    fill(conn, "stubborn", 1, "finished")
    conn.execute(
        "insert into absurd.attempts (queue_id, task_id, attempt, claim_no, state, task_state, finished_at, created_at)"
        " select queue_id, task_id, x, 1, 'f', case x when 5000 then 'f'::\"char\" end, now(), now()"
        "   from filling, generate_series(2, 5000) x"
    )
    conn.execute("update absurd.attempts a set state = 'f', task_state = null from filling f"
                 " where a.task_id = f.task_id and a.attempt = 1")  # fmt: skip
    query = _tasks(queue="stubborn", states=("failed",))
    assert _reads(conn, query).total <= 20
    (task,) = _answer(conn, query).items
    assert (task.state, task.attempt) == ("failed", 5000)
    view = detail.get(task.task_id, runs=20)
    assert _reads(conn, view).total <= 50
    assert _answer(conn, view).run_count == 5000
