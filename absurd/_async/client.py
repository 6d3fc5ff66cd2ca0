"""The client: register and spawn tasks, emit events, ask for results, manage queues, run workers."""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from absurd._async import _compat, rehearsal
from absurd._async import saga as sagas
from absurd._async.batchwork import work_claimed
from absurd._async.bulk import Bulk, Chunk
from absurd._async.session import POOL_SIZE, Session, mint_task_ids
from absurd._async.watch import Watcher
from absurd._async.worker import DRAIN_SECONDS, Worker
from absurd._core import codec, options
from absurd._core.options import MaxAttempts, SpawnRow
from absurd._core.registry import Registry, undo_name
from absurd._db import procedures
from absurd._db.call import Call, Row
from absurd.errors import ConfigError, InvalidOption, TaskNotFound
from absurd.types import (
    AbsurdHooks,
    CancellationPolicy,
    ClaimedTask,
    EmitMode,
    QueueDetachMode,
    QueuePolicy,
    QueueStorageMode,
    ReplayCheck,
    RetryStrategy,
    RetryTaskResult,
    SpawnRequest,
    SpawnResult,
    TaskHistory,
    TaskId,
    TaskResultSnapshot,
)

Handler = TypeVar("Handler", bound=Callable[..., Any])
Retried = RetryTaskResult
SDK_MAX_ATTEMPTS = 5


