"""The committer alone, in this process: bad rows and locked rows spoil nothing for their neighbours."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from absurd._async import _compat
from absurd._async.committer import Committer
from absurd._async.link import Link
from absurd._core.outcome import Released
from absurd._db import batch
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


async def test_a_server_without_room_is_tried_again(q: Queue, database_url: str, conn: psycopg.Connection[Any]) -> None:
    runs = Runs(q, 2)
    conn.execute(
        """create sequence public.tries;
           create function public.full_at_first() returns trigger language plpgsql as $$
           begin
             if nextval('public.tries') < 3 then raise exception 'no room' using errcode = '53100'; end if;
             return new;
           end $$;
           create trigger full_at_first before insert on absurd.checkpoints
             for each row execute function public.full_at_first()"""
    )
    async with committing(database_url) as committer:
        assert (await committer.write(batch.Checkpoint(*runs.fence(0), "s", "1"))).letter == "o"


async def test_who_writes_after_the_end_is_released(database_url: str) -> None:
    async with committing(database_url) as committer:
        pass
    with pytest.raises(Released):
        await committer.write(batch.Checkpoint(1, b"", 1, "s", "1"))
