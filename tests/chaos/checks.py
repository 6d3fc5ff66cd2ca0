"""What must hold once the faults have stopped and everything has drained. Each check names what it found."""

from __future__ import annotations

import json
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from tests.chaos.fleet import Hit
from tests.chaos.producer import Entry

PLAIN = ("reserve", "pack", "ship")
MOST_ATTEMPTS = 60
FEW, FEW_PERCENT = 3, 5
MOST_BYTES = 64 * 1024 * 1024  # of the tables that hold only what is unfinished

LEDGER = """
    create temp table if not exists ledger (n integer, queue text, task_id uuid, event text, payload integer);
    truncate ledger;
"""

#: problem -> query of the offending tasks
QUESTIONS = {
    "lost: spawned and acknowledged, and not there": """
        select l.* from ledger l where not exists (select 1 from absurd.tasks t where t.task_id = l.task_id)""",
    "doubled: a task nobody was told of": """
        select t.task_id, t.params from absurd.tasks t where not exists (select 1 from ledger l where l.task_id = t.task_id)""",
    "doubled: one journey is two tasks": """
        select t.params->>'n', count(*), array_agg(t.task_id) from absurd.tasks t group by 1 having count(*) > 1""",
    "stuck: a task that has not ended": """
        select v.* from absurd.live v""",
    "stuck: a wait without a sleeping task": """
        select w.* from absurd.waits w where not exists (
          select 1 from absurd.live v where v.queue_id = w.queue_id and v.task_id = w.task_id and v.state = 's')""",
    "lost: a task that did not complete exactly once": """
        select l.*, array_agg(a.task_state) from ledger l
          left join absurd.attempts a on a.task_id = l.task_id and a.task_state is not null
         group by l.n, l.queue, l.task_id, l.event, l.payload having array_agg(a.task_state) <> '{c}'""",
    "lost: an event that did not reach its waiter": """
        select l.*, a.result from ledger l join absurd.attempts a on a.task_id = l.task_id and a.task_state = 'c'
         where a.result->'event' is distinct from to_jsonb(l.payload)""",
    "wrong result: another task's": """
        select l.*, a.result from ledger l join absurd.attempts a on a.task_id = l.task_id and a.task_state = 'c'
         where a.result->'n' is distinct from to_jsonb(l.n)""",
    "wrong result: not what the steps kept": """
        select l.*, a.result, c.kept from ledger l
          join absurd.attempts a on a.task_id = l.task_id and a.task_state = 'c'
          join (select task_id, jsonb_object_agg(name, state) as kept from absurd.checkpoints group by 1) c
            on c.task_id = l.task_id
         where a.result->'tokens' is distinct from jsonb_build_array(c.kept->'reserve', c.kept->'pack', c.kept->'ship')
            or a.result->'charge' is distinct from c.kept->'charge'""",
    "a run that had lost its claim ended the task": """
        select l.*, a.attempt, a.claimed_by, a.result from ledger l
          join absurd.attempts a on a.task_id = l.task_id and a.task_state = 'c'
         where a.result->'attempt' is distinct from to_jsonb(a.attempt)
            or a.result->'worker' is distinct from to_jsonb(a.claimed_by)""",
    "a run that had ended kept a step": """
        select l.*, c.name, c.attempt, a.state, a.finished_at, c.updated_at from ledger l
          join absurd.checkpoints c on c.task_id = l.task_id
          join absurd.attempts a on a.task_id = c.task_id and a.attempt = c.attempt
         where c.updated_at > a.finished_at + interval '0.5 s'""",
    "a transactional effect that is not there exactly once": """
        select l.*, m.tokens from ledger l
          left join (select task_id, array_agg(token) as tokens from chaos.moves group by 1) m on m.task_id = l.task_id
         where coalesce(cardinality(m.tokens), 0) <> 1""",
    "a transactional effect that is not the one its step kept": """
        select l.*, m.token from ledger l
          join absurd.checkpoints c on c.task_id = l.task_id and c.name = 'charge'
          join chaos.moves m on m.task_id = l.task_id
         where to_jsonb(m.token) <> c.state""",
    "an effect in the database that its step kept is missing": """
        select l.*, c.state from ledger l
          join absurd.checkpoints c on c.task_id = l.task_id and c.name = 'reserve'
         where not exists (select 1 from chaos.effects e where e.task_id = l.task_id and to_jsonb(e.token) = c.state)""",
    "an attempt missing, or more of them than anybody should need": f"""
        select task_id, count(*), max(attempt) from absurd.attempts
         group by 1 having count(*) <> max(attempt) or count(*) > {MOST_ATTEMPTS}""",
    "the invariants": "select * from absurd.check_invariants()",
    "a table that has grown without bound": f"""
        select c.relname, pg_total_relation_size(c.oid) from pg_class c join pg_namespace s on s.oid = c.relnamespace
         where s.nspname = 'absurd' and c.relname in ('live', 'waits', 'idle', 'watchers')
           and pg_total_relation_size(c.oid) > {MOST_BYTES}""",
}


