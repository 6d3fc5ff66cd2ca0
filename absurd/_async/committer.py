"""The committer: all writes of a worker's concurrent runs go out in batches, one commit a batch.

What became ready while the previous batch was in flight leaves as the next one. No timer: an idle worker adds no latency,
and under load the flight time is the batching window. One connection, one writer, no lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import psycopg

from absurd._async import _compat
from absurd._async.link import Link, LinkClosed
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

#: SQLSTATE classes that speak of one row's content: the batch is repeated row by row
_ROW_ERRORS = ("21", "22", "23", "54")


class _Item(NamedTuple):
    row: Write
    reply: _compat.Reply[Answer] | None


class Committer:
    """`write` returns after the row's commit; `finish` rides along with a later batch."""

    def __init__(self, link: Link, rescheduled: Callable[[], None]) -> None:
        """`rescheduled` is called after a commit that may have made something due sooner than the claimer knows."""
        self._link = link
        self._rescheduled = rescheduled
        self._inbox: _compat.Inbox[_Item] = _compat.Inbox()

    async def write(self, row: Write) -> Answer:
        """Commit a row; its answer. An error of the database about this row comes out here, never a neighbour's."""
        reply: _compat.Reply[Answer] = _compat.Reply()
        self._inbox.put(_Item(row, reply))
        return await reply.get()

    async def finish(self, row: Write) -> None:
        """Commit the end of a run soon; waits only when too much is under way."""
        if len(self._inbox) < BACKLOG:
            self._inbox.put(_Item(row, None))
        else:
            await self.write(row)

    def close(self) -> None:
        """Take no more; `run` returns when everything is out."""
        self._inbox.close()

    async def run(self) -> None:
        """Until closed: drain, send, answer."""
        while (items := await self._inbox.drain(BATCH_ROWS)) is not None:
            busy = await self._send(items)
            for item in busy:
                self._inbox.put(item)
            if len(busy) == len(items):  # nothing else to do meanwhile
                await _compat.sleep(BUSY_PAUSE)

    async def _send(self, items: list[_Item]) -> list[_Item]:
        """Send one batch; returns the items whose rows somebody else has locked, to be repeated."""
        replies = {id(item.row): item for item in items}
        busy: list[_Item] = []
        for statement in batch.statements([item.row for item in items]):
            try:
                answers = await self._execute(statement)
            except psycopg.Error as error:
                await self._one_by_one(statement, error, replies, busy)
                continue
            except BaseException as error:
                self._fail(statement, replies, error)
                continue
            self._answer(answers, replies, busy)
            if any(isinstance(row, RESCHEDULING) for row in statement.rows):
                self._rescheduled()
        return busy

    async def _execute(self, statement: batch.Statement) -> list[tuple[Write, Answer]]:
        """Until the database has answered: every verb is repeatable under its claim, so a lost connection only delays."""
        answers = await self._link.run(Call(statement.sql, statement.params, statement.read, True), prepare=True)
        signal("batch.sent", rows=len(answers), verbs=statement.sql)
        return answers

    async def _one_by_one(
        self, statement: batch.Statement, error: psycopg.Error, replies: dict[int, _Item], busy: list[_Item]
    ) -> None:
        rows = statement.rows
        if len(rows) == 1 or (error.sqlstate or "")[:2] not in _ROW_ERRORS:
            self._fail(statement, replies, from_sqlstate(error))
            return
        for row in rows:
            (single,) = batch.statements([row])
            try:
                self._answer(await self._execute(single), replies, busy)
            except psycopg.Error as own:
                self._fail(single, replies, from_sqlstate(own))

    def _answer(self, answers: list[tuple[Write, Answer]], replies: dict[int, _Item], busy: list[_Item]) -> None:
        for row, answer in answers:
            item = replies[id(row)]
            if answer.letter == "b":
                busy.append(item)
            elif item.reply is not None:
                item.reply.set(answer)
            elif answer.letter not in "ore":
                logger.warning(
                    "the end of run %s was refused (%s): the run is no longer this worker's",
                    row.run_id.hex(),
                    answer.letter,
                )

    def _fail(self, statement: batch.Statement, replies: dict[int, _Item], error: BaseException) -> None:
        for row in statement.rows:
            reply = replies[id(row)].reply
            if reply is not None:
                reply.fail(Released() if isinstance(error, LinkClosed) else error)
            else:
                logger.error(
                    "the end of run %s could not be written: %s; its lease will run out", row.run_id.hex(), error
                )