class AsyncAbsurd:
    """A client of one database, with a default queue.

    `conn_or_url`: a URL (own connection pool, opened at the first call; `embedded:` starts the private Postgres), a psycopg
    connection (calls join its transaction and never commit it), a psycopg pool, or None (`ABSURD_DATABASE_URL`,
    `PGDATABASE`, `postgresql://localhost/absurd`).

    Example:

        app = AsyncAbsurd("postgresql://localhost/shop", queue_name="orders")

        @app.register_task("fulfil")
        async def fulfil(params, ctx):
            await ctx.step("reserve", lambda: {"items": params["items"]})
            return await ctx.await_event(f"paid:{params['order']}")
    """

    def __init__(
        self,
        conn_or_url: _compat.Connection | _compat.Pool | str | None = None,
        queue_name: str = "default",
        default_max_attempts: int | None = None,
        hooks: AbsurdHooks | None = None,
        *,
        pool_size: int = POOL_SIZE,
    ) -> None:
        """`default_max_attempts` beats a queue's own default; left out, the queue decides, else 5.

        `pool_size`: most connections of the client's own pool; a worker with more slots raises it.
        """
        self.queue_name = options.queue_name(queue_name)
        if default_max_attempts is not None:
            options.whole_number(default_max_attempts, "default_max_attempts", ConfigError)
        self._attempts = MaxAttempts(default_max_attempts or SDK_MAX_ATTEMPTS, default_max_attempts is not None)
        self._hooks: AbsurdHooks = hooks or {}
        self._registry = Registry(self.queue_name)
        if not isinstance(pool_size, int) or isinstance(pool_size, bool) or pool_size < 1:
            raise ConfigError("pool_size must be an integer >= 1")
        self._pool_size = pool_size
        self._session = Session(conn_or_url, pool_size=pool_size)
        self._watcher = Watcher(self._session)
        self._worker: Worker | None = None
        self._spawning: dict[str, _compat.Coalescer[tuple[SpawnRow, UUID], SpawnResult]] = {}

    async def __aenter__(self) -> AsyncAbsurd:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the client's own pool; a borrowed connection or pool stays open."""
        self.stop_worker()
        await self._session.close()

    def bind(self, conn: _compat.Connection) -> AsyncAbsurd:
        """This client on a connection of yours: its calls join that connection's transaction and never commit it."""
        bound = object.__new__(type(self))
        bound.__dict__.update(self.__dict__)
        bound._session = Session(conn)
        bound._watcher = Watcher(bound._session)
        bound._worker = None
        return bound

    # [async-only
    def make_sync(self) -> Any:
        """An `Absurd` on the same database, queue and defaults; tasks are not carried over."""
        return self._again(_compat.twin_client())

    def make_async(self) -> Any:
        """Another client of this kind, on the same database, queue and defaults; tasks are not carried over."""
        return self._again(type(self))

    # ]
    # SYNC-ONLY: def make_async(self) -> Any:
    # SYNC-ONLY:     """An `AsyncAbsurd` on the same database, queue and defaults; tasks are not carried over."""
    # SYNC-ONLY:     return self._again(_compat.twin_client())
    # SYNC-ONLY:
    # SYNC-ONLY: def make_sync(self) -> Any:
    # SYNC-ONLY:     """Another client of this kind, on the same database, queue and defaults; tasks are not carried over."""
    # SYNC-ONLY:     return self._again(type(self))
    # SYNC-ONLY:
    def _again(self, kind: Any) -> Any:
        given = self._attempts.value if self._attempts.explicit else None
        return kind(self._session.conninfo(), self.queue_name, given, self._hooks or None, pool_size=self._pool_size)

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def register_task(
        self,
        name: str,
        queue: str | None = None,
        default_max_attempts: int | None = None,
        default_cancellation: CancellationPolicy | None = None,
        *,
        default_retry_strategy: RetryStrategy | None = None,
        params: Any = None,
        result: Any = None,
        saga: bool = False,
        strict_replay: bool = True,
    ) -> Callable[[Handler], Handler]:
        """Decorator for a handler `(params, ctx)`; returns it unchanged.

        `params` and `result` are types (pydantic model, dataclass, TypedDict, or anything a TypeAdapter takes) that values
        are held against at spawn and at claim; the annotation of the handler's first parameter serves as `params` when it
        is a model, dataclass or TypedDict.

        `saga=True`: steps may have `undo=`; a task `$undo:NAME`, registered along, sees to it when a task fails for good or is
        cancelled. `strict_replay=False`: new steps may come before recorded ones (otherwise StepOrderChanged).
        """
        if queue is not None:
            options.queue_name(queue)

        def register(handler: Handler) -> Handler:
            _compat.check_handler(name, handler)
            self._registry.add(
                name,
                handler,
                queue=queue,
                default_max_attempts=default_max_attempts,
                default_cancellation=default_cancellation,
                default_retry_strategy=default_retry_strategy,
                params=params,
                result=result,
                saga=saga,
                strict_replay=strict_replay,
            )
            if saga:
                self._registry.add(undo_name(name), sagas.undo, queue=queue, default_retry_strategy=sagas.RETRIES)
            return handler

        return register

    async def spawn(
        self,
        task_name: str,
        params: Any = None,
        max_attempts: int | None = None,
        retry_strategy: RetryStrategy | None = None,
        headers: dict[str, Any] | None = None,
        queue: str | None = None,
        cancellation: CancellationPolicy | None = None,
        idempotency_key: str | None = None,
        *,
        priority: int | None = None,
        start_at: datetime | None = None,
        delay: float | timedelta | None = None,
    ) -> SpawnResult:
        """Create a task; returns ids of its newest run and whether it is new.

        `idempotency_key`: one task per queue and key, as long as that task is kept. `priority` -1000..1000, higher first.
        `start_at` or `delay`: not before. Raises QueueNotFound, ConfigError, InvalidOption, InvalidRetryStrategy,
        InvalidTaskId, TaskIdConflict, IdempotencyConflict, ValidationFailed,
        NotSerializable, ValueTooLarge; nothing is written then.
        """
        options_given = {
            "max_attempts": max_attempts,
            "retry_strategy": retry_strategy,
            "headers": headers,
            "queue": queue,
            "cancellation": cancellation,
            "idempotency_key": idempotency_key,
            "priority": priority,
            "start_at": start_at,
            "delay": delay,
        }
        chosen = {key: value for key, value in options_given.items() if value is not None}
        target, row = await self._prepare({"task_name": task_name, "params": params, **chosen})
        ids = mint_task_ids(1) if self._session.mints_ids else None
        if ids is None or row.idempotency_key is not None:  # a key may be locked by somebody's open transaction
            return (await self._spawn_rows(target, [row], ids))[0]
        if target not in self._spawning:

            async def send(items: list[tuple[SpawnRow, UUID]]) -> list[SpawnResult]:
                return await self._spawn_rows(target, [row for row, _ in items], [task_id for _, task_id in items])

            self._spawning[target] = _compat.Coalescer(send, lambda item: len(item[0].params) + len(item[0].spec))
        return await self._spawning[target].call((row, ids[0]))

    async def spawn_many(
        self,
        requests: Iterable[SpawnRequest] | AsyncIterable[SpawnRequest],
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[SpawnResult]:
        """Create many tasks by few calls. Each request: task_name, params, and any option of `spawn`.

        Sent in chunks of 1,000, each all or nothing; `on_progress(done)` after each. One is under way while the next is made
        ready, so an error of one comes when up to 1,000 further requests have been read. Results in input order.
        """
        async with Bulk(self._spawn_chunk, on_progress, ahead=not self._session.borrowed) as bulk:
            async for request in _compat.each(requests):
                await bulk.add(await self._prepare(request))
            return await bulk.finish()

    def _spawn_chunk(self, rows: list[tuple[str, SpawnRow]]) -> Chunk[list[list[Row]], SpawnResult]:
        by_target: dict[str, list[int]] = {}
        for place, (target, _) in enumerate(rows):
            by_target.setdefault(target, []).append(place)
        ids = mint_task_ids(len(rows)) if self._session.mints_ids else None
        calls = [
            _spawn_call(target, [rows[n][1] for n in places], ids and [ids[n] for n in places])
            for target, places in by_target.items()
        ]

        async def send() -> list[list[Row]]:
            return [await self._session.run(call) for call in calls]

        def read(raw: list[list[Row]]) -> list[SpawnResult]:
            results: dict[int, SpawnResult] = {}
            for places, answer in zip(by_target.values(), raw, strict=True):
                minted = ids and [ids[n] for n in places]
                results.update(zip(places, procedures.spawned(answer, minted), strict=True))
            return [results[place] for place in range(len(rows))]

        return Chunk(send, read)

    async def _prepare(self, request: Mapping[str, Any]) -> tuple[str, SpawnRow]:
        """Target queue and row of one request, after the hook."""
        if type(request) is not dict and not isinstance(request, Mapping):
            raise InvalidOption(f"a request is a mapping with task_name, params and options, not {request!r:.40}")
        task_name, params = request.get("task_name", ""), request.get("params")
        given: Any = {key: value for key, value in request.items() if key not in ("task_name", "params")}
        hook = self._hooks.get("before_spawn")
        if hook is not None:
            given = await _compat.maybe_await(hook(task_name, params, given))
        task = self._registry.get(task_name)
        target = options.target_queue(task_name, task, given.get("queue"))
        return target, options.spawn_row(task_name, params, given, task, self._attempts)

    async def _spawn_rows(self, target: str, rows: list[SpawnRow], ids: list[UUID] | None) -> list[SpawnResult]:
        row = rows[0]
        if ids and len(rows) == 1 and row.limit is not None and row.idempotency_key is None:
            call = procedures.spawn_minted(target, row.task_name, row.params, row.limit, ids[0])
            if spawned := await self._session.run(call):
                return spawned
        answer = await self._session.run(_spawn_call(target, rows, ids))
        return procedures.spawned(answer, ids)

    async def fetch_task_result(self, task_id: TaskId, queue_name: str | None = None) -> TaskResultSnapshot | None:
        """How a task stands now; None for an unknown task."""
        found = await self._session.run(procedures.get_task_result(self._queue(queue_name), options.as_uuid(task_id)))
        return None if found is None else _snapshot(found)

    async def fetch_history(self, task_id: TaskId, queue_name: str | None = None) -> TaskHistory | None:
        """A task and all that it has recorded, whatever its state; None for an unknown task."""
        return await self._session.run(procedures.task_history(self._queue(queue_name), options.as_uuid(task_id)))

    async def check_replay(self, history: TaskHistory) -> ReplayCheck:
        """Run the registered handler over what a task has recorded, effects off, and say whether it would go on where the task
        stopped. Steps do not run, nothing is written; code between steps runs as in every replay."""
        return await rehearsal.check(self, history)

    async def await_task_result(
        self, task_id: TaskId, timeout: float | None = None, queue_name: str | None = None
    ) -> TaskResultSnapshot:
        """Wait until a task has ended, told by the database rather than polling where the connection allows it.

        Raises TimeoutError after `timeout` seconds, TaskNotFound for an unknown task, and ConnectionLost when the database
        cannot be reached at first; later losses are waited out.
        """
        queue, wanted = self._queue(queue_name), options.as_uuid(task_id)
        if isinstance(timeout, (int, float)):
            timeout = max(timeout, 0)  # a deadline that has passed: one look
        limit = None if timeout is None else options.seconds_of(timeout, "timeout")

        async def look(patience: float | None = None) -> TaskResultSnapshot:
            found = await self._session.run(procedures.get_task_result(queue, wanted), patience=patience)
            if found is None:
                raise TaskNotFound(f'Task "{wanted}" not found in queue "{queue}"')
            return _snapshot(found)

        return await self._watcher.wait(queue, wanted, limit, look)

    async def retry_task(
        self,
        task_id: TaskId,
        *,
        max_attempts: int | None = None,
        spawn_new: bool = False,
        queue_name: str | None = None,
    ) -> Retried:
        """Give a failed task another run (its checkpoints kept), or spawn a copy. Raises TaskNotFound, RetryRefused."""
        given: dict[str, Any] = {"spawn_new": spawn_new}
        if max_attempts is not None:
            given["max_attempts"] = options.whole_number(max_attempts, "max_attempts")
        if spawn_new and self._session.mints_ids:
            given["task_id"] = mint_task_ids(1)[0]
        call = procedures.retry_task(
            self._queue(queue_name), options.as_uuid(task_id), codec.encode(given), "task_id" in given
        )
        new_task, run, attempt, created = await self._session.run(call)
        return {"task_id": new_task, "run_id": run, "attempt": attempt, "created": created}

    async def cancel_task(self, task_id: TaskId, queue_name: str | None = None) -> None:
        """Cancel a task; a no-op once it has ended. A running handler is told at its next context call."""
        await self._session.run(procedures.cancel_task(self._queue(queue_name), options.as_uuid(task_id)))

    # -- events --------------------------------------------------------------------------------------------------------

    async def emit_event(
        self, event_name: str, payload: Any = None, queue_name: str | None = None, *, mode: EmitMode = "latch"
    ) -> bool:
        """Give an event of a queue its payload and wake who waits for it; whether it took effect.

        "latch": the first emit of a name wins, later ones change nothing (False). "next": replaces the payload.
        """
        options.emit(event_name, mode)
        queue, text = self._queue(queue_name), codec.encode(payload, what="payload")
        if mode == "latch":
            letter = await self._session.run(procedures.emit_one(queue, event_name, text))
            if letter is not None:
                return letter == "o"
        return await self._session.run(procedures.emit_events(queue, [event_name], [text], mode)) == "o"

    async def emit_many(
        self,
        events: Iterable[tuple[str, Any]] | AsyncIterable[tuple[str, Any]],
        queue_name: str | None = None,
        *,
        mode: EmitMode = "latch",
        on_progress: Callable[[int], None] | None = None,
    ) -> list[bool]:
        """Emit (name, payload) pairs by few calls, in chunks of 1,000; whether each took effect, in input order."""
        queue = self._queue(queue_name)

        def pack(rows: list[tuple[str, str]]) -> Chunk[str, bool]:
            call = procedures.emit_events(queue, [name for name, _ in rows], [text for _, text in rows], mode)
            return Chunk(lambda: self._session.run(call), lambda letters: [letter == "o" for letter in letters])

        async with Bulk(pack, on_progress, ahead=not self._session.borrowed) as bulk:
            async for name, payload in _compat.each(events):
                options.emit(name, mode)
                await bulk.add((name, codec.encode(payload, what="payload")))
            return await bulk.finish()

    # -- queues --------------------------------------------------------------------------------------------------------

    async def create_queue(
        self,
        queue_name: str | None = None,
        *,
        storage_mode: QueueStorageMode = "unpartitioned",
        partition_lookahead: str | None = None,
        partition_lookback: str | None = None,
        cleanup_ttl: str | None = None,
        cleanup_limit: int | None = None,
        detach_mode: QueueDetachMode | None = None,
        detach_min_age: str | None = None,
        default_max_attempts: int | None = None,
    ) -> None:
        """Create a queue (a no-op when it is there) and set the given policy, both or neither."""
        if storage_mode not in ("unpartitioned", "partitioned"):
            raise ConfigError(f'Unsupported queue storage mode "{storage_mode}"')
        policy = options.policy(
            partition_lookahead=partition_lookahead,
            partition_lookback=partition_lookback,
            cleanup_ttl=cleanup_ttl,
            cleanup_limit=cleanup_limit,
            detach_mode=detach_mode,
            detach_min_age=detach_min_age,
            default_max_attempts=default_max_attempts,
        )
        await self._session.run(procedures.create_queue(self._queue(queue_name), storage_mode, policy))

    async def set_queue_policy(
        self,
        queue_name: str | None = None,
        *,
        partition_lookahead: str | None = None,
        partition_lookback: str | None = None,
        cleanup_ttl: str | None = None,
        cleanup_limit: int | None = None,
        detach_mode: QueueDetachMode | None = None,
        detach_min_age: str | None = None,
        default_max_attempts: int | None = None,
    ) -> None:
        """Change what is given of a queue's policy; intervals in Postgres notation. A no-op without any."""
        policy = options.policy(
            partition_lookahead=partition_lookahead,
            partition_lookback=partition_lookback,
            cleanup_ttl=cleanup_ttl,
            cleanup_limit=cleanup_limit,
            detach_mode=detach_mode,
            detach_min_age=detach_min_age,
            default_max_attempts=default_max_attempts,
        )
        if policy is not None:
            await self._session.run(procedures.set_queue_policy(self._queue(queue_name), policy))

    async def get_queue_policy(self, queue_name: str | None = None) -> QueuePolicy | None:
        """A queue's policy; None for an unknown queue."""
        row = await self._session.run(procedures.get_queue_policy(self._queue(queue_name)))
        if row is None:
            return None
        return {
            "queue_name": row[0],
            "storage_mode": row[1],
            "partition_lookahead": row[3],
            "partition_lookback": row[4],
            "cleanup_ttl": row[5],
            "cleanup_limit": row[6],
            "detach_mode": row[7],
            "detach_min_age": row[8],
        }

    async def drop_queue(self, queue_name: str | None = None) -> None:
        """Drop a queue with all it holds; a no-op for an unknown one."""
        await self._session.run(procedures.drop_queue(self._queue(queue_name)))

    async def purge_queue(self, queue_name: str | None = None) -> int:
        """Delete every task and event of a queue; the number of tasks."""
        return await self._session.run(procedures.purge_queue(self._queue(queue_name)))

    async def list_queues(self) -> list[str]:
        """All queues, by name."""
        return await self._session.run(procedures.list_queues())

    # -- workers -------------------------------------------------------------------------------------------------------

    async def claim_tasks(
        self, batch_size: int = 1, claim_timeout: int = 120, worker_id: str = "worker"
    ) -> list[ClaimedTask]:
        """Claim due tasks of the default queue, for code that runs them by itself."""
        rows = await self._session.run(
            procedures.claim_task(
                self.queue_name, options.text(worker_id, "worker_id"), _lease(claim_timeout), _count(batch_size)
            )
        )
        keys = (
            "run_id",
            "task_id",
            "task_name",
            "attempt",
            "params",
            "retry_strategy",
            "max_attempts",
            "headers",
            "wake_event",
            "event_payload",
        )
        return [dict(zip(keys, row, strict=True)) for row in rows]  # type: ignore[misc]

    async def work_batch(self, worker_id: str = "worker", claim_timeout: int = 120, batch_size: int = 1) -> None:
        """Claim due tasks of the default queue and run them here, one after the other; leases are renewed meanwhile."""
        claimed = await self.claim_tasks(batch_size, claim_timeout, worker_id)
        await work_claimed(self, claimed, float(claim_timeout))

    async def start_worker(
        self,
        worker_id: str | None = None,
        claim_timeout: float = 120,
        concurrency: int = 1,
        batch_size: int | None = None,
        poll_interval: float = 0.25,
        *,
        queues: Iterable[str] | None = None,
        housekeeping: bool = True,
        drain_timeout: float = DRAIN_SECONDS,
        handle_signals: bool = True,
    ) -> None:
        """Work until `stop_worker()`, SIGTERM or SIGINT; then finish or hand back what is under way, and return.

        `claim_timeout`: lease in seconds, renewed by itself. `concurrency`: slots; above `pool_size` the client's own pool
        grows with them. `batch_size`: most claimed by one call.
        `poll_interval`: seconds, the fallback where notifications cannot reach. `queues`: default the client's own.
        `drain_timeout`: seconds that running handlers get when the worker stops; a second signal leaves at once.
        Raises ConfigError, QueueNotFound, SchemaMissing, ConnectionLost at the start; later losses of the database are
        waited out.
        """
        if self._worker is not None:
            raise ConfigError("this client runs a worker already")
        self._worker = Worker(
            self,
            worker_id=worker_id and options.text(worker_id, "worker_id"),
            claim_timeout=claim_timeout,
            concurrency=concurrency,
            batch_size=batch_size,
            poll_interval=poll_interval,
            queues=[options.queue_name(name) for name in queues or [self.queue_name]],
            housekeeping=housekeeping,
            drain_timeout=drain_timeout,
            handle_signals=handle_signals,
        )
        try:
            if concurrency > self._pool_size:  # slots in transactions hold one each, and spawns in them need another
                await self._session.make_room(concurrency + 2)
            await self._worker.run()
        finally:
            self._worker = None

    def stop_worker(self) -> None:
        """Ask the running worker, if any, to finish or hand back its tasks and return."""
        worker = self._worker
        if worker is not None:
            worker.stop()

    def _queue(self, name: str | None) -> str:
        return self.queue_name if name is None else options.queue_name(name)


def _spawn_call(target: str, rows: list[SpawnRow], ids: list[UUID] | None) -> Call[list[Row]]:
    names, params, keys, marks, specs, _ = zip(*rows, strict=True)
    return procedures.spawn_tasks(target, names, params, keys, marks, specs, ids)


def _snapshot(found: tuple[str, Any, Any]) -> TaskResultSnapshot:
    return TaskResultSnapshot(*found)  # type: ignore[arg-type]


def _lease(claim_timeout: float) -> int:
    if isinstance(claim_timeout, bool) or not isinstance(claim_timeout, (int, float)) or not claim_timeout > 0:
        raise ConfigError("claim_timeout must be > 0: without a lease nobody takes over the task of a worker that died")
    if claim_timeout > options.LARGEST_INTEGER:
        raise ConfigError(f"claim_timeout must be <= {options.LARGEST_INTEGER} seconds")
    return math.ceil(claim_timeout)


def _count(batch_size: int) -> int:
    if (
        isinstance(batch_size, bool)
        or not isinstance(batch_size, int)
        or not 0 <= batch_size <= options.LARGEST_INTEGER
    ):
        raise ConfigError(
            f"batch_size must be an integer from 0 to {options.LARGEST_INTEGER}, not {options.shown(batch_size)}"
        )
    return batch_size
