"""The context a handler works with: steps, sleeps, waits, emits, transactions."""

from __future__ import annotations

import contextlib
import functools
import math
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

import psycopg

from absurd._async import _compat
from absurd._async import steps as _steps
from absurd._async.session import Session, raise_mapped
from absurd._async.transaction import TransactionStep
from absurd._core import codec, options
from absurd._core.options import seconds_of
from absurd._core.outcome import Released
from absurd._core.registry import RegisteredTask, validated
from absurd._core.replay import History, kept_moment
from absurd._core.retries import ONCE, step_policy
from absurd._db import batch, procedures
from absurd._db.batch import Answer
from absurd._db.procedures import Claim
from absurd.errors import (
    CancelledTask,
    FailedTask,
    InvalidOption,
    LeaseLostSignal,
    SuspendTask,
    TaskNotFound,
    TimeoutError,
)
from absurd.telemetry import RunFields, TaskLogger, logger
from absurd.types import EmitMode, RetryStrategy, SpawnResult, StepHandle, TaskId, TaskResultSnapshot

if TYPE_CHECKING:
    from absurd._async.client import AsyncAbsurd

T = TypeVar("T")
#: Serialization failure and deadlock: what the database asks to be tried again.
TRY_AGAIN = ("40001", "40P01")
TRANSACTION_TRIES = 5
LONGEST_SLEEP = timedelta(days=365_250)
LATEST_WAKE = datetime(9000, 1, 1, tzinfo=UTC)

_key = object()
current: ContextVar[AsyncTaskContext | None] = ContextVar("absurd_async_context", default=None)


class Writer(Protocol):
    """Where a run's rows go: a worker's committer, or straight to the database."""

    async def write(self, row: batch.Write) -> Answer:
        """Return after the row's commit."""
        ...


