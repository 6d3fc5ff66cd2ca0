"""Many rows by few calls: while one chunk is under way, the next is made ready."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, Self, TypeVar

from absurd._async import _compat

Row = TypeVar("Row")
Raw = TypeVar("Raw")
Answer = TypeVar("Answer")
CHUNK_ROWS = 1000


class Chunk(Generic[Raw, Answer]):
    """A chunk ready to be sent: `send` is one round trip, or one a queue; `read` makes answers of what it brought."""

    def __init__(self, send: Callable[[], Awaitable[Raw]], read: Callable[[Raw], list[Answer]]) -> None:
        self.send, self.read = send, read


class Bulk(Generic[Row, Raw, Answer]):
    """Takes rows one by one and sends them in chunks, each all or nothing; answers in input order.

    While the database has one chunk, the next is collected, packed, and the answers of the one before are made.
    """

    def __init__(
        self,
        pack: Callable[[list[Row]], Chunk[Raw, Answer]],
        on_progress: Callable[[int], None] | None,
        *,
        ahead: bool,
    ) -> None:
        """`ahead`: a chunk may be under way while the caller goes on; else `add` returns when it is written."""
        self._pack, self._on_progress, self._ahead = pack, on_progress, ahead
        self._rows: list[Row] = []
        self._answers: list[Answer] = []
        self._under_way: tuple[Chunk[Raw, Answer], _compat.Ahead[Raw]] | None = None
        self._pause = _compat.Pause()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        under_way, self._under_way = self._under_way, None
        if under_way is not None:  # an error of the caller's, or his cancellation: that is what he hears of
            await under_way[1].abandon(stop=isinstance(error, _compat.Cancelled))

    async def add(self, row: Row) -> None:
        """One more row; raises what the chunk before this one raised."""
        self._rows.append(row)
        if self._under_way is not None and self._under_way[1].done:
            self._take(*await self._arrived())
        if len(self._rows) == CHUNK_ROWS:
            await self._proceed()
        await self._pause()

    async def finish(self) -> list[Answer]:
        """Send the rest, and wait for it."""
        if self._rows:
            await self._proceed()
        self._take(*await self._arrived())
        return self._answers

    async def _arrived(self) -> tuple[Chunk[Raw, Answer] | None, Raw | None]:
        if self._under_way is None:
            return None, None
        chunk, ahead = self._under_way
        raw = await ahead.result()
        self._under_way = None
        return chunk, raw

    async def _proceed(self) -> None:
        rows, self._rows = self._rows, []
        chunk = self._pack(rows)
        before = await self._arrived()
        if self._ahead:
            self._under_way = chunk, _compat.Ahead(chunk.send)
            self._take(*before)
        else:
            self._take(chunk, await chunk.send())

    def _take(self, chunk: Chunk[Raw, Answer] | None, raw: Raw | None) -> None:
        if chunk is not None:
            self._answers += chunk.read(raw)  # type: ignore[arg-type]
            if self._on_progress is not None:
                self._on_progress(len(self._answers))
