"""Every error this package raises: one tree, and the table that leads from a SQLSTATE into it.

::

    AbsurdError
        ConfigError (ValueError)
        SchemaError
            SchemaMissing
            SchemaOutdated
            SchemaNewer
        QueueError
            QueueNotFound
            QueueExists
        TaskError
            TaskNotFound
            TaskNotRunning
            TaskTerminal
            RetryRefused
            InvalidRetryStrategy (ValueError)
            InvalidOption (ValueError)
            InvalidTaskId (ValueError)
            TaskIdConflict
            IdempotencyConflict
            NonRetryableError
            RetryAfter
        EventError
        StepError
            StepNameError (ValueError)
            StepOrderChanged
        NotSerializable (TypeError)
        ValueTooLarge (ValueError)
        ValidationFailed (ValueError)
        TimeoutError (TimeoutError)
        ConnectionLost
        LeaseLost
    ControlFlow
        SuspendTask
        CancelledTask
        FailedTask
        LeaseLostSignal
        Snooze

The first root is an `Exception` and means "something went wrong". The second is a `BaseException` and means
"this run is over for this worker": a handler's `except Exception` must never swallow it.
"""

from __future__ import annotations

import builtins
import inspect
import re
from datetime import timedelta
from typing import Any, ClassVar, NamedTuple, Protocol, cast

__all__ = [
    "AbsurdError",
    "CancelledTask",
    "ConfigError",
    "ConnectionLost",
    "ControlFlow",
    "EventError",
    "FailedTask",
    "IdempotencyConflict",
    "InvalidOption",
    "InvalidRetryStrategy",
    "InvalidTaskId",
    "LeaseLost",
    "LeaseLostSignal",
    "NonRetryableError",
    "NotSerializable",
    "QueueError",
    "QueueExists",
    "QueueNotFound",
    "RetryAfter",
    "RetryRefused",
    "SchemaError",
    "SchemaMissing",
    "SchemaNewer",
    "SchemaOutdated",
    "Snooze",
    "StepError",
    "StepNameError",
    "StepOrderChanged",
    "SuspendTask",
    "TaskError",
    "TaskIdConflict",
    "TaskNotFound",
    "TaskNotRunning",
    "TaskTerminal",
    "TimeoutError",
    "ValidationFailed",
    "ValueTooLarge",
    "from_sqlstate",
]


_HINT = "\nHint: "


def _seconds(delay: float | timedelta) -> float:
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < float("inf"):
        raise ValueError(f"delay must be seconds >= 0 or a timedelta, not {delay!r}")
    return float(seconds)


class _Described(BaseException):
    """What both roots share: the message defaults to the class docstring, a hint becomes part of the message.

    `sqlstate` is the code the server sent, or the one the class stands for, or None for errors of the client.
    `hint` is the server's hint, or None. The whole text is `args[0]`, so copies and pickles keep it.
    """

    sqlstate: str | None = None
    hint: str | None = None
    default_hint: ClassVar[str | None] = None

    def __init__(self, message: str | None = None, *, hint: str | None = None, sqlstate: str | None = None) -> None:
        text = message or (inspect.getdoc(type(self)) or type(self).__name__).partition("\n")[0]
        hint = hint or self.default_hint
        if hint and hint not in text and _HINT not in text:
            text = f"{text}{_HINT}{hint}"
        super().__init__(text)
        self.hint = hint
        if sqlstate is not None:
            self.sqlstate = sqlstate


class AbsurdError(_Described, Exception):
    """Something this package did, or was asked to do, went wrong; every class below says what."""


class ConfigError(AbsurdError, ValueError):
    """A client, worker or command was given an option it cannot work with; nothing was started."""


class SchemaError(AbsurdError):
    """The database does not hold the `absurd` schema this package needs."""


class SchemaMissing(SchemaError):
    """The `absurd` schema, or a part of it, is not installed in this database."""

    default_hint = "install or repair it with `absurdctl init` (and check that the URL names the right database)"


class SchemaOutdated(SchemaError):
    """The `absurd` schema in this database is older than this package."""

    default_hint = "upgrade it with `absurdctl migrate`"


class SchemaNewer(SchemaError):
    """The `absurd` schema in this database is newer than this package knows."""

    default_hint = "upgrade this package; the schema is never downgraded"


class QueueError(AbsurdError):
    """A request about a queue as a whole was refused."""


