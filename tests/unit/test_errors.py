"""The error tree is the one drawn, and every SQLSTATE of the engine leads to a class and back."""

from __future__ import annotations

import builtins
import inspect
import pickle
import re
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest

from absurd import errors

ROOTS = (errors.AbsurdError, errors.ControlFlow)
CLASSES = {
    name: item
    for name, item in vars(errors).items()
    if inspect.isclass(item) and issubclass(item, ROOTS) and item.__module__ == errors.__name__
}

#: Raised by the client itself, without any server error behind them (or: parents nobody raises).
CLIENT_SIDE = {
    "NonRetryableError",
    "RetryAfter",
    "Snooze",
    "ConfigError", "SchemaError", "SchemaOutdated", "SchemaNewer", "QueueError", "TaskTerminal", "StepError",
    "StepNameError", "StepOrderChanged",
    "NotSerializable", "ValueTooLarge", "ValidationFailed", "TimeoutError", "ControlFlow",
    "SuspendTask", "LeaseLostSignal",
}  # fmt: skip


class OperationalError(Exception):
    """Stands for the driver's class of this name."""


def server_error(
    sqlstate: str | None, message: str, hint: str | None = None, kind: type = Exception
) -> errors.ServerError:
    exc: Any = kind(message)
    exc.sqlstate = sqlstate
    exc.diag = SimpleNamespace(message_primary=message, message_hint=hint)
    return cast(errors.ServerError, exc)


