"""Many rows by few calls: while one chunk is under way, the next is made ready."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from absurd._async import _compat

Row = TypeVar("Row")
Answer = TypeVar("Answer")
CHUNK_ROWS = 1000


class Bulk(Generic[Row, Answer]):
    """Takes rows one by one and sends them in chunks, each all or nothing; answers in input order."""

    def __init__(
        self,
        send: Callable[[list[Row]], Awaitable[list[Answer]]],
        on_progress: Callable[[int], None] | None,
        *,
        ahead: bool,
    ) -> None:
        """`ahead`: a chunk may be under way while the caller goes on; else `add` returns when it is written."""
        self._send, self._on_progress, self._ahead = send, on_progress, ahead
        self._rows: list[Row] = []
        self._answers: list[Answer] = []
        self._under_way: _compat.Ahead[list[Answer]] | None = None
        self._pause = _compat.Pause()

    async def add(self, row: Row) -> None:
        """One more row; raises what the chunk before this one raised."""
        self._rows.append(row)
        if len(self._rows) == CHUNK_ROWS:
            await self._proceed()
        await self._pause()

    async def finish(self) -> list[Answer]:
        """Send the rest, and wait for it."""
        if self._rows:
            await self._proceed()
        await self.settle()
        return self._answers

    async def settle(self) -> None:
        """Wait for what is under way, if anything is."""
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            self._answers += await under_way.result()
            if self._on_progress is not None:
                self._on_progress(len(self._answers))

    async def _proceed(self) -> None:
        rows, self._rows = self._rows, []
        await self.settle()
        self._under_way = _compat.Ahead(functools.partial(self._send, rows))
        if not self._ahead:
            await self.settle()