class QueueNotFound(QueueError):
    """No queue has this name."""

    default_hint = "create it with `absurdctl create-queue NAME`"


class QueueExists(QueueError):
    """A queue of this name exists already, with another storage mode."""


class TaskError(AbsurdError):
    """A request about one task or one of its runs was refused; nothing was changed."""


class TaskNotFound(TaskError):
    """This queue holds no task or run with this id."""


class TaskNotRunning(TaskError):
    """The run is not running, so it can neither end nor wait nor renew its lease."""


class TaskTerminal(TaskError):
    """The task is completed, failed or cancelled already, and the request needs one that is not."""


class RetryRefused(TaskError):
    """The task cannot be retried: it has not failed, or the new limit leaves no attempt."""


class InvalidRetryStrategy(TaskError, ValueError):
    """The retry strategy is malformed or out of range."""

    sqlstate = "AB003"


class InvalidOption(TaskError, ValueError):
    """An argument or option of a request has a value the engine refuses."""

    sqlstate = "AB004"


class InvalidTaskId(TaskError, ValueError):
    """The task id has a shape no task of this engine has."""

    sqlstate = "22023"


class TaskIdConflict(TaskError):
    """A task with this client-made id exists already and was spawned by a different request."""

    sqlstate = "AB005"


class IdempotencyConflict(TaskError):
    """The idempotency key belongs to a task that cannot answer for this request."""

    sqlstate = "AB006"


class NonRetryableError(TaskError):
    """Another attempt cannot help.

    For handlers to raise: the task fails at once, whatever attempts are left.
    """


class RetryAfter(TaskError):
    """This attempt failed, and the next one starts after a pause of the handler's own.

    For handlers to raise, when the other side says how long to wait. `delay`: seconds or a timedelta, never negative;
    ValueError otherwise. It beats the task's retry strategy, not its limit of attempts.
    """

    def __init__(
        self,
        delay: float | timedelta = 0.0,
        message: str | None = None,
        *,
        hint: str | None = None,
        sqlstate: str | None = None,
    ) -> None:
        self.delay = _seconds(delay)
        super().__init__(message, hint=hint, sqlstate=sqlstate)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.delay, self.args[0]), self.__dict__


class EventError(AbsurdError):
    """An event, or a wait for one, was refused; nothing was stored and nobody was woken."""


class StepError(AbsurdError):
    """A step of a handler was used in a way that cannot be replayed."""


class StepNameError(StepError, ValueError):
    """The name of a step is empty, too long or reserved."""


class StepOrderChanged(StepError):
    """New work was asked for while recorded steps were still ahead: the code has changed since, or takes its way by chance.

    The run goes back to the queue for a minute, its attempt not burnt, until code comes that fits. To catch it in a handler is
    of no use: every later call raises it again.
    """

    default_hint = (
        "put new steps after all that waiting tasks have recorded, waits included, or let these tasks end under the old code; "
        "give a changed task a new name; keep what decides the way (time, randomness, a request) in a step; or accept it: "
        "register_task(..., strict_replay=False)"
    )


class NotSerializable(AbsurdError, TypeError):
    """A value holds something JSON in Postgres cannot represent; the message names the place and the fix."""


class ValueTooLarge(AbsurdError, ValueError):
    """A value is larger than the engine stores in one row."""


class ValidationFailed(AbsurdError, ValueError):
    """Params, a result or a payload do not match the declared type; the message names the field."""


class TimeoutError(AbsurdError, builtins.TimeoutError):
    """The time given for a wait passed before what was waited for happened."""


class ConnectionLost(AbsurdError):
    """The database cannot be reached, or the connection broke while a call was on its way."""

    default_hint = (
        "check that the server runs and that ABSURD_DATABASE_URL points at it; `embedded:` there starts a private one"
    )


class LeaseLost(AbsurdError):
    """The run's lease ended or was never there: another worker may own the task now."""


class ControlFlow(_Described):
    """The run is over for this worker; not an error, and not for handlers to catch."""


class SuspendTask(ControlFlow):
    """The run sleeps until a time, an event or a child task wakes it."""


class CancelledTask(ControlFlow):
    """The task was cancelled; whatever the handler does from here on is not recorded."""

    sqlstate = "AB001"


class FailedTask(ControlFlow):
    """The run was failed already, by its expired lease or by another session."""

    sqlstate = "AB002"


