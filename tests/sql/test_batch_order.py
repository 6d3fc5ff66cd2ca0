"""A batch is as good as its rows one after the other: some order of them explains what it leaves behind."""

from __future__ import annotations

from tests.fixtures.clock import Clock
from tests.sql.driver import Queue


def test_a_parent_that_fails_together_with_its_child_gets_no_outcome_from_it(noon: Queue, clock: Clock) -> None:
    """Had the child failed before, the parent would have been awake, and its failure refused."""
    (parent,) = noon.hold(cancellation={"max_duration": 5}, retry_strategy={"kind": "fixed", "base_seconds": 9})
    (child,) = noon.hold(max_attempts=1)
    assert noon.awaits_tasks([parent], ["child"], [(noon.id, child.task_id)])[0]["status"] == "s"
    clock.advance(noon.conn, 1)

    assert noon.letters("fail_runs", [parent, child], ("jsonb", [{"name": "Boom"}] * 2)) == "oo"

    assert noon.states(parent.task_id) == ("cancelled", ["failed"]), "its next start lies beyond its duration"
    assert noon.states(child.task_id) == ("failed", ["failed"])
    assert noon.checkpoints(parent.task_id) == {}
    assert noon.waits() == []
