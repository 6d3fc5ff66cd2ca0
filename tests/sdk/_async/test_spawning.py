"""Spawning: what is sent, what is refused before anything is sent, and what a repeated call does."""

from __future__ import annotations

import datetime as dt
import functools
import logging
import uuid
from typing import Any

import psycopg
import pydantic
import pytest

from absurd import (
    AsyncAbsurd,
    ConfigError,
    InvalidOption,
    InvalidRetryStrategy,
    NotSerializable,
    QueueNotFound,
    ValidationFailed,
    ValueTooLarge,
)
from absurd._async import bulk as bulk_module
from absurd._async import session as session_module
from absurd._core import codec
from tests.sdk._async import _compat
from tests.sdk.conftest import Rows


class Order(pydantic.BaseModel):
    order_id: int
    note: str = ""


async def nothing(params: Any, ctx: Any) -> None:
    """A handler."""


async def test_a_spawn_says_which_ids_attempt_and_whether_it_is_new(app: AsyncAbsurd, rows: Rows) -> None:
    app.register_task("ship")(nothing)
    spawned = await app.spawn("ship", {"order": 1})
    assert list(spawned) == ["task_id", "run_id", "attempt", "created", "same_request"]
    assert isinstance(spawned["task_id"], uuid.UUID)
    assert isinstance(spawned["run_id"], uuid.UUID)
    assert (spawned["attempt"], spawned["created"], spawned["same_request"]) == (1, True, True)
    assert rows("select task_name, params from absurd.tasks where task_id = %s", spawned["task_id"]) == [
        ("ship", {"order": 1})
    ]


async def test_params_may_be_anything_json_is(app: AsyncAbsurd, rows: Rows) -> None:
    app.register_task("any")(nothing)
    given: list[Any] = [None, 1, "text", [1, None], {"a": {}}, Order(order_id=1), (1, 2), uuid.UUID(int=1)]
    for params in given:
        await app.spawn("any", params)
    assert rows("select params from absurd.tasks order by task_id") == [
        codec.roundtrip(codec.encode(params)) for params in given
    ]


