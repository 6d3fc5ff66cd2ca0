"""The committer alone, in this process: bad rows and locked rows spoil nothing for their neighbours."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import uuid
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from absurd import telemetry
from absurd._async import _compat
from absurd._async import committer as writing
from absurd._async import link as links
from absurd._async.committer import Committer
from absurd._async.link import Link
from absurd._async.session import connect
from absurd._core.outcome import Released
from absurd._db import batch
from absurd.errors import ConnectionLost
from tests.fixtures.postgres import Connect
from tests.worker.conftest import Queue

ROWS = 6


@contextlib.asynccontextmanager
async def committing(url: str) -> AsyncIterator[Committer]:
    closed = _compat.Event()
    link = Link(url, "committer", closed)
    committer = Committer(link, lambda: None)
    running = asyncio.create_task(committer.run())
    try:
        yield committer
    finally:
        committer.close()
        await asyncio.wait_for(running, 20)
        await link.close()


class Runs:
    """Claimed runs of a queue, to write rows for."""

    def __init__(self, q: Queue, count: int) -> None:
        row = q.conn.execute("select absurd.queue_id_of(%s)", (q.name,)).fetchone()
        assert row is not None
        self.queue_id, self.tasks = int(row[0]), [q.spawn(["returns", 1]) for _ in range(count)]
        self.claims = {
            found[0]: (self.queue_id, uuid.UUID(int=found[0].int | found[1]).bytes, found[2])
            for found in q.conn.execute(
                "select task_id, attempt, claim_no from absurd.claim_tasks(%s, 'w', 600, 100)", (self.queue_id,)
            )
        }
        assert len(self.claims) == count

    def fence(self, number: int) -> tuple[int, bytes, int]:
        return self.claims[self.tasks[number]]


POISON = {
    "NUL in a name": lambda fence: batch.Checkpoint(*fence, "a\0b", "1"),
    "half a surrogate pair": lambda fence: batch.Checkpoint(*fence, "a\ud800", "1"),
    "no JSON": lambda fence: batch.Checkpoint(*fence, "a", "{"),
    "NUL in JSON": lambda fence: batch.Checkpoint(*fence, "a", '"\\u0000"'),
    "a claim number that is too large": lambda fence: batch.Checkpoint(fence[0], fence[1], 2**40, "a", "1"),
    "a wait for an event named NUL": lambda fence: batch.AwaitEvent(*fence, "a", "x\0y"),
    "a failure that is no JSON": lambda fence: batch.Fail(*fence, "{"),
    "an event without a name": lambda fence: batch.Emit(*fence, " ", "1"),
}


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("position", [0, 3, ROWS - 1])
async def test_one_bad_row_gets_its_own_error_and_its_neighbours_none(
    q: Queue, database_url: str, poison: str, position: int
) -> None:
    runs = Runs(q, ROWS)
    bad = POISON[poison](runs.fence(position))

    def row(number: int) -> batch.Write:
        if number == position:
            return bad
        if isinstance(bad, batch.AwaitEvent):
            return batch.AwaitEvent(*runs.fence(number), "s", "event")
        if isinstance(bad, batch.Emit):
            return batch.Emit(*runs.fence(number), f"event {number}", "1")
        return batch.Checkpoint(*runs.fence(number), "s", "1")

    async with committing(database_url) as committer:
        answers = await asyncio.gather(
            *(committer.write(row(number)) for number in range(ROWS)), return_exceptions=True
        )
    assert isinstance(answers[position], Exception)
    others = [answer for number, answer in enumerate(answers) if number != position]
    assert {getattr(answer, "letter", answer) for answer in others} <= {"o", "s"}


async def test_a_payload_python_cannot_read_is_the_error_of_its_reader_alone(q: Queue, database_url: str) -> None:
    limit = sys.getrecursionlimit()  # other tests' tools raise it for the whole process
    sys.setrecursionlimit(1000)
    try:
        await _read_too_deep(q, database_url)
    finally:
        sys.setrecursionlimit(limit)


async def _read_too_deep(q: Queue, database_url: str) -> None:
    runs = Runs(q, 2)
    q.conn.execute("select absurd.emit_event('q', 'deep', %s::jsonb)", ("[" * 3000 + "]" * 3000,))
    q.conn.execute("select absurd.emit_event('q', 'flat', '1')")
    async with committing(database_url) as committer:
        deep, flat = await asyncio.gather(
            committer.write(batch.AwaitEvent(*runs.fence(0), "s", "deep")),
            committer.write(batch.AwaitEvent(*runs.fence(1), "s", "flat")),
            return_exceptions=True,
        )
    assert type(deep).__name__ == "NotSerializable"
    assert flat == batch.Answer("a", 1)


async def test_a_result_the_server_refuses_fails_the_run_and_says_why(q: Queue, database_url: str) -> None:
    runs = Runs(q, 2)
    async with committing(database_url) as committer:
        await committer.finish(batch.Complete(*runs.fence(0), '"\\u0000"'))
        await committer.finish(batch.Complete(*runs.fence(1), "1"))
    state, _, failure = q.task(runs.tasks[0])
    assert state == "failed"
    assert "Unicode" in failure["message"]
    assert q.state(runs.tasks[1]) == "completed"


async def test_a_locked_row_is_repeated_and_holds_up_nobody(q: Queue, database_url: str, connect: Connect) -> None:
    runs = Runs(q, ROWS)
    with connect(autocommit=False) as holder:
        holder.execute("select 1 from absurd.live where task_id = %s for update", (runs.tasks[0],))
        async with committing(database_url) as committer:
            held = asyncio.create_task(committer.write(batch.Checkpoint(*runs.fence(0), "s", "1")))
            for number in range(1, ROWS):
                answer = await committer.write(batch.Checkpoint(*runs.fence(number), "s", "1"))
                assert answer.letter == "o"
            assert not held.done()
            holder.rollback()
            assert (await held).letter == "o"


@pytest.mark.parametrize("mode", ["latch", "next"])
async def test_an_event_somebody_else_is_emitting_holds_up_nobody(
    q: Queue, database_url: str, connect: Connect, mode: str
) -> None:
    runs = Runs(q, ROWS)
    with connect(autocommit=False) as holder:
        holder.execute("select absurd.emit_event('q', 'parcel', '1')")  # an open transaction of the user's
        async with committing(database_url) as committer:
            held = asyncio.create_task(committer.write(batch.Emit(*runs.fence(0), "parcel", "2", mode)))
            beside = asyncio.create_task(committer.write(batch.Emit(*runs.fence(1), "letter", "3", mode)))
            for number in range(1, ROWS):
                answer = await committer.write(batch.Checkpoint(*runs.fence(number), "s", "1"))
                assert answer.letter == "o"
            assert (await beside).letter == "o"
            assert not held.done()
            holder.rollback()
            assert (await held).letter == "o"


async def test_a_waiter_somebody_holds_lets_an_emit_wait_and_nobody_else(
    q: Queue, database_url: str, connect: Connect
) -> None:
    runs = Runs(q, 3)
    async with committing(database_url) as committer:
        assert (await committer.write(batch.AwaitEvent(*runs.fence(0), "s", "parcel"))).letter == "s"
        with connect(autocommit=False) as holder:
            holder.execute("select 1 from absurd.live where task_id = %s for update", (runs.tasks[0],))
            held = asyncio.create_task(committer.write(batch.Emit(*runs.fence(1), "parcel", "2")))
            assert (await committer.write(batch.Checkpoint(*runs.fence(2), "s", "1"))).letter == "o"
            assert not held.done()
            holder.rollback()
            assert (await held).letter == "o"
    assert q.state(runs.tasks[0]) == "pending"


def fails_at(conn: psycopg.Connection[Any], table: str, what: str, when: str = "true") -> None:
    """From now on, writing a row to a table of the engine does this first."""
    conn.execute(
        f"""create sequence if not exists public.tries;
            create function public.on_{table}() returns trigger language plpgsql as $$
            begin {what}; return new; end $$;
            create trigger on_{table} before insert or update on absurd.{table}
              for each row when ({when}) execute function public.on_{table}()"""
    )


def told(caplog: pytest.LogCaptureFixture, text: str) -> int:
    return sum(text in record.getMessage() for record in caplog.records)


TRIES = 20
PASSING = {"a full disk": "53100", "a deadlock": "40P01", "a busy lock": "55P03", "a slow statement": "57014"}


@pytest.mark.parametrize("trouble", PASSING)
async def test_trouble_that_passes_delays_every_row_and_fails_none(
    q: Queue, database_url: str, monkeypatch, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    monkeypatch.setattr(writing, "BUSY_PAUSE", 0.0001)
    runs = Runs(q, ROWS)
    refuse = f"""if nextval('public.tries') < {TRIES} then raise exception 'trouble' using errcode = '{PASSING[trouble]}';
                 end if"""
    fails_at(q.conn, "checkpoints", refuse)
    fails_at(q.conn, "attempts", refuse, "new.state = 'c'")
    async with committing(database_url) as committer:
        checkpoints = [
            asyncio.create_task(committer.write(batch.Checkpoint(*runs.fence(number), "s", "1"))) for number in range(3)
        ]
        for number in range(3, ROWS):
            await committer.finish(batch.Complete(*runs.fence(number), "1"))
        assert [(await answer).letter for answer in checkpoints] == ["o"] * 3
    assert {q.state(task) for task in runs.tasks[3:]} == {"completed"}
    assert told(caplog, "writing failed") == told(caplog, "writing succeeds again") == 1


async def test_a_row_in_trouble_for_long_holds_up_nobody(q: Queue, database_url: str, monkeypatch) -> None:
    monkeypatch.setattr(writing, "BUSY_PAUSE", 0.0001)
    runs = Runs(q, ROWS)
    fails_at(
        q.conn,
        "checkpoints",
        "if (select on_fire from public.house) then raise exception 'slow' using errcode = '57014'; end if",
        "new.name = 'stuck'",
    )
    q.conn.execute("create table public.house as select true as on_fire")
    async with committing(database_url) as committer:
        stuck = asyncio.create_task(committer.write(batch.Checkpoint(*runs.fence(0), "stuck", "1")))
        for name in ("a", "b"):
            others = (committer.write(batch.Checkpoint(*runs.fence(number), name, "1")) for number in range(1, ROWS))
            assert {answer.letter for answer in await asyncio.gather(*others)} == {"o"}
        assert not stuck.done()
        q.conn.execute("update public.house set on_fire = false")
        assert (await stuck).letter == "o"


async def test_who_waits_in_trouble_is_released_when_the_worker_gives_up(
    q: Queue, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    runs = Runs(q, 2)
    fails_at(q.conn, "checkpoints", "perform nextval('public.tries'); raise exception using errcode = '53100'")
    fails_at(q.conn, "attempts", "perform nextval('public.tries'); raise exception using errcode = '53100'")
    given_up = _compat.Event()
    link = Link(database_url, "committer", given_up)
    committer = Committer(link, lambda: None)
    writes = asyncio.create_task(committer.write(batch.Checkpoint(*runs.fence(0), "s", "1")))
    over: list[str] = []
    await committer.finish(batch.Complete(*runs.fence(1), "1"), lambda: over.append("over"))
    failed = asyncio.Event()
    caplog.handler.addFilter(lambda record: failed.set() or True)  # type: ignore[func-returns-value]
    running = asyncio.create_task(committer.run())
    await asyncio.wait_for(failed.wait(), 20)
    committer.close()
    given_up.set()
    await asyncio.wait_for(running, 20)
    with pytest.raises(Released):
        await writes
    assert over == ["over"]
    assert told(caplog, "its lease will run out") == 1
    assert not told(caplog, "writing succeeds again")
    await link.close()


@pytest.mark.parametrize("row", [("Complete", '"\\u0000"', "failed"), ("Fail", "{", "running")])
async def test_the_end_of_a_run_raises_nothing_however_much_is_waiting(
    q: Queue, database_url: str, monkeypatch, row: tuple[str, str, str]
) -> None:
    """What it raised would end a slot, and the worker with it."""
    monkeypatch.setattr(writing, "BACKLOG", 0)
    kind, body, state = row
    runs = Runs(q, 1)
    over: list[str] = []
    async with committing(database_url) as committer:
        await committer.finish(getattr(batch, kind)(*runs.fence(0), body), lambda: over.append("over"))
        assert over == ["over"], "it waited for its turn"
    assert q.state(runs.tasks[0]) == state


async def test_handing_back_does_not_wait_for_its_turn(database_url: str, monkeypatch) -> None:
    monkeypatch.setattr(writing, "BACKLOG", 0)
    over: list[str] = []
    committer = Committer(Link(database_url, "committer", _compat.Event()), lambda: None)  # nobody reads
    await committer.finish(batch.Complete(1, b"", 1, "1"), lambda: over.append("over"), wait=False)
    assert not over


async def test_a_batch_is_cut_where_its_values_become_too_large(q: Queue, database_url: str, monkeypatch) -> None:
    monkeypatch.setattr(writing, "BATCH_TEXT", 2500)
    runs = Runs(q, ROWS)
    sizes = [100, 2000, 1000, 9000, 100, 100]
    sent: list[int] = []
    unlisten = telemetry.listen(lambda name, fields: sent.append(fields["rows"]) if name == "batch.sent" else None)
    try:
        async with committing(database_url) as committer:
            answers = await asyncio.gather(
                *(
                    committer.write(batch.Checkpoint(*runs.fence(number), "s", '"' + "x" * (size - 2) + '"'))
                    for number, size in enumerate(sizes)
                )
            )
    finally:
        unlisten()
    assert [answer.letter for answer in answers] == ["o"] * ROWS
    assert sent == [2, 1, 1, 2]


KILL = "perform pg_terminate_backend(pg_backend_pid()); perform pg_sleep(60)"


async def test_a_row_the_server_dies_of_fails_alone(
    q: Queue, database_url: str, monkeypatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(links, "TELL_EVERY", 0.0)
    runs = Runs(q, 21)
    fails_at(q.conn, "checkpoints", KILL, "new.name = 'poison'")
    async with committing(database_url) as committer:
        answers = await asyncio.gather(
            *(
                committer.write(batch.Checkpoint(*runs.fence(number), "poison" if number == 7 else "s", "1"))
                for number in range(21)
            ),
            return_exceptions=True,
        )
    poison = answers.pop(7)
    assert isinstance(poison, ConnectionLost)
    assert "the server's log" in str(poison)
    assert {getattr(answer, "letter", answer) for answer in answers} == {"o"}
    assert told(caplog, "connection of the committer lost") > 1


async def test_a_result_the_server_dies_of_is_how_the_run_failed(q: Queue, database_url: str) -> None:
    runs = Runs(q, 21)
    fails_at(q.conn, "attempts", KILL, """new.result = '"poison"'""")
    async with committing(database_url) as committer:
        for number in range(21):
            await committer.finish(batch.Complete(*runs.fence(number), '"poison"' if number == 7 else "1"))
    state, _, failure = q.task(runs.tasks.pop(7))
    assert state == "failed"
    assert "could not be stored" in failure["message"]
    assert {q.state(task) for task in runs.tasks} == {"completed"}


async def test_a_database_that_is_away_is_no_fault_of_a_row(q: Queue, database_url: str, monkeypatch) -> None:
    runs = Runs(q, 1)
    attempts = 0

    async def away(conninfo: str) -> _compat.Connection:
        nonlocal attempts
        attempts += 1
        if attempts < 20:
            raise ConnectionLost("away")
        return await connect(conninfo)

    async with committing(database_url) as committer:
        assert (await committer.write(batch.Checkpoint(*runs.fence(0), "a", "1"))).letter == "o"
        monkeypatch.setattr(links, "connect", away)
        monkeypatch.setattr(links, "FIRST_PAUSE", 0.0)
        q.conn.execute(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity"
            " where datname = current_database() and application_name = 'absurd'"
        )
        assert (await committer.write(batch.Checkpoint(*runs.fence(0), "b", "1"))).letter == "o"
    assert attempts == 20


async def test_a_server_that_has_become_a_standby_is_no_fault_of_a_row(q: Queue, database_url: str) -> None:
    runs = Runs(q, 1)
    fails_at(
        q.conn,
        "checkpoints",
        f"if nextval('public.tries') < {TRIES // 2} then raise exception 'read only' using errcode = '25006'; end if",
    )
    async with committing(database_url) as committer:
        assert (await committer.write(batch.Checkpoint(*runs.fence(0), "s", "1"))).letter == "o"


async def test_who_writes_after_the_end_is_released(database_url: str) -> None:
    async with committing(database_url) as committer:
        pass
    with pytest.raises(Released):
        await committer.write(batch.Checkpoint(1, b"", 1, "s", "1"))
