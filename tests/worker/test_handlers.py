"""Nothing a handler does takes the worker down: whatever it raises or returns becomes a recorded end."""

from __future__ import annotations

import json

import pytest

from tests.worker.conftest import Queue, Start

FAILURES = {
    "nul": ("ValueError", "a\ufffdb"),
    "exit": ("SystemExit", "3"),
    "base": ("Odd", "odd"),
    "mute": ("", ""),
    "recursion": ("RecursionError", "recursion"),
    "interrupt": ("KeyboardInterrupt", ""),
    "cancelled": ("CancelledError", ""),
    "stop": ("GeneratorExit", ""),
}


def test_w02_whatever_a_handler_raises_is_recorded_and_the_worker_lives(q: Queue, start: Start) -> None:
    tasks = {how: q.spawn(["fails", how]) for how in FAILURES}
    worker = start()
    q.wait_ended(worker, *tasks.values())
    for how, (name, message) in FAILURES.items():
        state, _, failure = q.task(tasks[how])
        assert (how, state) == (how, "failed")
        assert name in failure["name"]
        assert message in failure["message"]
        assert q.attempts(tasks[how]) == 1
    after = q.spawn(["returns", "alive"])
    q.wait_ended(worker, after)
    assert q.task(after)[:2] == ("completed", "alive")
    assert worker.stop() == 0


@pytest.mark.parametrize("what", ["socket", "huge", "nul"])
def test_a_result_that_cannot_be_stored_is_a_failure_that_says_why(q: Queue, start: Start, what: str) -> None:
    task = q.spawn(["returns", what])
    worker = start()
    q.wait_ended(worker, task)
    state, _, failure = q.task(task)
    assert state == "failed"
    assert "result" in failure["message"]
    after = q.spawn(["returns", 1])
    q.wait_ended(worker, after)
    assert worker.stop() == 0


def test_params_too_deep_for_python_fail_their_task_and_no_worker(q: Queue, start: Start) -> None:
    deep = "[" * 3000 + "]" * 3000
    row = q.conn.execute(
        "select task_id from absurd.spawn_task('q', 'work', %s::jsonb, %s::jsonb)",
        (f'{{"do": {deep}}}', json.dumps({"max_attempts": 1})),
    ).fetchone()
    assert row is not None
    beside = q.spawn(["returns", 1])
    worker = start(slots=2)
    q.wait_ended(worker, row[0], beside)
    assert q.state(beside) == "completed"
    state, _, failure = q.task(row[0])
    assert (state, failure["name"]) == ("failed", "NotSerializable")
    assert worker.stop() == 0


def test_a_handler_that_swallows_its_suspension_ends_all_the_same(q: Queue, start: Start) -> None:
    task = q.spawn(["swallow", [["sleep", "nap", 3600]]], ["say", "went on"])
    worker = start()
    worker.wait(signal="run.ended")
    assert worker.said(said="swallowed SuspendTask")
    assert q.state(task) == "sleeping"
    assert worker.stop() == 0
