"""Spawn: requests, options, idempotency, ids minted by clients (contract, section 5)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.fixtures.gates import Gate
from tests.fixtures.postgres import Connect
from tests.sql.driver import INFINITY, NOON, Queue, after, minted, refused, run_of


def test_a_spawned_task_and_its_run_are_pending_and_due_now(noon: Queue) -> None:
    spawned = noon.spawn("greet", {"to": [1, "ü", None]}, headers={"trace": "x"})
    task_id = spawned["task_id"]

    assert spawned == {"task_id": task_id, "run_id": run_of(task_id, 1), "attempt": 1, "created": True}
    assert noon.task(task_id) == {
        "task_id": task_id,
        "task_name": "greet",
        "params": {"to": [1, "ü", None]},
        "headers": {"trace": "x"},
        "retry_strategy": None,
        "max_attempts": None,
        "cancellation": None,
        "enqueue_at": NOON,
        "first_started_at": None,
        "state": "pending",
        "attempts": 1,
        "last_attempt_run": run_of(task_id, 1),
        "completed_payload": None,
        "cancelled_at": None,
        "idempotency_key": None,
    }
    assert noon.run(spawned["run_id"]) == {
        "run_id": run_of(task_id, 1),
        "task_id": task_id,
        "attempt": 1,
        "state": "pending",
        "claimed_by": None,
        "claim_expires_at": None,
        "available_at": NOON,
        "wake_event": None,
        "event_payload": None,
        "started_at": None,
        "completed_at": None,
        "failed_at": None,
        "result": None,
        "failure_reason": None,
        "created_at": NOON,
    }


@pytest.mark.parametrize("name", [None, "", "  "])
def test_a_task_needs_a_name(q: Queue, name: str | None) -> None:
    with refused("P0001", "task_name must be provided"):
        q.call("spawn_task", name, Jsonb({}))
    assert q.view("t") == []


def test_sql_null_params_are_stored_as_json_null(q: Queue) -> None:
    spawned = q.call("spawn_task", "work", None)[0]
    assert q.rows("select params::text from absurd.t_q") == [{"params": "null"}]
    assert q.claim()[0]["task_id"] == spawned["task_id"]


@pytest.mark.parametrize("options", [None, {}])
def test_options_may_be_null_or_left_out(q: Queue, options: Any) -> None:
    assert q.call("spawn_task", "work", Jsonb(1), options)[0]["created"]
    assert q.call("spawn_task", "work", Jsonb(1))[0]["created"]


def test_unknown_options_are_ignored(q: Queue) -> None:
    assert q.spawn(colour="red")["created"]


def test_json_nulls_of_options_are_no_options(q: Queue) -> None:
    spawned = q.spawn(
        headers=None, retry_strategy=None, max_attempts=None, cancellation=None, idempotency_key=None, priority=None,
        start_at=None, delay_seconds=None, task_id=None, fingerprint=None, default_max_attempts=None,
    )  # fmt: skip
    null = q.rows("select headers is null and retry_strategy is null and cancellation is null as all from absurd.t_q")
    assert spawned["created"]
    assert null == [{"all": True}]


@pytest.mark.parametrize(
    ("options", "sqlstate", "text"),
    [
        ({"max_attempts": 0}, "P0001", "max_attempts must be >= 1"),
        ({"max_attempts": -3}, "P0001", "max_attempts must be >= 1"),
        ({"default_max_attempts": 0}, "P0001", "max_attempts must be >= 1"),
        ({"max_attempts": "many"}, "AB004", 'spawn option "max_attempts" holds no usable value: "many"'),
        ({"max_attempts": 3000000000}, "AB004", 'spawn option "max_attempts"'),
        (
            {"default_max_attempts": "many"},
            "AB004",
            'spawn option "default_max_attempts" holds no usable value: "many"',
        ),
        ({"retry_strategy": []}, "AB003", "retry_strategy must be a JSON object, not array"),
        ({"retry_strategy": {"kind": "linear"}}, "AB003", 'retry_strategy kind "linear" is unknown'),
        ({"retry_strategy": {"kind": "fixed", "base_seconds": -1}}, "AB003", "base_seconds must be between"),
        ({"cancellation": 5}, "AB004", "cancellation must be a JSON object, not number"),
        ({"cancellation": {"max_delay": "soon"}}, "AB004", 'spawn option "cancellation" holds no usable value'),
        ({"cancellation": {"max_delay": -1}}, "AB004", "must be seconds >= 0"),
        ({"cancellation": {"max_duration": -0.5}}, "AB004", "must be seconds >= 0"),
        ({"cancellation": {"max_duration": "NaN"}}, "AB004", "must be seconds >= 0"),
        ({"cancellation": {"max_delay": [1]}}, "AB004", 'spawn option "cancellation" holds no usable value'),
        ({"priority": 1001}, "AB004", "priority must be between -1000 and 1000, not 1001"),
        ({"priority": -1001}, "AB004", "priority must be between -1000 and 1000, not -1001"),
        ({"priority": "high"}, "AB004", 'spawn option "priority" holds no usable value: "high"'),
        ({"start_at": "teatime"}, "AB004", 'spawn option "start_at" holds no usable value: "teatime"'),
        ({"start_at": "2026-02-31"}, "AB004", 'spawn option "start_at" holds no usable value: "2026-02-31"'),
        ({"delay_seconds": -1}, "AB004", "delay_seconds must be a number >= 0"),
        ({"delay_seconds": "NaN"}, "AB004", "delay_seconds must be a number >= 0"),
        ({"delay_seconds": {}}, "AB004", 'spawn option "delay_seconds" holds no usable value'),
        ({"delay_seconds": 1, "start_at": "2030-01-01"}, "AB004", "start_at and delay_seconds exclude each other"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_with_nothing_stored(
    own_queue: Queue, options: dict[str, Any], sqlstate: str, text: str
) -> None:
    q = own_queue
    with refused(sqlstate, text):
        q.spawn(idempotency_key="k", **options)
    assert q.view("t") == q.view("r") == []
    assert q.spawn(idempotency_key="k")["created"]


@pytest.mark.parametrize("options", [[], "text", 1])
def test_options_that_are_no_object_are_refused(q: Queue, options: Any) -> None:
    with refused("AB004", "spawn options must be a JSON object"):
        q.call("spawn_task", "work", Jsonb({}), Jsonb(options))


# ---------------------------------------------------------------- start and priority


@pytest.mark.parametrize(
    ("options", "due"),
    [
        ({"delay_seconds": 0.25}, after(0.25)),
        ({"delay_seconds": 0}, NOON),
        ({"delay_seconds": 1e15}, INFINITY),
        ({"start_at": "2026-03-02T12:00:01.000001+00:00"}, datetime(2026, 3, 2, 12, 0, 1, 1, UTC)),
        ({"start_at": "2020-01-01T00:00:00Z"}, NOON),
        ({"start_at": "infinity"}, INFINITY),
    ],
)
def test_a_task_starts_when_it_was_asked_to(noon: Queue, clock, options: dict[str, Any], due: Any) -> None:
    spawned = noon.spawn(**options)
    assert noon.run(spawned["run_id"])["available_at"] == due
    assert noon.task(spawned["task_id"])["enqueue_at"] == NOON
    if due == INFINITY:
        clock.set(noon.conn, after(1e9))
        assert noon.claim() == []
        noon.cancel(spawned["task_id"])
        return
    clock.set(noon.conn, due)
    assert [r["task_id"] for r in noon.claim()] == [spawned["task_id"]]


def test_a_delayed_task_cannot_be_claimed_a_microsecond_early(noon: Queue, clock) -> None:
    noon.spawn(delay_seconds=1)
    clock.set(noon.conn, after(0.999999))
    assert noon.claim() == []


def test_higher_priority_is_claimed_first_and_older_first_within_it(noon: Queue, clock) -> None:
    spawned = {}
    for i, priority in enumerate([0, 5, -1000, 5, 1000, 0]):
        clock.set(noon.conn, after(i))
        spawned[i] = noon.spawn(priority=priority)["task_id"]
    claimed = [noon.claim()[0]["task_id"] for _ in spawned]
    assert claimed == [spawned[i] for i in (4, 1, 3, 0, 5, 2)]


def test_priority_never_puts_a_task_before_its_time(noon: Queue) -> None:
    noon.spawn(priority=1000, delay_seconds=60)
    now = noon.spawn(priority=-1000)
    assert [r["task_id"] for r in noon.claim(qty=5)] == [now["task_id"]]


def test_a_retry_keeps_the_priority_of_its_task(q: Queue) -> None:
    run = q.start(priority=7, max_attempts=1)
    q.fail(run["run_id"])
    q.spawn()
    again = q.retry(run["task_id"])
    assert q.claim()[0]["run_id"] == again["run_id"]


# ---------------------------------------------------------------- max_attempts


@pytest.mark.parametrize(
    ("queue_default", "options", "limit"),
    [
        (None, {}, None),
        (None, {"max_attempts": 3}, 3),
        (None, {"default_max_attempts": 4}, 4),
        (None, {"max_attempts": 3, "default_max_attempts": 4}, 3),
        (None, {"max_attempts": None, "default_max_attempts": 4}, None),
        (6, {}, 6),
        (6, {"default_max_attempts": 4}, 6),
        (6, {"max_attempts": 3}, 3),
        (6, {"max_attempts": None}, None),
        (6, {"max_attempts": "3"}, 3),
    ],
)
def test_the_limit_is_the_calls_then_the_queues_then_the_callers_default(
    own_queue: Queue, queue_default: int | None, options: dict[str, Any], limit: int | None
) -> None:
    q = own_queue
    q.policy(default_max_attempts=queue_default)
    assert q.task(q.spawn(**options)["task_id"])["max_attempts"] == limit


# ---------------------------------------------------------------- idempotency keys


def test_a_key_in_use_answers_with_its_task_whatever_its_state_name_or_params(q: Queue) -> None:
    first = q.spawn("work", {"n": 1}, idempotency_key="k", max_attempts=2)
    same = {"task_id": first["task_id"], "run_id": first["run_id"], "attempt": 1, "created": False}

    assert q.spawn("other", {"n": 2}, idempotency_key="k") == same
    (run,) = q.claim()
    assert q.spawn(idempotency_key="k") == same
    q.fail(run["run_id"])
    second = same | {"run_id": run_of(first["task_id"], 2), "attempt": 2}
    assert q.spawn(idempotency_key="k") == second
    q.complete(q.claim()[0]["run_id"])
    assert q.spawn(idempotency_key="k") == second
    assert [(t["task_name"], t["params"]) for t in q.view("t")] == [("work", {"n": 1})]
    assert q.task(first["task_id"])["idempotency_key"] == "k"


def test_keys_are_per_queue(q: Queue) -> None:
    assert q.spawn(idempotency_key="k")["created"]
    assert q.named("other").spawn(idempotency_key="k")["created"]


def test_an_empty_key_is_a_key(q: Queue) -> None:
    assert [q.spawn(idempotency_key="")["created"] for _ in range(2)] == [True, False]


def test_two_spawns_of_one_key_at_once_make_one_task(q: Queue, connect: Connect, gate: Gate) -> None:
    first = q.on(connect(autocommit=False))
    won = first.spawn(idempotency_key="k")
    second = gate(lambda c: q.on(c).spawn(idempotency_key="k")).wait_until_blocked()
    first.conn.commit()

    assert second.result() == won | {"created": False}
    assert len(q.view("t")) == 1


def test_a_spawn_whose_rival_rolled_back_makes_the_task(q: Queue, connect: Connect, gate: Gate) -> None:
    first = q.on(connect(autocommit=False))
    lost = first.spawn(idempotency_key="k")
    second = gate(lambda c: q.on(c).spawn(idempotency_key="k")).wait_until_blocked()
    first.conn.rollback()

    made = second.result()
    assert made["created"]
    assert [t["task_id"] for t in q.view("t")] == [made["task_id"]] != [lost["task_id"]]


def test_under_repeatable_read_the_loser_of_a_key_gets_40001(q: Queue, connect: Connect, gate: Gate) -> None:
    second = q.on(connect(autocommit=False))
    second.conn.execute("set transaction isolation level repeatable read")
    second.value("select 1 from absurd.queues")
    first = q.on(connect(autocommit=False))
    first.spawn(idempotency_key="k")
    blocked = gate(lambda c: q.on(c).spawn(idempotency_key="k"), second.conn).wait_until_blocked()
    first.conn.commit()
    with refused("40001"):
        blocked.result()
    second.conn.rollback()

    second.conn.execute("set transaction isolation level repeatable read")
    second.value("select 1 from absurd.queues")
    q.spawn(idempotency_key="later")
    with refused("40001"):
        second.spawn(idempotency_key="later")
    second.conn.rollback()
    assert len(q.view("t")) == 2


def test_a_key_whose_task_is_cleaned_up_meanwhile_raises_40001(q: Queue, connect: Connect, clock, gate: Gate) -> None:
    run = q.start(idempotency_key="k")
    q.complete(run["run_id"])
    cleaner = q.on(connect(autocommit=False))
    clock.advance(cleaner.conn, 10)
    # the task is gone, its key about to go: the interleaving inside delete_tasks, held open
    cleaner.conn.execute("select 1 from absurd.idempotency_keys for update")
    cleaner.conn.execute("delete from absurd.attempts; delete from absurd.tasks")
    cleaner.conn.commit()
    with refused("40001", 'idempotency key "k"'):
        q.spawn(idempotency_key="k")
    q.conn.execute("delete from absurd.idempotency_keys")
    assert q.spawn(idempotency_key="k")["created"]


def test_equal_keys_within_one_batch_make_one_task(q: Queue) -> None:
    rows = q.spawns(["a", "b", "a", "c"], keys=["k", "k", None, "k"], fingerprints=["f", "f", None, "g"])
    assert [r["created"] for r in rows] == [True, False, True, False]
    assert [r["same_request"] for r in rows] == [True, False, True, False]
    assert rows[1]["task_id"] == rows[3]["task_id"] == rows[0]["task_id"] != rows[2]["task_id"]
    assert sorted(t["task_name"] for t in q.view("t")) == ["a", "a"]


def test_a_key_that_hides_another_request_says_so(q: Queue) -> None:
    q.spawns(["work"], keys=["k"], fingerprints=["f"])
    rows = q.spawns(["work"] * 3 + ["other"], keys=["k"] * 4, fingerprints=["f", "g", None, "f"])
    assert [r["created"] for r in rows] == [False] * 4
    assert [r["same_request"] for r in rows] == [True, False, True, False]


# ---------------------------------------------------------------- ids minted by clients


def test_a_spawn_repeated_with_its_id_makes_one_task(q: Queue) -> None:
    mine = minted()
    first = q.spawn(task_id=str(mine), fingerprint="f")
    assert first == {"task_id": mine, "run_id": run_of(mine, 1), "attempt": 1, "created": True}
    assert q.spawn(task_id=str(mine), fingerprint="f") == first | {"created": False}

    q.complete(q.claim()[0]["run_id"])
    assert q.spawn(task_id=str(mine), fingerprint="f") == first | {"created": False}


@pytest.mark.parametrize(
    ("name", "fingerprint"), [("other", "f"), ("work", "g")], ids=["another name", "another fingerprint"]
)
def test_an_id_that_belongs_to_another_request_is_refused(q: Queue, name: str, fingerprint: str) -> None:
    mine = minted()
    q.spawn(task_id=str(mine), fingerprint="f")
    with refused("AB005", f'task id "{mine}" belongs to another request'):
        q.spawn(name, task_id=str(mine), fingerprint=fingerprint)
    with refused("AB005", f'task id "{mine}" belongs to another request'):
        q.spawns(["fresh", name], task_ids=[minted(), mine], fingerprints=["h", fingerprint])
    assert [t["task_name"] for t in q.view("t")] == ["work"]


def test_two_spawns_with_one_id_at_once_make_one_task(q: Queue, connect: Connect, gate: Gate) -> None:
    mine = str(minted())
    first = q.on(connect(autocommit=False))
    made = first.spawn(task_id=mine)
    second = gate(lambda c: q.on(c).spawn(task_id=mine)).wait_until_blocked()
    first.conn.commit()
    assert second.result() == made | {"created": False}


def test_a_key_repeated_with_its_id_answers_with_its_task(q: Queue) -> None:
    mine = minted()
    first = q.spawn(task_id=str(mine), idempotency_key="k")
    assert q.spawn(task_id=str(mine), idempotency_key="k") == first | {"created": False}
    assert q.spawn(task_id=str(minted()), idempotency_key="k") == first | {"created": False}


# ---------------------------------------------------------------- W1: cancellation policies


def test_a_fractional_cancellation_policy_neither_stops_the_queue_nor_is_ignored(noon: Queue, clock) -> None:
    doomed = noon.spawn(cancellation={"max_delay": 0.5})
    other = noon.spawn()
    clock.set(noon.conn, after(0.499999))
    assert noon.states(doomed["task_id"])[0] == "pending"
    clock.set(noon.conn, after(0.5))

    assert [r["task_id"] for r in noon.claim(qty=5)] == [other["task_id"]]
    assert noon.task(doomed["task_id"])["state"] == "cancelled"
    assert noon.task(doomed["task_id"])["cancelled_at"] == after(0.5)


@pytest.mark.parametrize("policy", [{}, {"max_delay": None}, {"max_delay": "2"}, {"max_delay": 1e300}, {"other": "x"}])
def test_any_policy_that_spawn_takes_the_claim_can_follow(noon: Queue, clock, policy: dict[str, Any]) -> None:
    noon.spawn(cancellation=policy)
    clock.set(noon.conn, after(1))
    assert len(noon.claim()) == 1


@pytest.mark.parametrize(
    "call",
    [
        "'q', {id}, ' ', '1'",
        "'nowhere', {id}, 't', '1'",
        "'q', {id}, 't', '1', 0",
        "'q', gen_random_uuid(), 't', '1'",
        "'q', absurd.mint_id(now() - interval '2 days', 1, 0), 't', '1'",
        "'q', absurd.run_id_of({id}, 1), 't', '1'",
        "'q', null, 't', '1'",
        "'q', {id}, null, '1'",
    ],
)
def test_what_is_not_as_usual_is_left_to_the_long_way(q: Queue, call: str) -> None:
    written = "select count(*) from absurd.tasks, absurd.live"
    for queue in ("q", q.name):
        spawn = call.replace("'q'", f"'{queue}'").format(id="absurd.mint_id(clock_timestamp(), 1, 0)")
        assert q.value(f"select absurd.spawn_minted({spawn})") is False
    assert q.value(written) == 0


def test_an_id_that_is_taken_is_left_to_the_long_way(q: Queue) -> None:
    taken = q.value("select task_id from absurd.spawn_task(%s, 't', '1')", (q.name,))
    assert q.value("select absurd.spawn_minted(%s, %s, 't', '1')", (q.name, taken)) is False
    assert q.value("select count(*) from absurd.live") == 1


@pytest.mark.parametrize(
    ("default", "asked", "fallback", "kept"),
    [(None, None, 5, 5), (3, None, 5, 3), (3, 9, 5, 9), (None, None, None, None)],
)
def test_a_usual_spawn_keeps_the_limit_that_comes_first(
    q: Queue, default: int | None, asked: int | None, fallback: int | None, kept: int | None
) -> None:
    q.value("select absurd.set_queue_policy(%s, %s)", (q.name, Jsonb({"default_max_attempts": default})))
    call = "select absurd.spawn_minted(%s, absurd.mint_id(clock_timestamp(), 1, 0), 't', '1', %s, %s, '{\"a\": 1}')"
    assert q.value(call, (q.name, asked, fallback)) is True
    assert q.rows("select max_attempts, headers from absurd.tasks") == [{"max_attempts": kept, "headers": {"a": 1}}]


@pytest.mark.parametrize("limit", [0, -1, "many", 1.5, 5_000_000_000, [1]])
@pytest.mark.parametrize("key", ["max_attempts", "default_max_attempts"])
def test_a_bad_limit_is_refused_by_the_short_way_too(q: Queue, key: str, limit: object) -> None:
    with pytest.raises(psycopg.Error) as told:
        q.spawn(**{key: limit})
    assert told.value.sqlstate in ("AB004", "P0001")
    assert q.view("t") == []


def test_a_default_limit_that_is_not_needed_is_not_looked_at(q: Queue) -> None:
    q.spawn(max_attempts=3, default_max_attempts="many")
    assert q.view("t")[0]["max_attempts"] == 3


def test_a_limit_of_null_is_none_whatever_the_queue_says(q: Queue) -> None:
    q.policy(default_max_attempts=7)
    q.spawn(max_attempts=None)
    assert q.view("t")[0]["max_attempts"] is None


def test_a_usual_spawn_is_due_at_the_moment_it_was_made(q: Queue) -> None:
    before = q.value("select clock_timestamp()")
    spawned = q.spawn(headers={"trace": 1})
    (row,) = q.rows(
        "select t.enqueue_at, l.due_at, l.created_at, l.rank, t.headers from absurd.tasks t join absurd.live l using (task_id)"
    )
    assert before <= row["enqueue_at"] == row["due_at"] == row["created_at"] <= q.value("select clock_timestamp()")
    assert (row["rank"], row["headers"], spawned["attempt"]) == (0, {"trace": 1}, 1)
