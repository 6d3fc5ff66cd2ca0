"""What clients and workers ask beside the contract: to be told of an end, to take over the housekeeping."""

from __future__ import annotations

from psycopg.types.json import Jsonb

from tests.fixtures.clock import Clock
from tests.fixtures.gates import Gate
from tests.fixtures.postgres import Connect
from tests.sql.driver import Queue, after, minted, refused


def test_a_watcher_is_told_when_the_task_ends(q: Queue, connect: Connect) -> None:
    run = q.start()
    listener = connect()
    listener.execute("listen ended")
    assert q.call("watch_task", run["task_id"], "ended") == [{"watch_task": "running"}]
    assert q.call("watch_task", run["task_id"], "ended") == [{"watch_task": "running"}]
    q.complete(run["run_id"])
    notes = list(listener.notifies(timeout=10, stop_after=1))
    assert [(n.channel, n.payload) for n in notes] == [("ended", str(run["task_id"]))]
    assert q.call("watch_task", run["task_id"], "ended") == [{"watch_task": "completed"}]
    assert q.call("watch_task", minted(), "ended") == [{"watch_task": None}]
    assert q.rows("select * from absurd.watchers") == []


def test_watching_does_not_wait_for_an_end_that_is_under_way(q: Queue, connect: Connect) -> None:
    run = q.start()
    ending = q.on(connect(autocommit=False))
    ending.complete(run["run_id"])
    assert q.call("watch_task", run["task_id"], "ended") == [{"watch_task": "locked"}]
    ending.conn.commit()
    assert q.call("watch_task", run["task_id"], "ended") == [{"watch_task": "completed"}]


def test_housekeeping_of_a_queue_is_taken_by_one_at_a_time(q: Queue, connect: Connect, gate: Gate) -> None:
    take = "select absurd.take_housekeeping(%s, %s)"
    ids = [q.id, q.named("other").id]
    first = connect(autocommit=False)
    assert first.execute(take, (ids, 3600)).fetchone() == (ids,)
    second = gate(lambda c: c.execute(take, (ids, 3600)).fetchone()).wait_until_blocked()
    first.commit()
    assert second.result() == ([],)
    assert q.value(take, (ids, 0)) == ids


def test_the_clock_of_a_test_is_not_asked_for_housekeeping(noon: Queue, clock: Clock) -> None:
    take = "select absurd.take_housekeeping(array[%s], 3600)"
    assert noon.value(take, (noon.id,)) == [noon.id]
    clock.set(noon.conn, after(1e6))
    assert noon.value(take, (noon.id,)) == []


def test_a_worker_that_is_busy_again_is_not_told(q: Queue, connect: Connect) -> None:
    listener = connect()
    listener.execute("listen w1; listen w2")
    ids = [q.id]
    for channel in ("w1", "w1", "w2"):
        q.conn.execute("select absurd.set_idle(%s, %s)", (ids, channel))
    holder = connect(autocommit=False)
    holder.execute("select 1 from absurd.idle where channel = 'w2' for update")
    for channel in ("w1", "w1", "w2"):
        q.conn.execute("select absurd.clear_idle(%s, %s)", (ids, channel))
    assert q.rows("select channel from absurd.idle") == [{"channel": "w2"}]
    holder.rollback()
    q.spawn()
    q.conn.execute("select absurd.wake('q')")
    q.conn.execute("notify w1, 'the end'")
    notes = [(n.channel, n.payload) for n in listener.notifies(timeout=10, stop_after=2)]
    assert notes == [("w2", str(q.id)), ("w1", "the end")]


def test_tasks_that_nobody_takes_are_counted_by_name_once_they_are_overdue(noon: Queue, clock: Clock) -> None:
    question = "select * from absurd.unserved_tasks(%s, %s, 60)"
    for name, options in (("a", {}), ("a", {}), ("b", {"priority": 5}), ("mine", {}), ("late", {"delay_seconds": 30})):
        noon.spawn(name, None, **options)
    clock.set(noon.conn, after(59.999999))
    assert noon.rows(question, (noon.id, ["mine"])) == []
    clock.set(noon.conn, after(60))
    noon.spawn("not due", priority=-7)
    found = [{"task_name": "a", "tasks": 2, "more": False}, {"task_name": "b", "tasks": 1, "more": False}]
    assert noon.rows(question, (noon.id, ["mine"])) == noon.rows(question, (noon.id, ["mine"])) == found
    assert len(noon.rows(question, (noon.id, None))) == 3
    assert noon.rows(question, (-1, None)) == []


def test_a_long_backlog_that_nobody_takes_is_not_counted_to_its_end(
    noon: Queue, clock: Clock, connect: Connect
) -> None:
    noon.spawns(["a"] * 150)
    holder = connect(autocommit=False)
    holder.execute("select 1 from absurd.live for update")
    clock.set(noon.conn, after(60))
    rows = noon.rows("select * from absurd.unserved_tasks(%s, '{}', 60)", (noon.id,))
    assert rows == [{"task_name": "a", "tasks": 100, "more": True}]


def tries(q: Queue, events: list[tuple[str, int]], mode: str = "latch") -> str:
    names, payloads = [name for name, _ in events], [Jsonb(payload) for _, payload in events]
    return str(q.value("select absurd.try_emit_events(%s, %s::text[], %s, %s)", (q.id, names, payloads, mode)))


def test_a_worker_emits_past_a_name_that_somebody_holds(q: Queue, connect: Connect) -> None:
    holder = q.on(connect(autocommit=False))
    holder.emit("held", 0)
    assert tries(q, [("a", 1), ("held", 2), ("b", 3), ("held", 4), ("a", 5)]) == "obobx"
    holder.conn.commit()
    assert {e["event_name"]: e["payload"] for e in q.view("e")} == {"a": 1, "b": 3, "held": 0}
    assert tries(q, [("held", 2), ("a", 9)]) == "xx"


def test_a_worker_emits_as_everybody_does_where_nothing_is_held(q: Queue) -> None:
    (held,) = q.hold()
    q.awaits([held], ["w"], ["a"])
    assert tries(q, [("a", 1), ("b", 2), ("a", 3)]) == "oox"
    assert tries(q, [("a", 1), ("b", 2), ("a", 3)]) == "xxx"
    assert tries(q, [("b", 4)], "next") == "o"
    assert [r["checkpoints"] for r in q.claims()] == [{"w": 1}]
    with refused("AB004", "unknown emit mode"):
        tries(q, [("c", 1)], "loud")
    with refused("P0001", "event_name must be provided"):
        tries(q, [("c", 1), (" ", 2)])
    assert {e["event_name"] for e in q.view("e")} == {"a", "b"}
