"""The read model: what each question answers, page by page, on rows that the engine itself made."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from absurd import queries
from absurd.errors import ConfigError, QueueNotFound, SchemaMissing
from absurd.queries import events, health, queues, retention, tasks
from absurd.queries.events import EventFilter
from absurd.queries.tasks import TaskFilter
from absurd.queries.values import Json
from tests.cli.engine import Engine
from tests.fixtures.clock import Clock
from tests.fixtures.postgres import Connect, Connection

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def engine(conn: Connection, clock: Clock) -> Engine:
    clock.set(conn, START)
    return Engine(conn)


@pytest.fixture
def ids(conn: Connection) -> Callable[..., list[UUID]]:
    """The ids a filter finds, as one page."""

    def find(**filters: Any) -> list[UUID]:
        return [task.task_id for task in queries.run(conn, tasks.find(TaskFilter(**filters))).items]

    return find


def test_tasks_are_listed_newest_first(engine: Engine, ids: Callable[..., list[UUID]]) -> None:
    spawned = [engine.spawn() for _ in range(5)]
    assert ids(queue="orders") == sorted(spawned, reverse=True)


def test_pages_joined_are_the_whole_list_across_queues(engine: Engine, clock: Clock, conn: Connection) -> None:
    engine.queue("mails")
    for number in range(7):
        engine.spawn(queue="mails" if number % 2 else "orders")
        clock.advance(conn, 1)
    seen, after = [], None
    for _ in range(4):
        page = queries.run(conn, tasks.find(TaskFilter(limit=2, after=after)))
        seen += [task.task_id for task in page.items]
        after = page.next
    assert after is None
    assert seen == sorted(set(seen), reverse=True)
    assert len(seen) == 7


def test_one_id_in_two_queues_survives_a_page_break(engine: Engine, conn: Connection) -> None:
    engine.queue("mails")
    conn.execute("select set_config('absurd.fake_now', '', false)")
    row = conn.execute("select absurd.portable_uuidv7()").fetchone()
    assert row is not None
    for queue in ("orders", "mails"):
        engine.spawn(queue=queue, task_id=str(row[0]))
    first = queries.run(conn, tasks.find(TaskFilter(limit=1)))
    second = queries.run(conn, tasks.find(TaskFilter(limit=1, after=first.next)))
    assert {task.queue_name for task in first.items + second.items} == {"orders", "mails"}
    assert second.next is None


def test_each_state_is_found_and_nothing_else(engine: Engine, ids: Callable[..., list[UUID]]) -> None:
    made = {"completed": engine.spawn()}
    engine.complete(engine.claim())
    made["failed"] = engine.spawn(max_attempts=1)
    engine.fail(engine.claim(), name="Boom", message="no stock")
    made["cancelled"] = engine.spawn()
    engine.conn.execute("select absurd.cancel_task('orders', %s)", (made["cancelled"],))
    made["sleeping"] = engine.spawn()
    engine.wait(engine.claim(), "paid")
    made["running"] = engine.spawn()
    engine.claim()
    made["pending"] = engine.spawn()
    for state, task in made.items():
        assert ids(queue="orders", states=(state,)) == [task], state
    assert set(ids(states=("failed", "running"))) == {made["running"], made["failed"]}
    assert set(made) == set(tasks.STATES)


def test_a_failed_task_in_a_list_says_why(engine: Engine, conn: Connection) -> None:
    engine.spawn(max_attempts=1)
    engine.fail(engine.claim(), name="Boom", message="no stock")
    (task,) = queries.run(conn, tasks.find(TaskFilter())).items
    assert task.error == "Boom: no stock"


def test_filters_by_name_prefix_id_and_text(engine: Engine, ids: Callable[..., list[UUID]]) -> None:
    ship = engine.spawn("order.ship", {"customer": "Ada 100%"})
    bill = engine.spawn("order.bill", {"customer": "Grace"})
    other = engine.spawn("order*", None)
    assert ids(name="order.ship") == [ship]
    assert set(ids(name="order.*")) == {bill, ship}
    assert ids(name="order") == []
    assert ids(name="order**") == [other]
    assert ids(id=UUID(int=ship.int + 1)) == [ship], "the id of a run finds its task"
    assert ids(text="ADA 100%") == [ship]
    assert ids(text="A%a") == [], "text is no pattern"


def test_since_includes_its_moment_and_until_does_not(
    engine: Engine, conn: Connection, clock: Clock, ids: Callable[..., list[UUID]]
) -> None:
    first = engine.spawn()
    clock.advance(conn, 3 * 86400)
    second = engine.spawn()
    later = START + timedelta(days=3)
    assert ids(since=later) == [second]
    assert ids(until=later) == [first]
    assert ids(since=datetime(1, 1, 2, tzinfo=UTC)) == [second, first]
    assert ids(since=START, until=START + timedelta(days=9)) == [second, first]


def test_a_cursor_that_is_none_and_a_limit_of_zero_are_refused() -> None:
    for filters in ({"after": "drop table"}, {"limit": 0}):
        with pytest.raises(ConfigError):
            tasks.find(TaskFilter(**filters))
        with pytest.raises(ConfigError):
            events.find(EventFilter(**filters))


def test_a_task_is_told_whole(engine: Engine, conn: Connection, clock: Clock) -> None:
    task = engine.spawn("ship", {"order": 7}, headers={"trace": "t"}, max_attempts=3)
    engine.fail(engine.claim(), name="Boom", message="no stock", traceback="line 1")
    run = engine.claim()
    clock.advance(conn, 1)
    engine.step(run, "reserve", {"items": 2})
    clock.advance(conn, 1)
    engine.wait(run, "paid:7", timeout=60)
    detail = queries.run(conn, tasks.get(run))
    assert detail is not None
    assert (detail.task.task_id, detail.task.run_id, detail.task.state) == (task, run, "sleeping")
    assert (detail.params, detail.headers) == (Json('{"order": 7}'), Json('{"trace": "t"}'))
    assert [(each.attempt, each.state) for each in detail.runs] == [(1, "failed"), (2, "sleeping")]
    assert detail.runs[0].failure.read()["traceback"] == "line 1"
    assert [(each.name, each.state, each.updated_at) for each in detail.checkpoints] == [
        ("reserve", Json('{"items": 2}'), START + timedelta(seconds=1))
    ]
    (wait,) = detail.waits
    assert (wait.event_name, wait.timeout_at) == ("paid:7", START + timedelta(seconds=62))


def test_an_unknown_task_is_none_and_another_queue_does_not_answer(engine: Engine, conn: Connection) -> None:
    task = engine.spawn()
    engine.queue("mails")
    assert queries.run(conn, tasks.get(task, "mails")) is None
    assert queries.run(conn, tasks.get(UUID(int=5))) is None


def test_the_id_of_a_run_that_never_was_is_nobodys(
    engine: Engine, conn: Connection, ids: Callable[..., list[UUID]]
) -> None:
    task = engine.spawn(max_attempts=2)
    engine.fail(engine.claim())
    for attempt in range(3):
        run = UUID(int=task.int + attempt)
        detail = queries.run(conn, tasks.get(run))
        assert detail is not None
        assert detail.task.task_id == task
        assert ids(id=run) == [task]
    beyond = UUID(int=task.int + 3)
    assert queries.run(conn, tasks.get(beyond)) is None
    assert queries.run(conn, tasks.get(beyond, "orders")) is None
    assert ids(id=beyond) == []


def test_events_waited_for_come_first_then_the_newest(engine: Engine, conn: Connection, clock: Clock) -> None:
    for name in ("b", "a", "b"):
        engine.spawn()
        engine.wait(engine.claim(), f"pending.{name}")
    for number in range(3):
        engine.emit(f"emitted.{number}", {"n": number})
        clock.advance(conn, 1)
    seen, after = [], None
    for _ in range(3):
        page = queries.run(conn, events.find(EventFilter(queue="orders", limit=2, after=after)))
        seen += [(event.event_name, event.state, event.waiters) for event in page.items]
        after = page.next
    assert after is None
    assert seen == [
        ("pending.a", "pending", 1),
        ("pending.b", "pending", 2),
        *((f"emitted.{number}", "emitted", 0) for number in (2, 1, 0)),
    ]


def test_events_emitted_at_one_moment_survive_page_breaks(engine: Engine, conn: Connection) -> None:
    engine.queue("mails")
    for name in "dacb":
        engine.emit(name)
        engine.emit(name, queue="mails")
    seen, after = [], None
    for _ in range(8):
        page = queries.run(conn, events.find(EventFilter(limit=1, after=after)))
        seen += [(event.event_name, event.queue_name) for event in page.items]
        after = page.next
    assert after is None
    assert seen == [(name, queue) for name in "abcd" for queue in ("orders", "mails")]


def test_event_filters(engine: Engine, conn: Connection, clock: Clock) -> None:
    engine.spawn()
    engine.wait(engine.claim(), "paid:1")
    engine.emit("paid:2", {"amount": 3})
    clock.advance(conn, 60)
    engine.emit("shipped:2")

    def names(**filters: Any) -> list[str]:
        return [event.event_name for event in queries.run(conn, events.find(EventFilter(**filters))).items]

    assert names(name="paid:*") == ["paid:1", "paid:2"]
    assert names(name="paid:2") == ["paid:2"]
    assert names(state="pending") == ["paid:1"]
    assert names(state="emitted") == ["shipped:2", "paid:2"]
    assert names(since=START + timedelta(seconds=60)) == ["shipped:2"]


def test_waiters_are_named_when_asked_for(engine: Engine, conn: Connection) -> None:
    task = engine.spawn()
    engine.wait(engine.claim(), "paid:1", timeout=30)
    (event,) = queries.run(conn, events.find(EventFilter())).items
    assert event.waiter_list is None
    (event,) = queries.run(conn, events.find(EventFilter(waiters=True))).items
    assert event.waiter_list is not None
    (waiter,) = event.waiter_list
    assert (waiter.task_id, waiter.step_name) == (task, "$awaitEvent:paid:1")
    assert waiter.timeout_at == START + timedelta(seconds=30)


def test_an_emitted_null_is_emitted(engine: Engine, conn: Connection) -> None:
    engine.emit("done", None)
    (event,) = queries.run(conn, events.find(EventFilter(name="done"))).items
    assert (event.state, event.payload) == ("emitted", Json("null"))


def test_queues_their_policy_and_their_counts(engine: Engine, conn: Connection, clock: Clock) -> None:
    engine.spawn()
    engine.complete(engine.claim())
    engine.spawn()
    engine.wait(engine.claim(), "paid")
    clock.advance(conn, 5)
    engine.spawn()
    (queue,) = queries.run(conn, queues.find())
    assert (queue.queue_name, queue.cleanup_ttl, queue.cleanup_limit) == ("orders", "30 days", 1000)
    assert queries.run(conn, queues.get("nope")) is None
    (counts,) = queries.run(conn, queues.counts())
    assert (counts.pending, counts.sleeping, counts.running, counts.due) == (1, 1, 0, 1)
    assert (counts.completed_last_day, counts.failed_last_day) == (1, 0)
    assert counts.oldest_due_at == START + timedelta(seconds=5)


def test_retention_counts_what_it_then_deletes(engine: Engine, conn: Connection, clock: Clock) -> None:
    for number in range(3):
        engine.spawn()
        engine.complete(engine.claim())
        engine.emit(f"e{number}")
    engine.spawn()
    clock.advance(conn, 100)
    assert queries.run(conn, retention.expired("orders", 99)) == retention.Amount(3, 3)
    conn.execute("select absurd.set_queue_policy('orders', '{\"cleanup_ttl\": \"99 seconds\"}')")
    assert queries.run(conn, retention.expired_by_policy()) == (retention.QueueAmount("orders", 3, 3),)
    assert queries.run(conn, retention.expired("orders", 100)) == retention.Amount(0, 0)
    assert queries.run(conn, retention.delete("orders", 99, 2)) == retention.Amount(2, 2)
    assert queries.run(conn, retention.delete("orders", 99, 2)) == retention.Amount(1, 1)
    assert queries.run(conn, retention.delete_by_policy()) == (retention.QueueAmount("orders", 0, 0),)


def test_violations_are_rows_and_a_clean_database_has_none(engine: Engine, conn: Connection) -> None:
    task = engine.spawn()
    assert queries.run(conn, health.violations()) == ()
    conn.execute("delete from absurd.live")
    (violation,) = queries.run(conn, health.violations("orders"))
    assert (violation.queue_name, violation.task_id) == ("orders", task)


def test_errors_are_those_of_the_package(conn: Connection, connect: Connect, empty_database_url: str) -> None:
    with pytest.raises(QueueNotFound):
        queries.run(conn, retention.expired("nope", 1))
    with pytest.raises(SchemaMissing):
        queries.run(connect(empty_database_url), tasks.find(TaskFilter()))


def test_asynchronous_connections_ask_the_same(engine: Engine, database_url: str) -> None:
    task = engine.spawn()

    async def ask() -> list[UUID]:
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as conn:
            page = await queries.run_async(conn, tasks.find(TaskFilter(queue="orders")))
            with pytest.raises(QueueNotFound):
                await queries.run_async(conn, retention.expired("nope", 1))
            return [each.task_id for each in page.items]

    assert asyncio.run(ask()) == [task]


def test_answers_become_json_with_moments_in_utc(engine: Engine, conn: Connection) -> None:
    task = engine.spawn("ship", {"order": 7})
    conn.execute("set timezone = 'Asia/Tokyo'")
    detail = queries.as_json(queries.run(conn, tasks.get(task)))
    assert json.loads(json.dumps(detail)) == detail
    assert detail["task"]["task_id"] == str(task)
    assert detail["task"]["enqueue_at"] == "2026-03-01T12:00:00Z"
    assert detail["params"] == {"order": 7}


@pytest.mark.parametrize("state", ["pending", "failed"])
def test_a_list_walks_its_index_and_reads_no_more_than_a_page(
    engine: Engine, conn: Connection, state: tasks.State
) -> None:
    names, params = "array_fill('n'::text, array[3000])", "array_fill('1'::jsonb, array[3000])"
    conn.execute(f"select absurd.spawn_tasks(q.queue_id, {names}, {params}) from absurd.queues q".encode())
    if state == "failed":
        conn.execute("update absurd.tasks set max_attempts = 1")
        conn.execute(
            "select absurd.fail_run('orders', c.run_id, '1') from absurd.claim_task('orders', 'w', 60, 3000) c"
        )
    conn.execute("analyze")
    query = tasks.find(TaskFilter(queue="orders", states=(state,), limit=10))
    row = conn.execute(b"explain (analyze, format json) " + query.sql.encode(), query.params).fetchone()
    assert row is not None
    scans = [node for node in _nodes(row[0][0]["Plan"]) if "Scan" in node["Node Type"]]
    read = sum((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"] for node in scans)
    assert 22 <= read <= 100, "two rows a task, and the queue"


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in _nodes(child))]
