"""Many rows by few calls: what is under way when something goes wrong, and who hears of it."""

from __future__ import annotations

import asyncio

import pytest

from absurd._async import bulk as bulk_module
from absurd._async.bulk import Bulk, Chunk


class Database:
    """Takes chunks, and answers when told to."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []
        self.stopped: list[list[int]] = []
        self.gate = asyncio.Event()
        self.arrived = asyncio.Event()

    def pack(self, rows: list[int]) -> Chunk[int, int]:
        async def send() -> int:
            self.sent.append(rows)
            self.arrived.set()
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.stopped.append(rows)
                raise
            if -1 in rows:
                raise ValueError("a bad row")
            return len(rows)

        return Chunk(send, lambda raw: [row * 10 for row in rows[:raw]])


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_module, "CHUNK_ROWS", 2)


async def test_one_chunk_is_under_way_while_the_next_is_collected() -> None:
    database, told = Database(), list[int]()
    async with Bulk(database.pack, told.append, ahead=True) as bulk:
        for row in (1, 2, 3):
            await bulk.add(row)
        await database.arrived.wait()
        assert (database.sent, told) == ([[1, 2]], [])
        database.gate.set()
        assert await bulk.finish() == [10, 20, 30]
    assert (database.sent, told) == ([[1, 2], [3]], [2, 3])


async def test_progress_is_told_once_a_chunk_is_written_however_slow_the_source() -> None:
    database, told = Database(), list[int]()
    database.gate.set()
    async with Bulk(database.pack, told.append, ahead=True) as bulk:
        await bulk.add(1)
        await bulk.add(2)
        while not database.sent:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        await bulk.add(3)
        assert told == [2]


async def test_without_going_ahead_a_chunk_is_written_when_add_returns() -> None:
    database, told = Database(), list[int]()
    database.gate.set()
    async with Bulk(database.pack, told.append, ahead=False) as bulk:
        await bulk.add(1)
        await bulk.add(2)
        assert (database.sent, told) == ([[1, 2]], [2])


async def test_the_error_of_a_chunk_ends_the_call_and_nothing_more_is_sent() -> None:
    database = Database()
    database.gate.set()

    async def call() -> None:
        async with Bulk(database.pack, None, ahead=True) as bulk:
            for row in (1, -1, 3, 4, 5):
                await bulk.add(row)

    with pytest.raises(ValueError, match="a bad row"):
        await call()
    assert database.sent == [[1, -1]]


async def test_an_error_of_the_source_is_what_the_caller_hears_once_the_chunk_is_written() -> None:
    database, told = Database(), list[int]()

    async def call() -> None:
        async with Bulk(database.pack, told.append, ahead=True) as bulk:
            await bulk.add(-1)
            await bulk.add(2)
            await database.arrived.wait()
            raise OSError("the source broke")

    task = asyncio.create_task(call())
    await database.arrived.wait()
    assert not task.done()
    database.gate.set()
    with pytest.raises(OSError, match="the source broke"):
        await task
    assert (database.stopped, told) == ([], [])


async def test_a_cancelled_call_stops_what_is_under_way_and_is_cancelled() -> None:
    database = Database()

    async def call() -> None:
        async with Bulk(database.pack, None, ahead=True) as bulk:
            await bulk.add(1)
            await bulk.add(2)
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await database.arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert database.stopped == [[1, 2]]