def drawn_tree() -> dict[str, tuple[str | None, str | None]]:
    """Name -> (parent, builtin base) as the module docstring draws it."""
    drawn: dict[str, tuple[str | None, str | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.fullmatch(r"((?: {4})+)([A-Z]\w+)(?: \((\w+)\))?", line)
        if match:
            depth = len(match[1]) // 4
            path = [*path[: depth - 1], match[2]]
            drawn[match[2]] = (path[-2] if len(path) > 1 else None, match[3])
    return drawn


def test_the_classes_are_those_of_the_drawn_tree() -> None:
    assert sorted(drawn_tree()) == sorted(CLASSES)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_class_hangs_where_the_tree_draws_it(name: str) -> None:
    parent, builtin = drawn_tree()[name]
    bases = [base for base in CLASSES[name].__bases__ if not base.__name__.startswith("_")]
    if parent:
        assert bases[0] is CLASSES[parent]
    if builtin:
        assert bases[1] is getattr(builtins, builtin)


def test_every_class_is_exported_and_nothing_else_is() -> None:
    assert sorted(errors.__all__) == sorted([*CLASSES, "from_sqlstate"])


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_the_default_message_is_the_meaning_in_the_docstring(name: str) -> None:
    error = CLASSES[name]
    assert "__doc__" in vars(error)
    assert str(error()).startswith((inspect.getdoc(error) or "").splitlines()[0])


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_an_error_survives_a_pickle_with_hint_and_sqlstate(name: str) -> None:
    error = CLASSES[name](message="text", hint="do this", sqlstate="XX123")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.hint, copy.sqlstate) == (str(error), "do this", "XX123")
    assert str(error) == "text\nHint: do this"


def test_every_class_is_in_the_table_or_is_raised_by_the_client() -> None:
    mapped = {rule.error.__name__ for rule in errors.RULES}
    assert mapped | CLIENT_SIDE == set(CLASSES)
    assert not mapped & CLIENT_SIDE


def test_a_class_that_stands_for_a_sqlstate_is_what_that_sqlstate_leads_to() -> None:
    own = {str(error.sqlstate): error for error in CLASSES.values() if "sqlstate" in vars(error)}
    assert sorted(code for code in own if code.startswith("AB")) == [f"AB00{n}" for n in range(1, 7)]
    for code, error in own.items():
        assert type(errors.from_sqlstate(server_error(code, 'task id "x"'))) is error


MESSAGES = [
    ("AB001", "Task has been cancelled", errors.CancelledTask),
    ("AB002", "Run has already failed", errors.FailedTask),
    ("AB003", "retry_strategy must be an object", errors.InvalidRetryStrategy),
    ("AB004", "priority must be a number", errors.InvalidOption),
    ("AB005", "Task id is taken", errors.TaskIdConflict),
    ("AB006", "Idempotency key is taken", errors.IdempotencyConflict),
    ("AB999", "Something a newer schema knows", errors.AbsurdError),
    ("42P01", 'Queue "orders" does not exist', errors.QueueNotFound),
    ("42P01", 'relation "absurd.queues" does not exist', errors.SchemaMissing),
    ("42883", "function absurd.claim_tasks(uuid) does not exist", errors.SchemaMissing),
    ("3F000", 'schema "absurd" does not exist', errors.SchemaMissing),
    ("22007", "cleanup_ttl must be an interval such as '30 days', not \"soon\"", errors.InvalidOption),
    ("22023", "Not a task id: x", errors.InvalidTaskId),
    ("0A000", "Queue storage mode partitioned is not supported", errors.InvalidOption),
    ("P0001", 'Queue "q" already exists with storage mode "unpartitioned"', errors.QueueExists),
    ("P0001", 'Queue "q" does not exist', errors.QueueNotFound),
    ("P0001", 'Queue "a\nb" does not exist', errors.QueueNotFound),
    ("P0001", 'Queue "it already exists" does not exist', errors.QueueNotFound),
    ("P0001", 'Task "x" not found in queue "q"', errors.TaskNotFound),
    ("P0001", 'Run "x" not found for checkpoint', errors.TaskNotFound),
    ("P0001", 'Run "x" not found while awaiting event', errors.TaskNotFound),
    ("P0001", 'Run "x" is not currently running in queue "q"', errors.TaskNotRunning),
    ("P0001", 'Run "x" cannot be failed in queue "q"', errors.TaskNotRunning),
    ("P0001", 'Run "x" must be running to await events', errors.TaskNotRunning),
    ("P0001", 'Task "x" is not currently failed in queue "q"', errors.RetryRefused),
    ("P0001", "max_attempts (2) must be greater than current attempts (3)", errors.RetryRefused),
    ("P0001", 'Run "x" does not have an active claim in queue "q"', errors.LeaseLost),
    ("P0001", 'Run "x" does not belong to task "y" in queue "q"', errors.TaskError),
    ("P0001", "event_name must be provided", errors.EventError),
    ("P0001", "max_attempts must be >= 1", errors.InvalidOption),
    ("P0001", 'Unsupported queue policy key "k"', errors.InvalidOption),
    ("P0001", 'Queue name "n" is too long (max 57 bytes).', errors.InvalidOption),
    ("P0001", "Anything else", errors.AbsurdError),
    ("08006", "connection failure", errors.ConnectionLost),
    ("57P01", "terminating connection due to administrator command", errors.ConnectionLost),
    ("57P02", "crash of another server process", errors.ConnectionLost),
    ("57P03", "the database system is starting up", errors.ConnectionLost),
]


@pytest.mark.parametrize(("code", "message", "expected"), MESSAGES)
def test_a_server_message_leads_to_its_class(code: str, message: str, expected: type[BaseException]) -> None:
    error = errors.from_sqlstate(server_error(code, message, hint="the server's hint"))
    assert type(error) is expected
    assert error.sqlstate == code  # type: ignore[attr-defined]
    assert str(error) == f"{message}\nHint: the server's hint"


def test_every_rule_of_the_table_is_the_first_match_of_some_message() -> None:
    def first(code: str, message: str) -> errors.Rule:
        return next(
            rule
            for rule in errors.RULES
            if code.startswith(rule.sqlstate) and (rule.pattern is None or re.search(rule.pattern, message, re.I))
        )

    assert {first(code, message) for code, message, _ in MESSAGES} == set(errors.RULES)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("40P01", "deadlock detected"),
        ("42P01", 'relation "my_table" does not exist'),
        ("42883", "function my_function() does not exist"),
        ("22023", "invalid parameter value"),
        ("23505", "duplicate key"),
    ],
)
def test_an_error_that_is_none_of_ours_comes_back_as_it_is(code: str, message: str) -> None:
    exc: Any = server_error(code, message)
    assert errors.from_sqlstate(exc) is exc


def test_an_operational_error_without_sqlstate_is_a_lost_connection() -> None:
    lost = errors.from_sqlstate(server_error(None, "the connection is closed", kind=OperationalError))
    assert type(lost) is errors.ConnectionLost
    assert "the connection is closed" in str(lost)
    assert type(errors.from_sqlstate(psycopg.OperationalError("gone"))) is errors.ConnectionLost
    other = psycopg.InterfaceError("cursor closed")
    assert errors.from_sqlstate(other) is other


@pytest.mark.parametrize(
    ("error", "command"),
    [
        (errors.SchemaMissing, "absurdctl init"),
        (errors.SchemaOutdated, "absurdctl migrate"),
        (errors.QueueNotFound, "absurdctl create-queue"),
    ],
)
def test_the_errors_of_a_first_hour_name_the_command_that_repairs_them(error: type, command: str) -> None:
    assert command in str(error("server text"))


def test_control_flow_passes_a_handlers_except_exception() -> None:
    for name in ("SuspendTask", "CancelledTask", "FailedTask", "LeaseLostSignal"):
        assert not issubclass(CLASSES[name], Exception)


def test_our_timeout_is_caught_as_the_builtin() -> None:
    with pytest.raises(builtins.TimeoutError, match="Timed out waiting"):
        raise errors.TimeoutError('Timed out waiting for event "x"')
