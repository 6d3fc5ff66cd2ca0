"""The answer to a call is lost after its commit: the worker repeats it, and nothing happens twice."""

from __future__ import annotations

import pytest

from tests.fixtures.proxy import Proxy, proxied
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
