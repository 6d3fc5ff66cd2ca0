"""The committer: all writes of a worker's concurrent runs go out in batches, one commit a batch.

What became ready while the previous batch was in flight leaves as the next one. No timer: an idle worker adds no latency,
and under load the flight time is the batching window. One connection, one writer, no lock.

No row spoils another: what the database refuses, is slow about, or dies of, is sent by itself and repeated by itself.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psycopg

from absurd._async import _compat
from absurd._async.link import Link, LinkClosed, LostAgain
from absurd._core import outcome
from absurd._core.outcome import Released
from absurd._db import batch
from absurd._db.batch import Answer, Write
from absurd._db.call import Call
from absurd.errors import ConnectionLost, from_sqlstate
from absurd.telemetry import logger, signal

BATCH_ROWS = 500
BATCH_TEXT = 32 * 1024 * 1024
BACKLOG = 1000
BUSY_PAUSE, LONGEST_PAUSE = 0.02, 5.0
RESCHEDULING = (batch.Sleep, batch.Fail, batch.AwaitEvent, batch.AwaitTask)

#: SQLSTATEs of trouble that passes: deadlock, no resources, a lock or statement timeout of the database's own
_PASSING = ("40", "53", "55P03", "57014")
#: so often a batch in passing trouble is sent as a whole; then each row by itself, for it may be the trouble of one
TRIES_TOGETHER = 4
#: so many rows in passing trouble, one after the other, end a round: it is the trouble of all
TRIES_ALONE = 3
#: connections that may break in a row under one statement, though making new ones succeeds
LOSSES = 3


@dataclass(slots=True, eq=False)
class _Item:
    row: Write
    reply: _compat.Reply[Answer] | None = None
    over: Callable[[], None] | None = None  # the row is written, or never will be
    room: _compat.Reply[None] | None = None  # somebody waits for the same
    tries: int = 0  # that ended in passing trouble
    due: float = 0.0
    alone: bool = False
    ended: bool = False


@dataclass(slots=True)
class _Round:
    """What is still to be sent row by row in this round, and what in a later one."""

    singles: list[_Item] = field(default_factory=list)
    again: list[_Item] = field(default_factory=list)


class Committer:
    """`write` returns after the row's commit; `finish` rides along with a later batch."""

    def __init__(self, link: Link, rescheduled: Callable[[], None]) -> None:
        """`rescheduled` is called after a commit that may have made something due sooner than the claimer knows."""
        self.link = link
        self._rescheduled = rescheduled
        self._inbox: _compat.Inbox[_Item] = _compat.Inbox()
        self._troubled = 0  # rows that passing trouble has delayed
        self._trouble_since = 0.0

    async def write(self, row: Write) -> Answer:
        """Commit a row; its answer, however long the database is away, full or busy. An error of the database about this
        row comes out here, never a neighbour's.

        Raises Released when the worker has stopped writing.
        """
        reply: _compat.Reply[Answer] = self._inbox.reply()
        if not self._inbox.put(_Item(row, reply)):
            raise Released
        return await reply.get()

    async def finish(self, row: Write, over: Callable[[], None] | None = None, *, wait: bool = True) -> None:
        """Commit the end of a run soon; waits, unless told otherwise, only when too much is under way. Never raises what
        the database says about the row: that is recorded, or logged. `over` is called when the row needs its lease no
        more: it is written, or never will be."""
        room: _compat.Reply[None] | None = self._inbox.reply() if wait and len(self._inbox) >= BACKLOG else None
        item = _Item(row, None, over, room)
        if not self._inbox.put(item):
            self._fail(item, Released())
        if room is not None:
            await room.get()

    def close(self) -> None:
        """Take no more; `run` returns when everything is out."""
        self._inbox.close()

    async def run(self) -> None:
        """Until closed: drain, send, answer."""
        try:
            while (items := await self._inbox.drain(BATCH_ROWS)) is not None:
                again = await self._send(items)
                for item in again:
                    self._inbox.put(item)
                if len(again) == len(items):  # nothing else to do meanwhile
                    await self.link.rest(BUSY_PAUSE)
        except LinkClosed:
            return
        finally:  # nobody may wait for an answer that never comes
            for item in self._inbox.end():
                self._fail(item, Released())

    async def _send(self, items: list[_Item]) -> list[_Item]:
        """Send what is due; returns the items to be repeated: not due, in passing trouble, or locked by somebody else."""
        now = time.monotonic()
        due = [item for item in items if item.due <= now]
        this = _Round([item for item in due if item.alone], [item for item in items if item.due > now])
        try:
            for chunk in _chunks([item for item in due if not item.alone]):
                by_row = {id(item.row): item for item in chunk}
                for statement in self._statements(chunk):
                    await self._try(statement, [by_row[id(row)] for row in statement.rows], this)
            await self._one_by_one(this)
        except BaseException:
            for item in items:
                if not item.ended:
                    self._fail(item, Released())
            raise
        return this.again

    async def _one_by_one(self, this: _Round) -> None:
        in_trouble = 0
        for number, item in enumerate(this.singles):
            for statement in self._statements([item]):
                in_trouble = in_trouble + 1 if await self._try(statement, [item], this) else 0
            if in_trouble == TRIES_ALONE:
                this.again[:0] = this.singles[number + 1 :]  # in front: these have their turn next
                return

    def _statements(self, items: list[_Item]) -> list[batch.Statement]:
        """The batch as statements, without the rows that cannot even be sent (half a surrogate pair, a number too large)."""
        try:
            return batch.statements([item.row for item in items])
        except Exception:
            good = []
            for item in items:
                try:
                    batch.statements([item.row])
                except Exception as error:
                    self._fail(item, error)
                else:
                    good.append(item.row)
            return batch.statements(good)

    async def _try(self, statement: batch.Statement, items: list[_Item], this: _Round) -> bool:
        """Send a statement once and see to each of its rows; whether it met trouble that passes.

        Every verb is repeatable under its claim, so a lost connection only delays.
        """
        call = Call(statement.sql, statement.params, statement.read, True)
        try:
            answers = await self.link.run(call, prepare=True, losses=LOSSES)
        except LinkClosed:
            raise
        except Exception as error:
            passing = isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith(_PASSING)
            if passing:
                self._delay(items, error)
                this.again += items
            elif len(items) == 1:
                self._fail(items[0], error)
            else:  # one row may have spoilt the batch: each by itself, so that nobody gets a neighbour's error
                for item in items:
                    item.alone = True
                this.singles += items
            return passing
        signal("batch.sent", rows=len(answers), verbs=statement.sql)
        if any(isinstance(row, RESCHEDULING) for row in statement.rows):
            self._rescheduled()
        for item, (_, answer) in zip(items, answers, strict=True):
            self._answer(item, answer, this)
        return False

    def _delay(self, items: list[_Item], error: Exception) -> None:
        if not self._troubled:
            self._trouble_since = time.monotonic()
            why = from_sqlstate(error) if isinstance(error, psycopg.Error) else error
            logger.warning("writing failed: %s; repeating it until it succeeds", why)
        for item in items:
            self._troubled += not item.tries
            item.tries += 1
            item.alone = item.alone or item.tries >= TRIES_TOGETHER
            item.due = time.monotonic() + min(BUSY_PAUSE * 2.0 ** min(item.tries, 16), LONGEST_PAUSE)

    def _answer(self, item: _Item, answer: Answer, this: _Round) -> None:
        if answer.letter == "b":
            this.again.append(item)
            return
        if item.reply is not None:
            item.reply.set(answer)
        elif answer.letter not in "ore":
            logger.warning(
                "the end of run %s was refused (%s): the run is no longer this worker's",
                uuid.UUID(bytes=item.row.run_id),
                answer.letter,
            )
        self._end(item)

    def _fail(self, item: _Item, error: BaseException) -> None:
        mapped: BaseException = from_sqlstate(error) if isinstance(error, psycopg.Error) else error
        row = item.row
        if isinstance(mapped, LostAgain):
            what = "result" if isinstance(row, batch.Complete) else "value"
            mapped = ConnectionLost(f"the {what} could not be stored: {mapped}", hint=mapped.hint)
            mapped.__cause__ = error
            logger.error("run %s: %s", uuid.UUID(bytes=row.run_id), mapped)
        if item.reply is not None:
            item.reply.fail(mapped)
        elif isinstance(row, batch.Complete) and not isinstance(mapped, Released):
            # that is how the run ended
            failed = batch.Fail(row.queue_id, row.run_id, row.claim_no, str(outcome.failed(mapped).body))
            if self._inbox.put(_Item(failed, None, item.over, item.room)):
                item.over = item.room = None
            else:
                self._unwritten(row, mapped)
        else:
            self._unwritten(row, "the worker has stopped writing" if isinstance(mapped, Released) else mapped)
        self._end(item, isinstance(mapped, Released))

    def _end(self, item: _Item, released: bool = False) -> None:
        item.ended = True
        if item.over is not None:
            item.over()
        if item.room is not None:
            item.room.set(None)
        if item.tries:
            self._troubled -= 1
            if not self._troubled and not released:
                logger.warning("writing succeeds again, after %.1f s", time.monotonic() - self._trouble_since)

    @staticmethod
    def _unwritten(row: Write, why: object) -> None:
        logger.error(
            "the end of run %s could not be written: %s; its lease will run out", uuid.UUID(bytes=row.run_id), why
        )


def _chunks(items: list[_Item]) -> Iterator[list[_Item]]:
    """The items in order, in pieces of at most BATCH_TEXT characters, or of one item: servers and proxies have limits."""
    chunk: list[_Item] = []
    text = 0
    for item in items:
        length = batch.text_length(item.row)
        if chunk and text + length > BATCH_TEXT:
            yield chunk
            chunk, text = [], 0
        chunk.append(item)
        text += length
    if chunk:
        yield chunk
