"""A batch of writes becomes few commits in a fixed order, and every row gets its own answer back."""

from __future__ import annotations

import datetime as dt
import random
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from absurd._async.session import adapt
from absurd._db import batch, procedures
from absurd._db.batch import (
    Answer,
    AwaitEvent,
    AwaitTask,
    Checkpoint,
    Complete,
    Emit,
    Extend,
    Fail,
    Sleep,
    Write,
    statements,
)
from absurd._db.procedures import Claim
from tests.fixtures.postgres import Connection

RUN = uuid.UUID("01900000-0000-7000-8000-000000010001")
KINDS: dict[type[Write], dict[str, Any]] = {
    Emit: {"event_name": "e", "payload": "1"},
    AwaitEvent: {"step": "s", "event_name": "e"},
    AwaitTask: {"step": "s", "awaited_queue_id": 1, "awaited_task_id": RUN},
    Extend: {"seconds": 1.0},
    Checkpoint: {"name": "s", "state": "1"},
    Sleep: {"delay": 1.0},
    Fail: {"reason": "{}"},
    Complete: {"result": "1"},
}
EMITS = ("try_emit_events",)
WAITS = ("await_events", "await_tasks")
SETTLES = ("extend_claims", "set_checkpoints", "schedule_runs", "fail_runs", "complete_runs")


def _row(kind: type[Write], queue_id: int = 1, **more: Any) -> Write:
    return kind(queue_id, RUN.bytes, 1, **{**KINDS[kind], **more})


def _verbs(found: list[batch.Statement]) -> list[list[str]]:
    known = (*EMITS, *WAITS, *SETTLES)
    return [
        sorted((verb for verb in known if f".{verb}(" in one.sql), key=lambda verb: one.sql.index(f".{verb}("))
        for one in found
    ]


def test_nothing_to_write_is_no_commit() -> None:
    assert statements([]) == []


def test_emits_come_first_then_waits_then_everything_else_in_one_statement() -> None:
    rows = [_row(kind) for kind in KINDS]
    random.Random(7).shuffle(rows)
    assert _verbs(statements(rows)) == [["try_emit_events"], ["await_events"], ["await_tasks"], list(SETTLES)]


def test_each_queue_and_each_emit_mode_has_a_call_of_its_own() -> None:
    rows = [_row(Emit), _row(Emit, 2), _row(Emit, mode="next"), _row(Emit), _row(Complete), _row(Complete, 2)]
    found = statements(rows)
    assert _verbs(found) == [["try_emit_events"]] * 3 + [["complete_runs"]]
    assert [one.params[0] for one in found[:3]] == [1, 2, 1]
    assert found[3].sql.count("complete_runs") == 2


def test_every_kind_of_row_that_there_is_becomes_a_statement() -> None:
    assert set(Write.__subclasses__()) == set(KINDS)
    for kind in KINDS:
        (found,) = statements([_row(kind)])
        assert found.sql.count("%") == len(found.params)


@given(
    st.lists(
        st.tuples(st.sampled_from(list(KINDS)), st.integers(1, 3), st.sampled_from(["latch", "next"])), max_size=40
    )
)
def test_every_row_is_sent_once_and_rows_of_one_verb_and_queue_keep_their_order(chosen: list[Any]) -> None:
    rows = [_row(kind, queue, **({"mode": mode} if kind is Emit else {})) for kind, queue, mode in chosen]
    found = statements(rows)
    sent = [row for one in found for row in one.rows]
    assert sorted(map(id, sent)) == sorted(map(id, rows))
    place = {id(row): number for number, row in enumerate(rows)}
    for kind in KINDS:
        for queue in (1, 2, 3):
            for mode in ("latch", "next"):
                alike = [
                    place[id(row)]
                    for row in sent
                    if type(row) is kind and row.queue_id == queue and getattr(row, "mode", "latch") == mode
                ]
                assert alike == sorted(alike)


@pytest.mark.parametrize(
    ("kind", "value"), [(Emit, "payload"), (Checkpoint, "state"), (Fail, "reason"), (Complete, "result")]
)
def test_a_row_is_as_long_as_the_value_it_carries(kind: type[Write], value: str) -> None:
    assert batch.text_length(_row(kind, **{value: "x" * 1000})) == 1000


def test_a_row_without_a_value_has_no_length() -> None:
    assert {batch.text_length(_row(kind)) for kind in (AwaitEvent, AwaitTask, Sleep)} == {0}


def test_answers_go_back_to_their_rows() -> None:
    checkpoints = [_row(Checkpoint), _row(Checkpoint)]
    ends = [_row(Complete, 2)]
    waits = [_row(AwaitEvent), _row(AwaitEvent)]
    settled, waited = statements([*ends, *checkpoints])[0], statements(waits)[0]
    assert settled.read([("ob", "l")]) == [
        (checkpoints[0], Answer("o")),
        (checkpoints[1], Answer("b")),
        (ends[0], Answer("l")),
    ]
    assert waited.read([("s", None), ("a", {"x": 1})]) == [(waits[0], Answer("s")), (waits[1], Answer("a", {"x": 1}))]