class Snooze(ControlFlow):
    """Not now: the handler wants to run again later.

    For handlers to raise: the task runs again after `delay` (seconds or a timedelta, never negative; ValueError otherwise),
    and no attempt is burnt.
    """

    def __init__(
        self,
        delay: float | timedelta = 0.0,
        message: str | None = None,
        *,
        hint: str | None = None,
        sqlstate: str | None = None,
    ) -> None:
        self.delay = _seconds(delay)
        super().__init__(message, hint=hint, sqlstate=sqlstate)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.delay, self.args[0]), self.__dict__


class LeaseLostSignal(ControlFlow):
    """The run's lease was lost while the handler ran; what it does from here on is not recorded."""


class Rule(NamedTuple):
    """One line of the table: this SQLSTATE (or its start), a message that matches `pattern` (None: any)."""

    sqlstate: str
    pattern: str | None
    error: type[AbsurdError | ControlFlow]


#: First match wins. Texts stand here only where the engine's compatible functions share one plain SQLSTATE.
RULES: tuple[Rule, ...] = (
    Rule("AB001", None, CancelledTask),
    Rule("AB002", None, FailedTask),
    Rule("AB003", None, InvalidRetryStrategy),
    Rule("AB004", None, InvalidOption),
    Rule("AB005", None, TaskIdConflict),
    Rule("AB006", None, IdempotencyConflict),
    Rule("AB", None, AbsurdError),
    Rule("42P01", r'\bqueue "', QueueNotFound),
    Rule("42P01", r'relation "absurd\.', SchemaMissing),
    Rule("42883", r"\babsurd\.", SchemaMissing),
    Rule("3F000", r'schema "absurd"', SchemaMissing),
    Rule("22007", r"must be an interval", InvalidOption),
    Rule("22023", r"\btask[ _]id\b", InvalidTaskId),
    Rule("0A000", r"\bqueue\b|storage mode|partition", InvalidOption),
    Rule("P0001", r'^Queue "[\s\S]*" already exists with storage mode "\w+"$', QueueExists),
    Rule("P0001", r'^Queue "[\s\S]*" does not exist$', QueueNotFound),
    Rule("P0001", r"not found (in queue|for checkpoint|while awaiting event)", TaskNotFound),
    Rule("P0001", r"is not currently running|cannot be failed|must be running to await", TaskNotRunning),
    Rule(
        "P0001",
        r"is not currently failed|must be greater than current attempts|has used its last attempt|is undone, or being undone",
        RetryRefused,
    ),
    Rule("P0001", r"does not have an active claim", LeaseLost),
    Rule("P0001", r"does not belong to task", TaskError),
    Rule("P0001", r"event_name must be", EventError),
    Rule("P0001", r"must be|is too long|^Unsupported ", InvalidOption),
    Rule("P0001", None, AbsurdError),
    Rule("08", None, ConnectionLost),
    Rule("57P01", None, ConnectionLost),
    Rule("57P02", None, ConnectionLost),
    Rule("57P03", None, ConnectionLost),
)


class _Diagnostic(Protocol):
    @property
    def message_primary(self) -> str | None: ...
    @property
    def message_hint(self) -> str | None: ...


class ServerError(Protocol):
    """What is read of a driver's exception: psycopg's `Error` fits, and is not imported here."""

    @property
    def sqlstate(self) -> str | None: ...
    @property
    def diag(self) -> _Diagnostic: ...


def from_sqlstate(exc: ServerError) -> BaseException:
    """The error of this tree that a driver's exception stands for; the same object when it is none of ours.

    The result carries the server's message, its hint and its SQLSTATE. An `OperationalError` of the driver
    without any SQLSTATE means that the connection failed: `ConnectionLost`. Never raises.

        except psycopg.Error as exc:
            error = from_sqlstate(exc)
            if error is exc:
                raise
            raise error from exc
    """
    code = exc.sqlstate
    if code is None:
        lost = any(base.__name__ == "OperationalError" for base in type(exc).__mro__)
        return ConnectionLost(str(exc).strip() or None) if lost else cast(BaseException, exc)
    message = exc.diag.message_primary or str(exc)
    for rule in RULES:
        if code.startswith(rule.sqlstate) and (rule.pattern is None or re.search(rule.pattern, message, re.I)):
            return rule.error(message, hint=exc.diag.message_hint, sqlstate=code)
    return cast(BaseException, exc)
