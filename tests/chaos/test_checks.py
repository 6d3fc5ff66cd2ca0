"""The checks see what they are for: damage done on purpose to a journey that went well."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import checks
from tests.chaos.fleet import Departure, Hit
from tests.chaos.producer import Entry
from tests.chaos.server import TABLES
from tests.fixtures.postgres import Connection

QUEUE, EVENT, LEASE = "chaos", "go:0", 3.0


class Journey:
    """One task that went its way, in the database and in the files."""

    def __init__(self, conn: Connection, folder: Path) -> None:
        self.conn, self.folder = conn, folder
        conn.execute(TABLES)
        conn.execute("select absurd.create_queue(%s)", [QUEUE])
        self.task_id = self.spawn(0)
        self.ledger = [Entry(0, QUEUE, self.task_id, EVENT, 70)]
        run = self.claim()
        for step in checks.PLAIN:
            self.keep(run, step, f"token of {step}")
        self.keep(run, "charge", "token of charge")
        conn.execute("insert into chaos.effects values (%s, 'reserve', 1, 'token of reserve', 'w')", [self.task_id])
        conn.execute("insert into chaos.moves values (%s, 1, 'token of charge', 'w')", [self.task_id])
        tokens = [f"token of {step}" for step in checks.PLAIN]
        result = {"n": 0, "event": 70, "tokens": tokens, "charge": "token of charge", "attempt": 1, "worker": "w"}
        conn.execute("select absurd.complete_run(%s, %s, %s)", [QUEUE, run, json.dumps(result)])
        self.write("journal", "started", "w", self.task_id, 1)
        for step in checks.PLAIN:
            self.effect(step)
        self.write("journal", "completed", "w", self.task_id, 1)

    def spawn(self, n: int) -> uuid.UUID:
        params = json.dumps({"n": n})
        row = self.conn.execute("select task_id from absurd.spawn_task(%s, 'journey', %s)", [QUEUE, params]).fetchone()
        return row[0]  # type: ignore[index, no-any-return]

    def claim(self) -> uuid.UUID:
        row = self.conn.execute("select run_id from absurd.claim_task(%s, 'w', 60)", [QUEUE]).fetchone()
        return row[0]  # type: ignore[index, no-any-return]

    def keep(self, run: uuid.UUID, step: str, value: str) -> None:
        values = [QUEUE, self.task_id, step, json.dumps(value), run]
        self.conn.execute("select absurd.set_task_checkpoint_state(%s, %s, %s, %s, %s)", values)

    def write(self, name: str, *fields: Any) -> None:
        with open(self.folder / name, "a") as file:
            file.write(json.dumps(fields, default=str) + "\n")

    def effect(self, step: str, token: str | None = None) -> None:
        self.write("effects", self.task_id, step, 1, token or f"token of {step}", "w")

    def problems(self) -> set[str]:
        """What the checks find."""
        records = checks.Records(self.folder)
        records.read()
        found = checks.ask(self.conn, self.ledger) + checks.count_effects(self.conn, self.ledger, records)
        assert all(problem.number and problem.cases for problem in found)
        return {problem.what for problem in found}


@pytest.fixture
def journey(conn: Connection, tmp_path: Path) -> Journey:
    return Journey(conn, tmp_path)


def test_a_journey_that_went_well_has_no_problem(journey: Journey) -> None:
    assert journey.problems() == set()


DAMAGE = {
    "lost: spawned and acknowledged, and not there": "delete from absurd.tasks",
    "lost: a task that did not complete exactly once": "update absurd.attempts set task_state = 'f', state = 'f'",
    "stuck: a wait without a sleeping task": """
        insert into absurd.waits (queue_id, task_id, step_name, attempt, event_name) select queue_id, task_id, 's', 1, 'e'
          from absurd.tasks""",
    "lost: an event that did not reach its waiter": """
        update absurd.attempts set result = jsonb_set(result, '{event}', '-1')""",
    "wrong result: another task's": "update absurd.attempts set result = jsonb_set(result, '{n}', '1')",
    "wrong result: not what the steps kept": "update absurd.checkpoints set state = '\"other\"' where name = 'pack'",
    "a run that had lost its claim ended the task": "update absurd.attempts set claimed_by = 'another'",
    "a run that had ended kept a step": "update absurd.checkpoints set updated_at = now() + interval '1 minute'",
    "a transactional effect that is not there exactly once": "insert into chaos.moves select * from chaos.moves",
    "a transactional effect that is not the one its step kept": "update chaos.moves set token = 'other'",
    "an effect in the database that its step kept is missing": "delete from chaos.effects",
    "an attempt missing, or more of them than anybody should need": "update absurd.attempts set attempt = 2",
    "the invariants": "delete from absurd.attempts",
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_in_the_database_is_seen(journey: Journey, what: str) -> None:
    journey.conn.execute(DAMAGE[what])
    assert what in journey.problems()


def test_a_transactional_effect_that_is_missing_is_seen(journey: Journey) -> None:
    journey.conn.execute("delete from chaos.moves")
    assert "a transactional effect that is not there exactly once" in journey.problems()


def test_a_task_nobody_was_told_of_is_seen(journey: Journey) -> None:
    journey.spawn(0)
    assert journey.problems() >= {
        "doubled: a task nobody was told of",
        "doubled: one journey is two tasks",
        "stuck: a task that has not ended",
    }


def test_a_table_without_bound_is_seen(journey: Journey, monkeypatch: pytest.MonkeyPatch) -> None:
    what = "a table that has grown without bound"
    smaller = checks.QUESTIONS[what].replace(str(checks.MOST_BYTES), "1")
    monkeypatch.setitem(checks.QUESTIONS, what, smaller)
    assert what in journey.problems()


def _another_token(journey: Journey) -> None:
    effects = journey.folder / "effects"
    effects.write_text(effects.read_text().replace("token of ship", "another"))


MISUSE: dict[str, Callable[[Journey], None]] = {
    "a plain effect more often than executions were broken off (and once)": lambda one: one.effect("pack", "again"),
    "more executions than claims": lambda one: one.write("journal", "started", "w", one.task_id, 1),
    "a step that kept a value no effect wrote down": _another_token,
}


@pytest.mark.parametrize("what", MISUSE)
def test_damage_in_the_files_is_seen(journey: Journey, what: str) -> None:
    MISUSE[what](journey)
    assert what in journey.problems()


def test_an_effect_that_never_happened_is_seen(journey: Journey) -> None:
    lines = (journey.folder / "effects").read_text().splitlines(keepends=True)
    (journey.folder / "effects").write_text("".join(line for line in lines if '"ship"' not in line))
    assert "a plain effect that never happened" in journey.problems()


def test_an_effect_may_come_again_after_an_execution_that_was_broken_off(journey: Journey) -> None:
    journey.effect("pack", "again")
    journey.write("journal", "started", "w", journey.task_id, 1)
    journey.conn.execute("update absurd.attempts set claim_no = 2")
    assert journey.problems() == set()


def test_a_second_beginning_under_one_claim_does_not_excuse_a_second_effect(journey: Journey) -> None:
    journey.effect("pack", "again")
    journey.write("journal", "started", "w", journey.task_id, 1)
    assert "a plain effect more often than executions were broken off (and once)" in journey.problems()


def test_a_line_half_written_is_read_later(journey: Journey) -> None:
    records = checks.Records(journey.folder)
    with open(journey.folder / "journal", "a") as file:
        file.write('["started", "w", ')
    records.read()
    assert records.begun[journey.task_id] == 1
    with open(journey.folder / "journal", "a") as file:
        file.write(f'"{journey.task_id}", 2]\n')
    records.read()
    assert records.begun[journey.task_id] == 2
    assert records.under_way(["w"]) == 1


@pytest.fixture
def expired(journey: Journey) -> float:
    """A lease of worker `w` ran out; when, as seconds of the epoch."""
    journey.conn.execute(
        """update absurd.attempts set claimed_by = 'w', lease_until = now(), failure = '{"name": "$ClaimTimeout"}'"""
    )
    row = journey.conn.execute("select extract(epoch from lease_until)::float from absurd.attempts").fetchone()
    return row[0]  # type: ignore[index, no-any-return]


@pytest.mark.parametrize(
    ("since", "until", "explains"), [(-2, -2, True), (-30, -1, True), (-30, -10, False), (1, 2, False)]
)
def test_a_lease_runs_out_because_of_what_hit_its_worker(
    journey: Journey, expired: float, since: float, until: float, explains: bool
) -> None:
    hits = {"w": [Hit(expired + since, expired + until, "stop")]}
    found = checks.expiries(journey.conn, hits, LEASE, 1.0)
    assert found.number == 1
    assert len(found.unexplained) == (not explains)


def test_leases_that_run_out_without_a_fault_are_a_problem_but_for_a_few() -> None:
    assert checks.too_many_unexplained(checks.Expiries(10, ["one", "two"])) == []
    found = checks.too_many_unexplained(checks.Expiries(10, ["one", "two", "three", "four"]))
    assert [problem.number for problem in found] == [4]


def test_a_worker_that_left_in_order_burns_no_attempt(journey: Journey, expired: float) -> None:
    left = [Departure("w", expired - 1, expired - 0.5)]
    assert [problem.what for problem in checks.burnt_by_leaving(journey.conn, left, lambda departure: False)] == [
        "an attempt burnt by a worker that left in order"
    ]
    assert checks.burnt_by_leaving(journey.conn, left, lambda departure: True) == []
    assert checks.burnt_by_leaving(journey.conn, [Departure("v", *left[0][1:])], lambda departure: False) == []
