"""The answer to a call is lost after its commit: the worker repeats it, and nothing happens twice."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

import psycopg
import pytest

from absurd.schema import grants
from tests.fixtures.postgres import Connection
from tests.fixtures.proxy import Proxy, proxied
from tests.property.population import picture, populate, violations
from tests.sql.driver import minted
from tests.worker.conftest import Queue, Start

VERBS = {
    "complete_runs": [["step", "one", [["say", "in one"]]], ["returns", 1]],
    "set_checkpoints": [["step", "one", [["say", "in one"]]], ["returns", 1]],
    "schedule_runs": [["step", "one", [["say", "in one"]]], ["sleep", "nap", 0.1], ["returns", 1]],
    "await_events": [["step", "one", [["say", "in one"]]], ["await", "parcel"], ["returns", 1]],
    "await_tasks": [["step", "one", [["say", "in one"]]], ["child", "work", [["returns", 0]], "q"], ["returns", 1]],
    "emit_events": [["step", "one", [["say", "in one"]]], ["emit", "hello", 5], ["returns", 1]],
    "extend_claims": [["step", "one", [["say", "in one"], ["lasts", 0.7]]], ["returns", 1]],
    "claim_tasks": [["step", "one", [["say", "in one"]]], ["returns", 1]],
    "set_idle": [["step", "one", [["say", "in one"]]], ["returns", 1]],
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_lost_reply_is_asked_for_again(q: Queue, start: Start, proxy: Proxy, verb: str) -> None:
    worker = start(url=proxy.url, slots=2, lease=1).ready()
    proxy.cut_after(verb, times=2)
    task = q.spawn(*VERBS[verb])
    if verb == "await_events":
        worker.wait(signal="run.ended", outcome="suspended")
        q.conn.execute("select absurd.emit_event('q', 'parcel', '7')")
    q.wait_ended(worker, task)
    worker.wait_until(lambda: len(proxy.cuts) == 2, f"two lost answers of {verb}")
    assert q.task(task)[:2] == ("completed", 1)
    assert len(worker.said(said="in one")) == 1, "the step ran twice"
    assert q.runs(task) == [(1, "completed")], "an attempt was burnt"
    assert q.conn.execute("select event_name, payload from absurd.events where emitted_at is not null").fetchall() in (
        [],
        [("hello", 5)],
        [("parcel", 7)],
    )
    assert worker.stop() == 0
    assert "refused" not in worker.log


def test_a_child_whose_spawn_lost_its_answer_is_spawned_once(q: Queue, start: Start, proxy: Proxy) -> None:
    """A client says a call again once; two losses in a row are the handler's, whose next attempt finds the child by its key."""
    worker = start(url=proxy.url, slots=2).ready()
    proxy.cut_after("spawn_")
    task = q.spawn(["child", "work", [["returns", 0]], "q"], ["returns", 1])
    q.wait_ended(worker, task)
    assert proxy.cuts
    assert q.runs(task) == [(1, "completed")]
    assert q.conn.execute("select count(*) from absurd.tasks").fetchone() == (2,)


def test_a_lost_reply_to_a_failure_burns_one_attempt(q: Queue, start: Start, proxy: Proxy) -> None:
    worker = start(url=proxy.url).ready()
    proxy.cut_after("fail_runs")
    task = q.spawn(
        ["fails", "once"], ["returns", "again"], max_attempts=2, retry_strategy={"kind": "fixed", "base_seconds": 0}
    )
    q.wait_ended(worker, task)
    assert proxy.cuts
    assert q.runs(task) == [(1, "failed"), (2, "completed")]


def test_runs_whose_claim_got_lost_are_handed_out_again(q: Queue, start: Start, proxy: Proxy) -> None:
    tasks = [q.spawn(["say", "ran"], ["returns", number]) for number in range(5)]
    proxy.cut_after("claim_tasks")
    worker = start(url=proxy.url, slots=5, lease=3600)
    q.wait_ended(worker, *tasks)
    assert proxy.cuts
    assert len(worker.said(said="ran")) == 5
    assert {tuple(q.runs(task)) for task in tasks} == {((1, "completed"),)}
    claims = q.conn.execute("select distinct claim_no from absurd.attempts").fetchall()
    assert claims == [(1,)], "claimed once, handed out twice"


def test_an_idle_poll_is_one_statement_and_every_fifth_second_is_often_enough(
    q: Queue, start: Start, proxy: Proxy, world: str
) -> None:
    """0.2 statements a second for the poll and 0.1 for the look at the queues: less than one transaction a second."""
    for _ in range(20):
        q.spawn(["returns", 1], start_at="2099-01-01T00:00:00Z")
    worker = start(url=proxy.url, slots=4, housekeeping=True, patch={"claimer.IDLE_POLL": 0.3}).ready()
    before, mark = proxy.executed, worker.mark
    worker.wait_many(5, after=mark, signal="worker.idle")
    cost = proxy.executed - before
    print(f"{world}: {cost} statements for 5 idle polls; at one poll in 5 s and a look at the queues in 10 s"
          f" {cost / 5 / 5 + 0.1:.2f}/s")  # fmt: skip
    assert 5 <= cost <= 7


