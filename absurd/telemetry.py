"""What the engine says while it works: signals for tests and metrics, and log records that know their task.

Signals (name: fields). A listener is called in the worker, between two of its steps: it must be quick and not raise.

=====================  ==========================================================
worker.started         worker_id, queues
worker.idle            worker_id (safe to sleep: nothing due, wake-up registered)
worker.draining        worker_id, reason
worker.stopped         worker_id
task.claimed           worker_id, queue, count
run.started            task_name, task_id, run_id, attempt
run.ended              task_name, task_id, run_id, attempt, outcome
                       (completed, failed, suspended, lost, cancelled, released)
batch.sent             rows, verbs
connection.lost        what, error
connection.restored    what
housekeeping.done      queue, tasks, events
tasks.unserved         queue, names (long due, of names this worker does not know)
=====================  ==========================================================

Logging: logger `absurd`; `ctx.log` adds task_name, task_id, run_id and attempt to each record, and `TaskLogFilter` does the
same for any other logger used inside a handler.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any

SIGNALS = (
    "worker.started",
    "worker.idle",
    "worker.draining",
    "worker.stopped",
    "task.claimed",
    "run.started",
    "run.ended",
    "batch.sent",
    "connection.lost",
    "connection.restored",
    "housekeeping.done",
    "tasks.unserved",
)

logger = logging.getLogger("absurd")


class RunFields(Mapping[str, Any]):
    """Fields of a run for logs, spelled out only when somebody reads them: most runs log nothing."""

    __slots__ = ("_ids",)
    _names = ("task_name", "task_id", "run_id", "attempt")

    def __init__(self, task_name: str, task_id: object, run_id: object, attempt: int) -> None:
        self._ids = (task_name, task_id, run_id, attempt)

    def __getitem__(self, name: str) -> Any:
        try:
            value = self._ids[self._names.index(name)]
        except ValueError:
            raise KeyError(name) from None
        return value if isinstance(value, (str, int)) else str(value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


current_run: ContextVar[Mapping[str, Any] | None] = ContextVar("absurd_run", default=None)
"""Fields of the run whose handler is executing here, or None."""

Listener = Callable[[str, dict[str, Any]], None]
_listeners: list[Listener] = []


def listen(listener: Listener) -> Callable[[], None]:
    """Call `listener(name, fields)` for every signal of this process; returns the function that ends it."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener) if listener in _listeners else None


def listening() -> bool:
    """Whether anybody listens: spares the hot path the making of fields."""
    return bool(_listeners)


def signal(name: str, **fields: Any) -> None:
    """Tell the listeners; free when there are none. What a listener raises is logged, never passed on."""
    for listener in tuple(_listeners):
        try:
            listener(name, fields)
        except Exception:
            logger.exception("a telemetry listener failed on %s", name)


class TaskLogFilter(logging.Filter):
    """Adds task_name, task_id, run_id and attempt (None outside a handler) to each record of the handler or logger it is on."""

    def filter(self, record: logging.LogRecord) -> bool:
        fields = current_run.get() or {}
        for name in ("task_name", "task_id", "run_id", "attempt"):
            if not hasattr(record, name):
                setattr(record, name, fields.get(name))
        return True


class TaskLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger bound to one run."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs
