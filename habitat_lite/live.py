"""Pages that follow what happens: each kind of page asks the database at most once a second, however many look at it.

Once a second a kind asks whether anything was committed; as long as nothing was, that is all. When something was, the
addresses that somebody looks at are asked for, one after the other, a second apart. Browsers that look at the same address
share its answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from absurd import AbsurdError, ConnectionLost

TICK = 1.0
#: seconds between signs of life on a quiet stream, so that proxies keep it open
KEEP_ALIVE = 15.0

#: the content of a page, and how many questions it took
Render = Callable[[], Awaitable[tuple[str, int]]]
Pulse = Callable[[], Awaitable[str]]
log = logging.getLogger("habitat")


@dataclass
class _Address:
    render: Render
    browsers: set[asyncio.Queue[str]] = field(default_factory=set)
    mark: str | None = None
    page: str | None = None


class Feed:
    """One kind of page: who looks at which address, and a job that goes round them."""

    def __init__(self, pulse: Pulse, sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep) -> None:
        self._pulse = pulse
        self._sleep = sleep
        self._watched: dict[str, _Address] = {}
        self._job: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def watch(self, address: str, render: Render, seen: str = "") -> Iterator[asyncio.Queue[str]]:
        """A queue of what the address looks like: now, if that is known, and whenever it has been rendered anew.

        Of somebody who has `seen` another page than the one known, nobody can say which is the newer: it is rendered anew.
        """
        news: asyncio.Queue[str] = asyncio.Queue(1)
        watched = self._watched.setdefault(address, _Address(render))
        watched.browsers.add(news)
        if watched.page is not None:
            if seen in ("", print_of(watched.page)):
                news.put_nowait(watched.page)
            else:
                watched.mark = None
        if self._job is None or self._job.done():
            self._job = asyncio.get_running_loop().create_task(self._go_round())
        try:
            yield news
        finally:
            watched.browsers.discard(news)
            if not watched.browsers:
                self._watched.pop(address, None)
            if not self._watched and self._job is not None:
                self._job.cancel()
                self._job = None  # it may take a moment to end: who comes meanwhile needs another

    async def _go_round(self) -> None:
        while True:
            await self._sleep(TICK)
            try:
                mark = await self._pulse()
                for address in [each for each in self._watched.values() if each.mark != mark]:
                    if address.browsers:
                        await self._refresh(address, mark)
            except Exception as error:  # the next round may find the database again
                log.warning("a live page cannot be refreshed: %s", error)

    async def _refresh(self, address: _Address, mark: str) -> None:
        await self._sleep(TICK)
        try:
            page, questions = await address.render()
        except ConnectionLost:
            raise
        except AbsurdError as error:  # it is gone, or never was: nothing to show until something happens
            log.debug("a live page has no content: %s", error)
            address.mark = mark
            return
        except Exception as error:  # what cannot be shown, or not in time, must not hold up the others
            log.warning("a live page cannot be refreshed: %s", error)
            address.mark = mark
            return
        address.mark, address.page = mark, page
        for news in address.browsers:
            if news.full():  # a slow browser gets the newest only
                news.get_nowait()
            news.put_nowait(page)
        if questions > 1:
            await self._sleep(TICK * (questions - 1))


def print_of(page: str) -> str:
    """A short name for what a page shows: the same name, the same content."""
    return hashlib.blake2b(page.encode(), digest_size=12).hexdigest()


async def stream(feed: Feed, address: str, render: Render, seen: str) -> AsyncIterator[str]:
    """Server-sent events (HTML Living Standard, 9.2): the page's content as a JSON string, whenever it is another than the
    one whose `print_of` the browser has `seen`. No question is asked for this browser alone."""
    with feed.watch(address, render, seen) as news:
        yield "retry: 2000\n\n"
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE):
                    page = await news.get()
            except TimeoutError:
                yield ": still here\n\n"
                continue
            if (name := print_of(page)) != seen:
                seen = name
                yield f"id: {name}\ndata: {json.dumps(page)}\n\n"
