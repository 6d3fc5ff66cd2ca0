"""Concurrent calls of one kind leave together, and none pays for another."""

from __future__ import annotations

import asyncio

import pytest

from absurd._async._compat import Coalescer
from absurd.errors import ConnectionLost


class Sender:
    """Records what is sent together; answers when told to."""

    def __init__(self) -> None:
        self.sent: list[list[str]] = []
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()

    async def __call__(self, items: list[str]) -> list[str]:
        self.sent.append(items)
        self.entered.set()
        await self.gate.wait()
        if "bad" in items:
            raise ValueError("bad")
        if "lost" in items:
            raise ConnectionLost("gone")
        return [item.upper() for item in items]

    def coalescer(self) -> Coalescer[str, str]:
        return Coalescer(self, len)


async def under_way(sender: Sender, calls: Coalescer[str, str], *items: str) -> list[asyncio.Task[str]]:
    """A first call that waits in `send`, and those of the items behind it."""
    first = asyncio.create_task(calls.call("first"))
    await sender.entered.wait()
    rest = [asyncio.create_task(calls.call(item)) for item in items]
    await asyncio.sleep(0)
    return [first, *rest]


async def test_what_comes_while_a_call_is_under_way_leaves_together_in_order() -> None:
    sender = Sender()
    tasks = await under_way(sender, sender.coalescer(), "a", "b", "c")
    sender.gate.set()
    assert await asyncio.gather(*tasks) == ["FIRST", "A", "B", "C"]
    assert sender.sent == [["first"], ["a", "b", "c"]]


async def test_after_a_quiet_moment_the_next_call_is_sent_at_once() -> None:
    sender = Sender()
    sender.gate.set()
    calls = sender.coalescer()
    assert [await calls.call("a"), await calls.call("b")] == ["A", "B"]
    tasks = [asyncio.create_task(calls.call(item)) for item in ("c", "d")]
    assert await asyncio.gather(*tasks) == ["C", "D"]
    assert await calls.call("e") == "E"
    assert sender.sent == [["a"], ["b"], ["c"], ["d"], ["e"]]


async def test_a_bad_item_gets_its_own_error_and_its_neighbours_their_answers() -> None:
    sender = Sender()
    tasks = await under_way(sender, sender.coalescer(), "a", "bad", "c")
    sender.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers.pop(2), ValueError)
    assert answers == ["FIRST", "A", "C"]


async def test_a_lost_connection_is_everybodys_error_and_nothing_is_sent_again() -> None:
    sender = Sender()
    tasks = await under_way(sender, sender.coalescer(), "a", "lost")
    sender.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [str, ConnectionLost, ConnectionLost]
    assert sender.sent == [["first"], ["a", "lost"]]


async def test_a_caller_who_has_gone_sends_nothing() -> None:
    sender = Sender()
    first, a, b = await under_way(sender, sender.coalescer(), "a", "b")
    a.cancel()
    await asyncio.sleep(0)
    sender.gate.set()
    assert await asyncio.gather(first, b) == ["FIRST", "B"]
    assert sender.sent == [["first"], ["b"]]


async def test_those_behind_a_caller_who_goes_are_sent() -> None:
    sender = Sender()
    calls = sender.coalescer()
    first, a = await under_way(sender, calls, "a")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    sender.gate.set()
    assert await a == "A"
    assert await calls.call("b") == "B"


async def test_a_batch_ends_at_its_size() -> None:
    sender = Sender()
    calls = sender.coalescer()
    calls._SIZE = 5  # type: ignore[misc]
    tasks = await under_way(sender, calls, "aaaa", "b", "c", "dddddddd", "e")
    sender.gate.set()
    await asyncio.gather(*tasks)
    assert sender.sent == [["first"], ["aaaa", "b"], ["c"], ["dddddddd"], ["e"]]


def test_a_loop_that_ended_in_the_middle_does_not_stop_the_next_one() -> None:
    sender = Sender()
    calls = sender.coalescer()

    async def abandoned() -> None:
        await under_way(sender, calls, "a")

    async def later() -> str:
        sender.gate = asyncio.Event()
        sender.gate.set()
        return await calls.call("b")

    asyncio.run(abandoned())
    assert asyncio.run(later()) == "B"


async def test_nobody_waits_for_a_connection_that_was_lost_for_another_one_by_one() -> None:
    sender = Sender()

    async def send(items: list[str]) -> list[str]:
        if items == ["a"]:
            sender.sent.append(items)
            raise ConnectionLost("gone")
        return await sender(items)

    tasks = await under_way(sender, Coalescer(send, len), "a", "bad", "c")
    sender.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [str, ConnectionLost, ConnectionLost, ConnectionLost]
    assert sender.sent == [["first"], ["a", "bad", "c"], ["a"]]


def test_a_loop_of_another_thread_sends_by_itself() -> None:
    sender = Sender()

    async def here() -> list[str]:
        first = asyncio.create_task(calls.call("first"))
        await sender.entered.wait()
        loop = asyncio.get_running_loop()
        second = loop.run_in_executor(None, lambda: asyncio.run(_sent_by_itself(calls)))
        answer = await asyncio.wait_for(second, 20)
        sender.gate.set()
        return [await first, answer]

    calls = sender.coalescer()
    assert asyncio.run(here()) == ["FIRST", "own"]


async def _sent_by_itself(calls: Coalescer[str, str]) -> str:
    async def own(items: list[str]) -> list[str]:
        return ["own" for _ in items]

    calls._send = own
    return await calls.call("b")