def test_an_answer_of_another_length_is_an_error_and_never_shifts() -> None:
    for rows, answer in (
        ([_row(Complete), _row(Complete)], [("o",)]),
        ([_row(Emit)], [("oo",)]),
        ([_row(AwaitEvent)], []),
    ):
        with pytest.raises(ValueError, match="zip"):
            statements(rows)[0].read(answer)


# -- against the server --------------------------------------------------------------------------------------------------


def _claims(conn: Connection, queue: str, count: int) -> list[Claim]:
    adapt(conn)
    conn.execute("select absurd.create_queue(%s)", (queue,))
    for number in range(count):
        conn.execute("select absurd.spawn_task(%s, 'a', %s::jsonb)", (queue, str(number)))
    found = conn.execute("select absurd.queue_id_of(%s)", (queue,)).fetchone()
    assert found is not None
    call = procedures.claim_tasks(found[0], queue, "w", 60, count, None, 1, False)
    return call.read(conn.execute(call.sql, call.params).fetchall()).claims


def _send(conn: Connection, rows: list[Write]) -> list[Answer]:
    answers: dict[int, Answer] = {}
    for one in statements(rows):
        for row, answer in one.read(conn.execute(one.sql, one.params).fetchall()):
            answers[id(row)] = answer
    return [answers[id(row)] for row in rows]


def _fence(claim: Claim, claim_no: int | None = None) -> tuple[int, bytes, int]:
    return claim.queue_id, claim.run_id.bytes, claim.claim_no if claim_no is None else claim_no


def test_every_kind_of_row_arrives_as_it_was_meant(conn: Connection) -> None:
    one, two, three, four, five, six = _claims(conn, "main", 6)
    (other,) = _claims(conn, "other", 1)
    wake = dt.datetime(2099, 1, 2, 3, 4, 5, 678901, dt.UTC)
    rows: list[Write] = [
        Complete(*_fence(one), '{"done": "ü"}'),
        Checkpoint(*_fence(one), "step", "null"),
        Sleep(*_fence(two), step="nap", wake_at=wake),
        Fail(*_fence(three), '{"message": "broken"}', True),
        AwaitEvent(*_fence(four), "wait", "later", 0.25),
        AwaitEvent(*_fence(five), "wait", "now"),
        AwaitTask(*_fence(six), "child", other.queue_id, other.task_id),
        Complete(*_fence(other), "[1, 2]"),
        Emit(*_fence(two), "now", '{"n": 1}'),
        Emit(*_fence(two), "now", '{"n": 2}'),
    ]
    answers = _send(conn, rows)
    assert [answer.letter for answer in answers] == ["o", "o", "o", "o", "s", "a", "s", "o", "o", "x"]
    assert answers[5].payload == {"n": 1}
    results = dict(conn.execute("select task_id, coalesce(result, failure) from absurd.attempts").fetchall())
    assert results == {one.task_id: {"done": "ü"}, three.task_id: {"message": "broken"}, other.task_id: [1, 2]}
    due = dict(conn.execute("select task_id, due_at from absurd.live where state = 's'").fetchall())
    assert due[two.task_id] == wake
    kept = conn.execute(
        "select name, state::text from absurd.checkpoints where task_id = %s", (one.task_id,)
    ).fetchall()
    assert kept == [("step", "null")]
    assert conn.execute("select * from absurd.check_invariants()").fetchall() == []


def test_a_row_of_a_claim_that_is_over_spoils_no_neighbour(conn: Connection) -> None:
    one, two, three = _claims(conn, "main", 3)
    conn.execute("select absurd.cancel_task('main', %s)", (two.task_id,))
    stale = _fence(one, one.claim_no + 7)
    unknown = (one.queue_id, uuid.uuid4().bytes, 1)
    rows: list[Write] = [
        Complete(*stale, "1"),
        Complete(*_fence(two), "2"),
        Complete(*unknown, "3"),
        Complete(*_fence(three), "4"),
        Checkpoint(*stale, "s", "1"),
        AwaitEvent(*stale, "w", "e"),
        AwaitEvent(*_fence(two), "w", "e"),
    ]
    assert [answer.letter for answer in _send(conn, rows)] == ["l", "c", "m", "o", "l", "l", "c"]
    assert conn.execute("select task_id, result from absurd.attempts where state = 'c'").fetchall() == [
        (three.task_id, 4)
    ]
    assert conn.execute("select from absurd.checkpoints").fetchall() == []


def test_a_batch_that_is_sent_again_changes_nothing(conn: Connection) -> None:
    one, two, three = _claims(conn, "main", 3)
    rows: list[Write] = [
        Checkpoint(*_fence(one), "s", "1"),
        Complete(*_fence(one), "1"),
        Sleep(*_fence(two), step="nap", delay=3600.0),
        AwaitEvent(*_fence(three), "w", "e"),
    ]
    assert [answer.letter for answer in _send(conn, rows)] == ["o", "o", "o", "s"]
    question = """select (select jsonb_agg(l) from absurd.live l), (select jsonb_agg(a) from absurd.attempts a),
                         (select jsonb_agg(c) from absurd.checkpoints c), (select jsonb_agg(w) from absurd.waits w)"""
    before = conn.execute(question).fetchone()
    assert [answer.letter for answer in _send(conn, rows)] == ["r", "r", "r", "r"]
    assert conn.execute(question).fetchone() == before
