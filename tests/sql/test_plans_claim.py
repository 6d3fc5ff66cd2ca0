"""Claim stays flat: what a real call reads does not depend on what is stored, nor on when its plan was made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.fixtures.postgres import Connection, Databases
from tests.sql.statistics import Reads, fill, reads

KINDS = ("due", "sleeping", "finished", "expired", "retried")
LEVELS = (0, 1_000, 100_000)
CLAIMS = {
    "claim_task": "select * from absurd.claim_task(%s, 'w', 30, %s)",
    "claim_tasks": "select * from absurd.claim_tasks(absurd.queue_id_of(%s), 'w', 30, %s)",
}


@dataclass
class Stored:
    """A database full of tasks, and two connections: one planned on empty tables, one on full ones."""

    old: Connection
    new: Connection

    def by(self, plans: str) -> Connection:
        return self.old if plans == "plans of empty tables" else self.new


@pytest.fixture(scope="module")
def stored(databases: Databases, schema_template: str) -> Iterator[Stored]:
    with databases.fresh(schema_template) as name:
        url = databases.url(name)
        with psycopg.connect(url, autocommit=True) as old, psycopg.connect(url, autocommit=True) as new:
            for table in ("tasks", "live", "attempts", "checkpoints", "events", "waits"):
                old.execute(f"alter table absurd.{table} set (autovacuum_enabled = off)")
            old.execute("select absurd.create_queue('warm')")
            for query in CLAIMS.values():  # with work and without: every statement has its plan now
                for _ in range(3):
                    old.execute("select absurd.spawn_task('warm', 'work', '{}')")
                    old.execute(query, ("warm", 1))
                    old.execute(query, ("warm", 1))
                old.execute("update absurd.live set due_at = now(), lease_until = now()")
                old.execute(query, ("warm", 1))
            for kind in KINDS:
                for level in LEVELS:
                    old.execute("select absurd.create_queue(%s)", (f"{kind}_{level}",))
                    fill(old, f"{kind}_{level}", level, kind)
            yield Stored(old, new)


def _claim(conn: Connection, verb: str, queue: str, qty: int) -> Reads:
    found = reads(conn, CLAIMS[verb], (queue, qty))
    assert found.sequential == []
    return found


@pytest.mark.parametrize("plans", ["plans of empty tables", "plans of full tables"])
@pytest.mark.parametrize("verb", CLAIMS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["due", "sleeping", "finished"])
def test_a_claim_reads_no_more_than_it_hands_out(stored: Stored, kind: str, level: int, verb: str, plans: str) -> None:
    for qty in (1, 10, 100):
        found = _claim(stored.by(plans), verb, f"{kind}_{level}", qty)
        if kind == "due" and level:
            assert len([row for row in found.answer if row[0] is not None]) == qty
        assert found.total <= 4 * qty + 10, found.rows


@pytest.mark.parametrize("plans", ["plans of empty tables", "plans of full tables"])
@pytest.mark.parametrize("verb", CLAIMS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["expired", "retried"])
@pytest.mark.parametrize("qty", [1, 2, 5, 10, 100])
def test_a_claim_beside_expired_leases_fails_some_and_reads_no_others(
    stored: Stored, qty: int, kind: str, level: int, verb: str, plans: str
) -> None:
    """Their retry starts in an hour (expired) or at once (retried), and then is handed out by the same call."""
    found = _claim(stored.by(plans), verb, f"{kind}_{level}", qty)
    if kind == "retried" and level:
        assert len(found.answer) == min(qty, (qty + 6) // 3)
    assert found.total <= 4 * qty + 10, found.rows


@pytest.mark.parametrize("verb", CLAIMS)
@pytest.mark.parametrize("kind", ["expired", "retried"])
def test_a_claim_of_ready_work_beside_expired_leases_reads_no_more(stored: Stored, kind: str, verb: str) -> None:
    queue = f"{kind}_and_due_{verb}"
    stored.old.execute("select absurd.create_queue(%s)", (queue,))
    for more in (kind, "due", "sleeping", "finished"):
        fill(stored.old, queue, 1_000, more)
    for conn in (stored.old, stored.new):
        for qty in (1, 2, 5, 10, 100):
            found = _claim(conn, verb, queue, qty)
            assert len(found.answer) == qty
            assert found.total <= 4 * qty + 10, found.rows


def test_sleeping_tasks_of_a_higher_priority_cost_a_claim_nothing(stored: Stored) -> None:
    stored.old.execute("select absurd.create_queue('classes')")
    fill(stored.old, "classes", 10_000, "sleeping", priority=100)
    fill(stored.old, "classes", 10_000, "sleeping", priority=50)
    fill(stored.old, "classes", 100, "due")

    for conn in (stored.old, stored.new):
        for verb in CLAIMS:
            found = _claim(conn, verb, "classes", 10)
            assert len(found.answer) == 10
            assert found.total <= 4 * 10 + 10, found.rows


def test_a_task_past_its_deadline_is_cancelled_though_a_thousand_are_ready_before_it(stored: Stored) -> None:
    stored.old.execute("select absurd.create_queue('late')")
    fill(stored.old, "late", 1_000, "due")
    options = Jsonb({"cancellation": {"max_delay": 0}})
    spawn = "select task_id from absurd.spawn_task('late', 'work', '{}', %s)"
    spawned = stored.old.execute(spawn, (options,)).fetchone()
    assert spawned is not None

    found = _claim(stored.old, "claim_task", "late", 1)

    assert found.total <= 25, found.rows
    state = stored.old.execute("select state from absurd.get_task_result('late', %s)", spawned).fetchone()
    assert state == ("cancelled",)


def test_a_storm_of_expired_leases_with_a_retry_delay_does_not_slow_the_claim_behind_it(stored: Stored) -> None:
    stored.old.execute("select absurd.create_queue('storm')")
    fill(stored.old, "storm", 10_000, "expired")
    fill(stored.old, "storm", 10, "due")

    for conn in (stored.old, stored.new):
        for verb in CLAIMS:
            found = _claim(conn, verb, "storm", 1)
            assert found.answer[0][0] is not None
            assert found.total < 50, found.rows


def test_leases_that_were_renewed_are_moved_forward_a_few_at_a_time(stored: Stored) -> None:
    """A heartbeat leaves due_at behind; the first claim after it corrects that, bounded."""
    stored.old.execute("select absurd.create_queue('renewed')")
    fill(stored.old, "renewed", 10_000, "expired")
    fill(stored.old, "renewed", 10, "due")
    renew = (
        "update absurd.live set lease_until = now() + interval '1 day' where queue_id = absurd.queue_id_of('renewed')"
    )
    stored.old.execute(f"{renew} and state = 'r'")

    found = _claim(stored.old, "claim_task", "renewed", 1)

    assert found.answer[0][0] is not None
    assert found.total <= 3 * 100 + 20, found.rows


@pytest.mark.timeout(120)
def test_all_that_was_claimed_here_is_well_formed(stored: Stored) -> None:
    queues = [name for (name,) in stored.old.execute("select * from absurd.list_queues()") if "100000" not in name]
    assert queues
    for queue in queues:
        assert stored.old.execute("select * from absurd.check_invariants(%s)", (queue,)).fetchall() == []
