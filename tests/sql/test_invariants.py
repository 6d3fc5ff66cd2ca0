"""check_invariants: silent on what the engine makes, loud on each thing broken by hand."""

from __future__ import annotations

import inspect
import re

import pytest

from absurd import schema
from tests.fixtures.postgres import Connect
from tests.sql import situations
from tests.sql.driver import UNKNOWN_QUEUE, Queue, refused

#: rule -> statements that break it in a queue that holds one of each: pending, running, waiting for an event, waiting
#: for a task, completed (with a checkpoint), failed once and running again, keyed
BREAKS = {
    "a task is live or has one ending run, never both or neither": [
        "delete from absurd.live where state = 'p'",
        "update absurd.attempts set task_state = null where state = 'c'",
        "update absurd.attempts set task_state = 'f' where state = 'f'",
    ],
    "a live row belongs to a task": ["delete from absurd.tasks where task_name = 'pending'"],
    "earlier attempts of a live task are all recorded": [
        "delete from absurd.attempts where state = 'f'",
        "update absurd.live set attempt = 2 where state = 'p'",
    ],
    "a running run has a claim, a waiting one has none": [
        "update absurd.live set claimed_by = null where state = 'r'",
        "update absurd.live set started_at = null where state = 'r'",
        "update absurd.live set claim_no = 0 where state = 'r'",
        "update absurd.live set claimed_by = 'w' where state = 'p'",
        "update absurd.live set lease_until = now() where state = 's'",
    ],
    "a running run has a lease": ["update absurd.live set lease_until = null where state = 'r'"],
    "a lease is looked at no later than it ends": [
        "update absurd.live set due_at = lease_until + interval '1 second' where state = 'r'",
        "update absurd.live set due_at = null where state = 'r'",
    ],
    "a pending run is due at some time, a sleeping one also when it has a wait": [
        "update absurd.live set due_at = null where state = 'p'",
        "delete from absurd.waits",
    ],
    "a wait belongs to a sleeping task that waits for just that": [
        "update absurd.waits set step_name = 'other'",
        "update absurd.waits set event_name = event_name || '!'",
        "update absurd.waits set attempt = 2",
        "update absurd.live set state = 'p', due_at = now() where state = 's'",
    ],
    "nobody waits for an event that has been emitted since": [
        "update absurd.events set payload = '1', emitted_at = now() + interval '1 minute'",
    ],
    "the event of a wait has a row to lock": ["delete from absurd.events"],
    "nobody waits for a task that has ended": [
        "update absurd.waits set awaited_task_id = gen_random_uuid() where awaited_task_id is not null",
        "update absurd.live set awaited = false",
    ],
    "a checkpoint belongs to a task": ["update absurd.checkpoints set task_id = gen_random_uuid()"],
    "an attempt belongs to a task": ["delete from absurd.tasks where task_name = 'completed'"],
    "an idempotency key belongs to the task that carries it": [
        "update absurd.tasks set idempotency_key = 'other' where idempotency_key = 'k'",
        "delete from absurd.tasks where idempotency_key = 'k'",
    ],
    "a keyed task has its key": [
        "delete from absurd.idempotency_keys",
        "update absurd.idempotency_keys set task_id = gen_random_uuid()",
    ],
}

CASES = [(rule, statement) for rule, statements in BREAKS.items() for statement in statements]


def one_of_each(q: Queue) -> None:
    (waiting,) = q.hold(task_name="waiting")
    assert q.awaits([waiting], ["w"], ["e"])[0]["status"] == "s"
    parent, child = q.hold(2, task_name="parent or child")
    assert q.awaits_tasks([parent], ["w"], [(q.id, child.task_id)])[0]["status"] == "s"
    completed = q.start(task_name="completed")
    q.checkpoint(completed, "a", 1)
    q.complete(completed["run_id"])
    again = q.start(task_name="again")
    q.fail(again["run_id"])
    q.claim(timeout=60)
    q.spawn("pending", idempotency_key="k")


@pytest.mark.expects_violations
@pytest.mark.parametrize(("rule", "statement"), CASES)
def test_each_rule_fires_on_a_violation_made_by_hand(q: Queue, rule: str, statement: str) -> None:
    one_of_each(q)
    assert q.violations() == []
    q.conn.execute(statement)  # type: ignore[arg-type, unused-ignore]
    found = q.violations()
    assert rule in {row["rule"] for row in found}
    assert {row["queue_name"] for row in found} == {"q"}


def test_every_rule_of_the_engine_is_broken_here() -> None:
    body = schema.sql().partition("function absurd.check_invariants")[2].partition("$$;")[0]
    rules = set(re.findall(r"select [a-z]\.queue_id, '([^']+)'", body))
    assert len(rules) > 10
    assert rules == set(BREAKS)


@pytest.mark.parametrize("situation", situations.SITUATIONS)
def test_nothing_the_engine_makes_is_a_violation(own_queue: Queue, situation: str) -> None:
    situations.SITUATIONS[situation](own_queue)
    assert own_queue.violations() == []
    assert own_queue.rows("select * from absurd.check_invariants()") == []


@pytest.mark.expects_violations
def test_the_check_keeps_to_the_queue_it_was_asked_for(q: Queue) -> None:
    other = q.named("other")
    spawned = other.spawn()
    q.conn.execute("delete from absurd.live")
    rule = "a task is live or has one ending run, never both or neither"
    row = {"queue_name": "other", "rule": rule, "task_id": spawned["task_id"]}
    assert q.violations() == []
    for found in (other.violations(), q.rows("select * from absurd.check_invariants()")):
        assert [{k: r[k] for k in row} for r in found] == [row]
    with refused("42P01"):
        Queue(q.conn, UNKNOWN_QUEUE).violations()


def test_the_check_waits_for_nobody(q: Queue, connect: Connect) -> None:
    holder = q.on(connect(autocommit=False))
    holder.spawn()
    assert q.violations() == []
    holder.conn.rollback()


def test_a_database_without_queues_has_no_violations(conn) -> None:
    assert conn.execute("select * from absurd.check_invariants()").fetchall() == []


def test_situations_are_what_their_names_say(q: Queue) -> None:
    made = {
        name: make
        for name, make in vars(situations).items()
        if inspect.isfunction(make) and make.__module__ == situations.__name__
    }
    assert {n for n in made if not n.startswith("_")} == set(situations.SITUATIONS)
