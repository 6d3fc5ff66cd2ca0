"""What a verb answers for a run it cannot write: every single-row verb, every way a run can stand.

complete and fail ask the run; checkpoint, extend and await ask the task first; schedule never answers AB00x.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from psycopg.types.json import Jsonb

from tests.sql.driver import NOON, Queue, Row, refused
from tests.sql.situations import SITUATIONS, Run

VERBS: dict[str, Callable[[Queue, Run], object]] = {
    "complete": lambda q, run: q.call("complete_run", run.run_id, Jsonb(1)),
    "fail": lambda q, run: q.call("fail_run", run.run_id, Jsonb({"name": "Late"})),
    "schedule": lambda q, run: q.call("schedule_run", run.run_id, NOON),
    "extend": lambda q, run: q.call("extend_claim", run.run_id, 60),
    "checkpoint": lambda q, run: q.call(
        "set_task_checkpoint_state", run.task_id, "late step", Jsonb(1), run.run_id, 60
    ),
    "await": lambda q, run: q.call("await_event", run.task_id, run.run_id, "late wait", "late event"),
}

OK = None
NOT_RUNNING = ("P0001", 'Run "{run}" is not currently running in queue "{queue}"')
NOT_FOUND = ("P0001", 'Run "{run}" not found in queue "{queue}"')
CANNOT_FAIL = ("P0001", 'Run "{run}" cannot be failed in queue "{queue}"')
NO_OWNER = ("P0001", 'Run "{run}" not found for checkpoint')
NO_AWAITER = ("P0001", 'Run "{run}" not found while awaiting event')
MUST_RUN = ("P0001", 'Run "{run}" must be running to await events')
CANCELLED = ("AB001", "cancelled")
FAILED = ("AB002", "failed")

VERDICTS = {
    #                               complete     fail         schedule     extend       checkpoint   await
    "running":                     (OK,          OK,          OK,          OK,          OK,          OK),
    "pending":                     (NOT_RUNNING, CANNOT_FAIL, NOT_RUNNING, NOT_RUNNING, NOT_RUNNING, MUST_RUN),
    "asleep":                      (NOT_RUNNING, OK,          NOT_RUNNING, NOT_RUNNING, NOT_RUNNING, MUST_RUN),
    "waiting":                     (NOT_RUNNING, OK,          NOT_RUNNING, NOT_RUNNING, NOT_RUNNING, MUST_RUN),
    "woken":                       (NOT_RUNNING, CANNOT_FAIL, NOT_RUNNING, NOT_RUNNING, NOT_RUNNING, MUST_RUN),
    "completed":                   (NOT_RUNNING, CANNOT_FAIL, NOT_RUNNING, NOT_RUNNING, NOT_RUNNING, MUST_RUN),
    "failed":                      (FAILED,      FAILED,      NOT_RUNNING, FAILED,      FAILED,      MUST_RUN),
    "retried":                     (FAILED,      FAILED,      NOT_RUNNING, FAILED,      FAILED,      MUST_RUN),
    "retried_and_running":         (FAILED,      FAILED,      NOT_RUNNING, FAILED,      FAILED,      MUST_RUN),
    "retried_by_hand":             (FAILED,      FAILED,      NOT_RUNNING, FAILED,      FAILED,      MUST_RUN),
    "retried_then_completed":      (FAILED,      FAILED,      NOT_RUNNING, FAILED,      FAILED,      MUST_RUN),
    "retried_then_cancelled":      (FAILED,      FAILED,      NOT_RUNNING, CANCELLED,   CANCELLED,   CANCELLED),
    "failed_past_its_duration":    (FAILED,      FAILED,      NOT_RUNNING, CANCELLED,   CANCELLED,   CANCELLED),
    "cancelled":                   (CANCELLED,   CANCELLED,   NOT_RUNNING, CANCELLED,   CANCELLED,   CANCELLED),
    "cancelled_before_its_start":  (CANCELLED,   CANCELLED,   NOT_RUNNING, CANCELLED,   CANCELLED,   CANCELLED),
    "unknown":                     (NOT_FOUND,   CANNOT_FAIL, NOT_RUNNING, NOT_FOUND,   NO_OWNER,    NO_AWAITER),
    "attempt_zero":                (NOT_FOUND,   CANNOT_FAIL, NOT_RUNNING, NOT_FOUND,   NO_OWNER,    NO_AWAITER),
    "attempt_to_come":             (NOT_FOUND,   CANNOT_FAIL, NOT_RUNNING, NOT_FOUND,   NO_OWNER,    NO_AWAITER),
    "cleaned_up":                  (NOT_FOUND,   CANNOT_FAIL, NOT_RUNNING, NOT_FOUND,   NO_OWNER,    NO_AWAITER),
    "of_another_queue":            (NOT_FOUND,   CANNOT_FAIL, NOT_RUNNING, NOT_FOUND,   NO_OWNER,    NO_AWAITER),
}  # fmt: skip

CASES = [
    pytest.param(situation, verb, verdict, id=f"{verb} a run that is {situation}")
    for situation, verdicts in VERDICTS.items()
    for verb, verdict in zip(VERBS, verdicts, strict=True)
]


def everything(q: Queue) -> list[list[Row]]:
    return [q.view(prefix, "true order by 1, 2") for prefix in "trcew"]


def test_the_table_knows_every_situation() -> None:
    assert list(VERDICTS) == list(SITUATIONS)


@pytest.mark.parametrize(("situation", "verb", "verdict"), CASES)
def test_a_verb_answers_for_every_way_a_run_can_stand(
    own_queue: Queue, situation: str, verb: str, verdict: tuple[str, str] | None
) -> None:
    q = own_queue
    run = SITUATIONS[situation](q)
    before = everything(q)
    if verdict is OK:
        VERBS[verb](q, run)
        assert everything(q) != before
        return
    sqlstate, text = verdict
    with refused(sqlstate, text.format(run=run.run_id, queue=q.name)):
        VERBS[verb](q, run)
    assert everything(q) == before
