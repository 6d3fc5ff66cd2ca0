"""Tests of tasks, on a real database, with a clock that the test moves and crashes that it orders.

Everything here serves both clients: of a test client of `AsyncAbsurd` the functions answer coroutines. Nothing needs
pytest; `absurd.testing.plugin` has the fixtures.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from typing import Any, overload

from absurd._async.client import AsyncAbsurd
from absurd._sync.client import Absurd
from absurd.testing._async.clock import FakeClock as AsyncFakeClock
from absurd.testing._async.crash import crash_everywhere as _async_crash
from absurd.testing._async.runner import drain as _async_drain
from absurd.testing._async.runner import run_to_wait as _async_run
from absurd.testing._async.session import client as async_client
from absurd.testing._sync.clock import FakeClock
from absurd.testing._sync.crash import crash_everywhere as _sync_crash
from absurd.testing._sync.runner import drain as _sync_drain
from absurd.testing._sync.runner import run_to_wait as _sync_run
from absurd.testing._sync.session import client
from absurd.testing.clock import Clock
from absurd.testing.effects import Effects
from absurd.testing.values import Boundary, CrashReport, Drained, Due, Standing
from absurd.types import SpawnResult, TaskId

__all__ = [
    "AsyncFakeClock",
    "Boundary",
    "Clock",
    "CrashReport",
    "Drained",
    "Due",
    "Effects",
    "FakeClock",
    "Standing",
    "async_client",
    "client",
    "crash_everywhere",
    "drain",
    "run_to_wait",
]


@overload
def run_to_wait(app: Absurd, task: SpawnResult | TaskId) -> Standing: ...
@overload
def run_to_wait(app: AsyncAbsurd, task: SpawnResult | TaskId) -> Coroutine[Any, Any, Standing]: ...
def run_to_wait(app: Any, task: Any) -> Any:
    """Run a task here, in this thread, until it has nothing to do at this moment: it sleeps, waits or has ended.

    Answers how it stands then. `task`: what `spawn` returned, or an id. Other due tasks of the client's queues that come
    before it are run as well. Raises TaskNotFound; ConfigError when the client is no test client (see `client`) or does not
    know the task.
    """
    return _async_run(app, task) if isinstance(app, AsyncAbsurd) else _sync_run(app, task)


@overload
def drain(app: Absurd, max_tasks: int = ..., advance: bool = ...) -> Drained: ...
@overload
def drain(app: AsyncAbsurd, max_tasks: int = ..., advance: bool = ...) -> Coroutine[Any, Any, Drained]: ...
def drain(app: Any, max_tasks: int = 10_000, advance: bool = False) -> Any:
    """Run everything that is due in the client's queues, here, until nothing is; answers how many runs ended how.

    With `advance` the clock is moved to each next moment at which something is due, until there is none: what is left then
    waits for events or other tasks. Tasks that the client has not registered are left alone. Raises AssertionError when
    more than `max_tasks` runs are needed, and ConfigError when the client is no test client, or has no clock to move.
    """
    call = _async_drain if isinstance(app, AsyncAbsurd) else _sync_drain
    return call(app, max_tasks, advance)


@overload
def crash_everywhere(
    app: Absurd,
    task_name: str,
    params: Any = None,
    *,
    events: Mapping[str, Any] | None = ...,
    effects: Callable[[], Any] | str | None = ...,
    reset: Callable[[], Any] | None = ...,
    key: Callable[[Any], Any] | None = ...,
    double_worker: bool = ...,
    claim_timeout: float | timedelta = ...,
    **spawn_options: Any,
) -> CrashReport: ...
@overload
def crash_everywhere(
    app: AsyncAbsurd,
    task_name: str,
    params: Any = None,
    *,
    events: Mapping[str, Any] | None = ...,
    effects: Callable[[], Any] | str | None = ...,
    reset: Callable[[], Any] | None = ...,
    key: Callable[[Any], Any] | None = ...,
    double_worker: bool = ...,
    claim_timeout: float | timedelta = ...,
    **spawn_options: Any,
) -> Coroutine[Any, Any, CrashReport]: ...
def crash_everywhere(
    app: Any,
    task_name: str,
    params: Any = None,
    *,
    events: Mapping[str, Any] | None = None,
    effects: Callable[[], Any] | str | None = None,
    reset: Callable[[], Any] | None = None,
    key: Callable[[Any], Any] | None = None,
    double_worker: bool = True,
    claim_timeout: float | timedelta = 120.0,
    **spawn_options: Any,
) -> Any:
    """Run a task undisturbed, then once for each way to crash it; each of these runs must end like the first.

    Each commit of a run is such a way, three times: the worker dies just before it; it dies just after it, having heard of
    no answer; and (`double_worker`) it stands still before it until its lease has run out and another worker has brought
    the task to its end, then goes on, and must be refused. Commits are checkpoints, `ctx.transaction`s, sleeps, waits,
    emits, spawns, and the run's end.

    Equal must be: state and result; the events that are emitted; and the effects. An effect may happen once more when the
    crash came after it and before the commit that follows it, as an effect in a plain step may; rows that
    `ctx.transaction` writes, and anything behind a commit, may not. Tasks that are spawned count as effects.

    events         payloads of the events the task waits for, by name or pattern (`"approved:*"`): emitted when they are
                   waited for. A wait whose event is not given runs into its timeout
    effects        counts effects: an `Effects`, another function that answers {name: count}, or SQL for rows (name, count)
    reset          called before each run: put the rest of the world back
    key            what of a result must be equal, if not all; ids of tasks are equal to those of other runs anyway
    double_worker  whether to try the late worker as well
    claim_timeout  the lease, in seconds of the clock
    spawn_options  as `spawn` takes them

    The clock of each run begins where the client's stands, and time passes only when nothing else can be done. Tasks that
    the task spawns are run as well, and not crashed. A crash is an exception that `except Exception` does not catch;
    `finally` blocks run, which those of a real crash would not.

    The queues of the client must be empty at first, and are emptied before each run; after a failure they hold the run that
    failed. Raises AssertionError naming the commit, the crash, and what differed; ConfigError for a client that is no test
    client, a task it does not know, or a queue in use.
    """
    call: Any = _async_crash if isinstance(app, AsyncAbsurd) else _sync_crash
    return call(
        app,
        task_name,
        params,
        events=events,
        effects=effects,
        reset=reset,
        key=key,
        double_worker=double_worker,
        claim_timeout=claim_timeout,
        spawn_options=spawn_options,
    )
