"""The one sentence that says why a task is not running."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from absurd.queries.tasks import Run, Task, TaskDetail, Wait
from absurd.queries.why import explain, span

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SOON = NOW + timedelta(seconds=90)
AGO = NOW - timedelta(seconds=5)
TASK = Task(
    queue_name="orders",
    task_id=UUID(int=1 << 16),
    task_name="ship",
    state="pending",
    run_id=UUID(int=(1 << 16) + 1),
    attempt=1,
    max_attempts=5,
    priority=0,
    idempotency_key=None,
    enqueue_at=AGO,
    first_started_at=None,
    started_at=None,
    due_at=AGO,
    lease_until=None,
    cancel_at=None,
    claimed_by=None,
    wake_event=None,
    wake_step=None,
    finished_at=None,
    error=None,
    as_of=NOW,
)
RUN = Run(TASK.run_id, 1, "failed", AGO, AGO, AGO, "w", None, None, None, None)


def detail(runs: tuple[Run, ...] = (RUN,), waits: tuple[Wait, ...] = (), **task: Any) -> TaskDetail:
    return TaskDetail(replace(TASK, **task), {}, None, None, None, None, None, runs, (), waits)


@pytest.mark.parametrize(
    ("known", "sentence"),
    [
        (
            detail(),
            "It is due since 2026-03-01 11:59:55Z (5s) and waits for a worker of queue 'orders' that knows 'ship'.",
        ),
        (detail(due_at=SOON), "It starts at 2026-03-01 12:01:30Z, in 1m 30s."),
        (
            detail(due_at=SOON, started_at=AGO, state="sleeping"),
            "It sleeps and wakes up at 2026-03-01 12:01:30Z, in 1m 30s.",
        ),
        (
            detail((RUN, replace(RUN, attempt=2)), due_at=SOON, attempt=2, state="sleeping"),
            "Attempt 1 failed; attempt 2 starts at 2026-03-01 12:01:30Z, in 1m 30s.",
        ),
        (
            detail(waits=(Wait("s", "paid:7", None, None, SOON, AGO),), state="sleeping", due_at=SOON),
            "It waits for event 'paid:7' since 2026-03-01 11:59:55Z, until 2026-03-01 12:01:30Z at most.",
        ),
        (
            detail(waits=(Wait("s", None, "mails", UUID(int=9), None, AGO),), state="sleeping", due_at=None),
            f"It waits for task {UUID(int=9)} in queue 'mails' since 2026-03-01 11:59:55Z.",
        ),
        (
            detail(state="running", claimed_by="w1", lease_until=SOON, due_at=SOON),
            "It is running: worker w1 holds it until 2026-03-01 12:01:30Z.",
        ),
        (
            detail(state="running", claimed_by="w1", lease_until=AGO),
            "The claim of worker w1 ran out at 2026-03-01 11:59:55Z: the next claim on its queue fails this attempt "
            "and retries or ends the task.",
        ),
        (
            detail(state="running", claimed_by="w1"),
            "Worker w1 runs it, without a lease: nobody else takes it over.",
        ),
        (
            detail(cancel_at=AGO),
            "Its cancellation policy ran out at 2026-03-01 11:59:55Z: the next claim on its queue cancels it.",
        ),
        (detail(state="completed", finished_at=AGO), "It was completed at 2026-03-01 11:59:55Z."),
        (
            detail(state="failed", finished_at=AGO, attempt=5, error="Boom: no stock"),
            "It failed for good at 2026-03-01 11:59:55Z, after attempt 5 of 5: Boom: no stock",
        ),
        (
            detail(state="sleeping", due_at=None),
            "Nothing will wake it: it has no due time and waits for nothing. Please run `absurdctl verify`.",
        ),
    ],
)
def test_the_reason_is_one_sentence(known: TaskDetail, sentence: str) -> None:
    assert explain(known) == sentence


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (0.9, "0s"), (59, "59s"), (60, "1m"), (3605, "1h"), (3660, "1h 1m"), (90000, "1d 1h"), (86400, "1d")],
)
def test_a_span_is_told_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert span(timedelta(seconds=seconds)) == text
