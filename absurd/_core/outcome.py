"""What a finished handler means for its run: a value, or an exception, becomes one row to write, or none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from absurd._core import codec
from absurd.errors import (
    CancelledTask,
    FailedTask,
    LeaseLostSignal,
    NonRetryableError,
    NotSerializable,
    RetryAfter,
    Snooze,
    StepOrderChanged,
    SuspendTask,
    ValidationFailed,
    ValueTooLarge,
)

#: Seconds until a task is tried again whose record the code at hand does not fit.
UNFIT_PAUSE = 60.0


class Outcome(NamedTuple):
    """kind: completed | failed | snoozed | suspended | lost | cancelled | released. `body` is JSON text for the first two;
    `final` says that another attempt cannot help, `delay` in how many seconds the next one is to start."""

    kind: str
    body: str | None = None
    final: bool = False
    delay: float | None = None


class Released(BaseException):
    """The worker is leaving: the run goes back to the queue, its attempt not burnt."""


def completed(value: Any) -> Outcome:
    """The handler returned; a value that JSON cannot hold is a failure."""
    try:
        return Outcome("completed", codec.encode(value, what="result"))
    except (NotSerializable, ValueTooLarge) as error:
        return failed(error)


def failed(error: BaseException) -> Outcome:
    """The handler raised. Whatever the text holds, it can be recorded."""
    return Outcome(
        "failed",
        codec.encode(codec.error_payload(error), what="failure"),
        isinstance(error, (ValidationFailed, NonRetryableError)),
        error.delay if isinstance(error, RetryAfter) else None,
    )


def raised(error: BaseException) -> Outcome:
    """Sort an exception that left the handler: control flow ends the run quietly, everything else is a failure."""
    if isinstance(error, BaseExceptionGroup):  # of a task group: control flow says more than what else went wrong
        flow = [leaf for leaf in leaves(error) if raised(leaf).kind != "failed"]
        return raised(min(flow, key=lambda leaf: isinstance(leaf, SuspendTask))) if flow else failed(error)
    if isinstance(error, SuspendTask):
        return Outcome("suspended")
    if isinstance(error, Released):
        return Outcome("released")
    if isinstance(error, Snooze):
        return Outcome("snoozed", delay=error.delay)
    if isinstance(error, StepOrderChanged):
        return Outcome("snoozed", delay=UNFIT_PAUSE)
    if isinstance(error, CancelledTask):
        return Outcome("cancelled")
    if isinstance(error, (FailedTask, LeaseLostSignal)):
        return Outcome("lost")
    return failed(error)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """What a group holds, groups inside it opened; a plain exception is its own leaf."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from leaves(each)
    else:
        yield error
