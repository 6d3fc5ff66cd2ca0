"""The committer: all writes of a worker's concurrent runs go out in batches, one commit a batch.

What became ready while the previous batch was in flight leaves as the next one. No timer: an idle worker adds no latency,
and under load the flight time is the batching window. One connection, one writer, no lock.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import NamedTuple

import psycopg

from absurd._async import _compat
from absurd._async.link import Link, LinkClosed
from absurd._core import outcome
from absurd._core.outcome import Released
from absurd._db import batch
from absurd._db.batch import Answer, Write
from absurd._db.call import Call
from absurd.errors import from_sqlstate
from absurd.telemetry import logger, signal

BATCH_ROWS = 500
BACKLOG = 1000
BUSY_PAUSE = 0.02
RESCHEDULING = (batch.Sleep, batch.Fail, batch.AwaitEvent, batch.AwaitTask)

#: SQLSTATEs of trouble that passes: deadlock, no resources, a lock or statement timeout of the database's own
_PASSING = ("40", "53", "55P03", "57014")
PASSING_TRIES = 8


class _Item(NamedTuple):
    row: Write
    reply: _compat.Reply[Answer] | None


class Committer:
    """`write` returns after the row's commit; `finish` rides along with a later batch."""

    def __init__(self, link: Link, rescheduled: Callable[[], None]) -> None:
        """`rescheduled` is called after a commit that may have made something due sooner than the claimer knows."""
        self.link = link
        self._rescheduled = rescheduled
        self._inbox: _compat.Inbox[_Item] = _compat.Inbox()

    async def write(self, row: Write) -> Answer:
        """Commit a row; its answer. An error of the database about this row comes out here, never a neighbour's.

        Raises Released when the worker has stopped writing.
        """
        reply: _compat.Reply[Answer] = _compat.Reply()
        if not self._inbox.put(_Item(row, reply)):
            raise Released
        return await reply.get()

    async def finish(self, row: Write) -> None:
        """Commit the end of a run soon; waits only when too much is under way."""
        if len(self._inbox) >= BACKLOG:
            await self.write(row)
        elif not self._inbox.put(_Item(row, None)):
            self._unwritten(row, "the worker has stopped writing")

    def close(self) -> None:
        """Take no more; `run` returns when everything is out."""
        self._inbox.close()

    async def run(self) -> None:
        """Until closed: drain, send, answer."""
        try:
            while (items := await self._inbox.drain(BATCH_ROWS)) is not None:
                busy = await self._send(items)
                for item in busy:
                    self._inbox.put(item)
                if len(busy) == len(items):  # nothing else to do meanwhile
                    await _compat.sleep(BUSY_PAUSE)
        finally:  # nobody may wait for an answer that never comes
            for item in self._inbox.end():
                self._fail(item, Released())

    async def _send(self, items: list[_Item]) -> list[_Item]:
        """Send one batch; returns the items whose rows somebody else has locked, to be repeated."""
        by_row = {id(item.row): item for item in items}
        busy: list[_Item] = []
        for statement in self._statements(items):
            try:
                self._answer(await self._execute(statement), by_row, busy)
            except Exception as error:
                await self._one_by_one(statement, error, by_row, busy)
            except BaseException:
                for item in by_row.values():  # not answered yet
                    self._fail(item, Released())
                raise
        return busy

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

    async def _execute(self, statement: batch.Statement) -> list[tuple[Write, Answer]]:
        """Until the database has answered: every verb is repeatable under its claim, so a lost connection only delays."""
        pause = BUSY_PAUSE
        for tries_left in reversed(range(PASSING_TRIES)):
            try:
                answers = await self.link.run(Call(statement.sql, statement.params, statement.read, True), prepare=True)
            except psycopg.Error as error:
                if not tries_left or not (error.sqlstate or "").startswith(_PASSING):
                    raise
                logger.warning("writing failed: %s; trying again in %s s", from_sqlstate(error), pause)
                await _compat.sleep(pause)
                pause *= 2
            else:
                break
        signal("batch.sent", rows=len(answers), verbs=statement.sql)
        if any(isinstance(row, RESCHEDULING) for row in statement.rows):
            self._rescheduled()
        return answers

    async def _one_by_one(
        self, statement: batch.Statement, error: Exception, by_row: dict[int, _Item], busy: list[_Item]
    ) -> None:
        """One row may have spoilt the batch: each by itself, so that nobody gets a neighbour's error."""
        if len(statement.rows) == 1 or isinstance(error, LinkClosed):
            for row in statement.rows:
                self._fail(by_row.pop(id(row)), error)
            return
        for row in statement.rows:
            (single,) = batch.statements([row])
            try:
                self._answer(await self._execute(single), by_row, busy)
            except Exception as own:
                self._fail(by_row.pop(id(row)), own)

    def _answer(self, answers: list[tuple[Write, Answer]], by_row: dict[int, _Item], busy: list[_Item]) -> None:
        for row, answer in answers:
            item = by_row.pop(id(row))
            if answer.letter == "b":
                busy.append(item)
            elif item.reply is not None:
                item.reply.set(answer)
            elif answer.letter not in "ore":
                logger.warning(
                    "the end of run %s was refused (%s): the run is no longer this worker's",
                    uuid.UUID(bytes=row.run_id),
                    answer.letter,
                )

    def _fail(self, item: _Item, error: BaseException) -> None:
        mapped: BaseException = from_sqlstate(error) if isinstance(error, psycopg.Error) else error
        if isinstance(mapped, LinkClosed):
            mapped = Released()
        row = item.row
        if item.reply is not None:
            item.reply.fail(mapped)
        elif isinstance(row, batch.Complete) and not isinstance(mapped, Released):
            # the result cannot be stored: that is how the run ended
            failed = outcome.failed(mapped)
            self._inbox.put(_Item(batch.Fail(row.queue_id, row.run_id, row.claim_no, str(failed.body)), None))
        else:
            self._unwritten(row, mapped)

    @staticmethod
    def _unwritten(row: Write, why: object) -> None:
        logger.error(
            "the end of run %s could not be written: %s; its lease will run out", uuid.UUID(bytes=row.run_id), why
        )
