"""Every public function of the schema, called with whatever an argument of its type can hold.

Refused: with a code of docs/errors.md, at once, and no row has changed. Done: the invariants hold, and what was stored reads
back equal. Each call is rolled back, so each meets the same tasks.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from absurd.errors import AbsurdError, from_sqlstate
from tests.contract.test_functions_covered import COVERAGE
from tests.fixtures.postgres import Connection, Databases
from tests.property import hostile
from tests.property.hostile import TEN_MEGABYTES, array_text, fuzz
from tests.property.population import OTHER, QUEUE, Population, picture, populate, violations

Call = dict[str, str | None]

#: Codes a refusal may have: ours, and those of Postgres for what an argument holds.
TYPED = frozenset(
    re.findall(r"`([0-9A-Z]{5})`", (Path(__file__).parents[2] / "docs" / "errors.md").read_text())
) - {"40001", "40P01", "25001"}  # fmt: skip
#: Raised while Postgres reads an argument, before the function is called.
SYNTAX = frozenset({"22P02", "22P05", "22003", "22007", "22008", "22021", "54001", "2202E"})

TYPES = {
    "text": hostile.TEXTS,
    "jsonb": hostile.JSONS,
    "integer": hostile.INTEGERS,
    "bigint": hostile.INTEGERS,
    "double precision": hostile.FLOATS,
    "boolean": hostile.BOOLEANS,
    "timestamp with time zone": hostile.MOMENTS,
    "uuid": hostile.UNKNOWN_IDS,
}
QUEUES = st.sampled_from([QUEUE] * 8 + [OTHER, "nowhere"]) | hostile.TEXTS
STEPS = st.sampled_from(["one", "wait", "child", "two", "$x"]) | hostile.TEXTS
EVENTS = st.sampled_from(["parcel", "emitted", "new", "$task:x"]) | hostile.TEXTS
SECONDS = st.sampled_from(["0", "1", "30"]) | hostile.FLOATS


class Row(NamedTuple):
    """`reads`: never changes a row. `special`: strategies for arguments of that name instead of those of their type."""

    reads: bool = False
    special: dict[str, st.SearchStrategy[Any]] = {}  # noqa: RUF012


READS, WRITES = Row(reads=True), Row()
_NUMBERS = st.sampled_from(
    ["0", "0.5", "1", "-1", "1e400", "86400", '"7"', '"x"', "null", "true", "{}", "[1]", '"NaN"', "1e15"]
)
_STRATEGY = st.dictionaries(
    st.sampled_from(["base_seconds", "factor", "max_seconds", "jitter"]), _NUMBERS, max_size=4
).flatmap(
    lambda given: st.sampled_from(['"fixed"', '"exponential"', '"none"', '"x"', "null", "1"]).map(
        lambda kind: "{" + ",".join(f'"{key}": {value}' for key, value in {"kind": kind, **given}.items()) + "}"
    )
) | hostile.JSONS  # fmt: skip


def _object(**keys: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """JSON text of some of these keys; or something else entirely."""
    some = st.fixed_dictionaries({}, optional=keys).map(
        lambda given: "{" + ",".join(f'"{key}": {value}' for key, value in given.items()) + "}"
    )
    return some | some | hostile.JSONS


_OPTIONS = _object(
    max_attempts=_NUMBERS,
    default_max_attempts=_NUMBERS,
    retry_strategy=_STRATEGY,
    cancellation=_object(max_delay=_NUMBERS, max_duration=_NUMBERS),
    headers=hostile.JSONS,
    idempotency_key=hostile.JSONS | st.sampled_from(['"key-pending"', '"key-completed"']),
    priority=_NUMBERS,
    start_at=st.sampled_from(
        ['"infinity"', '"-infinity"', '"294276-12-31"', '"294277-01-01"', '"x"', "1", '"2026-01-01"']
    ),
    delay_seconds=_NUMBERS,
    task_id=st.sampled_from(['"x"', "1", "null", '"01935bf7-8a25-7c92-b123-456789ab0000"']),
    fingerprint=hostile.JSONS,
)
_INTERVALS = st.sampled_from(
    ['"1 day"', '"-1 day"', '"infinity"', '"178000000 years"', '"x"', '""', "1", "null", '"1"', "{}"]
)
_POLICY = _object(
    cleanup_ttl=_INTERVALS,
    partition_lookahead=_INTERVALS,
    partition_lookback=_INTERVALS,
    detach_min_age=_INTERVALS,
    cleanup_limit=_NUMBERS,
    default_max_attempts=_NUMBERS,
    detach_mode=st.sampled_from(['"none"', '" EMPTY "', "null", "1", '"x"']),
)
_MODES = st.sampled_from(["unpartitioned", "partitioned", " Unpartitioned ", ""]) | hostile.TEXTS
_CHANNEL = st.sampled_from(["absurd_w1", "a b", "é" * 31, "é" * 32, "x" * 63, "x" * 64]) | hostile.TEXTS
_EMITS = Row(special={"p_mode": st.sampled_from(["latch", "next", "NEXT", ""]) | hostile.TEXTS})

#: Every public function; an argument without a strategy of its own gets one by its name, else by its type.
FUZZED = {
    "create_queue": Row(
        special={"p_queue_name": QUEUES | st.text(hostile.STORABLE, max_size=70), "p_storage_mode": _MODES}
    ),
    "drop_queue": WRITES,
    "list_queues": READS,
    "ensure_queue_tables": WRITES,
    "validate_queue_name": READS,
    "get_queue_policy": READS,
    "set_queue_policy": Row(special={"p_policy": _POLICY}),
    "get_schema_version": READS,
    "spawn_task": Row(special={"p_options": _OPTIONS}),
    "spawn_tasks": Row(special={"p_specs": _OPTIONS, "p_keys": st.sampled_from(["key-pending", "k"]) | hostile.TEXTS}),
    "retry_task": Row(special={"p_options": _object(max_attempts=_NUMBERS, spawn_new=_NUMBERS, task_id=_NUMBERS)}),
    "get_task_result": READS,
    "retry_delay_seconds": Row(True, {"p_strategy": _STRATEGY}),
    "claim_task": WRITES,
    "claim_tasks": WRITES,
    "running_run": READS,
    "task_history": READS,
    "complete_run": WRITES,
    "complete_runs": WRITES,
    "fail_run": WRITES,
    "fail_runs": WRITES,
    "schedule_run": WRITES,
    "schedule_runs": WRITES,
    "cancel_task": WRITES,
    "cancel_tasks": WRITES,
    "set_task_checkpoint_state": WRITES,
    "set_checkpoints": WRITES,
    "get_task_checkpoint_state": READS,
    "get_task_checkpoint_states": READS,
    "extend_claim": WRITES,
    "extend_claims": WRITES,
    "emit_event": WRITES,
    "emit_events": _EMITS,
    "try_emit_events": _EMITS,
    "await_event": WRITES,
    "await_events": WRITES,
    "await_tasks": WRITES,
    "cleanup_tasks": WRITES,
    "cleanup_events": WRITES,
    "cleanup_all_queues": WRITES,
    "housekeep": WRITES,
    "take_housekeeping": WRITES,
    "purge_queue": WRITES,
    "purge_dropped_queues": WRITES,
    "current_time": READS,
    "set_fake_clock": WRITES,
    "portable_uuidv7": READS,
    "run_id_of": READS,
    "task_id_of": READS,
    "attempt_of": READS,
    "uuidv7_floor": READS,
    "uuidv7_timestamp": READS,
    "week_bucket_utc": READS,
    "partition_week_tag": READS,
    "wake": WRITES,
    "set_idle": Row(special={"p_channel": _CHANNEL}),
    "clear_idle": Row(special={"p_channel": _CHANNEL}),
    "watch_task": Row(special={"p_channel": _CHANNEL}),
    "enforce_policies": WRITES,
    "unserved_tasks": READS,
    "check_invariants": READS,
    "queue_id_of": READS,
}


class World(NamedTuple):
    """One connection to a populated database, for all tests here."""

    conn: Connection
    population: Population
    before: list[tuple[Any, ...]]
    signatures: dict[str, list[dict[str, str]]]

    def __repr__(self) -> str:
        return "the populated database"  # a failure prints it, and the rest would drown the call


@pytest.fixture(scope="module")
def world(databases: Databases, schema_template: str) -> Iterator[World]:
    with databases.fresh(schema_template) as name, psycopg.connect(databases.url(name), autocommit=True) as conn:
        population = populate(conn)
        assert violations(conn) == []
        conn.execute("set statement_timeout = '5s'")
        yield World(conn, population, picture(conn, population), signatures(conn))


def signatures(conn: Connection) -> dict[str, list[dict[str, str]]]:
    """Function -> the arguments of each of its forms, with their types."""
    question = """
        select p.proname, coalesce(array_agg(a.name order by a.o) filter (where a.name is not null), '{}'),
               coalesce(array_agg(format_type(a.type, null) order by a.o) filter (where a.name is not null), '{}')
          from pg_proc p
          left join lateral (select p.proargnames[u.o] as name, u.type, u.o
                               from unnest(p.proargtypes::oid[]) with ordinality u(type, o)) a on true
         where p.pronamespace = 'absurd'::regnamespace group by p.oid, p.proname order by p.oid
    """
    found: dict[str, list[dict[str, str]]] = {}
    for name, names, types in conn.execute(question).fetchall():
        found.setdefault(name, []).append(dict(zip(names, types, strict=True)))
    return found


def strategy_for(function: str, argument: str, kind: str, population: Population) -> st.SearchStrategy[str]:
    """What one argument, or one element of it, may hold."""
    if (special := FUZZED.get(function, WRITES).special.get(argument)) is not None:
        return special
    base, known = kind.removesuffix("[]"), None
    if base == "uuid":
        known = st.sampled_from(sorted((population.runs if "run" in argument else population.tasks).values()))
    elif argument == "p_queue_name":
        return QUEUES
    elif "queue_id" in argument:
        known = st.sampled_from([str(population.queue_id)] * 4 + [str(population.other_id)])
    elif "claim_no" in argument:
        known = st.just("1")
    elif "step" in argument or argument == "p_names":
        return STEPS
    elif "event_name" in argument:
        return EVENTS
    elif base == "double precision":
        return SECONDS
    return TYPES[base] if known is None else st.one_of(known, known, known, TYPES[base])


def draw_call(draw: hostile.Draw, function: str, arguments: dict[str, str], population: Population) -> Call:
    """Arguments for one call: mostly arrays of one length, mostly no nulls."""
    length, call = draw(st.integers(0, 4)), {}
    for argument, kind in arguments.items():
        one = strategy_for(function, argument, kind, population)
        odd = draw(st.integers(0, 11))
        if odd == 0:
            call[argument] = None
        elif not kind.endswith("[]"):
            call[argument] = draw(one)
        else:
            size = draw(st.integers(0, 5)) if odd == 1 else length
            items = draw(st.lists(st.one_of(one, one, one, one, st.none()), min_size=size, max_size=size))
            text = array_text(items)
            if odd == 2 and items:
                text = f"[0:{size - 1}]={text}"
            elif odd == 3 and items:
                text = f"{{{text},{text}}}"
            call[argument] = text
    return call


def attempt(world: World, function: str, arguments: dict[str, str], call: Call) -> list[Any] | psycopg.Error:
    """Make the call in the open transaction; what it answered, or why it was refused."""
    words = ", ".join(f"{name} => %({name})s::{arguments[name]}" for name in call)
    world.conn.execute("savepoint before")
    try:
        # as text: there are moments that Python has no room for
        return world.conn.execute(f"select f::text from absurd.{function}({words}) f", call).fetchall()
    except psycopg.Error as error:
        world.conn.execute("rollback to savepoint before")
        return error


def check_refusal(error: psycopg.Error) -> None:
    """A code of the page of errors, and a class of ours for what the engine itself raises."""
    code = error.sqlstate or "none"
    assert code in TYPED | SYNTAX, f"{code} {error}"
    if code == "P0001":
        assert type(from_sqlstate(error)) is not AbsurdError, error
    if code == "42P01":
        assert error.diag.message_hint, error


def hold(world: World, function: str, arguments: dict[str, str], call: Call) -> None:
    """One call with all that must hold after it; rolled back."""
    with world.conn.transaction(force_rollback=True):
        answer = attempt(world, function, arguments, call)
        if isinstance(answer, psycopg.Error):
            check_refusal(answer)
        if isinstance(answer, psycopg.Error) or FUZZED.get(function, WRITES).reads:
            assert picture(world.conn, world.population) == world.before
        else:
            found = violations(world.conn)
            if function in ("claim_task", "claim_tasks"):  # a timeout of 0 is a lease that never ends, by contract
                found = [each for each in found if each[0] != "a running run has a lease"]
            assert found == []


def test_every_public_function_has_a_row() -> None:
    assert set(FUZZED) == set(COVERAGE)


@pytest.mark.parametrize("function", COVERAGE)
@fuzz(12)
@given(data=st.data())
def test_a_hostile_call_is_refused_whole_or_leaves_all_in_order(
    world: World, function: str, data: st.DataObject
) -> None:
    forms = world.signatures[function]
    arguments = forms[data.draw(st.integers(0, len(forms) - 1))]
    call = draw_call(data.draw, function, arguments, world.population)
    note(f"{function}({call})")
    hold(world, function, arguments, call)


#: Where a value goes in, and where it must come out equal. `%(value)s` is JSON text; `null` is stored as JSON null.
STORED = {
    "params": (
        "select absurd.spawn_task('q', 'stored', %(value)s::jsonb)",
        "select params from absurd.tasks where task_name = 'stored'",
    ),
    "params of a batch": (
        "select absurd.spawn_tasks({queue}, '{{stored}}', array[%(value)s::jsonb])",
        "select params from absurd.tasks where task_name = 'stored'",
    ),
    "result": (
        "select absurd.complete_run('q', %(running)s, %(value)s::jsonb)",
        "select result from absurd.get_task_result('q', %(task)s)",
    ),
    "result of a batch": (
        "select absurd.complete_runs({queue}, array[%(running)s]::uuid[], '{{1}}', array[%(value)s::jsonb])",
        "select result from absurd.get_task_result('q', %(task)s)",
    ),
    "reason": (
        "select absurd.fail_runs({queue}, array[%(running)s]::uuid[], '{{1}}', array[%(value)s::jsonb], p_final => '{{t}}')",
        "select failure_reason from absurd.get_task_result('q', %(task)s)",
    ),
    "checkpoint": (
        "select absurd.set_task_checkpoint_state('q', %(task)s, 'one', %(value)s::jsonb, %(running)s)",
        "select state from absurd.get_task_checkpoint_state('q', %(task)s, 'one')",
    ),
    "payload": (
        "select absurd.emit_event('q', 'stored', %(value)s::jsonb)",
        "select payload from absurd.await_event('q', %(task)s, %(running)s, 'two', 'stored')",
    ),
    "payload of a batch": (
        "select absurd.emit_events({queue}, '{{parcel}}', array[%(value)s::jsonb], 'next')",
        "select c.state from absurd.c_q c where c.checkpoint_name = 'wait'",
    ),
}


@pytest.mark.parametrize("where", STORED)
@fuzz(25)
@given(value=hostile.JSONS)
def test_what_was_stored_reads_back_equal(world: World, where: str, value: str) -> None:
    put, get = (question.format(queue=world.population.queue_id) for question in STORED[where])
    words = {"value": value, "running": world.population.runs["running"], "task": world.population.tasks["running"]}
    with world.conn.transaction(force_rollback=True):
        try:
            with world.conn.transaction():
                world.conn.execute(put, words)
        except psycopg.Error as error:
            check_refusal(error)
            assert picture(world.conn, world.population) == world.before
        else:
            assert world.conn.execute(f"select ({get}) = %(value)s::jsonb", words).fetchone() == (True,)
            assert violations(world.conn) == []


#: One row of usual arguments, by the words of their names, for a call in which one of them is huge.
USUAL = {
    "queue_name": QUEUE,
    "claim_no": "1",
    "mode": "latch",
    "retry_at": "2030-01-01",
    "since": "2020-01-01",
    "wake_at": "2030-01-01",
}
NOISE = "".join(random.Random(1).choices("0123456789abcdef", k=TEN_MEGABYTES))


def usual(argument: str, kind: str, population: Population) -> str:
    base = kind.removesuffix("[]")
    named = next((value for words, value in USUAL.items() if words in argument), None)
    if base == "uuid":
        named = population.runs["running"] if "run" in argument else population.tasks["running"]
    elif "queue_id" in argument:
        named = str(population.queue_id)
    by_type = {"text": "x", "jsonb": "{}", "boolean": "false", "timestamp with time zone": "2030-01-01"}
    value = named or by_type.get(base, "1")
    return array_text([value]) if kind.endswith("[]") else value


#: Each way in that a value or a name has; with FUZZ_EXAMPLES all there are.
HUGE = [
    "spawn_task",
    "complete_runs",
    "fail_run",
    "set_checkpoints",
    "emit_event",
    "await_event",
    "set_queue_policy",
    "set_idle",
]


@pytest.mark.parametrize("function", FUZZED if hostile.EXAMPLES else HUGE)
def test_ten_megabytes_are_stored_or_refused_whole(world: World, function: str) -> None:
    for arguments in world.signatures[function]:
        for argument, kind in arguments.items():
            if kind.removesuffix("[]") in ("text", "jsonb") and argument != "p_queue_name":
                huge = f'{{"huge": "{NOISE}"}}' if kind.startswith("jsonb") else NOISE
                call: Call = {name: usual(name, of, world.population) for name, of in arguments.items()}
                call[argument] = array_text([huge]) if kind.endswith("[]") else huge
                hold(world, function, arguments, call)
