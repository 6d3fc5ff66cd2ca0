"""Waiting for a task to end: same queue, other queue, every way a child can go (await_tasks)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.fixtures.clock import Clock
from tests.fixtures.postgres import Connect
from tests.sql.driver import INFINITY, Claim, Queue, after, minted, run_of

DONE = {"state": "completed", "result": {"n": 1}}
FAILED = {"state": "failed", "failure": {"name": "Boom"}}
CANCELLED = {"state": "cancelled"}


def family(
    q: Queue, children: Queue | None = None, timeout: float | None = None, **options: Any
) -> tuple[Claim, Claim]:
    """A parent that sleeps for a running child, in the same queue or in another."""
    children = children or q
    (parent,) = q.hold(task_name="parent")
    (child,) = children.hold(task_name="child", **options)
    assert asks(q, parent, children, child, timeout) == ("s", None)
    return parent, child


def asks(q: Queue, parent: Claim, children: Queue, child: Any, timeout: float | None = None) -> tuple[str, Any]:
    (row,) = q.awaits_tasks([parent], ["kid"], [(children.id, child.task_id)], [timeout])
    return row["status"], row["payload"]


def outcome(q: Queue, parent: Claim) -> Any:
    """What the parent finds in its checkpoint once it is claimed again."""
    (woken,) = q.claims(names=["parent"])
    assert woken["task_id"] == parent.task_id
    assert woken["claim_no"] == 2
    return woken["checkpoints"]["kid"]


@pytest.fixture(params=["same queue", "other queue"])
def nursery(request: pytest.FixtureRequest, q: Queue) -> Queue:
    """Where the children live."""
    return q if request.param == "same queue" else q.named("other")


def test_a_parent_sleeps_with_a_wait_until_its_child_ends(noon: Queue, clock: Clock) -> None:
    parent, child = family(noon)
    row = noon.run(parent.run_id)
    assert (row["state"], row["available_at"], row["claimed_by"]) == ("sleeping", INFINITY, None)
    (wait,) = noon.waits()
    assert (wait["task_id"], wait["step_name"], wait["timeout_at"]) == (parent.task_id, "kid", None)
    clock.set(noon.conn, after(30))
    noon.complete(child.run_id, {"n": 1})

    row = noon.run(parent.run_id)
    assert (row["state"], row["available_at"]) == ("pending", after(30))
    assert noon.waits() == []
    assert outcome(noon, parent) == DONE


@pytest.mark.parametrize(
    ("end", "found"),
    [
        (lambda q, child: q.complete(child.run_id, {"n": 1}), DONE),
        (lambda q, child: q.fail(child.run_id), FAILED),
        (lambda q, child: q.cancel(child.task_id), CANCELLED),
        (lambda q, child: q.letters("complete_runs", [child], ("jsonb", [{"n": 1}])), DONE),
        (lambda q, child: q.letters("fail_runs", [child], ("jsonb", [{"name": "Boom"}])), FAILED),
        (lambda q, child: q.cancels([child.task_id]), CANCELLED),
        (lambda q, child: q.call("purge_queue"), CANCELLED),
        (lambda q, child: q.call("drop_queue"), CANCELLED),
    ],
    ids=["complete", "fail", "cancel", "complete_runs", "fail_runs", "cancel_tasks", "purge_queue", "drop_queue"],
)
def test_a_parent_wakes_however_its_child_ends(q: Queue, end: Any, found: Any) -> None:
    other = q.named("other")
    parent, child = family(q, other, max_attempts=1)
    end(other, child)
    assert outcome(q, parent) == found


def test_a_parent_wakes_however_its_child_in_the_same_queue_ends(q: Queue) -> None:
    for end, found in (("complete", DONE), ("fail", FAILED), ("cancel", CANCELLED)):
        parent, child = family(q, max_attempts=1)
        if end == "complete":
            q.complete(child.run_id, {"n": 1})
        elif end == "fail":
            q.fail(child.run_id)
        else:
            q.cancel(child.task_id)
        assert outcome(q, parent) == found
        q.complete(parent.run_id)


def test_a_parent_wakes_when_its_childs_lease_or_deadline_ends_it(noon: Queue, nursery: Queue, clock: Clock) -> None:
    parent, _ = family(noon, nursery, max_attempts=1)
    other, _ = family(noon, nursery, cancellation={"max_duration": 100})
    clock.set(noon.conn, after(60))
    for _ in range(2):
        nursery.claims(5, lease=3600, names=["child"])
    assert noon.states(parent.task_id)[0] == "pending"
    (woken,) = noon.claims(names=["parent"], lease=3600)
    assert woken["checkpoints"]["kid"]["state"] == "failed"
    assert woken["checkpoints"]["kid"]["failure"]["name"] == "$ClaimTimeout"
    clock.set(noon.conn, after(100))
    nursery.claims(5, names=["nobody"])
    (woken,) = noon.claims(names=["parent"])
    assert (woken["task_id"], woken["checkpoints"]["kid"]) == (other.task_id, CANCELLED)


def test_a_parent_sleeps_on_while_its_child_is_retried(q: Queue, nursery: Queue) -> None:
    parent, child = family(q, nursery, max_attempts=2)
    nursery.fail(child.run_id)
    assert q.states(parent.task_id)[0] == "sleeping"
    nursery.claims(names=["child"])
    nursery.complete(run_of(child.task_id, 2), {"n": 1})
    assert outcome(q, parent) == DONE


@pytest.mark.parametrize(("end", "found"), [("complete", DONE), ("fail", FAILED), ("cancel", CANCELLED)])
def test_a_child_that_ended_before_is_answered_at_once(q: Queue, nursery: Queue, end: str, found: Any) -> None:
    (parent,), (child,) = q.hold(task_name="parent"), nursery.hold(max_attempts=1)
    if end == "complete":
        nursery.complete(child.run_id, {"n": 1})
    elif end == "fail":
        nursery.fail(child.run_id)
    else:
        nursery.cancel(child.task_id)
    assert asks(q, parent, nursery, child) == ("a", found)
    assert q.states(parent.task_id)[0] == "running"
    assert q.waits() == []
    assert asks(q, parent, nursery, child) == ("a", found)


def test_a_child_nobody_knows_is_unknown(q: Queue, nursery: Queue) -> None:
    (parent,) = q.hold()
    (row,) = q.awaits_tasks([parent], ["kid"], [(nursery.id, minted())])
    assert (row["status"], row["payload"]) == ("u", None)
    assert q.states(parent.task_id)[0] == "running"
    assert q.waits() == []


def test_a_child_that_was_cleaned_up_is_unknown_but_its_answer_stays(noon: Queue, nursery: Queue, clock: Clock) -> None:
    (parent,), (child,) = noon.hold(), nursery.hold()
    other = noon.hold()[0]
    nursery.complete(child.run_id, {"n": 1})
    assert asks(noon, parent, nursery, child) == ("a", DONE)
    clock.set(noon.conn, after(10))
    nursery.call("cleanup_tasks", 5)
    assert asks(noon, parent, nursery, child) == ("a", DONE)
    assert asks(noon, other, nursery, child) == ("u", None)


def test_a_wait_for_a_child_that_timed_out_lasts(noon: Queue, nursery: Queue, clock: Clock) -> None:
    parent, child = family(noon, nursery, timeout=5)
    assert noon.run(parent.run_id)["available_at"] == after(5)
    clock.set(noon.conn, after(5))
    (woken,) = noon.claims(names=["parent"])
    assert (woken["timeouts"], woken["checkpoints"]) == (["kid"], None)
    nursery.complete(child.run_id, {"n": 1})
    assert noon.waits() == []
    again = parent._replace(claim_no=2)
    assert asks(noon, again, nursery, child) == ("t", None)
    noon.letters("fail_runs", [again], ("jsonb", [{}]))
    (third,) = noon.claims(names=["parent"])
    assert asks(noon, Claim(parent.task_id, run_of(parent.task_id, 2), third["claim_no"]), nursery, child) == (
        "t",
        None,
    )


def test_a_child_that_ends_at_the_instant_of_the_timeout_is_too_late(noon: Queue, nursery: Queue, clock: Clock) -> None:
    parent, child = family(noon, nursery, timeout=5)
    clock.set(noon.conn, after(5))
    nursery.complete(child.run_id, {"n": 1})
    assert noon.waits() == []
    (woken,) = noon.claims(names=["parent"])
    assert (woken["task_id"], woken["timeouts"]) == (parent.task_id, ["kid"])


def test_many_parents_of_one_child_all_wake(q: Queue, nursery: Queue) -> None:
    (child,) = nursery.hold(task_name="child")
    parents = q.hold(5, task_name="parent")
    rows = q.awaits_tasks(parents, ["kid"] * 5, [(nursery.id, child.task_id)] * 5)
    assert [r["status"] for r in rows] == ["s"] * 5
    nursery.complete(child.run_id, {"n": 1})
    assert [r["checkpoints"] for r in q.claims(names=["parent"])] == [{"kid": DONE}] * 5


def test_a_chain_of_waits_wakes_link_by_link(q: Queue) -> None:
    chain = q.hold(3, task_name="link")
    for parent, child in itertools.pairwise(chain):
        assert asks(q, parent, q, child) == ("s", None)
    q.complete(chain[2].run_id, 3)
    assert [q.states(link.task_id)[0] for link in chain] == ["sleeping", "pending", "completed"]
    (middle,) = q.claims()
    q.complete(run_of(middle["task_id"], 1), 2)
    (first,) = q.claims()
    assert first["checkpoints"] == {"kid": {"state": "completed", "result": 2}}


def test_a_cancelled_parent_leaves_its_child_alone(q: Queue, nursery: Queue) -> None:
    parent, child = family(q, nursery)
    q.cancel(parent.task_id)
    assert q.waits() == []
    nursery.complete(child.run_id)
    assert nursery.states(child.task_id)[0] == "completed"


def test_repeating_the_wait_under_the_same_claim_is_a_replay(q: Queue, nursery: Queue) -> None:
    parent, child = family(q, nursery)
    assert asks(q, parent, nursery, child) == ("r", None)
    assert asks(q, parent._replace(claim_no=7), nursery, child) == ("l", None)
    assert len(q.waits()) == 1


def test_a_child_somebody_holds_is_busy(q: Queue, nursery: Queue, connect: Connect) -> None:
    (parent,), (child,) = q.hold(), nursery.hold()
    holder = connect(autocommit=False)
    holder.execute("select 1 from absurd.live where task_id = %s for update", (child.task_id,))
    assert asks(q, parent, nursery, child) == ("b", None)
    assert q.states(parent.task_id)[0] == "running"
    holder.rollback()
    assert asks(q, parent, nursery, child) == ("s", None)


def test_children_of_a_purged_queue_wake_their_parents_once(q: Queue) -> None:
    other = q.named("other")
    parents = [family(q, other)[0] for _ in range(3)]
    assert other.call("purge_queue") == [{"purge_queue": 3}]
    assert other.call("purge_queue") == [{"purge_queue": 0}]
    assert [r["checkpoints"]["kid"] for r in q.claims(names=["parent"])] == [CANCELLED] * len(parents)