class AsyncTaskContext:
    """What a handler gets as second argument; not constructible.

    Attributes: `task_id`, `run_id` (`uuid.UUID`), `task_name`, `attempt` (from 1), `queue_name`, `headers` ({} if none),
    `log` (a logger that knows the run).
    """

    __slots__ = (
        "_claim",
        "_client",
        "_history",
        "_lease",
        "_log",
        "_running",
        "_task",
        "_writer",
        "headers",
        "queue_name",
        "run_id",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not args or args[0] is not _key:
            raise TypeError("a task context is made by the worker, one for each run")
        _, client, claim, writer, running, lease, task, history = args
        self._client: AsyncAbsurd = client
        self._claim: Claim = claim
        self._writer: Writer = writer
        self._running: _compat.Running = running
        self._lease: float = lease
        self._task: RegisteredTask = task
        self._history: History = history or History(claim.checkpoints, claim.timeouts, strict=task.strict_replay)
        self.headers: dict[str, Any] = claim.headers or {}
        self.queue_name = claim.queue_name
        self.run_id = claim.run_id
        self._log: TaskLogger | None = None

    @property
    def log(self) -> TaskLogger:
        """A logger whose records carry task_name, task_id, run_id and attempt."""
        if self._log is None:
            self._log = TaskLogger(logger, RunFields(self.task_name, self.task_id, self.run_id, self.attempt))
        return self._log

    @property
    def task_id(self) -> uuid.UUID:
        """The task's id, the same in every attempt."""
        return self._claim.task_id

    @property
    def task_name(self) -> str:
        """The name the task was spawned under."""
        return self._claim.task_name

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1; waking from a sleep or a wait goes on with the same one."""
        return self._claim.attempt

    @property
    def is_replaying(self) -> bool:
        """True while the handler passes what an earlier execution has committed: guard prints and logs with it."""
        return self._history.replaying

    # -- steps ---------------------------------------------------------------------------------------------------------

    @overload
    async def step(
        self,
        name: str,
        fn: Callable[[], Awaitable[Any] | Any],
        *,
        returns: type[T],
        max_attempts: int | None = ...,
        retry_strategy: RetryStrategy | None = ...,
        timeout: Any = ...,
        undo: str | None = ...,
    ) -> T: ...
    # [async-only
    @overload
    async def step(
        self,
        name: str,
        fn: Callable[[], Awaitable[T]],
        *,
        max_attempts: int | None = ...,
        retry_strategy: RetryStrategy | None = ...,
        timeout: Any = ...,
        undo: str | None = ...,
    ) -> T: ...
    # ]
    @overload
    async def step(
        self,
        name: str,
        fn: Callable[[], T],
        *,
        max_attempts: int | None = ...,
        retry_strategy: RetryStrategy | None = ...,
        timeout: Any = ...,
        undo: str | None = ...,
    ) -> T: ...
    async def step(
        self,
        name: str,
        fn: Callable[[], Any],
        *,
        returns: Any = None,
        max_attempts: int | None = None,
        retry_strategy: RetryStrategy | None = None,
        timeout: Any = None,
        undo: str | None = None,
    ) -> Any:
        """Run `fn` once and keep its value; later executions of the task get the kept value.

        At-least-once: a crash between `fn` and its commit runs it again. Returns what JSON makes of the value, the same
        the first time and on replay; with `returns`, a value of that type both times.

        `max_attempts`: so often `fn` is tried before its error leaves the step, with the pauses of `retry_strategy` in
        between, in the worker's slot: at most 300 s each. `timeout` (seconds or timedelta) for each try; TimeoutError.
        A thread cannot be stopped: `timeout` is for AsyncAbsurd. NonRetryableError ends the tries, RetryAfter sets a pause.

        `undo`: the name of a task that takes the step's effect back when this task, registered with `saga=True`, fails for good
        or is cancelled after the step has begun. It gets task_id, task_name and params of this task, step, value, and kept:
        False when nobody knows whether the step took effect.

        Raises NotSerializable or ValueTooLarge for a value that cannot be kept, and StepOrderChanged when the step is new
        while recorded ones are still ahead.
        """
        policy = step_policy(max_attempts, retry_strategy, timeout)
        _compat.check_timeout(policy.timeout)
        checkpoint, done, state = self._take(name)  # not _ask: each await here costs every step
        if not done and self._history.ahead(checkpoint):
            await _steps.fresh(self, checkpoint)
        if undo is not None:
            await _steps.intend(self, checkpoint, undo)
        if not done:
            tries = _compat.maybe_await(fn()) if policy is ONCE else _steps.tried(self, checkpoint, fn, policy)
            state = await self._keep(checkpoint, await tries)
        return state if returns is None else validated(state, returns, f'step "{checkpoint}"')

    async def gather(self, steps: Mapping[str, Callable[[], Any]], *, limit: int | None = None) -> dict[str, Any]:
        """Run several steps side by side, at most `limit` at a time; their values by name.

        Each is a step of its own, kept as soon as it is done: what is committed is not run again when the task is. Names are
        given in the order of `steps`, so they do not depend on which is faster. When some fail, the others come to their
        end first; then the error of the first of them, in the order of `steps`, is raised. In `Absurd` each runs in a thread.
        """
        return await _steps.gather(self, steps, limit)

    async def map(self, name: str, fn: Callable[[Any], Any], items: Iterable[Any], *, limit: int = 10) -> list[Any]:
        """`fn` of each item as a step of its own, at most `limit` at a time; the values in the order of the items.

        The steps are called `name[0]`, `name[1]`, ...: the items must come in the same order in every attempt. Otherwise as
        `gather`.
        """
        steps = {f"{name}[{number}]": functools.partial(fn, item) for number, item in enumerate(items)}
        return list((await self.gather(steps, limit=limit)).values())

    async def spawn(
        self, task_name: str, params: Any = None, *, step_name: str | None = None, **options: Any
    ) -> SpawnResult:
        """Spawn a task once, however often this handler runs: a step of its own (`$spawn:<task name>` unless named).

        Options as `spawn` of the client takes them, but for `idempotency_key`, which is the step. Raises what that raises.
        """
        if "idempotency_key" in options:
            raise InvalidOption("a spawn in a handler has its step as key: name it by step_name")
        checkpoint, done, state = await self._ask(step_name or f"$spawn:{task_name}")
        if not done:
            if "queue" not in options and self._client._registry.get(task_name) is None:
                options["queue"] = self.queue_name
            state = await self._spawn(checkpoint, task_name, params, options)
        return SpawnResult(
            task_id=uuid.UUID(state["task_id"]),
            run_id=uuid.UUID(state["run_id"]),
            attempt=state["attempt"],
            created=state["created"],
            same_request=state["same_request"],
        )

    async def begin_step(self, name: str) -> StepHandle:
        """The open form of `step`: if `done`, `state` is the kept value; else do the work and call `complete_step`."""
        checkpoint, done, state = await self._ask(name)
        return StepHandle(name, checkpoint, done, state)

    async def complete_step(self, handle: StepHandle, value: Any) -> Any:
        """Keep the value of an open step; returns the kept value (the stored one when the step was done)."""
        if handle.done:
            return handle.state
        self._check()
        return await self._keep(handle.checkpoint_name, value)

    # SYNC-ONLY: def run_step(self, name: Any = None) -> Any:
    # SYNC-ONLY:     """Decorator: the function runs at once as a step, and its name then stands for the value.
    # SYNC-ONLY:
    # SYNC-ONLY:     `@ctx.run_step`, `@ctx.run_step()` or `@ctx.run_step("name")`; the name defaults to the function's.
    # SYNC-ONLY:     """
    # SYNC-ONLY:     if callable(name):
    # SYNC-ONLY:         return self.step(name.__name__, name)
    # SYNC-ONLY:     return lambda fn: self.step(name or fn.__name__, fn)

    @contextlib.asynccontextmanager
    async def transaction(self, name: str) -> AsyncIterator[TransactionStep]:
        """A step whose database writes commit together with its checkpoint: exactly-once inside this database.

        Inside the block, `tx.execute`, `tx.spawn` and `tx.emit_event` share one transaction; `tx.result` is what the step
        keeps. When the step has committed before, `tx.done` is true, `tx.result` is the kept value, and those calls do
        nothing, so the block passes without effect. An exception rolls everything back, the checkpoint included.

        A deadlock or serialization failure (SQLSTATE 40P01, 40001) comes out like any other error, since a block cannot be
        run again; `run_transaction` can do that. Raises ConnectionLost before the block when no connection is to be had.
        """
        checkpoint, done, state = await self._ask(name)
        if done:
            yield TransactionStep(self._client, None, checkpoint, done, state)
            return
        async with self._transaction(checkpoint) as tx:
            yield tx

    @contextlib.asynccontextmanager
    async def _transaction(self, checkpoint: str) -> AsyncIterator[TransactionStep]:
        self._check()
        async with self._client._session.transaction() as conn:
            tx = TransactionStep(self._client, conn, checkpoint, False, None)
            yield tx
            text = codec.encode(tx.result, what=f'result of step "{checkpoint}"')
            if self._history.loses_order(checkpoint):
                await _steps.mark(self)
            claim = self._claim
            call = procedures.hold_and_checkpoint(claim.queue_id, self.run_id, claim.claim_no, checkpoint, text)
            try:
                letter = await Session(conn).run(call)
            except psycopg.Error as error:
                raise_mapped(error)
            self._accept(Answer(letter), "o")
        tx.result = codec.roundtrip(text)
        self._history.keep(checkpoint, tx.result)

    # SYNC-ONLY: def run_transaction(
    # SYNC-ONLY:     self, name: str, fn: Callable[[TransactionStep], T], *, undo: str | None = None
    # SYNC-ONLY: ) -> T:
    # [async-only
    @overload
    async def run_transaction(
        self, name: str, fn: Callable[[TransactionStep], Awaitable[T]], *, undo: str | None = ...
    ) -> T: ...
    @overload
    async def run_transaction(self, name: str, fn: Callable[[TransactionStep], T], *, undo: str | None = ...) -> T: ...
    async def run_transaction(self, name: str, fn: Callable[[TransactionStep], Any], *, undo: str | None = None) -> Any:
        # ]
        """`transaction` as a call: `fn(tx)` runs only when the step has not committed; returns its kept value.

        After a deadlock or serialization failure (SQLSTATE 40P01, 40001), which rolled everything back, `fn` is called
        again, up to five times in all; the last failure comes out. Not on a connection of yours, whose transaction began
        before. `undo` as in `step`.
        """
        checkpoint, done, state = await self._ask(name)
        if undo is not None:
            await _steps.intend(self, checkpoint, undo)
        if not done:
            state = await self._in_transaction(checkpoint, fn)
        return state  # type: ignore[no-any-return, unused-ignore]

    async def _in_transaction(self, checkpoint: str, fn: Callable[[TransactionStep], Any]) -> Any:
        tries_left = 1 if self._client._session.borrowed else TRANSACTION_TRIES
        while True:
            tries_left -= 1
            try:
                async with self._transaction(checkpoint) as tx:
                    tx.result = await _compat.maybe_await(fn(tx))
                return tx.result
            except psycopg.Error as error:
                if error.sqlstate not in TRY_AGAIN or not tries_left:
                    raise
            # of two that stood in each other's way, one goes first this time
            await _compat.sleep(0.01 * 2 ** (TRANSACTION_TRIES - tries_left) * (0.5 + random.random()))

    # -- time ----------------------------------------------------------------------------------------------------------

    async def sleep_for(self, step_name: str, duration_seconds: Any) -> None:
        """Suspend for a duration (seconds or timedelta), measured by the database's clock from the first call on.

        Raises InvalidOption for a negative duration and for one of more than 1,000 years.
        """
        delay = seconds_of(duration_seconds, "duration")
        if delay > LONGEST_SLEEP.total_seconds():
            raise InvalidOption(
                f"duration must be at most 1000 years, not {duration_seconds!r}: await an event instead"
            )
        await self._sleep(step_name, delay=delay)

    async def sleep_until(self, step_name: str, wake_at: datetime | float) -> None:
        """Suspend until a moment: an aware datetime, or epoch seconds. A moment in the past returns at once.

        Raises InvalidOption for what is no moment, and for one after the year 9000.
        """
        if isinstance(wake_at, bool) or not isinstance(wake_at, (datetime, int, float)):
            raise InvalidOption(f"wake_at must be a datetime or epoch seconds, not {wake_at!r}")
        if not isinstance(wake_at, datetime):
            try:
                if not math.isfinite(wake_at):
                    raise InvalidOption("wake_at must be a finite number of epoch seconds")
                wake_at = datetime.fromtimestamp(wake_at, UTC)
            except (ValueError, OverflowError, OSError):
                raise InvalidOption("wake_at must be epoch seconds of a moment before the year 9000") from None
        if wake_at.replace(tzinfo=UTC) >= LATEST_WAKE:
            raise InvalidOption(f"wake_at must be before the year 9000, not {wake_at}: await an event instead")
        if wake_at.tzinfo is None:
            try:
                wake_at = wake_at.astimezone()
            except (ValueError, OverflowError):
                raise InvalidOption(f"wake_at {wake_at} has no place in the local time zone: give it one") from None
        await self._sleep(step_name, wake_at=wake_at)

    async def _sleep(self, step_name: str, *, delay: float | None = None, wake_at: datetime | None = None) -> None:
        checkpoint, done, state = await self._ask(step_name)
        if done:
            wake_at, delay = kept_moment(state, checkpoint), None
            if wake_at <= self._claim.claimed_at:
                return
        elif self._history.loses_order(checkpoint):
            await _steps.mark(self)
        answer = await self._writer.write(batch.Sleep(*self._fence(), step=checkpoint, delay=delay, wake_at=wake_at))
        if answer.letter in ("o", "r"):
            raise SuspendTask(f'sleeping: step "{checkpoint}"')
        self._accept(answer, "e")
        self._history.keep(checkpoint, None)  # it is over already

    # -- events and tasks ----------------------------------------------------------------------------------------------

    @overload
    async def await_event(
        self,
        event_name: str,
        step_name: str | None = ...,
        timeout: Any = ...,
        *,
        since: datetime | str | None = ...,
        returns: type[T],
    ) -> T: ...
    @overload
    async def await_event(
        self, event_name: str, step_name: str | None = ..., timeout: Any = ..., *, since: datetime | str | None = ...
    ) -> Any: ...
    async def await_event(
        self,
        event_name: str,
        step_name: str | None = None,
        timeout: Any = None,
        *,
        since: datetime | str | None = None,
        returns: Any = None,
    ) -> Any:
        """Suspend until the event has been emitted in this queue; returns its payload, at once when it is there already.

        `timeout` (seconds or timedelta): raises TimeoutError when it passes first, in this and every later attempt.
        `since`: only payloads emitted after a moment count: an aware datetime, or "task_start" (when the task was
        spawned); default: ever. `returns`: a type for the payload.
        """
        options.event_name(event_name)
        limit = None if timeout is None else seconds_of(timeout, "timeout")
        after = self._since(since)
        checkpoint, done, payload = await self._ask(step_name or f"$awaitEvent:{event_name}")
        if not done:
            if self._history.timed_out(checkpoint):
                raise TimeoutError(f'Timed out waiting for event "{event_name}"')
            row = batch.AwaitEvent(*self._fence(), checkpoint, event_name, limit, after)
            payload = await self._wait(row, checkpoint, f'event "{event_name}"')
        return payload if returns is None else validated(payload, returns, f'payload of event "{event_name}"')

    async def await_task_result(
        self, task_id: TaskId, queue_name: str | None = None, timeout: Any = None, step_name: str | None = None
    ) -> TaskResultSnapshot:
        """Suspend until a task, of this queue or another, has completed, failed or been cancelled.

        Holds no slot and no connection while it waits. Raises TimeoutError (durable) and TaskNotFound.
        """
        awaited = options.as_uuid(task_id)
        if awaited == self.task_id:
            raise InvalidOption("a task cannot wait for itself")
        limit = None if timeout is None else seconds_of(timeout, "timeout")
        checkpoint, done, stored = await self._ask(step_name or f"$awaitTaskResult:{awaited}")
        if not done:
            if self._history.timed_out(checkpoint):
                raise TimeoutError(f'Timed out waiting for task "{awaited}"')
            queue_id = self._claim.queue_id
            if queue_name not in (None, self.queue_name):
                queue_id = await self._client._session.run(procedures.queue_id_of(options.queue_name(queue_name)))
            row = batch.AwaitTask(*self._fence(), checkpoint, queue_id, awaited, limit)
            stored = await self._wait(row, checkpoint, f'task "{awaited}"', f'queue "{queue_name or self.queue_name}"')
        return TaskResultSnapshot(stored["state"], stored.get("result"), stored.get("failure"))

    async def emit_event(self, event_name: str, payload: Any = None, *, mode: EmitMode = "latch") -> bool:
        """Emit in this task's queue; whether it took effect (`latch`: the first emit of a name wins).

        Repeated when the handler is: for an emit that commits with a step, use `transaction`.
        """
        options.emit(event_name, mode)
        self._check()
        text = codec.encode(payload, what="payload")
        answer = await self._say(batch.Emit(*self._fence(), event_name, text, mode))
        return answer.letter == "o"

    async def heartbeat(self, seconds: int | None = None) -> None:
        """Let the lease run out so many seconds from now (default: the claim timeout), be that later or sooner than before.

        The worker renews it by itself while the handler runs. Returns after the commit. Raises InvalidOption unless
        `seconds` is a number above 0; CancelledTask, FailedTask or the lost lease's signal when the run is over for this
        worker (control flow: do not catch them).
        """
        by = max(1, math.ceil(self._lease)) if seconds is None else seconds
        if isinstance(by, bool) or not isinstance(by, (int, float)) or not by > 0:
            raise InvalidOption("extend_by must be > 0")
        if by > options.LARGEST_INTEGER:
            raise InvalidOption(f"extend_by must be <= {options.LARGEST_INTEGER} seconds")
        self._check()
        self._accept(await self._say(batch.Extend(*self._fence(), float(by))), "o")

    # -- inside --------------------------------------------------------------------------------------------------------

    def _fence(self) -> tuple[int, bytes, int]:
        return self._claim.queue_id, self._claim.run_bytes, self._claim.claim_no

    def _check(self) -> None:
        """A run that is over, or whose worker leaves, goes no further than here."""
        if self._running.reason is not None:
            raise self._running.reason

    def _take(self, name: str) -> tuple[str, bool, Any]:
        """The checkpoint name of the next call that uses `name`, whether it is recorded, and the recorded value."""
        checkpoint = self._history.next_name(name)
        self._check()
        if self._running.elsewhere():
            self._history.untold = True
        done, state = self._history.take(checkpoint)
        return checkpoint, done, state

    async def _ask(self, name: str) -> tuple[str, bool, Any]:
        """`_take`; what is not recorded must come in order."""
        checkpoint, done, state = self._take(name)
        if not done and self._history.ahead(checkpoint):
            await _steps.fresh(self, checkpoint)
        return checkpoint, done, state

    async def _spawn(self, checkpoint: str, task_name: str, params: Any, chosen: Mapping[str, Any]) -> Any:
        key = f"$spawn:{self.task_id}:{checkpoint}"
        return await self._keep(checkpoint, await self._client.spawn(task_name, params, idempotency_key=key, **chosen))

    async def _keep(self, checkpoint: str, value: Any) -> Any:
        text = codec.encode(value, what=f'value of step "{checkpoint}"')
        if self._history.loses_order(checkpoint):
            await _steps.mark(self)
        await self._write_checkpoint(checkpoint, text)
        state = codec.roundtrip(text)
        self._history.keep(checkpoint, state)
        return state

    async def _write_checkpoint(self, checkpoint: str, text: str) -> None:
        self._accept(await self._writer.write(batch.Checkpoint(*self._fence(), checkpoint, text)), "or")

    async def _say(self, row: batch.Write) -> Answer:
        """Write what leaves no record of its own: when it fails, the handler's way may turn on that."""
        try:
            return await self._writer.write(row)
        except BaseException:
            self._history.untold = True
            raise

    async def _wait(self, row: batch.Write, checkpoint: str, what: str, where: str = "") -> Any:
        if self._history.loses_order(checkpoint):
            await _steps.mark(self)
        answer = await self._writer.write(row)
        if answer.letter in ("s", "r"):
            raise SuspendTask(f"waiting for {what}")
        if answer.letter == "t":
            self._history.time_out(checkpoint)
            raise TimeoutError(f"Timed out waiting for {what}")
        if answer.letter == "u":
            raise TaskNotFound(f"{what[0].upper()}{what[1:]} not found in {where}")
        self._accept(answer, "a")
        self._history.keep(checkpoint, answer.payload)
        return answer.payload

    def _accept(self, answer: Answer, letters: str) -> None:
        if answer.letter in letters:
            return
        if answer.letter == "c":
            raise CancelledTask(f'task "{self.task_id}" was cancelled')
        if answer.letter == "f":
            raise FailedTask(f'run "{self.run_id}" was failed: its lease ran out')
        if isinstance(self._running.reason, Released):
            raise self._running.reason
        raise LeaseLostSignal(f'run "{self.run_id}" is no longer this worker\'s')

    def _since(self, since: datetime | str | None) -> datetime | None:
        if since is None or since == "ever":
            return None
        if since == "task_start":
            return self._claim.enqueue_at
        if isinstance(since, datetime) and since.tzinfo is not None:
            return since
        raise InvalidOption(f'since must be "ever", "task_start" or an aware datetime, not {since!r}')


def make_context(
    client: AsyncAbsurd,
    claim: Claim,
    writer: Writer,
    running: _compat.Running,
    lease: float,
    task: RegisteredTask,
    history: History | None = None,
) -> AsyncTaskContext:
    """A context for one run; `lease` in seconds; `history` instead of the claim's own."""
    return AsyncTaskContext(_key, client, claim, writer, running, lease, task, history)


def get_current_context() -> AsyncTaskContext | None:
    """The context of the handler this code runs in, or None."""
    return current.get()
