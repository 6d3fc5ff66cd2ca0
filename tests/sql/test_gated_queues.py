"""Queues made and dropped, keys taken and given back, by two sessions at once."""

from __future__ import annotations

import random
import threading

import psycopg
import pytest

from tests.fixtures.gates import Gate
from tests.fixtures.postgres import Connect
from tests.sql.driver import Queue, refused

VIEWS = "select count(*) from pg_class where relnamespace = 'absurd'::regnamespace and relname ~ '^[trcew]_side$'"


def test_two_creations_of_one_queue_make_one(q: Queue, connect: Connect, gate: Gate) -> None:
    first = connect(autocommit=False)
    q.on(first).named("side")

    second = gate(lambda c: q.on(c).named("side")).wait_until_blocked()
    first.commit()
    second.result()

    assert q.value("select count(*) from absurd.queues where queue_name = 'side'") == 1
    assert q.value(VIEWS) == 5


def test_the_second_creation_counts_when_the_first_is_rolled_back(q: Queue, connect: Connect, gate: Gate) -> None:
    first = connect(autocommit=False)
    q.on(first).named("side")

    second = gate(lambda c: q.on(c).named("side")).wait_until_blocked()
    first.rollback()
    second.result()

    assert q.value(VIEWS) == 5


@pytest.mark.parametrize("commits", [True, False], ids=["drop commits", "drop rolls back"])
def test_a_creation_waits_for_a_drop_of_the_same_name(q: Queue, connect: Connect, gate: Gate, commits: bool) -> None:
    before = q.named("side").id
    dropper = connect(autocommit=False)
    dropper.execute("select absurd.drop_queue('side')")

    creating = gate(lambda c: q.on(c).named("side").id).wait_until_blocked()
    dropper.commit() if commits else dropper.rollback()

    assert (creating.result() != before) is commits, "an id is never used again"
    assert q.value(VIEWS) == 5


def test_two_drops_of_one_queue_drop_it_once(q: Queue, connect: Connect, gate: Gate) -> None:
    q.named("side")
    first = connect(autocommit=False)
    first.execute("select absurd.drop_queue('side')")

    second = gate(lambda c: c.execute("select absurd.drop_queue('side')")).wait_until_blocked()
    first.commit()
    second.result()

    assert q.value(VIEWS) == 0
    assert q.value("select count(*) from absurd.dropped_queues") == 1


def test_a_drop_does_not_wait_for_a_child_that_is_ending(q: Queue, connect: Connect, gate: Gate) -> None:
    side = q.named("side")
    (parent,), (child, grandchild) = q.hold(), side.hold(2)
    q.awaits_tasks([parent], ["s"], [(side.id, child.task_id)])
    side.awaits_tasks([child], ["s"], [(side.id, grandchild.task_id)])
    ending = connect(autocommit=False)
    side.on(ending).complete(grandchild.run_id, 1)  # holds the grandchild and the child that waits for it

    q.conn.execute("set statement_timeout = '10s'")
    q.conn.execute("select absurd.drop_queue('side')")
    ending.commit()
    assert q.task(parent.task_id)["state"] == "sleeping"
    q.conn.execute("select absurd.purge_dropped_queues(100)")

    assert q.checkpoints(parent.task_id) == {"s": {"state": "cancelled"}}
    assert q.value("select count(*) from absurd.tasks where queue_id <> %s", (q.id,)) == 0


def test_w23_creating_and_dropping_one_name_from_many_sessions_never_deadlocks(q: Queue, connect: Connect) -> None:
    """W23: 240 calls of the original gave dozens of 40P01."""
    failures: list[psycopg.Error] = []

    def rounds(seed: int, conn: psycopg.Connection[object]) -> None:
        calls = random.Random(seed).choices(["create_queue", "drop_queue", "spawn"], k=60)
        for call in calls:
            try:
                if call == "spawn":
                    conn.execute("select absurd.spawn_task('side', 't', '{}')")
                else:
                    conn.execute(f"select absurd.{call}('side')")
            except psycopg.errors.UndefinedTable:
                continue  # no such queue just now
            except psycopg.Error as error:
                failures.append(error)

    threads = [threading.Thread(target=rounds, args=(seed, connect())) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    q.named("side")
    assert q.value(VIEWS) == 5


# ---------------------------------------------------------------- idempotency keys


def test_two_spawns_with_one_key_are_one_task(q: Queue, connect: Connect, gate: Gate) -> None:
    first = connect(autocommit=False)
    winner = q.on(first).spawn(idempotency_key="order-7")

    second = gate(lambda c: q.on(c).spawn(idempotency_key="order-7")).wait_until_blocked()
    first.commit()

    assert second.result() == {**winner, "created": False}
    assert len(q.view("t")) == 1


def test_the_second_spawn_with_a_key_creates_the_task_when_the_first_is_rolled_back(
    q: Queue, connect: Connect, gate: Gate
) -> None:
    first = connect(autocommit=False)
    loser = q.on(first).spawn(idempotency_key="order-7")

    second = gate(lambda c: q.on(c).spawn(idempotency_key="order-7")).wait_until_blocked()
    first.rollback()
    created = second.result()

    assert created["created"]
    assert created["task_id"] != loser["task_id"]
    assert [t["task_id"] for t in q.view("t")] == [created["task_id"]]


def test_bulk_spawns_with_the_same_keys_in_other_orders_do_not_cross(q: Queue, connect: Connect, gate: Gate) -> None:
    stopper = connect(autocommit=False)
    q.on(stopper).spawn(idempotency_key="a")

    one = gate(lambda c: q.on(c).spawns(["t", "t"], keys=["a", "b"])).wait_until_blocked()
    two = gate(lambda c: q.on(c).spawns(["t", "t"], keys=["b", "a"])).wait_until_blocked()
    stopper.rollback()

    created = [[row["created"] for row in call.result()] for call in (one, two)]
    assert sorted(created) == [[False, False], [True, True]]
    assert len(q.view("t")) == 2


def test_a_spawn_that_waits_for_the_cleanup_of_its_keys_owner_creates_anew(
    q: Queue, connect: Connect, gate: Gate
) -> None:
    old = q.start(idempotency_key="order-7")
    q.complete(old["run_id"])
    cleaner = connect(autocommit=False)
    assert q.on(cleaner).call("cleanup_tasks", 0)[0]["cleanup_tasks"] == 1

    spawning = gate(lambda c: q.on(c).spawn(idempotency_key="order-7")).wait_until_blocked()
    cleaner.commit()

    created = spawning.result()
    assert created["created"]
    assert created["task_id"] != old["task_id"]


def test_a_queue_dropped_under_a_spawn_is_said_to_be_missing(q: Queue, connect: Connect) -> None:
    side = q.named("side")
    queue_id = side.id
    connect().execute("select absurd.drop_queue('side')")

    with refused("42P01", "does not exist"):
        side.spawn()
    with refused("42P01"):
        q.conn.execute("select * from absurd.spawn_tasks(%s, array['t'], array['{}'::jsonb])", (queue_id,))
