"""The context of the handler this code runs in, whichever world it is of."""

from __future__ import annotations

from absurd._async.context import AsyncTaskContext
from absurd._async.context import get_current_context as _async_context
from absurd._sync.context import TaskContext
from absurd._sync.context import get_current_context as _sync_context


def get_current_context() -> TaskContext | AsyncTaskContext | None:
    """The running handler's context, None outside a handler; isolated between concurrent tasks."""
    return _async_context() or _sync_context()
