"""Pages that follow what happens: each kind of page asks the database at most once a second, however many look at it.

Once a second a kind asks whether anything was committed; as long as nothing was, that is all. When something was, the
addresses that somebody looks at are asked for, one after the other, a second apart. Browsers that look at the same address
share its answers. They are told as well when nothing can be asked, so that nobody takes an old page for the present.
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

#: What a browser is told of its page: it follows what happens; the database cannot be asked; the database answers, but not
#: with this page, which takes too long or is of something that is gone.
LIVE, LOST, STALE = "live", "lost", "stale"


class Browser:
    """What one browser has not been told yet: the newest page, and how things stand."""

    def __init__(self) -> None:
        self._page: str | None = None
        self._state: str | None = None
        self._told: str | None = None
        self._news = asyncio.Event()

    def show(self, page: str) -> None:
        """There is a page. A slow browser gets the newest only."""
        self._page = page
        self._news.set()

    def say(self, state: str) -> None:
        """Things stand so. What it has been told last is not told again."""
        self._state = state if state != self._told else None
        if self._state is not None:
            self._news.set()

    async def news(self) -> tuple[str | None, str | None]:
        """How things stand and the newest page, where either is new. Returns when there is something."""
        await self._news.wait()
        return self.take()

    def take(self) -> tuple[str | None, str | None]:
        """What `news` returns, at once; nothing new is None."""
        found = self._state, self._page
        self._told = self._state or self._told
        self._state = self._page = None
        self._news.clear()
        return found


@dataclass
class _Address:
    render: Render
    browsers: set[Browser] = field(default_factory=set)
    mark: str | None = None
    page: str | None = None
    stale: bool = False
    state: str | None = None

    def say(self, state: str) -> None:
        self.state = state
        for browser in self.browsers:
            browser.say(state)


class Feed:
    """One kind of page: who looks at which address, and a job that goes round them."""

    def __init__(self, pulse: Pulse, sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep) -> None:
        self._pulse = pulse
        self._sleep = sleep
        self._watched: dict[str, _Address] = {}
        self._job: asyncio.Task[None] | None = None
        self._lost = False

    @contextlib.contextmanager
    def watch(self, address: str, render: Render, seen: str = "") -> Iterator[Browser]:
        """A browser that is told what the address looks like: now, if that is known, and whenever it has been rendered anew;
        and whether it can be, from the first time that is known.

        Of somebody who has `seen` another page than the one known, nobody can say which is the newer: it is rendered anew.
        """
        browser = Browser()
        watched = self._watched.setdefault(address, _Address(render, state=LOST if self._lost else None))
        watched.browsers.add(browser)
        if watched.state is not None:
            browser.say(watched.state)
        if watched.page is not None:
            if seen in ("", print_of(watched.page)):
                browser.show(watched.page)
            else:
                watched.mark = None
        if self._job is None or self._job.done():
            self._job = asyncio.get_running_loop().create_task(self._go_round())
        try:
            yield browser
        finally:
            watched.browsers.discard(browser)
            if not watched.browsers:
                self._watched.pop(address, None)
            if not self._watched and self._job is not None:
                self._job.cancel()
                self._job = None  # it may take a moment to end: who comes meanwhile needs another
                self._lost = False  # nobody has looked since

    async def _go_round(self) -> None:
        while True:
            await self._sleep(TICK)
            try:
                await self._round()
            except Exception as error:  # the next round may find the database again
                if not self._lost:
                    log.warning("live pages cannot be refreshed: %s", error)
                self._lost = True
                for address in self._watched.values():
                    address.say(LOST)

    async def _round(self) -> None:
        mark = await self._pulse()
        current = list(self._watched.values())
        for address in current:
            if address.mark == mark:
                address.say(STALE if address.stale else LIVE)
        for address in current:
            if address.mark != mark and address.browsers:
                await self._refresh(address, mark)
        if self._lost:
            log.warning("live pages are refreshed again")
        self._lost = False

    async def _refresh(self, address: _Address, mark: str) -> None:
        await self._sleep(TICK)
        try:
            page, questions = await address.render()
        except ConnectionLost:
            raise
        except Exception as error:  # what cannot be shown, or not in time, must not hold up the others
            # it is gone, or never was: nothing to show until something happens
            level = logging.DEBUG if isinstance(error, AbsurdError) else logging.WARNING
            log.log(level, "a live page cannot be refreshed: %s", error)
            address.mark, address.stale = mark, True
            address.say(STALE)
            return
        address.mark, address.page, address.stale = mark, page, False
        address.say(LIVE)
        for browser in address.browsers:
            browser.show(page)
        if questions > 1:
            await self._sleep(TICK * (questions - 1))


def print_of(page: str) -> str:
    """A short name for what a page shows: the same name, the same content."""
    return hashlib.blake2b(page.encode(), digest_size=12).hexdigest()


async def stream(feed: Feed, address: str, render: Render, seen: str) -> AsyncIterator[str]:
    """Server-sent events (HTML Living Standard, 9.2). Messages: the page's content as a JSON string, whenever it is another
    than the one whose `print_of` the browser has `seen`. Events `state`: LIVE, LOST or STALE, when that changes. No question
    is asked for this browser alone."""
    with feed.watch(address, render, seen) as browser:
        yield "retry: 2000\n\n"
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE):
                    state, page = await browser.news()
            except TimeoutError:
                yield ": still here\n\n"
                continue
            if state is not None:
                yield f"event: state\ndata: {state}\n\n"
            if page is not None and (name := print_of(page)) != seen:
                seen = name
                yield f"id: {name}\ndata: {json.dumps(page)}\n\n"