async def test_every_option_arrives(app: AsyncAbsurd, rows: Rows) -> None:
    app.register_task("all")(nothing)
    start = dt.datetime(2099, 1, 2, 3, 4, 5, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    spawned = await app.spawn(
        "all",
        {},
        max_attempts=7,
        retry_strategy={"kind": "exponential", "base_seconds": 2, "factor": 3, "max_seconds": 60},
        headers={"trace": "abc"},
        cancellation={"max_delay": 1.5, "max_duration": 60},
        idempotency_key="key",
        priority=5,
        start_at=start,
    )
    (found,) = rows(
        "select t.max_attempts, t.retry_strategy, t.headers, t.cancellation, t.idempotency_key, t.priority, l.due_at"
        " from absurd.tasks t join absurd.live l using (queue_id, task_id) where t.task_id = %s",
        spawned["task_id"],
    )
    assert found[:5] == (
        7,
        {"kind": "exponential", "base_seconds": 2, "factor": 3, "max_seconds": 60},
        {"trace": "abc"},
        {"max_delay": 1.5, "max_duration": 60},
        "key",
    )
    assert found[5:] == (5, start)


async def test_a_delay_counts_from_the_databases_now(app: AsyncAbsurd, rows: Rows) -> None:
    app.register_task("later")(nothing)
    seconds = await app.spawn("later", {}, delay=90.5)
    delta = await app.spawn("later", {}, delay=dt.timedelta(days=2))
    waits = dict(
        rows("select task_id, due_at - enqueue_at from absurd.live join absurd.tasks using (queue_id, task_id)")
    )
    assert waits == {
        seconds["task_id"]: dt.timedelta(seconds=90.5),
        delta["task_id"]: dt.timedelta(days=2),
    }


async def test_tasks_are_claimed_by_priority_then_by_due_time(app: AsyncAbsurd) -> None:
    app.register_task("ranked")(nothing)
    await app.spawn("ranked", "later", delay=3600)
    for params, priority in [("low", -1), ("first", None), ("high", 9), ("second", 0)]:
        await app.spawn("ranked", params, priority=priority)
    claimed = [(await app.claim_tasks())[0]["params"] for _ in range(4)]
    assert claimed == ["high", "first", "second", "low"]
    assert await app.claim_tasks() == []


@pytest.mark.parametrize(
    ("call", "registration", "client", "queue", "expected"),
    [
        (2, 3, 4, 6, 2),
        (None, 3, 4, 6, 3),
        (None, None, 4, 6, 4),
        (None, None, None, 6, 6),
        (None, None, None, None, 5),
    ],
)
async def test_max_attempts_of_call_then_registration_then_client_then_queue_then_five(
    app: AsyncAbsurd,
    rows: Rows,
    database_url: str,
    call: Any,
    registration: Any,
    client: Any,
    queue: Any,
    expected: int,
) -> None:
    if queue is not None:
        await app.set_queue_policy(default_max_attempts=queue)
    async with AsyncAbsurd(database_url, "main", client) as chosen:
        chosen.register_task("ranked", default_max_attempts=registration)(nothing)
        await chosen.spawn("ranked", {}, max_attempts=call)
    assert rows("select max_attempts from absurd.tasks") == [expected]


async def test_a_registrations_defaults_hold_until_a_call_says_otherwise(app: AsyncAbsurd, rows: Rows) -> None:
    app.register_task(
        "defaults", default_cancellation={"max_delay": 9}, default_retry_strategy={"kind": "fixed", "base_seconds": 3}
    )(nothing)
    await app.spawn("defaults", {})
    await app.spawn("defaults", {}, cancellation={"max_duration": 1}, retry_strategy={"kind": "none"})
    assert rows("select cancellation, retry_strategy from absurd.tasks order by task_id") == [
        ({"max_delay": 9}, {"kind": "fixed", "base_seconds": 3}),
        ({"max_duration": 1}, {"kind": "none"}),
    ]


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"max_attempts": 0}, InvalidOption, "max_attempts must be >= 1"),
    ({"max_attempts": 1.5}, InvalidOption, "integer"),
    ({"max_attempts": True}, InvalidOption, "integer"),
    ({"retry_strategy": "fixed"}, InvalidOption, "retry_strategy"),
    ({"retry_strategy": {"kind": "sometimes"}}, InvalidRetryStrategy, "kind"),
    ({"retry_strategy": {"kind": "fixed", "base": 1}}, InvalidOption, "unknown keys"),
    ({"retry_strategy": {"kind": "fixed", "base_seconds": -1}}, InvalidRetryStrategy, "base_seconds"),
    ({"cancellation": {"max_delay": -1}}, InvalidOption, "max_delay"),
    ({"cancellation": {"max_delay": "1"}}, InvalidOption, "max_delay"),
    ({"cancellation": {"max_wait": 1}}, InvalidOption, "max_wait"),
    ({"idempotency_key": 7}, InvalidOption, "idempotency_key"),
    ({"priority": 1001}, InvalidOption, "priority"),
    ({"priority": "high"}, InvalidOption, "priority"),
    ({"delay": -1}, InvalidOption, "delay"),
    ({"delay": float("nan")}, InvalidOption, "delay"),
    ({"start_at": dt.datetime(2099, 1, 1)}, InvalidOption, "time zone"),
    ({"start_at": dt.datetime(2099, 1, 1, tzinfo=dt.UTC), "delay": 1}, InvalidOption, "exclude each other"),
    ({"headers": {"a": float("inf")}}, NotSerializable, "headers"),
    ({"queue": "other"}, ConfigError, "is registered for queue"),
]


async def test_a_bad_option_is_refused_and_nothing_is_stored(app: AsyncAbsurd, rows: Rows) -> None:
    app.register_task("strict")(nothing)
    for options, error, text in REFUSED:
        with pytest.raises(error, match=text):
            await app.spawn("strict", {}, **options)
    assert rows("select from absurd.tasks") == []


async def test_an_unregistered_task_needs_a_queue(app: AsyncAbsurd, rows: Rows) -> None:
    with pytest.raises(ValueError, match=r'Task "who" is not registered\. Provide queue when spawning unregistered'):
        await app.spawn("who", {})
    await app.spawn("who", {}, queue="main")
    assert rows("select task_name from absurd.tasks") == ["who"]


async def test_a_task_goes_to_the_queue_it_is_registered_for(app: AsyncAbsurd, rows: Rows) -> None:
    await app.create_queue("other")
    app.register_task("elsewhere", queue="other")(nothing)
    await app.spawn("elsewhere", {})
    await app.spawn("elsewhere", {}, queue="other")
    with pytest.raises(ValueError, match='is registered for queue "other"'):
        await app.spawn("elsewhere", {}, queue="main")
    assert rows(
        "select queue_name, count(*)::int from absurd.tasks join absurd.queues using (queue_id) group by 1"
    ) == [("other", 2)]


async def test_a_missing_queue_names_the_command_that_makes_it(app: AsyncAbsurd) -> None:
    with pytest.raises(QueueNotFound, match=r"absurdctl create-queue .nowhere"):
        await app.spawn("any", {}, queue="nowhere")