class Problem(NamedTuple):
    """Something that must not be, how often, and the first few cases."""

    what: str
    number: int
    cases: list[Any]

    def __str__(self) -> str:
        return "\n".join([f"{self.number} x {self.what}", *(f"    {case}" for case in self.cases)])


def ask(conn: psycopg.Connection[Any], ledger: Iterable[Entry]) -> list[Problem]:
    """What the database alone can say."""
    conn.execute(LEDGER)
    with conn.cursor().copy("copy ledger from stdin") as copy:
        for entry in ledger:
            copy.write_row(entry)
    conn.execute("analyze ledger")
    found = []
    for what, query in QUESTIONS.items():
        if rows := conn.execute(query).fetchall():
            found.append(Problem(what, len(rows), rows[:5]))
    return found


class Records:
    """The files outside the database, read as they grow."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._at: Counter[str] = Counter()
        self.effects: dict[uuid.UUID, Counter[str]] = defaultdict(Counter)
        self.tokens: dict[uuid.UUID, set[str]] = defaultdict(set)
        self.begun: Counter[uuid.UUID] = Counter()
        self.suspended: Counter[uuid.UUID] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.open: dict[str, Counter[tuple[str, int]]] = defaultdict(Counter)  # worker -> executions under way
        self.untold = 0

    def read(self) -> None:
        """What was written since."""
        for task, step, _, token, _ in self._lines("effects"):
            self.effects[uuid.UUID(task)][step] += 1
            self.tokens[uuid.UUID(task)].add(token)
        for what, worker, task, attempt in self._lines("journal"):
            change = 1 if what == "started" else -1
            self.open[worker][task, attempt] += change
            self.outcomes[what] += 1
            if what == "started":
                self.begun[uuid.UUID(task)] += 1
            elif what == "suspended":
                self.suspended[uuid.UUID(task)] += 1

    def under_way(self, workers: Iterable[str]) -> int:
        """Executions that these workers have begun and not ended."""
        return sum(sum(self.open[worker].values()) for worker in workers)

    @property
    def doubled(self) -> int:
        """Plain effects beyond the first of each step."""
        return sum(count - 1 for steps in self.effects.values() for count in steps.values())

    def _lines(self, name: str) -> Iterator[list[Any]]:
        path = self._folder / name
        if not path.exists():
            return
        with open(path, "rb") as file:
            file.seek(self._at[name])
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._at[name] += len(line)
                yield json.loads(line)


def count_effects(conn: psycopg.Connection[Any], ledger: Iterable[Entry], records: Records) -> list[Problem]:
    """Plain effects: at least once each, and once more at most for each execution that was broken off.

    An execution is broken off when it neither suspends nor ends the task. The engine knows executions as claims, the
    journal as beginnings; the smaller number counts, so a run handed out twice under one claim does not excuse itself.
    """
    claims: dict[uuid.UUID, int] = dict(
        conn.execute(
            "select task_id, max(claim_no) from absurd.attempts where task_state is not null group by 1"
        ).fetchall()
    )
    kept = conn.execute(
        "select task_id, name, state #>> '{}' from absurd.checkpoints where name = any(%s)", [list(PLAIN)]
    ).fetchall()
    missing: list[Any] = []
    too_many: list[Any] = []
    overrun: list[Any] = []
    for entry in ledger:
        task, effects = entry.task_id, records.effects[entry.task_id]
        broken_off = min(records.begun[task], claims.get(task, 0)) - records.suspended[task] - 1
        missing += [(entry, step) for step in PLAIN if effects[step] < 1]
        too_many += [(entry, dict(effects), broken_off) for step in PLAIN if effects[step] > 1 + broken_off]
        if records.begun[task] > claims.get(task, 0):
            overrun.append((entry, records.begun[task], claims.get(task, 0)))
    strange = [(task, name, token) for task, name, token in kept if token not in records.tokens[task]]
    found: dict[str, list[Any]] = {
        "a plain effect that never happened": missing,
        "a plain effect more often than executions were broken off (and once)": too_many,
        "more executions than claims": overrun,
        "a step that kept a value no effect wrote down": strange,
    }
    return [Problem(what, len(cases), cases[:5]) for what, cases in found.items() if cases]


EXPIRED = """
    select claimed_by, extract(epoch from lease_until)::float, extract(epoch from started_at)::float, task_id, attempt
      from absurd.attempts where failure->>'name' = '$ClaimTimeout'
