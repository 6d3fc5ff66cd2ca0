"""Both clients with whatever Python can hold: a typed error and nothing written, or a value that reads back as JSON does."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import decimal
import enum
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import psycopg
import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from absurd import Absurd, AsyncAbsurd
from absurd._core import codec
from absurd.errors import AbsurdError, ControlFlow
from tests.fixtures.postgres import Connection, Databases
from tests.property.hostile import ANY_TEXTS, fuzz
from tests.property.population import QUEUE, Population, picture, populate, violations

_numbers = itertools.count()
WORLDS = ("sync", "async")


class Opaque:
    """Nothing JSON knows."""


class Colour(enum.Enum):
    RED = "r"
    ODD = object()


@dataclasses.dataclass
class Point:
    x: Any
    y: Any


class Lazy(NamedTuple):
    inner: Any


def _circle() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


JUNK: st.SearchStrategy[Any] = st.one_of(
    ANY_TEXTS,
    st.integers() | st.sampled_from([0, -1, 2**31, 2**63, 10**400, True]),
    st.floats(),
    st.binary(max_size=5),
    st.none(),
    st.sampled_from(
        [object(), Opaque(), len, ..., b"", {}, [], (), set(), Colour.RED, Colour.ODD, decimal.Decimal("NaN"), range(3)]
    ),
    st.datetimes() | st.timedeltas() | st.dates() | st.uuids() | st.complex_numbers(),
    st.datetimes(timezones=st.just(dt.UTC)),
    st.sampled_from([dt.datetime.max, dt.datetime.min, dt.timedelta.max, dt.timedelta.min]),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    JUNK,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(ANY_TEXTS | st.integers() | st.floats() | st.none() | st.booleans(), inner, max_size=3),
        st.builds(Point, inner, inner),
        st.builds(Lazy, inner),
        st.sets(st.integers() | st.text(max_size=2) | st.builds(Opaque), max_size=3),
    ),
    max_leaves=4,
)
SECONDS = (
    st.sampled_from([0, 0.5, 1, -1, 1e300, float("nan"), float("inf"), dt.timedelta(1), 10**400, True, "1"]) | JUNK
)
COUNTS = st.sampled_from([1, 2, 0, -1, 2**31 - 1, 2**31, 2**63, 1.5, True, "3", None]) | JUNK
NAMES = st.sampled_from(["parcel", "x", "a" * 2048, "😀" * 513]) | ANY_TEXTS | JUNK
QUEUES = st.sampled_from([QUEUE, QUEUE, QUEUE, None, "nowhere"]) | ANY_TEXTS | JUNK
MOMENTS = st.datetimes(timezones=st.just(dt.UTC)) | JUNK
STRATEGIES = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.sampled_from(["fixed", "exponential", "none", "x"]) | JUNK,
        **{key: SECONDS for key in ("base_seconds", "factor", "max_seconds", "jitter", "other")},
    },
) | JUNK  # fmt: skip
CANCELLATIONS = st.fixed_dictionaries({}, optional={key: SECONDS for key in ("max_delay", "max_duration", "x")}) | JUNK
SPAWN = {
    "max_attempts": COUNTS,
    "retry_strategy": STRATEGIES,
    "headers": st.dictionaries(ANY_TEXTS, VALUES, max_size=2) | JUNK,
    "cancellation": CANCELLATIONS,
    "idempotency_key": NAMES,
    "priority": COUNTS,
    "start_at": MOMENTS,
    "delay": SECONDS,
}
INTERVALS = st.sampled_from(["1 day", "-1 day", "infinity", "x", ""]) | JUNK
POLICY = {
    "partition_lookahead": INTERVALS,
    "partition_lookback": INTERVALS,
    "cleanup_ttl": INTERVALS,
    "cleanup_limit": COUNTS,
    "detach_mode": st.sampled_from(["none", "empty"]) | JUNK,
    "detach_min_age": INTERVALS,
    "default_max_attempts": COUNTS,
}
#: Stands for an id of the populated queue.
KNOWN = st.sampled_from(["pending", "running", "completed", "failed", "cancelled", "asleep"]).map(
    lambda state: Known(state)
)
IDS = KNOWN | KNOWN | st.uuids() | ANY_TEXTS | JUNK
MODES = st.sampled_from(["latch", "next", "NEXT"]) | JUNK


class Known(NamedTuple):
    """A task of the populated queue, by what it does."""

    state: str


def some(
    needed: dict[str, st.SearchStrategy[Any]], **optional: st.SearchStrategy[Any]
) -> st.SearchStrategy[dict[str, Any]]:
    """Keyword arguments: all that are needed, few of the others."""
    few = st.lists(st.sampled_from(sorted(optional)), max_size=2, unique=True) if optional else st.just([])
    return few.flatmap(lambda keys: st.fixed_dictionaries({**needed, **{key: optional[key] for key in keys}}))


REQUESTS = st.lists(some({"task_name": NAMES, "params": VALUES, "queue": QUEUES}, **SPAWN) | JUNK, max_size=3)
CALLS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "spawn": some({"task_name": NAMES, "params": VALUES, "queue": QUEUES}, **SPAWN),
    "spawn_many": some({"requests": REQUESTS}),
    "emit_event": some({"event_name": NAMES, "payload": VALUES}, queue_name=QUEUES, mode=MODES),
    "emit_many": some({"events": st.lists(st.tuples(NAMES, VALUES), max_size=3)}, queue_name=QUEUES, mode=MODES),
    "create_queue": some({"queue_name": QUEUES}, storage_mode=JUNK | st.just("partitioned"), **POLICY),
    "set_queue_policy": some({"queue_name": QUEUES}, **POLICY),
    "get_queue_policy": some({"queue_name": QUEUES}),
    "drop_queue": some({"queue_name": QUEUES.filter(lambda name: name is not None and name != QUEUE)}),
    "purge_queue": some({"queue_name": QUEUES.filter(lambda name: name is not None and name != QUEUE)}),
    "retry_task": some({"task_id": IDS}, max_attempts=COUNTS, spawn_new=JUNK, queue_name=QUEUES),
    "cancel_task": some({"task_id": IDS}, queue_name=QUEUES),
    "fetch_task_result": some({"task_id": IDS}, queue_name=QUEUES),
    "fetch_history": some({"task_id": IDS}, queue_name=QUEUES),
    "await_task_result": some(
        {"task_id": IDS, "timeout": st.sampled_from([0, -1, 1e-9]) | ANY_TEXTS}, queue_name=QUEUES
    ),
    "claim_tasks": some({}, batch_size=COUNTS, claim_timeout=SECONDS, worker_id=NAMES),
    "work_batch": some({}, batch_size=COUNTS, claim_timeout=SECONDS, worker_id=NAMES),
}
#: Public coroutines that take nothing hostile, or that run until they are told to stop.
LEFT_OUT = {"close", "list_queues", "start_worker", "check_replay"}


class World(NamedTuple):
    """A client on a populated database, and a connection beside it."""

    client: Any
    run: Callable[[Any], Any]
    conn: Connection
    population: Population

    def __repr__(self) -> str:
        return type(self.client).__name__

    def call(self, method: str, given: dict[str, Any]) -> Any:
        """Call a method; ids by what their task does become ids."""
        known = {
            key: self.population.tasks[value.state] if isinstance(value, Known) else value
            for key, value in given.items()
        }
        return self.run(getattr(self.client, method)(**known))


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest, databases: Databases, schema_template: str) -> Iterator[World]:
    with databases.fresh(schema_template) as name, psycopg.connect(databases.url(name), autocommit=True) as conn:
        population = populate(conn)
        url = psycopg.conninfo.make_conninfo(databases.url(name), options="-c statement_timeout=5s")
        if request.param == "sync":
            with Absurd(url, QUEUE) as client:
                yield World(client, lambda answer: answer, conn, population)
        else:
            with asyncio.Runner() as runner:
                app = AsyncAbsurd(url, QUEUE)
                yield World(app, runner.run, conn, population)
                runner.run(app.close())


def test_every_method_of_the_clients_is_tried() -> None:
    methods = {
        name for name, value in vars(AsyncAbsurd).items() if inspect.iscoroutinefunction(value) and name[0] != "_"
    }
    assert methods - LEFT_OUT == set(CALLS)


@pytest.mark.parametrize("method", CALLS)
@fuzz(12)
@given(data=st.data())
def test_a_hostile_call_raises_an_error_of_ours_or_leaves_all_in_order(
    world: World, method: str, data: st.DataObject
) -> None:
    given = data.draw(CALLS[method])
    note(f"{method}({given!r})")
    before = picture(world.conn, world.population)
    try:
        world.call(method, given)
    except AbsurdError:
        if method != "await_task_result":  # who waits is noted
            assert picture(world.conn, world.population) == before
    found = [each for each in violations(world.conn) if each[0] != "a running run has a lease"]
    assert found == []


def stored_as(value: Any) -> tuple[bool, Any]:
    """Whether a value can be stored, and as what."""
    try:
        return True, codec.roundtrip(codec.encode(value))
    except AbsurdError:
        return False, None


@fuzz(40)
@given(value=VALUES)
def test_what_a_client_stores_reads_back_as_json_makes_it(world: World, value: Any) -> None:
    storable, kept = stored_as(value)
    name = f"stored-{next(_numbers)}"
    for method, words, question in (
        (
            "spawn",
            {"task_name": name, "params": value, "queue": QUEUE},
            "select params::text from absurd.tasks where task_name = %s",
        ),
        (
            "emit_event",
            {"event_name": name, "payload": value},
            "select payload::text from absurd.events where event_name = %s",
        ),
    ):
        try:
            world.call(method, words)
        except AbsurdError:
            assert not storable
            assert world.conn.execute(question, (name,)).fetchall() == []
        else:
            assert storable
            (text,) = world.conn.execute(question, (name,)).fetchone() or (None,)
            assert repr(codec.decode(text)) == repr(kept)


GIANTS = {"circle": _circle(), "deep": _deep(100000), "digits": 10**5000, "text": "x" * (20 * 1024 * 1024)}


@pytest.mark.parametrize("giant", GIANTS)
def test_a_giant_is_refused(world: World, giant: str) -> None:
    value, before = GIANTS[giant], picture(world.conn, world.population)
    for method, words in (
        ("spawn", {"task_name": "x", "queue": QUEUE, "params": value}),
        ("spawn", {"task_name": "x", "queue": QUEUE, "headers": {"h": value}}),
        ("spawn", {"task_name": "x", "queue": QUEUE, "idempotency_key": value}),
        ("spawn", {"task_name": "x", "queue": QUEUE, "delay": value}),
        (
            "spawn_many",
            {"requests": [{"task_name": "x", "queue": QUEUE}, {"task_name": "x", "queue": QUEUE, "params": value}]},
        ),
        ("emit_event", {"event_name": "x", "payload": value}),
        ("emit_event", {"event_name": value}),
        ("emit_many", {"events": [("x", 1), ("y", value)]}),
        ("create_queue", {"queue_name": value}),
        ("create_queue", {"queue_name": "new", "cleanup_limit": value}),
        ("cancel_task", {"task_id": value}),
        ("claim_tasks", {"batch_size": value}),
        ("claim_tasks", {"claim_timeout": value}),
    ):
        try:
            world.call(method, words)
        except AbsurdError:
            assert picture(world.conn, world.population) == before
        else:
            pytest.fail(f"{method} took it")


#: but for integers beyond every float, and the first and last year, whose zone may lie outside
WAKE_AT = (MOMENTS | SECONDS).filter(
    lambda at: 1 < at.year < 9999 if isinstance(at, dt.date) else type(at) is not int or abs(at) < 2**1000
)
CHILD = {key: strategy for key, strategy in SPAWN.items() if key != "idempotency_key"}  # which is the step
CONTEXT: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "step": some(
        {"name": NAMES, "fn": VALUES.map(lambda value: lambda: value)}, max_attempts=COUNTS, returns=JUNK, undo=NAMES
    ),
    "gather": some({"steps": st.dictionaries(ANY_TEXTS, st.just(lambda: 1), max_size=2)}, limit=COUNTS),
    "map": some({"name": NAMES, "fn": st.just(lambda item: item), "items": st.lists(VALUES, max_size=2)}),
    "spawn": some({"task_name": NAMES, "params": VALUES}, step_name=NAMES, queue=QUEUES, **CHILD),
    "begin_step": some({"name": NAMES}),
    "sleep_for": some({"step_name": NAMES, "duration_seconds": SECONDS}),
    "sleep_until": some({"step_name": NAMES, "wake_at": WAKE_AT}),
    "await_event": some({"event_name": NAMES}, step_name=NAMES, timeout=SECONDS, since=MOMENTS),
    "await_task_result": some({"task_id": IDS}, queue_name=QUEUES, timeout=SECONDS),
    "emit_event": some({"event_name": NAMES, "payload": VALUES}, mode=MODES),
    "heartbeat": some({"seconds": COUNTS}),
}


@pytest.mark.parametrize("method", CONTEXT)
@fuzz(6)
@given(data=st.data())
def test_a_hostile_call_of_a_handler_fails_its_task_and_nothing_else(
    world: World, method: str, data: st.DataObject
) -> None:
    given = data.draw(CONTEXT[method])
    note(f"ctx.{method}({given!r})")
    known = {
        key: world.population.tasks[value.state] if isinstance(value, Known) else value for key, value in given.items()
    }
    raised: list[BaseException] = []

    def told(error: BaseException) -> None:
        if not isinstance(error, (AbsurdError, ControlFlow)):
            raised.append(error)

    if isinstance(world.client, AsyncAbsurd):

        async def handler(params: Any, ctx: Any) -> Any:
            try:
                await getattr(ctx, method)(**known)
            except BaseException as error:
                told(error)
                raise
    else:

        def handler(params: Any, ctx: Any) -> Any:  # type: ignore[misc]
            try:
                getattr(ctx, method)(**known)
            except BaseException as error:
                told(error)
                raise

    app = type(world.client)(world.client._session.conninfo(), "fuzzed")
    app.register_task("hostile", default_max_attempts=1)(handler)
    try:
        world.run(app.create_queue())
        spawned = world.run(app.spawn("hostile"))
        world.run(app.work_batch(batch_size=1))
        snapshot = world.run(app.fetch_task_result(spawned["task_id"]))
    finally:
        world.run(app.close())
    assert raised == []
    assert snapshot.state in ("completed", "failed", "sleeping", "pending")
    world.conn.execute("select absurd.purge_queue('fuzzed')")
    assert [each for each in violations(world.conn) if each[0] != "a running run has a lease"] == []
