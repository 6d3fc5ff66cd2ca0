"""The questions behind the web pages: overview, waits, a task in parts, and searches that stop."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from absurd import queries
from absurd.errors import ConfigError
from absurd.queries import Page, Query, detail, events, overview, tasks, waits
from absurd.queries.events import EventFilter
from absurd.queries.tasks import TaskFilter
from absurd.queries.values import Json, Preview
from absurd.queries.waits import WaitFilter
from absurd.queries.why import explain
from tests.cli.engine import Engine
from tests.fixtures.clock import Clock
from tests.fixtures.postgres import Connect, Connection

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def engine(conn: Connection, clock: Clock) -> Engine:
    clock.set(conn, START)
    return Engine(conn)


def ask(conn: Connection, query: Query[Any]) -> Any:
    """The answer, which must be JSON too."""
    answer = queries.run(conn, query)
    json.dumps(queries.as_json(answer))
    return answer


def pages(conn: Connection, find: Any, which: Any) -> list[Page[Any]]:
    """All pages of a filter, each of which must bring the search on."""
    found, seen = [], set()
    while True:
        page = ask(conn, find(which))
        found.append(page)
        assert page.next not in seen, "the search stands still"
        seen.add(page.next)
        if page.next is None:
            return found
        which = dataclasses.replace(which, after=page.next)


# ------------------------------------------------------------ searches that stop


def test_a_search_that_used_its_budget_says_how_far_it_came_and_goes_on(
    engine: Engine, conn: Connection, clock: Clock
) -> None:
    rare = engine.spawn("rare")
    for _ in range(25):
        clock.advance(conn, 60)
        engine.spawn("common")
    first = ask(conn, tasks.find(TaskFilter(name="rare", budget=10)))
    assert first.items == ()
    assert first.searched_until == START + timedelta(minutes=16), "the tenth from the newest"
    found = pages(conn, tasks.find, TaskFilter(name="rare", budget=10))
    assert [[task.task_id for task in page.items] for page in found] == [[], [], [rare]]
    assert found[-1].searched_until is None


def test_a_full_page_has_not_been_stopped(engine: Engine, conn: Connection) -> None:
    for _ in range(4):
        engine.spawn()
    page = ask(conn, tasks.find(TaskFilter(limit=2, budget=2)))
    assert len(page.items) == 2
    assert page.next
    assert page.searched_until is None


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize("limit", [1, 3, 100])
@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"name": "a"},
        {"name": "a*", "states": ("failed",)},
        {"states": ("failed", "cancelled")},
        {"states": ("completed",)},
        {"states": ("completed", "failed"), "name": "b"},
        {"states": ("running",)},
        {"states": ("sleeping",)},
        {"states": ("pending", "running"), "text": "X1"},
        {"states": ("running", "failed")},
        {"states": ("sleeping", "completed"), "queue": "mails"},
        {"text": "x2"},
        {"since": START + timedelta(seconds=6), "until": START + timedelta(seconds=15), "states": ("completed",)},
    ],
    ids=str,
)
def test_pages_joined_are_the_list_whatever_the_budget(
    engine: Engine, conn: Connection, clock: Clock, limit: int, budget: int, filters: dict[str, Any]
) -> None:
    _everything(engine, conn, clock)
    sought = [
        task
        for task in ask(conn, tasks.find(TaskFilter(limit=1000))).items
        if task.task_name.startswith(filters.get("name", "").rstrip("*"))
        and task.state in filters.get("states", tasks.STATES)
        and task.queue_name in filters.get("queue", ("mails", "orders"))
        and filters.get("text", "").lower() in json.dumps(_params(conn, task.task_id))
        and filters.get("since", START) <= task.enqueue_at < filters.get("until", START + timedelta(days=1))
    ]
    assert sought, "a filter that finds nothing shows nothing"
    found = pages(conn, tasks.find, TaskFilter(**filters, limit=limit, budget=budget))
    assert [task for page in found for task in page.items] == sought
    assert all(len(page.items) <= limit for page in found)
    filled = queries.filled(lambda query: queries.run(conn, query), tasks.find, TaskFilter(**filters, budget=budget))
    assert list(filled.items) == sought
    assert filled.next is None


def _everything(engine: Engine, conn: Connection, clock: Clock) -> None:
    """24 tasks in two queues, four of each state, spawned one a second."""
    engine.queue("mails")
    for number in range(24):
        queue = ("orders", "mails")[number % 2]
        state = list(tasks.STATES)[number // 2 % 6]
        options = {"max_attempts": 1} if state == "failed" else {}
        # what came before is not claimed again
        task = engine.spawn("ab"[number % 3 == 0], {"n": f"x{number}"}, queue, priority=number, **options)
        if state not in ("pending", "cancelled"):
            run = engine.claim(queue)
            if state == "sleeping":
                call = "select * from absurd.await_event(%s, %s, %s, 's', 'never')"
                conn.execute(call, (queue, task, run))
            elif state == "completed":
                conn.execute("select absurd.complete_run(%s, %s)", (queue, run))
            elif state == "failed":
                conn.execute("select absurd.fail_run(%s, %s, '{}')", (queue, run))
        elif state == "cancelled":
            conn.execute("select absurd.cancel_task(%s, %s)", (queue, task))
        clock.advance(conn, 1)
    # a lease that never ends is in no index of leases
    conn.execute("update absurd.live set due_at = null, lease_until = null where state = 'r' and rank < -12")


def _params(conn: Connection, task: UUID) -> Any:
    row = conn.execute("select params from absurd.tasks where task_id = %s", (task,)).fetchone()
    assert row is not None
    return row[0]


def test_large_params_stop_a_search_for_text_by_their_size(engine: Engine, conn: Connection) -> None:
    needle = engine.spawn("ship", {"note": "needle"})
    for _ in range(3):
        engine.spawn("ship", {"note": "hay"})
    conn.execute("alter table absurd.tasks alter params set storage external")  # as large on disk as it is
    conn.execute("update absurd.tasks set params = to_jsonb(repeat('hay ', 2000000)) where params->>'note' = 'hay'")
    found = pages(conn, tasks.find, TaskFilter(text="NEEDLE"))
    assert len(found) > 1
    assert [task.task_id for page in found for task in page.items] == [needle]


@pytest.mark.parametrize("budget", [1, 4, 1000])
@pytest.mark.parametrize("limit", [1, 4, 1000])
@pytest.mark.parametrize("state", [None, "emitted", "pending"])
def test_event_pages_joined_are_the_list_whatever_the_budget(
    engine: Engine, conn: Connection, clock: Clock, state: Any, limit: int, budget: int
) -> None:
    engine.queue("mails")
    for name in ("pb", "pa", "qa"):
        for queue in ("orders", "mails"):
            task = engine.spawn(queue=queue)
            call = "select * from absurd.await_event(%s, %s, %s, 's', %s)"
            conn.execute(call, (queue, task, engine.claim(queue), name))
    for name in ("pd", "qb", "pc"):
        for queue in ("orders", "mails"):
            engine.emit(name, queue=queue)
        clock.advance(conn, 1 if name == "pd" else 0)
    pending = [("pa", "orders"), ("pa", "mails"), ("pb", "orders"), ("pb", "mails")]
    emitted = [("pc", "orders"), ("pc", "mails"), ("pd", "orders"), ("pd", "mails")]
    which = EventFilter(name="p*", state=state, limit=limit, budget=budget)
    found = [(each.event_name, each.queue_name) for page in pages(conn, events.find, which) for each in page.items]
    assert found == {"pending": pending, "emitted": emitted, None: pending + emitted}[state]
    filled = queries.filled(lambda query: queries.run(conn, query), events.find, which)
    assert [(each.event_name, each.queue_name) for each in filled.items] == found[:limit]


def test_an_event_counts_who_waits_up_to_a_bound(engine: Engine, conn: Connection) -> None:
    engine.spawn()
    engine.wait(engine.claim(), "flood")
    conn.execute(
        "insert into absurd.waits select queue_id, gen_random_uuid(), step_name, attempt, event_name, null, null, null, now()"
        " from absurd.waits, generate_series(1, 300)"
    )
    (event,) = ask(conn, events.find(EventFilter(name="flood", waiters=True))).items
    assert (event.waiters, event.waiters_capped) == (250, True)
    assert len(event.waiter_list) == 100


# ------------------------------------------------------------ waits


def test_waits_say_who_waits_for_what_since_when_and_until_when(engine: Engine, conn: Connection, clock: Clock) -> None:
    parent = engine.spawn("order")
    clock.advance(conn, 1)
    child = engine.spawn("ship")
    run = engine.claim()
    engine.wait(run, "paid:7", timeout=60)
    other = engine.claim()
    conn.execute(
        "select * from absurd.await_tasks(absurd.queue_id_of('orders'), array[%s], array[null]::int[], array['s'],"
        " array[absurd.queue_id_of('orders')], array[%s], null)",
        (other, parent),
    )
    by_task, by_event = ask(conn, waits.find(WaitFilter())).items
    assert (by_event.task_id, by_event.task_name, by_event.event_name) == (parent, "order", "paid:7")
    assert by_event.created_at == START + timedelta(seconds=1)
    assert by_event.timeout_at == START + timedelta(seconds=61)
    assert by_event.awaited_task_id is None
    assert (by_task.task_id, by_task.event_name, by_task.timeout_at) == (child, None, None)
    assert (by_task.awaited_queue, by_task.awaited_task_id) == ("orders", parent)
    assert (by_task.awaited_task_name, by_task.awaited_state) == ("order", "sleeping")
    for filters, expected in (
        ({"task": True}, [child]),
        ({"task": False}, [parent]),
        ({"event": "paid:7"}, [parent]),
        ({"event": "paid:*"}, [parent]),
        ({"event": "paid"}, []),
        ({"event": "paid:7", "task": True}, []),
        ({"event": "*"}, [parent]),
        ({"queue": "nowhere"}, []),
    ):
        found = ask(conn, waits.find(WaitFilter(**filters))).items
        assert [each.task_id for each in found] == expected, filters


@pytest.mark.parametrize("budget", [1, 3, 1000])
@pytest.mark.parametrize("limit", [1, 3, 1000])
@pytest.mark.parametrize("event", [None, "p*", "p1"])
def test_wait_pages_joined_are_the_list_whatever_the_budget(
    engine: Engine, conn: Connection, event: str | None, limit: int, budget: int
) -> None:
    engine.queue("mails")
    made = []
    for number in range(10):
        queue, name = ("orders", "mails")[number % 2], f"{'pq'[number % 3 == 0]}{number % 4}"
        task = engine.spawn(queue=queue)
        call = "select * from absurd.await_event(%s, %s, %s, 's', %s)"
        conn.execute(call, (queue, task, engine.claim(queue), name))
        made.append((task, name))
    expected = [task for task, name in sorted(made, reverse=True) if name.startswith((event or "").rstrip("*"))]
    found = pages(conn, waits.find, WaitFilter(event=event, limit=limit, budget=budget))
    assert [each.task_id for page in found for each in page.items] == expected


@pytest.mark.parametrize(
    "make",
    [
        lambda: waits.find(WaitFilter(after="drop table")),
        lambda: waits.find(WaitFilter(after="MQ==")),
        lambda: waits.find(WaitFilter(budget=0)),
        lambda: tasks.find(TaskFilter(budget=0)),
        lambda: events.find(EventFilter(after="MQ==")),
        lambda: overview.find(cap=0),
        lambda: overview.workers(limit=0),
        lambda: detail.get(UUID(int=0), preview=0),
        lambda: detail.checkpoints("q", UUID(int=0), after="W10="),
        lambda: detail.payload("q", UUID(int=0), "checkpoint"),
        lambda: detail.payload("q", UUID(int=0), "params", "x"),
        lambda: detail.payload("q", UUID(int=0), "run_result", "1"),
        lambda: detail.payload("q", UUID(int=0), "secrets"),  # type: ignore[arg-type]
    ],
)
def test_what_makes_no_sense_is_refused_before_it_is_asked(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


# ------------------------------------------------------------ overview


def test_the_overview_counts_each_queue(engine: Engine, conn: Connection, clock: Clock) -> None:
    engine.queue("mails")
    engine.spawn()
    engine.complete(engine.claim())
    clock.advance(conn, 61)
    for name in ("failed", "sleeping", "running"):
        engine.spawn(name, max_attempts=1)
        run = engine.claim()
        if name == "failed":
            engine.fail(run)
        elif name == "sleeping":
            engine.wait(run, "paid")
    conn.execute("select absurd.cancel_task('orders', %s)", (engine.spawn(),))
    engine.spawn(priority=-3)
    clock.advance(conn, 5)
    engine.spawn(priority=9)
    engine.spawn(delay_seconds=60)
    mails, orders = ask(conn, overview.find()).items
    assert (mails.queue_name, mails.pending, mails.tasks, mails.oldest_due_at) == ("mails", 0, 0, None)
    assert (orders.pending, orders.sleeping, orders.running, orders.due, orders.capped) == (3, 1, 1, 2, False)
    assert orders.oldest_due_at == START + timedelta(seconds=61), "whatever its priority"
    assert (orders.completed, orders.failed, orders.cancelled, orders.ended_capped) == (0, 1, 1, False)
    assert (orders.tasks, orders.tasks_estimated) == (8, False)
    assert orders.as_of == START + timedelta(seconds=66)
    assert ask(conn, overview.find("orders")).items == (orders,)
    first = ask(conn, overview.find(limit=1))
    second = ask(conn, overview.find(limit=1, after=first.next))
    assert (first.items, second.items, second.next) == ((mails,), (orders,), None)


def test_the_overview_says_when_it_stopped_counting(engine: Engine, conn: Connection) -> None:
    for _ in range(3):
        engine.spawn(max_attempts=1)
        engine.fail(engine.claim())
        engine.spawn("late", delay_seconds=60)
    engine.spawn()
    engine.claim()
    (orders,) = ask(conn, overview.find(cap=2, ended_cap=2)).items
    assert orders.capped
    assert orders.pending >= 2
    assert orders.running == 1, "counted by itself"
    assert orders.ended_capped
    assert orders.failed >= 2
    (exact,) = ask(conn, overview.find(cap=4, ended_cap=3)).items
    assert (exact.capped, exact.ended_capped, exact.pending, exact.failed) == (False, False, 3, 3)


def test_the_number_of_tasks_in_a_large_queue_is_a_guess_near_the_truth(engine: Engine, conn: Connection) -> None:
    engine.queue("mails")
    for queue, count in (("orders", 3000), ("mails", 1500)):
        names, params = f"array_fill('n'::text, array[{count}])", f"array_fill('1'::jsonb, array[{count}])"
        conn.execute(f"select absurd.spawn_tasks(absurd.queue_id_of('{queue}'), {names}, {params})".encode())
    for expected in ((1001, 1001), (1500, 3000)):
        found = ask(conn, overview.find()).items
        assert [each.tasks_estimated for each in found] == [True, True]
        for each, tasks_there in zip(found, expected, strict=True):
            assert tasks_there * 0.9 <= each.tasks <= 3000 * 1.1
        conn.execute("analyze absurd.tasks")


def test_workers_are_those_that_run_or_ended_tasks_lately(engine: Engine, conn: Connection, clock: Clock) -> None:
    engine.queue("mails")

    def claim(worker: str, queue: str) -> Any:
        engine.spawn(queue=queue)
        row = conn.execute("select run_id from absurd.claim_task(%s, %s, 60, 1)", (queue, worker)).fetchone()
        assert row is not None
        return row[0]

    for number in range(2):
        conn.execute("select absurd.complete_run('mails', %s)", (claim("w1", "mails"),))
        claim("w1", "orders")
        clock.advance(conn, number)
    conn.execute("select absurd.complete_run('orders', %s)", (claim("w2", "orders"),))
    two, one = ask(conn, overview.workers())
    assert (one.worker, one.running, one.last_seen, one.queues) == ("w1", 2, START, ("mails", "orders"))
    assert one.lease_until == START + timedelta(seconds=60)
    assert (two.worker, two.running, two.last_seen, two.lease_until) == ("w2", 0, START + timedelta(seconds=1), None)
    (mails,) = ask(conn, overview.workers("mails"))
    assert (mails.worker, mails.running) == ("w1", 0)
    assert ask(conn, overview.workers(limit=1)) == (two,)


def test_the_pulse_moves_when_something_was_committed(engine: Engine, conn: Connection, connect: Connect) -> None:
    other = connect()
    with other.transaction():
        other.execute("select absurd.emit_event('orders', 'open', '1')")
        before = ask(conn, overview.pulse()).mark
    after = ask(conn, overview.pulse()).mark
    assert after != before
    with other.transaction():
        other.execute("select absurd.emit_event('orders', 'longer', '1')")
        engine.spawn()
        during = ask(conn, overview.pulse()).mark
        assert during != after
    assert ask(conn, overview.pulse()).mark != during, "a transaction that was overtaken counts when it commits"


# ------------------------------------------------------------ a task in parts


def test_a_task_of_any_size_is_shown_in_parts(engine: Engine, conn: Connection, clock: Clock) -> None:
    engine.spawn("ship", {"text": "ü" * 100}, headers={"trace": "t"})
    for _ in range(4):
        engine.fail(engine.claim(), name="Boom", message="no stock")
    run = engine.claim()
    for number in range(10):
        clock.advance(conn, 1)
        engine.step(run, f"s{number}", "x" * 50 if number == 9 else number)
    engine.wait(run, "paid:7")
    view = ask(conn, detail.get(run, runs=2, checkpoints=3, preview=20, checkpoint_preview=10))
    assert (view.task.state, view.run_count) == ("sleeping", 5)
    assert [(each.attempt, each.state, each.error) for each in view.runs] == [
        (4, "failed", "Boom: no stock"),
        (5, "sleeping", None),
    ]
    assert view.params == Preview('{"text": "' + "ü" * 10, 212, False)
    assert view.headers == Preview('{"trace": "t"}', 14, True)
    assert (view.result, view.failure) == (None, None)
    assert [each.name for each in view.checkpoints] == ["s7", "s8", "s9"]
    assert view.checkpoints[0].state == Preview("7", 1, True)
    assert view.checkpoints[2].state == Preview('"' + "x" * 9, 52, False)
    assert (view.checkpoint_count, view.checkpoints_capped) == (10, False)
    assert "paid:7" in explain(view)
    names, after = [], view.checkpoints_next
    while after is not None:
        page = ask(conn, detail.checkpoints("orders", view.task.task_id, limit=3, after=after))
        names += [each.name for each in page.items]
        after = page.next
    assert names == ["s6", "s5", "s4", "s3", "s2", "s1", "s0"]


def test_checkpoints_can_be_read_from_the_oldest_on(engine: Engine, conn: Connection) -> None:
    task = engine.spawn()
    run = engine.claim()
    for name in "caebd":  # all at one moment: then by name
        engine.step(run, name, 1)
    view = ask(conn, detail.get(task, checkpoints=2, newest=False))
    assert [each.name for each in view.checkpoints] == ["a", "b"]
    page = ask(conn, detail.checkpoints("orders", task, newest=False, after=view.checkpoints_next))
    assert [each.name for each in page.items] == ["c", "d", "e"]
    assert page.next is None
    assert ask(conn, detail.get(task)).checkpoints_next is None


def test_parts_and_whole_tell_the_same_story(engine: Engine, conn: Connection) -> None:
    task = engine.spawn("ship", [1], max_attempts=2)
    engine.fail(engine.claim(), name="Boom", message="no stock")
    run = engine.claim()
    engine.step(run, "s", {"a": 1})
    engine.complete(run, {"done": True})
    whole, view = ask(conn, tasks.get(task)), ask(conn, detail.get(task))
    assert view.task == whole.task
    assert explain(view) == explain(whole)
    assert [each.run_id for each in view.runs] == [each.run_id for each in whole.runs]
    assert Json(view.result.text) == whole.result
    assert Json(view.runs[0].failure.text) == whole.runs[0].failure
    assert ask(conn, detail.get(task, "nowhere")) is None
    assert ask(conn, detail.get(UUID(int=5))) is None
    assert ask(conn, detail.get(UUID(int=task.int + 3))) is None, "a run that never was"


def test_one_payload_whole(engine: Engine, conn: Connection) -> None:
    task = engine.spawn("ship", {"note": "ü"}, max_attempts=2)
    engine.fail(engine.claim(), name="Boom")
    run = engine.claim()
    engine.step(run, "s", None)
    engine.complete(run, [1])

    def text(part: Any, name: Any = None) -> str | None:
        found = ask(conn, detail.payload("orders", task, part, name))
        assert found is None or found.size == len(found.text.encode())
        return found.text if found else None

    assert text("params") == '{"note": "ü"}'
    assert text("headers") is None
    assert text("result") == "[1]"
    assert text("failure") is None
    assert text("checkpoint", "s") == "null"
    assert text("checkpoint", "t") is None
    assert text("run_failure", 1) == '{"name": "Boom"}'
    assert text("run_result", 2) == "[1]"
    assert text("run_result", 3) is None
    assert ask(conn, detail.payload("nowhere", task, "params")) is None


def test_a_state_too_large_for_a_list_is_not_read_but_told(engine: Engine, conn: Connection) -> None:
    task = engine.spawn()
    run = engine.claim()
    conn.execute("alter table absurd.checkpoints alter state set storage external")
    engine.step(run, "big", "x" * 300_000)
    (step,) = ask(conn, detail.get(task)).checkpoints
    assert (step.state.text, step.state.whole) == (None, False)
    assert 300_000 <= step.state.size <= 300_100
    assert len(ask(conn, detail.payload("orders", task, "checkpoint", "big")).text) == 300_002


def test_a_hostile_name_stays_a_name(engine: Engine, conn: Connection) -> None:
    name = "x'); drop table absurd.tasks; -- %s {0} \u202e<script>"
    task = engine.spawn(name, {"t": name})
    run = engine.claim()
    engine.step(run, name, name)
    engine.wait(run, name)
    (found,) = ask(conn, tasks.find(TaskFilter(name=name, text="<SCRIPT>"))).items
    assert found.task_name == name
    (wait,) = ask(conn, waits.find(WaitFilter(event=name))).items
    assert wait.event_name == name
    assert json.loads(ask(conn, detail.payload("orders", task, "checkpoint", name)).text) == name
    assert ask(conn, detail.get(task)).checkpoints[0].name == name


def test_answers_are_frozen(engine: Engine, conn: Connection) -> None:
    engine.spawn()
    for answer in (
        ask(conn, overview.find()).items[0],
        ask(conn, overview.pulse()),
        ask(conn, tasks.find(TaskFilter())),
    ):
        with pytest.raises(AttributeError):
            answer.queue_name = "x"


def test_every_question_can_be_asked_of_a_database_that_only_reads(engine: Engine, conn: Connection) -> None:
    task = engine.spawn()
    with conn.transaction():
        conn.execute("set transaction read only")
        for query in (
            tasks.find(TaskFilter(states=("running", "failed"), text="x")),
            events.find(EventFilter()),
            waits.find(WaitFilter()),
            overview.find(),
            overview.workers(),
            overview.pulse(),
            detail.get(task),
        ):
            ask(conn, query)