"""


class Expiries(NamedTuple):
    """Leases that ran out: how many, and those that no fault explains."""

    number: int
    unexplained: list[Any]


def expiries(conn: psycopg.Connection[Any], hits: dict[str, list[Hit]], lease: float, grace: float) -> Expiries:
    """A lease runs out because of a fault that hit its worker: no sooner than that began, and soon after it ended."""
    rows = conn.execute(EXPIRED).fetchall()
    unexplained = [
        (worker, task, attempt, until)
        for worker, until, _, task, attempt in rows
        if not any(hit.since <= until <= hit.until + lease + grace for hit in hits.get(worker, []))
    ]
    return Expiries(len(rows), unexplained)


def too_many_unexplained(expired: Expiries) -> list[Problem]:
    """A machine that is busy with other things may pause for seconds, and a lease is short here: a few are let pass."""
    count = len(expired.unexplained)
    if count <= max(FEW, FEW_PERCENT * expired.number / 100):
        return []
    return [Problem("a lease that ran out though no fault hit its worker", count, expired.unexplained[:5])]


def burnt_by_leaving(conn: psycopg.Connection[Any], departures: Iterable[Any], disturbed: Any) -> list[Problem]:
    """A worker that was asked to leave, and was not hit by anything meanwhile, burns no attempt."""
    rows = conn.execute(EXPIRED).fetchall()
    cases = [
        (departure, task, attempt, until)
        for departure in departures
        for worker, until, _, task, attempt in rows
        if worker == departure.worker and until >= departure.asked and not disturbed(departure)
    ]
    return [Problem("an attempt burnt by a worker that left in order", len(cases), cases[:5])] if cases else []


ATTEMPTS = """
    select count(*), count(*) filter (where task_state is not null), coalesce(max(attempt), 0),
           count(*) filter (where failure->>'name' = '$ClaimTimeout')
      from absurd.attempts
"""

#: what waits, for a drain that does not end
WAITING = {
    "live": "select * from absurd.live order by due_at limit 20",
    "waits": "select w.*, e.emitted_at from absurd.waits w left join absurd.events e using (queue_id, event_name) limit 20",
    "idle": "select * from absurd.idle",
    "backends": """select pid, application_name, state, wait_event, now() - state_change, left(query, 100)
                     from pg_stat_activity where datname = current_database()""",
    "now": "select absurd.current_time(), now(), pg_current_snapshot()",
}