def test_behind_a_pooler_the_worker_polls_and_prepares_nothing(q: Queue, start: Start, database_url: str) -> None:
    with proxied(database_url, pooler=True) as pooler:
        worker = start(url=pooler.url, poll_interval=0.1, patch={"claimer.IDLE_POLL": 1000}).ready()
        worker.wait_many(3, signal="worker.idle")
        task = q.spawn(["step", "one", []], ["returns", 1])
        q.conn.execute("delete from absurd.idle")
        q.wait_ended(worker, task)
        assert worker.stop() == 0


class Verb(NamedTuple):
    """A call by SQL, and what it answers the first time and when it is repeated."""

    call: str
    first: str
    again: str


RUN = "array[%(run)s]::uuid[], '{1}'"
IDS = "array[%(minted)s, %(minted)s]::uuid[]"
#: Every verb of a worker that takes a queue by its id, and the short ones of a client. Said again, each changes nothing more.
REPEATED = {
    "complete_runs": Verb(f"select absurd.complete_runs(%(queue)s, {RUN}, '{{7}}')", "o", "r"),
    "fail_runs": Verb(f"select absurd.fail_runs(%(queue)s, {RUN}, '{{null}}')", "o", "f"),
    "set_checkpoints": Verb(f"select absurd.set_checkpoints(%(queue)s, {RUN}, '{{new}}', '{{7}}', 60)", "o", "o"),
    "schedule_runs": Verb(f"select absurd.schedule_runs(%(queue)s, {RUN}, null, '{{60}}', '{{nap}}')", "o", "r"),
    "await_events": Verb(
        f"select status from absurd.await_events(%(queue)s, {RUN}, '{{new}}', '{{parcel}}')", "s", "r"
    ),
    "await_tasks": Verb(
        f"select status from absurd.await_tasks(%(queue)s, {RUN}, '{{new}}', array[%(queue)s], array[%(pending)s]::uuid[])",
        "s",
        "r",
    ),
    "extend_claims": Verb(f"select absurd.extend_claims(%(queue)s, {RUN}, 120)", "o", "o"),
    "emit_events": Verb(
        f"select absurd.emit_events(%(queue)s, '{{parcel,new}}', '{{1,2}}', 'next', {IDS})", "oo", "oo"
    ),
    "try_emit_events": Verb(
        f"select absurd.try_emit_events(%(queue)s, '{{parcel,new}}', '{{1,2}}', 'latch', {IDS})", "oo", "oo"
    ),
    "emit_one": Verb("select absurd.emit_one('q', 'parcel', '1', %(minted)s)", "o", "o"),
    "spawn_tasks": Verb(
        "select array_agg(s.created) from absurd.spawn_tasks(%(queue)s, '{a}', '{1}', array[%(minted)s]::uuid[], '{k}') s",
        "[True]",
        "[False]",
    ),
    "spawn_minted": Verb("select absurd.spawn_minted('q', %(minted)s, 'a', '1', 3, null)", "True", "False"),
    "cancel_tasks": Verb("select absurd.cancel_tasks(%(queue)s, array[%(pending)s]::uuid[])", "o", "e"),
    "claim_tasks": Verb(
        "select string_agg(task_name, ',') from absurd.claim_tasks(%(queue)s, 'w', 60, 5, null, 42, %(repeat)s)",
        "pending",
        "pending",
    ),
}


def test_every_verb_of_a_worker_is_repeated_below(conn: Connection) -> None:
    question = """
        select proname from pg_proc where pronamespace = 'absurd'::regnamespace and proname = any(%s)
           and provolatile = 'v' and 'p_queue_id' = any(proargnames)
    """
    verbs = {name for (name,) in conn.execute(question, (sorted(grants.FUNCTIONS["worker"]),)).fetchall()}
    assert set(REPEATED) - {"spawn_minted", "emit_one"} == verbs - {
        "unserved_tasks",
        "hold_run",
    }  # one reads, one only locks


@pytest.mark.parametrize("name", REPEATED)
def test_a_verb_whose_answer_was_lost_after_its_commit_changes_nothing_when_it_is_repeated(
    conn: Connection, proxy: Proxy, name: str
) -> None:
    there, verb = populate(conn), REPEATED[name]
    words = {
        "queue": there.queue_id, "run": there.runs["running"], "pending": there.tasks["pending"], "repeat": False,
        "minted": minted(),
    }  # fmt: skip
    # one clock for both calls, as if no time passed: what differs afterwards was written by the second
    url = psycopg.conninfo.make_conninfo(proxy.url, options=f"-c absurd.fake_now={datetime.now(UTC).isoformat()}")
    before = picture(conn, there)
    proxy.cut_after(name)
    with pytest.raises(psycopg.OperationalError), psycopg.connect(url, autocommit=True) as lost:
        lost.execute(verb.call, words)
    assert len(proxy.cuts) == 1
    done = picture(conn, there)
    assert done != before, "the call was not committed"
    with psycopg.connect(url, autocommit=True) as again:
        row = again.execute(verb.call, {**words, "repeat": True}).fetchone()
        assert row is not None
        assert str(row[0]) == verb.again
    assert picture(conn, there) == done
    assert violations(conn) == []


@pytest.mark.parametrize("name", REPEATED)
def test_the_first_answer_of_a_verb(conn: Connection, name: str) -> None:
    there, verb = populate(conn), REPEATED[name]
    words = {
        "queue": there.queue_id, "run": there.runs["running"], "pending": there.tasks["pending"], "repeat": False,
        "minted": minted(),
    }  # fmt: skip
    row = conn.execute(verb.call, words).fetchone()
    assert row is not None
    assert str(row[0]) == verb.first