async def test_a_task_without_a_name_is_refused(app: AsyncAbsurd) -> None:
    for name in ("", "  ", None, 7):
        with pytest.raises(InvalidOption, match="task_name must be provided"):
            await app.spawn(name, {}, queue="main")  # type: ignore[arg-type]


async def test_a_wrong_field_is_refused_at_spawn_by_name(app: AsyncAbsurd, rows: Rows) -> None:
    app.register_task("typed", params=Order)(nothing)
    with pytest.raises(ValidationFailed, match=r'params of task "typed" does not match Order: order_id: '):
        await app.spawn("typed", {"order_id": "seven"})
    with pytest.raises(ValidationFailed, match="order_id: Field required"):
        await app.spawn("typed", {})
    assert rows("select from absurd.tasks") == []
    await app.spawn("typed", {"order_id": 7})
    await app.spawn("typed", Order(order_id=8))
    assert rows("select params from absurd.tasks order by task_id") == [
        {"order_id": 7, "note": ""},
        {"order_id": 8, "note": ""},
    ]


async def test_sixteen_megabytes_are_refused_and_one_is_warned_about_once(
    app: AsyncAbsurd, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "_warned", set())
    with pytest.raises(ValueTooLarge, match=r"params is 16\.0 MiB of JSON; at most 16 MiB"):
        await app.spawn("big", "x" * (16 * 2**20), queue="main")
    with pytest.raises(ValueTooLarge, match="payload"):
        await app.emit_event("big", "x" * (16 * 2**20))
    with caplog.at_level(logging.WARNING, "absurd"):
        await app.spawn("large", "x" * 2**20, queue="main")
        await app.spawn("large", "x" * 2**20, queue="main")
    assert [record.getMessage() for record in caplog.records if "MiB" in record.getMessage()] == [
        "The params is 1.0 MiB of JSON, sent and stored whole each time; consider storing a reference."
    ]


async def test_w16_an_idempotency_key_gives_the_first_task_again_and_tells_a_different_request(
    app: AsyncAbsurd,
) -> None:
    first = await app.spawn("pay", {"order": 1, "by": "card"}, queue="main", idempotency_key="k")
    again = await app.spawn("pay", {"by": "card", "order": 1.0e0}, queue="main", idempotency_key="k")
    other = await app.spawn("pay", {"order": 2}, queue="main", idempotency_key="k")
    renamed = await app.spawn("refund", {"order": 1, "by": "card"}, queue="main", idempotency_key="k")
    assert (first["created"], first["same_request"]) == (True, True)
    assert {one["task_id"] for one in (first, again, other, renamed)} == {first["task_id"]}
    assert not any(one["created"] for one in (again, other, renamed))
    assert not other["same_request"]
    assert not renamed["same_request"]


async def test_equal_requests_in_another_key_order_are_the_same_request(app: AsyncAbsurd) -> None:
    await app.spawn("pay", {"order": 1, "by": {"a": 1, "bb": 2}}, queue="main", idempotency_key="k")
    again = await app.spawn("pay", {"by": {"bb": 2, "a": 1}, "order": 1}, queue="main", idempotency_key="k")
    assert (again["created"], again["same_request"]) == (False, True)


def _lose_the_reply(monkeypatch: pytest.MonkeyPatch, times: int) -> list[Any]:
    """The next `times` calls are executed and committed, but their connection breaks before the answer."""
    real = session_module.execute
    sent: list[Any] = []

    async def lossy(conn: Any, call: Any, **options: Any) -> Any:
        answer = await real(conn, call, **options)
        sent.append(call)
        if len(sent) <= times:
            await conn.close()
            raise psycopg.OperationalError("the connection is lost")
        return answer

    monkeypatch.setattr(session_module, "execute", lossy)
    return sent


