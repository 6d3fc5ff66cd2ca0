"""Time of a feed, told by its steps: each of its waits ends when the test lets a second pass."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from habitat_lite.live import TICK


class Clock:
    """A sleep that ends when the test lets a second pass. Knows how many questions were asked in which second."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: dict[float, int] = {}
        self._sleeping: list[tuple[float, asyncio.Future[None]]] = []

    async def sleep(self, seconds: float) -> None:
        waking: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleeping.append((self.now + seconds, waking))
        await waking

    def note(self, questions: int = 1) -> None:
        self.asked[self.now] = self.asked.get(self.now, 0) + questions

    async def second(self, settled: Callable[[], bool] = lambda: True) -> None:
        """Let a second pass, and whatever it sets off happen."""
        for _ in range(5):
            await asyncio.sleep(0)  # who has just begun waits from now on
        self.now += TICK
        for due, waking in list(self._sleeping):
            if due <= self.now and not waking.done():
                waking.set_result(None)
        self._sleeping = [each for each in self._sleeping if not each[1].done()]
        async with asyncio.timeout(20):
            for _ in range(20):
                await asyncio.sleep(0)
            while not (self._sleeping and settled()):
                await asyncio.sleep(0.001)


def most_a_second(clock: Clock) -> float:
    """Questions in the worst stretch of the run, per second that it took."""
    seconds = sorted(clock.asked)
    worst = 0.0
    for first in seconds:
        for last in seconds:
            if last >= first:
                asked = sum(count for at, count in clock.asked.items() if first <= at <= last)
                # what an answer of several questions asks at once is waited for afterwards
                worst = max(worst, (asked - 1) / (last - first + TICK))
    return worst
