"""The inside of a transactional step: what its block reads, writes and sends along."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from absurd._async import _compat
from absurd.errors import StepError
from absurd.types import EmitMode

if TYPE_CHECKING:
    from absurd._async.client import AsyncAbsurd


class TransactionStep:
    """The inside of `ctx.transaction`: `done`, `result`, and calls that share the step's transaction."""

    __slots__ = ("_client", "_conn", "_name", "done", "result")

    def __init__(
        self, client: AsyncAbsurd, conn: _compat.Connection | None, name: str, done: bool, result: Any
    ) -> None:
        self._client = client
        self._conn = conn
        self._name = name
        self.done = done
        self.result = result

    @property
    def connection(self) -> _compat.Connection:
        """The step's psycopg connection; StepError when the step has committed before (ask `done` first)."""
        if self._conn is None:
            raise StepError(f'step "{self._name}" has committed before: guard the block with `if not tx.done:`')
        return self._conn

    async def execute(self, query: Any, params: Any = None) -> _compat.Cursor | NoRows:
        """Execute SQL in the step's transaction; no rows and no effect when the step has committed before."""
        if self._conn is None:
            return NoRows()
        return await self._conn.execute(query, params)

    async def spawn(self, task_name: str, params: Any = None, **options: Any) -> Any:
        """Spawn in the step's transaction; None when the step has committed before."""
        return None if self._conn is None else await self._client.bind(self._conn).spawn(task_name, params, **options)

    async def emit_event(
        self, event_name: str, payload: Any = None, queue_name: str | None = None, *, mode: EmitMode = "latch"
    ) -> bool:
        """Emit in the step's transaction; False when the step has committed before."""
        if self._conn is None:
            return False
        return await self._client.bind(self._conn).emit_event(event_name, payload, queue_name, mode=mode)


class NoRows:
    """What a query answers in a step that has committed before: nothing."""

    rowcount = 0

    async def fetchone(self) -> None:
        """None: there is no row."""

    async def fetchall(self) -> list[Any]:
        """An empty list."""
        return []