async def test_a_spawn_whose_reply_is_lost_is_repeated_without_a_double(
    app: AsyncAbsurd, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = _lose_the_reply(monkeypatch, 1)
    spawned = await app.spawn("once", {"a": 1}, queue="main")
    assert len(sent) == 3  # lost; repeated: the id is taken; asked by whom
    assert rows("select task_id from absurd.tasks") == [spawned["task_id"]]


async def test_a_chunk_whose_reply_is_lost_is_repeated_without_a_double(
    app: AsyncAbsurd, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    _lose_the_reply(monkeypatch, 1)
    spawned = await app.spawn_many([{"task_name": "once", "params": n, "queue": "main"} for n in range(20)])
    assert rows("select task_id from absurd.tasks order by params::int") == [one["task_id"] for one in spawned]


async def test_a_retry_as_a_copy_whose_reply_is_lost_makes_one_copy(
    app: AsyncAbsurd, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawned = await app.spawn("fails", {}, queue="main", max_attempts=1)
    (claimed,) = await app.claim_tasks()
    rows("select absurd.fail_run('main', %s, '{}')::text", claimed["run_id"])
    _lose_the_reply(monkeypatch, 1)
    copy = await app.retry_task(spawned["task_id"], spawn_new=True)
    assert sorted(rows("select task_id from absurd.tasks")) == sorted([spawned["task_id"], copy["task_id"]])


async def test_spawn_many_takes_any_iterable_and_keeps_the_order(app: AsyncAbsurd, rows: Rows) -> None:
    await app.create_queue("other")
    app.register_task("a", default_max_attempts=2)(nothing)
    app.register_task("b", queue="other")(nothing)

    def requests() -> Any:
        for n in range(30):
            yield {"task_name": "ab"[n % 2], "params": {"n": n}, "priority": n % 3}

    spawned = await app.spawn_many(requests())
    found = dict(rows("select task_id, params from absurd.tasks"))
    assert [found[one["task_id"]]["n"] for one in spawned] == list(range(30))
    assert all(one["created"] for one in spawned)
    assert rows("select task_name, queue_name, max_attempts, count(*)::int from absurd.tasks"
                " join absurd.queues using (queue_id) group by 1, 2, 3 order by 1") == [
        ("a", "main", 2, 15),
        ("b", "other", 5, 15),
    ]  # fmt: skip


# [async-only
async def test_spawn_many_takes_async_iterables(app: AsyncAbsurd) -> None:
    async def requests() -> Any:
        for n in range(3):
            yield {"task_name": "a", "params": n, "queue": "main"}

    assert len(await app.spawn_many(requests())) == 3


async def test_emit_many_takes_async_iterables(app: AsyncAbsurd) -> None:
    async def events() -> Any:
        yield "one", 1
        yield "two", 2

    assert await app.emit_many(events()) == [True, True]


# ]


async def test_spawn_many_sends_chunks_and_tells_how_far_it_is(
    app: AsyncAbsurd, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_module, "CHUNK_ROWS", 4)
    told: list[int] = []
    await app.spawn_many(({"task_name": "a", "params": n, "queue": "main"} for n in range(10)), on_progress=told.append)
    assert told == [4, 8, 10]
    assert rows("select count(*)::int, count(distinct xmin::text)::int from absurd.tasks") == [(10, 3)]
    assert await app.spawn_many([], on_progress=told.append) == []
    assert told == [4, 8, 10]


async def test_a_bad_request_in_a_chunk_spawns_none_of_it(app: AsyncAbsurd, rows: Rows) -> None:
    requests: list[Any] = [{"task_name": "a", "params": n, "queue": "main"} for n in range(3)]
    with pytest.raises(InvalidOption, match="priority"):
        await app.spawn_many([*requests, {"task_name": "a", "queue": "main", "priority": 5000}])
    with pytest.raises(InvalidRetryStrategy, match="kind"):
        await app.spawn_many([*requests, {"task_name": "a", "queue": "main", "retry_strategy": {"kind": "no"}}])
    assert rows("select from absurd.tasks") == []


async def test_what_is_no_request_or_has_an_unknown_option_is_refused(app: AsyncAbsurd, rows: Rows) -> None:
    wrong: list[Any] = ["a", ("a", {}), {"task_name": "a", "queue": "main", "prio": 3}]
    for request in wrong:
        with pytest.raises(InvalidOption, match=r"a request is a mapping|unknown spawn options"):
            await app.spawn_many([request])
    assert rows("select from absurd.tasks") == []


async def test_concurrent_spawns_are_answered_each_for_itself(app: AsyncAbsurd, rows: Rows) -> None:
    async def spawn(number: int) -> Any:
        strategy: Any = {"kind": "no"} if number == 7 else None
        try:
            return (await app.spawn("a", number, queue="main", retry_strategy=strategy))["task_id"]
        except InvalidRetryStrategy as error:
            return error

    answers = await _compat.together(*(functools.partial(spawn, number) for number in range(20)))

    assert isinstance(answers.pop(7), InvalidRetryStrategy)
    stored = {row[0]: row[1] for row in rows("select params::int, task_id from absurd.tasks")}
    assert [stored[number] for number in range(20) if number != 7] == answers


async def test_equal_keys_in_one_call_make_one_task(app: AsyncAbsurd, rows: Rows) -> None:
    first, second = await app.spawn_many(
        [{"task_name": "a", "params": n, "queue": "main", "idempotency_key": "k"} for n in (1, 2)]
    )
    assert first["task_id"] == second["task_id"]
    assert (first["created"], second["created"], second["same_request"]) == (True, False, False)
    assert len(rows("select from absurd.tasks")) == 1
